"""How soon running engines learn of a revocation: eight workers that decode, one registry; `python -m benchmarks.revocation`.

Each worker is a process with an engine on the demo model's first layers, whose gate watches the registry's database. All decode when a
revocation is appended to the log and synced to the database; each says when its gate ruled, which is before it starts
another step. Time counts from the moment when the append to the log is called (`from the call`), and from the moment when the
database has it (`from the commit`), in milliseconds and in steps: of the step that the worker was in. The goal is 100 ms or one step.
Workers that share cores decode slowly, and so does whoever revokes: a step's time is in the rows too.
"""

import argparse
import multiprocessing
import os
import random
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from itertools import pairwise
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from benchmarks.record import write_results
from fieldprint.anchor import Policy, Registration, Revocation, sign_statement
from fieldprint.registry import append_event, event_entry
from fieldprint.registry.database import RegistryDatabase
from fieldprint.tlog import LogReader, LogWriter

WORKERS = 8
ROUNDS = 25
LAYERS = 4


@dataclass(frozen=True, slots=True)
class Round:
    """What a worker saw: when its gate ruled, and how long its steps took before, milliseconds."""

    ruled_at: float
    steps: list[float]


def work(url: str, policy: bytes, pipe: Connection) -> None:
    """A worker: for each anchor that it is given, decode until the gate rules."""
    os.environ["OMP_NUM_THREADS"] = "1"
    import torch

    torch.set_num_threads(1)
    from fieldprint.adapters.model_folder import prepare_demo_model
    from fieldprint.adapters.transformers import load_model
    from fieldprint.generate import Engine, GenerationRequest, Provisional
    from fieldprint.kvcache import PagePool
    from fieldprint.registry.gate import AnchorGate, GatedAnchor, Ruling
    from fieldprint.registry.watched import WatchedDatabase
    from tests.cut_model import cut_model

    model = cut_model(load_model(prepare_demo_model()), LAYERS)
    engine = Engine(
        model.decoder, PagePool(model.decoder.page_layout(16), 600), decode=model.decode, model=model.digest
    )
    trusted = Policy.from_bytes(policy)
    prompt = tuple(model.chat_tokens("Tell me a long story about the sea."))

    class Stamped:
        """The gate, and when it ruled. It stands in for an anchor in use, so `stop` is what a ruling comes to."""

        def __init__(self, gate: AnchorGate) -> None:
            self.gate, self.at = gate, 0.0

        def ruling(self) -> Ruling | None:
            made = self.gate.ruling()
            if made is not None and not self.at:
                self.at = time.time()
            return made

    with WatchedDatabase(url, trusted) as registry:
        pipe.send("ready")
        while (digest := pipe.recv()) is not None:
            used = GatedAnchor(digest, "memory", datetime.now(UTC) + timedelta(days=1))
            gate = Stamped(AnchorGate(trusted, used, registry=registry))
            times = [time.perf_counter()]
            while not gate.at:  # an answer that ends before the revocation comes begins anew
                for event in engine.generate([GenerationRequest(prompt, 2000)], gate=gate):
                    if isinstance(event, Provisional):
                        times.append(time.perf_counter())
                        if len(times) == 8:
                            pipe.send("decoding")
            steps = [1e3 * (b - a) for a, b in pairwise(times[2:])]
            pipe.send(Round(gate.at, steps))


@contextmanager
def workers(count: int, url: str, policy: bytes) -> Iterator[list[Connection]]:
    """Pipes to so many workers, ready."""
    context = multiprocessing.get_context("spawn")
    pipes, processes = [], []
    for _ in range(count):
        ours, theirs = context.Pipe()
        process = context.Process(target=work, args=(url, policy, theirs), daemon=True)
        process.start()
        pipes.append(ours)
        processes.append(process)
    try:
        for pipe in pipes:
            _expect(pipe, "ready")
        yield pipes
        for pipe in pipes:
            pipe.send(None)
        for process in processes:
            process.join(30)
    finally:
        for process in processes:
            process.kill()


