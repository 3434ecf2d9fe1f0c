"""The witness: each answer of the specification, one history however requests come, restarts and races."""

import base64
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from hashlib import sha256
from itertools import count
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from fieldprint.errors import FormatError, LogError
from fieldprint.note import NoteSigner, VerifierKey, sign_note, signature_line, verify_signatures
from fieldprint.tlog import (
    Checkpoint,
    TrustPolicy,
    merkle,
    verify_checkpoint,
    verify_consistency,
    verify_cosignatures,
)
from fieldprint.tlog.trust import KnownLog, KnownWitness
from fieldprint.tlog.witness import (
    MAX_REQUEST_SIZE,
    SIZE_TYPE,
    AddCheckpoint,
    Latest,
    RefusalError,
    Witness,
    WitnessState,
    check_request,
)
from tests.witnessing import (
    EAST,
    LOG,
    NORTH,
    ORIGIN,
    SOUTH,
    TIME,
    consistency,
    entries,
    head,
    latticed,
    signed,
)

FORK = b" forked"


def request(old: int, size: int, fork: bytes = b"", proof: Sequence[bytes] | None = None) -> bytes:
    if proof is None:
        proof = consistency(old, size, fork) if 0 <= old <= size else ()
    return AddCheckpoint(old, tuple(proof), signed(head(size, fork))).to_bytes()


@pytest.fixture
def witness(tmp_path: Path) -> Iterator[Witness]:
    state = WitnessState(tmp_path / "witness.db", new=True)
    yield Witness([NORTH], [LOG.verifier_key], state, clock=lambda: TIME)
    state.close()


def status(witness: Witness, body: bytes) -> int:
    """What the server would answer with; only a conflict has a size for its body."""
    try:
        witness.add_checkpoint(body)
    except RefusalError as refusal:
        return refusal.status if (refusal.content_type == SIZE_TYPE) == (refusal.status == 409) else 0
    return 200


def test_a_request_is_lines_an_empty_line_and_the_checkpoint() -> None:
    body = request(3, 5)
    hashes = "".join(base64.b64encode(value).decode() + "\n" for value in consistency(3, 5))
    assert body == f"old 3\n{hashes}\n".encode() + signed(head(5))
    assert AddCheckpoint.from_bytes(body).to_bytes() == body


@given(st.integers(0, 2**63 - 1), st.lists(st.binary(min_size=32, max_size=32), max_size=63), st.binary())
def test_a_request_round_trips(old: int, proof: list[bytes], note: bytes) -> None:
    made = AddCheckpoint(old, tuple(proof), note)
    assert AddCheckpoint.from_bytes(made.to_bytes()) == made


@given(st.binary(max_size=200))
def test_noise_is_refused(data: bytes) -> None:
    for noise in (data, b"old 0\n" + data):
        try:
            parsed = AddCheckpoint.from_bytes(noise)
        except FormatError:
            continue
        assert parsed.to_bytes() == noise  # the note is looked at later


def test_a_log_is_followed(witness: Witness) -> None:
    old = 0
    for size in (0, 1, 1, 3, 8, 13):
        lines = witness.add_checkpoint(request(old, size))
        note = head(size).to_text().encode() + b"\n" + lines
        (found,) = verify_signatures(note, [NORTH.verifier_key]).signatures
        assert found.timestamp == TIME and found.line.encode() == lines
        old = size
    latest = witness.state.latest(ORIGIN)
    assert latest is not None
    assert (latest.tree_size, latest.root_hash, latest.timestamp) == (13, head(13).root_hash, TIME)


