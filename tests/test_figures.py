"""The drawings of the documentation are what the script draws, and it cuts work the way the kernel does."""

import importlib.util
import json
import re
import sys
from itertools import pairwise
from pathlib import Path
from types import ModuleType
from xml.etree import ElementTree

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

FOLDER = Path(__file__).parent.parent / "docs" / "figures"


def load() -> ModuleType:
    spec = importlib.util.spec_from_file_location("draw", FOLDER / "draw.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["draw"] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


DRAW = load()
DRAWINGS: dict[str, str] = DRAW.drawings()
SAMPLE = (
    Path(__file__).parent / "benchmarks" / "timeline_sample.json"
)  # of the demo model on a CPU, no result


def test_every_file_is_drawn_by_the_script() -> None:
    assert {path.name for path in FOLDER.glob("*.svg")} == set(DRAWINGS)


@pytest.mark.parametrize("name", DRAWINGS)
def test_file_is_what_the_script_draws(name: str) -> None:
    assert (FOLDER / name).read_text(encoding="utf-8") == DRAWINGS[name], "run `make figures`"


@pytest.mark.parametrize("name", [*DRAWINGS, "sample"])
def test_drawing_is_well_formed_and_loads_nothing(name: str) -> None:
    text = DRAWINGS[name] if name in DRAWINGS else DRAW.draw_timeline(json.loads(SAMPLE.read_text()))
    root = ElementTree.fromstring(text)
    assert root.attrib["viewBox"] == f"0 0 {root.attrib['width']} {root.attrib['height']}"
    assert not re.search(r"href|<script|@import|url\((?!#)", text)


def test_timeline_is_drawn_where_one_was_measured(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(DRAW, "TIMELINE", tmp_path / "timeline.json")
    assert "timeline.svg" not in DRAW.drawings()
    monkeypatch.setattr(DRAW, "TIMELINE", SAMPLE)
    assert DRAW.drawings()["timeline.svg"] == DRAW.draw_timeline(json.loads(SAMPLE.read_text()))


def bars(svg: str, ink: str) -> list[tuple[float, float, float]]:
    """(y, x, width) of every bar of a colour."""
    found = re.findall(rf'<rect x="([\d.]+)" y="([\d.]+)" width="([\d.]+)" height="12" fill="{ink}"/>', svg)
    return [(float(y), float(x), float(width)) for x, y, width in found]


def test_timeline_shows_each_wait_of_the_baseline_and_none_of_ours() -> None:
    sample = json.loads(SAMPLE.read_text())
    (row,) = sample["rows"]
    svg, length = DRAW.draw_timeline(sample), row["peers"]["v2.5"]
    hashed = bars(svg, DRAW.KINDS["hashing on the host"])
    upper, lower = sorted({y for y, _, _ in hashed})  # v2.5's lines alone, one in each panel
    spans = row["intervals"]["v2.5"]["hashing on the host"]
    until = min(max(row["ours"], length) / DRAW.CLOSER, length)
    assert sum(y == upper for y, _, _ in hashed) == len(spans)
    assert sum(y == lower for y, _, _ in hashed) == sum(start < until for start, _ in spans)
    assert all(x >= 170 and x + width <= 884.5 for _, x, width in hashed)
    computed = bars(svg, DRAW.KINDS["attention and weights"])
    nearest = max(y for y, _, _ in computed)  # v2.5's in the lower panel
    assert upper < nearest < lower
    for x, end in ((x, x + width) for y, x, width in hashed if y == lower):
        assert not any(a < end - 0.2 and x + 0.2 < a + width for y, a, width in computed if y == nearest)


@given(spans=st.lists(st.tuples(st.floats(0, 1e5), st.floats(0, 1e4)), max_size=9), scale=st.floats(1e-3, 1))
def test_bars_cover_what_they_stand_for(spans: list[tuple[float, float]], scale: float) -> None:
    ordered = sorted((start, start + length) for start, length in spans)
    found = DRAW._pixels(ordered, scale)
    assert all(b[0] > a[1] for a, b in pairwise(found))
    for start, stop in ordered:
        assert any(x - 0.1 <= start * scale and stop * scale <= end + 0.1 for x, end in found)


@given(length=st.floats(1, 1e7))
def test_ticks_are_few_and_round(length: float) -> None:
    tick = DRAW._tick(length)
    assert 3 <= length / tick <= 10
    assert f"{tick:e}"[0] in "125"


batches = st.lists(st.integers(0, 40), min_size=1, max_size=9)


@given(contexts=batches, anchor=st.integers(0, 12), ranges=st.integers(1, 80), min_tiles=st.integers(1, 5))
def test_cut_covers_every_tile_once_and_gives_each_record_a_slot(
    contexts: list[int], anchor: int, ranges: int, min_tiles: int
) -> None:
    found = DRAW.cut(contexts, anchor, ranges, min_tiles)
    assert len(found) == ranges
    pieces = [piece for mine in found for piece in mine]
    for row, context in enumerate(contexts):
        mine = [piece for piece in pieces if piece.row == row]
        assert [tile for p in mine for tile in range(p.first, p.stop)] == list(range(anchor + context))
        assert [piece.slot for piece in mine] == list(range(mine[0].slot, mine[0].slot + len(mine)))
    for numbers in ([piece.record for piece in pieces], [piece.slot for piece in pieces]):
        assert len(set(numbers)) == len(numbers)
        assert max(numbers) < ranges + (0 if 2 * len(contexts) <= ranges else len(contexts))


def test_drawn_batches_show_parts_of_the_anchor_and_a_range_that_goes_on() -> None:
    anchor = DRAW.DRAWN_ANCHOR
    few, many = (DRAW.cut(contexts, anchor, ranges) for contexts, ranges in (DRAW.FEW, DRAW.MANY))
    assert [(p.first, p.stop) for mine in few for p in mine if p.first < anchor] == 2 * [(0, 4), (4, 8)]
    assert [[p.record for p in mine] for mine in many] == [[0], [1, 5, 6], [2, 7], [3]]


@pytest.mark.parametrize("aligned", [True, False])
@given(data=st.data())
@settings(max_examples=15, deadline=None)
def test_cut_is_what_the_plan_kernel_writes(aligned: bool, data: st.DataObject) -> None:
    torch = pytest.importorskip("torch")
    pytest.importorskip("triton")
    from fieldprint.attention.decode import DecodeConfig, plan_decode
    from fieldprint.attention.plan_kernel import PLAN_RECORD, PLAN_ROW

    device, block, heads = "cuda" if torch.cuda.is_available() else "cpu", DRAW.BLOCK_N, 2
    lens = data.draw(st.lists(st.integers(0, 500), min_size=1, max_size=6), label="lens")
    few, most = (2 * len(lens), 20 * len(lens)) if aligned else (1, 2 * len(lens) - 1)
    ranges = data.draw(st.integers(few, most), label="ranges")
    num_anchor, min_tiles = data.draw(
        st.tuples(st.integers(0, 200), st.integers(1, 5)), label="anchor, least"
    )
    plan = plan_decode(
        torch.zeros(len(lens), 32, dtype=torch.int32, device=device),
        torch.tensor(lens, dtype=torch.int32, device=device),
        page_size=16, num_pages=1, num_q_heads=4, num_kv_heads=heads, head_dim=64, num_anchor=num_anchor,
        config=DecodeConfig(block, 2, 4, 1, min_tokens=min_tiles * block), num_programs=ranges * heads,
    )  # fmt: skip
    assert (plan.num_ranges, plan.aligned) == (ranges, aligned)
    work, written = plan.work.tolist(), []
    for index in range(ranges):
        record, pieces = index, []
        while record >= 0:
            start = PLAN_ROW.value * len(lens) + PLAN_RECORD.value * record
            row, first, stop, slot, following = work[start : start + 5]
            if row >= 0:
                pieces.append(DRAW.Piece(record, row, first, stop, slot))
            record = following
        written.append(pieces)
    anchor, contexts = -(-num_anchor // block), [-(-length // block) for length in lens]
    found = DRAW.cut(contexts, anchor, ranges, min_tiles)
    assert found == written
    for row in range(len(lens)):
        mine = [piece for pieces in found for piece in pieces if piece.row == row]
        touched = sum(piece.first < anchor for piece in mine)
        before = sum(piece.stop <= anchor for piece in mine)
        assert work[4 * row : 4 * row + 4] == [mine[0].slot, len(mine), touched, before]


def test_numbers_of_the_memory_drawing_are_those_of_the_kernel() -> None:
    pytest.importorskip("torch")
    pytest.importorskip("triton")
    from fieldprint.attention import decode, plan_kernel

    group = DRAW.NUM_Q_HEADS // DRAW.NUM_KV_HEADS
    config = decode.config_for(DRAW.HEAD_DIM, DRAW.BYTES, group, DRAW.BATCH * DRAW.NUM_KV_HEADS)
    assert (config.block_n, config.num_stages, config.programs_per_sm, config.merge_width) == (
        DRAW.BLOCK_N, DRAW.STAGES, DRAW.PROGRAMS_PER_SM, DRAW.MERGE_WIDTH,
    )  # fmt: skip
    assert config.min_tokens == DRAW.MIN_TILES * DRAW.BLOCK_N
    assert not config.merge_apart
    assert decode.SEPARATE_FROM == DRAW.SEPARATE_FROM
    for name in ("LIGHT", "LOOKAHEAD", "PLAN_ROW", "PLAN_RECORD"):
        assert getattr(plan_kernel, name).value == getattr(DRAW, name)
