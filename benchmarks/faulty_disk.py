"""A file system in memory that fails on purpose: at one call, and in what it keeps when the power goes.

It knows what POSIX promises and nothing more: content survives a power failure if its file was synced, a name if its
folder was. Of what was not synced each piece survives, or is lost, or is torn, as chance has it. That is worse than any
real file system, and so a writer that passes here relies on none.
"""

import errno
import os
import random
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

from fieldprint.tlog.storage.disk import Disk

T = TypeVar("T")
KINDS = ("kill before", "kill after", "torn", "short", "error", "error after", "full")


class Killed(BaseException):
    """The process ends here."""


@dataclass(frozen=True, slots=True)
class Fault:
    """What happens at the call with the number `at`."""

    at: int
    kind: str


@dataclass(slots=True)
class _File:
    content: bytes = b""
    synced: bytes = b""


@dataclass
class FaultyDisk(Disk):
    """Folders and files by path; a folder is None. Calls that change something are counted and may fail."""

    names: dict[Path, _File | None] = field(default_factory=lambda: {Path("/"): None})
    synced: dict[Path, _File | None] = field(default_factory=lambda: {Path("/"): None})
    open: dict[int, _File] = field(default_factory=dict)
    fault: Fault | None = None
    calls: int = 0
    dead: bool = False

    def call(self, effect: Callable[[], None], torn: Callable[[], None] | None = None) -> None:
        """Count a call, and let `effect` happen, or a part of it, or not."""
        if self.dead:  # a dead process does nothing more, not even in its `finally`
            raise Killed
        number, self.calls = self.calls, self.calls + 1
        if self.fault is None or self.fault.at != number:
            effect()
            return
        kind = self.fault.kind
        if kind in ("kill after", "error after"):
            effect()
        elif kind in ("torn", "short") and torn is not None:
            torn()
        if kind == "short":
            if torn is None:
                effect()
            return
        if kind.startswith("error"):
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        if kind == "full":
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        self.dead = True
        raise Killed

    def read(self, path: Path, limit: int) -> bytes | None:
        """The file's bytes, at most one more than `limit`; None if there is no file."""
        file = self.names.get(path)
        return None if file is None else file.content[: limit + 1]

    def exists(self, path: Path) -> bool:
        """Whether there is a file or folder."""
        return path in self.names

    def files(self, folder: Path) -> Iterator[Path]:
        """The files at any depth below a folder."""
        return iter([p for p, file in self.names.items() if file is not None and p.is_relative_to(folder)])

    def make_folder(self, path: Path) -> None:
        """Make one folder."""
        self._parent(path)
        self.call(lambda: self.names.setdefault(path, None))

    def create(self, path: Path) -> int:
        """The descriptor of a new, empty file."""
        self._parent(path)
        file = _File()

        def effect() -> None:
            self.names[path] = file
            self.open[id(file)] = file

        self.call(effect)
        return id(file)

    def write(self, descriptor: int, data: memoryview) -> int:
        """How many of the bytes were written."""
        file, before = self.open[descriptor], self.open[descriptor].content

        def put(count: int) -> None:
            file.content = before + bytes(data[:count])

        self.call(lambda: put(len(data)), lambda: put(len(data) // 2 or 1))
        return len(file.content) - len(before)

    def sync(self, descriptor: int) -> None:
        """Make a file's content durable."""
        file = self.open[descriptor]

        def effect() -> None:
            file.synced = file.content

        self.call(effect)

    def close(self, descriptor: int) -> None:
        """Close a descriptor."""
        self.call(lambda: self.open.pop(descriptor, None))

    def replace(self, path: Path, target: Path) -> None:
        """Give a file another name."""
        self.call(lambda: self.names.update({target: self.names.pop(path)}))

    def remove(self, path: Path) -> None:
        """Remove a file, if it is there."""
        self.call(lambda: self.names.pop(path, None))

    def sync_folder(self, path: Path) -> None:
        """Make the names in a folder durable."""
        if path not in self.names:
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(path))

        def effect() -> None:
            for name in [n for n in self.synced if n.parent == path and n not in self.names]:
                del self.synced[name]
            self.synced.update({n: file for n, file in self.names.items() if n.parent == path})

        self.call(effect)

    def at_once(self, call: Callable[[T], None], arguments: Iterable[T]) -> None:
        """Call for every argument, one after the other, so that a call has a number."""
        for argument in arguments:
            call(argument)

    def _parent(self, path: Path) -> None:
        if path.parent not in self.names:
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(path))

    def copy(self) -> "FaultyDisk":
        """The same disk, without faults, no file open."""
        twins = {
            id(f): _File(f.content, f.synced) for f in (*self.names.values(), *self.synced.values()) if f
        }

        def twin(names: dict[Path, _File | None]) -> dict[Path, _File | None]:
            return {path: None if file is None else twins[id(file)] for path, file in names.items()}

        return FaultyDisk(twin(self.names), twin(self.synced))

    def after_power_failure(self, chance: random.Random) -> "FaultyDisk":
        """What is there when the power comes back."""
        contents: dict[int, bytes] = {}
        names: dict[Path, _File | None] = {}
        for path in sorted({*self.names, *self.synced}):
            there = [names_[path] for names_ in (self.names, self.synced) if path in names_]
            if len(there) == 2 and there[0] is there[1]:
                file = there[0]
            else:
                pick = chance.choice(["new", "old"])
                source = self.names if pick == "new" else self.synced
                if path not in source:
                    continue
                file = source[path]
            if path != Path("/") and path.parent not in names:
                continue  # its folder is lost
            if file is not None and id(file) not in contents:
                contents[id(file)] = _survives(file, chance)
            names[path] = None if file is None else _File(contents[id(file)], contents[id(file)])
        return FaultyDisk(names, dict(names))


def _survives(file: _File, chance: random.Random) -> bytes:
    if file.content == file.synced:
        return file.content
    torn = file.content[: chance.randrange(len(file.content) + 1)]
    return chance.choice([file.synced, file.content, torn, bytes(len(file.content)), torn + bytes(7)])
