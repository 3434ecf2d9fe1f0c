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
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from benchmarks.faults.campaign import (
    Part,
    Player,
    Record,
    State,
    code_digest,
    counted,
    is_miss,
    played,
    row,
    rows_of,
    table_of,
)
from benchmarks.faults.plan import KINDS, plan_of
from benchmarks.record import ROOT, write_results

SHOWN_MISSES = 20


def parts_of(options: argparse.Namespace) -> list[Part]:
    """What the options ask for."""
    cpu = options.device == "cpu"
    layers = options.layers if options.layers is not None else 2 if cpu else 4
    whole = options.whole if options.whole is not None else 40 if cpu else 1000
    whole = min(whole, options.faults) if layers else 0
    cut = f"the first {layers} layers" if layers else "the whole model"
    device, first = options.device, options.seed
    found = [
        Part(f"{cut}, {options.dtype}", device, options.dtype, layers or None, options.faults - whole, first)
    ]
    if whole:
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
    plan = plan_of(options.replay, options.only or KINDS, burst=part.burst)
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
    parser.add_argument("--layers", type=int, help="of the demo model; 0 for all; 2 on a CPU, 4 on a GPU")
    parser.add_argument(
        "--whole", type=int, help="so many of the faults on the whole model; 40 on a CPU, 1,000 on a GPU"
    )
    parser.add_argument(
        "--only", nargs="+", choices=tuple(KINDS), metavar="KIND", help="of these kinds alone"
    )
    parser.add_argument("--processes", type=int, help="one for each core; 4 on a GPU")
    parser.add_argument("--seed", type=int, default=0, help="of the first run")
    parser.add_argument(
        "--replay", type=int, metavar="SEED", help="play this run alone and tell what happens"
    )
    parser.add_argument("--state", type=Path, help=f"kept to go on from; {_default_state('DEVICE')}")
    parser.add_argument("--json", action="store_true", help="print the rows as JSON")
    parser.add_argument(
        "--table", action="store_true", help="print the recorded results for docs/faults.md, run nothing"
    )
    parser.add_argument("--no-record", action="store_true", help="write no file into benchmarks/results")
    options = parser.parse_args(arguments)
    options.dtype = options.dtype or ("float32" if options.device == "cpu" else "bfloat16")
    options.processes = options.processes or (os.cpu_count() or 1 if options.device == "cpu" else 4)
    return options


def main(arguments: Sequence[str] | None = None) -> int:
    """0 if every fault was found and nothing else was wrong; 1 if there was a miss."""
    options = _arguments(arguments)
    console = Console(stderr=True)
    name = "faults_cpu" if options.device == "cpu" else "faults_gpu"
    if options.table:
        sys.stdout.write(table_of(json.loads((ROOT / "benchmarks" / "results" / f"{name}.json").read_text())))
        return 0
    if options.replay is not None:
        return replay(options, console)
    started = time.monotonic()
    try:
        parts = run_campaign(options, console)
    except KeyboardInterrupt:
        console.print("Interrupted. The same command goes on from here.")
        return 130
    rows = [row for part, records in parts for row in rows_of(part, records)]
    rows.append(row("all", "seconds of this call", round(time.monotonic() - started, 1)))
    misses = sum(is_miss(record) for _, records in parts for record in records)
    if options.json:
        sys.stdout.write(json.dumps(rows, indent=1) + "\n")
    for part, records in parts:
        number = sum(map(counted, records))
        console.print(
            f"{part.name}: {number} faults in {len(records)} runs, {sum(map(is_miss, records))} runs with a miss"
        )
    if not options.no_record:
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
