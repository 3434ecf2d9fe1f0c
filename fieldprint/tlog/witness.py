"""A witness (c2sp.org/tlog-witness): cosigns a log's checkpoint only if it continues the last one that it cosigned.

The request, of a client that knows the witness's last tree to have 4 entries:

    old 4
    dkwC3rcAmZOr4Y75Xxshtto6exG4pZr/rJcgRITQZF0=

    fieldprint.example/log
    5
    Gd+eua4eGJ/60qRm0LRDseNnoLWgjFZWV/ZzTb2uXPc=

    — fieldprint.example/log TEYrr2eOXeor/x6FCV9YjkFIj9OI/ypx3gw5...

`check_request` is the decision, a pure function; `WitnessState` remembers, and replaces a row only as long as it is the
one that the decision was made on; `Witness` puts the two together.
"""

import base64
import sqlite3
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path

from fieldprint.errors import FieldprintError, FormatError, LogError, VerificationError
from fieldprint.note import (
    LOG_SIGNATURES,
    Cosigner,
    VerifierKey,
    parse_note,
    signature_line,
    verify_signatures,
)
from fieldprint.note.signature import parse_size
from fieldprint.tlog import merkle
from fieldprint.tlog.checkpoint import Checkpoint
from fieldprint.tlog.proof import parse_hashes

MAX_REQUEST_SIZE = 128 << 10
MAX_PROOF_LINES = 63
SIZE_TYPE = "text/x.tlog.size"
TEXT_TYPE = "text/plain; charset=utf-8"


@dataclass(frozen=True, slots=True)
class AddCheckpoint:
    """The body of an add-checkpoint request: the tree size that is continued, the proof, the checkpoint's note."""

    old_size: int
    proof: tuple[bytes, ...]
    checkpoint: bytes

    def to_bytes(self) -> bytes:
        """The body; `from_bytes` is its inverse."""
        lines = [f"old {self.old_size}", *(base64.b64encode(value).decode() for value in self.proof), ""]
        return "".join(line + "\n" for line in lines).encode() + self.checkpoint

    @classmethod
    def from_bytes(cls, data: bytes) -> "AddCheckpoint":
        """The request in a body.

        Raises:
            FormatError: too long, no old size line, more than 63 proof lines, a line not in its only spelling.
        """
        if len(data) > MAX_REQUEST_SIZE:
            raise FormatError(f"the request has {len(data)} bytes, more than {MAX_REQUEST_SIZE}")
        head, separator, checkpoint = data.partition(b"\n\n")
        if not separator:
            raise FormatError("the request has no empty line in front of a checkpoint")
        try:
            old, *lines = head.decode("ascii").split("\n")
        except UnicodeDecodeError as error:
            raise FormatError("the request's lines are not ASCII") from error
        if not old.startswith("old "):
            raise FormatError("the request does not begin with an old size line")
        size = parse_size(old.removeprefix("old "), "the old size")
        return cls(size, parse_hashes(lines, MAX_PROOF_LINES, "the request"), checkpoint)


class RefusalError(FieldprintError):
    """The witness does not cosign: an HTTP status, and the body that goes with it."""

    def __init__(self, status: int, what: str, *, body: str | None = None) -> None:
        super().__init__(what)
        self.status = status
        self.body = f"{what}\n" if body is None else body
        self.content_type = TEXT_TYPE if body is None else SIZE_TYPE


@dataclass(frozen=True, slots=True)
class Latest:
    """What a witness remembers of a log: the last tree that it cosigned, when, and the note with its cosignatures."""

    tree_size: int
    root_hash: bytes
    timestamp: int
    note: bytes


def conflict(size: int) -> RefusalError:
    """The answer 409: the request does not continue the last tree, which has `size` entries."""
    return RefusalError(409, f"the last cosigned tree has {size} entries", body=f"{size}\n")


