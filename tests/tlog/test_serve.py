"""Serving a log: what a static file server would do, writing with a token, metrics; attacks are in vectors/log/request.json."""

import http.client
import json
import re
import socket
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from hypothesis import given
from hypothesis import strategies as st

from fieldprint.errors import CapacityError, FormatError, LogError
from fieldprint.note import Cosigner, NoteSigner
from fieldprint.tlog import LogReader, LogWriter, open_source
from fieldprint.tlog.http_server import HttpServer
from fieldprint.tlog.last_signed import LastSigned
from fieldprint.tlog.serve import FOR_A_MINUTE, FOR_GOOD, LogSite, check_token
from fieldprint.tlog.tile import bundle_path, tile_path
from fieldprint.tlog.witness import AddCheckpoint, Witness, WitnessState

SIGNER = NoteSigner("serve.example/log", Ed25519PrivateKey.from_private_bytes(bytes([5]) * 32))
TOKEN = "a-token-of-these-tests"
BEARER = f"Bearer {TOKEN}"


class Files:
    """A source in memory."""

    place = "memory"

    def __init__(self, files: dict[str, bytes]) -> None:
        self.files = files
        self.asked: list[str] = []

    def read(self, name: str) -> bytes | None:
        self.asked.append(name)
        return self.files.get(name)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("serve") / "log"
    with LogWriter(path, SIGNER, create=True) as log:
        log.append([b"entry %d" % i for i in range(300)])
    return path


@contextmanager
def serving(site: LogSite, lines: list[str] | None = None) -> Iterator[http.client.HTTPConnection]:
    with HttpServer(site, ("127.0.0.1", 0), (lambda _: None) if lines is None else lines.append) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
        thread.start()
        address: Any = server.server_address
        connection = http.client.HTTPConnection(*address, timeout=10)
        try:
            yield connection
        finally:
            connection.close()
            server.shutdown()
            thread.join(10)


def ask(
    connection: http.client.HTTPConnection, path: str, method: str = "GET", body: bytes | None = None, **headers: str
) -> tuple[int, dict[str, str], bytes]:  # fmt: skip
    connection.request(method, path, body, {k.replace("_", "-"): v for k, v in headers.items()})
    answer = connection.getresponse()
    return answer.status, dict(answer.getheaders()), answer.read()


def test_every_file_is_served_with_type_and_lifetime(folder: Path) -> None:
    with serving(LogSite(open_source(folder))) as connection:
        for path in sorted(p for p in folder.rglob("*") if p.is_file() and p.name != ".lock"):
            name = path.relative_to(folder).as_posix()
            status, headers, body = ask(connection, f"/{name}")
            assert (status, body) == (200, path.read_bytes())
            assert headers["X-Content-Type-Options"] == "nosniff"
            if name == "checkpoint":
                assert headers["Content-Type"] == "text/plain; charset=utf-8"
                assert headers["Cache-Control"] == "no-cache"
            else:
                assert headers["Content-Type"] == "application/octet-stream"
                assert headers["Cache-Control"] == (FOR_A_MINUTE if ".p/" in name else FOR_GOOD)


def test_what_a_client_has_is_not_sent_again(folder: Path) -> None:
    with serving(LogSite(open_source(folder))) as connection:
        for path in ("/checkpoint", f"/{tile_path(0, 0)}"):
            _, headers, body = ask(connection, path)
            for known in (headers["ETag"], f'"x", W/{headers["ETag"]}', "*"):
                status, again, nothing = ask(connection, path, If_None_Match=known)
                assert (status, nothing, again["ETag"]) == (304, b"", headers["ETag"])
                assert again["Cache-Control"] == headers["Cache-Control"]
            assert ask(connection, path, If_None_Match='"other"')[2] == body


def test_a_new_checkpoint_has_a_new_tag(tmp_path: Path) -> None:
    with LogWriter(tmp_path / "log", SIGNER, create=True) as log, serving(LogSite(log.source)) as connection:
        tag = ask(connection, "/checkpoint")[1]["ETag"]
        log.append([b"entry"])
        status, headers, body = ask(connection, "/checkpoint", If_None_Match=tag)
        assert status == 200 and headers["ETag"] != tag and body == log.checkpoint


