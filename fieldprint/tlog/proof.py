"""Proofs in a file (c2sp.org/tlog-proof): that an entry is in a log, checked offline with a policy of trusted keys.

    c2sp.org/tlog-proof@v1
    extra eyJ0eXBlIjoicHJvbW90ZSJ9
    index 433
    gSKyXoYZUgZ6jduWYrkDOARinOMGJveXjgMkBTcdPlQ=

    fieldprint.example/log
    600
    8QkYpWnbWtlEHfZcFzHZ2zMzUyoHz8Ej7n2n0QmXyvM=

    — fieldprint.example/log x1J3a...
    — witness.example/north fQ0qUQ...

The `extra` line may be missing. Nothing authenticates it; where the entry stands in it, the proof itself does.
"""

import base64
from dataclasses import dataclass

from fieldprint.errors import FormatError, VerificationError
from fieldprint.note import MAX_NOTE_SIZE, NoteSignature, parse_note
from fieldprint.note.signature import HASH_SIZE, decode_base64, parse_size
from fieldprint.tlog import merkle
from fieldprint.tlog.checkpoint import Checkpoint
from fieldprint.tlog.reader import LogReader
from fieldprint.tlog.tile import MAX_ENTRY_SIZE
from fieldprint.tlog.trust import Trust, verify_checkpoint, verify_cosignatures

HEADER = "c2sp.org/tlog-proof@v1"
MAX_HASHES = 63
MAX_PROOF_SIZE = MAX_NOTE_SIZE + (128 << 10)


@dataclass(frozen=True, slots=True)
class LogProof:
    """An entry's index, its inclusion proof from the leaf's sibling upwards, the checkpoint's note, extra data."""

    index: int
    hashes: tuple[bytes, ...]
    checkpoint: bytes
    extra: bytes | None = None

    def to_bytes(self) -> bytes:
        """The file; `from_bytes` is its inverse."""
        lines = [HEADER]
        if self.extra is not None:
            lines.append(f"extra {base64.b64encode(self.extra).decode()}")
        lines.append(f"index {self.index}")
        lines += [base64.b64encode(value).decode() for value in self.hashes]
        return "".join(line + "\n" for line in (*lines, "")).encode() + self.checkpoint

    @classmethod
    def from_bytes(cls, data: bytes) -> "LogProof":
        """The proof in a file; no signature and no hash is verified.

        Raises:
            FormatError: too long, another first line, a line that is missing, misplaced or not in its only spelling,
                more than 63 hashes, or no well-formed checkpoint behind the empty line.
        """
        if len(data) > MAX_PROOF_SIZE:
            raise FormatError(f"the proof has {len(data)} bytes, more than {MAX_PROOF_SIZE}")
        head, separator, checkpoint = data.partition(b"\n\n")
        if not separator:
            raise FormatError("the proof has no empty line in front of a checkpoint")
        try:
            first, *lines = head.decode("ascii").split("\n")
        except UnicodeDecodeError as error:
            raise FormatError("the proof's lines are not ASCII") from error
        if first != HEADER:
            raise FormatError(f"the proof does not begin with {HEADER}")
        extra = None
        if lines and lines[0].startswith("extra "):
            extra = decode_base64(lines.pop(0).removeprefix("extra "), "the proof's extra data")
        if not lines or not lines[0].startswith("index "):
            raise FormatError("the proof has no index line where one must be")
        index = parse_size(lines.pop(0).removeprefix("index "), "the proof's index")
        hashes = parse_hashes(lines, MAX_HASHES, "the proof")
        Checkpoint.from_text(parse_note(checkpoint).text)
        return cls(index, hashes, checkpoint, extra)


@dataclass(frozen=True, slots=True)
class VerifiedEntry:
    """An entry that `verify_log_proof` found in a log that the trusted keys signed."""

    entry: bytes
    index: int
    checkpoint: Checkpoint
    cosignatures: tuple[NoteSignature, ...]


def parse_hashes(lines: list[str], limit: int, what: str) -> tuple[bytes, ...]:
    """The hashes of a Merkle proof, one a line in base64.

    Raises:
        FormatError: more than `limit`, or a line that is not 32 bytes in the only spelling of base64.
    """
    if len(lines) > limit:
        raise FormatError(f"{what} has more than {limit} hashes")
    hashes = tuple(decode_base64(line, f"a hash of {what}") for line in lines)
    if any(len(value) != HASH_SIZE for value in hashes):
        raise FormatError(f"a hash of {what} is not 32 bytes")
    return hashes


def prove_entry(log: LogReader, index: int, *, with_entry: bool = False) -> LogProof:
    """The proof that entry `index` is in the tree of the log's checkpoint.

    Args:
        log: its checkpoint goes into the proof as it is, with the cosignatures that it carries.
        index: of the entry.
        with_entry: put the entry into the extra data, so that the file needs no other beside it.

    Raises:
        ValueError: the log has no such entry.
    """
    size = log.checkpoint().tree_size
    if not 0 <= index < size:
        raise ValueError(f"the log has {size} entries, and entry {index} is none of them")
    hashes = tuple(log.inclusion_proof(index))
    return LogProof(index, hashes, log.signed_checkpoint(), log.entry(index) if with_entry else None)


def verify_log_proof(data: bytes, trust: Trust, entry: bytes | None = None) -> VerifiedEntry:
    """Return the entry only if every check below holds. Needs no network.

    1. `data` is a well-formed proof, and the entry is given or stands in its extra data.
    2. A log key of `trust` signed the checkpoint, and it is the key of the checkpoint's origin.
    3. No cosignature by a witness of `trust` is false, and together they meet its quorum.
    4. The entry is in the checkpoint's tree, at the proof's index.

    Args:
        data: a `.tlog-proof` file.
        trust: a `TrustPolicy` or a `Policy`, of the verifier.
        entry: its bytes; None takes the extra data, which check 4 then authenticates.

    Raises:
        VerificationError: with the number of the check.
    """
    try:
        proof = LogProof.from_bytes(data)
        record = proof.extra if entry is None else entry
        if record is None:
            raise FormatError("the proof does not hold the entry", remedy="Give the entry's file as well")
        if len(record) > MAX_ENTRY_SIZE:
            raise FormatError(f"the entry has more than {MAX_ENTRY_SIZE} bytes")
    except FormatError as error:
        raise VerificationError(1, error.what, remedy=error.remedy) from error
    try:
        checkpoint = verify_checkpoint(proof.checkpoint, trust.log_keys)
    except (FormatError, VerificationError) as error:
        raise VerificationError(2, error.what, remedy="Is the policy's log key the right one?") from error
    try:
        cosignatures = verify_cosignatures(proof.checkpoint, trust)
    except FormatError as error:
        raise VerificationError(3, error.what) from error
    try:
        merkle.verify_inclusion(
            merkle.leaf_hash(record), proof.index, checkpoint.tree_size, proof.hashes, checkpoint.root_hash
        )
    except VerificationError as error:
        raise VerificationError(4, error.what, remedy="Is it the entry that was proved?") from error
    return VerifiedEntry(record, proof.index, checkpoint, cosignatures)
