"""DSSE envelopes (github.com/secure-systems-lab/dsse, protocol.md 1.0): a payload, its type, and signatures over both.

{"payload":"eyJ...","payloadType":"application/vnd.in-toto+json","signatures":[{"keyid":"9f...","sig":"MEU..."}]}
"""

import base64
import binascii
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import rfc8785
from cryptography.exceptions import InvalidSignature

from fieldprint.anchor.signer import SigningKey, checked_signature
from fieldprint.errors import FieldprintError, FormatError

MAX_ENVELOPE_SIZE = 1 << 20
MAX_SIGNATURES = 32
MAX_PLAIN = 100  # lists and objects


@dataclass(frozen=True, slots=True)
class Envelope:
    """A payload with its type and (key id, signature) pairs."""

    payload_type: str
    payload: bytes
    signatures: tuple[tuple[str, bytes], ...]

    def to_bytes(self) -> bytes:
        """Canonical JSON (RFC 8785); `from_bytes` is its inverse."""
        return rfc8785.dumps(
            {
                "payload": base64.b64encode(self.payload).decode(),
                "payloadType": self.payload_type,
                "signatures": [{"keyid": k, "sig": base64.b64encode(s).decode()} for k, s in self.signatures],
            }
        )

    @classmethod
    def from_bytes(cls, data: bytes) -> "Envelope":
        """The envelope in `data`.

        Raises:
            FormatError: it is too large, not JSON, not of this form, or not in canonical bytes.
        """
        fields = parse_canonical(data, "the envelope", MAX_ENVELOPE_SIZE)
        check_keys(fields, {"payload", "payloadType", "signatures"}, "the envelope")
        signatures = fields["signatures"]
        if not isinstance(signatures, list) or not 0 < len(signatures) <= MAX_SIGNATURES:
            raise FormatError(f"the envelope has no list of 1 to {MAX_SIGNATURES} signatures")
        pairs = []
        for signature in signatures:
            check_keys(signature, {"keyid", "sig"}, "a signature of the envelope")
            if not isinstance(signature["keyid"], str):
                raise FormatError("a key id of the envelope is no text")
            pairs.append((signature["keyid"], decode_base64(signature["sig"], "a signature of the envelope")))
        if not isinstance(fields["payloadType"], str):
            raise FormatError("the envelope's payload type is no text")
        return cls(fields["payloadType"], decode_base64(fields["payload"], "the payload"), tuple(pairs))


def pae(payload_type: str, payload: bytes) -> bytes:
    """DSSE's pre-authentication encoding: what is signed."""
    kind = payload_type.encode()
    return b"DSSEv1 %d %s %d %s" % (len(kind), kind, len(payload), payload)


def sign_envelope(payload_type: str, payload: bytes, signers: Sequence[SigningKey]) -> Envelope:
    """The envelope with a signature of each signer, every one verified before it counts.

    Raises:
        ValueError: no signer is given.
        FieldprintError: a signer refuses, or gives a signature that its public key does not verify.
    """
    if not signers:
        raise ValueError("signers must hold at least one key")
    message = pae(payload_type, payload)
    return Envelope(payload_type, payload, tuple(checked_signature(key, message) for key in signers))


def cosign_envelope(envelope: Envelope, signers: Sequence[SigningKey]) -> Envelope:
    """The envelope with the signers' signatures behind those that it has: for a threshold whose keys lie apart.

    Payload and earlier signatures stay as they are; whether these are valid, `valid_signers` says.

    Raises:
        ValueError: no signer is given.
        FieldprintError: a key has signed already or is given twice, the envelope would have more than 32 signatures,
            or what `sign_envelope` raises.
    """
    added = sign_envelope(envelope.payload_type, envelope.payload, signers)
    signatures = envelope.signatures + added.signatures
    identifiers = [identifier for identifier, _ in signatures]
    for identifier, _ in added.signatures:
        if identifiers.count(identifier) > 1:
            raise FieldprintError(
                f"key {identifier} would sign twice, and a key counts once", remedy="Use another key"
            )
    if len(signatures) > MAX_SIGNATURES:
        raise FieldprintError(f"an envelope has at most {MAX_SIGNATURES} signatures")
    return Envelope(envelope.payload_type, envelope.payload, signatures)


