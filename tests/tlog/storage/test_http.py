"""A log over HTTP, read from a server of our own: limits, compression, threads; attacks are in vectors/log/response.json."""

import gzip
import threading
import time
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from fieldprint.errors import FormatError, LogError
from fieldprint.note import NoteSigner
from fieldprint.tlog import LogReader, LogWriter, open_source
from fieldprint.tlog.audit import LogAudit
from fieldprint.tlog.http_server import HttpServer
from fieldprint.tlog.serve import LogSite
from fieldprint.tlog.storage import http as storage_http
from fieldprint.tlog.storage.http import HttpSource
from fieldprint.tlog.tile import MAX_BUNDLE_SIZE
from fieldprint.tlog.trust import KnownLog, TrustPolicy

SIGNER = NoteSigner("http.example/log", Ed25519PrivateKey.from_private_bytes(bytes([5]) * 32))
TRUST = TrustPolicy((KnownLog(SIGNER.verifier_key),))


@contextmanager
def serving(server: ThreadingHTTPServer) -> Iterator[str]:
    thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join(10)


class Canned(BaseHTTPRequestHandler):
    """Answers with the class's body and headers."""

    protocol_version = "HTTP/1.1"
    body = b""
    sent: tuple[tuple[str, str], ...] = ()

    def do_GET(self) -> None:
        self.send_response(200)
        for name, value in (("Content-Length", str(len(self.body))), *self.sent):
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(self.body)

    def log_message(self, *_: Any) -> None:
        pass


def canned(body: bytes, *headers: tuple[str, str]) -> ThreadingHTTPServer:
    handler = type("Handler", (Canned,), {"body": body, "sent": headers})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    server.handle_error = lambda *_: None  # type: ignore[method-assign]
    return server


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("http") / "log"
    with LogWriter(path, SIGNER, create=True) as log:
        log.append([b"entry %d" % i for i in range(1500)])
    return path


@pytest.mark.parametrize("workers", [0, 4])
def test_a_log_is_audited_over_http_as_in_its_folder(folder: Path, workers: int) -> None:
    with serving(HttpServer(LogSite(open_source(folder)), ("127.0.0.1", 0))) as url:
        audit = LogAudit(open_source(url + "/"), TRUST, workers=workers)
        entries = [entry for bundle in audit.bundles() for entry in bundle.entries]
    assert entries == [b"entry %d" % i for i in range(1500)]


def test_a_reader_reads_over_http(folder: Path) -> None:
    with serving(HttpServer(LogSite(open_source(folder)), ("127.0.0.1", 0))) as url:
        reader = LogReader(url, [SIGNER.verifier_key])
        assert reader.entry(1499) == b"entry 1499"
        assert reader.root_hash() == reader.checkpoint().root_hash


def test_a_connection_is_used_again(folder: Path) -> None:
    connections: set[Any] = set()

    class Counting(HttpServer):
        def process_request(self, request: Any, client_address: Any) -> None:
            connections.add(client_address)
            super().process_request(request, client_address)

    with serving(Counting(LogSite(open_source(folder)), ("127.0.0.1", 0))) as url:
        source = HttpSource(url)
        for _ in range(20):
            assert source.read("checkpoint")
        assert source.read("tile/0/999") is None and source.read("tile/0/000")
        source.close()
    assert len(connections) == 1


def test_compressed_answers_are_inflated() -> None:
    body = b"a text that is long enough " * 1000
    with serving(canned(gzip.compress(body), ("Content-Encoding", "gzip"))) as url:
        assert HttpSource(url).read("tile/entries/000") == body


def test_an_answer_is_read_up_to_its_limit_and_a_byte(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fieldprint.tlog.tile.MAX_BUNDLE_SIZE", 5000)
    for size, read in ((4999, 4999), (5000, 5000), (5001, 5001), (9999, 5001), (10_000_000, 5001)):
        with serving(canned(bytes(size))) as url:
            data = HttpSource(url).read("tile/entries/000")
            assert data is not None and len(data) == read


def test_a_small_answer_that_inflates_to_much_is_cut(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two hundred megabytes in two hundred kilobytes."""
    packer = zlib.compressobj(wbits=31)
    bomb = b"".join(packer.compress(bytes(1 << 20)) for _ in range(200)) + packer.flush()
    assert len(bomb) < 250_000
    with serving(canned(bomb, ("Content-Encoding", "gzip"))) as url:
        data = HttpSource(url).read("tile/entries/000")
        assert data is not None and len(data) == MAX_BUNDLE_SIZE + 1
        with pytest.raises(FormatError, match="more than 1000000"):
            LogReader(url, [SIGNER.verifier_key])


def test_compressed_answers_cut_off_are_refused() -> None:
    packed = gzip.compress(b"a text" * 1000)
    for bad in (packed[:-9], packed[:10], b"\x1f\x8b"):
        with (
            serving(canned(bad, ("Content-Encoding", "gzip"))) as url,
            pytest.raises(LogError, match="cut off"),
        ):
            HttpSource(url).read("checkpoint")


@pytest.mark.parametrize(
    ("begins", "goes_on"),
    [
        (b"HTTP/1.1 200 OK\r\nContent-Length: 10000\r\n\r\n", b"x"),
        (b"HTTP/1.1 200 OK\r\nX-Drip: ", b"x"),
        (b"HTTP", b"/"),
        (b"", b"HTTP/1.1 100 Continue\r\n\r\n"),
    ],
    ids=["body", "header", "status", "continue"],
)
def test_a_server_that_drips_is_given_up(
    monkeypatch: pytest.MonkeyPatch, begins: bytes, goes_on: bytes
) -> None:
    monkeypatch.setattr(storage_http, "MAX_SECONDS", 0.2)
    monkeypatch.setattr(storage_http, "ATTEMPTS", 2)

    class Dripping(Canned):
        def do_GET(self) -> None:
            self.wfile.write(begins)
            for _ in range(100):
                self.wfile.write(goes_on)
                time.sleep(0.02)

    server = ThreadingHTTPServer(("127.0.0.1", 0), Dripping)
    server.handle_error = lambda *_: None  # type: ignore[method-assign]
    with serving(server) as url:
        started = time.monotonic()
        with pytest.raises(LogError, match=r"takes more than|timed out"):
            HttpSource(url, pause=0.01).read("checkpoint")
        assert time.monotonic() - started < 1.5


def test_a_silent_server_times_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(storage_http, "ATTEMPTS", 1)

    class Silent(Canned):
        def do_GET(self) -> None:
            time.sleep(0.5)

    server = ThreadingHTTPServer(("127.0.0.1", 0), Silent)
    server.handle_error = lambda *_: None  # type: ignore[method-assign]
    with serving(server) as url, pytest.raises(LogError, match="timed out"):
        HttpSource(url, timeout=0.1).read("checkpoint")


def test_no_server_is_an_error_with_what_to_do() -> None:
    with pytest.raises(LogError, match="goes on where it stopped"):
        HttpSource("http://127.0.0.1:9", pause=0.001).read("checkpoint")


@pytest.mark.parametrize(
    "url",
    ["ftp://a/b", "file:///etc", "http://", "https://user@a/", "http://a/?q", "http://a/#f", "http:///b", "a/b"],
)  # fmt: skip
def test_other_urls_are_refused(url: str) -> None:
    with pytest.raises(ValueError, match="URL"):
        HttpSource(url)
