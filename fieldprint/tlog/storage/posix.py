"""A log in a folder: files that become durable before they get their names, and names that do before they count."""

import errno
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import TypeVar

from fieldprint.errors import CapacityError, LogError
from fieldprint.tlog.storage.disk import Disk
from fieldprint.tlog.tile import max_size

T = TypeVar("T")
_OPEN_FILES = 128  # at a time; a process may have 1,024
_KNOWN_FOLDERS = 4096
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
        """The file's bytes, up to one more than its kind may have; None if there is no such file.

        Raises:
            LogError: it cannot be read, or is not a regular file.
        """
        try:
            return self._disk.read(self.path / name, max_size(name))
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
            missing = [folder for folder in self.path.parents if not self._disk.exists(folder)]
            self._sync_names(self._make([*missing, self.path]))

    def write(self, objects: Mapping[str, bytes]) -> None:
        """Write files: contents first, all synced, then their names, then the names' folders.

        Raises:
            CapacityError: the disk is full. LogError: another failure. Any of the files may then be there.
        """
        files = {self.path / name: data for name, data in objects.items()}
        folders = {target.parent for target in files}
        with self._errors():
            made = self._make({above for folder in folders for above in self._unsure(folder)})
            try:
                for some in batched(files.items(), _OPEN_FILES):
                    self._fill([(_part(target), data) for target, data in some])
                for target in files:
                    self._disk.replace(_part(target), target)
            except OSError:
                for target in files:
                    self._remove(_part(target))
                raise
            self._sync_names(made, folders)

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

    def _fill(self, parts: Sequence[tuple[Path, bytes]]) -> None:
        """Write files and sync them."""
        descriptors: list[int] = []
        try:
            for path, data in parts:
                descriptors.append(self._disk.create(path))
                left = memoryview(data)
                while left:
                    left = left[self._disk.write(descriptors[-1], left) :]
            self._disk.at_once(self._disk.sync, descriptors)
        finally:
            for descriptor in descriptors:
                self._disk.close(descriptor)

    def _unsure(self, folder: Path) -> Iterator[Path]:
        """A folder and those above it, of which it is not known that their names are durable."""
        while folder not in self._durable:
            yield folder
            if folder == self.path:
                return
            folder = folder.parent

    def _make(self, folders: Iterable[Path]) -> set[Path]:
        """Make the folders that are not there; returns all of them, whose names may not be durable yet."""
        made = set(folders)
        for folder in sorted(made):
            if not self._disk.exists(folder):
                self._disk.make_folder(folder)
        return made

    def _sync_names(self, made: set[Path], filled: Iterable[Path] = ()) -> None:
        """Make the names of folders durable, and those of the files in others."""
        self._disk.at_once(self._disk.sync_folder, sorted({folder.parent for folder in made}.union(filled)))
        if len(self._durable) > _KNOWN_FOLDERS:
            self._durable.clear()
        self._durable |= made

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


def batched(items: Iterable[T], size: int) -> Iterator[list[T]]:
    """The items, `size` at a time; `itertools.batched` is not in Python 3.11."""
    rest = iter(items)
    while some := list(islice(rest, size)):
        yield some
