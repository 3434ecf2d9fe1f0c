"""The crash campaign: kill the log's writer at every call, and count what is lost. Nothing may be.

    python -m benchmarks.crash_log --kills 2000

1. *Simulated*: every call that changes the disk or the record of the last checkpoint, in turn, is the last one of the
   process, or fails, or finds the disk full, or is torn; then the process ends or the power goes, which keeps of all
   that was not synced what chance has it (`faulty_disk.py`).
2. *Real*: child processes on the real disk end by SIGKILL at each such call in turn and at random times; wall clocks run
   backwards in some, and some start as two writers at once.

After each: the log opens again, every acknowledged entry is there, every checkpoint that was ever signed and recorded
is of the history that is there, and the log can be extended.
"""

import argparse
import os
import random
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import closing, suppress
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path
from typing import Any

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from benchmarks.faulty_disk import KINDS, Fault, FaultyDisk, Killed
from benchmarks.record import write_results
from fieldprint.errors import CapacityError, FieldprintError, LogError, LogLockedError
from fieldprint.note import NoteSigner
from fieldprint.tlog import Checkpoint, LogReader, LogWriter, PosixStorage
from fieldprint.tlog.history import History
from fieldprint.tlog.last_signed import LastSigned
from fieldprint.tlog.storage.disk import Disk

SIGNER = NoteSigner("fieldprint.example/log", Ed25519PrivateKey.from_private_bytes(bytes([1]) * 32))
KEYS = [SIGNER.verifier_key]
LOG = str(SIGNER.verifier_key)
FOLDER = Path("/disk/log")
# (entries before, batches): a new log, a partial bundle, borders of bundles and tiles, a second level
SCENES = ((None, (2,)), (0, (1, 3)), (3, (2, 2)), (250, (3, 5, 300)), (255, (1, 1)), (510, (2, 1)))
POWER_FAILURES = 2  # different survivors of each


class BrokenPromiseError(AssertionError):
    """The writer broke its promise."""


def checkpoint_of(note: bytes) -> Checkpoint:
    """The checkpoint in a note, signature not verified."""
    return Checkpoint.from_text(note.decode().partition("\n\n")[0] + "\n")


@dataclass
class Witnessed:
    """What strangers saw of a log: acknowledged entries by index, and recorded checkpoints."""

    acknowledged: dict[int, bytes] = field(default_factory=dict)
    shown: list[bytes] = field(default_factory=list)

    def compare(self, storage: Any, *, where: str) -> int:
        """The size of the log that lies there, if it agrees with all that was seen.

        Raises:
            BrokenPromiseError: it does not.
        """
        try:
            reader = LogReader(storage, KEYS)
            entries = list(reader.entries())
            for index, entry in self.acknowledged.items():
                if index >= len(entries) or entries[index] != entry:
                    raise BrokenPromiseError(f"{where}: acknowledged entry {index} is lost")
            for note in self.shown:
                seen = checkpoint_of(note)
                if seen.tree_size > len(entries) or reader.root_hash(seen.tree_size) != seen.root_hash:
                    raise BrokenPromiseError(
                        f"{where}: a checkpoint of {seen.tree_size} entries is contradicted"
                    )
        except FieldprintError as error:
            raise BrokenPromiseError(f"{where}: the log cannot be read: {error}") from error
        return len(entries)


class FaultyRecord(LastSigned):
    """A real record whose swaps are calls of the faulty disk. What was swapped in counts as shown to everybody."""

    disk: FaultyDisk
    shown: list[bytes]

    def reset(self, signed: bytes | None) -> None:
        """Make it hold `signed`."""
        self._database.execute("PRAGMA synchronous = OFF")
        self._database.execute("DELETE FROM last_signed")
        if signed is not None:
            self._database.execute("INSERT INTO last_signed VALUES (?, ?)", (LOG, signed))

    def swap(self, log: str, previous: bytes | None, signed: bytes) -> None:
        """Replace `previous` by `signed`, or fail."""
        swap = super().swap

        def effect() -> None:
            swap(log, previous, signed)
            self.shown.append(signed)

        try:
            self.disk.call(effect)
        except OSError as error:
            full = error.errno == 28
            raise (CapacityError if full else LogError)("the record cannot be written") from error


@dataclass
class World:
    """A disk and a record in the state before a scene, and what was seen until then."""

    disk: FaultyDisk
    recorded: bytes | None
    seen: Witnessed


