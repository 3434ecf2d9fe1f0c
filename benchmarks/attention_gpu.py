"""The decode kernel on one GPU beside its peers; `python -m benchmarks.attention_gpu --peers SITE`.

Every time: cold L2 (flushed before each run), shuffled pages, a CUDA graph, the median of rounds that go through
everything that is compared. SITE is a folder with FlashAttention-3 (out of the vLLM 0.24 wheel), FlashInfer 0.7.2 and
vLLM's Triton kernel; a peer that is not there is left out, and named. An output that differs from ours stops its family.
"""

import argparse
import statistics
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path

import torch
from torch import Tensor
from triton.testing import do_bench

from benchmarks.attention_goals import Row, goals, kv_bytes
from benchmarks.attention_peers import (
    DEVICE,
    FLASH3,
    FLASHINFER,
    PEERS,
    Run,
    World,
    flash3,
    flash3_two_calls,
    flashinfer,
    flashinfer_cascade,
    load_peers,
    ours,
    prefill_flash,
    prefill_materialized,
    prefill_ours,
    pure_read,
)
from benchmarks.record import ROOT, write_results

SHAPES = {"32/8 d128": (32, 8, 128), "64/8 d128": (64, 8, 128), "9/3 d64": (9, 3, 64)}
LIMIT = 60 * 10**9  # bytes of K/V of the largest cell
QUICK = {(1, 4096), (8, 4096), (32, 4096), (1, 32768)}
ROUNDS = 3
G = 0.1
Cell = tuple[str, Callable[[], World]]


def microseconds(runs: Mapping[str, Run]) -> dict[str, float]:
    """The median time of each call, over rounds that measure one after the other."""
    replays = {name: _captured(run) for name, run in runs.items()}
    found: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(ROUNDS):
        for name, replay in replays.items():
            found[name].append(1e3 * do_bench(replay, warmup=10, rep=35, return_mode="median"))
    return {name: round(statistics.median(times), 2) for name, times in found.items()}


