"""The follower against a naive recomputation of the whole log, and against a log that lies, forks, refuses and hangs."""

import tempfile
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from fieldprint.commit.follower import InconsistentLogError, LogFollower
from fieldprint.errors import CapacityError, LogError
from fieldprint.note import NoteSigner, VerifierKey, sign_note, verify_note
from fieldprint.tlog import Appended, Checkpoint, LogReader, LogWriter, PosixStorage, Source
from fieldprint.tlog.storage.disk import Disk
from tests.faulty_log import LIES, FaultyLog
from tests.tlog import naive

SIGNER = NoteSigner("test/log", Ed25519PrivateKey.from_private_bytes(bytes([1]) * 32))
KEY = SIGNER.verifier_key
SECOND_HISTORY = "second history"


class UnsyncedDisk(Disk):
    """A disk for logs that nobody needs after a power failure."""

    def sync(self, descriptor: int) -> None:
        pass

    def sync_folder(self, path: Path) -> None:
        pass


class Counted:
    """A source that counts what is read."""

    def __init__(self, source: Source) -> None:
        self.place = source.place
        self.source, self.names = source, []  # type: ignore[var-annotated]

    def read(self, name: str) -> bytes | None:
        self.names.append(name)
        return self.source.read(name)


@pytest.fixture
def log(tmp_path: Path) -> Iterator[FaultyLog]:
    with FaultyLog(tmp_path / "log", SIGNER) as writer:
        writer.append([b"before %d" % i for i in range(5)])
        yield writer


def checkpoint_of(note: bytes) -> Checkpoint:
    return Checkpoint.from_text(verify_note(note, [KEY]))


def test_honest_answers_are_accepted(log: FaultyLog) -> None:
    follower = LogFollower(log.source, VerifierKey.parse(log.verifier_key))
    assert follower.checkpoint.tree_size == 5
    for count in (1, 0, 300, 7):
        entries = [b"%d of %d" % (i, count) for i in range(count)]
        assert follower.accept(log.append(entries), entries) == checkpoint_of(log.checkpoint)
        assert follower.signed_checkpoint == log.checkpoint


def test_nothing_is_read_while_nobody_else_writes(log: FaultyLog) -> None:
    source = Counted(log.source)
    follower = LogFollower(source, KEY)
    source.names.clear()
    for i in range(600):
        if i % 40 == 0:
            entries = [b"%d" % j for j in range(i)]
            follower.accept(log.append(entries), entries)
    assert source.names == []


def test_few_files_are_read_whatever_the_size(tmp_path: Path) -> None:
    """To begin, and to get past a hundred thousand entries of others."""
    storage = PosixStorage(tmp_path / "log", UnsyncedDisk())
    with LogWriter(storage, SIGNER, create=True) as log:
        source = Counted(log.source)
        early = LogFollower(source, KEY)
        log.append([b"%d" % i for i in range(70_001)])
        source.names.clear()
        LogFollower(source, KEY)
        assert len(source.names) == 1 + 3, source.names  # a partial tile on each level
        log.append([b"other %d" % i for i in range(30_000)])
        answer = log.append([b"ours"])
        source.names.clear()
        assert early.accept(answer, [b"ours"]).tree_size == 100_002
        assert len(source.names) <= 6, source.names


def test_it_begins_with_nothing_but_what_the_key_signed(log: FaultyLog, tmp_path: Path) -> None:
    with pytest.raises(LogError, match="no trusted key signed"):
        LogFollower(log.source, NoteSigner("test/log", Ed25519PrivateKey.generate()).verifier_key)
    with pytest.raises(LogError, match="cannot be read"):
        LogFollower(tmp_path, KEY)
    (tmp_path / "log/tile/0/000.p/5").write_bytes(bytes(32 * 5))
    with pytest.raises(LogError, match="cannot be followed: the tiles do not lead"):
        LogFollower(log.source, KEY)


# Any order of appends by us and others, and answers that were changed on their way


