"""The drawings of docs/kernel.md are what the script draws, and it cuts work the way the kernel does."""

import importlib.util
import re
import sys
from pathlib import Path
from types import ModuleType
from xml.etree import ElementTree

import pytest
from hypothesis import given
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


def test_every_file_is_drawn_by_the_script() -> None:
    assert {path.name for path in FOLDER.glob("*.svg")} == set(DRAWINGS)


@pytest.mark.parametrize("name", DRAWINGS)
def test_file_is_what_the_script_draws(name: str) -> None:
    assert (FOLDER / name).read_text(encoding="utf-8") == DRAWINGS[name], "run `make figures`"


@pytest.mark.parametrize("name", DRAWINGS)
def test_drawing_is_well_formed_and_loads_nothing(name: str) -> None:
    root = ElementTree.fromstring(DRAWINGS[name])
    assert root.attrib["viewBox"] == f"0 0 {root.attrib['width']} {root.attrib['height']}"
    assert not re.search(r"href|<script|@import|url\((?!#)", DRAWINGS[name])


@given(
    units=st.lists(st.integers(1, 40), min_size=1, max_size=6),
    heads=st.integers(1, 4),
    programs=st.integers(1, 50),
)
def test_cut_covers_the_line_once_with_two_slots_a_program(
    units: list[int], heads: int, programs: int
) -> None:
    per, segments = DRAW.cut(units, heads, programs)
    line = [unit for segment in segments for unit in range(segment.first, segment.stop)]
    assert line == list(range(sum(units) * heads))
    slots = [segment.slot for segment in segments if segment.slot is not None]
    assert len(slots) == len(set(slots))
    assert all(slot // 2 < programs for slot in slots)
    assert all(segment.first // per == (segment.stop - 1) // per == segment.program for segment in segments)
    for segment in segments:
        whole = segment.stop - segment.first == units[segment.sequence]
        assert (segment.slot is None) == whole


def test_numbers_of_the_memory_drawing_are_those_of_the_kernel() -> None:
    pytest.importorskip("torch")
    pytest.importorskip("triton")
    from fieldprint.attention.decode import config_for

    group = DRAW.NUM_Q_HEADS // DRAW.NUM_KV_HEADS
    config = config_for(DRAW.HEAD_DIM, DRAW.BYTES, group, DRAW.BATCH * DRAW.NUM_KV_HEADS)
    assert (config.block_n, config.num_stages, config.programs_per_sm) == (
        DRAW.BLOCK_N, DRAW.STAGES, DRAW.PROGRAMS_PER_SM,
    )  # fmt: skip
    assert not config.merge_apart