def check_request(request: AddCheckpoint, checkpoint: Checkpoint, latest: Latest | None) -> None:
    """Return only if the witness must cosign `checkpoint`, whose log's signature was verified.

    The checks in the order of the specification, with the status that is answered:
    400 the old size is larger than the checkpoint's; 409 the old size is not that of the last cosigned tree; 422 an
    empty tree with another root than that of nothing; 422 the proof does not show that the last tree is a prefix of
    this one, or there is a proof where none is needed, or equal sizes come with different roots.

    Raises:
        RefusalError: with the status.
    """
    last_size = 0 if latest is None else latest.tree_size
    last_root = merkle.empty_root() if latest is None else latest.root_hash
    if request.old_size > checkpoint.tree_size:
        raise RefusalError(400, "the old size is larger than the checkpoint's")
    if request.old_size != last_size:
        raise conflict(last_size)
    if checkpoint.tree_size == 0 and checkpoint.root_hash != merkle.empty_root():
        raise RefusalError(422, "the root hash of an empty tree is the hash of nothing")
    try:
        merkle.verify_consistency(
            last_size, checkpoint.tree_size, request.proof, last_root, checkpoint.root_hash
        )
    except VerificationError as error:
        raise RefusalError(422, error.what) from error


class WitnessState:
    """The last cosigned tree of each log, in an SQLite file that survives crashes; threads and processes may share it.

    A row is replaced only if it still holds the size and root that the caller saw, in one statement.
    """

    def __init__(self, path: Path, *, new: bool = False) -> None:
        """Open the file.

        Args:
            new: make it, for a witness that never cosigned. One that starts without what it cosigned before would
                cosign a second history, so nothing else makes the file.

        Raises:
            LogError: it is not there, or is with `new`; it is no such file, or cannot be opened.
        """
        self.path = path
        self._turn = threading.Lock()
        if not new and not path.exists():
            raise LogError(
                f"the witness's state {path} is not there",
                remedy="Bring it back, or name it; only a witness that never cosigned begins with a new one (--new-state)",
            )
        with _state_errors(path):
            self._rows = sqlite3.connect(path, isolation_level=None, check_same_thread=False, timeout=10)
        try:
            self._rows.execute("PRAGMA journal_mode = WAL")
            self._rows.execute("PRAGMA synchronous = FULL")  # a row is on the disk before it is answered
            if new:
                self._rows.execute(
                    "CREATE TABLE latest (origin TEXT PRIMARY KEY, tree_size INTEGER NOT NULL,"
                    " root_hash BLOB NOT NULL, timestamp INTEGER NOT NULL, note BLOB NOT NULL) WITHOUT ROWID"
                )
            self._rows.execute("SELECT 1 FROM latest LIMIT 1")
        except sqlite3.Error as error:
            self._rows.close()
            raise LogError(f"the witness's state {path} cannot be opened: {error}") from error

    def latest(self, origin: str) -> Latest | None:
        """The last cosigned tree of a log; None before the first.

        Raises:
            LogError: the file cannot be read.
        """
        query = "SELECT tree_size, root_hash, timestamp, note FROM latest WHERE origin = ?"
        with self._turn, _state_errors(self.path):
            row = self._rows.execute(query, (origin,)).fetchone()
        return None if row is None else Latest(*row)

    def replace(self, origin: str, seen: Latest | None, new: Latest) -> bool:
        """Put `new` in the place of `seen`, durably; False, and nothing changed, if another stands there by now.

        Raises:
            LogError: the file cannot be written; then nothing changed.
        """
        values = (new.tree_size, new.root_hash, new.timestamp, new.note)
        with self._turn, _state_errors(self.path):
            if seen is None:
                change = self._rows.execute(
                    "INSERT INTO latest VALUES (?, ?, ?, ?, ?) ON CONFLICT DO NOTHING", (origin, *values)
                )
            else:
                change = self._rows.execute(
                    "UPDATE latest SET tree_size = ?, root_hash = ?, timestamp = ?, note = ?"
                    " WHERE origin = ? AND tree_size = ? AND root_hash = ? AND timestamp = ?",
                    (*values, origin, seen.tree_size, seen.root_hash, seen.timestamp),
                )
            return change.rowcount == 1

    def close(self) -> None:
        """Close the file."""
        with self._turn:
            self._rows.close()


