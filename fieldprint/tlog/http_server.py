"""HTTP for a log and for a witness: a site maps requests to responses without a socket, `HttpServer` puts it behind one.

What HTTP allows and neither needs is refused here. It speaks plain HTTP and stands behind a proxy that speaks TLS where others than this machine should reach it.
"""

import re
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from socket import SHUT_RDWR, socket
from typing import Any, Protocol

from fieldprint.errors import LogError

TEXT = "text/plain; charset=utf-8"
NOT_KEPT = "no-store"
TIMEOUT_SECONDS = 15
REQUEST_SECONDS = 120.0
MAX_CONNECTIONS = 128


@dataclass(frozen=True, slots=True)
class Response:
    """An HTTP answer."""

    status: int
    body: bytes = b""
    content_type: str = TEXT
    cache: str = NOT_KEPT
    headers: tuple[tuple[str, str], ...] = ()


class Site(Protocol):
    """What answers requests."""

    def limit(self, method: str, path: str, authorization: str) -> int | Response:
        """How many bytes the body may have, or the refusal that is due before a body is read."""

    def answer(self, method: str, path: str, body: bytes, if_none_match: str) -> Response:
        """The response to a request whose body `limit` allowed."""


class HttpServer(ThreadingHTTPServer):
    """A site on a port, a thread a connection; `serve_forever` runs it, `shutdown` ends it.

    A connection is closed when it is silent for 15 seconds, or when a request and its answer take two minutes, however
    busily a client sends or reads a byte now and then. Of more than 128 at a time the latest are closed at once.

    Args:
        site: what answers.
        address: host and port; port 0 takes a free one.
        report: called with one line for each request. No header and no body is in it.

    Raises:
        LogError: the host is unknown, or the port cannot be had.
    """

    daemon_threads = True
    request_queue_size = 128

    def __init__(
        self, site: Site, address: tuple[str, int], report: Callable[[str], None] = lambda _line: None
    ) -> None:
        self.site = site
        self.report = report
        self._room = threading.BoundedSemaphore(MAX_CONNECTIONS)
        self._since: dict[socket, float] = {}  # when each connection's present request began
        try:
            super().__init__(address, _Connection)
        except OSError as error:
            host, port = address
            remedy = "Give another --host or --port, or end what listens there"
            raise LogError(f"{host}:{port} cannot be listened on: {error.strerror}", remedy=remedy) from error

    @property
    def url(self) -> str:
        """Where it is."""
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
        self.began(request)
        try:
            super().process_request_thread(request, client_address)
        finally:
            self._since.pop(request, None)
            self._room.release()

    def began(self, connection: socket) -> None:
        """Give the connection's next request its time."""
        self._since[connection] = time.monotonic()

    def service_actions(self) -> None:
        """Close the connections whose time is over; `serve_forever` calls this twice a second."""
        for connection, since in list(self._since.items()):
            if time.monotonic() - since > REQUEST_SECONDS:
                with suppress(OSError):
                    connection.shutdown(SHUT_RDWR)

    def handle_error(self, request: socket | tuple[bytes, socket], client_address: Any) -> None:  # noqa: ARG002
        """A connection that broke is a line, not a traceback."""
        self.report(f"{client_address[0]} went away")


class _Connection(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"  # kept alive between requests
    default_request_version = "HTTP/1.0"  # not 0.9, whose errors have no status line
    error_content_type = TEXT
    error_message_format = "%(code)d %(message)s\n"
    timeout = TIMEOUT_SECONDS
    wbufsize = (
        -1
    )  # head and body in one packet where they fit; two would wait for each other's acknowledgement
    disable_nagle_algorithm = True
    server: HttpServer

    def do_GET(self) -> None:
        self._serve()

    def do_HEAD(self) -> None:
        self._serve()

    def do_POST(self) -> None:
        self._serve()

    def _serve(self) -> None:
        lengths = self.headers.get_all("Content-Length", [])
        length = lengths[0] if lengths else "0"
        if (
            self.headers.get("Transfer-Encoding")
            or len(lengths) > 1
            or not re.fullmatch(r"[0-9]{1,9}", length)
        ):
            self._reply(
                Response(411, b"one Content-Length is needed, and no Transfer-Encoding\n"), close=True
            )
            return
        path = self.requestline.split()[1]  # as it was sent: in `self.path` several slashes in front are one
        limit = self.server.site.limit(self.command, path, self.headers.get("Authorization", ""))
        if isinstance(limit, Response):
            self._reply(limit, close=True)
        elif self.command == "POST" and not lengths:
            self._reply(Response(411, b"a Content-Length is needed\n"), close=True)
        elif int(length) > limit:
            self._reply(Response(413, b"the request is too large\n"), close=True)
        else:
            body = self.rfile.read(int(length))
            if len(body) != int(length):
                self.close_connection = True
                return
            known = self.headers.get("If-None-Match", "")
            self._reply(self.server.site.answer(self.command, path, body, known))

    def _reply(self, response: Response, *, close: bool = False) -> None:
        self.send_response(response.status)
        if response.status != 304:
            self.send_header("Content-Type", response.content_type)
            self.send_header("Content-Length", str(len(response.body)))
        self.send_header("Cache-Control", response.cache)
        self.send_header("X-Content-Type-Options", "nosniff")
        for name, value in response.headers:
            self.send_header(name, value)
        if close:
            self.send_header("Connection", "close")
        self.end_headers()
        if self.command != "HEAD" and response.status != 304:
            self.wfile.write(response.body)

    def handle_one_request(self) -> None:
        super().handle_one_request()
        self.server.began(self.connection)

    def version_string(self) -> str:
        return "fieldprint"

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002  http.server's name
        line = f"{self.address_string()} {format % args}"
        self.server.report("".join(c if c.isprintable() else "?" for c in line))
