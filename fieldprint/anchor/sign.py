"""Signing: artifacts and the statements about them, in DSSE envelopes."""

from collections.abc import Sequence
from datetime import datetime

from fieldprint.anchor.artifact import AnchorArtifact
from fieldprint.anchor.dsse import sign_envelope
from fieldprint.anchor.signer import SigningKey
from fieldprint.anchor.statements import Registration, Revocation, Statement

PAYLOAD_TYPE = "application/vnd.in-toto+json"


def sign_anchor(artifact: AnchorArtifact, signers: Sequence[SigningKey]) -> bytes:
    """The signed artifact: a DSSE envelope, one signature a key.

    Args:
        artifact: what is signed.
        signers: private keys of `cryptography`, or `Signer`s as `open_signer` gives.
    """
    return sign_envelope(PAYLOAD_TYPE, artifact.to_bytes(), signers).to_bytes()


def sign_statement(made: Statement, signers: Sequence[SigningKey]) -> bytes:
    """The signed statement about an anchor, an override or the revoked set: a DSSE envelope, one signature a key."""
    return sign_envelope(PAYLOAD_TYPE, made.to_bytes(), signers).to_bytes()


def sign_registration(artifact: AnchorArtifact, signers: Sequence[SigningKey]) -> bytes:
    """The signed registration of the artifact, by which a log learns of it."""
    return sign_statement(Registration.of(artifact), signers)


def sign_revocation(
    artifact_digest: str, reason: str, time: datetime, signers: Sequence[SigningKey]
) -> bytes:
    """The signed revocation of the artifact with this digest."""
    return sign_statement(Revocation(artifact_digest, reason, time), signers)
