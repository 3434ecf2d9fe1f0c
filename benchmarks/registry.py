"""What the registry costs as it grows: `make bench-registry`.

Tests of the registry first. Then a log is written in which each anchor is registered, signed by one key, and promoted, and a
database follows it to each size. `rebuild` replays all of it, with a process for each core that checks signatures. One more
log holds registrations alone, so that every event has a signature. Anchors are verified and looked up one at a time, at
random, in one process.
"""

import argparse
import os
import platform
import random
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from functools import partial
from hashlib import sha256
from pathlib import Path
from typing import Any

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from benchmarks.record import ROOT, write_results
from fieldprint.anchor import (
    AnchorArtifact,
    KindRule,
    Policy,
    Registration,
    sign_anchor,
    sign_statement,
)
from fieldprint.note import NoteSigner
from fieldprint.registry import Promotion, registration_entry
from fieldprint.registry.database import RegistryDatabase
from fieldprint.registry.watch import RegistryWatch
from fieldprint.tlog import LogReader, LogWriter
from fieldprint.verify import verify_anchor
from tests.postgres import find_programs, serve

SIZES = (1_000, 10_000, 100_000)
SIGNED_ONLY = 20_000
ASKED = 1_000
WARM = 50
NOW = datetime(2026, 11, 24, tzinfo=UTC)
OWNER, LOG = (Ed25519PrivateKey.from_private_bytes(bytes([i]) * 32) for i in (1, 2))
SIGNER = NoteSigner("benchmark/log", LOG)
POLICY = Policy(
    {"owner": OWNER.public_key().public_bytes_raw()},
    {"memory": KindRule(("owner",))},
    ("owner",),
    1,
    str(SIGNER.verifier_key),
)


def artifact(number: int) -> AnchorArtifact:
    """An anchor by number; each but the first has one parent, and every tenth begins a new line."""
    parents = () if number % 10 == 0 else (artifact_digest(number - 1),)
    return AnchorArtifact(
        name=f"anchor-{number}",
        kind="memory",
        text=f"What was learned in session {number}.",
        not_before=NOW,
        not_after=NOW + timedelta(days=300),
        parents=parents,
    )


def artifact_digest(number: int) -> str:
    """Of the anchor with this number."""
    return artifact(number).digest


def entries(first: int, stop: int, *, promoted: bool) -> Iterator[bytes]:
    """The events of these anchors."""
    root = sha256(b"root").hexdigest()
    for number in range(first, stop):
        made = Registration.of(artifact(number))
        yield registration_entry(sign_statement(made, [OWNER]))
        if promoted:
            yield Promotion(made.anchor, root, root, made.kind).to_entry()


def extend(folder: Path, first: int, stop: int, *, promoted: bool) -> None:
    """Append the events to the log, which is made if it is not there."""
    with LogWriter(folder, SIGNER, create=first == 0, max_delay=0) as log:
        waiting: list[bytes] = []
        for entry in entries(first, stop, promoted=promoted):
            waiting.append(entry)
            if len(waiting) == 4096:
                log.append(waiting)
                waiting = []
        if waiting:
            log.append(waiting)


@contextmanager
def databases(folder: Path) -> Iterator[dict[str, str]]:
    """URLs by name."""
    found = {"SQLite": str(folder / "registry.db")}
    if find_programs() is None:
        sys.stderr.write("no PostgreSQL here: it is left out\n")
        yield found
        return
    with serve(find_programs(), "needs PostgreSQL") as server:
        yield found | {"PostgreSQL": server.create_database()}


def measure(folder: Path, sizes: list[int], signed_only: int) -> list[dict[str, Any]]:
    """The rows."""
    rows: list[dict[str, Any]] = []
    with databases(folder) as urls:
        before = 0
        for size in sizes:
            extend(folder / "log", before, size, promoted=True)
            reader = LogReader(folder / "log", [POLICY.log_key])
            for name, url in urls.items():
                cell = f"{size} anchors, {name}"
                with RegistryDatabase(url, create=True) as database:
                    written, seconds = _timed(partial(database.sync, reader, POLICY))
                    rows.append(_row(cell, "sync, one process", "events/s", written / seconds))
                    rows += _rebuild(database, reader, cell)
                    rows += _ask(database, size, cell)
                with RegistryWatch(url) as watch:
                    rows += _latency(cell, "watch", lambda _: watch.poll(), list(range(ASKED)))
            before = size
        extend(folder / "signed", 0, signed_only, promoted=False)
        reader = LogReader(folder / "signed", [POLICY.log_key])
        with RegistryDatabase(str(folder / "signed.db"), create=True) as database:
            rows += _rebuild(database, reader, f"{signed_only} anchors, registered only, SQLite")
    return [*rows, _signature()]


