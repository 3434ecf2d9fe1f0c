"""Writing a log's folder: entries become durable, then covered by a signed checkpoint, then acknowledged.

    folder/checkpoint             the signed note, replaced last by rename
    folder/tile/0/000.p/5         hashes
    folder/tile/entries/000.p/5   entries
    folder/.lock                  held by the writer, by flock, as long as it lives

Nothing that a published checkpoint covers is ever changed: full tiles never, partial tiles are new files.
"""

import errno
import fcntl
import os
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

from fieldprint.errors import (
    CapacityError,
    FieldprintError,
    FormatError,
    LogError,
    LogLockedError,
    VerificationError,
)
from fieldprint.note import NoteSigner, sign_note
from fieldprint.tlog import merkle
from fieldprint.tlog.checkpoint import Checkpoint
from fieldprint.tlog.reader import LogReader
from fieldprint.tlog.tile import HEIGHT, MAX_ENTRY_SIZE, WIDTH, bundle_path, encode_bundle, tile_path


@dataclass(frozen=True, slots=True)
class Appended:
    """Where a batch is in the log, and the checkpoint that covers it."""

    first_index: int
    tree_size: int
    checkpoint: bytes


class LogWriter:
    """The one writer of a log; `origin` is the signer's name. Threads of one process may share it.

    with LogWriter(Path("log"), signer, create=True) as log:
        log.append([b"entry"])
    """

    def __init__(self, path: Path, signer: NoteSigner, *, create: bool = False) -> None:
        self.path = path
        self._signer = signer
        self._closed = True
        self._turn = threading.Lock()  # one batch at a time, and no end of the lock in the middle of one
        if not (path / "checkpoint").exists():
            if not create:
                raise LogError(f"{path} holds no log", remedy="Create it first")
            if (path / "tile").exists():
                raise LogError(
                    f"{path} holds tiles and no checkpoint; a new log here would be a second history",
                    remedy="Restore the checkpoint, or choose an empty folder",
                )
        with _disk_errors(path):
            if not path.exists():
                path.mkdir(parents=True)
                _sync_folder(path.absolute().parent)
            self._lock = os.open(path / ".lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            os.close(self._lock)
            raise LogLockedError(
                f"another process writes the log {path}", remedy="Let it end, or use a log of your own"
            ) from None
        self._closed = False
        try:
            self._open()
        except BaseException:
            self.close()
            raise

    def _open(self) -> None:
        """Take up the tree where the checkpoint left it, or publish an empty one."""
        self._tail: list[bytes] = []  # entries of the last, partial bundle
        self._levels: list[list[bytes]] = [[]]  # hashes of the last, partial tile of each level
        self._size = 0
        if not (self.path / "checkpoint").exists():
            self._publish(0, [], [[]])
            return
        reader = LogReader(self.path, [self._signer.verifier_key])
        checkpoint = reader.checkpoint()
        if checkpoint.origin != self._signer.name:
            raise VerificationError(2, f"the log is of {checkpoint.origin}, the key of {self._signer.name}")
        self._size = checkpoint.tree_size
        self._signed = reader.signed_checkpoint()
        try:
            self._levels = [list(hashes) for hashes in reader.edge()] or [[]]
            self._tail = list(reader.entries(self._size // WIDTH * WIDTH))
        except FormatError as error:
            raise LogError(error.what, remedy="Restore the log's folder") from error

    @property
    def tree_size(self) -> int:
        """Entries that a published checkpoint covers."""
        return self._size

    @property
    def checkpoint(self) -> bytes:
        """The last published checkpoint, a signed note."""
        return self._signed

    @property
    def verifier_key(self) -> str:
        """The key that readers need, as text."""
        return str(self._signer.verifier_key)

    def append(self, entries: Sequence[bytes]) -> Appended:
        """Put `entries` behind the others; returns when they are durable and a published checkpoint covers them.

        Raises:
            ValueError: an entry is longer than 65,535 bytes; nothing was appended.
            CapacityError: the disk is full. LogError: another failure of the disk. In both cases the last published
                checkpoint stays valid and the writer can be used again.
        """
        with self._turn:
            return self._append(entries)

    def _append(self, entries: Sequence[bytes]) -> Appended:
        if self._closed:
            raise LogError("the log is closed")
        if any(len(entry) > MAX_ENTRY_SIZE for entry in entries):
            raise ValueError(f"an entry has more than {MAX_ENTRY_SIZE} bytes")
        if not entries:
            return Appended(self._size, self._size, self._signed)
        first = self._size
        tail, levels = list(self._tail), [list(level) for level in self._levels]
        with _disk_errors(self.path):
            written = self._write_tiles(entries, tail, levels)
            folders = {
                folder for path in written for folder in path.parents if folder.is_relative_to(self.path)
            }
            for folder in sorted(folders):
                _sync_folder(folder)
        self._publish(first + len(entries), tail, levels)
        return Appended(first, self._size, self._signed)

    def _write_tiles(
        self, entries: Sequence[bytes], tail: list[bytes], levels: list[list[bytes]]
    ) -> list[Path]:
        """Write the bundles and tiles that `entries` complete or begin; `tail` and `levels` become the new edge."""
        files: dict[str, bytes] = {}
        size = self._size
        for entry in entries:
            tail.append(entry)
            size += 1
            if len(tail) == WIDTH:
                files[bundle_path(size // WIDTH - 1)] = encode_bundle(tail)
                tail.clear()
            level, value, count = 0, merkle.leaf_hash(entry), size
            while True:
                if level == len(levels):
                    levels.append([])
                levels[level].append(value)
                if len(levels[level]) < WIDTH:
                    break
                files[tile_path(level, count // WIDTH - 1)] = b"".join(levels[level])
                value = merkle.fold(levels[level])
                levels[level] = []
                level, count = level + 1, count // WIDTH
        if tail:
            files[bundle_path(size // WIDTH, len(tail))] = encode_bundle(tail)
        for level, hashes in enumerate(levels):
            if hashes:
                files[tile_path(level, (size >> (HEIGHT * level)) // WIDTH, len(hashes))] = b"".join(hashes)
        return [_write(self.path / name, data) for name, data in files.items()]

    def _publish(self, size: int, tail: list[bytes], levels: list[list[bytes]]) -> None:
        root = merkle.edge_root(levels)
        signed = sign_note(Checkpoint(self._signer.name, size, root).to_text(), [self._signer])
        with _disk_errors(self.path):
            _write(self.path / "checkpoint", signed)
        # From here on the checkpoint can be read, even if the folder's sync fails: the next batch goes behind it.
        self._size, self._signed, self._tail, self._levels = size, signed, tail, levels
        with _disk_errors(self.path):
            _sync_folder(self.path)

    def close(self) -> None:
        """Give the lock back, once the batch in hand is done."""
        with self._turn:
            if not self._closed:
                self._closed = True
                os.close(self._lock)

    def __enter__(self) -> "LogWriter":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


class _disk_errors:  # noqa: N801  reads as a phrase where it is used
    """Turns OSError into CapacityError (no room) or LogError."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __enter__(self) -> None:
        return None

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if not isinstance(error, OSError):
            return
        full = error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
        raised: type[FieldprintError] = CapacityError if full else LogError
        raise raised(
            f"the log {self.path} cannot be written: {error.strerror}",
            remedy="Free disk space; what was acknowledged is still there" if full else "Check the folder",
        ) from error


def _write(path: Path, data: bytes) -> Path:
    """Write a file whole or not at all, durable before it gets its name."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(path.name + ".part")
    descriptor = os.open(part, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o644)
    try:
        left = memoryview(data)
        while left:
            left = left[os.write(descriptor, left) :]
        os.fsync(descriptor)
    except BaseException:
        os.close(descriptor)
        part.unlink(missing_ok=True)
        raise
    os.close(descriptor)
    os.replace(part, path)
    return path


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
