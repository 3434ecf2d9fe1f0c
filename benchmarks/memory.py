"""What finding a memory costs as the store grows: `make bench-memory`.

Tests of the memory first. Then one store on SQLite is filled through `add_many` to each size and searched through `search`,
the encoding of the query included. Texts are synthetic: 6 to 20 words out of 2,000 topics of 30 words each, some of a second
topic, some of none; their vectors are what the default encoder gives, none is made up. Half of the memories have the label
`untrusted`, one in a hundred lacks the label `bulk`. Recall is against the exact search over every allowed vector.
"""

import argparse
import os
import platform
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.record import ROOT, write_results
from fieldprint.database import sqlite_module
from fieldprint.memory import Encoder, Memory, MemoryStore, default_encoder
from fieldprint.memory.encoder import TOKENIZER, WordVectors

SIZES = (1_000, 10_000, 100_000, 1_000_000)
QUERIES = 1_000  # of each size and filter
WARM = 50  # more that are not counted
EXACT = 100  # of them are searched exactly as well
K = 10
BATCH = 5_000
TIME = datetime(2026, 1, 1, tzinfo=UTC)
FILTERS: tuple[tuple[str, tuple[str, ...]], ...] = (
    ("all allowed", ()),
    ("half allowed", ("untrusted",)),
    ("one in a hundred allowed", ("bulk",)),
)


class Texts:
    """Texts by number, the same in every run."""

    def __init__(self, encoder: Encoder) -> None:
        from tokenizers import Tokenizer

        if not isinstance(encoder.encode, WordVectors):
            raise TypeError("the texts are made of the words of the default encoder")
        known = Tokenizer.from_file(str(encoder.encode.folder / TOKENIZER)).get_vocab()
        words = (token[1:] for token in known if token.startswith("▁"))
        self.words = sorted(word for word in words if word.isascii() and word.isalpha() and len(word) > 3)
        draw = random.Random(6)  # noqa: S311
        self.topics = [draw.sample(self.words, 30) for _ in range(2_000)]

    def __getitem__(self, number: int) -> str:
        draw = random.Random(number)  # noqa: S311
        first, second = draw.choice(self.topics), draw.choice(self.topics)
        weights = ((first, 70), (second, 15), (self.words, 15))
        sources = draw.choices([w for w, _ in weights], [n for _, n in weights], k=draw.randint(6, 20))
        return " ".join(draw.choice(source) for source in sources) + "."

    def memories(self, first: int, stop: int) -> Iterator[Memory]:
        """The memories of these numbers."""
        for number in range(first, stop):
            taint = (("bulk",) if number % 100 else ()) + (("untrusted",) if number % 2 else ())
            yield Memory(self[number], "observation", "benchmark", TIME, taint)


def measure(folder: Path, sizes: list[int]) -> list[dict[str, Any]]:
    """The rows."""
    encoder = default_encoder()
    texts = Texts(encoder)
    path = folder / "memory.db"
    rows: list[dict[str, Any]] = []
    with MemoryStore(str(path), encoder, create=True) as store:
        for size in sizes:
            before, started = store.count(), time.perf_counter()
            store.add_many(texts.memories(before, size), batch_size=BATCH)
            rate = (size - before) / (time.perf_counter() - started) if size > before else None
            if store.count() != size:
                raise RuntimeError(f"{store.count()} memories instead of {size}: two texts are the same")
            _checkpoint(path)
            vectors = _everything(path)
            if len(vectors) != size:
                raise RuntimeError(f"{len(vectors)} vectors of {size} memories")
            rows += [_row(size, "size of the database", "bytes/memory", path.stat().st_size / size)]
            if rate is not None:
                rows += [_row(size, "added", "memories/s", rate)]
            for name, forbidden in FILTERS:
                rows += _search(store, texts, size, name, forbidden, vectors)
    return rows


