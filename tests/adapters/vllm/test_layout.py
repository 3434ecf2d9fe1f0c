"""Block layouts that are learned from writers of every packing, and blocks that are not understood."""

from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from fieldprint.adapters.vllm.layout import flat_view, learn_layout
from fieldprint.errors import CompatibilityError

BLOCKS, SIZE, HEADS, DIM = 5, 4, 3, 8
Put = Callable[[Tensor, int, int, Tensor, Tensor], None]  # one token's K and V [heads, dim] into a block


def tokens_outside(cache: Tensor, block: int, token: int, k: Tensor, v: Tensor) -> None:
    cache[block, 0, token], cache[block, 1, token] = k, v


def heads_outside(cache: Tensor, block: int, token: int, k: Tensor, v: Tensor) -> None:
    cache[block, :, token] = torch.cat([k, v], -1)


def keys_across(cache: Tensor, block: int, token: int, k: Tensor, v: Tensor) -> None:
    """K transposed inside of a head's half, as kernels with vector instructions have it."""
    half = cache[block].view(HEADS, 2, SIZE * DIM)
    half[:, 0].view(HEADS, DIM, SIZE)[:, :, token] = k
    half[:, 1].view(HEADS, SIZE, DIM)[:, token] = v


LAYOUTS: dict[str, tuple[tuple[int, ...], Put]] = {
    "FlashAttention": ((BLOCKS, 2, SIZE, HEADS, DIM), tokens_outside),
    "heads outside": ((BLOCKS, HEADS, SIZE, 2 * DIM), heads_outside),
    "keys across": ((BLOCKS, HEADS, SIZE, 2 * DIM), keys_across),
}


def writer(cache: Tensor, put: Put) -> Callable[[Tensor, Tensor, Tensor], None]:
    def write(k: Tensor, v: Tensor, slots: Tensor) -> None:
        for row, slot in enumerate(slots.tolist()):
            put(cache, slot // SIZE, slot % SIZE, k[row], v[row])

    return write


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("name", LAYOUTS)
def test_what_is_written_is_found_where_the_layout_says(name: str, dtype: torch.dtype) -> None:
    shape, put = LAYOUTS[name]
    cache = torch.full(shape, float("nan"), dtype=dtype)
    cache[0] = 0
    write = writer(cache, put)
    layout = learn_layout(cache, 0, SIZE, HEADS, DIM, write)
    assert not cache[0].any()
    assert cache[1:].isnan().all()
    k, v = torch.randn(3, HEADS, DIM).to(dtype), torch.randn(3, HEADS, DIM).to(dtype)
    slots = torch.tensor([SIZE + 1, 4 * SIZE + 3, 2 * SIZE])
    write(k, v, slots)
    found = flat_view(cache)[layout.indices(slots)]
    assert torch.equal(found, torch.stack([k, v], 1))


@settings(max_examples=30, deadline=None)
@given(st.permutations(range(2 * SIZE * HEADS * DIM)))
def test_any_permutation_of_a_block_is_learned(order: list[int]) -> None:
    cache = torch.zeros(BLOCKS, len(order))
    places = torch.tensor(order).view(SIZE, 2, HEADS, DIM)

    def write(k: Tensor, v: Tensor, slots: Tensor) -> None:
        for row, slot in enumerate(slots.tolist()):
            cache[slot // SIZE, places[slot % SIZE]] = torch.stack([k[row], v[row]])

    assert torch.equal(learn_layout(cache, 2, SIZE, HEADS, DIM, write).offsets, places)


def test_a_cache_of_views_into_a_larger_one_is_understood() -> None:
    whole = torch.zeros(BLOCKS, 7, 2, SIZE, HEADS, DIM)  # blocks of seven layers side by side
    cache = whole[:, 3]
    layout = learn_layout(cache, 0, SIZE, HEADS, DIM, writer(cache, tokens_outside))
    assert layout.stride == 7 * 2 * SIZE * HEADS * DIM
    assert not whole.any()


def nothing(k: Tensor, v: Tensor, slots: Tensor) -> None:
    """Writes nowhere."""


def test_blocks_that_hold_something_else_are_refused() -> None:
    cache = torch.zeros(BLOCKS, 2, SIZE, HEADS, DIM)
    with pytest.raises(CompatibilityError, match="something else"):
        learn_layout(cache, 0, SIZE, HEADS, DIM, nothing)

    def twice(k: Tensor, v: Tensor, slots: Tensor) -> None:
        writer(cache, tokens_outside)(k, k, slots)

    with pytest.raises(CompatibilityError, match="something else"):
        learn_layout(cache, 0, SIZE, HEADS, DIM, twice)
    with pytest.raises(CompatibilityError, match="something else"):  # scales beside the elements
        learn_layout(torch.zeros(BLOCKS, 10), 0, SIZE, HEADS, DIM, nothing)


def test_blocks_in_pieces_are_refused() -> None:
    with pytest.raises(CompatibilityError, match="runs of memory"):
        flat_view(torch.zeros(BLOCKS, 2 * SIZE, HEADS)[:, ::2])
    with pytest.raises(CompatibilityError, match="overlap"):
        flat_view(torch.zeros(100).as_strided((BLOCKS, 10), (5, 1)))
