"""Serving a log over HTTP (c2sp.org/tlog-tiles): `LogSite.answer` maps a request to an answer without a socket.

    GET  /checkpoint                     text/plain, revalidated each time
    GET  /tile/0/x001/234                application/octet-stream, kept for good
    GET  /tile/0/x001/234.p/5            application/octet-stream, kept for a minute: the next one takes its place
    GET  /tile/entries/000               application/octet-stream, kept as tiles are
    GET  /metrics                        Prometheus text
    POST /add                            201 {"index":5,"tree_size":6}; only with a bearer token
    POST /add-checkpoint, GET /<origin's digest>/checkpoint    of a witness, if there is one

A tile that no published checkpoint covers is not there yet: until then the writer may replace it after a crash, and a
cache would keep it for good.
"""

import hmac
import json
import re
import threading
import time
from collections import Counter
from dataclasses import dataclass, field
from hashlib import sha256
from pathlib import Path
from typing import Protocol

from fieldprint.errors import CapacityError, FieldprintError, FormatError, LogError
from fieldprint.note import parse_note
from fieldprint.tlog.checkpoint import Checkpoint
from fieldprint.tlog.http_server import TEXT, Response
from fieldprint.tlog.storage import Source
from fieldprint.tlog.tile import HEIGHT, MAX_ENTRY_SIZE, WIDTH
from fieldprint.tlog.witness import MAX_REQUEST_SIZE, Witness
from fieldprint.tlog.witness_server import answer as witness_answer

BINARY = "application/octet-stream"
FOR_GOOD = "public, max-age=31536000, immutable"
FOR_A_MINUTE = "public, max-age=60"
REVALIDATED = "no-cache"
MIN_TOKEN_SIZE = 16
_TILE = re.compile(
    r"/tile/(?P<level>entries|[0-9]|[1-5][0-9]|6[0-3])/(?P<index>(?:x[0-9]{3}/){0,5}[0-9]{3})"
    r"(?:\.p/(?P<width>[1-9][0-9]{0,2}))?"
)
_WITNESS = re.compile(r"/add-checkpoint|/[0-9a-f]{64}/checkpoint")


class Appender(Protocol):
    """What a writer of a log does for `POST /add`."""

    def append(self, entries: list[bytes]) -> "Published":
        """Put entries into the log; returns when a published checkpoint covers them."""


class Published(Protocol):
    """Where a batch is, once a checkpoint covers it."""

    @property
    def first_index(self) -> int:
        """Of its first entry."""

    @property
    def tree_size(self) -> int:
        """Of the checkpoint that covers it."""


@dataclass(slots=True)
class Metrics:
    """What is counted, in all threads together.

    fieldprint_log_requests_total{kind="tile",status="200"} 12
    """

    requests: Counter[tuple[str, int]] = field(default_factory=Counter)
    bytes_sent: int = 0
    appends: int = 0
    append_seconds: float = 0.0
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def count(self, kind: str, response: Response) -> None:
        """Count an answer."""
        with self._lock:
            self.requests[kind, response.status] += 1
            self.bytes_sent += len(response.body)

    def appended(self, seconds: float) -> None:
        """Count an entry that was published."""
        with self._lock:
            self.appends += 1
            self.append_seconds += seconds

    def to_text(self, tree_size: int | None) -> str:
        """Prometheus's text format, version 0.0.4."""
        with self._lock:
            rows = [
                ("requests_total", "counter", "Answers by kind and status.", [
                    (f'{{kind="{kind}",status="{status}"}}', str(number))
                    for (kind, status), number in sorted(self.requests.items())
                ]),
                ("sent_bytes_total", "counter", "Bytes of bodies.", [("", str(self.bytes_sent))]),
                ("append_seconds", "summary", "From an entry's arrival to its publication.", [
                    ("_sum", f"{self.append_seconds:.6f}"), ("_count", str(self.appends))
                ]),
            ]  # fmt: skip
        if tree_size is not None:
            rows.append(("tree_size", "gauge", "Entries that the checkpoint covers.", [("", str(tree_size))]))
        lines: list[str] = []
        for name, kind, help_text, samples in rows:
            lines += [
                f"# HELP fieldprint_log_{name} {help_text}",
                f"# TYPE fieldprint_log_{name} {kind}",
                *(f"fieldprint_log_{name}{labels} {value}" for labels, value in samples),
            ]
        return "\n".join(lines) + "\n"


def check_token(token: str) -> str:
    """The token, if it can be one.

    Raises:
        FormatError: shorter than 16 characters, or with others than a bearer token may have (RFC 6750 section 2.1).
    """
    if len(token) < MIN_TOKEN_SIZE or not re.fullmatch(r"[A-Za-z0-9._~+/-]+=*", token):
        raise FormatError(
            f"a bearer token has {MIN_TOKEN_SIZE} or more letters, digits and -._~+/",
            remedy="Make one: python -c 'import secrets; print(secrets.token_urlsafe(32))'",
        )
    return token


def token_in(path: Path, data: bytes) -> str:
    """The token that is the first line of a file that nobody but its owner can read.

    Raises:
        FormatError: others can read it, or it holds no token.
    """
    if path.stat().st_mode & 0o077:
        raise FormatError(f"{path} can be read by others", remedy=f"Run: chmod 600 {path}")
    try:
        return check_token(data.decode("ascii").removesuffix("\n"))
    except UnicodeDecodeError:
        return check_token("")


