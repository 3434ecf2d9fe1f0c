"""Batches: who waits for what, states, threads, back pressure, and clocks that go backwards."""

import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from itertools import count
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from fieldprint.errors import LogError, LogLockedError
from fieldprint.note import NoteSigner, parse_note, sign_note, signature_line
from fieldprint.tlog import Cosigned, LogReader, LogWriter, PosixStorage, State, publish_cosigned
from fieldprint.tlog.serve import LogSite
from fieldprint.tlog.storage.disk import Disk

SIGNER = NoteSigner("fieldprint.example/log", Ed25519PrivateKey.from_private_bytes(bytes([1]) * 32))
STRANGER = NoteSigner(SIGNER.name, Ed25519PrivateKey.from_private_bytes(bytes([2]) * 32))
KEYS = [SIGNER.verifier_key]


class HeldDisk(Disk):
    """A disk that waits before it creates a file, once it is told to."""

    def __init__(self) -> None:
        self.go_on = threading.Event()
        self.go_on.set()

    def create(self, path: Path) -> int:
        self.go_on.wait(20)
        return super().create(path)


def test_submitted_entries_wait_for_company_and_share_a_checkpoint(tmp_path: Path) -> None:
    with LogWriter(tmp_path / "log", SIGNER, create=True, max_delay=0.15) as log:
        started = time.monotonic()
        pending = [log.submit([b"%d" % i]) for i in range(5)]
        assert pending[0].state is State.WAITING
        found = [p.wait() for p in pending]
        assert time.monotonic() - started >= 0.15
    assert [f.first_index for f in found] == list(range(5))
    assert {(f.tree_size, f.checkpoint) for f in found} == {(5, found[0].checkpoint)}


def test_a_full_batch_does_not_wait(tmp_path: Path) -> None:
    with LogWriter(tmp_path / "log", SIGNER, create=True, max_delay=60, max_entries=4) as log:
        pending = [log.submit([b"%d" % i]) for i in range(4)]
        assert pending[3].wait(timeout=20).tree_size == 4


def test_append_waits_for_nobody_and_takes_along_who_is_there(tmp_path: Path) -> None:
    with LogWriter(tmp_path / "log", SIGNER, create=True, max_delay=60) as log:
        early = log.submit([b"early"])
        assert log.append([b"now", b"too"]).first_index == 1
        assert early.wait(timeout=20).first_index == 0 and early.state is State.PUBLISHED


def test_close_publishes_what_was_handed_over(tmp_path: Path) -> None:
    with LogWriter(tmp_path / "log", SIGNER, create=True, max_delay=60) as log:
        pending = log.submit([b"entry"])
    assert pending.wait(timeout=0).tree_size == 1
    with pytest.raises(LogError, match="closed"):
        log.submit([b"late"])


def test_states_come_in_order(tmp_path: Path) -> None:
    disk, seen = HeldDisk(), []

    def cosign(signed: bytes, prove: Callable[[int], list[bytes]]) -> Cosigned:
        if pending:
            seen.append(pending[0].state)
            assert pending[0].wait(State.INTEGRATED).first_index == 0
        return Cosigned(b"", quorum=False, keys=())

    pending: list = []
    storage = PosixStorage(tmp_path / "log", disk)
    with LogWriter(storage, SIGNER, create=True, cosign=cosign) as log:
        disk.go_on.clear()
        pending.append(log.submit([b"entry"], urgent=True))
        assert pending[0].wait(State.SEQUENCED).checkpoint == b""
        assert pending[0].state is State.SEQUENCED
        with pytest.raises(TimeoutError, match="sequenced and not published"):
            pending[0].wait(timeout=0.05)
        assert log.tree_size == 0
        disk.go_on.set()
        assert pending[0].wait().checkpoint == log.checkpoint
        assert seen == [State.INTEGRATED] and pending[0].state is State.PUBLISHED


def test_submit_waits_while_too_many_entries_do(tmp_path: Path) -> None:
    disk = HeldDisk()
    storage = PosixStorage(tmp_path / "log", disk)
    with LogWriter(storage, SIGNER, create=True, max_entries=1, max_waiting=3) as log:
        disk.go_on.clear()
        log.submit([b"on its way"]).wait(State.SEQUENCED)
        log.submit([b"1", b"2", b"3"])
        late = threading.Thread(target=log.submit, args=([b"4"],))
        late.start()
        late.join(0.1)
        assert late.is_alive()
        disk.go_on.set()
        late.join(20)
        assert not late.is_alive()
    assert list(LogReader(tmp_path / "log", KEYS).entries()) == [b"on its way", b"1", b"2", b"3", b"4"]