def prepare(record: FaultyRecord, size: int | None) -> World:
    """A log of `size` entries, or no log."""
    world = World(FaultyDisk(), None, Witnessed())
    world.disk.names[FOLDER.parent] = world.disk.synced[FOLDER.parent] = None
    if size is not None:
        record.disk, record.shown = world.disk, world.seen.shown
        record.reset(None)
        play(world.disk, record, world.seen, (size,) if size else ())
        world.recorded = record.read(LOG)
    world.disk.calls = 0
    return world


def play(disk: FaultyDisk, record: FaultyRecord, seen: Witnessed, batches: Sequence[int]) -> None:
    """Open the log and append batches; a failed one is followed by another, with other entries."""
    storage = PosixStorage(FOLDER, disk)
    for attempt in range(3):
        with suppress(FieldprintError):
            storage.create()
            history = History(storage, SIGNER, record, create=True)
            break
        if attempt == 2:
            raise BrokenPromiseError("one failure keeps the log from being opened twice")
    for number, size in enumerate(batches):
        for attempt in range(3):
            entries = [b"%d/%d/%d" % (number, attempt, i) for i in range(size)]
            try:
                history.settle()
                first = history.tree_size
                history.extend(entries, lambda _: None)
            except FieldprintError:
                if attempt == 2:
                    raise BrokenPromiseError("one failure keeps three batches from being appended") from None
                continue
            seen.acknowledged.update({first + i: entry for i, entry in enumerate(entries)})
            break


def simulate(record: FaultyRecord, world: World, batches: Sequence[int], fault: Fault, where: str) -> int:
    """Play the scene with the fault, end the process or the power, and look; returns how often it died."""
    disk = world.disk.copy()
    disk.fault = fault
    seen = Witnessed(dict(world.seen.acknowledged), list(world.seen.shown))
    record.disk, record.shown = disk, seen.shown
    record.reset(world.recorded)
    killed = False
    try:
        play(disk, record, seen, batches)
    except Killed:
        killed = True
    recorded = record.read(LOG)
    survivors = [disk.copy()]
    for number in range(POWER_FAILURES):
        survivors.append(disk.after_power_failure(random.Random(f"{where} {fault} {number}")))  # noqa: S311
    for index, survivor in enumerate(survivors):
        look(record, survivor, recorded, seen, f"{where}, {fault}, survivor {index}")
    return int(killed) + POWER_FAILURES


def look(record: FaultyRecord, disk: FaultyDisk, recorded: bytes | None, seen: Witnessed, where: str) -> None:
    """Read what lies there, open the log again, extend it twice, the second time from a fresh start."""
    record.reset(recorded)
    seen = Witnessed(dict(seen.acknowledged), list(seen.shown))
    record.disk, record.shown = disk, seen.shown
    storage = PosixStorage(FOLDER, disk)
    try:
        lying = storage.read("checkpoint")
        if lying is not None:  # readers need no recovery
            size = checkpoint_of(lying).tree_size
            covered = {i: entry for i, entry in seen.acknowledged.items() if i < size}
            Witnessed(covered).compare(storage, where=f"{where}, before it is opened again")
            seen.shown.append(lying)
        for number in range(2):
            play(disk, record, seen, (number + 1,))
            seen.compare(PosixStorage(FOLDER, disk), where=where)
    except FieldprintError as error:
        raise BrokenPromiseError(f"{where}: the log does not open again: {error}") from error


def simulated(folder: Path, *, every: int, broken: list[str], step: Callable[[int], None]) -> Counter[str]:
    """Every fault at every call of every scene (or at each `every`th of them); counts of what was done.

    What breaks a promise is put into `broken`, and the next fault goes on.
    """
    done: Counter[str] = Counter()
    with closing(FaultyRecord(folder / "simulated.last-signed")) as record:
        for size, batches in SCENES:
            world = prepare(record, size)
            where = f"{size} entries and {batches}"
            probe = world.disk.copy()
            record.disk, record.shown = probe, []
            record.reset(world.recorded)
            play(probe, record, Witnessed(), batches)
            done["calls"] += probe.calls
            for number, at in enumerate(range(probe.calls)):
                for kind in KINDS if number % every == 0 else ():
                    done["faults"] += 1
                    try:
                        done["ends"] += simulate(record, world, batches, Fault(at, kind), where)
                    except BrokenPromiseError as error:
                        broken.append(str(error))
                    step(1)
    return done