def test_every_answer_of_the_specification(witness: Witness) -> None:
    stranger = NoteSigner(ORIGIN, EAST._private_key)  # type: ignore[arg-type]
    elsewhere = Checkpoint("fieldprint.example/other", 5, head(5).root_hash).to_text()
    empty_wrong = Checkpoint(ORIGIN, 0, bytes(32))
    assert status(witness, AddCheckpoint(0, (), sign_note(elsewhere, [LOG])).to_bytes()) == 404
    assert status(witness, AddCheckpoint(0, (), signed(head(5), signer=stranger)).to_bytes()) == 403
    assert (
        status(witness, AddCheckpoint(0, (), signed(head(5)).replace(b"\n5\n", b"\n6\n")).to_bytes()) == 403
    )
    assert status(witness, request(6, 5)) == 400
    assert status(witness, request(1, 5)) == 409
    assert status(witness, AddCheckpoint(0, (), signed(empty_wrong)).to_bytes()) == 422
    assert status(witness, request(0, 5, proof=[bytes(32)])) == 422
    assert witness.state.latest(ORIGIN) is None, "nothing that was refused is remembered"
    assert status(witness, request(0, 5)) == 200
    assert status(witness, request(5, 5)) == 200
    assert status(witness, request(5, 5, FORK)) == 422
    assert status(witness, request(5, 5, proof=[bytes(32)])) == 422
    assert status(witness, request(0, 8)) == 409
    assert status(witness, request(5, 8, FORK)) == 422
    assert status(witness, request(5, 8, proof=[])) == 422
    assert status(witness, request(5, 8, proof=consistency(5, 8)[:-1])) == 422
    assert status(witness, request(5, 4)) == 400
    assert status(witness, request(4, 4)) == 409, "an older tree of the same log is not cosigned again"
    latest = witness.state.latest(ORIGIN)
    assert latest is not None and latest.tree_size == 5


def test_a_conflict_says_the_last_size(witness: Witness) -> None:
    for size in (0, 5):
        if size:
            witness.add_checkpoint(request(0, size))
        with pytest.raises(RefusalError) as caught:
            witness.add_checkpoint(request(3, 8))
        assert (caught.value.status, caught.value.body, caught.value.content_type) == (
            409,
            f"{size}\n",
            "text/x.tlog.size",
        )


@pytest.mark.parametrize(
    ("old", "new"),
    [
        (b"old 3", b"old 03"),
        (b"old 3", b"old +3"),
        (b"old 3", b"old -3"),
        (b"old 3", b"old  3"),
        (b"old 3", b"old 3 "),
        (b"old 3", b"old 9223372036854775808"),
        (b"old 3", b"Old 3"),
        (b"old 3", b"old\t3"),
        (b"old 3", b"old 3\r"),
        (b"old 3\n", b""),
        (b"old 3\n", b"old 3\nold 3\n"),
        (b"old 3\n", b"old 3\n\n"),
        (b"old 3\n", b"old 3\n" + base64.b64encode(bytes(31)) + b"\n"),
        (b"old 3\n", b"old 3\n" + base64.b64encode(bytes(33)) + b"\n"),
        (b"old 3\n", b"old 3\n" + b"A" * 44 + b"\n"),
        (b"old 3\n", b"old 3\n" + (base64.b64encode(bytes(32)) + b"\n") * 62),
        (b"\n5\n", b"\n05\n"),
        (b"\n\n", b"\n"),
    ],
    ids=str,
)
def test_malformed_requests_are_400(witness: Witness, old: bytes, new: bytes) -> None:
    body = request(3, 5)
    assert old in body
    witness.add_checkpoint(request(0, 3))
    assert status(witness, body.replace(old, new)) == 400
    assert status(witness, body) == 200


def test_cut_and_oversized_requests_are_400(witness: Witness) -> None:
    body = request(0, 5)
    for position in range(len(body)):
        assert status(witness, body[:position]) == 400
    assert status(witness, body + b"\n") == 400
    assert status(witness, body.replace(b"\n\n", b"\n\n" + b"x" * MAX_REQUEST_SIZE + b"\n", 1)) == 400
    line = body.splitlines(keepends=True)[-1]
    assert status(witness, body + line) == 400, "a signature line twice"


