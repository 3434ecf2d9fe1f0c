"""Writing a log: threads hand entries over, one thread makes batches of them and extends the history.

    folder/checkpoint             the signed note, replaced last by rename
    folder/tile/0/000.p/5         hashes
    folder/tile/entries/000.p/5   entries
    folder/.lock                  held by the writer, by flock, as long as it lives
    folder.last-signed            beside the folder: the last signed checkpoint, an SQLite file

Nothing that a published checkpoint covers is ever changed: full tiles never, partial tiles are new files.
"""

import fcntl
import os
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from types import TracebackType

from fieldprint.errors import CapacityError, FieldprintError, LogError, LogLockedError
from fieldprint.note import NoteSigner, parse_note
from fieldprint.tlog.history import Cosign, History, State
from fieldprint.tlog.last_signed import LastSigned
from fieldprint.tlog.storage import Source, Storage, open_storage
from fieldprint.tlog.tile import MAX_ENTRY_SIZE


@dataclass(frozen=True, slots=True)
class Appended:
    """Where entries are in the log, and the checkpoint that covers them."""

    first_index: int
    tree_size: int
    checkpoint: bytes


@dataclass(slots=True)
class _Batch:
    """Entries that go into the log together; `changed` shares the writer's lock."""

    changed: threading.Condition
    opened: float = 0.0
    entries: list[bytes] = field(default_factory=list)
    urgent: bool = False
    first_index: int = 0
    state: State = State.WAITING
    checkpoint: bytes = b""
    error: BaseException | None = None

    @property
    def over(self) -> bool:
        """Whether its state will not change any more."""
        return self.error is not None or self.state >= State.PUBLISHED


class Pending:
    """Entries on their way into the log."""

    __slots__ = ("_batch", "_count", "_offset")

    def __init__(self, batch: _Batch, offset: int, count: int) -> None:
        self._batch = batch
        self._offset = offset
        self._count = count

    @property
    def state(self) -> State:
        """How far they have come."""
        return self._batch.state

    def wait(self, state: State = State.PUBLISHED, timeout: float | None = None) -> Appended:
        """Where they are, once they have come to `state`; by default a published checkpoint covers them then.

        Before PUBLISHED the result says where they will be if nothing fails, with an empty checkpoint.

        Raises:
            CapacityError: the disk is full. LogError: another failure, or the witnesses were not enough for
                WITNESSED. Entries that failed are not acknowledged; they may be in the log all the same.
            TimeoutError: `timeout` seconds are over.
            ValueError: `state` is WAITING, in which entries have no index yet.
        """
        if state < State.SEQUENCED:
            raise ValueError("state must be SEQUENCED or a later one: before, entries have no index")
        batch = self._batch
        with batch.changed:
            if not batch.changed.wait_for(lambda: batch.over or batch.state >= state, timeout):
                raise TimeoutError(f"the entries are {batch.state.name.lower()} and not {state.name.lower()}")
        if batch.state < state:
            if batch.error is None:
                raise LogError(
                    "the checkpoint is published without the cosignatures that the policy asks for",
                    remedy="Ask the witnesses later; the entries are in the log",
                )
            if isinstance(batch.error, LogError | CapacityError):
                raise type(batch.error)(batch.error.what, remedy=batch.error.remedy) from batch.error
            if isinstance(batch.error, FieldprintError):
                what = f"the log cannot be extended: {batch.error.what}"
                raise LogError(what, remedy=batch.error.remedy) from batch.error
            raise LogError(
                f"the log's writer failed: {batch.error!r}", remedy="Open the log again"
            ) from batch.error
        first = batch.first_index + self._offset
        return Appended(first, batch.first_index + len(batch.entries), batch.checkpoint)


