"""A real log with switches: it refuses, hangs, forks and lies when it is told to, and is honest again after.

    log.refuse(2)        the disk has no room for the next two batches (ENOSPC, in the writer's thread)
    log.hang()           the disk does not answer until `log.release()`; hang(0.5): or for half a second
    log.fork()           the next answer comes from another history, signed by the same key
    log.lie("old")       the next answer is a lie; LIES names them all

Faults of the disk happen in the disk and take the writer's own way out. The others are in the answer, that of `append` and
of `submit(...).wait()`. While it hangs nothing is lost: the entries are in the log after all when it goes on.
"""

import errno
import os
import threading
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from fieldprint.note import NoteSigner, parse_note, sign_note
from fieldprint.tlog import Appended, LogWriter, Pending, PosixStorage, Source, State
from fieldprint.tlog.storage.disk import Disk


class FaultyDisk(Disk):
    """The machine's disk, which refuses or waits before it creates a file."""

    def __init__(self) -> None:
        self.refusals = 0
        self.limit: float | None = None
        self.go_on = threading.Event()
        self.go_on.set()

    def create(self, path: Path) -> int:
        self.go_on.wait(self.limit)
        self.go_on.set()
        if self.refusals:
            self.refusals -= 1
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return super().create(path)


class _Lie(Pending):
    """An answer that is changed on its way."""

    __slots__ = ("_change", "_honest")

    def __init__(self, honest: Pending, change: Callable[[Appended], Appended]) -> None:
        self._honest = honest
        self._change = change

    @property
    def state(self) -> State:
        return self._honest.state

    def wait(self, state: State = State.PUBLISHED, timeout: float | None = None) -> Appended:
        return self._change(self._honest.wait(state, timeout))


class _Shown:
    """What readers see: the log, or for as long as it is told to the other history."""

    def __init__(self, storage: Source) -> None:
        self.honest, self.now = storage, storage

    @property
    def place(self) -> str:
        return self.honest.place

    def read(self, name: str) -> bytes | None:
        return self.now.read(name)


class FaultyLog(LogWriter):
    """A log in the folder `path`; its other history, once there is one, lies in `path.fork`."""

    def __init__(self, path: Path, signer: NoteSigner) -> None:
        self.disk = FaultyDisk()
        self.path = path
        self._others: LogWriter | None = None
        self._forks = self._lies = 0
        self._show_fork = False
        self._kind = ""
        self._first_checkpoint = b""
        super().__init__(PosixStorage(path, self.disk), signer, create=True)
        self._shown = _Shown(self._storage)
        self._first_checkpoint = self.checkpoint

    @property
    def source(self) -> Source:
        return self._shown

    def refuse(self, count: int = 1) -> None:
        """Have no room for the next `count` batches."""
        self.disk.refusals = count

    def hang(self, seconds: float | None = None) -> None:
        """Stop at the next batch, until `release` or for some seconds."""
        self.disk.limit = seconds
        self.disk.go_on.clear()

    def release(self) -> None:
        """Go on; a log that is closed goes on by itself."""
        self.disk.go_on.set()

    def fork(self, count: int = 1, *, shown: bool = True) -> None:
        """Put the next `count` appends into another history and answer from it; `shown`: readers are given it, too."""
        self._forks, self._show_fork = count, shown

    def lie(self, kind: str, count: int = 1) -> None:
        """Answer the next `count` appends with a lie of LIES."""
        if kind not in LIES:
            raise ValueError(f"kind must be one of {', '.join(LIES)}, not {kind!r}")
        self._kind, self._lies = kind, count

    def submit(self, entries: Sequence[bytes], *, urgent: bool = False) -> Pending:
        if self._forks:
            self._forks -= 1
            other = self._other_history()
            other.append([b"only in the other history"])
            self._shown.now = other.source if self._show_fork else self._shown.honest
            return other.submit(entries, urgent=urgent)
        self._shown.now = self._shown.honest
        if not self._lies:
            return super().submit(entries, urgent=urgent)
        self._lies -= 1
        lie, kind = LIES[self._kind], self._kind
        if kind == "dropped":  # something else is there in place of ours
            entries = [b"instead of " + entry[:100] for entry in entries]
        elif kind == "never written":
            entries = []
        return _Lie(super().submit(entries, urgent=urgent), lambda honest: lie(self, honest))

    def _other_history(self) -> LogWriter:
        """A log of the same key, at least as long as this one, that has another entry in front."""
        if self._others is None:
            place = self.path.with_name(self.path.name + ".fork")
            self._others = LogWriter(place, self._signer, create=True)
        missing = max(1, self.tree_size - self._others.tree_size)
        self._others.append([b"another entry"] * missing)
        return self._others

    def close(self) -> None:
        self.release()
        super().close()
        if self._others is not None:
            self._others.close()


def _signed_by(signer: NoteSigner, honest: Appended) -> Appended:
    return replace(honest, checkpoint=sign_note(parse_note(honest.checkpoint).text, [signer]))


def _other_key(log: FaultyLog, honest: Appended) -> Appended:
    return _signed_by(NoteSigner(log._signer.name, Ed25519PrivateKey.generate()), honest)


def _other_origin(log: FaultyLog, honest: Appended) -> Appended:
    """The log's own key signs a checkpoint of another log."""
    rest = parse_note(honest.checkpoint).text.partition("\n")[2]
    return replace(honest, checkpoint=sign_note(f"elsewhere.example/log\n{rest}", [log._signer]))


def _other_root(log: FaultyLog, honest: Appended) -> Appended:
    """The log's key signs a root that nothing has."""
    origin, size, _, *_ = parse_note(honest.checkpoint).text.split("\n")
    text = f"{origin}\n{size}\n{'A' * 43}=\n"
    return replace(honest, checkpoint=sign_note(text, [log._signer]))


def _broken_signature(log: FaultyLog, honest: Appended) -> Appended:
    """One bit of the signature is another."""
    text, space, line = honest.checkpoint.rpartition(b" ")
    changed = b"A" if line[40:41] != b"A" else b"B"
    return replace(honest, checkpoint=text + space + line[:40] + changed + line[41:])


LIES: dict[str, Callable[[FaultyLog, Appended], Appended]] = {
    "index before": lambda log, honest: replace(honest, first_index=honest.first_index - 1),
    "index behind": lambda log, honest: replace(honest, first_index=honest.first_index + 1),
    "negative index": lambda log, honest: replace(honest, first_index=-1),
    "size": lambda log, honest: replace(honest, tree_size=honest.tree_size + 1),
    "old": lambda log, honest: replace(honest, checkpoint=log._first_checkpoint),
    "unsigned": lambda log, honest: replace(
        honest, checkpoint=parse_note(honest.checkpoint).text.encode() + b"\n"
    ),
    "broken signature": _broken_signature,
    "other key": _other_key,
    "other origin": _other_origin,
    "other root": _other_root,
    "truncated": lambda log, honest: replace(honest, checkpoint=honest.checkpoint[:-20]),
    "garbage": lambda log, honest: replace(honest, checkpoint=b"\xff\x00" * 40),
    "empty": lambda log, honest: replace(honest, checkpoint=b""),
    "dropped": lambda log, honest: honest,
    "never written": lambda log, honest: honest,
}
"""What `lie` can be told; "dropped" writes other entries in the place of ours, "never written" none."""
