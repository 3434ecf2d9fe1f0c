"""How fast a log is audited, and how much memory that takes, as it grows: `make bench-audit`.

Tests of the audit first, then each cell in a process of its own:

- tree: entries of 200 bytes that are no JSON; every hash of the tree and every file is checked
- commitments: entries of a request's pages, each parsed and followed as well
- over HTTP: the first of both, from `LogSite` on this machine, four files read ahead
"""

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from benchmarks.record import ROOT, write_results
from fieldprint.audit import Audit
from fieldprint.commit import Commitment
from fieldprint.note import NoteSigner
from fieldprint.tlog import LogWriter, TrustPolicy, leaf_hash, open_source
from fieldprint.tlog.http_server import HttpServer
from fieldprint.tlog.serve import LogSite
from fieldprint.tlog.trust import KnownLog

SIGNER = NoteSigner("bench.example/audit", Ed25519PrivateKey.from_private_bytes(bytes([1]) * 32))
TRUST = TrustPolicy((KnownLog(SIGNER.verifier_key),))
TESTED = ("tests/tlog/test_audit.py", "tests/test_audit.py")
BULK = 1 << 16
PAGES = 16  # of a request


def plain(index: int) -> bytes:
    """An entry of 200 bytes."""
    return b"%d " % index + bytes(200 - len(b"%d " % index))


def requests(first: int, count: int) -> list[bytes]:
    """`count` commitments: requests of 16 pages, one behind the other, from request `first` on."""
    made: list[bytes] = []
    for number in range(count):
        page = number % PAGES
        leaf = Commitment(
            request=f"{first + number // PAGES:064x}", page=page, start=16 * page, end=16 * page + 16, prompt_len=10,
            tokens="ab" * 32, kv="cd" * 32, anchor="ef" * 32, fieldprint="12" * 32, model="34" * 32,
            sampler={"method": "greedy"}, attention={"g": "0.1", "num_sinks": 0, "operator": "floor", "window": 512},
            previous=leaf_hash(made[-1]).hex() if page else None, text="56" * 32 if page == PAGES - 1 else None,
        )  # fmt: skip
        made.append(leaf.to_bytes())
    return made


def grow(folder: Path, size: int, *, commitments: bool) -> None:
    """A log of `size` entries; those that are there are kept."""
    with LogWriter(folder, SIGNER, create=True) as log:
        while log.tree_size < size:
            first, count = log.tree_size, min(BULK, size - log.tree_size)
            log.append(
                requests(first, count) if commitments else [plain(i) for i in range(first, first + count)]
            )


def audit(folder: Path, *, http: bool) -> dict[str, Any]:
    """Entries a second and peak memory of an audit from the first entry, in this process."""
    if not http:
        return _audit(str(folder), workers=0)
    with HttpServer(LogSite(open_source(folder)), ("127.0.0.1", 0)) as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        try:
            return _audit(server.url, workers=4)
        finally:
            server.shutdown()
            thread.join()


def _audit(place: str, *, workers: int) -> dict[str, Any]:
    started = time.perf_counter()
    running = Audit(open_source(place), TRUST, workers=workers)
    for _ in running.run():
        pass
    seconds = time.perf_counter() - started
    if running.entries.num_findings:
        raise RuntimeError(f"findings: {running.entries.findings[:3]}")
    status = Path(
        "/proc/self/status"
    ).read_text()  # ru_maxrss would remember the process that started this one
    peak = int(status.split("VmHWM:")[1].split()[0]) / 1024
    return {"rate": running.log.checkpoint.tree_size / seconds, "peak": peak}


def measure(scratch: Path, sizes: list[int]) -> list[dict[str, Any]]:
    """The rows."""
    rows: list[dict[str, Any]] = []
    for name, commitments, limit in (("tree", False, None), ("commitments", True, 10**6)):
        for size in sizes:
            if limit is not None and size > limit:
                continue
            grow(scratch / name, size, commitments=commitments)
            for http in (False, True) if size <= 10**6 and not commitments else (False,):
                command = [sys.executable, "-m", "benchmarks.log_audit", "--child", str(scratch / name)]
                done = subprocess.run(  # noqa: S603
                    [*command, "--http"] if http else command, capture_output=True, text=True, check=True, cwd=ROOT
                )  # fmt: skip
                found = json.loads(done.stdout)
                cell = f"{name}{', over HTTP' if http else ''}, {size} entries"
                sys.stderr.write(f"{cell}: {found['rate']:.0f} entries/s, {found['peak']:.0f} MiB\n")
                for metric, unit, value in (
                    ("audited", "entries/s", found["rate"]),
                    ("peak memory", "MiB", found["peak"]),
                ):
                    rows.append(
                        {"cell": cell, "metric": metric, "unit": unit, "ours": round(value, 1), "peers": {}, "ratio": None}
                    )  # fmt: skip
    return rows


def main() -> int:
    """0 when every cell ran."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--child", type=Path, help="audit this log and print the result")
    parser.add_argument("--http", action="store_true", help="with --child: over HTTP")
    parser.add_argument("--sizes", default="10000,100000,1000000,10000000", help="entries")
    options = parser.parse_args()
    if options.child is not None:
        sys.stdout.write(json.dumps(audit(options.child, http=options.http)))
        return 0
    tests = [sys.executable, "-m", "pytest", "-q", "-x", *TESTED]
    if subprocess.run(tests, cwd=ROOT, check=False).returncode:  # noqa: S603
        sys.stderr.write("tests are red; nothing is measured\n")
        return 1
    with tempfile.TemporaryDirectory() as scratch:
        rows = measure(Path(scratch), [int(size) for size in options.sizes.split(",")])
    device = f"{platform.machine()}, {os.cpu_count()} cores, one process"
    write_results("log_audit", rows, device=device, command="make bench-audit", packages=["cryptography"])
    return 0


if __name__ == "__main__":
    sys.exit(main())
