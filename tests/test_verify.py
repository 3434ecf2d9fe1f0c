"""The gates: each numbered check of anchors and receipts fails where it should."""

import json
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
import rfc8785
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from hypothesis import given, settings
from hypothesis import strategies as st

from fieldprint.anchor import (
    AnchorArtifact,
    Envelope,
    FieldprintRecord,
    KindRule,
    Policy,
    sign_anchor,
    sign_revocation,
)
from fieldprint.commit import Commitment, LeafProof, Receipt, request_digest, text_digest, tokens_digest
from fieldprint.errors import FormatError, VerificationError
from fieldprint.note import NoteSigner
from fieldprint.registry import Promotion, Registry, revocation_entry
from fieldprint.tlog import LogReader, LogWriter, leaf_hash
from fieldprint.verify import VerifiedReceipt, verify_anchor, verify_receipt

NOW = datetime(2026, 11, 24, 12, 0, 0, tzinfo=UTC)
OWNER, OTHER, LOG = (Ed25519PrivateKey.generate() for _ in range(3))
SIGNER = NoteSigner("test/log", LOG)
MODEL = "ab" * 32


def raw(key: Ed25519PrivateKey) -> bytes:
    return key.public_key().public_bytes_raw()


POLICY = Policy(
    {"owner": raw(OWNER), "other": raw(OTHER)},
    {
        "identity": KindRule(("owner",), 1, 100, 60, ("untrusted",)),
        "policy": KindRule(("owner", "other"), 2, 512, 60),
    },
    ("owner",),
    1,
    str(SIGNER.verifier_key),
)
RECORD = FieldprintRecord(MODEL, "chat-system", 63, "cd" * 32, 30, 3, 64, 16, "int8-pow2-v1", "ef" * 32)
ARTIFACT = AnchorArtifact(
    "facts", "identity", "Your codename is Falcon.", NOW, NOW + timedelta(days=30), fieldprints=(RECORD,)
)


def refused(attempt: Callable[[], object]) -> int:
    with pytest.raises(VerificationError) as caught:
        attempt()
    return caught.value.check


def check(
    artifact: AnchorArtifact = ARTIFACT,
    keys: tuple[Ed25519PrivateKey, ...] = (OWNER,),
    *,
    now: datetime = NOW,
    registry: Registry | None = None,
    model: str | None = MODEL,
) -> int:
    signed = sign_anchor(artifact, keys)
    return refused(lambda: verify_anchor(signed, POLICY, now=now, registry=registry, model=model))


def test_a_good_anchor_passes() -> None:
    verified = verify_anchor(
        sign_anchor(ARTIFACT, [OWNER]), POLICY, now=NOW, registry=Registry(), model=MODEL
    )
    assert verified.artifact == ARTIFACT and verified.signers == ("owner",) and verified.record == RECORD


def test_each_check_of_an_anchor() -> None:
    assert refused(lambda: verify_anchor(b"{}", POLICY, now=NOW, registry=None)) == 1
    envelope = Envelope.from_bytes(sign_anchor(ARTIFACT, [OWNER]))
    other_type = replace(envelope, payload_type="text/plain").to_bytes()
    assert refused(lambda: verify_anchor(other_type, POLICY, now=NOW, registry=None)) == 1
    spaced = replace(envelope, payload=envelope.payload.replace(b":", b": ", 1)).to_bytes()
    assert refused(lambda: verify_anchor(spaced, POLICY, now=NOW, registry=None)) == 2
    assert check(replace(ARTIFACT, kind="memory")) == 3
    assert check(keys=(OTHER,)) == 4
    assert check(replace(ARTIFACT, kind="policy"), (OWNER, OWNER)) == 4  # one key twice counts once
    altered = replace(
        envelope, payload=replace(ARTIFACT, text="Your codename is Heron.").to_bytes()
    ).to_bytes()
    assert refused(lambda: verify_anchor(altered, POLICY, now=NOW, registry=None)) == 4
    assert check(replace(ARTIFACT, taint=("untrusted",))) == 5
    assert check(now=NOW - timedelta(seconds=1)) == 6
    assert check(now=NOW + timedelta(days=30)) == 6
    assert check(replace(ARTIFACT, not_after=NOW + timedelta(days=61))) == 6
    assert check(replace(ARTIFACT, fieldprints=(replace(RECORD, num_tokens=101),))) == 7
    assert check(model="00" * 32) == 10


