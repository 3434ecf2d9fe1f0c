"""Who signs: a key behind one small interface, wherever it lies, and the references that say where.

    keys/owner.key                                        a PEM file, plain or encrypted
    keyring:fieldprint/owner                              the operating system's keyring
    pkcs11:token=office;object=owner?pin-source=/run/pin  a smart card, an HSM or SoftHSM (RFC 7512)

A key in a key management service is one more class with these three names; docs/keys.md has one.
"""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from fieldprint.anchor.keys import AskSecret, key_id, load_private_key
from fieldprint.errors import FieldprintError


class Signer(Protocol):
    """An Ed25519 key that signs without being shown."""

    @property
    def key_id(self) -> str:
        """Hex SHA-256 of the public key's 32 bytes."""

    @property
    def public_key(self) -> bytes:
        """The public key's raw 32 bytes (RFC 8032)."""

    def sign(self, message: bytes) -> bytes:
        """The 64 bytes of the signature over the message itself, which is not hashed before (Ed25519, not Ed25519ph)."""


@dataclass(frozen=True, slots=True)
class KeySigner:
    """A signer whose private key is in this process's memory."""

    private_key: Ed25519PrivateKey = field(repr=False)

    @property
    def key_id(self) -> str:
        """Hex SHA-256 of the public key's 32 bytes."""
        return key_id(self.private_key.public_key())

    @property
    def public_key(self) -> bytes:
        """The public key's raw 32 bytes."""
        return self.private_key.public_key().public_bytes_raw()

    def sign(self, message: bytes) -> bytes:
        """The signature over the message."""
        return self.private_key.sign(message)


SigningKey = Signer | Ed25519PrivateKey


def open_signer(
    reference: str, *, passphrase: AskSecret | None = None, pin: AskSecret | None = None
) -> Signer:
    """The signer that a reference names, of the forms above.

    Args:
        reference: a path, or `keyring:` or `pkcs11:` and what belongs to it.
        passphrase: asked for an encrypted file's passphrase, with the file's name. Without it such a file is refused.
        pin: asked for a token's PIN, with the token's name, where the reference has no pin-source.

    Raises:
        FormatError: the reference is malformed, or the key is missing, no Ed25519 key or readable by others.
        FieldprintError: a package or library is not installed, or the keyring or the token refuses.
    """
    if reference.startswith("pkcs11:"):
        from fieldprint.anchor.pkcs11 import TokenSigner, TokenUri

        return TokenSigner(TokenUri.parse(reference), pin)
    if reference.startswith("keyring:"):
        from fieldprint.anchor.keyring import load_from_keyring

        return KeySigner(load_from_keyring(reference))
    return KeySigner(load_private_key(Path(reference), passphrase))


def checked_signature(key: SigningKey, message: bytes) -> tuple[str, bytes]:
    """(key id, signature) of the message, verified: what a token or a service answers is believed no further.

    Raises:
        FieldprintError: the key id is not that of the public key, or the signature not that of both.
    """
    signer = KeySigner(key) if isinstance(key, Ed25519PrivateKey) else key
    what = "the signer of key {}"
    try:
        public_key = Ed25519PublicKey.from_public_bytes(signer.public_key)
    except ValueError as error:
        raise FieldprintError(f"{what.format(signer.key_id)} gave no Ed25519 public key") from error
    identifier = key_id(public_key)
    if signer.key_id != identifier:
        raise FieldprintError(f"{what.format(signer.key_id)} has another public key, of id {identifier}")
    signature = signer.sign(message)
    try:
        public_key.verify(signature, message)
    except InvalidSignature:
        raise FieldprintError(
            f"{what.format(identifier)} gave a signature that its public key does not verify",
            remedy="Nothing was written. Does its public key belong to its private key?",
        ) from None
    return identifier, signature
