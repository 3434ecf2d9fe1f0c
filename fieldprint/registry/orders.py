"""Orders in a file: overrides and lifts that hold although no log and no database can be reached.

    {"envelope":"<base64 of the signed override>","type":"override","v":1}
    {"envelope":"<base64 of the signed lift>","type":"lift","v":1}

One log entry a line, in the order in which they were given, replayed like a log's. An engine looks at the file at every step
boundary. A file that cannot be believed whole is an order to stop: who may write it could stop the engine anyway, and an order
that was damaged must not be passed over.
"""

import fcntl
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from fieldprint.anchor.policy import Policy
from fieldprint.anchor.statements import Override
from fieldprint.errors import FieldprintError
from fieldprint.registry.append import believe_event
from fieldprint.registry.events import EventError, event_type
from fieldprint.registry.state import Registry
from fieldprint.tlog.reader import LogReader
from fieldprint.tlog.storage.disk import replace_file
from fieldprint.tlog.writer import LogWriter

MAX_FILE_SIZE = 1 << 20
ORDERS = ("override", "lift")
PATIENCE = 2.0  # seconds for which a writer waits for another one


@dataclass(slots=True)
class OrdersFile:
    """The orders in a file, read again whenever it has changed.

    Args:
        path: of the file; one that is not there holds no orders.
        policy: whose [override] signers are believed.
    """

    path: Path
    policy: Policy
    _seen: tuple[int, ...] | None = None
    _registry: Registry = field(init=False)
    _broken: str | None = None

    def __post_init__(self) -> None:
        self._registry = Registry(self.policy)
        self.changed()

    def changed(self) -> bool:
        """Whether the file is another than when this was last asked; then its orders were read again."""
        seen = self._stamp()
        if seen == self._seen:
            return False
        self._seen = seen
        try:
            self._registry, self._broken = replayed(self._read(), self.policy), None
        except (FieldprintError, OSError) as error:
            self._broken = f"{self.path}: {error}"
        return True

    @property
    def broken(self) -> str | None:
        """Why the file cannot be believed, or None."""
        return self._broken

    @property
    def in_force(self) -> list[Override]:
        """The overrides that were not lifted, expired ones among them."""
        return list(self._registry.overrides.values())

    @property
    def last_number(self) -> int:
        """The number of the last override in the file, lifted or not; 0 before the first."""
        return self._registry.last_number

    def entries(self) -> list[bytes]:
        """The file's log entries, in order.

        Raises:
            FieldprintError: the file cannot be believed. OSError: it cannot be read.
        """
        lines = self._read().splitlines()
        replayed(b"\n".join(lines), self.policy)
        return lines

    def check(self, entry: bytes) -> bytes:
        """The file's content with an order behind the others, which is believed there.

        Raises:
            EventError: it is not, or the file would be too large to be believed. FieldprintError: the file holds what cannot
                be believed. OSError: it cannot be read.
        """
        data = b"\n".join([*self.entries(), entry]) + b"\n"
        if len(data) > MAX_FILE_SIZE:
            raise EventError(
                "malformed",
                f"{self.path} would have more than {MAX_FILE_SIZE} bytes",
                remedy="Append its orders to the log (override record), and begin a new file",
            )
        replayed(data, self.policy)
        return data

    def append(self, entry: bytes) -> None:
        """Add an order behind the others, by one rename; two writers do not lose each other's.

        Raises:
            EventError, FieldprintError: as `check`; the file is as it was. OSError: it cannot be written.
        """
        with _turn(self.path.absolute().parent):
            replace_file(self.path, self.check(entry))
        self.changed()

    def _stamp(self) -> tuple[int, ...]:
        """With the time of the last change, which no program sets: a rewritten file can be given back the others."""
        try:
            found = os.stat(self.path)
        except FileNotFoundError:
            return ()
        except OSError:
            return (-1,)
        return (found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns)

    def _read(self) -> bytes:
        try:
            with self.path.open("rb") as file:
                data = file.read(MAX_FILE_SIZE + 1)
        except FileNotFoundError:
            return b""
        if len(data) > MAX_FILE_SIZE:
            raise EventError("malformed", f"it has more than {MAX_FILE_SIZE} bytes")
        return data


@contextmanager
def _turn(folder: Path) -> Iterator[None]:
    """Hold the folder's lock, or go on without it after a while: an order must not wait for whoever keeps it."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_CLOEXEC)
    try:
        end = time.monotonic() + PATIENCE
        while not _locked(descriptor) and time.monotonic() < end:
            time.sleep(0.01)
        yield
    finally:
        os.close(descriptor)


def _locked(descriptor: int) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return True
    except OSError:
        return False


def replayed(data: bytes, policy: Policy) -> Registry:
    """The registry after the orders in `data`, one a line.

    Raises:
        EventError: a line is no order, or is not believed.
    """
    registry = Registry(policy)
    for index, line in enumerate(data.splitlines()):
        kind = event_type(line)
        if kind not in ORDERS:
            raise EventError("malformed", f"line {index + 1} is no override and no lift")
        if registry.apply(index, line) is None:
            refused = registry.refused[-1]
            raise EventError(refused.why, f"line {index + 1} is refused ({refused.why}): {refused.what}")
    return registry


@dataclass(frozen=True, slots=True)
class Recorded:
    """What became of the file's orders in a log.

    registry: what the log gives with them. indices: of those that were appended. refused: why it does not believe others.
    """

    registry: Registry
    indices: tuple[int, ...] = ()
    refused: tuple[str, ...] = ()


def record_orders(orders: OrdersFile, log: LogWriter, policy: Policy) -> Recorded:
    """Append the file's orders that the log does not have.

    A log may refuse an order that the file holds for good: its number is below one that another file brought before.

    Raises:
        FieldprintError: the file cannot be believed. LogError: the log cannot be read or written.
    """
    registry, known = Registry(policy), set()
    for index, entry in enumerate(LogReader(log.source, [policy.log_key]).entries()):
        registry.apply(index, entry)
        if event_type(entry) in ORDERS:
            known.add(entry)
    new, refused = [], []
    for entry in orders.entries():
        if entry in known:
            continue
        try:
            believe_event(registry, entry)
            new.append(entry)
        except EventError as error:
            refused.append(f"the log refuses an order: {error.what}")
    first = log.append(new).first_index if new else 0
    return Recorded(registry, tuple(range(first, first + len(new))), tuple(refused))