# Real processes


class Death:
    """SIGKILL at a call, before or behind it; the calls are counted over the disk and the record."""

    def __init__(self, at: int, *, after: bool) -> None:
        self.left = at
        self.after = after
        self.pipe = -1  # the child's, to say where it dies

    def call(self, name: str, effect: Callable[[], Any]) -> Any:
        """What `effect` returns, if the process lives that long."""
        self.left -= 1
        result = effect() if self.left >= 0 or self.after else None
        if self.left < 0:
            os.write(self.pipe, b"dies at %s\n" % name.encode())
            os.kill(os.getpid(), signal.SIGKILL)
        return result


class DeadlyDisk(Disk):
    """The real disk, on which the process ends."""

    def __init__(self, death: Death) -> None:
        self.death = death

    def __getattribute__(self, name: str) -> Any:
        found = super().__getattribute__(name)
        if name not in ("make_folder", "create", "write", "sync", "close", "replace", "sync_folder"):
            return found

        return lambda *arguments: self.death.call(name, lambda: found(*arguments))


def child(path: Path, life: int, death: Death | None, *, backwards: bool) -> "tuple[int, int]":
    """Fork a writer that appends until it is killed; returns (process, pipe of what was acknowledged)."""
    read_end, write_end = os.pipe()
    process = os.fork()
    if process:
        os.close(write_end)
        return process, read_end
    try:
        if backwards:
            ticks = count(2_000_000_000, -3600)
            time.time = lambda: float(next(ticks))
            time.time_ns = lambda: next(ticks) * 10**9
        disk = Disk()
        if death is not None:
            death.pipe, disk, swap = write_end, DeadlyDisk(death), LastSigned.swap
            LastSigned.swap = lambda *arguments: death.call("swap", lambda: swap(*arguments))  # type: ignore[method-assign]
        chance = random.Random(life)  # noqa: S311
        with LogWriter(PosixStorage(path, disk), SIGNER, create=True, max_delay=0.001) as log:
            os.write(write_end, b"open\n")
            for number in count():
                entries = [b"%d-%d-%d" % (life, number, i) for i in range(chance.choice((1, 2, 5, 40)))]
                appended = [log.submit([entry]) for entry in entries]
                for entry, pending in zip(entries, appended, strict=True):
                    where = pending.wait()
                    os.write(write_end, b"%d %s\n" % (where.first_index, entry))
    except LogLockedError:
        os.write(write_end, b"locked\n")
        os._exit(3)
    except BaseException as error:
        os.write(write_end, b"failed %r\n" % error)
    os._exit(4)


def lines_of(pipe: int) -> list[bytes]:
    """What the child said until it ended; a last line that was cut is left out."""
    with os.fdopen(pipe, "rb") as stream:
        return [line[:-1] for line in stream if line.endswith(b"\n")]


def noted(path: Path, lines: Sequence[bytes], seen: Witnessed) -> None:
    """Take down what a child acknowledged and what lies there now, and compare with all that was seen."""
    for line in lines:
        first, _, entry = line.partition(b" ")
        if first == b"failed":
            raise BrokenPromiseError(f"a writer failed: {entry!r}")
        if first.isdigit():
            seen.acknowledged[int(first)] = entry
    record = LastSigned(path.with_name(path.name + ".last-signed"))
    recorded = record.read(LOG)
    record.close()
    if recorded is not None:
        seen.shown.append(recorded)
    if (path / "checkpoint").exists():
        seen.shown.append((path / "checkpoint").read_bytes())


@dataclass
class Life:
    """A log on the real disk through the deaths of its writers."""

    path: Path
    broken: list[str] = field(default_factory=list)
    seen: Witnessed = field(default_factory=Witnessed)
    deaths: int = 0

    def end(self, process: int, pipe: int, *, after: float | None) -> list[bytes]:
        """Kill a child after some seconds, or let it kill itself; returns what it said."""
        if after is not None:
            time.sleep(after)
            os.kill(process, signal.SIGKILL)
        lines = lines_of(pipe)
        _, status = os.waitpid(process, 0)
        self.deaths += int(os.WIFSIGNALED(status))
        try:
            noted(self.path, lines, self.seen)
        except BrokenPromiseError as error:
            self.broken.append(str(error))
        return lines

    def look(self, where: str) -> None:
        """Open the log again, and compare."""
        try:
            with LogWriter(self.path, SIGNER, create=True) as log:
                log.append([b"opened after death %d" % self.deaths])
            self.seen.compare(PosixStorage(self.path), where=where)
        except (BrokenPromiseError, FieldprintError) as error:
            self.broken.append(f"{where}: {error}")
        self.seen.shown = self.seen.shown[-20:] + self.seen.shown[:-20:10]  # enough of the old ones