class LogSite:
    """A log, read-only unless a writer and a token are given.

    Args:
        source: where the log is.
        writer: appends what is posted; only with `token`.
        token: what a request must bear to write.
        witness: answers the requests of c2sp.org/tlog-witness.
    """

    def __init__(
        self,
        source: Source,
        *,
        writer: Appender | None = None,
        token: str | None = None,
        witness: Witness | None = None,
    ) -> None:
        if (writer is None) != (token is None):
            raise ValueError("a writer needs a token, and a token a writer")
        self.source = source
        self.metrics = Metrics()
        self._writer = writer
        self._token = None if token is None else sha256(check_token(token).encode()).digest()
        self._witness = witness
        self._covered = 0

    def limit(self, method: str, path: str, authorization: str = "") -> int | Response:
        """How many bytes the body may have, or the refusal that is due before a body is read."""
        if method != "POST":
            return 0
        if self._witness is not None and path == "/add-checkpoint":
            return MAX_REQUEST_SIZE
        if path != "/add" or self._token is None:
            return self._counted(
                "other", Response(405, b"this log is read-only\n", headers=(("Allow", "GET, HEAD"),))
            )
        scheme, _, token = authorization.partition(" ")
        digest = sha256(token.strip().encode("utf-8", "surrogateescape")).digest()
        if scheme.lower() != "bearer" or not hmac.compare_digest(digest, self._token):
            wanted = (("WWW-Authenticate", 'Bearer realm="log"'),)
            return self._counted("add", Response(401, b"writing needs a bearer token\n", headers=wanted))
        return MAX_ENTRY_SIZE

    def answer(self, method: str, path: str, body: bytes = b"", if_none_match: str = "") -> Response:
        """What is answered to a request whose body `limit` allowed; 503 if the storage fails."""
        kind = "other"
        try:
            kind, response = self._answer(method, path, body)
        except (LogError, CapacityError):
            response = Response(503, b"the log cannot be reached\n")
        if response.status == 200 and method in ("GET", "HEAD"):
            response = _validated(response, if_none_match)
        return self._counted(kind, response)

    def _counted(self, kind: str, response: Response) -> Response:
        self.metrics.count(kind, response)
        return response

    def _answer(self, method: str, path: str, body: bytes) -> tuple[str, Response]:
        if self._witness is not None and _WITNESS.fullmatch(path):
            return "witness", witness_answer(self._witness, "GET" if method == "HEAD" else method, path, body)
        if method == "POST":
            return "add", self._add(body)
        if method not in ("GET", "HEAD"):
            return "other", Response(405, b"GET, HEAD\n", headers=(("Allow", "GET, HEAD"),))
        if path == "/metrics":
            text = self.metrics.to_text(self._tree_size())
            return "metrics", Response(200, text.encode(), "text/plain; version=0.0.4; charset=utf-8")
        if path == "/checkpoint":
            signed = self.source.read("checkpoint")
            missing = Response(404, b"there is no checkpoint\n")
            return "checkpoint", missing if signed is None else Response(200, signed, TEXT, REVALIDATED)
        return self._tile(path)

    def _add(self, body: bytes) -> Response:
        if self._writer is None:
            return Response(405, b"this log is read-only\n", headers=(("Allow", "GET, HEAD"),))
        started = time.perf_counter()
        try:
            appended = self._writer.append([body])
        except CapacityError:
            return Response(507, b"the log's disk is full\n")
        self.metrics.appended(time.perf_counter() - started)
        said = json.dumps({"index": appended.first_index, "tree_size": appended.tree_size})
        return Response(201, said.encode() + b"\n", "application/json")

    def _tile(self, path: str) -> tuple[str, Response]:
        """A tile or bundle in its only spelling, below the log's folder whatever the path holds."""
        found = _TILE.fullmatch(path)
        missing = Response(404, b"nothing is here\n")
        if found is None or found["index"].startswith("x000/") or int(found["width"] or 1) >= WIDTH:
            return "other", missing
        kind = "bundle" if found["level"] == "entries" else "tile"
        level = 0 if kind == "bundle" else int(found["level"])
        index = int(found["index"].replace("x", "").replace("/", ""))
        last = (index * WIDTH + int(found["width"] or WIDTH)) << (HEIGHT * level)
        if last > self._covered and last > (self._tree_size() or 0):
            return kind, missing
        data = self.source.read(path[1:])
        cache = FOR_GOOD if found["width"] is None else FOR_A_MINUTE
        return kind, missing if data is None else Response(200, data, BINARY, cache)

    def _tree_size(self) -> int | None:
        """What the checkpoint covers; its signature is its readers' concern."""
        signed = self.source.read("checkpoint")
        if signed is None:
            return None
        try:
            self._covered = Checkpoint.from_text(parse_note(signed).text).tree_size
        except FieldprintError as error:
            raise LogError(f"the checkpoint is malformed: {error.what}") from error
        return self._covered


def _validated(response: Response, if_none_match: str) -> Response:
    """With an entity tag, and without a body if the client has that (RFC 9110 sections 8.8.3 and 13.1.2)."""
    tag = f'"{sha256(response.body).hexdigest()[:32]}"'
    known = {part.strip().removeprefix("W/") for part in if_none_match.split(",")}
    headers = (*response.headers, ("ETag", tag))
    if tag in known or "*" in known:
        return Response(304, b"", response.content_type, response.cache, headers)
    return Response(200, response.body, response.content_type, response.cache, headers)
