"""BLAKE3 of K/V where it lies on one GPU, beside a pure read, the derived roof and the host; `python -m benchmarks.blake3_gpu`.

Every time: cold L2, a CUDA graph, the median of rounds that go through everything that is compared, as in attention_gpu. A
message is a slot (one token, all layers) or a page (16 slots) of a pool [layers, 2, pages, 16, heads, dim]. The host gets
its bytes in one piece, which no pool gives it, and its copies go to page-locked memory. Some digests of every cell are
compared with the package's before it is measured.
"""

import argparse
import hashlib
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import blake3
import torch
from torch import Tensor

from benchmarks.attention_goals import Row
from benchmarks.attention_gpu import microseconds, say
from benchmarks.attention_peers import DEVICE, MIB, Run, read_kernel
from benchmarks.record import ROOT, write_results
from fieldprint.blake3.pages import hash_pages

POOLS = {"8B": ((32, 2, 16, 8, 128), torch.bfloat16), "demo": ((30, 2, 16, 3, 64), torch.float32)}
SIZES = {"8B": (16, 256, 1024, 4096), "demo": (256, 1024)}  # MiB
COUNTS = {"8B": (1, 8, 64, 128), "demo": (1, 64)}  # slots of a step
HOST_SIZE = 256  # MiB
ROUNDS = 3
# XOR and rotation are for one pipe only, of 64 lanes a multiprocessor and cycle: 8 in each of 56 G, 8 at the end. A chunk of
# 16 blocks adds one parent to the tree: docs/hashing.md, "Cost".
ROOF_OPERATIONS = (8 * 56 + 8) * 17 / 16 / 64  # a byte
LANES = 64
GOALS = {"8B slots, 256 MiB": 1.0, "8B slots, 1024 MiB": 1.0, "8B slots, 4096 MiB": 1.0}  # TB/s


