"""Signed notes (c2sp.org/signed-note): text and keys to signed text, and back only if a trusted key signed it.

    fieldprint.example/log
    600
    8QkYpWnbWtlEHfZcFzHZ2zMzUyoHz8Ej7n2n0QmXyvM=

    — fieldprint.example/log x1J3a...base64...==

A note is text that ends in a newline, an empty line, and signature lines: an em dash, the key's name, and base64 over
a 4-byte key id and the signature. This module signs with Ed25519 (signature type 0x01).
"""

import base64
import binascii
from collections.abc import Sequence
from dataclasses import dataclass
from hashlib import sha256

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from fieldprint.errors import FormatError, VerificationError

ED25519 = b"\x01"
MAX_NOTE_SIZE = 1_000_000
MAX_SIGNATURES = 100
_PREFIX = "\N{EM DASH} "


def _check_name(name: str) -> str:
    if not name or "+" in name or any(c.isspace() or not c.isprintable() for c in name):
        raise FormatError(f"{name!r} is no key name: no spaces, no plus sign, not empty")
    return name


def _base64(text: str, what: str) -> bytes:
    try:
        data = base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError) as error:
        raise FormatError(f"{what} is not base64") from error
    if base64.b64encode(data).decode() != text:
        raise FormatError(f"{what} is not canonical base64")
    return data


@dataclass(frozen=True, slots=True)
class VerifierKey:
    """A name with an Ed25519 public key; as text `name+hash+base64`.

    fieldprint.example/log+3c2f8a91+AZ...
    """

    name: str
    public_bytes: bytes

    def __post_init__(self) -> None:
        _check_name(self.name)
        if len(self.public_bytes) != 32:
            raise FormatError("an Ed25519 public key has 32 bytes")

    @property
    def key_id(self) -> bytes:
        """The first 4 bytes of SHA-256(name, newline, type, public key)."""
        return sha256(self.name.encode() + b"\n" + ED25519 + self.public_bytes).digest()[:4]

    @classmethod
    def parse(cls, text: str) -> "VerifierKey":
        """The key that `str` wrote.

        Raises:
            FormatError: not of the form name+hash+base64, another algorithm, or a hash that is not the key's.
        """
        parts = text.split("+", 2)
        if len(parts) != 3:
            raise FormatError("a verifier key has the form name+hash+base64")
        data = _base64(parts[2], "the verifier key")
        if data[:1] != ED25519 or len(data) != 33:
            raise FormatError("the verifier key is not an Ed25519 key")
        key = cls(parts[0], data[1:])
        if key.key_id.hex() != parts[1]:
            raise FormatError("the hash in the verifier key is not the key's")
        return key

    def __str__(self) -> str:
        return f"{self.name}+{self.key_id.hex()}+{base64.b64encode(ED25519 + self.public_bytes).decode()}"


class NoteSigner:
    """A name with an Ed25519 private key."""

    def __init__(self, name: str, private_key: Ed25519PrivateKey) -> None:
        self.name = _check_name(name)
        self._private_key = private_key
        self.verifier_key = VerifierKey(name, private_key.public_key().public_bytes_raw())

    def sign(self, text: bytes) -> bytes:
        """The signature over `text`, with the key id in front."""
        return self.verifier_key.key_id + self._private_key.sign(text)


def _check_text(text: str) -> None:
    if not text.endswith("\n") or any((ord(c) < 0x20 and c != "\n") for c in text):
        raise FormatError("a note's text ends in a newline and holds no control characters")


def sign_note(text: str, signers: Sequence[NoteSigner]) -> bytes:
    """The note: `text`, an empty line, and a signature line for each signer.

    Raises:
        FormatError: `text` does not end in a newline or holds other control characters.
    """
    _check_text(text)
    lines = [f"{_PREFIX}{s.name} {base64.b64encode(s.sign(text.encode())).decode()}\n" for s in signers]
    return (text + "\n" + "".join(lines)).encode()


def verify_note(data: bytes, keys: Sequence[VerifierKey]) -> str:
    """The text of the note, if it is well formed and a key of `keys` signed it.

    1. The note is UTF-8 of text, an empty line and 1 to 100 signature lines, each well formed and none twice.
    2. Every signature by a key of `keys` is valid, and there is at least one.

    Signatures by other keys are ignored, as the specification says.

    Raises:
        FormatError: check 1 failed.
        VerificationError: check 2 failed.
    """
    if len(data) > MAX_NOTE_SIZE:
        raise FormatError(f"the note has {len(data)} bytes, more than {MAX_NOTE_SIZE}")
    try:
        whole = data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise FormatError("the note is not UTF-8") from error
    text, separator, block = whole.rpartition("\n\n")
    text += "\n"
    if not separator or not block.endswith("\n"):
        raise FormatError("the note has no signature lines behind an empty line")
    _check_text(text)
    lines = block[:-1].split("\n")
    if len(lines) > MAX_SIGNATURES:
        raise FormatError(f"the note has more than {MAX_SIGNATURES} signatures")
    if len(set(lines)) != len(lines):
        raise FormatError("the note has the same signature line twice")
    trusted = {(key.name, key.key_id): key for key in keys}
    seen: set[tuple[str, bytes]] = set()
    for line in lines:
        name, signature = _signature(line)
        known = trusted.get((name, signature[:4]))
        if known is None:
            continue
        if (name, signature[:4]) in seen:
            raise FormatError("the note has two signatures by one key")
        seen.add((name, signature[:4]))
        try:
            Ed25519PublicKey.from_public_bytes(known.public_bytes).verify(signature[4:], text.encode())
        except InvalidSignature:
            raise VerificationError(2, f"the signature of {name} on the note is not valid") from None
    if not seen:
        raise VerificationError(
            2, "no trusted key signed the note", remedy="Check the log's key in the policy"
        )
    return text


def _signature(line: str) -> tuple[str, bytes]:
    if not line.startswith(_PREFIX):
        raise FormatError("a signature line does not begin with an em dash")
    name, space, encoded = line[len(_PREFIX) :].partition(" ")
    signature = _base64(encoded, "a signature")
    if not space or len(signature) < 5:
        raise FormatError("a signature line has no name or no signature")
    return _check_name(name), signature
