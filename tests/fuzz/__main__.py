"""Fuzz every parser with atheris, a process a target, two at a time: `make fuzz`.

    python -m tests.fuzz [--seconds 600] [--only NAME] [--corpus FOLDER]

`--seconds` is the time of all targets together. Exit code 1: a target crashed; the input lies in FOLDER/crashes.
"""

import argparse
import hashlib
import re
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from rich.console import Console
from rich.table import Table

from tests.fuzz.targets import TARGETS, Target

ROOT = Path(__file__).parents[2]
AT_A_TIME = 2


def fuzz(target: Target, seconds: int, corpus: Path) -> tuple[int, int, list[Path]]:
    """How often the target ran, how many inputs were worth keeping, and those that crashed it."""
    inputs, crashes = corpus / target.name, corpus / "crashes"
    for folder in (inputs, crashes):
        folder.mkdir(parents=True, exist_ok=True)
    for seed in target.seeds():
        (inputs / hashlib.sha256(seed).hexdigest()[:16]).write_bytes(seed)
    before = set(crashes.iterdir())
    done = subprocess.run(
        [
            sys.executable, "-m", "tests.fuzz.one", target.name, str(inputs), f"-max_total_time={seconds}", "-timeout=20",
            "-rss_limit_mb=4096", "-print_final_stats=1", f"-artifact_prefix={crashes}/{target.name}-",
        ],
        cwd=ROOT, capture_output=True, text=True,
    )  # fmt: skip
    found = re.search(r"stat::number_of_executed_units:\s*(\d+)", done.stderr)
    new = sorted(set(crashes.iterdir()) - before)
    if done.returncode and not new:
        raise SystemExit(f"{target.name}: {done.stderr[-3000:]}")
    if new:
        sys.stderr.write(done.stderr[-3000:])
    return int(found[1]) if found else 0, len(list(inputs.iterdir())), new


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--seconds", type=int, default=600, help="of all targets together")
    parser.add_argument("--only", choices=[target.name for target in TARGETS], help="this target alone")
    parser.add_argument(
        "--corpus", type=Path, default=ROOT / ".venv-fuzz/corpus", help="inputs, kept between runs"
    )
    options = parser.parse_args()
    chosen = [target for target in TARGETS if options.only in (None, target.name)]
    each = max(1, options.seconds * min(AT_A_TIME, len(chosen)) // len(chosen))
    started = time.perf_counter()
    with ThreadPoolExecutor(AT_A_TIME) as pool:
        results = list(pool.map(lambda target: fuzz(target, each, options.corpus.resolve()), chosen))
    table = Table(
        title=f"{sum(runs for runs, _, _ in results):,} executions in {time.perf_counter() - started:.0f} s"
    )
    for column in ("target", "executions", "inputs kept", "crashes"):
        table.add_column(column)
    for target, (runs, kept, crashes) in zip(chosen, results, strict=True):
        table.add_row(target.name, f"{runs:,}", str(kept), ", ".join(path.name for path in crashes) or "none")
    Console(width=120).print(table)
    return 1 if any(crashes for _, _, crashes in results) else 0


if __name__ == "__main__":
    sys.exit(main())
