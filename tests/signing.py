"""Builders that several test files share: a policy with one owner, and a verified anchor for the demo model."""

from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from fieldprint.anchor import KINDS, AnchorArtifact, KindRule, Policy, sign_anchor
from fieldprint.note import NoteSigner
from fieldprint.verify import VerifiedAnchor, verify_anchor

ORIGIN = "test/log"


def make_policy(owner: Ed25519PrivateKey, log: Ed25519PrivateKey | None = None) -> Policy:
    """One owner who signs and revokes everything."""
    signer = NoteSigner(ORIGIN, log or owner)
    rule = KindRule(("owner",))
    raw = owner.public_key().public_bytes_raw()
    return Policy({"owner": raw}, dict.fromkeys(KINDS, rule), ("owner",), 1, str(signer.verifier_key))


def sign_text(model: Any, text: str, owner: Ed25519PrivateKey, form: str = "chat-system") -> bytes:
    """The signed anchor of `text` under `model`."""
    from fieldprint.pipeline import fieldprint_of

    _, record = fieldprint_of(model, text, form)
    now = datetime.now(UTC).replace(microsecond=0)
    artifact = AnchorArtifact("test", "identity", text, now, now + timedelta(days=1), fieldprints=(record,))
    return sign_anchor(artifact, [owner])


def signed_anchor(model: Any, text: str) -> tuple[VerifiedAnchor, Sequence[int]]:
    """A verified anchor with its tokens."""
    owner = Ed25519PrivateKey.generate()
    signed = sign_text(model, text, owner)
    now = datetime.now(UTC)
    verified = verify_anchor(signed, make_policy(owner), now=now, registry=None, model=model.digest)
    return verified, model.system_tokens(text)