@settings(max_examples=300, deadline=None)
@given(st.data())
def test_any_changed_byte_of_a_request_is_refused(data: st.DataObject) -> None:
    body = bytearray(request(3, 7))
    body[data.draw(st.integers(0, len(body) - 1))] ^= data.draw(st.integers(1, 255))
    state = WitnessState(Path(":memory:"), new=True)
    witness = Witness([NORTH], [LOG.verifier_key], state, clock=lambda: TIME)
    witness.add_checkpoint(request(0, 3))
    assert status(witness, bytes(body)) != 200
    state.close()


def test_signatures_by_others_are_ignored_and_not_passed_on(witness: Witness) -> None:
    witness.add_checkpoint(AddCheckpoint(0, (), signed(head(5), SOUTH)).to_bytes())
    served = witness.checkpoint(sha256(ORIGIN.encode()).hexdigest())
    keys = [LOG.verifier_key, NORTH.verifier_key, SOUTH.verifier_key]
    assert [found.key for found in verify_signatures(served, keys).signatures] == keys[:2]


def test_monitors_get_the_last_cosigned_checkpoint(witness: Witness) -> None:
    digest = sha256(ORIGIN.encode()).hexdigest()
    for wrong in (digest, digest.upper(), "00" * 32):
        with pytest.raises(RefusalError) as caught:
            witness.checkpoint(wrong)
        assert caught.value.status == 404
    lines = witness.add_checkpoint(request(0, 5))
    assert witness.checkpoint(digest) == signed(head(5)) + lines


def test_extension_lines_are_cosigned_with_the_rest(witness: Witness) -> None:
    extended = head(5, extensions=("more",))
    lines = witness.add_checkpoint(AddCheckpoint(0, (), signed(extended)).to_bytes())
    assert verify_signatures(extended.to_text().encode() + b"\n" + lines, [NORTH.verifier_key]).signatures


def test_a_witness_with_two_keys_answers_with_two_lines_over_the_whole_tree(tmp_path: Path) -> None:
    lattice = latticed(NORTH.name)
    state = WitnessState(tmp_path / "witness.db", new=True)
    witness = Witness([NORTH, lattice], [LOG.verifier_key], state, clock=lambda: TIME)
    note = head(5).to_text().encode() + b"\n" + witness.add_checkpoint(request(0, 5))
    found = verify_signatures(note, [NORTH.verifier_key, lattice.verifier_key]).signatures
    assert [signature.timestamp for signature in found] == [TIME, TIME]
    state.close()


def test_logs_and_keys_that_cannot_be_served_are_refused_at_the_start(tmp_path: Path) -> None:
    state = WitnessState(tmp_path / "witness.db", new=True)
    with pytest.raises(ValueError, match="one name"):
        Witness([], [LOG.verifier_key], state)
    with pytest.raises(ValueError, match="one name"):
        Witness([NORTH, SOUTH], [LOG.verifier_key], state)
    with pytest.raises(FormatError, match="another use"):
        Witness([NORTH], [SOUTH.verifier_key], state)
    with pytest.raises(FormatError, match="the witness's own"):
        Witness([NORTH], [VerifierKey(ORIGIN, NORTH.verifier_key.public_bytes)], state)
    with pytest.raises(FormatError, match="255"):
        Witness([latticed()], [VerifierKey("o" * 256, LOG.verifier_key.public_bytes)], state)
    state.close()


def test_a_log_may_have_two_keys_and_a_false_signature_by_either_is_403(tmp_path: Path) -> None:
    second = NoteSigner(ORIGIN, SOUTH._private_key)  # type: ignore[arg-type]
    state = WitnessState(tmp_path / "witness.db", new=True)
    witness = Witness([NORTH], [LOG.verifier_key, second.verifier_key], state)
    assert status(witness, AddCheckpoint(0, (), signed(head(5), signer=second)).to_bytes()) == 200
    false = sign_note(head(6).to_text(), [second]).splitlines(keepends=True)[-1]
    assert status(witness, AddCheckpoint(5, (), signed(head(5)) + false).to_bytes()) == 403
    state.close()