def _expect(pipe: Connection, what: str) -> None:
    if not pipe.poll(300) or pipe.recv() != what:
        raise RuntimeError(f"a worker did not become {what} within 300 s")


def measure(name: str, url: str, count: int, rounds: int) -> list[dict[str, Any]]:
    """The rows of one database."""
    from tests.registry.world import LOG, OWNER, POLICY, SECOND, TIME, NoteSigner, anchor, sign

    draw = random.Random(0)  # noqa: S311 - when to revoke, not a secret
    calls, commits, within, steps = [], [], [], []
    with (
        tempfile.TemporaryDirectory() as folder,
        LogWriter(Path(folder) / "log", NoteSigner("test/log", LOG), create=True) as log,
        RegistryDatabase(url, create=True) as database,
    ):
        log.append([b"the beginning"])
        reader = LogReader(log.source, [POLICY.log_key])
        database.sync(reader, POLICY)
        with workers(count, url, POLICY.to_bytes()) as pipes:
            for number in range(rounds):
                made: Registration = anchor(f"anchor-{number}")
                append_event(log, POLICY, sign(made))
                reader.refresh()
                database.sync(reader, POLICY)
                for pipe in pipes:
                    pipe.send(made.anchor)
                for pipe in pipes:
                    _expect(pipe, "decoding")
                time.sleep(draw.uniform(0.05, 0.3))
                lost = sign_statement(Revocation(made.anchor, "lost", TIME), (OWNER, SECOND))
                called = time.time()
                append_event(log, POLICY, event_entry("revoke", lost))
                reader.refresh()
                database.sync(reader, POLICY)
                committed = time.time()
                for pipe in pipes:
                    found: Round = pipe.recv()
                    calls.append(1e3 * (found.ruled_at - called))
                    commits.append(1e3 * (found.ruled_at - committed))
                    within.append(commits[-1] / found.steps[-1])
                    steps += found.steps
                print(f"{name}: {number + 1} of {rounds}", end="\r", file=sys.stderr, flush=True)  # noqa: T201
    cell = f"{name}, {count} workers"
    rows = []
    measured = (
        ("from the call", "ms", calls),
        ("from the commit", "ms", commits),
        ("from the commit", "steps", within),
        ("a decode step", "ms", steps),
    )
    for metric, unit, values in measured:
        for share in (0.5, 0.99):
            rows.append({
                "cell": cell,
                "metric": f"{metric}, p{share * 100:g}",
                "unit": unit,
                "ours": round(quantile(values, share), 2),
                "peers": {},
                "ratio": None,
            })  # fmt: skip
    return rows


def quantile(values: Sequence[float], share: float) -> float:
    """The smallest value that is not below this share of them."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))]


def main(arguments: Sequence[str] | None = None) -> int:
    """0 when both databases were measured."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--workers", type=int, default=WORKERS, help="8")
    parser.add_argument("--rounds", type=int, default=ROUNDS, help="revocations for each database; 25")
    parser.add_argument("--out", type=Path, help="file of the results; in benchmarks/results/ unless given")
    options = parser.parse_args(arguments)
    from tests.postgres import find_programs, serve

    with tempfile.TemporaryDirectory() as folder:
        rows = measure("SQLite", str(Path(folder) / "registry.db"), options.workers, options.rounds)
    with serve(find_programs(), "PostgreSQL's programs are needed") as server:
        rows += measure("PostgreSQL", server.create_database(), options.workers, options.rounds)
    for row in rows:
        print(f"{row['cell']:<24} {row['metric']:<24} {row['ours']:8.2f} {row['unit']}")  # noqa: T201
    write_results(
        "revocation",
        rows,
        device=f"{os.cpu_count()} CPU cores",
        command="python -m benchmarks.revocation",
        packages=("torch", "sqlalchemy", "psycopg"),
        path=options.out,
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
