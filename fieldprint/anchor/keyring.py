"""Keys in the operating system's keyring, through the package `keyring` (extra `keyring`).

    keyring:fieldprint/owner     service "fieldprint", name "owner"

What lies there is the private key as PEM (PKCS#8), unencrypted: the keyring is what protects it.
"""

from types import ModuleType

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    load_pem_private_key,
)

from fieldprint.errors import FieldprintError, FormatError


def load_from_keyring(reference: str) -> Ed25519PrivateKey:
    """The private key that `keyring:SERVICE/NAME` names.

    Raises:
        FormatError: the reference is malformed, nothing is stored there, or it is no Ed25519 key.
        FieldprintError: the package is not installed, there is no keyring, or it is locked.
    """
    service, name = _parse(reference)
    stored = _ask(reference, "get_password", service, name)
    if not isinstance(stored, str):
        raise FormatError(
            f"the keyring has no key {reference}", remedy=f"fieldprint keys import-keyring FILE {reference}"
        )
    try:
        key = load_pem_private_key(stored.encode(), password=None)
    except (ValueError, TypeError, UnsupportedAlgorithm):
        raise FormatError(f"what the keyring holds as {reference} is no private key in PEM") from None
    if not isinstance(key, Ed25519PrivateKey):
        raise FormatError(f"what the keyring holds as {reference} is no Ed25519 key")
    return key


def store_in_keyring(reference: str, key: Ed25519PrivateKey) -> None:
    """Store the private key as `keyring:SERVICE/NAME`, and read it back.

    Raises:
        FormatError: the reference is malformed.
        FieldprintError: something is stored there already and is not overwritten; or the package is not installed,
            there is no keyring, it is locked, or it did not keep the key.
    """
    service, name = _parse(reference)
    if _ask(reference, "get_password", service, name) is not None:
        raise FieldprintError(f"{reference} exists and is not overwritten", remedy="Choose another name")
    pem = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()).decode()
    _ask(reference, "set_password", service, name, pem)
    if _ask(reference, "get_password", service, name) != pem:
        raise FieldprintError(
            f"the keyring did not keep {reference}", remedy="Is a backend configured that stores anything?"
        )


def _parse(reference: str) -> tuple[str, str]:
    service, _, name = reference.removeprefix("keyring:").rpartition("/")
    if not reference.startswith("keyring:") or not service or not name or not reference.isprintable():
        raise FormatError(f"{reference!r} is not of the form keyring:SERVICE/NAME")
    return service, name


def _ask(reference: str, what: str, *arguments: str) -> object:
    """What the keyring answers; its errors do not hold the secret, but their text is not shown either."""
    keyring = _package()
    try:
        return getattr(keyring, what)(*arguments)
    except keyring.errors.NoKeyringError as error:
        raise FieldprintError(
            f"this machine has no keyring for {reference}",
            remedy="Start one, or keep the key in an encrypted file",
        ) from error
    except keyring.errors.KeyringError as error:
        raise FieldprintError(
            f"the keyring refused {reference} ({type(error).__name__})", remedy="Is it unlocked?"
        ) from error


def _package() -> ModuleType:
    try:
        import keyring
        import keyring.errors
    except ModuleNotFoundError as error:
        raise FieldprintError(
            "a key in the keyring needs the package keyring", remedy="pip install 'fieldprint[keyring]'"
        ) from error
    return keyring