def _rebuild(database: RegistryDatabase, reader: LogReader, cell: str) -> list[dict[str, Any]]:
    count, seconds = _timed(lambda: database.rebuild(reader, POLICY, workers=os.cpu_count() or 1))
    return [_row(cell, f"rebuild, {os.cpu_count()} processes", "events/s", count / seconds)]


def _ask(database: RegistryDatabase, size: int, cell: str) -> list[dict[str, Any]]:
    draw = random.Random(size)  # noqa: S311
    numbers = [draw.randrange(size) for _ in range(ASKED)]
    asked = [artifact(number) for number in numbers]
    signed = [sign_anchor(each, [OWNER]) for each in asked]
    digests = [each.digest for each in asked]
    names = [each.name for each in asked]
    return [
        *_latency(
            cell, "verify", lambda each: verify_anchor(each, POLICY, now=NOW, registry=database), signed
        ),
        *_latency(cell, "look-up by digest", database.anchor, digests),
        *_latency(
            cell, "look-up of the active anchor by name", lambda n: database.active("memory", n), names
        ),
        *_latency(
            cell, "look-up of all that verify needs", lambda d: database.standing(d, "memory", NOW), digests
        ),
        *_latency(cell, "ancestors", database.ancestors, digests),
    ]


def _latency(
    cell: str, metric: str, call: Callable[[Any], object], arguments: list[Any]
) -> list[dict[str, Any]]:
    times = []
    for argument in [*arguments[:WARM], *arguments]:
        times.append(_timed(partial(call, argument))[1])
    times = sorted(times[min(WARM, len(arguments)) :])
    return [
        _row(cell, f"{metric}, p{percent}", "ms", times[len(times) * percent // 100] * 1e3)
        for percent in (50, 99)
    ]


def _signature() -> dict[str, Any]:
    """What one core checks of signatures alone: the bound of a rebuild."""
    message = b"x" * 600
    signature, key = OWNER.sign(message), OWNER.public_key()
    times = [_timed(lambda: key.verify(signature, message))[1] for _ in range(5_000)]
    return _row("Ed25519", "signatures checked, one core", "1/s", 1 / statistics.median(times))


def _timed(call: Callable[[], Any]) -> tuple[Any, float]:
    started = time.perf_counter()
    result = call()
    return result, time.perf_counter() - started


def _row(cell: str, metric: str, unit: str, value: float) -> dict[str, Any]:
    sys.stderr.write(f"{cell}: {metric} {value:.4g} {unit}\n")
    return {"cell": cell, "metric": metric, "unit": unit, "ours": round(value, 4), "peers": {}, "ratio": None}


def main() -> int:
    """0 when every size was measured."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sizes", default=",".join(map(str, SIZES)), help="anchors")
    parser.add_argument("--signed-only", type=int, default=SIGNED_ONLY, help="registrations in the other log")
    options = parser.parse_args()
    tests = [sys.executable, "-m", "pytest", "-q", "-x", "tests/registry"]
    if subprocess.run(tests, cwd=ROOT, check=False).returncode:  # noqa: S603
        sys.stderr.write("tests are red; nothing is measured\n")
        return 1
    with tempfile.TemporaryDirectory() as scratch:
        rows = measure(Path(scratch), sorted(map(int, options.sizes.split(","))), options.signed_only)
    nice = f", niceness {os.nice(0)}" if os.nice(0) else ""
    write_results(
        "registry",
        rows,
        device=f"{platform.machine()}, {os.cpu_count()} cores{nice}, a machine shared with other work",
        command="make bench-registry",
        packages=["sqlalchemy", "psycopg", "cryptography"],
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