def test_a_threshold_of_two_needs_two_keys() -> None:
    signed = sign_anchor(replace(ARTIFACT, kind="policy"), [OWNER, OTHER])
    assert verify_anchor(signed, POLICY, now=NOW, registry=None).signers == ("other", "owner")


def test_revoked_and_superseded_anchors_are_refused() -> None:
    revoked = revocation_entry(sign_revocation(ARTIFACT.digest, "lost", NOW, [OWNER]))
    forged = revocation_entry(sign_revocation(ARTIFACT.digest, "lost", NOW, [OTHER]))
    newer = Promotion("11" * 32, "22" * 32, MODEL, "identity", (ARTIFACT.digest,)).to_entry()
    assert check(registry=Registry.replay([revoked], POLICY)) == 8
    assert check(registry=Registry.replay([newer], POLICY)) == 9
    weaker = Promotion("11" * 32, "22" * 32, MODEL, "observation", (ARTIFACT.digest,)).to_entry()
    verify_anchor(
        sign_anchor(ARTIFACT, [OWNER]),
        POLICY,
        now=NOW,
        registry=Registry.replay([weaker], POLICY),
        model=MODEL,
    )
    registry = Registry.replay([forged, b"not json", b'{"type":"revoke","v":1}', b"[]"], POLICY)
    assert not registry.revoked and not registry.superseded


@settings(max_examples=300, deadline=None)
@given(st.data())
def test_any_flipped_byte_of_a_signed_anchor_is_refused(data: st.DataObject) -> None:
    signed = bytearray(sign_anchor(ARTIFACT, [OWNER]))
    index = data.draw(st.integers(0, len(signed) - 1))
    signed[index] ^= data.draw(st.integers(1, 255))
    with pytest.raises((VerificationError, FormatError)):
        verify_anchor(bytes(signed), POLICY, now=NOW, registry=None, model=MODEL)


@dataclass
class Story:
    """A small log with the leaves of one request, and its receipt."""

    receipt: Receipt
    folder: Path


@pytest.fixture(scope="module")
def story(tmp_path_factory: pytest.TempPathFactory) -> Story:
    folder = tmp_path_factory.mktemp("receipt") / "log"
    salt, prompt, tokens, text = bytes(range(16)), tuple(range(20)), tuple(range(100, 117)), "The answer."
    whole = prompt + tokens
    previous = None
    leaves = []
    for page in range(3):
        start, end = page * 16, min(page * 16 + 16, len(whole))
        leaf = Commitment(
            request=request_digest(salt, prompt),
            page=page,
            start=start,
            end=end,
            prompt_len=len(prompt),
            tokens=tokens_digest(salt, start, whole[start:end]),
            kv=f"{page:064x}",
            anchor=ARTIFACT.digest,
            fieldprint=RECORD.root,
            model=MODEL,
            sampler={"method": "greedy"},
            attention={"operator": "floor"},
            previous=previous,
            text=text_digest(salt, text) if page == 2 else None,
        )
        leaves.append(leaf.to_bytes())
        previous = leaf_hash(leaves[-1]).hex()
    with LogWriter(folder, SIGNER, create=True) as log:
        log.append([b"something else"])
        first = log.append(leaves).first_index
        log.append([b"and more"])
    reader = LogReader(folder, [SIGNER.verifier_key])
    proofs = tuple(
        LeafProof(first + i, leaf, tuple(reader.inclusion_proof(first + i))) for i, leaf in enumerate(leaves)
    )
    signed = sign_anchor(ARTIFACT, [OWNER])
    return Story(
        Receipt(reader.signed_checkpoint().decode(), proofs, salt, prompt, tokens, text, signed), folder
    )


def receipt_check(receipt: Receipt, registry: Registry | None = None) -> int:
    return refused(lambda: verify_receipt(receipt.to_bytes(), POLICY, now=NOW, registry=registry))


def good(receipt: Receipt) -> VerifiedReceipt:
    return verify_receipt(receipt.to_bytes(), POLICY, now=NOW)


def test_a_good_receipt_passes_and_round_trips(story: Story) -> None:
    verified = good(story.receipt)
    assert (verified.text, verified.prompt_len, verified.num_tokens) == ("The answer.", 20, 17)
    assert verified.anchor is not None and verified.anchor.digest == ARTIFACT.digest
    assert Receipt.from_bytes(story.receipt.to_bytes()) == story.receipt
    for leaf in story.receipt.leaves:
        assert Commitment.from_bytes(leaf.leaf).to_bytes() == leaf.leaf


