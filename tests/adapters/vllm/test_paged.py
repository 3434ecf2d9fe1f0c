"""Steps of several requests under several anchors, by our kernel over vLLM's blocks, against the operator in float64."""

import itertools
import math
from importlib.util import find_spec

import pytest
import torch

from fieldprint.adapters.vllm.layout import learn_layout
from fieldprint.adapters.vllm.paged import (
    MassSums,
    PagedStep,
    Sizes,
    anchor_view,
    attend_parts,
    parts_of,
    place_of,
    views,
)
from fieldprint.attention.naive import naive_attention
from fieldprint.errors import CompatibilityError
from fieldprint.generate.request import AttentionSettings

BLOCKS, SIZE, HEADS, Q_HEADS, DIM = 40, 16, 3, 9, 64
SIZES = Sizes(BLOCKS, SIZE, Q_HEADS, HEADS, DIM, torch.float32)
# One anchor in neighbouring blocks, one in others, and requests: owner, new tokens, length.
ANCHORS = [(), (3, 4), (9, 7, 8)]
# Beside vLLM without a GPU Triton's interpreter cannot be had.
INTERPRETED = pytest.param(
    True, marks=pytest.mark.skipif(find_spec("vllm") is not None, reason="vLLM is there")
)
STEPS = {
    "decode": [(1, 1, 40), (2, 1, 17), (1, 1, 1), (0, 1, 33)],
    "mixed": [(2, 5, 21), (1, 1, 16), (0, 3, 3), (2, 1, 50), (1, 18, 18)],
    "one": [(1, 7, 7)],
    "padding": [(1, 1, 9), (0, 0, 0)],
}
OPERATORS = {
    "concat": AttentionSettings(),
    "floor": AttentionSettings(g=0.3),
    "mixture": AttentionSettings("mixture", 0.2),
    "window": AttentionSettings(g=0.1, window=12, num_sinks=4),
}


def cache_of(generator: torch.Generator) -> torch.Tensor:
    """Blocks in vLLM's shape, NaN where nobody may look."""
    cache = torch.full((BLOCKS, HEADS, SIZE, 2 * DIM), math.nan)
    k_pages, v_pages = views(cache, SIZES)
    for pages in (k_pages, v_pages):
        for blocks in ANCHORS:
            pages[list(blocks)] = torch.randn(len(blocks), SIZE, HEADS, DIM, generator=generator)
    return cache


@pytest.mark.parametrize("decode_kernel", [False, INTERPRETED])
@pytest.mark.parametrize("operator", OPERATORS)
@pytest.mark.parametrize("step", STEPS)
def test_a_step_is_what_the_operator_says(step: str, operator: str, decode_kernel: bool) -> None:
    settings, requests = OPERATORS[operator], STEPS[step]
    generator = torch.Generator().manual_seed(5)
    cache = cache_of(generator)
    k_pages, v_pages = views(cache, SIZES)
    free = [
        block
        for block in torch.randperm(BLOCKS, generator=generator).tolist()
        if block not in (3, 4, 7, 8, 9)
    ]
    table = torch.full((len(requests), 5), BLOCKS - 1, dtype=torch.int32)
    for row, (_, _, length) in enumerate(requests):
        for index in range(-(-length // SIZE)):
            table[row, index] = block = free.pop()
            there = min(SIZE, length - index * SIZE)
            for pages in (k_pages, v_pages):
                pages[block, :there] = torch.randn(there, HEADS, DIM, generator=generator)
    counts = [length for _, _, length in requests]
    starts = [0, *itertools.accumulate(new for _, new, _ in requests)]
    q = torch.randn(starts[-1], Q_HEADS, DIM, generator=generator)
    parts = parts_of(
        [owner for owner, _, _ in requests],
        ANCHORS,
        table,
        torch.tensor(counts, dtype=torch.int32),
        counts,
        starts,
        SIZES,
        settings,
        decode_kernel=decode_kernel,
    )
    out = torch.full_like(q, math.nan)
    sums = MassSums(2, Q_HEADS, torch.device("cpu"))
    g = torch.full((Q_HEADS,), settings.weights[0])
    attend_parts(
        q, k_pages, v_pages, PagedStep(starts[-1], parts), settings, g, scale=0.1, out=out, layer=0, sums=sums
    )
    expected_mass = {index: torch.zeros(2, Q_HEADS, dtype=torch.float64) for index in range(len(ANCHORS))}
    for row, (owner, new, length) in enumerate(requests):
        queries = slice(starts[row], starts[row] + new)
        blocks = ANCHORS[owner]
        where = place_of(blocks, q.device)
        anchor = [None if where is None else anchor_view(pages, where) for pages in (k_pages, v_pages)]
        truth, _, mass, weight = naive_attention(
            q[queries],
            k_pages,
            v_pages,
            table[row : row + 1],
            torch.tensor([length]),
            torch.tensor([0, new]),
            anchor_k=anchor[0],
            anchor_v=anchor[1],
            g=settings.weights[0] if blocks else 0.0,
            operator=settings.operator if blocks else "floor",
            softmax_scale=0.1,
            window=settings.window,
            num_sinks=settings.num_sinks,
        )
        torch.testing.assert_close(out[queries].double(), truth, atol=2e-5, rtol=1e-5)
        expected_mass[owner] += torch.stack([mass.sum(0), weight.sum(0)])
    queries, found = sums.take() or ({}, None)
    assert queries == {owner: sum(new for each, new, _ in requests if each == owner) for owner in queries}
    assert queries.keys() == {owner for owner, new, _ in requests if owner and new}
    for number, index in enumerate(queries):
        torch.testing.assert_close(found[number, 0].double(), expected_mass[index], atol=1e-4, rtol=1e-4)
        assert not found[number, 1].any()
    assert sums.take() is None


def test_the_anchor_is_read_where_it_is_pinned() -> None:
    k_pages, _ = views(cache_of(torch.Generator().manual_seed(1)), SIZES)
    together = anchor_view(k_pages, place_of((3, 4), k_pages.device))
    assert together.untyped_storage().data_ptr() == k_pages.untyped_storage().data_ptr()
    scattered = anchor_view(k_pages, place_of((9, 7, 8), k_pages.device))
    assert torch.equal(scattered[:, SIZE : 2 * SIZE], k_pages[7].transpose(0, 1))


def test_slots_hold_k_and_then_v() -> None:
    cache = torch.zeros(4, HEADS, SIZE, 2 * DIM)
    sizes = Sizes(4, SIZE, Q_HEADS, HEADS, DIM, torch.float32)

    def write(k: torch.Tensor, v: torch.Tensor, slots: torch.Tensor) -> None:
        for pages, new in zip(views(cache, sizes), (k, v), strict=True):
            pages.view(-1, HEADS, DIM)[slots] = new

    layout = learn_layout(cache, 2, SIZE, HEADS, DIM, write)
    expected = torch.arange(2 * SIZE * HEADS * DIM).view(SIZE, 2, HEADS, DIM)
    assert torch.equal(layout.offsets, expected)


def test_blocks_with_room_between_them_are_refused() -> None:
    cache = torch.zeros(BLOCKS, 2, HEADS, SIZE, 2 * DIM)[:, 0]
    with pytest.raises(CompatibilityError, match="the kernel needs"):
        views(cache, SIZES)
