"""The log's attack vectors: what must pass passes, what must be refused is refused as the vector says.

The requests go over a real socket to a server on this machine, and the answers come over one to the reader.
"""

import base64
import json
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from fieldprint.anchor import Policy
from fieldprint.audit import EntryCheck
from fieldprint.errors import FormatError, LogError, VerificationError
from fieldprint.note import VerifierKey
from fieldprint.tlog import Checkpoint, LogReader, leaf_hash, verify_subtree
from fieldprint.tlog.audit import Audited, AuditError, LogAudit
from fieldprint.tlog.http_server import HttpServer
from fieldprint.tlog.serve import LogSite
from fieldprint.tlog.storage.http import HttpSource
from fieldprint.tlog.tile import decode_bundle, decode_tile
from fieldprint.tlog.trust import KnownLog, TrustPolicy
from tests.vectors.log.make_log_vectors import render

FOLDER = Path(__file__).parent / "vectors/log"
raw = base64.b64decode
LOGS = json.loads((FOLDER / "logs.json").read_text())
POLICY = Policy.from_bytes(json.loads((FOLDER.parent / "policy.json").read_text())["policy"].encode())
KEY = VerifierKey.parse(LOGS["vkey"])
TRUST = TrustPolicy((KnownLog(KEY),))
NAMES = ("checkpoint", "tile", "subtree", "audit", "entries", "request", "response")
ROWS = {name: json.loads((FOLDER / f"{name}.json").read_text()) for name in NAMES}


def vectors(name: str) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("vector", [pytest.param(row, id=row["desc"]) for row in ROWS[name]])


def test_the_files_are_what_their_script_makes() -> None:
    assert {path.name for path in FOLDER.glob("*.json")} == set(render())
    for name, content in render().items():
        assert (FOLDER / name).read_text() == content, name


def test_every_vector_has_a_name_of_its_own_and_there_are_many() -> None:
    for rows in ROWS.values():
        assert len({row["desc"] for row in rows}) == len(rows)
    assert sum(map(len, ROWS.values())) >= 200


@vectors("checkpoint")
def test_checkpoint(vector: dict[str, Any]) -> None:
    data = raw(vector["text"]).decode()
    if vector["want_error"] is None:
        assert Checkpoint.from_text(data).to_text() == data
        return
    with pytest.raises(FormatError):
        Checkpoint.from_text(data)


@vectors("tile")
def test_tile(vector: dict[str, Any]) -> None:
    decode = {"tile": decode_tile, "bundle": decode_bundle}[vector["kind"]]
    if vector["want_error"] is None:
        assert len(decode(raw(vector["data"]), vector["width"])) == vector["width"]
        return
    with pytest.raises(FormatError):
        decode(raw(vector["data"]), vector["width"])


@vectors("subtree")
def test_subtree(vector: dict[str, Any]) -> None:
    proof = [raw(h) for h in vector["proof"]]
    arguments = vector["start"], vector["stop"], vector["tree_size"], proof
    hashes = raw(vector["subtree_hash"]), raw(vector["root_hash"])
    if vector["want_error"] is None:
        verify_subtree(*arguments, *hashes)
        return
    with pytest.raises(VerificationError) as caught:
        verify_subtree(*arguments, *hashes)
    assert caught.value.check == vector["want_error"]


class Files:
    """A log of logs.json, with a vector's changes."""

    place = "vectors"

    def __init__(self, log: str, changes: list[list[Any]]) -> None:
        self.files = {name: raw(data) for name, data in LOGS["logs"][log].items()}
        for what, name, *arguments in changes:
            getattr(self, "_" + what)(name, *arguments)

    def _remove(self, name: str) -> None:
        del self.files[name]

    def _xor(self, name: str, position: int, mask: int) -> None:
        data = bytearray(self.files[name])
        data[position] ^= mask
        self.files[name] = bytes(data)

    def _cut(self, name: str, length: int) -> None:
        assert length < len(self.files[name])
        self.files[name] = self.files[name][:length]

    def _append(self, name: str, data: str) -> None:
        self.files[name] += raw(data)

    def _put(self, name: str, data: str) -> None:
        self.files[name] = raw(data)

    def _copy(self, name: str, log: str, source: str) -> None:
        self.files[name] = raw(LOGS["logs"][log][source])

    def read(self, name: str) -> bytes | None:
        return self.files.get(name)