def naively_right(
    log: list[bytes], verified: int, answer: Appended, entries: list[bytes], signed: dict[bytes, list[bytes]]
) -> bool:
    """Whether the whole log, computed anew, is what the answer says."""
    tree = signed.get(answer.checkpoint)  # of what was really signed, over which entries
    if tree is None or len(tree) < verified or tree[:verified] != log[:verified]:
        return False
    first, stop = answer.first_index, answer.first_index + len(entries)
    if not verified <= first <= stop <= answer.tree_size <= len(tree):
        return False
    root = checkpoint_of(answer.checkpoint).root_hash
    return tree[first:stop] == entries and naive.mth(tuple(log[: len(tree)])) == root


class Following(RuleBasedStateMachine):
    """The follower against the list of all entries."""

    def __init__(self) -> None:
        super().__init__()
        self.folder = tempfile.TemporaryDirectory()
        storage = PosixStorage(Path(self.folder.name) / "log", UnsyncedDisk())
        self.log = LogWriter(storage, SIGNER, create=True, max_delay=60)
        self.entries: list[bytes] = []
        self.signed: dict[bytes, list[bytes]] = {self.log.checkpoint: []}
        self.follower = LogFollower(self.log.source, KEY)
        self.number = 0

    def teardown(self) -> None:
        self.log.close()
        self.folder.cleanup()

    def make(self, count: int) -> list[bytes]:
        self.number += 1
        return [b"%d/%d" % (self.number, i) for i in range(count)]

    def published(self, *entries: bytes) -> None:
        self.entries += entries
        self.signed[self.log.checkpoint] = list(self.entries)

    @rule(count=st.sampled_from([1, 3, 250, 256, 300]))
    def others_append(self, count: int) -> None:
        entries = self.make(count)
        self.log.append(entries)
        self.published(*entries)

    @rule()
    def begin_anew(self) -> None:
        self.follower = LogFollower(self.log.source, KEY)

    @rule(
        before=st.sampled_from([0, 0, 1, 2, 130]),
        count=st.sampled_from([0, 1, 2, 5, 255, 257]),
        behind=st.sampled_from([0, 0, 1, 3, 130]),
        later=st.sampled_from([0, 0, 1, 260]),
        newest=st.booleans(),
        data=st.data(),
    )
    def we_append(
        self, before: int, count: int, behind: int, later: int, newest: bool, data: st.DataObject
    ) -> None:
        """With entries of others in the same batch, and a log that has grown by the time that we look."""
        front = self.make(before if count or behind else 0)
        ours, back = self.make(count), self.make(behind)
        self.log.submit(front)
        pending = self.log.submit(ours, urgent=not back)
        if back:
            self.log.append(back)
        answer = pending.wait(timeout=20)
        covered = checkpoint_of(answer.checkpoint).tree_size
        self.published(*front, *ours, *back)
        self.signed[answer.checkpoint] = self.entries[:covered]
        if later:
            self.others_append(later)
        if newest:
            answer = replace(answer, checkpoint=self.log.checkpoint)
        self.try_lies(answer, ours, data)
        assert self.right(answer, ours)
        assert self.follower.accept(answer, ours) == checkpoint_of(answer.checkpoint)

    def right(self, answer: Appended, ours: list[bytes]) -> bool:
        return naively_right(self.entries, self.follower.checkpoint.tree_size, answer, ours, self.signed)

    def try_lies(self, answer: Appended, ours: list[bytes], data: st.DataObject) -> None:
        """A changed answer is accepted only if it happens to be right, and a refusal changes nothing."""
        notes = sorted(self.signed, key=lambda note: len(self.signed[note]))
        lie = replace(
            answer,
            first_index=answer.first_index + data.draw(st.sampled_from([-2, -1, 0, 0, 1, 256])),
            tree_size=answer.tree_size + data.draw(st.sampled_from([-1, 0, 0, 1])),
            checkpoint=data.draw(st.sampled_from([answer.checkpoint, *notes, self.forked(answer)])),
        )
        wrong = data.draw(st.sampled_from([ours, ours, ours[::-1], [*ours, b"more"], ours[1:]]))
        if self.right(lie, wrong):
            return
        before = self.follower.checkpoint, self.follower.signed_checkpoint
        with pytest.raises(LogError):
            self.follower.accept(lie, wrong)
        assert before == (self.follower.checkpoint, self.follower.signed_checkpoint)

    def forked(self, answer: Appended) -> bytes:
        """The same size with another first entry, signed by the log's key."""
        size = checkpoint_of(answer.checkpoint).tree_size
        root = naive.mth((b"another", *self.entries[1:size])) if size else bytes(32)
        return sign_note(Checkpoint(KEY.name, size, root).to_text(), [SIGNER])

    @invariant()
    def what_is_believed_is_the_tree_of_the_first_entries(self) -> None:
        believed = self.follower.checkpoint
        assert believed.root_hash == naive.mth(tuple(self.entries[: believed.tree_size]))


