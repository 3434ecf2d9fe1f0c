"""`python -m benchmarks.faults`: runs until enough faults were injected, and what came of them.

    make faults                                          2,000 faults on the CPU, 40 of them on the whole model
    python -m benchmarks.faults --device cuda --faults 20000
    python -m benchmarks.faults --replay 17              one run, event by event

An interrupted campaign goes on where it was when it is called again. A miss is printed with its seed, counted, and makes the
exit status 1.
"""

import argparse
import json
import os
import sys
import tempfile
import time
from collections.abc import Callable, Generator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from dataclasses import dataclass
from hashlib import sha256
from multiprocessing import get_context
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from benchmarks.faults.plan import KINDS, plan_of
from benchmarks.record import ROOT, write_results

Record = dict[str, Any]
SHOWN_MISSES = 20


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
        return 1 if self.device == "cpu" else 16


class Player:
    """Plays seeds on one world."""

    def __init__(self, part: Part) -> None:
        import torch

        from benchmarks.faults.world import make_world

        if part.device == "cpu":
            torch.set_num_threads(1)
        self.part = part
        self.world = make_world(layers=part.layers, device=part.device, dtype=getattr(torch, part.dtype))

    def play(
        self, seed: int, kinds: Sequence[str], tell: Callable[[str], None] | None = None
    ) -> Record:
        """What came of the run of `seed`, as plain values."""
        from benchmarks.faults.run import Run

        scene = self.world.scenes[seed // self.part.seeds_per_scene % len(self.world.scenes)]
        outcome = Run(self.world, scene, plan_of(seed, kinds), tell).play()
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
            _row(cell, "injected", injected),
            _row(cell, "found", len(found)),
            _row(cell, "rolled back", sum(f[3] > 0 for f in found)),
            _row(
                cell, "text and leaves identical", sum(r["identical"] and f[1] == "found" for f, r in faults)
            ),
            _row(cell, "steps until found, most", max((f[2] for f in found), default=0)),
            _row(cell, "steps until found, mean", round(sum(f[2] for f in found) / max(1, len(found)), 2)),
            _row(cell, "gone or idle, not counted", len(faults) - injected),
        ]
    return [
        *rows,
        _row(part.name, "faults", sum(map(counted, records))),
        _row(part.name, "misses", sum(map(is_miss, records))),
        _row(part.name, "runs", len(records)),
        _row(part.name, "tokens released", sum(r["released"] for r in records)),
        _row(part.name, "tokens released unverified", sum(r["unverified"] for r in records)),
        _row(part.name, "receipts verified", sum(r["receipts"] for r in records)),
        _row(part.name, "seconds of all runs", round(sum(r["seconds"] for r in records), 1)),
    ]


def _row(cell: str, metric: str, number: float) -> Record:
    return {"cell": cell, "metric": metric, "unit": "", "ours": number, "peers": {}, "ratio": None}


def parts_of(options: argparse.Namespace) -> list[Part]:
    """What the options ask for."""
    layers = options.layers if options.layers is not None else 2 if options.device == "cpu" else 0
    whole = options.whole if options.whole is not None else 40 if options.device == "cpu" else 0
    cut = f"the first {layers} layers" if layers else "the whole model"
    device, first = options.device, options.seed
    found = [
        Part(f"{cut}, {options.dtype}", device, options.dtype, layers or None, options.faults - whole, first)
    ]
    if whole and layers:
        found.append(Part(f"the whole model, {options.dtype}", device, options.dtype, None, whole, first))
    return found


def run_campaign(options: argparse.Namespace, console: Console) -> list[tuple[Part, list[Record]]]:
    """Every part with its records."""
    kinds = tuple(options.only or KINDS)
    header = {"code": code_digest(), "device": options.device, "kinds": kinds, "first": options.seed}
    state = State(options.state or _default_state(options.device), json.loads(json.dumps(header)))
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    shown, parts = 0, []
    with Progress(*columns, console=console) as progress:
        for part in parts_of(options):
            records = [record for record in state.records if record["part"] == part.name]
            number = sum(map(counted, records))
            bar = progress.add_task(part.name, total=part.faults, completed=number)
            source = played(part, kinds, options.processes, {record["seed"] for record in records})
            while number < part.faults:
                record = next(source)
                state.add(record)
                records.append(record)
                number += counted(record)
                progress.update(bar, completed=number)
                if is_miss(record) and (shown := shown + 1) <= SHOWN_MISSES:
                    tell_miss(record, options, console)
            source.close()
            parts.append((part, records))
    return parts