@vectors("audit")
def test_audit(vector: dict[str, Any]) -> None:
    since = None
    if vector["since"] is not None:
        log, position = vector["since"]
        since = Audited(raw(LOGS["logs"][log]["checkpoint"]), position)
    source = Files(vector["log"], vector["changes"])

    def run() -> None:
        audit = LogAudit(source, TRUST, since)
        last = audit.position
        for bundle in audit.bundles():
            assert bundle.start == last
            last += len(bundle.entries)
        assert last == audit.checkpoint.tree_size

    if vector["want_error"] is None:
        run()
        return
    with pytest.raises(AuditError) as caught:
        run()
    assert caught.value.check == vector["want_error"]
    if vector["want_place"] is not None:
        assert caught.value.place == vector["want_place"]


@vectors("entries")
def test_entries(vector: dict[str, Any]) -> None:
    check = EntryCheck(POLICY)
    for index, entry in enumerate(map(raw, vector["entries"])):
        check.add(index, entry, leaf_hash(entry))
    assert [finding.index for finding in check.findings] == vector["want"]
    assert check.num_findings == len(vector["want"])


class NoWriter:
    """Nothing of the vectors may get as far as to be written."""

    def append(self, entries: list[bytes]) -> Any:
        raise AssertionError(entries)


@pytest.fixture(scope="module")
def server() -> Iterator[HttpServer]:
    site = LogSite(Files("300", []), writer=NoWriter(), token=LOGS["token"])
    with HttpServer(site, ("127.0.0.1", 0)) as made:
        thread = threading.Thread(target=made.serve_forever, daemon=True)
        thread.start()
        yield made
        made.shutdown()
        thread.join(10)


@vectors("request")
def test_request(vector: dict[str, Any], server: HttpServer) -> None:
    address: Any = server.server_address
    with socket.create_connection(address, timeout=10) as connection:
        connection.sendall(raw(vector["request"]))
        connection.shutdown(socket.SHUT_WR)
        answer = b""
        try:
            while part := connection.recv(1 << 16):
                answer += part
        except ConnectionResetError:  # the server closed while we had more to send; its answer arrived before
            pass
    head, _, body = answer.partition(b"\r\n\r\n")
    lines = head.decode("latin-1").split("\r\n")
    assert int(lines[0].split()[1]) == vector["want_status"]
    headers = dict(line.split(": ", 1) for line in lines[1:])
    assert vector["want_headers"].items() <= headers.items()
    if vector["want_body"] is not None:
        assert body == raw(vector["want_body"])
    elif vector["want_status"] >= 400:
        assert len(body) < 600 and b"secret" not in body


@contextmanager
def answering(answers: list[bytes]) -> Iterator[tuple[str, list[int]]]:
    """A server that gives one answer a connection, then hangs up; its URL, and how many connections there were."""
    taken: list[int] = []
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.settimeout(10)

        def serve() -> None:
            for answer in answers:
                try:
                    connection, _ = listener.accept()
                except OSError:
                    return
                taken.append(1)
                with connection:
                    connection.settimeout(10)
                    try:
                        connection.recv(1 << 16)
                        connection.sendall(answer)
                    except OSError:
                        continue

        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        yield f"http://127.0.0.1:{listener.getsockname()[1]}", taken
    thread.join(10)


@vectors("response")
def test_response(vector: dict[str, Any]) -> None:
    with answering([raw(answer) for answer in vector["answers"]]) as (url, taken):
        source = HttpSource(url, timeout=5, pause=0.01)
        if vector["want"] == "refused":
            with pytest.raises(LogError):
                source.read("checkpoint")
        else:
            good = raw(LOGS["logs"]["300"]["checkpoint"])
            assert source.read("checkpoint") == (good if vector["want"] == "ok" else None)
        assert len(taken) == len(vector["answers"])


@pytest.mark.parametrize("log", ["0", "3", "299", "300", "600"])
def test_the_logs_of_the_vectors_are_good_for_a_reader_too(log: str) -> None:
    reader = LogReader(Files(log, []), [KEY])
    assert list(reader.entries()) == [b"entry %d" % i for i in range(int(log))]
