"""The receipt: what a client keeps of a request, and all that a stranger needs to check it.

Canonical JSON (RFC 8785), one object:

    anchor      base64 of the signed artifact, or null
    checkpoint  the log's checkpoint, a signed note, with the cosignatures that it carries
    leaves      [{"index": 41, "leaf": "<the leaf's JSON as text>", "proof": ["<base64>", ...]}, ...]
    prompt, tokens   token ids of prompt and answer
    salt        32 hex digits; opens the salted digests
    text        the answer
    type, v     "receipt", 1
"""

import base64
from dataclasses import dataclass, replace
from typing import Any

import rfc8785

from fieldprint.anchor.dsse import check_keys, check_version, decode_base64, parse_canonical
from fieldprint.commit.leaf import SALT_SIZE
from fieldprint.errors import FormatError, IntegrityError
from fieldprint.tlog import LogReader

MAX_RECEIPT_SIZE = 64 << 20


@dataclass(frozen=True, slots=True)
class LeafProof:
    """A leaf, its index in the log, and its audit path to the checkpoint's root."""

    index: int
    leaf: bytes
    proof: tuple[bytes, ...]


@dataclass(frozen=True, slots=True)
class Receipt:
    """A request's leaves with proofs, a checkpoint, and what opens the digests."""

    checkpoint: str
    leaves: tuple[LeafProof, ...]
    salt: bytes
    prompt: tuple[int, ...]
    tokens: tuple[int, ...]
    text: str
    anchor: bytes | None

    def to_bytes(self) -> bytes:
        """The file; `from_bytes` is the inverse."""
        return rfc8785.dumps(
            {
                "anchor": None if self.anchor is None else base64.b64encode(self.anchor).decode(),
                "checkpoint": self.checkpoint,
                "leaves": [
                    {
                        "index": leaf.index,
                        "leaf": leaf.leaf.decode(),
                        "proof": [base64.b64encode(h).decode() for h in leaf.proof],
                    }
                    for leaf in self.leaves
                ],
                "prompt": list(self.prompt),
                "salt": self.salt.hex(),
                "text": self.text,
                "tokens": list(self.tokens),
                "type": "receipt",
                "v": 1,
            }
        )

    @classmethod
    def from_bytes(cls, data: bytes) -> "Receipt":
        """The receipt in a file.

        Raises:
            FormatError: too large, not canonical, or with other fields.
        """
        fields = parse_canonical(data, "the receipt", MAX_RECEIPT_SIZE)
        keys = {"anchor", "checkpoint", "leaves", "prompt", "salt", "text", "tokens", "type", "v"}
        check_keys(fields, keys, "the receipt")
        check_version(fields, "receipt", "the file")
        for name in ("checkpoint", "text", "salt"):
            if not isinstance(fields[name], str):
                raise FormatError(f"the receipt's {name} is no text")
        if not isinstance(fields["leaves"], list) or not fields["leaves"]:
            raise FormatError("the receipt has no leaves")
        try:
            salt = bytes.fromhex(fields["salt"])
        except ValueError:
            raise FormatError("the receipt's salt is not hex") from None
        if len(salt) != SALT_SIZE or salt.hex() != fields["salt"]:
            raise FormatError(f"the receipt's salt is not {SALT_SIZE} bytes in hex")
        return cls(
            checkpoint=fields["checkpoint"],
            leaves=tuple(_leaf(item) for item in fields["leaves"]),
            salt=salt,
            prompt=_token_ids(fields["prompt"], "prompt"),
            tokens=_token_ids(fields["tokens"], "tokens"),
            text=fields["text"],
            anchor=None
            if fields["anchor"] is None
            else decode_base64(fields["anchor"], "the receipt's anchor"),
        )


def renew_receipt(receipt: Receipt, log: LogReader, checkpoint: bytes | None = None) -> Receipt:
    """The receipt with proofs to the log's present checkpoint, which may have cosignatures that the old one lacks.

    Args:
        receipt: of a request in that log.
        log: the reader.
        checkpoint: the reader's checkpoint with more cosignatures on it; None takes it as the log has it.

    Raises:
        IntegrityError: the log holds another entry where the receipt has a leaf, or ends before it.
    """
    size = log.checkpoint().tree_size
    for item in receipt.leaves:
        if item.index >= size or log.entry(item.index) != item.leaf:
            raise IntegrityError(
                f"the log does not hold the receipt's leaf at entry {item.index}",
                remedy="Is this the log of the receipt? If it is, keep the receipt: it proves that the log was altered",
            )
    leaves = tuple(replace(item, proof=tuple(log.inclusion_proof(item.index))) for item in receipt.leaves)
    note = log.signed_checkpoint() if checkpoint is None else checkpoint
    return replace(receipt, checkpoint=note.decode(), leaves=leaves)


def _leaf(item: Any) -> LeafProof:
    check_keys(item, {"index", "leaf", "proof"}, "a leaf of the receipt")
    index, leaf, proof = item["index"], item["leaf"], item["proof"]
    if not isinstance(index, int) or isinstance(index, bool) or index < 0:
        raise FormatError("a leaf's index must be an integer from 0 on")
    if not isinstance(leaf, str) or not isinstance(proof, list) or len(proof) > 64:
        raise FormatError("a leaf of the receipt needs a text and a proof of at most 64 hashes")
    return LeafProof(index, leaf.encode(), tuple(decode_base64(h, "a hash of the proof") for h in proof))


def _token_ids(value: object, name: str) -> tuple[int, ...]:
    if not isinstance(value, list) or not all(type(x) is int and 0 <= x < 2**31 for x in value):
        raise FormatError(f"the receipt's {name} must be a list of token ids")
    return tuple(value)