def test_many_threads_each_find_their_entries_where_they_were_told(tmp_path: Path) -> None:
    with LogWriter(tmp_path / "log", SIGNER, create=True, max_delay=0.005) as log:

        def work(number: int) -> list[tuple[int, bytes]]:
            found = []
            for i in range(30):
                entries = [b"%d/%d/%d" % (number, i, j) for j in range(number % 3 + 1)]
                where = log.append(entries) if i % 2 else log.submit(entries).wait()
                found += [(where.first_index + j, entry) for j, entry in enumerate(entries)]
            return found

        with ThreadPoolExecutor(12) as pool:
            acknowledged = [pair for pairs in pool.map(work, range(12)) for pair in pairs]
    entries = list(LogReader(tmp_path / "log", KEYS).entries())
    assert len(entries) == len(acknowledged) == 12 * 30 * 2
    assert all(entries[index] == entry for index, entry in acknowledged)


def test_an_append_that_returned_comes_before_one_that_begins(tmp_path: Path) -> None:
    """Real-time order, which linearisability asks for, over threads."""
    with LogWriter(tmp_path / "log", SIGNER, create=True) as log:
        spans: list[tuple[float, float, int]] = []

        def work(_: int) -> None:
            for _ in range(20):
                begun = time.perf_counter()
                index = log.append([b"entry"]).first_index
                spans.append((begun, time.perf_counter(), index))

        with ThreadPoolExecutor(4) as pool:
            list(pool.map(work, range(4)))
    assert sorted(index for *_, index in spans) == list(range(80))
    for _, ended, index in spans:
        assert all(later > index for begun, _, later in spans if begun > ended)


def test_clocks_that_go_backwards_change_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ticks = count(2_000_000_000, -86_400)
    monkeypatch.setattr(time, "time", lambda: float(next(ticks)))
    monkeypatch.setattr(time, "time_ns", lambda: next(ticks) * 10**9)
    for i in range(5):
        with LogWriter(tmp_path / "log", SIGNER, create=True, max_delay=0.01) as log:
            assert log.submit([b"%d" % i]).wait().first_index == i
    assert list(LogReader(tmp_path / "log", KEYS).entries()) == [b"%d" % i for i in range(5)]


@pytest.mark.parametrize(
    "spoilt",
    [lambda text: sign_note(text, [STRANGER]), lambda _text: b"no note"],
    ids=["another key", "no note"],
)
def test_a_checkpoint_that_is_refused_is_an_error_of_the_log(
    tmp_path: Path, spoilt: Callable[[str], bytes]
) -> None:
    """The second attempt reads what lies there; what it finds wrong reaches who waits, and a client as 503."""
    with LogWriter(tmp_path / "log", SIGNER, create=True) as log:
        log.append([b"a"])
        checkpoint = tmp_path / "log/checkpoint"
        good = checkpoint.read_bytes()
        checkpoint.write_bytes(spoilt(parse_note(good).text))
        with pytest.raises(LogError):
            log.append([b"b"])
        with pytest.raises(LogError, match="the log cannot be extended: "):
            log.append([b"c"])
        site = LogSite(log.source, writer=log, token="0123456789abcdef")
        assert site.answer("POST", "/add", b"d").status == 503
        checkpoint.write_bytes(good)
        assert log.append([b"e"]).tree_size == log.tree_size


def test_nobody_waits_for_entries_to_be_waiting(tmp_path: Path) -> None:
    """There is no index yet that could be told."""
    with LogWriter(tmp_path / "log", SIGNER, create=True, max_delay=0.01) as log:
        log.append([b"a", b"b"])
        pending = log.submit([b"c"])
        with pytest.raises(ValueError, match="SEQUENCED"):
            pending.wait(State.WAITING)
        assert pending.wait().first_index == 2


def test_a_bug_in_the_thread_ends_the_writer_and_reaches_who_waits(tmp_path: Path) -> None:
    class BrokenDisk(Disk):
        broken = False

        def create(self, path: Path) -> int:
            if self.broken:
                raise ZeroDivisionError("a bug")
            return super().create(path)

    disk = BrokenDisk()
    log = LogWriter(PosixStorage(tmp_path / "log", disk), SIGNER, create=True)
    disk.broken = True
    with pytest.raises(LogError, match=r"writer failed: ZeroDivisionError.*Open the log again"):
        log.append([b"entry"])
    with pytest.raises(LogError, match="writer failed"):
        log.append([b"entry"])
    log.close()
    with LogWriter(tmp_path / "log", SIGNER) as again:
        assert again.append([b"entry"]).first_index == 0


def test_cosignatures_are_published_late_under_the_lock_and_over_the_same_checkpoint(tmp_path: Path) -> None:
    place = tmp_path / "log"
    with LogWriter(place, SIGNER, create=True) as log:
        before = log.append([b"one"]).checkpoint
        note = before + signature_line("w.example/late", b"1234" + bytes(72)).encode()
        with pytest.raises(LogLockedError):
            publish_cosigned(place, note, before)
    publish_cosigned(place, note, before)
    assert (place / "checkpoint").read_bytes() == note
    with LogWriter(place, SIGNER) as log:
        assert log.checkpoint == note
        after = log.append([b"two"]).checkpoint
    with pytest.raises(LogError, match="another checkpoint by now"):
        publish_cosigned(place, note, before)
    with pytest.raises(ValueError, match="other signatures"):
        publish_cosigned(place, note, after)
    assert (place / "checkpoint").read_bytes() == after
