"""What the log costs: durable appends, time to publication, proofs, and all of it as the log grows to 10^7 entries.

    python -m benchmarks.log
    python -m benchmarks.log --largest 1000000 --folder FOLDER

The growing log lies in --folder, by default a folder of its own in $TMPDIR. It is kept: a run that was interrupted goes
on from the entries that are there. Every file is synced, as always.
"""

import argparse
import os
import platform
import random
import shutil
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from benchmarks.record import ROOT, write_results
from benchmarks.shapes import LOG
from fieldprint.note import NoteSigner
from fieldprint.tlog import LogReader, LogWriter, Pending, leaf_hash, verify_inclusion
from fieldprint.tlog.merkle import HASH_SIZE
from fieldprint.tlog.tile import decode_tile

SIGNER = NoteSigner("fieldprint.example/log", Ed25519PrivateKey.from_private_bytes(bytes([1]) * 32))
KEYS = [SIGNER.verifier_key]
TESTED = (
    "tests/tlog/test_merkle.py",
    "tests/tlog/test_log.py",
    "tests/tlog/test_history.py",
    "tests/tlog/test_writer.py",
)


def entry(index: int) -> bytes:
    """A 200-byte entry that says its index."""
    return index.to_bytes(8, "big") + bytes(LOG.entry_size - 8)


def throughput(folder: Path) -> float:
    """Entries a second that become durable and published: threads submit one entry at a time, at most so many ahead."""
    with LogWriter(folder, SIGNER, create=True) as log:
        each = LOG.entries // LOG.threads

        def work(number: int) -> None:
            last: Pending | None = None
            for i in range(each):
                last = log.submit([entry(number * each + i)])
            if last is not None:
                last.wait()

        threads = [threading.Thread(target=work, args=(number,)) for number in range(LOG.threads)]
        started = time.perf_counter()
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        seconds = time.perf_counter() - started
        if log.tree_size != each * LOG.threads:
            raise RuntimeError("entries are missing")
    return each * LOG.threads / seconds


def latencies(folder: Path, rate: int) -> list[float]:
    """Seconds from the moment an entry is due to its publication, at `rate` single entries a second, an open loop."""
    seconds: list[float] = []
    handed: list[tuple[float, Pending]] = []
    with LogWriter(folder, SIGNER, create=True) as log:
        started, finished = time.perf_counter() + 0.1, threading.Event()

        def produce() -> None:
            for number in range(rate * LOG.latency_seconds):
                due = started + number / rate
                while (left := due - time.perf_counter()) > 0:
                    time.sleep(max(left, 0.002))
                handed.append((due, log.submit([entry(number)])))
            finished.set()

        producer = threading.Thread(target=produce)
        producer.start()
        done = 0
        while not finished.is_set() or done < len(handed):
            if done == len(handed):
                time.sleep(0.001)
                continue
            due, pending = handed[done]
            pending.wait()
            seconds.append(time.perf_counter() - due)
            done += 1
        producer.join()
    return seconds


def timed(work: Callable[[int], object], arguments: Sequence[int]) -> float:
    """Median seconds of one call."""
    seconds = []
    for argument in arguments:
        started = time.perf_counter()
        work(argument)
        seconds.append(time.perf_counter() - started)
    return statistics.median(seconds)


