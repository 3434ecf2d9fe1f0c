"""A log behind a URL, on a server that is believed nothing: what it sends is limited before it is looked at."""

import http.client
import ssl
import threading
import time
import zlib
from functools import partial
from urllib.parse import urljoin, urlsplit

from fieldprint.errors import LogError
from fieldprint.tlog.http_client import limit_answers
from fieldprint.tlog.tile import max_size

TIMEOUT = 30.0
ATTEMPTS = 4
MAX_REDIRECTS = 5
MAX_WAIT = 30.0
MAX_SECONDS = 300.0
USER_AGENT = "fieldprint-audit"
Place = tuple[str, str, int | None]


class _TransientError(Exception):
    """The server may answer if asked again, after so many seconds."""

    def __init__(self, what: str, wait: float | None = None) -> None:
        super().__init__(what)
        self.wait = wait


class HttpSource:
    """A log behind a URL; threads may share it, and connections are kept.

    Redirects are followed up to five times and never to another scheme. Of an answer one byte more than the largest file
    of its kind is read, also when it is compressed: no check accepts that. Broken connections, timeouts, answers cut off
    or slower than five minutes, 429 and 5xx are tried again, three times with growing pauses. Proxies and credentials
    are not supported.
    """

    def __init__(self, url: str, *, timeout: float = TIMEOUT, pause: float = 0.5) -> None:
        parts = urlsplit(url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise ValueError(f"{url} is no http or https URL of a log")
        if parts.query or parts.fragment or parts.username or parts.password:
            raise ValueError("the URL of a log has no user, query or fragment")
        self.place = url.rstrip("/")
        self._timeout = timeout
        self._pause = pause
        self._idle: dict[Place, list[http.client.HTTPConnection]] = {}
        self._lock = threading.Lock()

    def read(self, name: str) -> bytes | None:
        """The file's bytes, or None if the server says 404 or 410.

        Raises:
            LogError: the server cannot be reached, or answers something else.
        """
        url = f"{self.place}/{name}"
        limit = max_size(name)
        for attempt in range(ATTEMPTS):
            try:
                return self._follow(url, limit)
            except _TransientError as error:
                if attempt == ATTEMPTS - 1:
                    remedy = "Run the audit again later; it goes on where it stopped"
                    raise LogError(f"{url}: {error}", remedy=remedy) from error
                time.sleep(min(MAX_WAIT, self._pause * 2**attempt if error.wait is None else error.wait))
        raise AssertionError

    def _follow(self, url: str, limit: int) -> bytes | None:
        for _ in range(MAX_REDIRECTS + 1):
            status, headers, data = self._get(url, limit)
            if status == 200:
                return _decoded(data, headers.get("Content-Encoding", "identity"), limit, url)
            if status in (404, 410):
                return None
            if status in (301, 302, 303, 307, 308):
                url = self._target(url, headers.get("Location", ""))
            elif status == 429 or status >= 500:
                wait = headers.get("Retry-After", "")
                raise _TransientError(f"status {status}", float(wait) if wait.isdecimal() else None)
            else:
                raise LogError(f"{url}: status {status}", remedy="Is this the URL of a log?")
        raise LogError(f"{self.place} redirects more than {MAX_REDIRECTS} times")

    def _target(self, url: str, location: str) -> str:
        try:
            target = urljoin(url, location)
            same = urlsplit(target).scheme == urlsplit(url).scheme
        except ValueError as error:
            raise LogError(f"{url} redirects to {location[:200]!r}, which is no URL") from error
        if not same:
            raise LogError(f"{url} redirects to another scheme: {target[:200]}")
        return target

    def _get(self, url: str, limit: int) -> tuple[int, http.client.HTTPMessage, bytes]:
        try:
            parts = urlsplit(url)
            place = (parts.scheme, parts.hostname or "", parts.port)
        except ValueError as error:
            raise LogError(f"{url[:200]!r} is no URL: {error}") from error
        request = parts.path + ("?" + parts.query if parts.query else "")
        try:
            try:
                return self._ask(self._kept(place), place, request, limit)
            except (ConnectionError, http.client.RemoteDisconnected, LookupError):
                # None is kept, or the server has closed it since: that says nothing about a new one.
                return self._ask(self._new(place), place, request, limit)
        except ssl.SSLCertVerificationError as error:
            raise LogError(f"{url}: the server's certificate is not valid: {error.verify_message}") from error
        except (ValueError, http.client.InvalidURL) as error:  # from a redirect
            raise LogError(f"{url[:200]!r} is no URL: {error}") from error
        except (OSError, http.client.HTTPException) as error:
            raise _TransientError(str(error) or type(error).__name__) from error

    def _ask(
        self, connection: http.client.HTTPConnection, place: Place, request: str, limit: int
    ) -> tuple[int, http.client.HTTPMessage, bytes]:
        """One request; the connection is kept if nothing is left on it that would be taken for the next answer."""
        whole = False
        try:
            headers = {"User-Agent": USER_AGENT, "Accept-Encoding": "gzip, identity"}
            if connection.sock is not None:
                connection.sock.settimeout(self._timeout)
            limit_answers(connection, partial(_left, time.monotonic() + MAX_SECONDS, self._timeout))
            connection.request("GET", request, headers=headers)
            response = connection.getresponse()
            data = _body(response, limit)
            whole = response.isclosed() and not response.will_close
            return response.status, response.headers, data
        finally:
            if whole:
                with self._lock:
                    self._idle.setdefault(place, []).append(connection)
            else:
                connection.close()

    def _kept(self, place: Place) -> http.client.HTTPConnection:
        with self._lock:
            return self._idle[place].pop()

    def _new(self, place: Place) -> http.client.HTTPConnection:
        scheme, host, port = place
        if scheme == "https":
            context = ssl.create_default_context()
            return http.client.HTTPSConnection(host, port, timeout=self._timeout, context=context)
        return http.client.HTTPConnection(host, port, timeout=self._timeout)

    def close(self) -> None:
        """Close the connections that are kept."""
        with self._lock:
            for connections in self._idle.values():
                for connection in connections:
                    connection.close()
            self._idle.clear()

    def __del__(self) -> None:
        if hasattr(self, "_lock"):
            self.close()


def _left(end: float, timeout: float) -> float:
    """Seconds for the next read of an answer that must be there at `end`."""
    left = end - time.monotonic()
    if left <= 0:
        raise _TransientError(f"the answer takes more than {MAX_SECONDS:.0f} s")
    return min(left, timeout)


def _body(response: http.client.HTTPResponse, limit: int) -> bytes:
    """At most one byte more than `limit`, or the whole answer; as it arrives, so that its time can be limited."""
    data = bytearray()
    while len(data) <= limit and not response.isclosed():
        room = limit + 1 - len(data)
        if response.chunked:
            data += response.read1(room)
        else:  # here `read1` loses count in older Pythons, and `peek` is what has arrived
            data += response.read(min(max(1, len(response.peek())), room))
    if response.length and len(data) <= limit:
        raise _TransientError("the answer is cut off")
    return bytes(data)


def _decoded(data: bytes, encoding: str, limit: int, url: str) -> bytes:
    """The content of an answer, inflated up to one byte more than the limit."""
    if encoding.lower() in ("", "identity"):
        return data
    if encoding.lower() not in ("gzip", "x-gzip"):
        raise LogError(f"{url}: the content encoding {encoding[:40]!r} was not asked for")
    inflate = zlib.decompressobj(wbits=31)
    try:
        content = inflate.decompress(data, limit + 1)
    except zlib.error as error:
        raise LogError(f"{url}: the answer is not gzip: {error}") from error
    if len(content) <= limit and not inflate.eof:
        raise LogError(f"{url}: the compressed answer is cut off")
    return content
