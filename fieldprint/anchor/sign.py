"""Signing: artifacts and revocations, in DSSE envelopes of in-toto Statements."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime

from fieldprint.anchor.artifact import (
    AnchorArtifact,
    check_digest,
    check_text,
    format_time,
    parse_statement,
    parse_time,
    statement,
)
from fieldprint.anchor.dsse import check_keys, sign_envelope
from fieldprint.anchor.signer import SigningKey
from fieldprint.errors import FormatError

PAYLOAD_TYPE = "application/vnd.in-toto+json"
REVOCATION_TYPE = "urn:fieldprint:revocation:v1"


@dataclass(frozen=True, slots=True)
class Revocation:
    """The statement that an artifact must not be used any more."""

    anchor: str
    reason: str
    time: datetime

    def to_bytes(self) -> bytes:
        """Canonical bytes; `from_bytes` is their inverse."""
        check_digest(self.anchor, "the revoked anchor")
        check_text(self.reason)
        predicate = {"reason": self.reason, "time": format_time(self.time)}
        return statement(REVOCATION_TYPE, "anchor", self.anchor, predicate)

    @classmethod
    def from_bytes(cls, data: bytes) -> "Revocation":
        """The revocation in `data`, or FormatError."""
        (name, digest), predicate = parse_statement(data, REVOCATION_TYPE)
        check_keys(predicate, {"reason", "time"}, "the revocation")
        check_digest(digest, "the revoked anchor")
        check_text(predicate["reason"])
        if name != "anchor":
            raise FormatError("a revocation's subject is named anchor")
        return cls(digest, predicate["reason"], parse_time(predicate["time"]))


def sign_anchor(artifact: AnchorArtifact, signers: Sequence[SigningKey]) -> bytes:
    """The signed artifact: a DSSE envelope, one signature a key.

    Args:
        artifact: what is signed.
        signers: private keys of `cryptography`, or `Signer`s as `open_signer` gives.
    """
    return sign_envelope(PAYLOAD_TYPE, artifact.to_bytes(), signers).to_bytes()


def sign_revocation(
    artifact_digest: str, reason: str, time: datetime, signers: Sequence[SigningKey]
) -> bytes:
    """The signed revocation of the artifact with this digest."""
    return sign_envelope(
        PAYLOAD_TYPE, Revocation(artifact_digest, reason, time).to_bytes(), signers
    ).to_bytes()
