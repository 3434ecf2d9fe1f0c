"""One history for one key: the record of the last signed checkpoint against folders that are not what was signed."""

import shutil
import sqlite3
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from benchmarks.crash_log import FaultyRecord, checkpoint_of
from benchmarks.faulty_disk import Fault, FaultyDisk
from fieldprint.errors import CapacityError, FieldprintError, LogError, LogLockedError
from fieldprint.note import NoteSigner, sign_note, verify_note
from fieldprint.tlog import (
    Cosigned,
    LogReader,
    LogWriter,
    PosixStorage,
    State,
    leaf_hash,
    verify_consistency,
)
from fieldprint.tlog.history import History
from fieldprint.tlog.last_signed import LastSigned

SIGNER = NoteSigner("fieldprint.example/log", Ed25519PrivateKey.from_private_bytes(bytes([1]) * 32))
WITNESS = NoteSigner("witness.example", Ed25519PrivateKey.from_private_bytes(bytes([2]) * 32))
OTHER = NoteSigner("other.example", Ed25519PrivateKey.from_private_bytes(bytes([3]) * 32))
KEYS = [SIGNER.verifier_key]
LOG = str(SIGNER.verifier_key)


def append(path: Path, *entries: bytes, **how: bool) -> bytes:
    with LogWriter(path, SIGNER, create=True, **how) as log:
        return log.append(entries).checkpoint


def size(path: Path) -> int:
    return LogReader(path, KEYS).checkpoint().tree_size


# The record


def test_swap_replaces_what_it_was_told_and_nothing_else(tmp_path: Path) -> None:
    record = LastSigned(tmp_path / "new" / "signed")
    assert record.read("a") is None
    with pytest.raises(LogLockedError):
        record.swap("a", b"0", b"1")
    record.swap("a", None, b"1")
    record.swap("b", None, b"other")
    for previous in (None, b"0", b"2"):
        with pytest.raises(LogLockedError, match="another writer has signed one"):
            record.swap("a", previous, b"2")
    record.swap("a", b"1", b"2")
    other = LastSigned(tmp_path / "new" / "signed")
    assert other.read("a") == b"2" and other.read("b") == b"other"
    other.swap("a", b"2", b"3")
    with pytest.raises(LogLockedError):
        record.swap("a", b"2", b"4")
    record.close()
    other.close()


def test_a_file_that_is_no_record_is_a_log_error(tmp_path: Path) -> None:
    (tmp_path / "text").write_text("no database, but long enough to be looked at as one" * 50)
    (tmp_path / "folder").mkdir()
    for name in ("text", "folder", "text/below"):
        with pytest.raises(LogError, match="the record of the last checkpoint"):
            LastSigned(tmp_path / name)
    with pytest.raises(LogError, match="the record of the last checkpoint"):
        LogWriter(tmp_path / "log", SIGNER, create=True, last_signed=tmp_path / "text")
    LogWriter(tmp_path / "log", SIGNER, create=True).close()  # the lock was given back


def test_a_full_record_is_a_capacity_error(tmp_path: Path) -> None:
    record = LastSigned(tmp_path / "signed")
    record.swap("a", None, b"1")
    record._database.execute("PRAGMA max_page_count = 3")
    with pytest.raises(CapacityError, match="cannot be written"):
        record.swap("a", b"1", bytes(100_000))
    assert record.read("a") == b"1"
    record.close()


def test_the_default_record_lies_beside_the_folder(tmp_path: Path) -> None:
    append(tmp_path / "log", b"entry")
    assert {p.name for p in tmp_path.iterdir()} == {"log", "log.last-signed"}
    with sqlite3.connect(tmp_path / "log.last-signed") as database:
        rows = database.execute("SELECT log, signed FROM last_signed").fetchall()
    database.close()
    assert rows == [(LOG, (tmp_path / "log/checkpoint").read_bytes())]


# Folders that are not what was signed


def test_a_restored_old_folder_signs_nothing(tmp_path: Path) -> None:
    path = tmp_path / "log"
    append(path, b"one")
    shutil.copytree(path, tmp_path / "old")
    signed = append(path, b"two")
    shutil.rmtree(path)
    shutil.copytree(tmp_path / "old", path)
    for how in ({}, {"adopt": True}):
        with pytest.raises(LogError, match=r"does not hold the 2 entries that were signed.*second history"):
            append(path, b"other", **how)
    record = LastSigned(tmp_path / "log.last-signed")
    assert record.read(LOG) == signed
    record.close()
    assert size(path) == 1  # nothing was written either


