"""Run the tests of what is measured, then the measurements; no speed is printed when a test is red."""

import argparse
import os
import platform
import statistics
import subprocess
import sys
import time
from typing import Any

from benchmarks.record import ROOT, write_results
from benchmarks.shapes import DECODE, STARTUP_REPEATS

TESTED = ("tests/attention", "tests/kvcache", "tests/generate")


def main() -> int:
    """0 when every measurement ran."""
    parser = argparse.ArgumentParser(description=__doc__)
    names = ", ".join(shape.name for shape in DECODE)
    parser.add_argument("--shapes", nargs="*", help=f"of {names}; all unless given")
    parser.add_argument("--skip-tests", action="store_true", help="when they have just run")
    options = parser.parse_args()
    chosen = options.shapes
    tests = [sys.executable, "-m", "pytest", "-q", "-x", *TESTED]
    if not options.skip_tests:
        print("testing what will be measured")  # noqa: T201
    if not options.skip_tests and subprocess.run(tests, cwd=ROOT, check=False).returncode:  # noqa: S603
        print("tests are red; nothing is measured", file=sys.stderr)  # noqa: T201
        return 1
    cores = len(os.sched_getaffinity(0))  # a run may be confined to some, by taskset
    os.environ.setdefault("OMP_NUM_THREADS", str(cores))
    rows = [_startup("import fieldprint", ["-c", "import fieldprint"])]
    rows.append(_startup("fieldprint --help", ["-m", "fieldprint.cli", "--help"]))
    for row in rows:
        _show(row)
    from benchmarks.decode import measure_all

    for row in measure_all([shape for shape in DECODE if chosen is None or shape.name in chosen]):
        rows.append(row)
        _show(row)
    write_results(
        "main_job",
        rows,
        device=f"{platform.machine()} CPU, {cores} cores, OMP_NUM_THREADS={os.environ['OMP_NUM_THREADS']}",
        command="python -m benchmarks"
        + ("" if chosen is None else f" --shapes {' '.join(map(repr, chosen))}"),
        packages=("torch", "transformers", "blake3", "cryptography", "numpy"),
    )
    return 0


def _startup(cell: str, arguments: list[str]) -> dict[str, Any]:
    """Wall time of a fresh process, the empty interpreter's taken off."""

    def seconds(command: list[str]) -> float:
        times = []
        for _ in range(STARTUP_REPEATS):
            started = time.perf_counter()
            subprocess.run([sys.executable, *command], cwd=ROOT, check=True, capture_output=True)  # noqa: S603
            times.append(time.perf_counter() - started)
        return statistics.median(times)

    bare, whole = seconds(["-c", "pass"]), seconds(arguments)
    return {
        "cell": cell,
        "metric": "wall time of a fresh process",
        "unit": "ms",
        "ours": round(whole * 1e3, 1),
        "peers": {"python -c pass": round(bare * 1e3, 1)},
        "ratio": round(bare / whole, 3),
    }


def _show(row: dict[str, Any]) -> None:
    line = f"{row['cell']:<30} {row['metric']:<48} {row['ours']:>9} {row['unit']:<9} x{row['ratio']:<6} {row['peers']}"
    print(line, flush=True)  # noqa: T201


if __name__ == "__main__":
    sys.exit(main())
