"""Keys of signed notes: the public one as the text that is handed out, and those that sign."""

import base64
from collections.abc import Sequence
from dataclasses import dataclass
from hashlib import sha256
from typing import TYPE_CHECKING, Protocol

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from fieldprint.errors import FormatError, VerificationError
from fieldprint.note.signature import (
    COSIGNATURE_ED25519,
    COSIGNATURE_MLDSA44,
    ED25519,
    MAX_TIMESTAMP,
    SignatureType,
    decode_base64,
)

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.mldsa import MLDSA44PrivateKey


class Signer(Protocol):
    """Whoever has a name and a key, and signs a note's text."""

    name: str

    def sign(self, text: bytes) -> bytes:
        """The signature over `text`, with the key id in front."""


def check_name(name: str) -> str:
    """The name, if a signature line can hold it.

    Raises:
        FormatError: it is empty, or holds a plus sign, white space or unprintable characters.
    """
    if not name or "+" in name or any(c.isspace() or not c.isprintable() for c in name):
        raise FormatError(f"{name!r} is no key name: no spaces, no plus sign, not empty")
    return name


@dataclass(frozen=True, slots=True)
class VerifierKey:
    """A name with a public key of one signature type; as text `name+hash+base64`.

    fieldprint.example/log+3c2f8a91+AZ...
    """

    name: str
    public_bytes: bytes
    signature_type: SignatureType = ED25519

    def __post_init__(self) -> None:
        check_name(self.name)
        kind = self.signature_type
        if len(self.public_bytes) != kind.public_size:
            raise FormatError(f"an {kind.algorithm} public key has {kind.public_size} bytes")
        kind.load(self.public_bytes)

    @property
    def key_id(self) -> bytes:
        """The first 4 bytes of SHA-256(name, newline, type, public key)."""
        data = self.name.encode() + b"\n" + self.signature_type.byte + self.public_bytes
        return sha256(data).digest()[:4]

    @classmethod
    def parse(cls, text: str, types: Sequence[SignatureType] = (ED25519,)) -> "VerifierKey":
        """The key that `str` wrote.

        Args:
            text: of the form name+hash+base64.
            types: the signature types that are wanted; a log's and a witness's keys are not the same.

        Raises:
            FormatError: of another form, of another type, or with a hash that is not the key's.
        """
        parts = text.split("+", 2)
        if len(parts) != 3:
            raise FormatError("a verifier key has the form name+hash+base64")
        data = decode_base64(parts[2], "the verifier key")
        kind = next((kind for kind in types if data[:1] == kind.byte), None)
        if kind is None or len(data) != 1 + kind.public_size:
            wanted = " or ".join(f"{kind.algorithm} (0x{kind.byte.hex()})" for kind in types)
            raise FormatError(f"the verifier key is not a key of type {wanted}")
        key = cls(parts[0], data[1:], kind)
        if key.key_id.hex() != parts[1]:
            raise FormatError("the hash in the verifier key is not the key's")
        return key

    def verify(self, signature: bytes, text: bytes) -> int | None:
        """The time that a valid signature over `text` states, or None if its type states none.

        Args:
            signature: what stands behind the key id in a signature line.
            text: the note's.

        Raises:
            VerificationError: check 2: the signature is not valid, of a wrong length, or of a time beyond 2^63 - 1.
        """
        kind = self.signature_type
        what = f"the signature of {self.name} on the note is not valid"
        if len(signature) != kind.size:
            raise VerificationError(2, f"{what}: it has {len(signature)} bytes and not {kind.size}")
        stamp, value = signature[: -kind.signature_size], signature[-kind.signature_size :]
        timestamp = int.from_bytes(stamp, "big")
        if timestamp > MAX_TIMESTAMP:
            raise VerificationError(2, f"{what}: its time is beyond 2^63 - 1")
        try:
            kind.load(self.public_bytes).verify(value, kind.message(self.name, timestamp, text))
        except InvalidSignature:
            raise VerificationError(2, what) from None
        except FormatError as error:  # a type that signs checkpoints only, and a text that is none
            raise VerificationError(2, f"{what}: {error.what}") from None
        return timestamp if kind.timestamped else None

    def __str__(self) -> str:
        encoded = base64.b64encode(self.signature_type.byte + self.public_bytes).decode()
        return f"{self.name}+{self.key_id.hex()}+{encoded}"


class NoteSigner:
    """A name with an Ed25519 private key."""

    def __init__(self, name: str, private_key: Ed25519PrivateKey) -> None:
        self.name = check_name(name)
        self._private_key = private_key
        self.verifier_key = VerifierKey(name, private_key.public_key().public_bytes_raw())

    def sign(self, text: bytes) -> bytes:
        """The signature over `text`, with the key id in front."""
        return self.verifier_key.key_id + self._private_key.sign(text)


class Cosigner:
    """A witness's name with its private key: Ed25519 makes cosignatures of type 0x04, ML-DSA-44 of type 0x06."""

    def __init__(self, name: str, private_key: "Ed25519PrivateKey | MLDSA44PrivateKey") -> None:
        self.name = check_name(name)
        self._private_key = private_key
        ed25519 = isinstance(private_key, Ed25519PrivateKey)
        kind = COSIGNATURE_ED25519 if ed25519 else COSIGNATURE_MLDSA44
        self.verifier_key = VerifierKey(name, private_key.public_key().public_bytes_raw(), kind)

    def cosign(self, text: bytes, timestamp: int) -> bytes:
        """The cosignature over a checkpoint's text: key id, time, signature.

        Args:
            text: of the checkpoint, up to the newline before the empty line.
            timestamp: POSIX seconds.

        Raises:
            ValueError: the time is not within 0 and 2^63 - 1.
            FormatError: an ML-DSA-44 key, and the text is no checkpoint, or a name has more than 255 bytes.
        """
        if not 0 <= timestamp <= MAX_TIMESTAMP:
            raise ValueError(f"timestamp must be 0 to 2^63 - 1, not {timestamp}")
        key = self.verifier_key
        message = key.signature_type.message(self.name, timestamp, text)
        return key.key_id + timestamp.to_bytes(8, "big") + self._private_key.sign(message)
