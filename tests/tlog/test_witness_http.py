"""Witness and client over real sockets on the loopback: answers, conflicts, deadlines, several witnesses at once."""

import http.client
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from hashlib import sha256
from itertools import takewhile
from pathlib import Path

import pytest

from fieldprint.errors import FormatError, LogError
from fieldprint.note import Cosigner, VerifierKey, signature_line, verify_signatures
from fieldprint.tlog import (
    LogReader,
    LogWriter,
    TrustPolicy,
    prove_entry,
    verify_cosignatures,
    verify_log_proof,
)
from fieldprint.tlog.trust import KnownWitness
from fieldprint.tlog.witness import MAX_REQUEST_SIZE, AddCheckpoint, Witness, WitnessState
from fieldprint.tlog.witness_client import WitnessClient, WitnessQuorum, with_cosignatures
from fieldprint.tlog.witness_server import WitnessServer, answer
from tests.witnessing import EAST, LOG, NORTH, ORIGIN, SOUTH, TIME, consistency, head, latticed, signed, trust

Proofs = Callable[[int], list[bytes]]
Connect = Callable[..., WitnessClient]


@contextmanager
def serving(
    path: Path, *cosigners: Cosigner, report: Callable[[str], None] = lambda _line: None
) -> Iterator[WitnessServer]:
    state = WitnessState(path, new=not path.exists())
    server = WitnessServer(Witness(cosigners, [LOG.verifier_key], state), ("127.0.0.1", 0), report)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
        state.close()


@pytest.fixture
def server(tmp_path: Path) -> Iterator[WitnessServer]:
    with serving(tmp_path / "north.db", NORTH) as running:
        yield running


def proofs(size: int, fork: bytes = b"") -> Proofs:
    return lambda old: consistency(old, size, fork)


@pytest.fixture
def connect() -> Iterator[Connect]:
    """Makes clients, and closes them at the end."""
    made: list[WitnessClient] = []

    def make(url: str, keys: list[VerifierKey], *, timeout: float = 5.0) -> WitnessClient:
        made.append(WitnessClient(url, keys, timeout=timeout))
        return made[-1]

    yield make
    for client in made:
        client.close()


def exchange(
    server: WitnessServer, method: str, path: str, body: bytes | None = None, **headers: str
) -> tuple[int, str, bytes]:
    connection = http.client.HTTPConnection(*server.server_address[:2], timeout=5)
    connection.request(method, path, body, headers)
    response = connection.getresponse()
    said = response.status, response.headers["Content-Type"], response.read()
    connection.close()
    return said


def test_client_and_witness_follow_a_log(server: WitnessServer, connect: Connect) -> None:
    client = connect(server.url, [NORTH.verifier_key])
    for size in (1, 3, 3, 8, 13):
        (found,) = client.add_checkpoint(signed(head(size)), proofs(size))
        note = signed(head(size)) + found.line.encode()
        assert verify_signatures(note, [NORTH.verifier_key]).signatures == (found,)
        assert found.timestamp is not None and abs(found.timestamp - time.time()) < 60
    client.close()


def test_a_client_that_knows_nothing_learns_the_size_from_the_conflict(
    server: WitnessServer, connect: Connect
) -> None:
    connect(server.url, [NORTH.verifier_key]).add_checkpoint(signed(head(5)), proofs(5))
    asked: list[int] = []

    def recorded(old: int) -> list[bytes]:
        asked.append(old)
        return consistency(old, 9)

    fresh = connect(server.url + "/", [NORTH.verifier_key])
    assert fresh.add_checkpoint(signed(head(9)), recorded)
    assert asked == [5]


def test_a_fork_or_an_older_tree_is_never_cosigned(server: WitnessServer, connect: Connect) -> None:
    client = connect(server.url, [NORTH.verifier_key])
    client.add_checkpoint(signed(head(5)), proofs(5))
    with pytest.raises(LogError, match="answers 422"):
        client.add_checkpoint(signed(head(8, b"fork")), proofs(8, b"fork"))
    with pytest.raises(LogError, match="cosigned a tree of 5 entries, and this one has 3"):
        client.add_checkpoint(signed(head(3)), proofs(3))
    assert client.add_checkpoint(signed(head(8)), proofs(8))