@dataclass
class Pool:
    """A pool of random bytes, slot by slot and page by page, and an order for each that jumps through all of it."""

    name: str

    def __post_init__(self) -> None:
        (layers, two, slots, heads, dim), dtype = POOLS[self.name]
        per_page = layers * two * slots * heads * dim * dtype.itemsize
        pages = max(SIZES[self.name]) * MIB // per_page
        torch.manual_seed(0)
        shape = (layers, two, pages, slots, heads, dim * dtype.itemsize)
        self.storage = torch.empty(shape, dtype=torch.uint8, device=DEVICE)
        self.storage.view(torch.int64).random_()
        self.storage = self.storage.view(dtype)
        self.views = {
            "slots": self.storage.flatten(2, 3).permute(2, 0, 1, 3, 4),
            "pages": self.storage.permute(2, 0, 1, 3, 4, 5),
        }
        self.orders = {name: torch.randperm(len(view), device=DEVICE) for name, view in self.views.items()}

    def count(self, view: str, mib: int) -> int:
        """Whole messages in so many MiB."""
        return mib * MIB // (self.views[view][0].numel() * self.storage.element_size())

    def words(self, size: int) -> Tensor:
        """`size` bytes of the pool, as they lie."""
        return self.storage.view(-1).view(torch.int32)[: size // 4]


def read(words: Tensor) -> Run:
    """A read of the words, in whole pieces of 16 KiB, and nothing else: what any kernel over them takes at least."""
    programs = torch.cuda.get_device_properties(0).multi_processor_count * 8
    out = torch.empty(programs, device=DEVICE)
    blocks = words.numel() // 4096

    def run() -> Tensor:
        read_kernel[(programs,)](words, words[blocks * 2048 :], out, blocks, BLOCK=2048, num_warps=4)
        return out

    return run


def check_same(pages: Tensor, indices: Tensor | None) -> None:
    """Raise RuntimeError unless the first three and the last digest are the package's."""
    found = hash_pages(pages, indices)
    for i in {0, 1, 2, len(found) - 1} & set(range(len(found))):
        page = pages[i if indices is None else int(indices[i])]
        want = blake3.blake3(page.contiguous().view(-1).view(torch.uint8).cpu().numpy().data).digest()
        if bytes(found[i].tolist()) != want:
            raise RuntimeError(
                f"message {i} of {list(pages.shape)} has another digest than the package gives"
            )


def clock_under_load(run: Run) -> float:
    """The multiprocessors' clock in Hz while `run` runs again and again."""
    run()
    query = ["nvidia-smi", "--query-gpu=clocks.sm", "--format=csv,noheader,nounits", "--id=0"]
    with subprocess.Popen(query, stdout=subprocess.PIPE, text=True) as reader:  # noqa: S603
        while reader.poll() is None:
            run()
        torch.cuda.synchronize()
        return 1e6 * float(reader.communicate()[0])


def row(cell: str, metric: str, unit: str, taken: float, peers: dict[str, float], best: float | None) -> Row:
    """One row of the results, printed; `best` is what ours is compared with, a speed or a time."""
    larger = unit == "TB/s"
    ratio = None if best is None else round(taken / best if larger else best / taken, 3)
    shown = "  ".join(f"{peer} {value}" for peer, value in peers.items())
    say(f"{cell:<28} {metric:<22} {taken:9.3f} {unit:<4}  x{ratio or '-':<8} {shown}")
    return {"cell": cell, "metric": metric, "unit": unit, "ours": taken, "peers": peers, "ratio": ratio}


def measure_speed(pool: Pool, roof: float) -> Iterator[Row]:
    """Bytes a second over much K/V, in order and shuffled, beside a pure read of as many bytes."""
    for mib in SIZES[pool.name]:
        runs: dict[str, Run] = {}
        sizes: dict[str, int] = {}
        for name, view in pool.views.items():
            count = pool.count(name, mib)
            chosen = pool.orders[name][:count]
            check_same(view, chosen)
            sizes[name] = sizes[f"{name}, shuffled"] = count * view[0].numel() * view.element_size()
            runs[name] = partial(hash_pages, view[:count])
            runs[f"{name}, shuffled"] = partial(hash_pages, view, chosen)
        runs["read"] = read(pool.words(mib * MIB))
        times = microseconds(runs)
        bound = round(mib * MIB / times.pop("read") / 1e6, 3)
        for name, taken in times.items():
            speed = round(sizes[name] / taken / 1e6, 3)
            beside = {"pure read": bound, "integer roof (derived)": roof}
            yield row(f"{pool.name} {name}, {mib} MiB", "speed, BLAKE3", "TB/s", speed, beside, bound)


def measure_latency(pool: Pool) -> Iterator[Row]:
    """The time of one step's slots, beside a pure read of as many bytes."""
    view, order = pool.views["slots"], pool.orders["slots"]
    size = view[0].numel() * view.element_size()
    for count in COUNTS[pool.name]:
        check_same(view, order[:count])
        hashed = partial(hash_pages, view, order[:count])
        times = microseconds({"ours": hashed, "pure read": read(pool.words(count * size))})
        taken = times.pop("ours")
        cell = f"{pool.name} slots: {count}"
        yield row(cell, "time, BLAKE3", "us", taken, times, times["pure read"])


def measure_host(pool: Pool) -> Iterator[Row]:
    """The same bytes hashed by the host, slot by slot and as one message, with the copy to it and without."""
    size = HOST_SIZE * MIB
    source = pool.words(size).view(torch.uint8)
    host = torch.empty(size, dtype=torch.uint8, pin_memory=True)
    slot = pool.views["slots"][0].numel() * pool.storage.element_size()
    memory = memoryview(host.numpy())
    slots = [memory[at : at + slot] for at in range(0, size, slot)]
    ways: dict[str, Callable[[], object]] = {
        "blake3 by slot, 1 thread": lambda: [blake3.blake3(part).digest() for part in slots],
        "blake3 as one message, all cores": lambda: blake3.blake3(
            memory, max_threads=blake3.blake3.AUTO
        ).digest(),
        "sha256 by slot, 1 thread": lambda: [hashlib.sha256(part).digest() for part in slots],
    }

    def copy() -> None:
        host.copy_(source)
        torch.cuda.synchronize()

    def copied(way: Callable[[], object]) -> None:
        copy()
        way()

    seconds = {"the copy alone": _seconds(copy)}
    for name, way in ways.items():
        seconds[name] = _seconds(way)
        seconds[f"{name}, with the copy"] = _seconds(partial(copied, way))
    speeds = {name: round(size / taken / 1e12, 4) for name, taken in seconds.items()}
    taken = microseconds({"ours": partial(hash_pages, pool.views["slots"][: len(slots)])})["ours"]
    best = max(speed for name, speed in speeds.items() if name.startswith("blake3") and "with" in name)
    cell = f"{pool.name} slots, {HOST_SIZE} MiB"
    yield row(cell, "speed, beside the host", "TB/s", round(size / taken / 1e6, 3), speeds, best)


def _seconds(work: Callable[[], object]) -> float:
    """The median of a few runs behind one that does not count."""
    work()
    times = []
    for _ in range(ROUNDS):
        started = time.perf_counter()
        work()
        times.append(time.perf_counter() - started)
    return statistics.median(times)


def measure() -> Iterator[Row]:
    """All rows; one pool is in memory at a time."""
    pool = Pool("8B")
    hertz = clock_under_load(partial(hash_pages, pool.views["slots"][:8192]))
    processors = torch.cuda.get_device_properties(0).multi_processor_count
    roof = round(LANES * processors * hertz / ROOF_OPERATIONS / 1e12, 3)
    say(
        f"integer roof: {LANES} lanes x {processors} x {hertz / 1e9:.3f} GHz / {ROOF_OPERATIONS:.2f} a byte"
        f" = {roof} TB/s"
    )
    yield from measure_speed(pool, roof)
    yield from measure_latency(pool)
    yield from measure_host(pool)
    del pool
    torch.cuda.empty_cache()
    pool = Pool("demo")
    yield from measure_speed(pool, roof)
    yield from measure_latency(pool)


def main() -> int:
    """0 when every measurement ran."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--skip-tests", action="store_true", help="when they have just run")
    parser.add_argument("--out", type=Path, help="file of the results; in benchmarks/results/ unless given")
    options = parser.parse_args()
    if not torch.cuda.is_available():
        print("no CUDA device", file=sys.stderr)  # noqa: T201
        return 2
    tests = [sys.executable, "-m", "pytest", "-q", "-x", "tests/blake3"]
    if not options.skip_tests and subprocess.run(tests, cwd=ROOT, check=False).returncode:  # noqa: S603
        print("tests are red; nothing is measured", file=sys.stderr)  # noqa: T201
        return 1
    started = time.perf_counter()
    rows = list(measure())
    for cell, goal in GOALS.items():
        (speed,) = (r["ours"] for r in rows if r["cell"] == cell and r["metric"] == "speed, BLAKE3")
        say(f"{'yes' if speed >= goal else 'no '} {cell}: {speed} TB/s (goal >= {goal})")
    say(f"-- {time.perf_counter() - started:.0f} s")
    write_results(
        "blake3_gpu",
        rows,
        device=torch.cuda.get_device_name(),
        command="python -m benchmarks.blake3_gpu",
        packages=("torch", "triton", "blake3"),
        path=options.out,
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