class LogWriter:
    """The one writer of a log; `origin` is the signer's name. Threads of one process may share it.

    with LogWriter(Path("log"), signer, create=True) as log:
        log.append([b"entry"])
    """

    def __init__(
        self,
        place: Path | str | Storage,
        signer: NoteSigner,
        *,
        create: bool = False,
        adopt: bool = False,
        last_signed: Path | None = None,
        max_delay: float = 0.2,
        max_entries: int = 256,
        max_waiting: int = 65_536,
        cosign: Cosign | None = None,
    ) -> None:
        """Lock the log, take up its history and start the writer's thread.

        Args:
            place: the log's folder, or the URL of an object store.
            create: begin an empty log, if there is none.
            adopt: believe the checkpoint that lies in the log, if `last_signed` knows none of it.
            last_signed: the file that remembers the last signed checkpoint. By default `FOLDER.last-signed` beside
                the folder, which is enough against a folder that was restored from an old copy. Put it on another
                disk, so that restoring one disk cannot bring both back.
            max_delay: seconds that the first entry of a batch waits for others, by a clock that never goes back.
            max_entries: a batch goes as soon as it has that many. While one is on its way the next may grow beyond.
            max_waiting: `submit` waits while that many entries do.
            cosign: asks witnesses, before a checkpoint is published.

        Raises:
            LogLockedError: another writer holds the log.
            LogError: it is not what was signed last, there is none, or it cannot be read or written.
            VerificationError, FormatError: its checkpoint is not the signer's, or malformed.
        """
        self._storage = open_storage(place) if isinstance(place, Path | str) else place
        self._signer = signer
        self._max_delay, self._max_entries, self._max_waiting = max_delay, max_entries, max_waiting
        if create:
            self._storage.create()
        self._lock, last_signed = _locked(self._storage, last_signed)
        try:
            self._record = LastSigned(last_signed)
        except BaseException:
            os.close(self._lock)
            raise
        try:
            self._history = History(
                self._storage, signer, self._record, create=create, adopt=adopt, cosign=cosign
            )
        except BaseException:
            self._record.close()
            os.close(self._lock)
            raise
        self._turn = threading.Lock()  # over the gathering batch and every batch's state
        self._wake = threading.Condition(self._turn)
        self._room = threading.Condition(self._turn)
        self._gathering = self._new_batch()
        self._closing = False
        self._failed: BaseException | None = None
        self._thread = threading.Thread(target=self._work, name="fieldprint-log-writer", daemon=True)
        self._thread.start()

    @property
    def source(self) -> Source:
        """Where the log can be read."""
        return self._storage

    @property
    def tree_size(self) -> int:
        """Entries that a published checkpoint covers."""
        return self._history.tree_size

    @property
    def checkpoint(self) -> bytes:
        """The last published checkpoint, a signed note."""
        return self._history.published[1]

    @property
    def verifier_key(self) -> str:
        """The key that readers need, as text."""
        return str(self._signer.verifier_key)

    def append(self, entries: Sequence[bytes]) -> Appended:
        """Put `entries` behind the others; returns when they are durable and a published checkpoint covers them.

        It does not wait for company: the batch goes at once, or when the one on its way is done.

        Raises:
            ValueError: an entry is longer than 65,535 bytes; nothing was appended.
            CapacityError: the disk is full. LogError: another failure of the disk. In both cases the last published
                checkpoint stays valid and the writer can be used again.
        """
        return self.submit(entries, urgent=True).wait()

    def submit(self, entries: Sequence[bytes], *, urgent: bool = False) -> Pending:
        """Hand `entries` over; they stay together and in order. Returns at once, or when there is room.

        Args:
            entries: each of at most 65,535 bytes.
            urgent: do not wait for other entries.

        Raises:
            ValueError: an entry is longer; nothing was handed over.
            LogError: the log is closed.
        """
        if any(len(entry) > MAX_ENTRY_SIZE for entry in entries):
            raise ValueError(f"an entry has more than {MAX_ENTRY_SIZE} bytes")
        with self._turn:
            while not self._closing and self._failed is None and self._full(len(entries)):
                self._room.wait()
            if self._failed is not None:
                raise LogError(
                    f"the log's writer failed: {self._failed!r}", remedy="Open the log again"
                ) from self._failed
            if self._closing:
                raise LogError("the log is closed")
            if not entries:
                return self._nothing()
            batch = self._gathering
            pending = Pending(batch, len(batch.entries), len(entries))
            if not batch.entries:
                batch.opened = time.monotonic()
            first, batch.urgent = not batch.entries, batch.urgent or urgent
            batch.entries.extend(entries)
            if first or batch.urgent or len(batch.entries) >= self._max_entries:
                self._wake.notify()
            return pending

    def _full(self, count: int) -> bool:
        waiting = len(self._gathering.entries)
        return waiting > 0 and waiting + count > self._max_waiting

    def _nothing(self) -> Pending:
        """No entries, and where they are: behind the others."""
        batch = self._new_batch()
        batch.first_index, batch.checkpoint = self._history.published
        batch.state = State.PUBLISHED
        return Pending(batch, 0, 0)

    def _new_batch(self) -> _Batch:
        return _Batch(threading.Condition(self._turn))

    def _work(self) -> None:
        """The thread: one batch after the other, until the writer closes and none is left."""
        while (batch := self._next()) is not None:
            try:
                self._history.settle()
                batch.first_index = self._history.tree_size
                self._reached(batch, State.SEQUENCED)
                self._history.extend(batch.entries, partial(self._reached, batch))
            except FieldprintError as error:
                self._fail(batch, error)
            except BaseException as error:  # a bug, or no memory: nothing more is promised
                with self._turn:
                    self._failed = error
                    left, self._gathering = self._gathering, self._new_batch()
                    self._room.notify_all()
                self._fail(batch, error)
                self._fail(left, error)
                return

    def _next(self) -> _Batch | None:
        """The gathering batch, as soon as it is due; None when the writer closes and nothing is left."""
        with self._turn:
            while True:
                batch = self._gathering
                if batch.entries:
                    left = batch.opened + self._max_delay - time.monotonic()
                    if self._closing or batch.urgent or len(batch.entries) >= self._max_entries or left <= 0:
                        self._gathering = self._new_batch()
                        self._room.notify_all()
                        return batch
                    self._wake.wait(left)
                elif self._closing:
                    return None
                else:
                    self._wake.wait()

    def _reached(self, batch: _Batch, state: State) -> None:
        with self._turn:
            if state >= State.PUBLISHED:
                batch.checkpoint = self._history.published[1]
            batch.state = state
            batch.changed.notify_all()

    def _fail(self, batch: _Batch, error: BaseException) -> None:
        with self._turn:
            batch.error = error
            batch.changed.notify_all()

    def close(self) -> None:
        """Publish what was handed over, end the thread and give the lock back."""
        with self._turn:
            first, self._closing = not self._closing, True
            self._wake.notify_all()
            self._room.notify_all()
        self._thread.join()
        if first:
            self._record.close()
            os.close(self._lock)

    def __enter__(self) -> "LogWriter":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def publish_cosigned(
    place: Path | str | Storage, note: bytes, previous: bytes, *, last_signed: Path | None = None
) -> None:
    """Put `note`, the checkpoint `previous` with more cosignatures on it, into the log under the writer's lock.

    Args:
        place: the log's folder, or the URL of an object store.
        note: what is published.
        previous: the checkpoint that must still lie there.
        last_signed: as for `LogWriter`; of a log in an object store the lock lies beside it.

    Raises:
        ValueError: `note` is another checkpoint than `previous`, or `last_signed` is needed.
        LogLockedError: a writer holds the log. LogError: another checkpoint lies there, or it cannot be written.
    """
    if parse_note(note).text != parse_note(previous).text:
        raise ValueError("note must be the checkpoint previous with other signatures")
    storage = open_storage(place) if isinstance(place, Path | str) else place
    lock, _ = _locked(storage, last_signed)
    try:
        if storage.read("checkpoint") != previous:
            raise LogError(
                f"{storage.place} has another checkpoint by now",
                remedy="Nothing was published; have the new one cosigned",
            )
        storage.publish("checkpoint", note, previous)
    finally:
        os.close(lock)


def _locked(storage: Storage, last_signed: Path | None) -> tuple[int, Path]:
    """The descriptor of the log's locked file, and the path of the record of the last checkpoint."""
    lock_file = storage.lock_file
    if last_signed is None:
        if lock_file is None:
            raise ValueError("a log in an object store needs last_signed, a file on this machine")
        folder = lock_file.absolute().parent
        last_signed = folder.with_name(folder.name + ".last-signed")
    if lock_file is not None and not lock_file.parent.exists():
        raise LogError(f"{storage.place} holds no log", remedy="Create it first: fieldprint log new")
    lock = _lock(lock_file or last_signed.with_name(last_signed.name + ".lock"), storage.place)
    return lock, last_signed


def _lock(path: Path, place: str) -> int:
    """The descriptor of the locked file; the lock ends with it, or with the process."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    except OSError as error:
        raise LogError(
            f"the log {place} cannot be written: {error.strerror}", remedy="Check the folder"
        ) from error
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(descriptor)
        raise LogLockedError(
            f"another process writes the log {place}", remedy="Let it end, or use a log of your own"
        ) from None
    return descriptor