def test_a_log_may_sign_with_mldsa(tmp_path: Path) -> None:
    """As c2sp.org/tlog-checkpoint recommends for logs: a cosignature by the log itself, here without a time."""
    log = latticed(ORIGIN, 50)
    text = head(5).to_text()
    note = (text + "\n" + signature_line(ORIGIN, log.cosign(text.encode(), 0))).encode()
    state = WitnessState(tmp_path / "witness.db", new=True)
    witness = Witness([NORTH], [log.verifier_key], state)
    assert status(witness, AddCheckpoint(0, (), signed(head(5))).to_bytes()) == 403
    lines = witness.add_checkpoint(AddCheckpoint(0, (), note).to_bytes())
    policy = TrustPolicy((KnownLog(log.verifier_key),), (KnownWitness("n", NORTH.verifier_key),), (), "n")
    assert verify_checkpoint(note + lines, policy.log_keys) == head(5)
    assert [found.key for found in verify_cosignatures(note + lines, policy)] == [NORTH.verifier_key]
    state.close()


def test_a_restarted_witness_goes_on_where_it_was(tmp_path: Path) -> None:
    for old, size in ((0, 3), (3, 8), (8, 8)):
        state = WitnessState(tmp_path / "witness.db", new=old == 0)
        witness = Witness([NORTH], [LOG.verifier_key], state)
        assert status(witness, request(old, size)) == 200
        assert status(witness, request(0, 5, FORK)) in (409, 422)
        state.close()


def test_a_witness_that_lost_its_state_does_not_start_anew(tmp_path: Path) -> None:
    """It would cosign a second history: lost, in another folder, emptied, or begun twice."""
    path = tmp_path / "witness.db"
    state = WitnessState(path, new=True)
    assert status(Witness([NORTH], [LOG.verifier_key], state), request(0, 5)) == 200
    state.close()
    with pytest.raises(LogError, match="already exists"):
        WitnessState(path, new=True)
    for lost in path.parent.glob("witness.db*"):
        lost.unlink()
    with pytest.raises(LogError, match=r"is not there.*Bring it back"):
        WitnessState(path)
    assert not path.exists()
    path.touch()
    with pytest.raises(LogError, match="no such table"):
        WitnessState(path)


def test_a_clock_that_went_back_is_not_stated(tmp_path: Path) -> None:
    state = WitnessState(tmp_path / "witness.db", new=True)
    clock = iter([TIME, TIME - 1000, TIME + 5, -7.5])
    stamps = []
    for old, size in ((0, 1), (1, 2), (2, 3), (3, 4)):
        witness = Witness([NORTH], [LOG.verifier_key], state, clock=lambda: next(clock))
        note = head(size).to_text().encode() + b"\n" + witness.add_checkpoint(request(old, size))
        stamps.append(verify_signatures(note, [NORTH.verifier_key]).signatures[0].timestamp)
    assert stamps == [TIME, TIME, TIME + 5, TIME + 5]
    state.close()


def test_without_its_state_a_witness_signs_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "witness.db"
    path.write_bytes(b"no database" * 100)
    with pytest.raises(LogError, match="cannot be opened"):
        WitnessState(path)
    path.unlink()
    state = WitnessState(path, new=True)
    witness = Witness([NORTH], [LOG.verifier_key], state)
    blocker = sqlite3.connect(path, isolation_level=None)
    blocker.execute("BEGIN IMMEDIATE")
    state._rows.execute("PRAGMA busy_timeout = 10")
    with pytest.raises(LogError, match="cannot be used"):
        witness.add_checkpoint(request(0, 5))
    blocker.execute("ROLLBACK")
    blocker.close()
    assert status(witness, request(0, 5)) == 200
    state.close()
    with pytest.raises(LogError):
        witness.add_checkpoint(request(5, 8))