def test_a_client_says_what_a_refusal_means(server: WitnessServer, connect: Connect) -> None:
    client = connect(server.url, [NORTH.verifier_key])
    stranger = type(LOG)(ORIGIN, EAST._private_key)
    with pytest.raises(LogError, match=r"answers 403: no key.*Does the witness know"):
        client.add_checkpoint(signed(head(5), signer=stranger), proofs(5))
    other = connect(server.url + "/elsewhere", [NORTH.verifier_key])
    with pytest.raises(LogError, match="answers 404"):
        other.add_checkpoint(signed(head(5)), proofs(5))
    with pytest.raises(FormatError):
        client.add_checkpoint(b"no checkpoint", proofs(5))
    wrong_key = connect(server.url, [SOUTH.verifier_key])
    with pytest.raises(LogError, match="without a cosignature by its key"):
        wrong_key.add_checkpoint(signed(head(5)), proofs(5))


def test_a_kept_connection_that_the_server_closed_is_opened_again(tmp_path: Path, connect: Connect) -> None:
    with serving(tmp_path / "a.db", NORTH) as first:
        port = first.server_address[1]
        client = connect(first.url, [NORTH.verifier_key])
        client.add_checkpoint(signed(head(3)), proofs(3))
        kept = client._connection
        client.add_checkpoint(signed(head(4)), proofs(4))
        assert client._connection is kept and kept is not None
        assert kept.sock is not None
        kept.sock.shutdown(socket.SHUT_RDWR)
        assert client.add_checkpoint(signed(head(5)), proofs(5))
    client.close()
    nobody = connect(f"http://127.0.0.1:{port}", [NORTH.verifier_key])
    with pytest.raises(LogError, match="cannot be asked"):
        nobody.add_checkpoint(signed(head(6)), proofs(6))


def test_a_restarted_witness_answers_with_what_it_remembers(tmp_path: Path, connect: Connect) -> None:
    for size in (3, 5, 9):
        with serving(tmp_path / "north.db", NORTH) as running:
            client = connect(running.url, [NORTH.verifier_key])
            assert client.add_checkpoint(signed(head(size)), proofs(size))
            with pytest.raises(LogError):
                client.add_checkpoint(signed(head(size, b"fork")), proofs(size, b"fork"))
            client.close()


def test_the_answers_on_the_wire(server: WitnessServer) -> None:
    body = AddCheckpoint(0, (), signed(head(5))).to_bytes()
    digest = sha256(ORIGIN.encode()).hexdigest()
    assert exchange(server, "GET", f"/{digest}/checkpoint")[0] == 404
    status, kind, lines = exchange(server, "POST", "/add-checkpoint", body)
    assert (status, kind) == (200, "text/plain; charset=utf-8") and lines.startswith("\N{EM DASH} ".encode())
    assert exchange(server, "POST", "/add-checkpoint", body) == (409, "text/x.tlog.size", b"5\n")
    assert exchange(server, "GET", f"/{digest}/checkpoint") == (200, kind, signed(head(5)) + lines)
    assert exchange(server, "GET", "/add-checkpoint")[0] == 405
    for path in (
        "/",
        f"/{digest}",
        f"/{digest}/checkpoint/",
        f"/x/../{digest}/checkpoint",
        "/add-checkpoint/",
    ):
        assert exchange(server, "GET", path)[0] == 404
    assert exchange(server, "POST", f"/{digest}/checkpoint", b"")[0] == 404
    assert exchange(server, "POST", "/add-checkpoint", b"x")[0] == 400
    assert exchange(server, "POST", "/add-checkpoint", bytes(MAX_REQUEST_SIZE + 1))[0] == 413
    assert exchange(server, "PUT", "/add-checkpoint", body)[0] == 501
    chunked = exchange(server, "POST", "/add-checkpoint", body, **{"Transfer-Encoding": "chunked"})
    assert chunked[0] == 411


@pytest.mark.parametrize("length", ["-1", "1_0", "+5", "99999999999", "x", ""])
def test_lengths_that_are_none_are_refused(server: WitnessServer, length: str) -> None:
    with socket.create_connection(server.server_address[:2], timeout=5) as raw:
        raw.sendall(f"POST /add-checkpoint HTTP/1.1\r\nContent-Length: {length}\r\n\r\n".encode())
        assert b" 411 " in raw.recv(1000)


def test_a_body_that_ends_early_changes_nothing(server: WitnessServer) -> None:
    body = AddCheckpoint(0, (), signed(head(5))).to_bytes()
    with socket.create_connection(server.server_address[:2], timeout=5) as raw:
        raw.sendall(
            f"POST /add-checkpoint HTTP/1.1\r\nContent-Length: {len(body) + 5}\r\n\r\n".encode() + body
        )
        raw.shutdown(socket.SHUT_WR)
        assert raw.recv(1000) == b""
    assert server.witness.state.latest(ORIGIN) is None