def verified_a_second(reader: LogReader) -> float:
    """Inclusion proofs verified a second by one thread, each alone against the checkpoint's root; median of rounds.

    The proofs are bytes of their own, as a verifier gets them, and not the hashes of the reader's tiles.
    """
    checkpoint = reader.checkpoint()
    chance = random.Random(1)  # noqa: S311
    cases = []
    for _ in range(LOG.proofs):
        index = chance.randrange(checkpoint.tree_size)
        proof = b"".join(reader.inclusion_proof(index))
        cases.append((leaf_hash(reader.entry(index)), index, decode_tile(proof, len(proof) // HASH_SIZE)))
    rates = []
    for _ in range(LOG.rounds):
        started = time.perf_counter()
        for leaf, index, proof in cases:
            verify_inclusion(leaf, index, checkpoint.tree_size, proof, checkpoint.root_hash)
        rates.append(len(cases) / (time.perf_counter() - started))
    return statistics.median(rates)


def grown(folder: Path, size: int, say: Callable[[str], None]) -> Iterator[tuple[str, str, float]]:
    """(metric, unit, value) of the log once it has `size` entries; those that are there are kept."""
    with LogWriter(folder, SIGNER, create=True) as log:
        while log.tree_size < size:
            first = log.tree_size
            log.append([entry(i) for i in range(first, min(size, first + LOG.bulk))])
            say(f"{log.tree_size} of {size} entries")
    # Steady appends of whole batches behind `size` would grow the log: a copy of its edge is enough for them.
    with tempfile.TemporaryDirectory(dir=folder.parent) as name:
        twin = edge_of(folder, size, Path(name) / "log")
        with LogWriter(twin, SIGNER, adopt=True) as log:
            say("appending")
            batches = [[entry(size + b * 256 + i) for i in range(256)] for b in range(LOG.batches)]
            yield (
                "durable appends",
                "entries/s",
                256 / timed(lambda b: log.append(batches[b]), range(LOG.batches)),
            )
    say("proving")
    chance = random.Random(2)  # noqa: S311
    indexes = [chance.randrange(size) for _ in range(LOG.cold)]
    yield "inclusion proof made, nothing cached", "ms", 1e3 * timed(lambda i: LogReader(folder, KEYS).inclusion_proof(i), indexes)  # fmt: skip
    reader = LogReader(folder, KEYS)
    proofs = [reader.inclusion_proof(i) for i in indexes]
    yield "inclusion proof, longest of the sample", "hashes", max(map(len, proofs))
    sizes = sorted({chance.randrange(1, size) for _ in range(LOG.cold)})
    yield "consistency proof made, nothing cached", "ms", 1e3 * timed(lambda s: LogReader(folder, KEYS).consistency_proof(s), sizes)  # fmt: skip
    yield "inclusion proofs verified", "proofs/s", verified_a_second(reader)
    say("auditing")
    start = max(0, size - LOG.audited) // 2
    started = time.perf_counter()
    count = sum(1 for _ in LogReader(folder, KEYS).entries(start, min(size, start + LOG.audited)))
    yield "entries read and checked", "entries/s", count / (time.perf_counter() - started)
    say("opening")
    yield "writer opened", "ms", 1e3 * timed(lambda _: LogWriter(folder, SIGNER).close(), range(5))


def edge_of(folder: Path, size: int, target: Path) -> Path:
    """A folder with the checkpoint and what a writer needs to go on from it: the last, partial bundle and tiles."""
    source = LogReader(folder, KEYS)
    if source.checkpoint().tree_size != size:
        raise RuntimeError(
            f"the log in {folder} has {source.checkpoint().tree_size} entries; choose another folder"
        )
    (target / "tile").mkdir(parents=True)
    shutil.copy(folder / "checkpoint", target / "checkpoint")
    for path in folder.glob("tile/**/*.p/*"):
        (target / path.relative_to(folder)).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(path, target / path.relative_to(folder))
    return target


def main() -> int:
    """0 when every measurement ran."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--largest", type=int, default=max(LOG.sizes), help="largest log that is built")
    parser.add_argument("--folder", type=Path, default=Path(tempfile.gettempdir()) / "fieldprint-growing-log")
    options = parser.parse_args()
    print("testing what will be measured")  # noqa: T201
    tests = [sys.executable, "-m", "pytest", "-q", "-x", *TESTED]
    if subprocess.run(tests, cwd=ROOT, check=False).returncode:  # noqa: S603
        print("tests are red; nothing is measured", file=sys.stderr)  # noqa: T201
        return 1
    rows: list[dict[str, Any]] = []

    def found(cell: str, metric: str, unit: str, value: float) -> None:
        rows.append({"cell": cell, "metric": metric, "unit": unit, "ours": float(f"{value:.4g}"), "peers": {}, "ratio": None})  # fmt: skip
        print(f"{cell}: {metric} {value:,.4g} {unit}", flush=True)  # noqa: T201

    options.folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=options.folder) as name:
        rates = [throughput(Path(name) / f"fast{i}") for i in range(LOG.rounds)]
        cell = f"{LOG.threads} threads, {LOG.entries} entries of {LOG.entry_size} bytes"
        found(cell, "durable appends, median of runs", "entries/s", statistics.median(rates))
        found(cell, "durable appends, slowest run", "entries/s", min(rates))
        for rate in LOG.rates:
            seconds = sorted(latencies(Path(name) / f"steady{rate}", rate))
            for share in (0.5, 0.99, 0.999):
                value = 1e3 * seconds[int(share * (len(seconds) - 1))]
                found(
                    f"{rate} entries/s, one at a time", f"append to published, p{100 * share:g}", "ms", value
                )
    sizes = [size for size in LOG.sizes if size <= options.largest]
    if any(a > b for a, b in pairwise(sizes)):
        raise ValueError("sizes grow")
    for size in sizes:
        log = options.folder / f"log-{size}"
        previous = options.folder / f"log-{sizes[sizes.index(size) - 1]}"
        if not log.exists() and size != sizes[0]:
            shutil.copytree(previous, log)
            shutil.copy(
                previous.with_name(previous.name + ".last-signed"), log.with_name(log.name + ".last-signed")
            )

        def say(text: str, size: int = size) -> None:
            if sys.stderr.isatty():
                sys.stderr.write(f"\r\x1b[K{size}: {text}")

        for metric, unit, value in grown(log, size, say):
            found(f"{size} entries", metric, unit, value)
    write_results(
        "log",
        rows,
        device=f"{platform.machine()} CPU, {os.cpu_count()} cores, files in {options.folder.parent}",
        command=f"python -m benchmarks.log --largest {options.largest}",
        packages=("cryptography",),
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