def _captured(run: Run) -> Callable[[], None]:
    """The replay of `run` as a CUDA graph, after three runs."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(3):
            run()
    torch.cuda.current_stream().wait_stream(stream)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        run()
    return graph.replay


def check_same(want: Tensor, runs: Mapping[str, Run], world: World) -> None:
    """Raise RuntimeError unless every call gives `want`, into an output that was NaN before."""
    for name, run in runs.items():
        world.out.fill_(float("nan"))
        error = (run().double() - want.double()).norm() / want.double().norm()
        if not error < 1e-2:
            raise RuntimeError(f"{name} differs from ours by {float(error):.2e}")


def row(
    cell: str, metric: str, taken: float, peers: dict[str, float], best: float | None, unit: str = "us"
) -> Row:
    """One row of the results, printed; `best` is the time that ours is compared with."""
    ratio = None if best is None else round(best / taken, 3)
    shown = "  ".join(f"{peer} {value:.2f}" for peer, value in peers.items())
    say(f"{cell:<34} {metric:<24} {taken:9.2f} {unit}  x{ratio or '-':<6} {shown}")
    return {
        "cell": cell,
        "metric": f"time, {metric}",
        "unit": unit,
        "ours": taken,
        "peers": peers,
        "ratio": ratio,
    }


def say(line: str) -> None:
    """Print it at once."""
    print(line, flush=True)  # noqa: T201


def uniform(
    shape: str, batch: int, context: int, *, num_anchor: int = 128, page_size: int = 16, fp8: bool = False
) -> Cell:
    """A batch of equal lengths: its name, and how to make it."""
    name = f"{shape} B{batch} L{context // 1024}k"
    return name, partial(World, [context] * batch, *SHAPES[shape], num_anchor, page_size, fp8)


def cells(quick: bool) -> list[Cell]:
    """The matrix."""
    found = [
        cell
        for shape in SHAPES
        for batch in (1, 8, 32, 64, 256)
        for context in (4096, 32768, 131072)
        if kv_bytes((cell := uniform(shape, batch, context))[0]) <= LIMIT
        and (not quick or (batch, context) in QUICK)
    ]
    draw = torch.Generator().manual_seed(1)
    lognormal = torch.exp(torch.randn(32, generator=draw)).mul(8192).long().clamp(64, 131072).tolist()
    for name, lens in (("lognormal B32", lognormal), ("one 128k, 31 of 1k", [131072] + [1024] * 31)):
        found.append((f"32/8 d128 {name}", partial(World, lens, *SHAPES["32/8 d128"])))
    return found


def each(found: Sequence[Cell], measure: Callable[[str, World], list[Row]]) -> Iterator[Row]:
    """The rows of all cells; one world is in memory at a time."""
    for name, make in found:
        yield from measure(name, make())
        torch.cuda.empty_cache()


def measure_concat(peers: Sequence[str], quick: bool) -> Iterator[Row]:
    """Our concat beside every peer, and the roof."""
    return each(cells(quick), partial(_concat_row, peers, "concat"))


def _concat_row(peers: Sequence[str], metric: str, cell: str, world: World) -> list[Row]:
    mine = ours(world)
    result = mine().clone()
    rivals = {peer: PEERS[peer](world) for peer in peers}
    check_same(result, rivals, world)
    times = microseconds({"ours": mine, **rivals, "pure read (roof)": pure_read(world)})
    best = min((times[peer] for peer in peers), default=None)
    return [row(cell, metric, times.pop("ours"), times, best)]


def measure_operators(peers: Sequence[str], quick: bool) -> Iterator[Row]:
    """Floor and mixture with mass beside two calls; the batch-invariant mode beside FlashAttention-3 with one split."""

    def measure(cell: str, world: World) -> list[Row]:
        runs = {"ours, concat": ours(world), "invariant": ours(world, invariant=True)}
        runs |= {name: ours(world, g=G, operator=name, mass=True) for name in ("floor", "mixture")}
        if FLASH3 in peers:
            runs |= {"two": flash3_two_calls(world, G), "one": flash3(world, splits=1)}
            check_same(runs["mixture"]().clone(), {"two calls and a lerp": runs["two"]}, world)
            check_same(runs["invariant"]().clone(), {"one split": runs["one"]}, world)
        times = microseconds(runs)
        concat, two, one = times["ours, concat"], times.get("two"), times.get("one")
        rows = []
        for name in ("floor", "mixture"):
            beside = {} if two is None else {f"{FLASH3}, two calls and lerp": two}
            rows.append(
                row(cell, f"{name} {G} with mass", times[name], beside | {"ours, concat": concat}, two)
            )
        beside = {} if one is None else {f"{FLASH3}, one split": one}
        rows.append(row(cell, "batch invariant", times["invariant"], beside | {"ours, default": concat}, one))
        return rows

    return each([cell for cell in cells(quick) if cell[0].startswith("32/8 ")], measure)


def measure_anchors(_peers: Sequence[str], _quick: bool) -> Iterator[Row]:
    """What an anchor of each length adds over none."""

    def measure(cell: str, world: World) -> list[Row]:
        times = microseconds({"ours": ours(world), "bare": ours(world, anchor=False)})
        taken, bare = times["ours"], times["bare"]
        found = row(f"{cell} A{world.num_anchor}", "anchor", taken, {"ours, no anchor": bare}, bare)
        say(f"{'':<34} adds {taken - bare:+.2f} us, {100 * (taken / bare - 1):+.1f} %")
        return [found]

    sizes = [(batch, tokens) for batch in (1, 8, 64) for tokens in (8, 32, 128, 512)]
    return each([uniform("32/8 d128", batch, 4096, num_anchor=tokens) for batch, tokens in sizes], measure)


def measure_fp8(peers: Sequence[str], _quick: bool) -> Iterator[Row]:
    """K/V in e4m3 with a bf16 anchor beside our own bf16 over the same numbers."""

    def measure(cell: str, world: World) -> list[Row]:
        runs = {"ours, bf16": ours(world), "ours": ours(world, fp8=True)}
        if FLASHINFER in peers:
            runs[f"{FLASHINFER}, fp8"] = flashinfer(world, fp8=True)
        check_same(ours(world)().clone(), runs, world)
        times = microseconds(runs)
        return [row(cell, "fp8 K/V", times.pop("ours"), times, times["ours, bf16"])]

    sizes = ((8, 4096), (8, 32768), (64, 4096), (32, 32768))
    return each([uniform("32/8 d128", batch, context, fp8=True) for batch, context in sizes], measure)


def measure_pages(peers: Sequence[str], _quick: bool) -> Iterator[Row]:
    """Concat over pages of other sizes."""
    for size in (16, 64, 128, 1):
        cell = uniform("32/8 d128", 8, 4096, page_size=size)
        yield from each([cell], partial(_concat_row, peers, f"concat, pages of {size}"))


def measure_window(peers: Sequence[str], _quick: bool) -> Iterator[Row]:
    """A window of 1024, without an anchor beside FlashAttention-3, which cannot exempt one, and with one beside that."""

    def measure(cell: str, world: World) -> list[Row]:
        bare = ours(world, anchor=False, window=1024)
        runs = {"bare": bare, "ours": ours(world, window=1024)}
        if FLASH3 in peers:
            runs[FLASH3] = flash3(world, anchor=False, window=1024)
            check_same(bare().clone(), {FLASH3: runs[FLASH3]}, world)
        times = microseconds(runs)
        taken, rival = times["bare"], times.get(FLASH3)
        beside = {} if rival is None else {FLASH3: rival}
        return [
            row(cell, "window 1024, no anchor", taken, beside, rival),
            row(cell, "window 1024", times["ours"], {"ours, no anchor": taken}, taken),
        ]

    return each([uniform("32/8 d128", 8, 32768)], measure)


def measure_cascade(peers: Sequence[str], _quick: bool) -> Iterator[Row]:
    """FlashInfer's cascade, for the record."""

    def measure(cell: str, world: World) -> list[Row]:
        mine, rival = ours(world), flashinfer_cascade(world)
        check_same(mine().clone(), {"cascade": rival}, world)
        times = microseconds({"ours": mine, "cascade": rival})
        beside = {f"{FLASHINFER}, cascade": times["cascade"]}
        return [row(cell, "concat beside cascade", times["ours"], beside, times["cascade"])]

    if FLASHINFER not in peers:
        say(f"left out: the cascade ({FLASHINFER} is not there)")
        return iter([])
    return each([uniform("32/8 d128", batch, 4096) for batch in (8, 64)], measure)