def test_requests_are_reported_without_what_could_steer_a_terminal(tmp_path: Path) -> None:
    said: list[str] = []
    with serving(tmp_path / "north.db", NORTH, report=said.append) as running:
        with socket.create_connection(running.server_address[:2], timeout=5) as raw:
            raw.sendall(b"GET /\x1b[31m HTTP/1.0\r\n\r\n")
            assert b" 404 " in raw.recv(1000)
        exchange(running, "POST", "/add-checkpoint", AddCheckpoint(0, (), signed(head(5))).to_bytes())
    assert any('"POST /add-checkpoint HTTP/1.1" 200' in line for line in said)
    assert all(line.isprintable() for line in said)


def test_more_connections_than_there_is_room_for_are_closed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("fieldprint.tlog.http_server.MAX_CONNECTIONS", 2)
    with serving(tmp_path / "north.db", NORTH) as running, ExitStack() as stack:
        held = [
            stack.enter_context(socket.create_connection(running.server_address[:2], timeout=5))
            for _ in range(2)
        ]
        for raw in held:
            raw.sendall(b"GET / HTTP/1.1\r\n\r\n")
            assert b" 404 " in raw.recv(1000)
        with (
            socket.create_connection(running.server_address[:2], timeout=5) as third,
            suppress(ConnectionError),
        ):
            third.sendall(b"GET / HTTP/1.1\r\n\r\n")
            assert third.recv(1000) == b""
        held[0].close()
        held.pop()
        deadline = time.monotonic() + 5
        while time.monotonic() < deadline:
            with suppress(ConnectionError):
                if exchange(running, "GET", "/")[0] == 404:
                    break
        else:
            pytest.fail("no room was made")


def test_the_answer_without_its_state_is_500_and_no_cosignature(tmp_path: Path) -> None:
    state = WitnessState(tmp_path / "north.db", new=True)
    witness = Witness([NORTH], [LOG.verifier_key], state)
    state.close()
    said = answer(witness, "POST", "/add-checkpoint", AddCheckpoint(0, (), signed(head(5))).to_bytes())
    assert said.status == 500 and b"\xe2\x80\x94" not in said.body


@contextmanager
def saying(*replies: bytes) -> Iterator[str]:
    """A server that answers each connection with fixed bytes, whatever it is asked; the last one again and again."""
    listener = socket.create_server(("127.0.0.1", 0))
    done = threading.Event()

    def run() -> None:
        number = 0
        while not done.is_set():
            with suppress(OSError), listener.accept()[0] as raw:
                raw.settimeout(2)
                with raw.makefile("rb") as file:  # all of it is read, or closing would reset the connection
                    lines = list(takewhile(bytes.strip, file))
                    file.read(
                        next(int(line.split()[1]) for line in lines if line.startswith(b"Content-Length"))
                    )
                reply = replies[min(number, len(replies) - 1)]
                number += 1
                raw.sendall(reply)
                if not reply:
                    done.wait(3)

    thread = threading.Thread(target=run)
    thread.start()
    try:
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
    finally:
        done.set()
        with suppress(OSError):
            listener.shutdown(socket.SHUT_RDWR)
        listener.close()
        thread.join()


def reply(status: int, body: bytes) -> bytes:
    return f"HTTP/1.1 {status} X\r\nContent-Length: {len(body)}\r\nConnection: close\r\n\r\n".encode() + body


def lines_of(cosigner: Cosigner, size: int = 5, time: int = 7) -> bytes:
    return signed(head(size), cosigner, time=time).splitlines(keepends=True)[-1]


def longer_line() -> bytes:
    """A signature over the checkpoint's text and more."""
    text = head(5).to_text() + "\nx\n"
    return signature_line(NORTH.name, NORTH.cosign(text.encode(), 7)).encode()