def _search(
    store: MemoryStore,
    texts: Texts,
    size: int,
    name: str,
    forbidden: tuple[str, ...],
    vectors: Any,
) -> list[dict[str, Any]]:
    allowed = _allowed(forbidden, len(vectors))
    questions = [texts[-1 - number] for number in range(WARM + QUERIES)]
    times, busy, answers = [], [], []
    for question in questions:
        started, worked = time.perf_counter(), time.process_time()
        found = store.search(question, K, forbidden=forbidden)
        times.append(time.perf_counter() - started)
        busy.append(time.process_time() - worked)
        answers.append(found)
        if len(found) != min(K, int(allowed.sum())) or any(
            set(forbidden) & set(each.memory.taint) for each in found
        ):
            raise RuntimeError("the search gave too few, or what was forbidden")
    hits, exact_times = [], []
    for question, found in zip(questions[:EXACT], answers, strict=False):
        started = time.perf_counter()
        scores = vectors @ store.encoder([question])[0]
        scores[~allowed] = -2
        best = np.sort(np.partition(scores, -len(found))[-len(found) :])
        exact_times.append(time.perf_counter() - started)
        hits.append(np.mean([each.score >= best[0] - 1e-6 for each in found]))
    cell = f"{size} memories, {name}"
    peers = {"exact, all vectors in memory": round(float(np.median(exact_times)) * 1e3, 2)}
    result = []
    for metric, taken in (("search", times[WARM:]), ("processor time of a search", busy[WARM:])):
        for percent in (50, 99):
            value = float(np.percentile(taken, percent)) * 1e3
            compared = peers if (metric, percent) == ("search", 50) else {}
            result.append(_row(cell, f"{metric}, p{percent}", "ms", value, compared))
    result.append(_row(cell, f"recall@{K}", "share of the exact", float(np.mean(hits))))
    return result


def _checkpoint(path: Path) -> None:
    """Move the write-ahead log into the file, so that its size is the size of what is stored."""
    connection = sqlite_module().connect(path)  # the store's own library, as it says there
    connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    connection.close()


def _everything(path: Path) -> Any:
    """Every vector in the order of its number, for the exact search."""
    connection = sqlite_module().connect(path)  # the store's own library, as it says there
    count = connection.execute("SELECT count(*) FROM embeddings").fetchone()[0]
    vectors = np.empty((count, 256), np.float32)
    rows = connection.execute("SELECT embedding FROM embeddings ORDER BY number")
    for index, (vector,) in enumerate(rows):
        vectors[index] = np.frombuffer(vector, np.float32)
    connection.close()
    return vectors


def _allowed(forbidden: tuple[str, ...], size: int) -> Any:
    """Which memories the exact search may give, by how `Texts.memories` labels them."""
    numbers = np.arange(size)
    allowed = np.ones(size, bool)
    if "bulk" in forbidden:
        allowed &= numbers % 100 == 0
    if "untrusted" in forbidden:
        allowed &= numbers % 2 == 0
    return allowed


def _row(
    cell: int | str, metric: str, unit: str, value: float, peers: dict[str, float] | None = None
) -> dict[str, Any]:
    named = f"{cell} memories" if isinstance(cell, int) else cell
    sys.stderr.write(f"{named}: {metric} {value:.4g} {unit} {peers or ''}\n")
    ours = round(value, 4)
    ratio = round(next(iter(peers.values())) / ours, 2) if peers else None
    return {"cell": named, "metric": metric, "unit": unit, "ours": ours, "peers": peers or {}, "ratio": ratio}


def main() -> int:
    """0 when every size was measured."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sizes", default=",".join(map(str, SIZES)), help="memories")
    parser.add_argument("--folder", type=Path, help="where the store is, or is left to be measured again")
    options = parser.parse_args()
    tests = [sys.executable, "-m", "pytest", "-q", "-x", "tests/memory"]
    if subprocess.run(tests, cwd=ROOT, check=False).returncode:  # noqa: S603
        sys.stderr.write("tests are red; nothing is measured\n")
        return 1
    sizes = sorted(int(size) for size in options.sizes.split(","))
    if options.folder is not None:
        rows = measure(options.folder, sizes)
    else:
        with tempfile.TemporaryDirectory() as scratch:
            rows = measure(Path(scratch), sizes)
    nice = f", niceness {os.nice(0)}, a machine shared with other work" if os.nice(0) else ""
    write_results(
        "memory",
        rows,
        device=f"{platform.machine()}, {os.cpu_count()} cores, one process{nice}",
        command="make bench-memory",
        packages=["sqlite-vec", "sqlalchemy", "numpy", "wordllama"],
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
