"""The signed text: artifact, keys, envelope, policy."""

from fieldprint.anchor.artifact import KINDS, AnchorArtifact, FieldprintRecord
from fieldprint.anchor.dsse import Envelope, cosign_envelope, sign_envelope, valid_signers
from fieldprint.anchor.keys import key_id, load_cosigner_key, load_private_key, load_public_key, new_key
from fieldprint.anchor.policy import KindRule, Policy
from fieldprint.anchor.sign import Revocation, sign_anchor, sign_revocation
from fieldprint.anchor.signer import KeySigner, Signer, open_signer

__all__ = [
    "KINDS",
    "AnchorArtifact",
    "Envelope",
    "FieldprintRecord",
    "KeySigner",
    "KindRule",
    "Policy",
    "Revocation",
    "Signer",
    "cosign_envelope",
    "key_id",
    "load_cosigner_key",
    "load_private_key",
    "load_public_key",
    "new_key",
    "open_signer",
    "sign_anchor",
    "sign_envelope",
    "sign_revocation",
    "valid_signers",
]