@pytest.mark.parametrize(
    ("replies", "error"),
    [
        ([reply(409, b"5")], "409 without a tree size"),
        ([reply(409, b"05\n")], "409 without a tree size"),
        ([reply(409, b"-5\n")], "409 without a tree size"),
        ([reply(409, b"\xff\n")], "409 without a tree size"),
        ([reply(409, b"")], "409 without a tree size"),
        ([reply(409, b"9\n")], "cosigned a tree of 9 entries"),
        ([reply(409, b"3\n")], "answered 4 times"),
        ([reply(500, b"\x1b[31m")], r"answers 500: \?\[31m"),
        ([reply(302, b"")], "answers 302"),
        ([reply(200, b"")], "no cosignature"),
        ([reply(200, b"OK\n")], "no cosignature"),
        ([reply(200, lines_of(SOUTH))], "without a cosignature by its key"),
        ([reply(200, lines_of(NORTH, size=6))], "north on the note is not valid"),
        ([reply(200, lines_of(NORTH, time=0))], "states a time"),
        ([reply(200, lines_of(NORTH)[:-1])], "no cosignature"),
        ([reply(200, lines_of(NORTH) * 2)], "twice"),
        ([reply(200, b"x\n\n" + longer_line())], "holds an empty line"),
        ([reply(200, b"x" * 200_000)], "more than 131072 bytes"),
        ([b"garbage\r\n\r\n"], "cannot be asked"),
        ([b"HTTP/1.1 200 X\r\nContent-Length: 100\r\n\r\nshort"], "cannot be asked"),
        ([b""], "cannot be asked"),
    ],
)  # fmt: skip
def test_bad_answers_are_refused(replies: list[bytes], error: str, connect: Connect) -> None:
    with saying(*replies) as url:
        client = connect(url, [NORTH.verifier_key], timeout=1.0)
        with pytest.raises(LogError, match=error):
            client.add_checkpoint(signed(head(5)), proofs(5))


def test_a_good_line_among_strangers_is_taken_alone(connect: Connect) -> None:
    with saying(reply(200, lines_of(SOUTH) + lines_of(NORTH) + lines_of(EAST))) as url:
        (found,) = connect(url, [NORTH.verifier_key]).add_checkpoint(signed(head(5)), proofs(5))
    assert found.line.encode() == lines_of(NORTH) and found.timestamp == 7


@pytest.mark.parametrize(
    ("begins", "goes_on"),
    [
        (b"HTTP/1.1 200 X\r\nContent-Length: 1000\r\n\r\n", b"x"),
        (b"HTTP/1.1 200 X\r\nX-Drip: ", b"x"),
        (b"HTTP", b"/"),
        (b"", b"HTTP/1.1 100 Continue\r\n\r\n"),
    ],
    ids=["body", "header", "status", "continue"],
)
def test_an_answer_that_drips_ends_at_the_deadline(connect: Connect, begins: bytes, goes_on: bytes) -> None:
    listener = socket.create_server(("127.0.0.1", 0))
    stop = threading.Event()

    def drip() -> None:
        with listener.accept()[0] as raw, suppress(OSError):
            raw.recv(1 << 17)
            raw.sendall(begins)
            while not stop.wait(0.05) and time.monotonic() - begin < 5:
                raw.sendall(goes_on)

    begin = time.monotonic()
    thread = threading.Thread(target=drip)
    thread.start()
    client = connect(f"http://127.0.0.1:{listener.getsockname()[1]}", [NORTH.verifier_key], timeout=0.3)
    with pytest.raises(LogError, match=r"in time|timed out"):
        client.add_checkpoint(signed(head(5)), proofs(5))
    assert time.monotonic() - begin < 2
    stop.set()
    thread.join()
    listener.close()


@pytest.mark.parametrize(
    "url",
    ["", "witness.example", "ftp://w.example", "http://", "http://w.example:port", "http://w.example/a?b",
     "http://w.example/#a", "http://user@w.example/", "http://w.example/a b", "http://w.example/\u00e9",
     "http://[::1", "http://w.example:99999"],
)  # fmt: skip
def test_urls_of_no_witness_are_refused(url: str) -> None:
    with pytest.raises(FormatError, match="no URL"):
        WitnessClient(url, [NORTH.verifier_key])


def test_several_witnesses_are_asked_side_by_side(tmp_path: Path) -> None:
    lattice = latticed()
    with ExitStack() as stack:
        urls = tuple(
            stack.enter_context(serving(tmp_path / f"{number}.db", cosigner)).url
            for number, cosigner in enumerate((NORTH, SOUTH, lattice))
        )
        policy = trust(NORTH, SOUTH, lattice, urls=urls)
        ask = WitnessQuorum(policy, deadline=5)
        for size in (2, 5, 9):
            note = signed(head(size))
            found = ask(note, proofs(size))
            assert found.quorum and not found.failures and len(found.signatures) == 3
            verify_cosignatures(note + found.lines, policy)
        ask.close()