def tell_miss(record: Record, options: argparse.Namespace, console: Console) -> None:
    """Say what was missed, and how to see it again."""
    console.print(f"MISS in seed {record['seed']} ({record['part']}, scene {record['scene']}):", markup=False)
    for line in record["wrong"]:
        console.print(f"  {line}", markup=False)
    for kind, outcome, *_, what in record["faults"]:
        if outcome == "missed":
            console.print(f"  missed: {kind}: {what}", markup=False)
    layers = "0" if record["part"].startswith("the whole") else record["part"].split()[2]
    again = f"--device {options.device} --dtype {options.dtype} --layers {layers} --replay {record['seed']}"
    console.print(f"  again: python -m benchmarks.faults {again}", markup=False)


def replay(options: argparse.Namespace, console: Console) -> int:
    """Play one seed and tell everything; 1 if it is a miss."""
    part = parts_of(options)[0]
    plan = plan_of(options.replay, options.only or KINDS)
    for strike in plan.strikes:
        console.print(str(strike), markup=False)
    record = Player(part).play(
        options.replay, options.only or tuple(KINDS), lambda line: console.print(line, markup=False)
    )
    if is_miss(record):
        tell_miss(record, options, console)
    console.print(f"{counted(record)} faults, {'a miss' if is_miss(record) else 'all found'}")
    return int(is_miss(record))


def _default_state(device: str) -> Path:
    return Path(tempfile.gettempdir()) / f"fieldprint-faults-{device}.jsonl"


def _arguments(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.faults",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--faults", type=int, default=2000, help="how many; 2000")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument(
        "--dtype", choices=("float32", "bfloat16"), help="float32 on a CPU, bfloat16 on a GPU"
    )
    parser.add_argument("--layers", type=int, help="of the demo model; 0 for all; 2 on a CPU, all on a GPU")
    parser.add_argument("--whole", type=int, help="so many of the faults on the whole model; 40 on a CPU")
    parser.add_argument(
        "--only", nargs="+", choices=tuple(KINDS), metavar="KIND", help="of these kinds alone"
    )
    parser.add_argument("--processes", type=int, help="one for each core, and 1 on a GPU")
    parser.add_argument("--seed", type=int, default=0, help="of the first run")
    parser.add_argument(
        "--replay", type=int, metavar="SEED", help="play this run alone and tell what happens"
    )
    parser.add_argument("--state", type=Path, help=f"kept to go on from; {_default_state('DEVICE')}")
    parser.add_argument("--json", action="store_true", help="print the rows as JSON")
    parser.add_argument("--no-record", action="store_true", help="write no file into benchmarks/results")
    options = parser.parse_args(arguments)
    options.dtype = options.dtype or ("float32" if options.device == "cpu" else "bfloat16")
    options.processes = options.processes or (os.cpu_count() or 1 if options.device == "cpu" else 1)
    return options


def main(arguments: Sequence[str] | None = None) -> int:
    """0 if every fault was found and nothing else was wrong; 1 if there was a miss."""
    options = _arguments(arguments)
    console = Console(stderr=True)
    if options.replay is not None:
        return replay(options, console)
    started = time.monotonic()
    parts = run_campaign(options, console)
    rows = [row for part, records in parts for row in rows_of(part, records)]
    rows.append(_row("all", "seconds of this call", round(time.monotonic() - started, 1)))
    misses = sum(is_miss(record) for _, records in parts for record in records)
    if options.json:
        sys.stdout.write(json.dumps(rows, indent=1) + "\n")
    for part, records in parts:
        number = sum(map(counted, records))
        console.print(
            f"{part.name}: {number} faults in {len(records)} runs, {sum(map(is_miss, records))} runs with a miss"
        )
    if not options.no_record:
        name = "faults_cpu" if options.device == "cpu" else "faults_gpu"
        command = " ".join(
            ["python -m benchmarks.faults", *(sys.argv[1:] if arguments is None else arguments)]
        )
        write_results(
            name, rows, device=_device(options.device), command=command, packages=("torch", "blake3")
        )
    return int(misses > 0)


def _device(device: str) -> str:
    import torch

    return torch.cuda.get_device_name() if device == "cuda" else f"{os.cpu_count()} CPU cores"


if __name__ == "__main__":
    sys.exit(main())
