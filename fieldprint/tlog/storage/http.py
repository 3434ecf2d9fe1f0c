"""A log behind a URL, on a server that is believed nothing: what it sends is limited before it is looked at."""

import http.client
import ssl
import threading
import time
import zlib
from urllib.parse import urljoin, urlsplit

from fieldprint.errors import LogError
from fieldprint.note import MAX_NOTE_SIZE
from fieldprint.tlog.tile import MAX_ENTRY_SIZE, WIDTH

MAX_BUNDLE_SIZE = WIDTH * (2 + MAX_ENTRY_SIZE)
TIMEOUT = 30.0
ATTEMPTS = 4
MAX_REDIRECTS = 5
MAX_WAIT = 30.0
MAX_SECONDS = 300.0
USER_AGENT = "fieldprint-audit"


class _TransientError(Exception):
    """The server may answer if asked again, after so many seconds."""

    def __init__(self, what: str, wait: float | None = None) -> None:
        super().__init__(what)
        self.wait = wait


class HttpSource:
    """A log behind a URL; each thread keeps a connection of its own.

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
        self._local = threading.local()

    def read(self, name: str) -> bytes | None:
        """The file's bytes, or None if the server says 404 or 410.

        Raises:
            LogError: the server cannot be reached, or answers something else.
        """
        url = f"{self.place}/{name}"
        limit = MAX_NOTE_SIZE if name == "checkpoint" else MAX_BUNDLE_SIZE
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
        try:
            connection = self._connection(place)
            connection.request(
                "GET",
                parts.path + ("?" + parts.query if parts.query else ""),
                headers={"User-Agent": USER_AGENT, "Accept-Encoding": "gzip, identity"},
            )
            response = connection.getresponse()
            data = self._body(response, limit)
            if len(data) > limit:  # what is left would be taken for the next answer
                self._forget(place)
            return response.status, response.headers, data
        except ssl.SSLCertVerificationError as error:
            self._forget(place)
            raise LogError(f"{url}: the server's certificate is not valid: {error.verify_message}") from error
        except (OSError, http.client.HTTPException) as error:
            self._forget(place)
            raise _TransientError(str(error) or type(error).__name__) from error
        except ValueError as error:  # a URL that http.client refuses, from a redirect
            self._forget(place)
            raise LogError(f"{url[:200]!r} is no URL: {error}") from error

    def _body(self, response: http.client.HTTPResponse, limit: int) -> bytes:
        """At most one byte more than `limit`, or the whole answer."""
        deadline = time.monotonic() + MAX_SECONDS
        data = bytearray()
        while len(data) <= limit:
            part = response.read1(limit + 1 - len(data))
            if not part:
                if response.length:
                    raise _TransientError("the answer is cut off")
                break
            data += part
            if time.monotonic() > deadline:
                raise _TransientError(f"the answer takes more than {MAX_SECONDS:.0f} s")
        return bytes(data)

    def _connection(self, place: tuple[str, str, int | None]) -> http.client.HTTPConnection:
        held = self._held()
        if place not in held:
            scheme, host, port = place
            held[place] = (
                http.client.HTTPSConnection(
                    host, port, timeout=self._timeout, context=ssl.create_default_context()
                )
                if scheme == "https"
                else http.client.HTTPConnection(host, port, timeout=self._timeout)
            )
        return held[place]

    def _held(self) -> dict[tuple[str, str, int | None], http.client.HTTPConnection]:
        """This thread's connections."""
        held: dict[tuple[str, str, int | None], http.client.HTTPConnection]
        held = self._local.__dict__.setdefault("connections", {})
        return held

    def _forget(self, place: tuple[str, str, int | None]) -> None:
        connection = self._held().pop(place, None)
        if connection is not None:
            connection.close()


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