def test_tiles_are_there_once_a_checkpoint_covers_them(folder: Path) -> None:
    """A tile written before its checkpoint may be replaced after a crash, and caches keep tiles for good."""
    names = [p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file() and p.name != ".lock"]
    files = {name: (folder / name).read_bytes() for name in names}
    ahead = {tile_path(0, 1, 45): b"", tile_path(0, 1): b"", bundle_path(1, 45): b"", tile_path(1, 0, 2): b""}
    site = LogSite(Files({**files, **ahead}))
    for name in ahead:
        assert site.answer("GET", f"/{name}").status == 404
    for name in files:
        assert site.answer("GET", f"/{name}").status == 200


def test_a_tile_that_is_replaced_after_a_failed_append_was_never_served(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It lies in the folder meanwhile, where a server of static files would show it."""

    def fail(*_: object) -> None:
        raise LogError("the disk is gone")

    for name, size in ((tile_path(0, 0, 1), 1), (tile_path(0, 0), 256)):
        with LogWriter(tmp_path / str(size), SIGNER, create=True) as log:
            site = LogSite(log.source)
            with monkeypatch.context() as patch:
                patch.setattr(LastSigned, "swap", fail)
                with pytest.raises(LogError, match="the disk is gone"):
                    log.append([b"one"] * size)
            replaced = log.source.read(name)
            assert replaced is not None and site.answer("GET", f"/{name}").status == 404
            log.append([b"two"] * size)
            served = site.answer("GET", f"/{name}")
            assert served.status == 200 and served.body == log.source.read(name) != replaced


@given(st.text(max_size=40))
def test_no_path_asks_the_storage_for_anything_but_a_file_of_a_log(path: str) -> None:
    source = Files({"checkpoint": b""})
    LogSite(source).answer("GET", path)
    assert set(source.asked) <= {"checkpoint"}


@given(st.from_regex(r"[/Z]tile/([0-9]{1,3}|entries)/([x0-9./p%]|\.\.){1,20}", fullmatch=True))
def test_tile_paths_have_one_spelling(path: str) -> None:
    class Everything(Files):
        def read(self, name: str) -> bytes | None:
            return super().read(name) or b"something"

    source = Everything({"checkpoint": f"a\n{2**62}\n{'A' * 43}=\n\n\N{EM DASH} a {'A' * 12}\n".encode()})
    site = LogSite(source)
    if site.answer("GET", path).status != 200:
        assert set(source.asked) <= {"checkpoint"}
        return
    found = re.fullmatch(r".tile/(\d+|entries)/(.*?)(?:\.p/(\d+))?", path)
    assert found is not None
    index = int(found[2].replace("x", "").replace("/", ""))
    width = 256 if found[3] is None else int(found[3])
    expected = bundle_path(index, width) if found[1] == "entries" else tile_path(int(found[1]), index, width)
    assert path == f"/{expected}"


@pytest.mark.parametrize("first", ["", "Z", "?", "//", "/Z"])
def test_a_tile_path_begins_with_one_slash(folder: Path, first: str) -> None:
    with serving(LogSite(open_source(folder))) as connection:
        assert ask(connection, f"/{tile_path(0, 0)}")[0] == 200
        assert ask(connection, f"{first}{tile_path(0, 0)}")[0] == 404


def test_a_storage_that_fails_is_unavailable() -> None:
    class Failing(Files):
        def read(self, name: str) -> bytes | None:
            raise LogError("the disk is gone")

    for path in ("/checkpoint", "/metrics", f"/{tile_path(0, 0)}"):
        assert LogSite(Failing({})).answer("GET", path).status == 503
    assert LogSite(Files({})).answer("GET", "/checkpoint").status == 404
    assert LogSite(Files({"checkpoint": b"damaged"})).answer("GET", f"/{tile_path(0, 0)}").status == 503


# Writing


@pytest.fixture
def writable(tmp_path: Path) -> Iterator[http.client.HTTPConnection]:
    with (
        LogWriter(tmp_path / "log", SIGNER, create=True) as log,
        serving(LogSite(log.source, writer=log, token=TOKEN)) as connection,
    ):
        yield connection


def test_entries_are_written_with_the_token(writable: http.client.HTTPConnection, tmp_path: Path) -> None:
    for index, entry in enumerate((b"one", b"", bytes(65535))):
        status, _, said = ask(writable, "/add", "POST", entry, Authorization=BEARER)
        assert (status, json.loads(said)) == (201, {"index": index, "tree_size": index + 1})
    reader = LogReader(tmp_path / "log", [SIGNER.verifier_key])
    assert list(reader.entries()) == [b"one", b"", bytes(65535)]


@pytest.mark.parametrize(
    ("status", "body", "authorization"),
    [
        (401, b"x", ""),
        (401, b"x", "Bearer"),
        (401, b"x", "Bearer another"),
        (401, b"x", f"Basic {TOKEN}"),
        (401, b"x", TOKEN),
        (413, bytes(65536), BEARER),
    ],
)
def test_refused_entries_are_not_in_the_log(
    writable: http.client.HTTPConnection, tmp_path: Path, status: int, body: bytes, authorization: str
) -> None:
    with suppress(BrokenPipeError, ConnectionResetError):  # closed while the body was still on its way
        assert ask(writable, "/add", "POST", body, Authorization=authorization)[0] == status
    assert LogReader(tmp_path / "log", [SIGNER.verifier_key]).checkpoint().tree_size == 0


def test_writers_at_the_same_time_get_places_of_their_own(
    writable: http.client.HTTPConnection, tmp_path: Path
) -> None:
    def work(number: int) -> dict[int, bytes]:
        connection = http.client.HTTPConnection(writable.host, writable.port, timeout=30)
        found = {}
        for i in range(10):
            entry = b"%d/%d" % (number, i)
            said = ask(connection, "/add", "POST", entry, Authorization=BEARER)[2]
            found[json.loads(said)["index"]] = entry
        connection.close()
        return found

    with ThreadPoolExecutor(6) as pool:
        places = {index: entry for found in pool.map(work, range(6)) for index, entry in found.items()}
    entries = list(LogReader(tmp_path / "log", [SIGNER.verifier_key]).entries())
    assert len(entries) == 60 and places == dict(enumerate(entries))


def test_a_full_disk_is_said(folder: Path) -> None:
    class Full:
        def append(self, entries: list[bytes]) -> Any:
            raise CapacityError("the disk is full")

    site = LogSite(open_source(folder), writer=Full(), token=TOKEN)
    assert site.answer("POST", "/add", b"x").status == 507


@pytest.mark.parametrize(
    "token", ["", "short", "x" * 15, "a token with spaces", "ümlaut-token-of-tests", "x" * 20 + "\n"]
)
def test_weak_tokens_are_refused(token: str, folder: Path) -> None:
    with pytest.raises(FormatError, match="bearer token"):
        check_token(token)
    with pytest.raises(FormatError):
        LogSite(open_source(folder), writer=LogWriter.__new__(LogWriter), token=token)


def test_a_writer_and_a_token_belong_together(folder: Path) -> None:
    with pytest.raises(ValueError, match="token"):
        LogSite(open_source(folder), token=TOKEN)


def test_neither_token_nor_body_is_in_the_lines_of_the_report(
    writable: http.client.HTTPConnection, folder: Path
) -> None:
    lines: list[str] = []
    with serving(LogSite(open_source(folder)), lines) as connection:
        ask(connection, "/add", "POST", b"secret body", Authorization=BEARER)
        ask(connection, "/checkpoint\x7f".replace("\x7f", "%7f"))
    assert len(lines) == 2 and all(line.isprintable() for line in lines)
    assert TOKEN not in "".join(lines) and "secret" not in "".join(lines)


# Metrics and the witness


def test_metrics_count_what_was_answered(writable: http.client.HTTPConnection) -> None:
    ask(writable, "/checkpoint")
    ask(writable, "/nothing")
    ask(writable, "/add", "POST", b"x", Authorization=BEARER)
    ask(writable, f"/{tile_path(0, 0, 1)}")
    status, headers, body = ask(writable, "/metrics")
    assert (status, headers["Content-Type"]) == (200, "text/plain; version=0.0.4; charset=utf-8")
    samples = dict(line.rsplit(" ", 1) for line in body.decode().splitlines() if not line.startswith("#"))
    for kind, answered in (("checkpoint", 200), ("other", 404), ("add", 201), ("tile", 200)):
        assert samples[f'fieldprint_log_requests_total{{kind="{kind}",status="{answered}"}}'] == "1"
    assert samples["fieldprint_log_tree_size"] == samples["fieldprint_log_append_seconds_count"] == "1"
    assert float(samples["fieldprint_log_append_seconds_sum"]) > 0
    names = {line.split()[2] for line in body.decode().splitlines() if line.startswith("# TYPE")}
    assert all(re.sub(r"_(sum|count)$|\{.*", "", name) in names for name in samples)


def test_a_witness_answers_beside_the_log(folder: Path, tmp_path: Path) -> None:
    cosigner = Cosigner("serve.example/witness", Ed25519PrivateKey.from_private_bytes(bytes([6]) * 32))
    state = WitnessState(tmp_path / "state", new=True)
    site = LogSite(open_source(folder), witness=Witness([cosigner], [SIGNER.verifier_key], state))
    signed = (folder / "checkpoint").read_bytes()
    digest = sha256(SIGNER.name.encode()).hexdigest()
    with serving(site) as connection:
        assert ask(connection, f"/{digest}/checkpoint")[0] == 404
        status, _, line = ask(connection, "/add-checkpoint", "POST", AddCheckpoint(0, (), signed).to_bytes())
        assert status == 200 and line.decode().startswith("\N{EM DASH} serve.example/witness ")
        assert ask(connection, f"/{digest}/checkpoint")[2] == signed + line
        status, headers, size = ask(
            connection, "/add-checkpoint", "POST", AddCheckpoint(0, (), signed).to_bytes()
        )
        assert (status, headers["Content-Type"], size) == (409, "text/x.tlog.size", b"300\n")
        assert ask(connection, "/add", "POST", b"x")[0] == 405
    state.close()


def test_without_a_witness_there_is_none(folder: Path) -> None:
    with serving(LogSite(open_source(folder))) as connection:
        assert ask(connection, "/add-checkpoint", "POST", b"old 0\n")[0] == 405


def test_more_connections_than_there_is_room_for_are_closed(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("fieldprint.tlog.http_server.MAX_CONNECTIONS", 2)
    with serving(LogSite(open_source(folder))) as first:
        assert ask(first, "/checkpoint")[0] == 200
        second, third = (http.client.HTTPConnection(first.host, first.port, timeout=5) for _ in range(2))
        assert ask(second, "/checkpoint")[0] == 200
        with pytest.raises((ConnectionError, http.client.HTTPException)):
            ask(third, "/checkpoint")
        assert ask(first, "/checkpoint")[0] == 200
        for connection in (second, third):
            connection.close()


def drip(address: tuple[str, int], seconds: float) -> None:
    """Send a byte now and then."""
    with socket.create_connection(address, timeout=10) as connection:
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            connection.sendall(b"G")
            time.sleep(0.02)


def test_a_client_that_drips_is_given_up(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is never silent for long, and its request never ends."""
    monkeypatch.setattr("fieldprint.tlog.http_server.REQUEST_SECONDS", 0.3)
    with serving(LogSite(open_source(folder))) as connection:
        started = time.monotonic()
        with pytest.raises(ConnectionError):
            drip((connection.host, connection.port), 10)
        assert time.monotonic() - started < 5
        for _ in range(3):  # one that goes on asking is not, however long it stays
            time.sleep(0.15)
            assert ask(connection, "/checkpoint")[0] == 200