def test_a_row_is_replaced_only_where_it_is_the_one_that_was_seen(tmp_path: Path) -> None:
    state = WitnessState(tmp_path / "witness.db", new=True)
    rows = [Latest(size, bytes([size]) * 32, TIME, b"note") for size in range(4)]
    assert state.replace("a", None, rows[1])
    assert not state.replace("a", None, rows[2])
    assert not state.replace("a", rows[0], rows[2])
    assert state.replace("a", rows[1], rows[2])
    assert not state.replace("a", rows[1], rows[3])
    assert state.latest("a") == rows[2] and state.latest("b") is None
    state.close()


PUSH = """
import sys
from pathlib import Path
from fieldprint.tlog.witness import AddCheckpoint, Witness, WitnessState
from tests.witnessing import LOG, NORTH, ORIGIN, consistency, head, signed
path = Path(sys.argv[1])
witness = Witness([NORTH], [LOG.verifier_key], WitnessState(path, new=not path.exists()))
latest = witness.state.latest(ORIGIN)
old = latest.tree_size if latest else 0
while True:
    body = AddCheckpoint(old, tuple(consistency(old, old + 1) if old else ()), signed(head(old + 1)))
    witness.add_checkpoint(body.to_bytes())
    old += 1
    print(old, flush=True)
"""


def test_a_killed_witness_forgets_nothing_that_it_answered(tmp_path: Path) -> None:
    """Real SIGKILLs in the middle of requests; after each the state is at least the last answer, and one request more."""
    answered = 0
    for kill in range(6):
        process = subprocess.Popen(
            [sys.executable, "-W", "ignore", "-c", PUSH, str(tmp_path / "witness.db")],
            stdout=subprocess.PIPE,
            text=True,
        )
        assert process.stdout is not None
        for _ in range(3 + kill):
            answered = int(process.stdout.readline() or answered)
        time.sleep(kill / 1000)
        process.kill()
        rest, _ = process.communicate()
        answered = int((rest.split() or [str(answered)])[-1])
        state = WitnessState(tmp_path / "witness.db")
        latest = state.latest(ORIGIN)
        state.close()
        assert latest is not None and answered <= latest.tree_size <= answered + 1
        assert latest.root_hash == head(latest.tree_size).root_hash
        answered = latest.tree_size
    assert answered >= 33


