"""Asking witnesses for cosignatures (c2sp.org/tlog-witness, add-checkpoint): one, or as many as a quorum needs.

    ask = WitnessQuorum(TrustPolicy.from_bytes(Path("quorum.txt").read_bytes()))
    found = ask(signed_checkpoint, reader.consistency_proof)
    found.quorum, found.lines, found.failures

Of an answer nothing is believed but signatures by the witness's keys.
"""

import http.client
import queue
import socket
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from urllib.parse import urlsplit

from fieldprint.errors import FieldprintError, FormatError, LogError, VerificationError
from fieldprint.note import NoteSignature, VerifierKey, parse_note, verify_signatures
from fieldprint.note.signature import parse_size
from fieldprint.tlog.checkpoint import Checkpoint
from fieldprint.tlog.history import Cosigned
from fieldprint.tlog.http_client import limit_answers
from fieldprint.tlog.trust import TrustPolicy
from fieldprint.tlog.witness import AddCheckpoint

MAX_ANSWER_SIZE = 128 << 10
MAX_CONFLICTS = 3
Proofs = Callable[[int], Sequence[bytes]]


class WitnessClient:
    """A witness at a URL; it remembers the size that the witness saw last, and keeps its connection.

    Args:
        url: the submission prefix, http or https.
        keys: the witness's keys; answers signed by others are ignored.
        timeout: seconds for one `add_checkpoint`, conflicts and all.

    Raises:
        FormatError: the URL is not of that form.
    """

    def __init__(self, url: str, keys: Sequence[VerifierKey], *, timeout: float = 5.0) -> None:
        self.url = url
        self.keys = tuple(keys)
        self.timeout = timeout
        self._last_size = 0
        self._turn = threading.Lock()  # a request that the last call gave up may still be ending
        self._connection: http.client.HTTPConnection | None = None
        try:
            parts = urlsplit(url)
            self._https, self._host, self._port = parts.scheme == "https", parts.hostname, parts.port
        except ValueError as error:
            raise FormatError(f"{url[:200]!r} is no URL of a witness: {error}") from error
        plain = url.isascii() and url.isprintable() and " " not in url
        plain = plain and not (parts.query or parts.fragment or parts.username)
        if parts.scheme not in ("http", "https") or not self._host or not plain:
            raise FormatError(f"{url[:200]!r} is no URL of a witness: http(s)://host[:port][/path] is needed")
        self._path = parts.path.rstrip("/") + "/add-checkpoint"

    def add_checkpoint(
        self, signed: bytes, proofs: Proofs, *, stop: threading.Event | None = None
    ) -> tuple[NoteSignature, ...]:
        """The witness's valid cosignatures on a checkpoint, at least one.

        A conflict (409) says what the witness saw last; the request is sent again from there.

        Args:
            signed: the checkpoint's note, signed by its log.
            proofs: old size to consistency proof, up to this checkpoint.
            stop: set by who does not wait any more, before `close`.

        Raises:
            FormatError: `signed` is no checkpoint.
            LogError: no answer in time, another status, a larger tree than ours, or an answer without a valid
                cosignature that states a time.
        """
        deadline = _Deadline(time.monotonic() + self.timeout, stop)
        if not self._turn.acquire(timeout=self.timeout):
            raise LogError(f"{self.url} still has not answered the request before")
        try:
            return self._add_checkpoint(signed, proofs, deadline)
        finally:
            self._turn.release()

    def _add_checkpoint(
        self, signed: bytes, proofs: Proofs, deadline: "_Deadline"
    ) -> tuple[NoteSignature, ...]:
        text = parse_note(signed).text
        tree_size = Checkpoint.from_text(text).tree_size
        for _ in range(1 + MAX_CONFLICTS):
            old_size = self._last_size if self._last_size <= tree_size else 0
            proof = tuple(proofs(old_size)) if 0 < old_size < tree_size else ()
            status, body = self._post(AddCheckpoint(old_size, proof, signed).to_bytes(), deadline)
            if status == 200:
                found = self._cosignatures(text, body)
                self._last_size = tree_size
                return found
            if status != 409:
                said = "".join(
                    c if c.isprintable() else "?" for c in body[:200].decode(errors="replace").strip()
                )
                raise LogError(f"{self.url} answers {status}: {said}", remedy=_REMEDIES.get(status, ""))
            self._last_size = self._conflicting_size(body)
            if self._last_size > tree_size:
                raise LogError(
                    f"{self.url} has cosigned a tree of {self._last_size} entries, and this one has {tree_size}",
                    remedy="Was the log's folder restored from an old copy? Then never sign with its key again",
                )
        raise LogError(f"{self.url} answered {1 + MAX_CONFLICTS} times that its last tree is another one")

    def close(self) -> None:
        """Close the connection; a request in another thread fails soon, and closes it itself."""
        connection = self._connection
        if connection is not None and connection.sock is not None:
            with suppress(OSError):
                connection.sock.shutdown(socket.SHUT_RDWR)  # closing alone would not wake a thread that reads
        if self._turn.acquire(blocking=False):
            try:
                self._drop()
            finally:
                self._turn.release()

    def _drop(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.close()

    def _conflicting_size(self, body: bytes) -> int:
        try:
            text = body.decode("ascii")
            if not text.endswith("\n"):
                raise FormatError("no newline at the end")
            return parse_size(text[:-1], "the size")
        except (UnicodeDecodeError, FormatError) as error:
            raise LogError(f"{self.url} answers 409 without a tree size: {error}") from error

    def _cosignatures(self, text: str, body: bytes) -> tuple[NoteSignature, ...]:
        try:
            verified = verify_signatures(text.encode() + b"\n" + body, self.keys)
            if verified.text != text:  # an empty line in the answer would make its first lines signed text
                raise FormatError("it holds an empty line, and signature lines alone are an answer")
        except (FormatError, VerificationError) as error:
            raise LogError(f"{self.url} answers with no cosignature: {error.what}") from error
        found = verified.signatures
        if not found or any(not signature.timestamp for signature in found):
            raise LogError(
                f"{self.url} answers without a cosignature by its key that states a time",
                remedy="Is the witness's key the right one?",
            )
        return found

    def _post(self, body: bytes, deadline: "_Deadline") -> tuple[int, bytes]:
        """Status and body of the answer; a connection that was kept may have been closed meanwhile: once anew."""
        fresh = self._connection is None or self._connection.sock is None
        try:
            return self._exchange(body, deadline)
        except (http.client.RemoteDisconnected, ConnectionError) as error:
            self._drop()
            if fresh:
                raise LogError(f"{self.url} cannot be asked: {error}") from error
        except (OSError, http.client.HTTPException) as error:
            self._drop()
            raise LogError(f"{self.url} cannot be asked: {str(error) or type(error).__name__}") from error
        except BaseException:
            self._drop()
            raise
        return self._post(body, deadline)

    def _exchange(self, body: bytes, deadline: "_Deadline") -> tuple[int, bytes]:
        connection = self._connection
        if connection is None:
            make = http.client.HTTPSConnection if self._https else http.client.HTTPConnection
            connection = self._connection = make(str(self._host), self._port, timeout=deadline.left())
            connection.auto_open = 0  # opened below, or not at all: never by a request that was given up
        if connection.sock is None:
            connection.timeout = deadline.left()
            connection.connect()
        deadline.limit(connection)
        limit_answers(connection, deadline.left)
        connection.request("POST", self._path, body, {"Content-Type": "text/plain; charset=utf-8"})
        response = connection.getresponse()
        answer = b""
        while chunk := response.read1(MAX_ANSWER_SIZE):
            answer += chunk
            if len(answer) > MAX_ANSWER_SIZE:
                raise LogError(f"{self.url} answers with more than {MAX_ANSWER_SIZE} bytes")
        if response.length:
            raise http.client.IncompleteRead(answer, response.length)
        response.close()  # the connection stays
        return response.status, answer


_REMEDIES = {
    403: "Does the witness know the log's present key?",
    404: "Ask the witness's operator to add the log, or correct the URL",
    422: "The log does not continue what the witness saw: compare its checkpoint with the log's folder",
}


@dataclass(frozen=True, slots=True)
class _Deadline:
    """When a request must have ended, and what may end it before."""

    end: float
    stop: threading.Event | None

    def left(self) -> float:
        """Seconds that are left."""
        left = self.end - time.monotonic()
        if left <= 0 or (self.stop is not None and self.stop.is_set()):
            raise TimeoutError("it did not answer in time")
        return left

    def limit(self, connection: http.client.HTTPConnection) -> None:
        """Let no read or write of the connection last longer."""
        if connection.sock is not None:
            connection.sock.settimeout(self.left())


@dataclass(frozen=True, slots=True)
class Answers(Cosigned):
    """What the witnesses said: lines, quorum and keys, the valid cosignatures, and by URL who failed and why."""

    signatures: tuple[NoteSignature, ...]
    failures: Mapping[str, str]


def with_cosignatures(note: bytes, found: Sequence[NoteSignature]) -> bytes:
    """The note with these cosignatures on it; an older one by the same key goes, since a key signs a note once."""
    parsed = parse_note(note)
    keys = {(signature.key.name, signature.key.key_id) for signature in found}
    kept = [line for line, name, data in parsed.signatures if (name, data[:4]) not in keys]
    return "".join([parsed.text, "\n", *kept, *(signature.line for signature in found)]).encode()


class WitnessQuorum:
    """The witnesses of a trust policy that have a URL, asked side by side.

    An instance is what a log's writer calls before it publishes a checkpoint.

    Args:
        trust: witnesses, and the quorum.
        deadline: seconds after which nobody is waited for.
        grace: seconds for the others once the quorum is met.

    Raises:
        FormatError: the witnesses with a URL cannot meet the quorum.
    """

    def __init__(self, trust: TrustPolicy, *, deadline: float = 5.0, grace: float = 0.1) -> None:
        by_url: dict[str, list[VerifierKey]] = {}
        for witness in trust.witnesses:
            if witness.url:
                by_url.setdefault(witness.url, []).append(witness.key)
        if not trust.quorum_met({key for keys in by_url.values() for key in keys}):
            raise FormatError(
                f"the witnesses that have a URL cannot meet the quorum {trust.quorum_text}",
                remedy="Give each witness line its submission prefix",
            )
        self._trust = trust
        self._deadline, self._grace = deadline, grace
        self._clients = [WitnessClient(url, keys, timeout=deadline) for url, keys in by_url.items()]

    def __call__(self, signed: bytes, prove: Proofs) -> Answers:
        """Ask all witnesses at once; ends when all answered, at the deadline, or soon after the quorum is met.

        Args:
            signed: the checkpoint's note, signed by its log.
            prove: old size to consistency proof; called from several threads, one at a time.
        """
        turn, stop = threading.Lock(), threading.Event()

        def proofs(old_size: int) -> Sequence[bytes]:
            with turn:
                return prove(old_size)

        answers: queue.SimpleQueue[tuple[WitnessClient, tuple[NoteSignature, ...] | str]] = (
            queue.SimpleQueue()
        )

        def ask(client: WitnessClient) -> None:
            try:
                answers.put((client, client.add_checkpoint(signed, proofs, stop=stop)))
            except FieldprintError as error:
                answers.put((client, str(error)))
            except Exception as error:  # a witness's or a proof's fault must not keep the others waiting
                answers.put((client, f"{client.url}: {type(error).__name__}: {error}"))

        waiting = {client.url: client for client in self._clients}
        for client in self._clients:
            threading.Thread(target=ask, args=(client,), daemon=True).start()
        found: list[NoteSignature] = []
        failures: dict[str, str] = {}
        end = time.monotonic() + self._deadline
        met = self._met(found)
        while waiting:
            try:
                client, answer = answers.get(timeout=max(0.0, end - time.monotonic()))
            except queue.Empty:
                break
            del waiting[client.url]
            if isinstance(answer, str):
                failures[client.url] = answer
            else:
                found += answer
            if not met and self._met(found):
                met, end = True, min(end, time.monotonic() + self._grace)
        stop.set()
        for url, client in waiting.items():
            client.close()
            failures[url] = f"{url} did not answer in time"
        lines = "".join(signature.line for signature in found).encode()
        keys = tuple(signature.key for signature in found)
        return Answers(lines, met, keys, tuple(found), failures)

    def close(self) -> None:
        """Close all connections."""
        for client in self._clients:
            client.close()

    def _met(self, found: Sequence[NoteSignature]) -> bool:
        return self._trust.quorum_met({signature.key for signature in found})