TestFollowing = Following.TestCase
TestFollowing.settings = settings(max_examples=60, stateful_step_count=8, deadline=None)


# One attack each

WHAT = {
    "index before": "it had 5 entries before",
    "index behind": "our entries are not in the log's checkpoint",
    "negative index": "it had 5 entries before",
    "size": "our entries are not in the log's checkpoint",
    "old": "an older checkpoint",
    "unsigned": "has no checkpoint",
    "broken signature": "has no checkpoint.*not valid",
    "other key": "has no checkpoint.*no trusted key signed",
    "other origin": "has no checkpoint.*elsewhere.example/log",
    "other root": "signed a tree that it does not hold",
    "truncated": "has no checkpoint",
    "garbage": "has no checkpoint",
    "empty": "has no checkpoint",
    "dropped": "entry 5 is another one",
    "never written": "our entries are not in the log's checkpoint",
}
UNSIGNED = {key for key, what in WHAT.items() if what.startswith("has no checkpoint")}


@pytest.mark.parametrize("kind", LIES)
def test_a_lie_is_refused_and_the_truth_accepted_after_it(log: FaultyLog, kind: str) -> None:
    follower = LogFollower(log.source, KEY)
    before = follower.signed_checkpoint
    log.lie(kind)
    answer = log.append([b"ours", b"too"])
    with pytest.raises(LogError, match=WHAT[kind]) as caught:
        follower.accept(answer, [b"ours", b"too"])
    assert caught.value.remedy
    if kind in UNSIGNED:
        assert type(caught.value) is LogError
    else:
        assert isinstance(caught.value, InconsistentLogError)
        assert (caught.value.verified, caught.value.presented) == (before, answer.checkpoint)
    assert follower.signed_checkpoint == before
    assert follower.accept(log.append([b"ours", b"too"]), [b"ours", b"too"]).tree_size == log.tree_size


def test_an_index_into_the_entries_of_others_is_refused(log: FaultyLog) -> None:
    follower = LogFollower(log.source, KEY)
    log.append([b"theirs"] * 3)
    answer = log.append([b"ours"])
    log.append([b"theirs"] * 3)
    for index in (5, 7, 9):
        lie = replace(answer, first_index=index, tree_size=12, checkpoint=log.checkpoint)
        with pytest.raises(InconsistentLogError, match=f"entry {index} is another one"):
            follower.accept(lie, [b"ours"])
    assert follower.accept(answer, [b"ours"]).tree_size == 9


@pytest.mark.parametrize("shown", [True, False], ids=["shown to readers", "behind their backs"])
def test_a_fork_is_refused_and_the_first_history_goes_on(log: FaultyLog, shown: bool) -> None:
    follower = LogFollower(log.source, KEY)
    log.fork(2, shown=shown)
    for _ in range(2):
        answer = log.append([b"ours"])
        with pytest.raises(LogError) as caught:
            follower.accept(answer, [b"ours"])
        if shown:
            assert isinstance(caught.value, InconsistentLogError) and SECOND_HISTORY in str(caught.value)
    assert follower.accept(log.append([b"ours"]), [b"ours"]).tree_size == 6


