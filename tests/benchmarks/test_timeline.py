"""A profiler's trace becomes intervals: by hand, against a slow twin, and of the demo model."""

from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

torch = pytest.importorskip("torch")
pytest.importorskip("triton")
pytest.importorskip("transformers")

from benchmarks.timeline import (  # noqa: E402
    COMPUTE,
    DEVICE_COPY,
    DEVICE_HASH,
    HOST_HASH,
    KINDS,
    MARK,
    SHOWN,
    main,
    merged,
    record,
    reduce_trace,
    without,
)
from fieldprint.adapters.transformers import load_model  # noqa: E402
from fieldprint.generate import Engine  # noqa: E402
from fieldprint.kvcache import PagePool  # noqa: E402
from fieldprint.promote import promote_anchor  # noqa: E402
from tests.signing import signed_anchor  # noqa: E402

MAIN, SIDE = 7, 20


def event(cat: str, name: str, ts: float, dur: float, **more: Any) -> dict[str, Any]:
    return {"ph": "X", "cat": cat, "name": name, "ts": ts, "dur": dur, "tid": 1, **more}


def kernel(name: str, ts: float, dur: float, stream: int = MAIN) -> dict[str, Any]:
    return event("kernel", name, ts, dur, args={"stream": stream})


MARKS = [event("user_annotation", MARK, ts, 1) for ts in (100, 1000, 2000, 3000)]


def test_kernels_are_told_apart_by_stream_and_name() -> None:
    events = [
        *MARKS,
        {"ph": "M", "name": "process_name"},
        event("cpu_op", "aten::mm", 1000, 2000),  # the host's time is not the device's
        kernel("decode_kernel", 900, 200),  # cut at the beginning
        kernel("gemm", 1119, 281),  # 19 us later: the same span
        kernel("gemm", 1420, 80),  # 20 us later: another one
        kernel("blake3_slots", 1600, 100),
        kernel("compare", 1800, 50, SIDE),
        kernel("gemm", 2900, 500),  # cut at the end
        kernel("gemm", 3001, 500),
        event("gpu_memcpy", "Memcpy DtoH (Device -> Pinned)", 1500, 10, args={"stream": MAIN}),
        event("gpu_memcpy", "Memcpy HtoD (Pinned -> Device)", 1700, 10, args={"stream": MAIN}),
        event("user_annotation", "sha256", 1520, 40),
        event("gpu_user_annotation", "sha256", 2520, 40),
        event("user_annotation", "to_host", 1490, 30),
    ]
    assert reduce_trace(events) == (
        2000,
        {
            COMPUTE: [(0, 400), (420, 500), (1900, 2000)],
            DEVICE_HASH: [(600, 700), (800, 850)],
            DEVICE_COPY: [(500, 510)],
            HOST_HASH: [(520, 560)],
        },
    )


def test_without_kernels_the_marking_thread_is_the_device() -> None:
    events = [
        *MARKS,
        event("cpu_op", "aten::mm", 1100, 400),
        event("cpu_op", "aten::copy_", 1200, 100),
        event("cpu_op", "aten::mm", 2500, 100) | {"tid": 2},
        event("user_annotation", "to_host", 1200, 100),
        event("user_annotation", "sha256", 1300, 100),
    ]
    assert reduce_trace(events) == (
        2000,
        {
            COMPUTE: [(100, 200), (400, 500)],
            DEVICE_HASH: [],
            DEVICE_COPY: [(200, 300)],
            HOST_HASH: [(300, 400)],
        },
    )


def test_too_few_marks_are_refused() -> None:
    with pytest.raises(ValueError, match="2 steps are marked"):
        reduce_trace(MARKS[:SHOWN])


spans = st.lists(
    st.tuples(st.integers(0, 60), st.integers(0, 12)).map(lambda x: (float(x[0]), float(x[0] + x[1]))),
    max_size=8,
)


def moments(found: list[tuple[float, float]]) -> set[int]:
    return {moment for first, last in found for moment in range(int(first), int(last))}


@given(mine=spans, others=spans)
def test_spans_equal_naive(mine: list[tuple[float, float]], others: list[tuple[float, float]]) -> None:
    """Sets of moments, one by one."""
    assert moments(merged(mine)) == moments(mine)
    left = without(mine, others)
    assert moments(left) == moments(mine) - moments(others)
    assert all(first < last for first, last in left)
    for found in (merged(mine), left):
        assert all(a[1] <= b[0] for a, b in pairwise(found))


@given(mine=spans, gap=st.integers(1, 9))
def test_what_stays_apart_is_a_gap_apart(mine: list[tuple[float, float]], gap: int) -> None:
    found = merged(mine, gap)
    assert moments(mine) <= moments(found)
    assert all(b[0] - a[1] >= gap for a, b in pairwise(found))
    assert {first for first, _ in found} <= {first for first, _ in mine}
    assert {last for _, last in found} <= {last for _, last in mine}


def test_both_designs_of_the_demo_model(model_folder: Path) -> None:
    """In v2.5 the model waits in every layer while the host copies and hashes; in ours it never does."""
    model = load_model(model_folder)
    pool = PagePool(model.decoder.page_layout(16), 12)
    verified, tokens = signed_anchor(model, "Your codename is Falcon.")
    pinned = promote_anchor(verified, model.decoder, pool, tokens)
    engine = Engine(model.decoder, pool, decode=model.decode, model=model.digest)
    row = record(engine, pinned, [model.chat_tokens("Where do you live?")], "demo")
    assert row["ratio"] == round(row["peers"]["v2.5"] / row["ours"], 3)
    for design, length in (("ours", row["ours"]), ("v2.5", row["peers"]["v2.5"])):
        assert list(row["intervals"][design]) == list(KINDS)
        for found in row["intervals"][design].values():
            assert all(0 <= first <= last <= length for first, last in found)
        assert row["intervals"][design][COMPUTE]
    ours, theirs = row["intervals"]["ours"], row["intervals"]["v2.5"]
    assert ours[HOST_HASH] == ours[DEVICE_COPY] == []
    assert len(theirs[HOST_HASH]) == len(theirs[DEVICE_COPY]) == SHOWN * model.decoder.config.num_layers
    for first, last in theirs[HOST_HASH] + theirs[DEVICE_COPY]:
        assert not any(a < last - 0.2 and first + 0.2 < b for a, b in theirs[COMPUTE])  # rounded to 0.1
    pool.check_conservation(list(pinned.pages))


def test_a_result_of_the_demo_model_is_not_among_the_results(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.argv", ["timeline", "--demo"])
    with pytest.raises(SystemExit):
        main()
    assert "--demo makes no result" in capsys.readouterr().err
    monkeypatch.setattr("sys.argv", ["timeline"])
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert main() == 2
