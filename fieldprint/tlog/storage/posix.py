"""A log in a folder: files that become durable before they get their names, and names that do before they count."""

import errno
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from fieldprint.errors import CapacityError, LogError
from fieldprint.tlog.storage.disk import Disk

_NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


class PosixStorage:
    """The folder `path`. Its writer holds `.lock` in it by flock."""

    def __init__(self, path: Path, disk: Disk | None = None) -> None:
        self.path = path
        self._disk = Disk() if disk is None else disk
        self._durable: set[Path] = set()  # folders whose own names this object made durable

    @property
    def place(self) -> str:
        """The folder."""
        return str(self.path)

    @property
    def lock_file(self) -> Path:
        """`.lock` in the folder."""
        return self.path / ".lock"

    def read(self, name: str) -> bytes | None:
        """The file's bytes; None if there is no such file.

        Raises:
            LogError: it cannot be read.
        """
        try:
            return self._disk.read(self.path / name)
        except OSError as error:
            raise LogError(
                f"{self.path / name} cannot be read: {error.strerror}",
                remedy="Is this the folder of a log?",
            ) from error

    def names(self, prefix: str) -> Iterator[str]:
        """The names of the files below the folder `prefix`, which ends in a slash."""
        for path in self._disk.files(self.path / prefix):
            yield path.relative_to(self.path).as_posix()

    def create(self) -> None:
        """Make the folder and those above it, if they are not there; durable on return."""
        with self._errors():
            self._make_durable(self.path)

    def write(self, objects: Mapping[str, bytes]) -> None:
        """Write files: contents first, all synced, then their names, then the names' folders.

        Raises:
            CapacityError: the disk is full. LogError: another failure. Any of the files may then be there.
        """
        targets = [self.path / name for name in objects]
        folders = {target.parent for target in targets}
        with self._errors():
            for folder in sorted(folders):
                self._make_durable(folder)
            parts = [_part(target) for target in targets]
            try:
                for part, data in zip(parts, objects.values(), strict=True):
                    self._fill(part, data)
                for part, target in zip(parts, targets, strict=True):
                    self._disk.replace(part, target)
            except OSError:
                for part in parts:
                    self._remove(part)
                raise
            for folder in sorted(folders):
                self._disk.sync_folder(folder)

    def publish(self, name: str, data: bytes, previous: bytes | None) -> None:
        """Replace the file `previous` (None: no file) by `data` with a rename; durable on return.

        Raises:
            LogError: it holds something else than `previous`, or cannot be written. CapacityError: the disk is full.
        """
        if self.read(name) != previous:
            raise LogError(
                f"{self.path / name} was changed by somebody else",
                remedy="Nothing but the log's writer may write there",
            )
        self.write({name: data})

    def _fill(self, path: Path, data: bytes) -> None:
        descriptor = self._disk.create(path)
        try:
            left = memoryview(data)
            while left:
                left = left[self._disk.write(descriptor, left) :]
            self._disk.sync(descriptor)
        finally:
            self._disk.close(descriptor)

    def _make_durable(self, folder: Path) -> None:
        """Make a folder, and sync its name and those above it: one that is there may not be durable yet."""
        if folder in self._durable:
            return
        parent = folder.parent
        if folder == self.path:
            self._make_above(parent)
        else:
            self._make_durable(parent)
        if not self._disk.exists(folder):
            self._disk.make_folder(folder)
        self._disk.sync_folder(parent)
        self._durable.add(folder)

    def _make_above(self, folder: Path) -> None:
        """Make the folders above the log's, and sync the names of those that were not there."""
        if not self._disk.exists(folder):
            self._make_above(folder.parent)
            self._disk.make_folder(folder)
            self._disk.sync_folder(folder.parent)

    def _remove(self, path: Path) -> None:
        """Remove a file if that works; another error is on its way already."""
        try:
            self._disk.remove(path)
        except OSError:
            return

    @contextmanager
    def _errors(self) -> Iterator[None]:
        """Turn OSError into CapacityError (no room) or LogError."""
        try:
            yield
        except OSError as error:
            what = f"the log {self.path} cannot be written: {error.strerror}"
            if error.errno in _NO_ROOM:
                remedy = "Free disk space; what was acknowledged is still there"
                raise CapacityError(what, remedy=remedy) from error
            raise LogError(what, remedy="Check the folder") from error


def _part(path: Path) -> Path:
    """Where a file's content lies until it is whole."""
    return path.with_name(path.name + ".part")