class _state_errors:  # noqa: N801  reads as a phrase where it is used
    """Turns SQLite's errors into LogError: without its state a witness must not sign."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        if isinstance(error, sqlite3.Error):
            raise LogError(f"the witness's state {self.path} cannot be used: {error}") from error


class Witness:
    """Keys that cosign, logs that are known, and the state; a log's origin is the name of its keys.

    Args:
        cosigners: the witness's keys, all of one name.
        logs: the log keys that are trusted; several of one name are one log.
        state: where the last cosigned trees are.
        clock: POSIX seconds; a time that went back is not stated, the last one is stated again.

    Raises:
        ValueError: no key, or keys of several names.
        FormatError: a log's key is of a type that only witnesses use, or is a cosigner's.
    """

    def __init__(
        self,
        cosigners: Sequence[Cosigner],
        logs: Sequence[VerifierKey],
        state: WitnessState,
        clock: Callable[[], float] = time.time,
    ) -> None:
        if len({cosigner.name for cosigner in cosigners}) != 1:
            raise ValueError("cosigners must be keys of one witness, with one name")
        own = {cosigner.verifier_key.public_bytes for cosigner in cosigners}
        if any(key.signature_type not in LOG_SIGNATURES or key.public_bytes in own for key in logs):
            raise FormatError("a log of the witness has a key of another use, or the witness's own")
        self.cosigners = tuple(cosigners)
        self.state = state
        self._clock = clock
        self._logs: dict[str, list[VerifierKey]] = {}
        for key in logs:
            self._logs.setdefault(key.name, []).append(key)
        for (
            origin
        ) in self._logs:  # a name that a cosignature has no room for is refused now, not at the first request
            self._cosign(Checkpoint(origin, 0, merkle.empty_root()).to_text(), 0)
        self._origins = {sha256(origin.encode()).hexdigest(): origin for origin in self._logs}

    def add_checkpoint(self, body: bytes) -> bytes:
        """The cosignature lines for the checkpoint in an add-checkpoint request, which is remembered before.

        Where another request changed the state between the decision and the write, it is decided anew.

        Raises:
            RefusalError: with the status: 400 malformed, 404 unknown log, 403 not signed by it, then `check_request`.
            LogError: the state cannot be used; nothing was cosigned.
        """
        try:
            request = AddCheckpoint.from_bytes(body)
            note = parse_note(request.checkpoint)
            checkpoint = Checkpoint.from_text(note.text)
        except FormatError as error:
            raise RefusalError(400, error.what) from error
        keys = self._logs.get(checkpoint.origin)
        if keys is None:
            raise RefusalError(404, "the log is not known here")
        try:
            by_log = verify_signatures(note, keys).signatures
        except (
            FormatError,
            VerificationError,
        ) as error:  # well formed it is: two signatures by one key, or a false one
            raise RefusalError(403, error.what) from error
        if not by_log:
            raise RefusalError(403, "no key that is trusted for the log signed the checkpoint")
        while True:
            latest = self.state.latest(checkpoint.origin)
            check_request(request, checkpoint, latest)
            timestamp = max(1, int(self._clock()), latest.timestamp if latest else 0)
            lines = self._cosign(note.text, timestamp)
            signed = note.text + "\n" + "".join(signature.line for signature in by_log) + lines
            new = Latest(checkpoint.tree_size, checkpoint.root_hash, timestamp, signed.encode())
            if self.state.replace(checkpoint.origin, latest, new):
                return lines.encode()

    def _cosign(self, text: str, timestamp: int) -> str:
        return "".join(
            signature_line(cosigner.name, cosigner.cosign(text.encode(), timestamp))
            for cosigner in self.cosigners
        )

    def checkpoint(self, origin_hash: str) -> bytes:
        """The last cosigned checkpoint of the log whose origin has this SHA-256, in hex: what monitors ask for.

        Raises:
            RefusalError: 404: no log of that name is known, or none of its checkpoints was cosigned.
            LogError: the state cannot be used.
        """
        origin = self._origins.get(origin_hash)
        latest = None if origin is None else self.state.latest(origin)
        if latest is None:
            raise RefusalError(404, "no checkpoint of that log was cosigned here")
        return latest.note
