"""How a decode step's work is cut: laws of the plan, and a slow twin that follows the text of docs/kernel.md."""

from dataclasses import dataclass

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("triton")

from hypothesis import given, settings  # noqa: E402
from hypothesis import strategies as st  # noqa: E402
from triton import cdiv  # noqa: E402

from fieldprint.attention.decode import SPLIT_TOKENS, DecodeConfig, DecodePlan, plan_decode  # noqa: E402
from fieldprint.attention.plan_kernel import (  # noqa: E402
    LIGHT,
    LONG,
    LONG_GROWTH,
    LOOKAHEAD,
    MEDIUM,
    PLAN_RECORD,
    PLAN_ROW,
)

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
TILE = 16


@dataclass(frozen=True)
class Part:
    """What the plan says of a part of a sequence."""

    lo: int
    hi: int
    slot: int
    pages: tuple[int, ...]


def make(lens: list[int], **options: object) -> DecodePlan:
    width = max(1, *(-(-n // TILE) for n in lens))
    table = torch.arange(len(lens) * width, dtype=torch.int32).reshape(len(lens), width) * 3
    return plan_decode(
        table.to(DEVICE),
        torch.tensor(lens, dtype=torch.int32, device=DEVICE),
        page_size=TILE, num_pages=3 * table.numel(), num_q_heads=2, num_kv_heads=2, head_dim=16,
        config=DecodeConfig(TILE, 3, 1, 1, min_tokens=TILE), **options,
    )  # fmt: skip


def parts_of(plan: DecodePlan) -> list[list[Part]]:
    """The parts of each sequence in the order of their slots, found as programs find them."""
    work = plan.work.tolist()
    records = work[plan.batch * PLAN_ROW.value :]
    found: list[list[Part]] = [[] for _ in range(plan.batch)]
    seen = set()
    for program in range(plan.num_ranges):
        index = program
        while index >= 0:
            assert index not in seen
            seen.add(index)
            at = index * PLAN_RECORD.value
            row, lo, hi, slot, index, length, *pages = records[at : at + 6 + LOOKAHEAD.value]
            if row >= 0:
                assert length == int(plan.seq_lens[row])
                found[row].append(Part(lo, hi, slot, tuple(pages)))
    return [sorted(parts, key=lambda part: part.slot) for parts in found]


def check_laws(plan: DecodePlan) -> None:
    """Every tile in one part, in order; neighbouring slots, none twice; the merge's borders; the pages of the first tiles."""
    anchor = -(-plan.num_anchor // TILE)
    rows = plan.work[: plan.batch * PLAN_ROW.value].reshape(plan.batch, -1).tolist()
    slots = []
    for row, parts in enumerate(parts_of(plan)):
        length = int(plan.seq_lens[row])
        oldest = 0 if plan.window is None else max(0, length - plan.q_len - plan.window + 1)
        tiles = [
            t
            for t in range(-(-length // TILE))
            if t >= oldest // TILE or t * TILE < min(oldest, plan.num_sinks)
        ]
        line = [tile for part in parts for tile in range(part.lo, part.hi)]
        assert line == list(range(anchor + len(tiles)))
        first_slot, count, anchor_parts, first_part = rows[row]
        assert [part.slot for part in parts] == list(range(first_slot, first_slot + count))
        touching = [i for i, part in enumerate(parts) if part.lo < min(part.hi, anchor)]
        context = [i for i, part in enumerate(parts) if part.hi > max(part.lo, anchor)]
        assert touching == list(range(anchor_parts))
        assert context == list(range(first_part, count)) if tiles else first_part == count or not anchor
        slots.extend(part.slot for part in parts)
        for part in parts:
            places = (
                [tiles[min(max(part.lo - anchor, 0) + i, len(tiles) - 1)] for i in range(4)] if tiles else []
            )
            assert list(part.pages[: len(places)]) == [int(plan.page_table[row, place]) for place in places]
    assert len(set(slots)) == len(slots)
    assert max(slots) < plan.num_records


lengths = st.lists(st.one_of(st.just(0), st.integers(1, 40), st.integers(1, 700)), min_size=1, max_size=6)


@settings(max_examples=60, deadline=None)
@given(
    lens=lengths,
    anchor=st.integers(0, 200),
    programs=st.integers(2, 90),
    window=st.none() | st.integers(1, 90),
    sinks=st.integers(0, 60),
    invariant=st.booleans(),
)
def test_every_tile_is_in_one_part(
    lens: list[int], anchor: int, programs: int, window: int | None, sinks: int, invariant: bool
) -> None:
    check_laws(
        make(
            lens, num_anchor=anchor, num_programs=programs, window=window, num_sinks=sinks if window else 0,
            batch_invariant=invariant,
        )
    )  # fmt: skip


def split_at_positions(length: int, anchor: int) -> list[tuple[int, int]]:
    """The splits of a sequence without a window: those of the anchor, then those of the context."""
    size = SPLIT_TOKENS // TILE
    grown = size * (LONG_GROWTH.value if length > LONG.value else 2 if length > MEDIUM.value else 1)
    tiles = cdiv(length, TILE)
    own = [(i, min(i + size, anchor)) for i in range(0, anchor, size)]
    context = [(anchor + i, anchor + min(i + grown, tiles)) for i in range(0, tiles, grown)]
    return own + context or [(0, 0)]


@pytest.mark.parametrize("length", [0, 1, 256, 257, 8192, 8193, 65536, 65537, 70000])
@pytest.mark.parametrize("others", [[], [40, 9000]])
@pytest.mark.parametrize("anchor", [0, 300])
def test_batch_invariant_splits_follow_from_the_own_length(
    length: int, others: list[int], anchor: int
) -> None:
    plan = make([length, *others], num_anchor=anchor, num_programs=6, batch_invariant=True)
    found = [(part.lo, part.hi) for part in parts_of(plan)[0]]
    assert found == split_at_positions(length, -(-anchor // TILE))


@settings(max_examples=40, deadline=None)
@given(lens=lengths, anchor=st.integers(0, 200), each=st.integers(2, 20))
def test_aligned_parts_are_as_small_as_fit_and_alike(lens: list[int], anchor: int, each: int) -> None:
    ranges = each * len(lens)
    plan = make(lens, num_anchor=anchor, num_programs=2 * ranges)
    tiles, parts = cdiv(anchor, TILE), parts_of(plan)
    separate = each >= 8

    def needed(size: int) -> int:
        if separate:
            alone = cdiv(tiles, max(size, LIGHT.value))
            return sum(alone + cdiv(cdiv(n, TILE), size) or 1 for n in lens)
        return sum(max(1, cdiv(cdiv(n, TILE) + cdiv(tiles, LIGHT.value), size)) for n in lens)

    size = next(size for size in range(1, 10**4) if needed(size) <= ranges)
    assert sum(map(len, parts)) == needed(size)
    for found in parts:
        sizes = [part.hi - part.lo for part in found if part.lo >= tiles]
        assert not sizes or max(sizes) - min(sizes) <= 1
        assert not separate or all(part.hi <= tiles or part.lo >= tiles for part in found)


def test_more_splits_than_programs_are_taken_in_turns() -> None:
    plan = make([5000, 300], num_anchor=20, num_programs=2, batch_invariant=True)
    assert plan.num_ranges == 16  # sixteen waves of one range
    assert plan.num_records > 16
    check_laws(plan)
