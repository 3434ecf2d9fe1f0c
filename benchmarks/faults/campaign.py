"""Many runs, in as many processes as wanted: records that are kept, counts, and what is a miss."""

import json
import logging
import os
import sys
from collections.abc import Callable, Generator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from dataclasses import dataclass
from hashlib import sha256
from multiprocessing import get_context
from pathlib import Path
from typing import Any

from benchmarks.faults.plan import KINDS, plan_of
from benchmarks.record import ROOT

Record = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Part:
    """Runs of one engine: a cell of the results.

    layers: of the demo model; None for all. faults: how many are wanted. first: seed.
    """

    name: str
    device: str
    dtype: str
    layers: int | None
    faults: int
    first: int

    @property
    def seeds_per_scene(self) -> int:
        """Runs of one scene in a row: on a GPU each scene has a graph of its own, which takes a second to capture."""
        return 1 if self.device == "cpu" else 8

    @property
    def rows(self) -> int:
        """Requests of a batch."""
        return 8 if self.device == "cpu" else 16

    @property
    def burst(self) -> int:
        """Faults that may strike at once."""
        return 12 if self.device == "cpu" else 40


class Player:
    """Plays seeds on one world."""

    def __init__(self, part: Part) -> None:
        import torch

        from benchmarks.faults.world import make_world

        if part.device == "cpu":
            torch.set_num_threads(1)
        # It tells at length of each thread that is killed.
        logging.getLogger("concurrent.futures").disabled = True
        self.part = part
        self.world = make_world(
            layers=part.layers, device=part.device, dtype=getattr(torch, part.dtype), rows=part.rows
        )

    def play(self, seed: int, kinds: Sequence[str], tell: Callable[[str], None] | None = None) -> Record:
        """What came of the run of `seed`, as plain values."""
        from benchmarks.faults.run import Run

        scene = self.world.scenes[seed // self.part.seeds_per_scene % len(self.world.scenes)]
        outcome = Run(self.world, scene, plan_of(seed, kinds, burst=self.part.burst), tell).play()
        return {
            "part": self.part.name,
            "seed": seed,
            "scene": outcome.scene,
            "faults": [
                [struck.fault.kind, struck.outcome, struck.steps, struck.rollbacks, struck.what]
                for struck in outcome.struck
            ],
            "identical": outcome.identical,
            "released": outcome.released,
            "unverified": outcome.unverified,
            "receipts": outcome.receipts,
            "wrong": outcome.wrong,
            "seconds": round(outcome.seconds, 3),
        }


_player: Player | None = None  # of a process of the pool


def _start(part: Part) -> None:
    global _player
    _player = Player(part)


def _play(seed: int, kinds: Sequence[str]) -> Record:
    if _player is None:
        raise RuntimeError("the process has no world")
    return _player.play(seed, kinds)


def played(part: Part, kinds: Sequence[str], processes: int, done: set[int]) -> Generator[Record]:
    """The records of seeds from `part.first` on that are not `done`, without end; in `processes` on a CPU."""
    seeds = (seed for seed in range(part.first, sys.maxsize) if seed not in done)
    if processes == 1:
        player = Player(part)
        while True:
            yield player.play(next(seeds), kinds)
    os.environ["OMP_NUM_THREADS"] = "1"  # read by each process when it loads torch
    pool = ProcessPoolExecutor(processes, get_context("spawn"), _start, (part,))
    running: set[Future[Record]] = set()
    try:
        while True:
            running |= {pool.submit(_play, next(seeds), kinds) for _ in range(processes - len(running))}
            finished, running = wait(running, return_when=FIRST_COMPLETED)
            for future in finished:
                yield future.result()
    finally:
        pool.shutdown(cancel_futures=True)


class State:
    """The records so far, a JSON object a line; the first line says of what. Another code or other kinds begin anew."""

    def __init__(self, path: Path, header: Record) -> None:
        self._path = path
        self.records: list[Record] = []
        line = json.dumps(header)
        lines = path.read_text().split("\n") if path.exists() else []
        if lines[:1] == [line]:
            self.records = [
                json.loads(record) for record in lines[1:-1]
            ]  # what was cut short is played again
        path.write_text("".join(json.dumps(record) + "\n" for record in [header, *self.records]))

    def add(self, record: Record) -> None:
        """Keep a record."""
        self.records.append(record)
        with self._path.open("a") as file:
            file.write(json.dumps(record) + "\n")


def code_digest() -> str:
    """SHA-256 over the sources that a record depends on."""
    whole = sha256()
    for folder in ("fieldprint", "benchmarks/faults"):
        for path in sorted((ROOT / folder).rglob("*.py")):
            whole.update(path.read_bytes())
    return whole.hexdigest()


def is_miss(record: Record) -> bool:
    """Whether the run broke a promise."""
    return bool(record["wrong"] or record["unverified"] or not record["identical"]) or any(
        outcome == "missed" for _, outcome, *_ in record["faults"]
    )


def counted(record: Record) -> int:
    """Faults that had something to be found in them."""
    return sum(outcome in ("found", "missed") for _, outcome, *_ in record["faults"])


def rows_of(part: Part, records: Sequence[Record]) -> list[Record]:
    """Rows of the results: counts and steps by kind, then the sums."""
    rows = []
    for kind in KINDS:
        faults = [(f, r) for r in records for f in r["faults"] if f[0] == kind]
        found = [fault for fault, _ in faults if fault[1] == "found"]
        injected = len(found) + sum(fault[1] == "missed" for fault, _ in faults)
        if not faults:
            continue
        cell = f"{part.name}: {kind}"
        rows += [
            row(cell, "injected", injected),
            row(cell, "found", len(found)),
            row(cell, "rolled back", sum(f[3] > 0 for f in found)),
            row(
                cell, "text and leaves identical", sum(r["identical"] and f[1] == "found" for f, r in faults)
            ),
            row(cell, "steps until found, most", max((f[2] for f in found), default=0)),
            row(cell, "steps until found, mean", round(sum(f[2] for f in found) / max(1, len(found)), 2)),
            row(cell, "gone or idle, not counted", len(faults) - injected),
        ]
    return [
        *rows,
        row(part.name, "faults", sum(map(counted, records))),
        row(part.name, "misses", sum(map(is_miss, records))),
        row(part.name, "runs", len(records)),
        row(part.name, "tokens released", sum(r["released"] for r in records)),
        row(part.name, "tokens released unverified", sum(r["unverified"] for r in records)),
        row(part.name, "receipts verified", sum(r["receipts"] for r in records)),
        row(part.name, "seconds of all runs", round(sum(r["seconds"] for r in records), 1)),
    ]


def row(cell: str, metric: str, number: float) -> Record:
    return {"cell": cell, "metric": metric, "unit": "", "ours": number, "peers": {}, "ratio": None}


def table_of(result: Record) -> str:
    """A results file as the table of docs/faults.md."""
    found = {(row["cell"], row["metric"]): row["ours"] for row in result["rows"]}
    lines = [f"{result['device']}, commit {result['commit'][:7]}:", ""]
    for part in [cell for cell, metric in found if metric == "misses"]:
        lines += [
            f"| {part} | injected | found | steps until found, mean | most |",
            "|---|---:|---:|---:|---:|",
        ]
        for kind in KINDS:
            cell = f"{part}: {kind}"
            if (cell, "injected") in found:
                names = ("injected", "found", "steps until found, mean", "steps until found, most")
                numbers = " | ".join(f"{found[cell, name]:,}" for name in names)
                lines.append(f"| {kind} | {numbers} |")
        counts = {metric: number for (cell, metric), number in found.items() if cell == part}
        lines += [
            "",
            f"{counts['faults']:,} faults in {counts['runs']:,} runs, {counts['misses']:,} misses; "
            f"{counts['tokens released']:,} tokens released, {counts['tokens released unverified']:,} of them unverified; "
            f"{counts['receipts verified']:,} receipts verified.",
            "",
        ]
    return "\n".join(lines)
