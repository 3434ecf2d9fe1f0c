"""Keys in files, the private one readable by its owner only: Ed25519, and ML-DSA-44 for witnesses."""

import os
import re
import stat
from collections.abc import Callable
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    KeySerializationEncryption,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
    load_pem_private_key,
    load_pem_public_key,
)

from fieldprint.errors import FieldprintError, FormatError

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.mldsa import MLDSA44PrivateKey

KEY_NAME = re.compile(r"[a-z0-9._-]{1,64}")
MIN_PASSPHRASE = 12  # PKCS#8 as it is written here stretches a passphrase by 2,048 rounds of PBKDF2 only
MAX_SECRET = 1023  # what OpenSSL takes

AskSecret = Callable[[str], bytes]  # given what is asked for, in words; answers the secret


def new_key(
    folder: Path, name: str, *, lattice: bool = False, passphrase: bytes | None = None
) -> tuple[Path, Path]:
    """The paths of a new key pair: NAME.key (PEM, mode 0600) and NAME.pub.

    Args:
        folder: where the files go.
        name: of the key.
        lattice: an ML-DSA-44 key, for a witness; else Ed25519.
        passphrase: encrypts the private key, 12 to 1,023 bytes.

    Raises:
        FieldprintError: a file of that name exists; it is not overwritten. Or it cannot be written, and then neither
            file is there. Or there is no ML-DSA-44 here.
        ValueError: `name` holds other characters than a-z, 0-9, dot, underscore, hyphen; or the passphrase is too
            short or too long.
    """
    if not KEY_NAME.fullmatch(name):
        raise ValueError(f"name must match [a-z0-9._-]{{1,64}}, not {name!r}")
    encryption: KeySerializationEncryption = NoEncryption()
    if passphrase is not None:
        if not MIN_PASSPHRASE <= len(passphrase) <= MAX_SECRET:
            raise ValueError(f"a passphrase must have {MIN_PASSPHRASE} to {MAX_SECRET} bytes")
        encryption = BestAvailableEncryption(passphrase)
    private = _new_lattice_key() if lattice else Ed25519PrivateKey.generate()
    folder.mkdir(parents=True, exist_ok=True)
    paths = (folder / f"{name}.key", folder / f"{name}.pub")
    contents = (
        private.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, encryption),
        private.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo),
    )
    taken = next((path for path in paths if path.exists()), None)
    if taken is not None:
        raise FieldprintError(f"{taken} exists and is not overwritten", remedy="Choose another name")
    written: list[Path] = []
    try:
        for path, data, mode in zip(paths, contents, (0o600, 0o644), strict=True):
            write_new_file(path, data, mode)
            written.append(path)
    except OSError as error:
        for path in written:
            path.unlink()
        what = f"{paths[len(written)]} cannot be written: {error.strerror}"
        raise FieldprintError(what, remedy="Nothing was kept; try again") from error
    return paths


def write_new_file(path: Path, data: bytes, mode: int = 0o666) -> None:
    """Make a file that is not there yet; one that could not be written whole is removed again.

    Raises:
        FileExistsError: it is there. OSError: it cannot be written.
    """
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, mode)
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(data)
    except BaseException:
        path.unlink(missing_ok=True)
        raise


def _new_lattice_key() -> "MLDSA44PrivateKey":
    try:
        from cryptography.hazmat.primitives.asymmetric.mldsa import MLDSA44PrivateKey

        return MLDSA44PrivateKey.generate()
    except (ImportError, UnsupportedAlgorithm):
        raise FieldprintError(
            "the installed cryptography has no ML-DSA-44", remedy="Install a newer release, or use Ed25519"
        ) from None


def load_private_key(path: Path, passphrase: AskSecret | None = None) -> Ed25519PrivateKey:
    """The private key in `path`.

    Args:
        path: a PEM file, plain or encrypted (PKCS#8 with PBKDF2 or scrypt).
        passphrase: asked for the passphrase of an encrypted file, and of no other. Without it such a file is refused.

    Raises:
        FormatError: the file is missing, holds no Ed25519 key, others than its owner may read it, or it is encrypted
            and the passphrase is missing or wrong.
    """
    key = _load_private(path, passphrase)
    if not isinstance(key, Ed25519PrivateKey):
        raise FormatError(f"{path} holds no Ed25519 key")
    return key


def load_cosigner_key(path: Path) -> "Ed25519PrivateKey | MLDSA44PrivateKey":
    """A witness's private key in `path`.

    Raises:
        FormatError: the file is missing, holds neither an Ed25519 nor an ML-DSA-44 key, or others may read it.
    """
    key = _load_private(path)
    if isinstance(key, Ed25519PrivateKey):
        return key
    try:
        from cryptography.hazmat.primitives.asymmetric.mldsa import MLDSA44PrivateKey
    except ImportError:
        MLDSA44PrivateKey = None  # type: ignore[assignment,misc]  # noqa: N806
    if MLDSA44PrivateKey is None or not isinstance(key, MLDSA44PrivateKey):
        raise FormatError(f"{path} holds neither an Ed25519 nor an ML-DSA-44 key")
    return key


def _load_private(path: Path, passphrase: AskSecret | None = None) -> object:
    data = _read(path)
    key: object = None
    try:
        key = load_pem_private_key(data, password=None)
    except TypeError:  # encrypted
        pass
    except (ValueError, UnsupportedAlgorithm):
        raise FormatError(f"{path} holds no private key in PEM") from None
    if path.stat().st_mode & 0o077:
        raise FormatError(f"{path} may be read by others than its owner", remedy=f"chmod 600 {path}")
    return _decrypted(path, data, passphrase) if key is None else key


def _decrypted(path: Path, data: bytes, passphrase: AskSecret | None) -> object:
    if passphrase is None:
        raise FormatError(
            f"{path} is encrypted, and here no passphrase is taken", remedy="Give a key that is not encrypted"
        )
    secret = passphrase(f"passphrase of {path}")
    if not 0 < len(secret) <= MAX_SECRET:
        raise FormatError(f"the passphrase of {path} must have 1 to {MAX_SECRET} bytes")
    try:
        return load_pem_private_key(data, password=secret)
    except (ValueError, TypeError, UnsupportedAlgorithm):
        raise FormatError(f"{path} cannot be decrypted", remedy="Is it the right passphrase?") from None


def public_pem(raw: bytes) -> bytes:
    """The PEM file of a public key's 32 bytes, as `new_key` writes it."""
    key = Ed25519PublicKey.from_public_bytes(raw)
    return key.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)


def read_secret(path: Path, what: str) -> bytes:
    """The first line of a file that holds a secret: an ordinary one of mode 0600, or a pipe as /dev/fd/3.

    Raises:
        FormatError: it cannot be read, others than its owner may read it, or the line is empty or too long.
    """
    try:
        with path.open("rb") as file:
            mode = os.fstat(file.fileno()).st_mode
            if stat.S_ISREG(mode) and mode & 0o077:
                raise FormatError(
                    f"the file {path} with the {what} may be read by others than its owner",
                    remedy=f"chmod 600 {path}",
                )
            line = file.readline(MAX_SECRET + 3)
    except OSError as error:
        raise FormatError(f"the file {path} with the {what} cannot be read: {error.strerror}") from error
    secret = line.removesuffix(b"\n").removesuffix(b"\r")
    if not 0 < len(secret) <= MAX_SECRET:
        raise FormatError(f"the first line of {path} must be the {what}, of 1 to {MAX_SECRET} bytes")
    return secret


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