def test_a_new_cosignature_replaces_the_older_one_by_its_key() -> None:
    keys = [LOG.verifier_key, NORTH.verifier_key, SOUTH.verifier_key]
    old = verify_signatures(signed(head(5), NORTH, SOUTH), keys)
    newer = verify_signatures(signed(head(5), NORTH, time=TIME + 1), [NORTH.verifier_key]).signatures
    found = verify_signatures(with_cosignatures(signed(head(5), NORTH, SOUTH), newer), keys).signatures
    assert found == (old.signatures[0], old.signatures[2], *newer)
    assert with_cosignatures(signed(head(5)), old.signatures[1:]) == signed(head(5), NORTH, SOUTH)


def test_the_writer_publishes_what_its_witnesses_cosigned(tmp_path: Path) -> None:
    """The log's writer with a real witness behind it: states, checkpoint and proof."""
    with serving(tmp_path / "n.db", NORTH) as north:
        policy = trust(NORTH, urls=(north.url,))
        ask = WitnessQuorum(policy)
        with LogWriter(tmp_path / "log", LOG, create=True, cosign=ask) as log:
            for number in range(3):
                log.append([b"entry %d" % number])
        ask.close()
        latest = north.witness.state.latest(ORIGIN)
    assert latest is not None and latest.tree_size == 3
    proof = prove_entry(LogReader(tmp_path / "log", [LOG.verifier_key]), 1)
    verified = verify_log_proof(proof.to_bytes(), policy, b"entry 1")
    assert [signature.key for signature in verified.cosignatures] == [NORTH.verifier_key]


def test_one_witness_with_two_keys_is_asked_once(tmp_path: Path) -> None:
    lattice = latticed(NORTH.name)
    with serving(tmp_path / "w.db", NORTH, lattice) as running:
        policy = trust(NORTH, lattice, urls=(running.url, running.url))
        ask = WitnessQuorum(policy)
        assert len(ask._clients) == 1
        found = ask(signed(head(5)), proofs(5))
        assert found.quorum and {signature.key for signature in found.signatures} == set(policy.witness_keys)
        ask.close()


def test_a_witness_that_is_down_or_lies_costs_its_cosignature_alone(tmp_path: Path) -> None:
    with serving(tmp_path / "n.db", NORTH) as north, saying(reply(200, lines_of(SOUTH, size=6))) as liar:
        gone = "http://127.0.0.1:1"
        for threshold, met in ((1, True), (2, False)):
            policy = trust(NORTH, SOUTH, EAST, threshold=threshold, urls=(north.url, liar, gone))
            ask = WitnessQuorum(policy, deadline=3, grace=1)
            found = ask(signed(head(5)), proofs(5))
            assert found.quorum is met and set(found.failures) == {liar, gone}
            assert [signature.key for signature in found.signatures] == [NORTH.verifier_key]
            assert "not valid" in found.failures[liar] and "cannot be asked" in found.failures[gone]
            ask.close()


def test_nobody_is_waited_for_beyond_the_deadline_or_once_the_quorum_is_met(tmp_path: Path) -> None:
    with serving(tmp_path / "n.db", NORTH) as north, saying(b"") as silent:
        policy = trust(NORTH, SOUTH, threshold=1, urls=(north.url, silent))
        ask = WitnessQuorum(policy, deadline=30, grace=0.1)
        for size in (5, 6):  # the second time the first request to the silent one may still be ending
            begin = time.monotonic()
            found = ask(signed(head(size)), proofs(size))
            assert found.quorum and silent in found.failures and time.monotonic() - begin < 5
        both = WitnessQuorum(trust(NORTH, SOUTH, urls=(north.url, silent)), deadline=0.4)
        begin = time.monotonic()
        found = both(signed(head(7)), proofs(7))
        assert not found.quorum and len(found.signatures) == 1 and time.monotonic() - begin < 3
        assert "in time" in found.failures[silent]
        ask.close()
        both.close()


def test_a_proof_that_cannot_be_had_is_a_failure_of_its_witness(tmp_path: Path) -> None:
    with serving(tmp_path / "n.db", NORTH) as north:
        ask = WitnessQuorum(trust(NORTH, urls=(north.url,)))
        assert ask(signed(head(5)), proofs(5)).quorum

        def broken(old: int) -> list[bytes]:
            raise ValueError(f"no proof from {old}")

        found = ask(signed(head(9)), broken)
        assert not found.quorum and "no proof from 5" in found.failures[north.url]
        ask.close()


def test_a_quorum_that_no_url_can_meet_is_refused_at_once() -> None:
    with pytest.raises(FormatError, match="cannot meet the quorum"):
        WitnessQuorum(trust(NORTH, SOUTH))
    only = TrustPolicy((), (KnownWitness("w", NORTH.verifier_key),))
    assert WitnessQuorum(only)(signed(head(5)), proofs(5)).quorum