def test_a_deleted_folder_signs_nothing(tmp_path: Path) -> None:
    path = tmp_path / "log"
    append(path, b"one")
    shutil.rmtree(path)
    with pytest.raises(LogError, match="holds no log"):
        LogWriter(path, SIGNER)
    with pytest.raises(LogError, match="does not hold the 1 entries"):
        append(path, b"other")


def test_a_restored_disk_with_its_record_is_caught_by_a_record_elsewhere(tmp_path: Path) -> None:
    path, elsewhere = tmp_path / "disk" / "log", tmp_path / "other-disk" / "signed"
    for entry in (b"one", b"two"):
        with LogWriter(path, SIGNER, create=True, last_signed=elsewhere) as log:
            log.append([entry])
        if entry == b"one":
            shutil.copytree(tmp_path / "disk", tmp_path / "backup")
    shutil.rmtree(tmp_path / "disk")
    shutil.copytree(tmp_path / "backup", tmp_path / "disk")
    with pytest.raises(LogError, match="2 entries that were signed"):
        LogWriter(path, SIGNER, last_signed=elsewhere)


def test_a_log_without_its_record_is_adopted_on_demand_only(tmp_path: Path) -> None:
    append(tmp_path / "log", b"one")
    (tmp_path / "log").rename(tmp_path / "moved")
    with pytest.raises(LogError, match=r"does not know what was signed last.*adopt"):
        LogWriter(tmp_path / "moved", SIGNER)
    with LogWriter(tmp_path / "moved", SIGNER, adopt=True) as log:
        assert log.append([b"two"]).first_index == 1
    with LogWriter(tmp_path / "moved", SIGNER) as log:
        assert log.tree_size == 2


def test_a_restored_old_record_signs_nothing(tmp_path: Path) -> None:
    append(tmp_path / "log", b"one")
    shutil.copy(tmp_path / "log.last-signed", tmp_path / "old")
    append(tmp_path / "log", b"two")
    (tmp_path / "old").replace(tmp_path / "log.last-signed")
    with pytest.raises(LogError, match="older than the log"):
        append(tmp_path / "log", b"three")


def test_a_lost_checkpoint_file_is_published_again(tmp_path: Path) -> None:
    signed = append(tmp_path / "log", b"one")
    (tmp_path / "log/checkpoint").unlink()
    LogWriter(tmp_path / "log", SIGNER).close()
    assert (tmp_path / "log/checkpoint").read_bytes() == signed


def test_two_histories_of_one_key_are_not_mixed(tmp_path: Path) -> None:
    append(tmp_path / "log", b"one")
    append(tmp_path / "twin", b"other")
    shutil.copy(tmp_path / "twin.last-signed", tmp_path / "log.last-signed")
    with pytest.raises(LogError, match="does not hold the 1 entries"):
        append(tmp_path / "log", b"two")


def test_a_second_writer_without_lock_writes_nothing(tmp_path: Path) -> None:
    """A file system on which flock does nothing: the record alone decides, and the loser has changed no tile."""
    record, storage = LastSigned(tmp_path / "signed"), PosixStorage(tmp_path / "log")
    storage.create()
    first, second = (History(storage, SIGNER, record, create=True) for _ in range(2))
    first.extend([b"first"], lambda _: None)
    with pytest.raises(LogLockedError, match="another writer"):
        second.extend([b"second"], lambda _: None)
    assert list(LogReader(storage, KEYS).entries()) == [b"first"]
    record.close()


# Witnesses


def cosigned(signed: bytes, prove: Callable[[int], list[bytes]]) -> Cosigned:
    text = verify_note(signed, KEYS)
    lines = sign_note(text, [WITNESS]).rpartition(b"\n\n")[2]
    return Cosigned(lines, quorum=True, keys=(WITNESS.verifier_key,))


def test_a_checkpoint_is_recorded_before_a_witness_sees_it_and_published_after(tmp_path: Path) -> None:
    asked: list[tuple[int, int]] = []
    path = tmp_path / "log"

    def cosign(signed: bytes, prove: Callable[[int], list[bytes]]) -> Cosigned:
        record = LastSigned(tmp_path / "log.last-signed")
        assert record.read(LOG) == signed
        record.close()
        new = checkpoint_of(signed)
        if (path / "checkpoint").exists():
            old = LogReader(path, KEYS).checkpoint()
            assert old.tree_size < new.tree_size
            proof = prove(old.tree_size)
            verify_consistency(old.tree_size, new.tree_size, proof, old.root_hash, new.root_hash)
            asked.append((old.tree_size, new.tree_size))
        return cosigned(signed, prove)

    with LogWriter(path, SIGNER, create=True, cosign=cosign) as log:
        for i in range(3):
            pending = log.submit([b"%d" % i] * (i + 100), urgent=True)
            assert pending.wait(State.WITNESSED).tree_size == log.tree_size
            assert pending.state is State.WITNESSED
    assert asked == [(0, 100), (100, 201), (201, 303)]
    verify_note((path / "checkpoint").read_bytes(), [WITNESS.verifier_key])
    verify_note((path / "checkpoint").read_bytes(), KEYS)
    with LogWriter(path, SIGNER) as log:  # the record holds the note without cosignatures
        assert log.append([b"after"]).first_index == 303