def test_a_fork_of_the_same_size_is_refused_without_reading(log: FaultyLog) -> None:
    follower = LogFollower(log.source, KEY)
    text = Checkpoint(KEY.name, 5, naive.mth((b"others",) * 5)).to_text()
    with pytest.raises(InconsistentLogError, match="another tree of 5 entries"):
        follower.accept(Appended(5, 5, sign_note(text, [SIGNER])), [])


def test_a_fork_from_the_very_first_entry_on_continues_an_empty_tree(tmp_path: Path) -> None:
    """Nothing was believed before, so nothing is contradicted: from then on it is the only history."""
    with FaultyLog(tmp_path / "log", SIGNER) as log:
        follower = LogFollower(log.source, KEY)
        log.fork(1)
        follower.accept(log.append([b"ours"]), [b"ours"])
        with pytest.raises(InconsistentLogError):
            follower.accept(log.append([b"ours"]), [b"ours"])


@pytest.mark.parametrize("name", ["0/000.p/7", "0/000.p/8"])
def test_tiles_that_others_wrote_are_not_believed(log: FaultyLog, tmp_path: Path, name: str) -> None:
    """The answer is true, but what lies between cannot be read as it was signed: nothing is accepted."""
    follower = LogFollower(log.source, KEY)
    log.append([b"theirs", b"theirs"])
    answer = log.append([b"ours"])
    tile = tmp_path / "log/tile" / name
    data = tile.read_bytes()
    tile.write_bytes(bytes(len(data)))
    if name.endswith("7"):  # that one is of the checkpoint before ours, and nobody needs it
        assert follower.accept(answer, [b"ours"]).tree_size == 8
        return
    with pytest.raises(InconsistentLogError, match="does not hold"):
        follower.accept(answer, [b"ours"])
    tile.unlink()
    with pytest.raises(LogError, match="it is not there"):
        follower.accept(answer, [b"ours"])
    tile.write_bytes(data)
    assert follower.accept(answer, [b"ours"]).tree_size == 8


def test_a_partial_tile_that_was_removed_is_read_from_the_full_one(log: FaultyLog, tmp_path: Path) -> None:
    follower = LogFollower(log.source, KEY)
    log.append([b"theirs", b"theirs"])
    answer = log.append([b"ours"])
    log.append([b"theirs"] * 300)
    (tmp_path / "log/tile/0/000.p/8").unlink()
    assert follower.accept(answer, [b"ours"]).tree_size == 8
    assert LogReader(log.source, [KEY]).root_hash(8) == follower.checkpoint.root_hash


# The switches of the test double themselves


def test_it_refuses_as_often_as_it_is_told_to(log: FaultyLog) -> None:
    follower = LogFollower(log.source, KEY)
    log.refuse(2)
    for _ in range(2):
        with pytest.raises(CapacityError, match="No space left"):
            log.append([b"ours"])
    assert follower.accept(log.append([b"ours"]), [b"ours"]).tree_size == 6


@pytest.mark.parametrize("end", ["release", "time", "close"])
def test_it_hangs_until_it_is_released(log: FaultyLog, end: str) -> None:
    follower = LogFollower(log.source, KEY)
    log.hang(0.2 if end == "time" else None)
    pending = log.submit([b"ours"], urgent=True)
    with pytest.raises(TimeoutError):
        pending.wait(timeout=0.05)
    ends: dict[str, Callable[[], None]] = {"release": log.release, "time": lambda: None, "close": log.close}
    threading.Timer(0.01, ends[end]).start()
    late = pending.wait(timeout=20)  # the entries come after all: for whoever gave up they are of others
    if end != "close":
        assert follower.accept(log.append([b"again"]), [b"again"]).tree_size == late.tree_size + 1


def test_it_knows_no_other_lies(log: FaultyLog) -> None:
    assert set(WHAT) == set(LIES)
    with pytest.raises(ValueError, match="kind must be one of"):
        log.lie("white")
