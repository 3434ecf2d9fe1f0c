"""What the status tree costs as the revoked set grows: `python -m benchmarks.status_tree`.

Its tests first. Times are of the processor, since nothing here waits:

- build: the tree over all digests, and its root
- insert: one more digest at a random place, and the new root; the median and the slowest of 50
- insert first: one that is smaller than all, so that every node is hashed anew; the median of 9
- prove, verify: absence of a random digest; the median of 200
- proof: its JSON
"""

import os
import platform
import random
import statistics
import subprocess
import sys
from collections.abc import Callable
from time import process_time
from typing import Any

from benchmarks.record import ROOT, write_results
from fieldprint.tlog import StatusTree, verify_absent

SIZES = (1_000, 10_000, 100_000)


def milliseconds(action: Callable[[], object]) -> float:
    """Of one call."""
    start = process_time()
    action()
    return (process_time() - start) * 1000


def measure(size: int) -> dict[tuple[str, str], float]:
    """Values by metric and unit, for a set of `size` digests."""
    chance = random.Random(size)  # noqa: S311 - digests of nothing
    trees: list[StatusTree] = []

    def insert(digest: bytes) -> float:
        return milliseconds(lambda: (tree.add(digest), tree.root))

    build = milliseconds(
        lambda: trees.append(StatusTree(chance.randbytes(32) for _ in range(size))) or trees[0].root
    )
    (tree,) = trees
    inserted = [insert(chance.randbytes(32)) for _ in range(50)]
    first = [insert(bytes(31) + bytes([255 - i])) for i in range(9)]
    absent = [chance.randbytes(32) for _ in range(200)]
    prove = [milliseconds(lambda d=digest: tree.prove_absent(d)) for digest in absent]
    root, count = tree.root, len(tree)
    proofs = [(digest, tree.prove_absent(digest)) for digest in absent]
    verify = [
        milliseconds(lambda d=digest, p=proof: verify_absent(d, p, root, count)) for digest, proof in proofs
    ]
    return {
        ("build", "ms"): build,
        ("insert, median", "ms"): statistics.median(inserted),
        ("insert, slowest of 50", "ms"): max(inserted),
        ("insert first", "ms"): statistics.median(first),
        ("prove absent", "ms"): statistics.median(prove),
        ("verify absent", "ms"): statistics.median(verify),
        ("proof", "bytes"): statistics.median(len(proof.to_bytes()) for _, proof in proofs),
    }


def main() -> int:
    """0 when every cell ran."""
    tests = [sys.executable, "-m", "pytest", "-q", "-x", "tests/tlog/test_status.py"]
    if subprocess.run(tests, cwd=ROOT, check=False).returncode:  # noqa: S603
        sys.stderr.write("tests are red; nothing is measured\n")
        return 1
    rows: list[dict[str, Any]] = []
    for size in SIZES:
        for (metric, unit), value in measure(size).items():
            cell = f"{size} digests"
            sys.stderr.write(f"{cell}: {metric} {value:.3f} {unit}\n")
            rows.append(
                {"cell": cell, "metric": metric, "unit": unit, "ours": round(value, 3), "peers": {}, "ratio": None}
            )  # fmt: skip
    device = f"{platform.machine()}, {os.cpu_count()} cores, one process, processor time"
    command = "python -m benchmarks.status_tree"
    write_results("status_tree", rows, device=device, command=command, packages=["rfc8785"])
    return 0


if __name__ == "__main__":
    sys.exit(main())
