"""Signing: artifacts and the statements about them, in DSSE envelopes."""

from collections.abc import Sequence
from datetime import datetime

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from fieldprint.anchor.artifact import AnchorArtifact
from fieldprint.anchor.dsse import sign_envelope
from fieldprint.anchor.statements import Registration, Revocation, Statement

PAYLOAD_TYPE = "application/vnd.in-toto+json"


def sign_anchor(artifact: AnchorArtifact, private_keys: Sequence[Ed25519PrivateKey]) -> bytes:
    """The signed artifact: a DSSE envelope, one signature a key."""
    return sign_envelope(PAYLOAD_TYPE, artifact.to_bytes(), private_keys).to_bytes()


def sign_statement(made: Statement, private_keys: Sequence[Ed25519PrivateKey]) -> bytes:
    """The signed statement about an anchor, an override or the revoked set: a DSSE envelope, one signature a key."""
    return sign_envelope(PAYLOAD_TYPE, made.to_bytes(), private_keys).to_bytes()


def sign_registration(artifact: AnchorArtifact, private_keys: Sequence[Ed25519PrivateKey]) -> bytes:
    """The signed registration of the artifact, by which a log learns of it."""
    return sign_statement(Registration.of(artifact), private_keys)


def sign_revocation(
    artifact_digest: str, reason: str, time: datetime, private_keys: Sequence[Ed25519PrivateKey]
) -> bytes:
    """The signed revocation of the artifact with this digest."""
    return sign_statement(Revocation(artifact_digest, reason, time), private_keys)
