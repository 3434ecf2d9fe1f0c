"""Signature types of a note as data: the byte that names them, their sizes, and the message that is signed.

    0x01  Ed25519 over the note's text                                      c2sp.org/signed-note
    0x04  Ed25519 over "cosignature/v1\\ntime N\\n" and the note's text       c2sp.org/tlog-cosignature
    0x06  ML-DSA-44 over the binary structure below                         c2sp.org/tlog-cosignature

The last two carry N, POSIX seconds, as a big-endian uint64 in front of the signature.
"""

import base64
import binascii
import struct
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import cryptography
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

from fieldprint.errors import FormatError

MAX_TIMESTAMP = 2**63 - 1
MAX_TREE_SIZE = 2**63 - 1
HASH_SIZE = 32


class PublicKey(Protocol):
    """What `cryptography` gives for a public key; `verify` raises InvalidSignature."""

    def verify(self, signature: bytes, data: bytes) -> None:
        """Return only if `signature` is the key's over `data`."""


@dataclass(frozen=True, slots=True)
class SignatureType:
    """One signature type: how keys and signatures look, and what is signed."""

    byte: bytes
    algorithm: str
    public_size: int
    signature_size: int
    timestamped: bool
    load: Callable[[bytes], PublicKey]
    message: Callable[[str, int, bytes], bytes]

    @property
    def size(self) -> int:
        """Bytes behind the key id in a signature line: the timestamp, if there is one, and the signature."""
        return self.signature_size + (8 if self.timestamped else 0)


def decode_base64(text: str, what: str) -> bytes:
    """The bytes of base64 in its only spelling.

    Raises:
        FormatError: not base64, or another spelling of the same bytes.
    """
    try:
        data = base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError) as error:
        raise FormatError(f"{what} is not base64") from error
    if base64.b64encode(data).decode() != text:
        raise FormatError(f"{what} is not canonical base64")
    return data


def parse_size(text: str, what: str) -> int:
    """A decimal number from 0 to 2^63 - 1 in its only spelling ("007" and "+7" are refused).

    Raises:
        FormatError: anything else.
    """
    if not text.isascii() or not text.isdigit() or len(text) > 19 or str(int(text)) != text:
        raise FormatError(f"{what} {text[:30]!r} is not a decimal number")
    if int(text) > MAX_TREE_SIZE:
        raise FormatError(f"{what} {text} is not a decimal number below 2^63")
    return int(text)


def parse_tree_head(text: str) -> tuple[str, int, bytes, tuple[str, ...]]:
    """Origin, tree size, root hash and extension lines of a checkpoint's text (c2sp.org/tlog-checkpoint).

    Raises:
        FormatError: a line is missing, empty or not in its only spelling.
    """
    lines = text.split("\n")
    if len(lines) < 4 or lines[-1] != "" or any(not line for line in lines[:-1]):
        raise FormatError("a checkpoint has three or more lines, none of them empty")
    origin, size, encoded, *extensions = lines[:-1]
    tree_size = parse_size(size, "the checkpoint's tree size")
    root = decode_base64(encoded, "the checkpoint's root hash")
    if len(root) != HASH_SIZE:
        raise FormatError("the checkpoint's root hash is not 32 bytes in base64")
    return origin, tree_size, root, tuple(extensions)


def _plain_message(_name: str, _timestamp: int, text: bytes) -> bytes:
    return text


def _timed_message(_name: str, timestamp: int, text: bytes) -> bytes:
    """The header line, the time line, the whole text.

    cosignature/v1
    time 1800005460
    fieldprint.example/log
    5
    Gd+eua4eGJ/60qRm0LRDseNnoLWgjFZWV/ZzTb2uXPc=
    """
    return b"cosignature/v1\ntime %d\n" % timestamp + text


def _subtree_message(name: str, timestamp: int, text: bytes) -> bytes:
    """The structure cosigned_message, for the whole tree: start is 0, end is the tree's size.

    label[12] | name<1..255> | timestamp | origin<1..255> | start | end | hash[32]; extension lines are not in it.
    """
    origin, tree_size, root, _ = parse_tree_head(text.decode())
    names = []
    for value in (name.encode(), origin.encode()):
        if not 1 <= len(value) <= 255:
            raise FormatError("an ML-DSA-44 cosignature has room for names of 1 to 255 bytes")
        names.append(bytes([len(value)]) + value)
    head = b"subtree/v1\n\0" + names[0] + struct.pack(">Q", timestamp) + names[1]
    return head + struct.pack(">QQ", 0, tree_size) + root


def _load_mldsa44(data: bytes) -> PublicKey:
    try:
        from cryptography.hazmat.primitives.asymmetric.mldsa import MLDSA44PublicKey

        return MLDSA44PublicKey.from_public_bytes(data)
    except (ImportError, UnsupportedAlgorithm):
        raise FormatError(
            f"keys of type 0x06 need ML-DSA-44, which cryptography {cryptography.__version__} does not offer here",
            remedy="Install a newer release of cryptography, or use keys of type 0x04",
        ) from None


ED25519 = SignatureType(b"\x01", "Ed25519", 32, 64, False, Ed25519PublicKey.from_public_bytes, _plain_message)
COSIGNATURE_ED25519 = SignatureType(
    b"\x04", "Ed25519", 32, 64, True, Ed25519PublicKey.from_public_bytes, _timed_message
)
COSIGNATURE_MLDSA44 = SignatureType(b"\x06", "ML-DSA-44", 1312, 2420, True, _load_mldsa44, _subtree_message)

COSIGNATURES = (COSIGNATURE_ED25519, COSIGNATURE_MLDSA44)  # what a witness may sign with
LOG_SIGNATURES = (ED25519, COSIGNATURE_MLDSA44)  # what c2sp.org/tlog-checkpoint names for logs
