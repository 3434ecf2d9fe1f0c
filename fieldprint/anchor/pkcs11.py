"""Keys in tokens that speak PKCS#11: smart cards, HSMs, SoftHSM; through python-pkcs11 (extra `pkcs11`).

    pkcs11:token=office;object=owner?pin-source=file:/run/secrets/pin&module-path=/usr/lib/softhsm/libsofthsm2.so

The private key never leaves the token. Without `module-path` the environment's PKCS11_MODULE names the library;
without `pin-source` the PIN is asked for. `pin-value` is refused: a command line can be read by every process.
"""

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from types import ModuleType
from typing import Any
from urllib.parse import unquote_to_bytes

from fieldprint.anchor.keys import AskSecret, read_secret
from fieldprint.errors import FieldprintError, FormatError

MODULE_VARIABLE = "PKCS11_MODULE"
ALLOWED = re.compile(r"(?:%[0-9A-Fa-f]{2}|[A-Za-z0-9._~:\[\]@!$'()*+,=&/?|-])*")
PATH_NAMES = {"token", "serial", "object", "id", "type"}
QUERY_NAMES = {"pin-source", "module-path"}


@dataclass(frozen=True, slots=True)
class TokenUri:
    """Which private key of which token, as RFC 7512 writes it; None where the URI says nothing.

    token, object: labels. serial: of the token. id: CKA_ID. pin_source: file with the PIN. module_path: the library.
    """

    token: str | None = None
    serial: str | None = None
    object: str | None = None
    id: bytes | None = None
    pin_source: Path | None = None
    module_path: Path | None = None

    @classmethod
    def parse(cls, text: str) -> "TokenUri":
        """The URI in `text`.

        Raises:
            FormatError: it is malformed, names an attribute twice or one that is not in use here, does not name a
                token and a key, or holds the PIN itself.
        """
        path, _, query = text.removeprefix("pkcs11:").partition("?")
        found = {**_attributes(path, ";", PATH_NAMES), **_attributes(query, "&", QUERY_NAMES)}
        if (
            not text.startswith("pkcs11:")
            or not {"token", "serial"} & set(found)
            or not {"object", "id"} & set(found)
        ):
            raise FormatError(
                "a PKCS#11 URI must name the token and the key", remedy="As pkcs11:token=office;object=owner"
            )
        if found.get("type", b"private") != b"private":
            raise FormatError("the PKCS#11 URI is not of a private key", remedy="Leave type= out")
        source, module = _text(found, "pin-source"), _text(found, "module-path")
        if source is not None and source.startswith("file:"):
            source = source.removeprefix("file:").removeprefix("//")
        if source is not None and not source.startswith("/"):
            raise FormatError("the URI's pin-source must be an absolute path; commands are not run")
        if module is not None and not module.startswith("/"):
            raise FormatError("the URI's module-path must be an absolute path")
        return cls(
            _text(found, "token"),
            _text(found, "serial"),
            _text(found, "object"),
            found.get("id"),
            None if source is None else Path(source),
            None if module is None else Path(module),
        )

    def __str__(self) -> str:
        """Token and key in words, for messages."""
        token = (
            f"token {self.token!r}" if self.token is not None else f"the token with serial {self.serial!r}"
        )
        key = repr(self.object) if self.object is not None else f"with id {(self.id or b'').hex()}"
        return f"key {key} of {token}"


def _attributes(text: str, separator: str, names: set[str]) -> dict[str, bytes]:
    found: dict[str, bytes] = {}
    for part in text.split(separator) if text else []:
        name, equals, value = part.partition("=")
        if name == "pin-value":
            raise FormatError(
                "the PKCS#11 URI holds the PIN, which others can read from a command line",
                remedy="Change the PIN, and give pin-source=FILE in its place, or nothing to be asked",
            )
        if name not in names:
            raise FormatError(
                f"the PKCS#11 URI has the attribute {name[:40]!r}",
                remedy=f"Known here: {', '.join(sorted(names))}",
            )
        if not equals or not value or name in found or not ALLOWED.fullmatch(value):
            raise FormatError(f"the PKCS#11 URI's {name} is empty, there twice, or not percent-encoded")
        found[name] = unquote_to_bytes(value)
    return found


def _text(found: dict[str, bytes], name: str) -> str | None:
    try:
        text = found[name].decode() if name in found else None
    except UnicodeDecodeError:
        raise FormatError(f"the PKCS#11 URI's {name} is not UTF-8") from None
    if text is not None and not text.isprintable():
        raise FormatError(f"the PKCS#11 URI's {name} holds unprintable characters")
    return text