def measure_paper(_peers: Sequence[str], _quick: bool) -> Iterator[Row]:
    """The paper's own cell, all queries of a prompt of 4096 in fp16: our prefill beside the unfused ways."""
    torch.manual_seed(0)
    tokens, heads, dim, anchor = 4096, 32, 128, 128
    normal = partial(torch.randn, device=DEVICE, dtype=torch.float16)
    q, k, v = (normal(tokens, heads, dim) for _ in range(3))
    anchor_k, anchor_v = normal(heads, anchor, dim), normal(heads, anchor, dim)
    g = torch.full((heads,), G, device=DEVICE)
    ways = {
        "ours": prefill_ours,
        "unfused, scores in memory": prefill_materialized,
        "unfused, flash attention": prefill_flash,
    }
    cell = f"paper, {heads}/{heads} d{dim} N{tokens} A{anchor} fp16"
    for operator in ("floor", "mixture"):
        runs = {
            name: partial(way, q, k, v, anchor_k, anchor_v, g, operator, dim**-0.5)
            for name, way in ways.items()
        }
        want, *others = (run().double() for run in runs.values())
        if any(not (other - want).norm() < 1e-2 * want.norm() for other in others):
            raise RuntimeError(f"{cell}, {operator}: the ways differ")
        times = microseconds(runs)
        taken = times.pop("ours")
        yield row(cell, f"prefill, {operator} {G}", taken, times, min(times.values()))


FAMILIES: dict[str, Callable[[Sequence[str], bool], Iterable[Row]]] = {
    "concat": measure_concat,
    "operators": measure_operators,
    "anchors": measure_anchors,
    "fp8": measure_fp8,
    "pages": measure_pages,
    "window": measure_window,
    "paper": measure_paper,
    "cascade": measure_cascade,
}


def main() -> int:
    """0 when every measurement ran."""
    options = parse()
    if not torch.cuda.is_available():
        print("no CUDA device", file=sys.stderr)  # noqa: T201
        return 2
    tests = [sys.executable, "-m", "pytest", "-q", "-x", "tests/attention"]
    if not options.skip_tests and subprocess.run(tests, cwd=ROOT, check=False).returncode:  # noqa: S603
        print("tests are red; nothing is measured", file=sys.stderr)  # noqa: T201
        return 1
    peers = load_peers(options.peers)
    rows: list[Row] = []
    done: list[str] = []
    for name in options.only:
        started = time.perf_counter()
        try:
            rows.extend(FAMILIES[name](peers, options.quick))
            done.append(name)
        except Exception:  # what was found before is kept
            traceback.print_exc()
        say(f"-- {name}: {time.perf_counter() - started:.0f} s")
    for goal in goals(rows):
        say(str(goal))
    whole = done == list(FAMILIES) and not options.quick
    command = "python -m benchmarks.attention_gpu" + " --peers SITE" * bool(options.peers)
    write_results(
        "attention_gpu" if whole else "-".join(["attention_gpu", *done]),
        rows,
        device=torch.cuda.get_device_name(),
        command=command if whole else f"{command} --only {','.join(done)}{' --quick' * options.quick}",
        packages=("torch", "triton"),
        path=options.out,
    )
    return 0 if done == options.only else 1


def parse() -> argparse.Namespace:
    """The options."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--peers", help="folder with the peers' packages")
    parser.add_argument("--only", metavar="NAME[,NAME]", help=f"of {', '.join(FAMILIES)}")
    parser.add_argument("--quick", action="store_true", help="few cells")
    parser.add_argument("--skip-tests", action="store_true", help="when they have just run")
    parser.add_argument("--out", type=Path, help="file of the results; in benchmarks/results/ unless given")
    options = parser.parse_args()
    options.only = options.only.split(",") if options.only else list(FAMILIES)
    if unknown := set(options.only) - set(FAMILIES):
        parser.error(f"--only knows {', '.join(FAMILIES)}, not {', '.join(sorted(unknown))}")
    return options


if __name__ == "__main__":
    sys.exit(main())
