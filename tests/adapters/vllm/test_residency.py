"""Digests of blocks: against the bytes themselves; every flipped bit found where it is, and nothing else."""

import os
import subprocess
import sys
from pathlib import Path

import blake3
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fieldprint.adapters.vllm.layout import BlockLayout
from fieldprint.adapters.vllm.messages import Span
from fieldprint.adapters.vllm.residency import Installed, Residency, digests_of
from fieldprint.errors import IntegrityError

LAYERS, BLOCKS, SIZE, HEADS, DIM = 3, 9, 4, 2, 8


def made(*, dtype: torch.dtype = torch.float32, use_kernel: bool | None = None) -> Residency:
    """Caches whose elements lie in a drawn order."""
    elements = 2 * SIZE * HEADS * DIM
    offsets = torch.randperm(elements, generator=torch.Generator().manual_seed(1)).view(SIZE, 2, HEADS, DIM)
    caches = [
        torch.randn(BLOCKS, elements, generator=torch.Generator().manual_seed(n)).to(dtype)
        for n in range(LAYERS)
    ]
    return Residency(caches, BlockLayout(offsets, elements), use_kernel=use_kernel)


def naive(residency: Residency, slot: int) -> bytes:
    """BLAKE3 of one slot: layer by layer, K before V, head by head."""
    block, token = divmod(slot, SIZE)
    parts = []
    for flat in residency._flats:
        for part in range(2):
            for head in range(HEADS):
                for d in range(DIM):
                    at = block * residency.layout.stride + int(residency.layout.offsets[token, part, head, d])
                    parts.append(flat[at : at + 1].view(torch.uint8).numpy().tobytes())
    return blake3.blake3(b"".join(parts)).digest()


def flip(residency: Residency, layer: int, block: int, element: int, bit: int) -> None:
    at = block * residency.layout.stride + element
    residency._flats[layer][at : at + 1].view(torch.int32)[0] ^= 1 << bit


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_slot_digests_are_blake3_of_the_canonical_bytes(dtype: torch.dtype) -> None:
    residency = made(dtype=dtype)
    slots = np.array([0, 35, 17, 3, 4], dtype=np.int64)
    found = residency.bind(slots).result()
    assert [row.tobytes() for row in found] == [naive(residency, slot) for slot in slots.tolist()]
    assert np.array_equal(residency.bound[slots].numpy(), found)


def test_the_kernel_gathers_the_same() -> None:
    """Under Triton's interpreter, which must be chosen before triton is imported."""
    program = (
        "import torch; from tests.adapters.vllm.test_residency import made; "
        "slots = torch.tensor([0, 35, 17, 3, 4]); "
        "assert torch.equal(made(use_kernel=True).rows(slots), made(use_kernel=False).rows(slots))"
    )
    root = Path(__file__).parents[3]
    environment = os.environ | {"TRITON_INTERPRET": "1", "PYTHONPATH": str(root)}
    done = subprocess.run(
        [sys.executable, "-c", program],
        cwd=root,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr


@settings(max_examples=60, deadline=None)
@given(
    count=st.integers(1, 4 * SIZE),
    looks=st.integers(0, 2),
    layer=st.integers(0, LAYERS - 1),
    element=st.integers(0, 2 * SIZE * HEADS * DIM - 1),
    number=st.integers(0, 3),
    bit=st.integers(0, 31),
)
def test_a_flipped_bit_is_found_in_its_block_and_nowhere_else(
    count: int, looks: int, layer: int, element: int, number: int, bit: int
) -> None:
    residency = made()
    blocks = (7, 2, 5, 1)
    span = Span(blocks, count)
    slots = np.concatenate([np.arange(SIZE) + block * SIZE for block in blocks])[:count]
    residency.bind(slots)
    other = Span((3,), SIZE)
    residency.bind(np.arange(SIZE) + 3 * SIZE)
    for _ in range(looks):
        assert residency.damaged([span, other]).result() == ((), ())
    residency.order()
    flip(residency, layer, blocks[number], element, bit)
    token = int((residency.layout.offsets == element).nonzero()[0, 0])
    inside = number * SIZE + token < count
    assert residency.damaged([span, other]).result() == (((number,) if inside else ()), ())
    assert residency.damaged([span]).result() == (((number,) if inside else ()),)
    flip(residency, layer, blocks[number], element, bit)
    assert residency.damaged([span, other]).result() == ((), ())


def test_a_swapped_block_is_found() -> None:
    residency = made()
    residency.bind(np.arange(8 * SIZE)).result()
    spans = [Span((0, 1, 2), 3 * SIZE), Span((1, 3), 2 * SIZE)]
    assert residency.damaged(spans).result() == ((), ())
    for flat in residency._flats:
        blocks = flat.view(BLOCKS, -1)
        blocks[[1, 4]] = blocks[[4, 1]]
    assert residency.damaged(spans).result() == ((1,), (0,))


def test_what_is_written_again_is_bound_again() -> None:
    residency = made()
    slots = np.arange(2 * SIZE)
    residency.bind(slots)
    assert residency.damaged([Span((0, 1), 2 * SIZE)]).result() == ((),)
    asked = residency.damaged([Span((0, 1), 2 * SIZE)])
    residency.order()
    residency._flats[1][5] = 3.5
    residency.bind(slots[:SIZE])
    assert asked.result() == ((),)  # of what was there when it was asked
    assert residency.damaged([Span((0, 1), 2 * SIZE)]).result() == ((),)
    assert not residency.damaged([Span((0,), 0)]).result()[0]


def anchor(residency: Residency) -> Installed:
    values = torch.randn(2 * SIZE, LAYERS, 2, HEADS, DIM, generator=torch.Generator().manual_seed(9))
    return Installed("9a" * 32, (6, 8), values, digests_of(values).numpy())


def test_an_anchor_is_installed_where_it_is_hashed_and_can_be_written_again() -> None:
    residency = made()
    installed = anchor(residency)
    residency.install(installed)
    slots = torch.cat([torch.arange(SIZE) + block * SIZE for block in installed.blocks])
    assert torch.equal(residency.rows(slots), installed.values)
    span = installed.span(SIZE)
    assert residency.damaged([span]).result() == ((),)
    flip(residency, 2, 8, 11, 30)
    assert residency.damaged([span]).result() == ((1,),)
    residency.install(installed)
    assert residency.damaged([span]).result() == ((),)


def test_blocks_that_do_not_keep_an_anchor_are_refused() -> None:
    residency = made()
    installed = anchor(residency)
    installed.digests[3, 0] ^= 1
    with pytest.raises(IntegrityError, match="do not keep"):
        residency.install(installed)