@pytest.mark.parametrize("shared", [True, False], ids=["one-process", "two-openings"])
def test_of_two_histories_that_race_one_is_cosigned(tmp_path: Path, shared: bool) -> None:
    """Sixteen threads push two contradicting logs; whatever is cosigned is one history."""
    states = [WitnessState(tmp_path / "witness.db", new=n == 0) for n in range(1 if shared else 2)]
    notes: list[bytes] = []
    start = threading.Barrier(16)

    def push(number: int) -> None:
        witness = Witness([NORTH], [LOG.verifier_key], states[number % len(states)])
        fork = FORK if number % 2 else b""
        start.wait()
        for size in range(3 + number % 3, 14, 3):
            latest = witness.state.latest(ORIGIN)
            old = latest.tree_size if latest else 0
            if old <= size:
                try:
                    lines = witness.add_checkpoint(request(old, size, fork))
                except RefusalError:
                    continue
                notes.append(head(size, fork).to_text().encode() + b"\n" + lines)

    threads = [threading.Thread(target=push, args=(number,)) for number in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    heads = {}
    for note in notes:
        checkpoint = Checkpoint.from_text(verify_signatures(note, [NORTH.verifier_key]).text)
        assert heads.setdefault(checkpoint.tree_size, checkpoint.root_hash) == checkpoint.root_hash
    assert len(heads) >= 1
    forks = {
        fork
        for fork in (b"", FORK)
        if all(head(size, fork).root_hash == root for size, root in heads.items())
    }
    assert len(forks) == 1
    for state in states:
        state.close()


class OneHistory(RuleBasedStateMachine):
    """Whatever a client asks, in whatever order: cosigned trees grow, and each is a prefix of the next."""

    def __init__(self) -> None:
        super().__init__()
        self.state = WitnessState(Path(":memory:"), new=True)
        self.times = count(TIME)
        self.witness = Witness([NORTH], [LOG.verifier_key], self.state, clock=lambda: next(self.times))
        self.cosigned: list[tuple[int, bytes]] = []  # size and fork

    def ask(self, old: int, size: int, fork: bytes, proof: Sequence[bytes]) -> int:
        answered = status(self.witness, request(old, size, fork, proof))
        if answered == 200:
            self.cosigned.append((size, fork))
        return answered

    @rule(size=st.integers(0, 20), fork=st.sampled_from([b"", FORK]))
    def continue_the_last_tree(self, size: int, fork: bytes) -> None:
        old, last_fork = self.cosigned[-1] if self.cosigned else (0, fork)
        proof = consistency(old, size, fork) if old <= size else []
        same = head(old, fork).root_hash == head(old, last_fork).root_hash
        expected = 400 if old > size else 200 if same else 422
        assert self.ask(old, size, fork, proof) == expected

    @rule(
        old=st.integers(0, 21),
        size=st.integers(0, 20),
        fork=st.sampled_from([b"", FORK]),
        proof=st.lists(
            st.sampled_from([bytes(32), *consistency(7, 20), *consistency(3, 20, FORK)]), max_size=6
        ),
    )
    def ask_for_anything(self, old: int, size: int, fork: bytes, proof: list[bytes]) -> None:
        last = self.cosigned[-1][0] if self.cosigned else 0
        answered = self.ask(old, size, fork, proof)
        if old > size:
            assert answered == 400
        elif old != last:
            assert answered == 409

    @precondition(lambda self: bool(self.cosigned))
    @rule(fork=st.sampled_from([b"", FORK]), earlier=st.integers(0, 20))
    def ask_again_for_an_earlier_tree(self, fork: bytes, earlier: int) -> None:
        last = self.cosigned[-1][0]
        if earlier < last:
            assert self.ask(earlier, earlier, fork, []) == 409

    @invariant()
    def the_cosigned_trees_are_one_history(self) -> None:
        for (size1, fork1), (size2, fork2) in zip(self.cosigned, self.cosigned[1:], strict=False):
            assert size1 <= size2
            one, two = head(size1, fork1), head(size2, fork2)
            verify_consistency(size1, size2, consistency(size1, size2, fork2), one.root_hash, two.root_hash)

    @invariant()
    def the_state_is_the_last_cosigned_tree(self) -> None:
        latest = self.state.latest(ORIGIN)
        if not self.cosigned:
            assert latest is None
        else:
            assert latest is not None and latest.root_hash == head(*self.cosigned[-1]).root_hash

    def teardown(self) -> None:
        self.state.close()


OneHistory.TestCase.settings = settings(max_examples=40, stateful_step_count=15, deadline=None)
TestOneHistory = OneHistory.TestCase


def naive_check(
    old: int, last: int, size: int, old_root: bytes, log: list[bytes], root: bytes, proof: list[bytes]
) -> int:
    """The answer from the entries themselves, without proofs: a prefix is a prefix, and a right proof is the one."""

    def root_of(part: list[bytes]) -> bytes:
        return merkle.tree_hash(
            len(part),
            lambda level, i: merkle.fold([merkle.leaf_hash(e) for e in part[i << level : (i + 1) << level]]),
        )

    if old > size:
        return 400
    if old != last:
        return 409
    right = root_of(log[:size]) == root and root_of(log[:old]) == old_root and proof == consistency(old, size)
    return 200 if right else 422


@settings(max_examples=200, deadline=None)
@given(st.integers(0, 9), st.integers(0, 9), st.integers(0, 9), st.booleans(), st.booleans(), st.booleans())
def test_the_decision_is_that_of_the_naive_twin(
    old: int, last: int, size: int, forked: bool, known: bool, proved: bool
) -> None:
    checkpoint = head(size, FORK if forked else b"")
    proof = consistency(old, size) if proved and old <= size else []
    last = last if known else 0
    latest = Latest(last, head(last).root_hash, TIME, b"") if known else None
    want = naive_check(old, last, size, head(last).root_hash, entries(9), checkpoint.root_hash, proof)
    if last == 0 and old == 0 and not proof:
        want = 200  # any tree continues the empty one
    try:
        check_request(AddCheckpoint(old, tuple(proof), b""), checkpoint, latest)
        said = 200
    except RefusalError as refusal:
        said = refusal.status
    assert said == want


def test_the_conversation_of_another_witness_is_answered_as_there(tmp_path: Path) -> None:
    """The requests of litewitness's own test (torchwood, cmd/litewitness/testdata), as a log of another project made
    them; an unknown origin was 403 when they were written and is 404 in the specification."""
    origin = "sigsum.org/v1/tree/4d6d8825a6bb689d459628312889dfbb0bcd41b5211d9e1ce768b0ff0309e562"
    key = VerifierKey(
        origin, bytes.fromhex("ffdc2d4d98e4124d3feaf788c0c2f9abfd796083d1f0495437f302ec79cf100f")
    )
    hashes = {n: base64.b64encode(bytes([0x2A, n]) + bytes(30)).decode() for n in range(5)}
    signatures = {
        1: "UgIom7fPZTqpxWWhyjWduBvTvGVqsokMbqTArsQilegKoFBJQjUFAmQ0+YeSPM3wfUQMFSzVnnNuWRTYrajXpNUbIQY=",
        3: "UgIom2VbtIcdFbwFAy1n7s6IkAxIY6J/GQOTuZF2ORV39d75cbAj2aQYwyJre36kezNobZs4SUUdrcawfAB8WVrx6go=",
        5: "UgIomw/EOJmWi0i1FQsOj+etB7F8IccFam/jgd6wzRns4QPVmyEZtdvl1U2KEmLOZ/ASRcWJi0tW90dJWAShei7sDww=",
    }
    roots = {
        1: hashes[0],
        3: "RcCI1Nk56ZcSmIEfIn0SleqtV7uvrlXNccFx595Iwl0=",
        5: "QrtXrQZCCvpIgsSmOsah7HdICzMLLyDfxToMql9WTjY=",
    }
    state = WitnessState(tmp_path / "witness.db", new=True)
    witness = Witness([NORTH], [key], state)

    def ask(old: int, proof: list[str], size: int, name: str = origin, signature: str | None = None) -> int:
        note = f"{name}\n{size}\n{roots[size]}\n\n\N{EM DASH} {name} {signature or signatures[size]}\n"
        return status(witness, ("".join(f"{line}\n" for line in (f"old {old}", *proof, "")) + note).encode())

    assert ask(0, [], 1) == 200
    assert ask(1, [hashes[1], hashes[2]], 3, signature=signatures[3].replace("6go=", "6gw=")) == 403
    assert ask(1, [hashes[1], hashes[2]], 3, name=origin[:-1] + "3") == 404
    assert ask(1, [], 3) == 422
    assert ask(1, [hashes[1], hashes[2].replace("AAA=", "BAA=")], 3) == 422
    assert ask(1, [hashes[1], hashes[2]], 3) == 200
    assert ask(1, [hashes[0], "+fUDV+k970B4I3uKrqJM4aP1lloPZP8mvr2Z4wRw2LI=", hashes[4]], 5) == 409
    assert ask(3, [hashes[2], hashes[3], "wgiIFdZfYNv6WU1OllBKsWnLYIS/DBMqt8Uh/S4OukE=", hashes[4]], 5) == 200
    assert ask(0, [], 5) == 409
    state.close()
