"""The signed text: artifact, statements about it, keys, envelope, policy."""

from fieldprint.anchor.artifact import KINDS, AnchorArtifact, FieldprintRecord
from fieldprint.anchor.dsse import Envelope, cosign_envelope, sign_envelope, valid_signers
from fieldprint.anchor.keys import key_id, load_cosigner_key, load_private_key, load_public_key, new_key
from fieldprint.anchor.policy import KindRule, Policy, SignerRule, StatusRule
from fieldprint.anchor.sign import sign_anchor, sign_registration, sign_revocation, sign_statement
from fieldprint.anchor.signer import KeySigner, Signer, open_signer
from fieldprint.anchor.statements import (
    Endorsement,
    Lift,
    Override,
    Registration,
    Revocation,
    Statement,
    StatusRoot,
    Supersession,
)

__all__ = [
    "KINDS",
    "AnchorArtifact",
    "Endorsement",
    "Envelope",
    "FieldprintRecord",
    "KeySigner",
    "KindRule",
    "Lift",
    "Override",
    "Policy",
    "Registration",
    "Revocation",
    "Signer",
    "SignerRule",
    "Statement",
    "StatusRoot",
    "StatusRule",
    "Supersession",
    "cosign_envelope",
    "key_id",
    "load_cosigner_key",
    "load_private_key",
    "load_public_key",
    "new_key",
    "open_signer",
    "sign_anchor",
    "sign_envelope",
    "sign_registration",
    "sign_revocation",
    "sign_statement",
    "valid_signers",
]