class SignatureVerifier(Protocol):
    """A public key, or an identity that is vouched for."""

    def verify(self, signature: bytes, data: bytes, /) -> None:
        """Raise InvalidSignature unless it is a signature on the data."""


def valid_signers(envelope: Envelope, trusted: Mapping[str, SignatureVerifier]) -> frozenset[str]:
    """The ids of the trusted keys and identities with a valid signature on the envelope; each counts once."""
    message = pae(envelope.payload_type, envelope.payload)
    found = set()
    for identifier, signature in envelope.signatures:
        key = trusted.get(identifier)
        if key is None:
            continue
        try:
            key.verify(signature, message)
        except InvalidSignature:
            continue
        found.add(identifier)
    return frozenset(found)


def parse_canonical(data: bytes, what: str, limit: int) -> dict[str, Any]:
    """The JSON object in `data`, if writing it again in canonical form (RFC 8785) gives the same bytes.

    Raises:
        FormatError: it does not, or is larger than `limit`.
    """
    if len(data) > limit:
        raise FormatError(f"{what} has {len(data)} bytes, more than {limit}")
    try:
        fields = _DECODER.decode(data.decode())
        again = _canonical(fields)
    except (ValueError, RecursionError, rfc8785.CanonicalizationError) as error:
        raise FormatError(f"{what} is not JSON as it must be: {error}") from error
    if again != data:
        raise FormatError(
            f"{what} is not in canonical form (RFC 8785)",
            remedy="It was edited or formatted anew; get the original",
        )
    if not isinstance(fields, dict):
        raise FormatError(f"{what} is not a JSON object")
    return fields


def _canonical(value: Any) -> bytes:
    """The bytes of rfc8785.dumps; several times as fast where all text is ASCII and lists and objects are few.

    Then json.dumps escapes and sorts as RFC 8785 does. A value from `_DECODER` has no other keys than texts, and
    `_integer` and `_no_float` have refused what RFC 8785 cannot write. Deep nesting is left to rfc8785, whose limit does
    not differ between Pythons.
    """
    text = _ENCODER.encode(value)
    if text.isascii() and text.count("[") + text.count("{") <= MAX_PLAIN:
        return text.encode()
    return rfc8785.dumps(value)


def _integer(text: str) -> int:
    value = int(text)
    if not -(2**53) < value < 2**53:
        raise ValueError(f"{text[:20]} is not an integer that JSON keeps exactly")
    return value


def _no_float(text: str) -> float:
    raise ValueError(f"{text[:20]} is not an integer")


_DECODER = json.JSONDecoder(parse_float=_no_float, parse_constant=_no_float, parse_int=_integer)
_ENCODER = json.JSONEncoder(sort_keys=True, separators=(",", ":"), ensure_ascii=False)


def check_keys(fields: object, keys: set[str], what: str) -> None:
    """Raise FormatError unless `fields` is an object with exactly `keys`."""
    if not isinstance(fields, dict) or set(fields) != keys:
        raise FormatError(f"{what} must have exactly the fields {', '.join(sorted(keys))}")


def check_version(fields: Mapping[str, Any], kind: str, what: str) -> None:
    """Raise FormatError unless `type` is `kind` and `v` is the integer 1 (and not `true`, which equals it)."""
    if fields.get("type") != kind or type(fields.get("v")) is not int or fields["v"] != 1:
        raise FormatError(f"{what} is not a {kind} of version 1")


def decode_base64(text: object, what: str) -> bytes:
    """The bytes of canonical base64, or FormatError."""
    if not isinstance(text, str):
        raise FormatError(f"{what} is no text")
    try:
        data = base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError) as error:
        raise FormatError(f"{what} is not base64") from error
    if base64.b64encode(data).decode() != text:
        raise FormatError(f"{what} is not canonical base64")
    return data
