"""Ed25519 keys in files: the private one readable by its owner only."""

import os
import re
from hashlib import sha256
from pathlib import Path

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
    load_pem_private_key,
    load_pem_public_key,
)

from fieldprint.errors import FieldprintError, FormatError

KEY_NAME = re.compile(r"[a-z0-9._-]{1,64}")


def new_key(folder: Path, name: str) -> tuple[Path, Path]:
    """The paths of a new key pair: NAME.key (PEM, mode 0600) and NAME.pub.

    Raises:
        FieldprintError: a file of that name exists; it is not overwritten.
        ValueError: `name` holds other characters than a-z, 0-9, dot, underscore, hyphen.
    """
    if not KEY_NAME.fullmatch(name):
        raise ValueError(f"name must match [a-z0-9._-]{{1,64}}, not {name!r}")
    private = Ed25519PrivateKey.generate()
    folder.mkdir(parents=True, exist_ok=True)
    paths = (folder / f"{name}.key", folder / f"{name}.pub")
    contents = (
        private.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()),
        private.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo),
    )
    taken = next((path for path in paths if path.exists()), None)
    if taken is not None:
        raise FieldprintError(f"{taken} exists and is not overwritten", remedy="Choose another name")
    for path, data, mode in zip(paths, contents, (0o600, 0o644), strict=True):
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, mode)
        with os.fdopen(descriptor, "wb") as file:
            file.write(data)
    return paths


def load_private_key(path: Path) -> Ed25519PrivateKey:
    """The private key in `path`.

    Raises:
        FormatError: the file is missing, holds no Ed25519 key, or others than its owner may read it.
    """
    data = _read(path)
    try:
        key = load_pem_private_key(data, password=None)
    except (ValueError, TypeError, UnsupportedAlgorithm):
        raise FormatError(f"{path} holds no private key in PEM") from None
    if not isinstance(key, Ed25519PrivateKey):
        raise FormatError(f"{path} holds no Ed25519 key")
    if path.stat().st_mode & 0o077:
        raise FormatError(f"{path} may be read by others than its owner", remedy=f"chmod 600 {path}")
    return key


def load_public_key(path: Path) -> Ed25519PublicKey:
    """The public key in `path`.

    Raises:
        FormatError: the file is missing or holds no Ed25519 public key.
    """
    try:
        key = load_pem_public_key(_read(path))
    except (ValueError, TypeError, UnsupportedAlgorithm):
        raise FormatError(f"{path} holds no public key in PEM") from None
    if not isinstance(key, Ed25519PublicKey):
        raise FormatError(f"{path} holds no Ed25519 key")
    return key


def key_id(public_key: Ed25519PublicKey) -> str:
    """Hex SHA-256 of the raw 32 bytes."""
    return sha256(public_key.public_bytes_raw()).hexdigest()


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise FormatError(
            f"{path} cannot be read: {error.strerror}", remedy="fieldprint keys new NAME"
        ) from error
