"""When the device computes, and when it waits: two decode steps of ours and of v2.5; `python -m benchmarks.timeline`.

Both are run under torch.profiler, ours with a log and everything that it verifies. What the trace holds is reduced to
intervals of four kinds and written as one row of `benchmarks/results/timeline.json`, whose key `intervals` has, in
microseconds from the beginning of the first step,

    {"ours": {"attention and weights": [[0.0, 7512.3], ...], "hashing on the device": [...], ...}, "v2.5": {...}}

`docs/figures/draw.py` draws it. With `--demo` the same happens with the demo model on a CPU, where copies are copies within
memory and nothing runs beside the model: it shows that the code works, and no result.
"""

import argparse
import json
import platform
import re
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

import torch
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from torch.profiler import ProfilerActivity, profile, record_function

from benchmarks import decode
from benchmarks.baseline_v25 import COPY, HASH, V25, G, engine_steps
from benchmarks.engine_gpu import MODEL, NUM_ANCHOR, Bench
from benchmarks.record import write_results
from fieldprint.generate import Engine
from fieldprint.kvcache import PagePool
from fieldprint.note import NoteSigner
from fieldprint.pipeline import anchor_tokens
from fieldprint.promote import PinnedAnchor, promote_anchor
from fieldprint.tlog import LogWriter

Span = tuple[float, float]  # microseconds
Spans = dict[str, list[Span]]
COMPUTE, DEVICE_HASH = "attention and weights", "hashing on the device"
DEVICE_COPY, HOST_HASH = "copy to the host", "hashing on the host"
KINDS = (COMPUTE, DEVICE_HASH, DEVICE_COPY, HOST_HASH)
HASHING = re.compile(
    "blake3|hash|digest", re.IGNORECASE
)  # in a kernel's name, where it runs beside the model's own
MARK = "step_done"
WARM, PROFILED, SHOWN = 8, 4, 2  # steps before the trace, in it, and of its end that are kept
NEW_TOKENS = WARM + PROFILED + 8
GAP = 20.0


def trace(steps: Iterator[object]) -> list[dict[str, Any]]:
    """The events of PROFILED steps, after WARM others, as in a Chrome trace; a MARK stands where each step is done."""
    for _ in range(WARM):
        next(steps)
    with profile(activities=_activities(), acc_events=True) as profiler:  # else some releases of torch warn
        for _ in range(PROFILED):
            next(steps)
            with record_function(MARK):
                pass
        if torch.cuda.is_available():
            torch.cuda.synchronize()
    return _events(profiler)


def _activities() -> list[ProfilerActivity]:
    on_gpu = torch.cuda.is_available()
    return [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if on_gpu else [])]


def _events(profiler: profile) -> list[dict[str, Any]]:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "trace.json"
        profiler.export_chrome_trace(str(path))
        found: list[dict[str, Any]] = json.loads(path.read_text())["traceEvents"]
    return found


def reduce_trace(events: Sequence[dict[str, Any]]) -> tuple[float, Spans]:
    """The length of the last SHOWN steps in microseconds, and the spans of each kind within them.

    With kernels in the trace: kernels of the busiest stream are the model's unless their name speaks of hashing, kernels of
    other streams are hashing; copies are the device's. Without: operators of the thread that marks the steps are
    the model's, outside of what is named COPY and HASH. Spans that are less than GAP apart are one.

    Raises:
        ValueError: too few steps are marked.
    """
    whole = [event for event in events if event.get("ph") == "X" and "dur" in event]
    named = [event for event in whole if event.get("cat") == "user_annotation"]
    marks = sorted((float(event["ts"]), event["tid"]) for event in named if event["name"] == MARK)
    if len(marks) <= SHOWN:
        raise ValueError(f"{len(marks)} steps are marked in the trace, and {SHOWN + 1} are needed")
    (start, thread), (stop, _) = marks[-1 - SHOWN], marks[-1]
    inside = [event for event in whole if _span(event)[1] > start and _span(event)[0] < stop]
    hashed = _named(inside, HASH)
    if any(event.get("cat") == "kernel" for event in inside):
        spans = _of_device(inside)
    else:
        copied = _named(inside, COPY)
        operators = [_span(e) for e in inside if e.get("cat") == "cpu_op" and e["tid"] == thread]
        spans = {COMPUTE: without(operators, copied + hashed), DEVICE_HASH: [], DEVICE_COPY: copied}
    spans[HOST_HASH] = hashed
    found = {}
    for kind in KINDS:
        cut = [(max(first, start) - start, min(last, stop) - start) for first, last in spans[kind]]
        found[kind] = [(round(first, 1), round(last, 1)) for first, last in merged(cut, GAP)]
    return round(stop - start, 1), found


def _of_device(events: Sequence[dict[str, Any]]) -> Spans:
    kernels = [event for event in events if event.get("cat") == "kernel"]
    busy: Counter[int] = Counter()
    for event in kernels:
        busy[event["args"]["stream"]] += event["dur"]
    ((main, _),) = busy.most_common(1)
    found: Spans = {COMPUTE: [], DEVICE_HASH: []}
    for event in kernels:
        model = event["args"]["stream"] == main and not HASHING.search(event["name"])
        found[COMPUTE if model else DEVICE_HASH].append(_span(event))
    copies = [e for e in events if e.get("cat") == "gpu_memcpy" and "DtoH" in e["name"]]
    return found | {DEVICE_COPY: [_span(event) for event in copies]}