def real(folder: Path, *, kills: int, broken: list[str], step: Callable[[int], None]) -> Counter[str]:
    """At least `kills` deaths by SIGKILL; counts of what was done.

    What breaks a promise is put into `broken`, and a new log goes on.
    """
    chance, done, life, number = random.Random(4), Counter[str](), None, 0  # noqa: S311
    while done["kills"] < kills:
        if life is None or life.broken or len(life.seen.acknowledged) > 2500:
            broken += life.broken if life is not None else ()
            life = Life(folder / f"log{number}")
        number += 1
        before = life.deaths
        backwards = number % 5 == 0
        if number % 10 == 9:
            first = child(life.path, number, None, backwards=backwards)
            second = child(life.path, number + 10**6, None, backwards=False)
            time.sleep(0.02 + chance.random() * 0.03)
            said = [life.end(*one, after=0) for one in (first, second)]
            if all(b"open" in lines for lines in said) and not _one_after_the_other(said):
                life.broken.append("two writers held one log")
            done["two writers"] += 1
        elif number % 2:
            death = Death((number // 2) % 80, after=bool(number % 4 == 1))
            lines = life.end(*child(life.path, number, death, backwards=backwards), after=None)
            done["at a call"] += 1
            done["at a swap of the record"] += lines.count(b"dies at swap")
        else:
            life.end(*child(life.path, number, None, backwards=backwards), after=chance.random() * 0.03)
            done["at a random time"] += 1
        done["clock backwards"] += int(backwards)
        if number % 4 == 0 or len(life.seen.acknowledged) > 2500:
            life.look(f"life {number}")
        done["kills"] += life.deaths - before
        step(life.deaths - before)
    assert life is not None  # noqa: S101
    life.look("at the end")
    broken += life.broken
    return done


def _one_after_the_other(said: Sequence[Sequence[bytes]]) -> bool:
    """Whether the second writer opened the log only when the first was dead: the indexes do not overlap."""
    indexes = [[int(line.partition(b" ")[0]) for line in lines if line[:1].isdigit()] for lines in said]
    return not all(indexes) or max(indexes[0]) < min(indexes[1]) or max(indexes[1]) < min(indexes[0])


def main() -> int:
    """0 if every promise was kept; else 1, and those that were broken are printed."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--kills", type=int, default=2000, help="real SIGKILLs")
    parser.add_argument("--every", type=int, default=1, help="simulate at each Nth call only")
    parser.add_argument("--no-record", action="store_true", help="write no results")
    options = parser.parse_args()
    started, broken = time.monotonic(), list[str]()
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    console = Console(stderr=True)
    with tempfile.TemporaryDirectory() as name, Progress(*columns, console=console) as progress:
        bar = progress.add_task("simulated faults", total=None)
        faults = simulated(
            Path(name), every=options.every, broken=broken, step=lambda n: progress.advance(bar, n)
        )
        bar = progress.add_task("real SIGKILLs", total=options.kills)
        kills = real(Path(name), kills=options.kills, broken=broken, step=lambda n: progress.advance(bar, n))
    rows = [_row("simulated", what, number) for what, number in faults.items()]
    rows += [_row("real SIGKILL", what, number) for what, number in kills.items()]
    rows += [
        _row("all", "broken promises", len(broken)),
        _row("all", "seconds", round(time.monotonic() - started)),
    ]
    for row in rows:
        console.print(f"{row['cell']}: {row['ours']} {row['metric']}")
    for what in broken:
        console.print(f"broken: {what}", markup=False)
    if not options.no_record:
        command = f"python -m benchmarks.crash_log --kills {options.kills} --every {options.every}"
        device = f"{os.cpu_count()} cores, files in {Path(tempfile.gettempdir())}"
        write_results("crash_log", rows, device=device, command=command, packages=("cryptography",))
    return int(bool(broken))


def _row(cell: str, metric: str, number: int) -> dict[str, Any]:
    return {"cell": cell, "metric": metric, "unit": "", "ours": number, "peers": {}, "ratio": None}


if __name__ == "__main__":
    sys.exit(main())