class TokenSigner:
    """A signer whose private key stays in a token. Each signature has a session of its own, closed after it.

    The PIN is kept in memory for that, and is in no message.
    """

    def __init__(self, uri: TokenUri, pin: AskSecret | None = None) -> None:
        """Look the key up and read its public half.

        Args:
            uri: which key of which token.
            pin: asked for the PIN, with the token's name, where the URI has no pin-source.

        Raises:
            FieldprintError: the package or the library is missing, the token or the key is not there, the PIN is
                refused or not given, the key is no Ed25519 key, or its public half is not in the token.
        """
        self._uri = uri
        self._pin: str | None = None
        with self._session(pin) as (pkcs11, session):
            private = self._private_key(pkcs11, session)
            identifier = bytes(private[pkcs11.Attribute.ID])  # the two halves share it, labels may differ
            label = None if identifier else uri.object
            public = _only(pkcs11, session, pkcs11.ObjectClass.PUBLIC_KEY, label, identifier or None)
            self._public_key = _point(bytes(public[pkcs11.Attribute.EC_POINT]), uri)

    @property
    def key_id(self) -> str:
        """Hex SHA-256 of the public key's 32 bytes."""
        return sha256(self._public_key).hexdigest()

    @property
    def public_key(self) -> bytes:
        """The public key's raw 32 bytes."""
        return self._public_key

    def sign(self, message: bytes) -> bytes:
        """The signature over the message, made by the token.

        Raises:
            FieldprintError: the token is gone or refuses.
        """
        with self._session(None) as (pkcs11, session):
            key = self._private_key(pkcs11, session)
            return bytes(key.sign(message, mechanism=pkcs11.Mechanism.EDDSA))

    @contextmanager
    def _session(self, ask: AskSecret | None) -> Iterator[tuple[ModuleType, Any]]:
        """An open session, logged in if the token wants it; what the library raises becomes one of our errors."""
        pkcs11 = _package()
        try:
            token = self._token(pkcs11)
            if pkcs11.TokenFlag.LOGIN_REQUIRED in token.flags and self._pin is None:
                self._pin = self._ask_pin(ask)
            with token.open(user_pin=self._pin) as session:
                yield pkcs11, session
        except pkcs11.PKCS11Error as error:
            raise FieldprintError(*_meaning(pkcs11, error, self._uri)) from error

    def _token(self, pkcs11: ModuleType) -> Any:
        place = self._uri.module_path or os.environ.get(MODULE_VARIABLE)
        if not place:
            raise FieldprintError(
                f"which library speaks to {self._uri} is not said",
                remedy=f"Put ?module-path=/path/of/library.so behind the URI, or set {MODULE_VARIABLE}",
            )
        try:
            library = pkcs11.lib(str(place))
        except RuntimeError as error:  # its text is dlopen's
            raise FieldprintError(f"the PKCS#11 library {place} cannot be loaded") from error
        wanted: dict[str, Any] = {}
        if self._uri.token is not None:
            wanted["token_label"] = self._uri.token
        if self._uri.serial is not None:
            wanted["token_serial"] = self._uri.serial.encode()
        return library.get_token(**wanted)

    def _ask_pin(self, ask: AskSecret | None) -> str:
        if self._uri.pin_source is not None:
            secret = read_secret(self._uri.pin_source, "PIN")
        elif ask is not None:
            secret = ask(f"PIN for {self._uri}")
        else:
            raise FieldprintError(
                f"{self._uri} needs a PIN", remedy="Put ?pin-source=/path/of/file behind the URI"
            )
        try:
            return secret.decode()
        except UnicodeDecodeError:
            raise FormatError(f"the PIN for {self._uri} is not UTF-8") from None

    def _private_key(self, pkcs11: ModuleType, session: Any) -> Any:
        return _only(pkcs11, session, pkcs11.ObjectClass.PRIVATE_KEY, self._uri.object, self._uri.id)


def _only(pkcs11: ModuleType, session: Any, kind: Any, label: str | None, identifier: bytes | None) -> Any:
    """The one key of this kind. The library's own get_key leaves a search open where there are two."""
    wanted = {pkcs11.Attribute.CLASS: kind, pkcs11.Attribute.KEY_TYPE: pkcs11.KeyType.EC_EDWARDS}
    if label is not None:
        wanted[pkcs11.Attribute.LABEL] = label
    if identifier is not None:
        wanted[pkcs11.Attribute.ID] = identifier
    found = list(session.get_objects(wanted))
    if len(found) != 1:
        raise pkcs11.MultipleObjectsReturned if found else pkcs11.NoSuchKey
    return found[0]


def _point(value: bytes, uri: TokenUri) -> bytes:
    """The 32 bytes of CKA_EC_POINT: in a DER OCTET STRING (PKCS#11 3.0, SoftHSM), a BIT STRING, or bare."""
    for prefix in (b"", b"\x04\x20", b"\x03\x21\x00"):
        if len(value) == len(prefix) + 32 and value.startswith(prefix):
            return value[len(prefix) :]
    raise FieldprintError(f"{uri} is no Ed25519 key")


def _meaning(pkcs11: ModuleType, error: Exception, uri: TokenUri) -> tuple[str]:
    names = {
        pkcs11.NoSuchToken: "is not there: no such token",
        pkcs11.MultipleTokensReturned: "is not certain: several tokens are called so; add serial=",
        pkcs11.NoSuchKey: "is not there: the token needs the Ed25519 key and its public half under that name",
        pkcs11.MultipleObjectsReturned: "is not certain: several keys are called so; add id=",
        pkcs11.PinIncorrect: "cannot be used: the PIN is wrong, and a token is locked after a few wrong ones",
        pkcs11.PinLocked: "cannot be used: the PIN is locked",
        pkcs11.MechanismInvalid: "cannot sign: the token has no Ed25519",
    }
    return (f"{uri} " + names.get(type(error), f"cannot be used: the library said {type(error).__name__}"),)


def _package() -> ModuleType:
    try:
        import pkcs11
    except ModuleNotFoundError as error:
        raise FieldprintError(
            "a key in a token needs the package python-pkcs11", remedy="pip install 'fieldprint[pkcs11]'"
        ) from error
    return pkcs11