STRANGE = {
    "no quorum": lambda _text: b"",
    "not a note": lambda _text: b"rubbish",
    "over another text": lambda text: sign_note(text + "\nx\n", [WITNESS]).rpartition(b"\n\n")[2],
    "more text": lambda text: b"\nx\n\n" + sign_note(text, [SIGNER, WITNESS]).rpartition(b"\n\n")[2],
    "by a key that is not named": lambda text: sign_note(text, [OTHER]).rpartition(b"\n\n")[2],
}


@pytest.mark.parametrize("answer", ["raises", *STRANGE])
def test_a_witness_that_fails_does_not_stop_the_log(tmp_path: Path, answer: str) -> None:
    def cosign(signed: bytes, prove: Callable[[int], list[bytes]]) -> Cosigned:
        if answer == "raises":
            raise LogError("no answer")
        lines = STRANGE[answer](verify_note(signed, KEYS))
        return Cosigned(lines, quorum=answer != "no quorum", keys=(WITNESS.verifier_key,))

    with LogWriter(tmp_path / "log", SIGNER, create=True, cosign=cosign) as log:
        pending = log.submit([b"entry"], urgent=True)
        assert pending.wait().tree_size == 1 and pending.state is State.PUBLISHED
        with pytest.raises(LogError, match="without the cosignatures"):
            pending.wait(State.WITNESSED)
        with closing(LastSigned(tmp_path / "log.last-signed")) as record:
            assert log.checkpoint == record.read(LOG)  # nothing strange is on it
    assert list(LogReader(tmp_path / "log", KEYS).entries()) == [b"entry"]


# Any order of appends, failures and fresh starts


class OneHistory(RuleBasedStateMachine):
    """The log against a list of entries, with a fault at any call."""

    def __init__(self) -> None:
        super().__init__()
        import tempfile

        self.folder = tempfile.TemporaryDirectory()
        self.disk = FaultyDisk()
        self.record = FaultyRecord(Path(self.folder.name) / "signed")
        self.record.disk, self.record.shown = self.disk, []
        self.record.reset(None)
        self.storage = PosixStorage(Path("/log"), self.disk)
        self.storage.create()
        self.history = History(self.storage, SIGNER, self.record, create=True)
        self.acknowledged: dict[int, bytes] = {}
        self.number = 0

    @rule(
        count=st.sampled_from([1, 2, 100, 256]),
        at=st.integers(0, 45),
        kind=st.sampled_from(["error", "full", "error after", "short"]),
    )
    def append(self, count: int, at: int, kind: str) -> None:
        self.number += 1
        entries = [b"%d/%d" % (self.number, i) for i in range(count)]
        self.disk.calls, self.disk.fault = 0, Fault(at, kind)
        try:
            self.history.settle()
            first = self.history.tree_size
            self.history.extend(entries, lambda _: None)
        except FieldprintError:
            return
        finally:
            self.disk.fault = None
        self.acknowledged.update({first + i: entry for i, entry in enumerate(entries)})

    @rule()
    def reopen(self) -> None:
        self.storage = PosixStorage(Path("/log"), self.disk)
        self.history = History(self.storage, SIGNER, self.record)

    @invariant()
    def readers_find_all_that_was_acknowledged(self) -> None:
        reader = LogReader(self.storage, KEYS)
        assert all(leaf_hash(e) == reader.subtree_hash(0, i) for i, e in self.acknowledged.items())
        now = reader.checkpoint()
        for note in self.record.shown:
            seen = checkpoint_of(note)
            if seen.tree_size <= now.tree_size:
                assert reader.root_hash(seen.tree_size) == seen.root_hash

    def teardown(self) -> None:
        self.record.close()
        self.folder.cleanup()


TestOneHistory = OneHistory.TestCase
TestOneHistory.settings = settings(max_examples=25, stateful_step_count=12, deadline=None)