def _named(events: Sequence[dict[str, Any]], name: str) -> list[Span]:
    return [_span(e) for e in events if e.get("cat") == "user_annotation" and e["name"] == name]


def _span(event: dict[str, Any]) -> Span:
    return float(event["ts"]), float(event["ts"]) + float(event["dur"])


def merged(spans: Sequence[Span], gap: float = 0.0) -> list[Span]:
    """The same spans in order; those that overlap or are less than `gap` apart are one."""
    found: list[Span] = []
    for first, last in sorted(spans):
        if found and (first <= found[-1][1] or first - found[-1][1] < gap):
            found[-1] = (found[-1][0], max(found[-1][1], last))
        else:
            found.append((first, last))
    return found


def without(spans: Sequence[Span], others: Sequence[Span]) -> list[Span]:
    """What of `spans` lies outside of `others`."""
    found = []
    holes = merged(others)
    for first, last in merged(spans):
        for begin, end in holes:
            if first < begin < last:
                found.append((first, begin))
            if begin < last and first < end:
                first = end
        if first < last:
            found.append((first, last))
    return found


def timeline_row(cell: str, ours: tuple[float, Spans], theirs: tuple[float, Spans]) -> dict[str, Any]:
    """The row of a cell."""
    return {
        "cell": cell,
        "metric": f"time, {SHOWN} decode steps under the profiler",
        "unit": "us",
        "ours": ours[0],
        "peers": {"v2.5": theirs[0]},
        "ratio": round(theirs[0] / ours[0], 3),
        "intervals": {"ours": ours[1], "v2.5": theirs[1]},
    }


def record(
    engine: Engine, pinned: PinnedAnchor, prompts: Sequence[Sequence[int]], cell: str
) -> dict[str, Any]:
    """The row of a cell: both designs under the profiler, over the pool of `engine`."""
    with profile(activities=_activities(), acc_events=True):  # CUPTI is there before a graph is captured
        torch.zeros(1, device=engine.decoder.device)
    with tempfile.TemporaryDirectory() as folder:
        signer = NoteSigner("fieldprint.local/bench", Ed25519PrivateKey.generate())
        with LogWriter(Path(folder) / "log", signer, create=True) as log:
            steps = engine_steps(engine, pinned, prompts, NEW_TOKENS, g=G, log=log)
            with closing(steps):
                ours = reduce_trace(trace(steps))
    with closing(V25(engine.decoder, engine.pool, pinned, G).steps(prompts, NEW_TOKENS)) as steps:
        theirs = reduce_trace(trace(steps))
    return timeline_row(cell, ours, theirs)


def on_gpu(batch: int, context: int) -> dict[str, Any]:
    """The row of the 8B shape with random weights."""
    bench = Bench()
    pool = PagePool(bench.decoder.page_layout(16), _pages(batch, context, NUM_ANCHOR), device="cuda")
    engine = Engine(bench.decoder, pool, decode=lambda ids: str(len(ids)), model=MODEL)
    cell = f"8B shape B{batch} L{context // 1024}k A{NUM_ANCHOR}"
    return record(engine, bench.pin(pool), bench.prompts(batch, context), cell)


def of_demo(batch: int, context: int) -> dict[str, Any]:
    """The row of the demo model on a CPU."""
    bench = decode.Bench()
    decoder, tokens = bench.model.decoder, anchor_tokens(bench.model, bench.anchor)
    pool = PagePool(decoder.page_layout(16), _pages(batch, context, len(tokens)))
    engine = Engine(decoder, pool, decode=bench.model.decode, model=bench.model.digest)
    pinned = promote_anchor(bench.anchor, decoder, pool, tokens)
    cell = f"demo model B{batch} L{context} A{len(tokens)}"
    return record(engine, pinned, bench.prompts(batch, context), cell)


def _pages(batch: int, context: int, num_anchor: int) -> int:
    """Pages of the batch, of the anchor, and one for padding."""
    return batch * -(-(context + NEW_TOKENS) // 16) + -(-num_anchor // 16) + 1


def main() -> int:
    """0 when both designs were traced."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--context", type=int, default=4096)
    parser.add_argument("--demo", action="store_true", help="the demo model on a CPU; needs --out")
    parser.add_argument("--out", type=Path, help="file of the result; in benchmarks/results/ unless given")
    options = parser.parse_args()
    if options.demo and options.out is None:
        parser.error("--demo makes no result: say with --out where the file shall lie")
    if not options.demo and not torch.cuda.is_available():
        print("no CUDA device", file=sys.stderr)  # noqa: T201
        return 2
    row = (of_demo if options.demo else on_gpu)(options.batch, options.context)
    device = f"{platform.machine()} CPU" if options.demo else torch.cuda.get_device_name()
    command = f"python -m benchmarks.timeline --batch {options.batch} --context {options.context}"
    path = write_results(
        "timeline",
        [row],
        device=device,
        command=command + " --demo" * options.demo,
        packages=("torch", "triton"),
        path=options.out,
    )
    print(f"{row['cell']}: ours {row['ours']} us, v2.5 {row['peers']['v2.5']} us; {path}")  # noqa: T201
    return 0


if __name__ == "__main__":
    sys.exit(main())
