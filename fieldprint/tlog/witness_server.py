"""A witness over HTTP: `answer` maps a request to an answer without a socket, `WitnessServer` puts it behind one.

    POST /add-checkpoint                 200 cosignature lines; 400, 403, 404, 409 (with the size), 422
    GET  /<SHA-256 of origin>/checkpoint 200 the last cosigned checkpoint; 404

It speaks plain HTTP and stands behind a proxy that speaks TLS where others than this machine should reach it.
"""

import re
import threading
from collections.abc import Callable
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from socket import socket
from typing import Any

from fieldprint.errors import LogError
from fieldprint.tlog.witness import MAX_REQUEST_SIZE, TEXT_TYPE, RefusalError, Witness

TIMEOUT_SECONDS = 15
MAX_CONNECTIONS = 64
_MONITORED = re.compile(r"/([0-9a-f]{64})/checkpoint")


@dataclass(frozen=True, slots=True)
class Answer:
    """An HTTP answer."""

    status: int
    body: bytes
    content_type: str = TEXT_TYPE


def answer(witness: Witness, method: str, path: str, body: bytes = b"") -> Answer:
    """What the witness answers to a request; 500 if its state cannot be used, and then nothing was cosigned.

    Args:
        witness: who answers.
        method: GET or POST.
        path: below the witness's prefix, which is the same for submission and monitoring.
        body: of a POST.
    """
    monitored = _MONITORED.fullmatch(path)
    try:
        if path == "/add-checkpoint":
            if method != "POST":
                return Answer(405, b"add-checkpoint is a POST\n")
            return Answer(200, witness.add_checkpoint(body))
        if monitored and method == "GET":
            return Answer(200, witness.checkpoint(monitored[1]))
    except RefusalError as refusal:
        return Answer(refusal.status, refusal.body.encode(), refusal.content_type)
    except LogError:
        return Answer(500, b"the witness cannot use its state\n")
    return Answer(404, b"nothing is here\n")


class WitnessServer(ThreadingHTTPServer):
    """A witness on a port, a thread a connection; `serve_forever` runs it, `shutdown` ends it.

    Args:
        witness: who answers.
        address: host and port; port 0 takes a free one.
        report: called with one line for each request.
    """

    daemon_threads = True

    def __init__(
        self, witness: Witness, address: tuple[str, int], report: Callable[[str], None] = lambda _line: None
    ) -> None:
        self.witness = witness
        self.report = report
        self._room = threading.BoundedSemaphore(MAX_CONNECTIONS)
        super().__init__(address, _Connection)

    @property
    def url(self) -> str:
        """The submission prefix."""
        host, port = self.server_address[:2]
        return f"http://{host!s}:{port}"

    def process_request(self, request: Any, client_address: Any) -> None:
        """Give the connection a thread, or close it if there are too many."""
        if not self._room.acquire(blocking=False):
            self.shutdown_request(request)
            return
        super().process_request(request, client_address)

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        """Serve the connection to its end, and make room for another."""
        try:
            super().process_request_thread(request, client_address)
        finally:
            self._room.release()

    def handle_error(self, request: socket | tuple[bytes, socket], client_address: Any) -> None:  # noqa: ARG002
        """A connection that broke is a line, not a traceback."""
        self.report(f"{client_address[0]} went away")


class _Connection(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"  # kept alive between requests
    timeout = TIMEOUT_SECONDS
    server: WitnessServer

    def do_GET(self) -> None:
        self._reply(answer(self.server.witness, "GET", self.path))

    def do_POST(self) -> None:
        length = self.headers.get("Content-Length", "")
        if self.headers.get("Transfer-Encoding") or not re.fullmatch(r"[0-9]{1,9}", length):
            self._reply(Answer(411, b"a Content-Length is needed\n"), close=True)
        elif int(length) > MAX_REQUEST_SIZE:
            self._reply(Answer(413, b"the request is too large\n"), close=True)
        else:
            body = self.rfile.read(int(length))
            if len(body) != int(length):
                self.close_connection = True
                return
            self._reply(answer(self.server.witness, "POST", self.path, body))

    def _reply(self, reply: Answer, *, close: bool = False) -> None:
        self.send_response(reply.status)
        self.send_header("Content-Type", reply.content_type)
        self.send_header("Content-Length", str(len(reply.body)))
        if close:
            self.send_header("Connection", "close")
        self.end_headers()
        self.wfile.write(reply.body)

    def version_string(self) -> str:
        return "fieldprint"

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002  http.server's name
        line = f"{self.address_string()} {format % args}"
        self.server.report("".join(c if c.isprintable() else "?" for c in line))