def test_each_check_of_a_receipt(story: Story) -> None:
    receipt, leaves = story.receipt, story.receipt.leaves
    assert refused(lambda: verify_receipt(b"{}", POLICY, now=NOW)) == 1
    assert refused(lambda: verify_receipt(receipt.to_bytes() + b"\n", POLICY, now=NOW)) == 1
    stranger = NoteSigner("test/log", Ed25519PrivateKey.generate()).verifier_key
    other = replace(POLICY, log=str(stranger))
    assert refused(lambda: verify_receipt(receipt.to_bytes(), other, now=NOW)) == 2
    moved = replace(leaves[0], index=leaves[0].index + 1)
    assert receipt_check(replace(receipt, leaves=(moved, *leaves[1:]))) == 3
    bent = replace(leaves[0], proof=(bytes(32), *leaves[0].proof[1:]))
    assert receipt_check(replace(receipt, leaves=(bent, *leaves[1:]))) == 3
    assert receipt_check(replace(receipt, leaves=leaves[:-1])) == 4
    assert receipt_check(replace(receipt, leaves=leaves[1:])) == 4
    assert receipt_check(replace(receipt, leaves=(leaves[0], leaves[2], leaves[1]))) == 4
    assert receipt_check(replace(receipt, tokens=(*receipt.tokens, 5))) == 4
    assert receipt_check(replace(receipt, tokens=(9, *receipt.tokens[1:]))) == 5
    assert receipt_check(replace(receipt, prompt=(9, *receipt.prompt[1:]))) == 5
    assert receipt_check(replace(receipt, salt=bytes(16))) == 5
    assert receipt_check(replace(receipt, text="Another answer.")) == 6
    assert receipt_check(replace(receipt, anchor=None)) == 7
    another = sign_anchor(replace(ARTIFACT, text="Your codename is Heron."), [OWNER])
    assert receipt_check(replace(receipt, anchor=another)) == 7
    revoked = Registry.replay([revocation_entry(sign_revocation(ARTIFACT.digest, "x", NOW, [OWNER]))], POLICY)
    assert receipt_check(receipt, revoked) == 7


@settings(max_examples=300, deadline=None)
@given(st.data())
def test_any_flipped_byte_of_a_receipt_is_refused(story: Story, data: st.DataObject) -> None:
    changed = bytearray(story.receipt.to_bytes())
    index = data.draw(st.integers(0, len(changed) - 1))
    changed[index] ^= data.draw(st.integers(1, 255))
    with pytest.raises((VerificationError, FormatError)):
        verify_receipt(bytes(changed), POLICY, now=NOW)


def test_unknown_fields_and_floats_are_refused(story: Story) -> None:
    fields = json.loads(story.receipt.to_bytes())
    with pytest.raises(FormatError, match="exactly the fields"):
        Receipt.from_bytes(rfc8785.dumps(fields | {"more": 1}))
    with pytest.raises(FormatError):
        Receipt.from_bytes(rfc8785.dumps(fields | {"v": 1}).replace(b'"v":1}', b'"v":1.0}'))


def test_true_is_no_version(story: Story) -> None:
    receipt, leaf = story.receipt.to_bytes(), story.receipt.leaves[0].leaf
    for parse, data in ((Receipt.from_bytes, receipt), (Commitment.from_bytes, leaf)):
        parse(data)
        with pytest.raises(FormatError, match="of version 1"):
            parse(data[: data.rindex(b'"v":1')] + b'"v":true' + data[data.rindex(b'"v":1') + 5 :])
    newer = Promotion("11" * 32, "22" * 32, MODEL, "identity", (ARTIFACT.digest,)).to_entry()
    assert Registry.replay([newer], POLICY).superseded
    assert not Registry.replay([newer.replace(b'"v":1', b'"v":true')], POLICY).superseded


def test_an_auditor_needs_neither_torch_nor_numpy() -> None:
    script = (
        "import sys, fieldprint.verify, fieldprint.tlog, fieldprint.registry, fieldprint.commit, fieldprint.anchor;"
        "sys.exit(bool({'torch', 'numpy'} & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", script], check=False).returncode == 0
