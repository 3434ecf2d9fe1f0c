"""The gates: each numbered check of anchors and receipts fails where it should."""

import json
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from datetime import datetime, timedelta

import pytest
import rfc8785
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from hypothesis import given, settings
from hypothesis import strategies as st

from fieldprint.anchor import (
    AnchorArtifact,
    Envelope,
    KindRule,
    Policy,
    Registration,
    sign_anchor,
    sign_revocation,
    sign_statement,
)
from fieldprint.commit import Commitment, Receipt
from fieldprint.errors import FormatError, VerificationError
from fieldprint.note import NoteSigner
from fieldprint.registry import Registry, registration_entry, revocation_entry
from fieldprint.verify import VerifiedReceipt, verify_anchor, verify_receipt
from tests.vectors.make_vectors import (
    ANCHOR,
    MODEL,
    NOW,
    OWNER,
    RECORD,
    SECOND,
    SIGNER,
    endorsed,
    policy,
    promoted,
    registered,
    story,
)

POLICY = policy()


def refused(attempt: Callable[[], object]) -> int:
    with pytest.raises(VerificationError) as caught:
        attempt()
    return caught.value.check


def check(
    artifact: AnchorArtifact = ANCHOR,
    keys: tuple[Ed25519PrivateKey, ...] = (OWNER,),
    *,
    now: datetime = NOW,
    registry: Registry | None = None,
    model: str | None = MODEL,
) -> int:
    signed = sign_anchor(artifact, keys)
    return refused(lambda: verify_anchor(signed, POLICY, now=now, registry=registry, model=model))


def test_a_good_anchor_passes() -> None:
    registry = Registry.replay([registered(ANCHOR)], POLICY)
    verified = verify_anchor(sign_anchor(ANCHOR, [OWNER]), POLICY, now=NOW, registry=registry, model=MODEL)
    assert verified.artifact == ANCHOR and verified.signers == ("owner",) and verified.record == RECORD


def test_each_check_of_an_anchor() -> None:
    assert refused(lambda: verify_anchor(b"{}", POLICY, now=NOW, registry=None)) == 1
    envelope = Envelope.from_bytes(sign_anchor(ANCHOR, [OWNER]))
    other_type = replace(envelope, payload_type="text/plain").to_bytes()
    assert refused(lambda: verify_anchor(other_type, POLICY, now=NOW, registry=None)) == 1
    spaced = replace(envelope, payload=envelope.payload.replace(b":", b": ", 1)).to_bytes()
    assert refused(lambda: verify_anchor(spaced, POLICY, now=NOW, registry=None)) == 2
    assert check(replace(ANCHOR, kind="memory")) == 3
    assert check(keys=(SECOND,)) == 4
    assert check(replace(ANCHOR, kind="policy"), (OWNER, OWNER)) == 4  # one key twice counts once
    altered = replace(envelope, payload=replace(ANCHOR, text="Your codename is Heron.").to_bytes()).to_bytes()
    assert refused(lambda: verify_anchor(altered, POLICY, now=NOW, registry=None)) == 4
    assert check(replace(ANCHOR, taint=("untrusted",))) == 5
    assert check(now=NOW - timedelta(seconds=1)) == 6
    assert check(now=NOW + timedelta(days=30)) == 6
    assert check(replace(ANCHOR, not_after=NOW + timedelta(days=61))) == 6
    assert check(replace(ANCHOR, fieldprints=(replace(RECORD, num_tokens=101),))) == 7
    assert check(model="00" * 32) == 10


def test_the_fieldprint_of_the_placement_that_is_asked_for_is_picked() -> None:
    front = replace(RECORD, form="chat-system-before", num_tokens=64, root="ab" * 32)
    for records in ((RECORD, front), (front, RECORD)):
        signed = sign_anchor(replace(ANCHOR, fieldprints=records), [OWNER])
        for before, record in ((False, RECORD), (True, front)):
            verified = verify_anchor(signed, POLICY, now=NOW, registry=None, model=MODEL, before=before)
            assert verified.record == record
    assert verify_anchor(signed, POLICY, now=NOW, registry=None, before=True).record is None


@pytest.mark.parametrize(("form", "before"), [("chat-system", True), ("chat-system-before", False)])
def test_a_fieldprint_of_the_other_placement_does_not_pass(form: str, before: bool) -> None:
    record = replace(RECORD, form=form, num_tokens=64)
    signed = sign_anchor(replace(ANCHOR, fieldprints=(record,)), [OWNER])
    for model, remedy in ((MODEL, "--engine fieldprint --engine vllm"), ("00" * 32, "--model")):
        with pytest.raises(VerificationError) as caught:
            verify_anchor(signed, POLICY, now=NOW, registry=None, model=model, before=before)
        assert caught.value.check == 10 and remedy in caught.value.remedy
        assert ("in front of position 0" in caught.value.what) == before
        assert not before or "fieldprint anchor sign FILE" in caught.value.remedy


def test_the_tokens_before_position_0_count_for_the_limit_too() -> None:
    front = replace(RECORD, form="chat-system-before", num_tokens=128)
    assert check(replace(ANCHOR, fieldprints=(RECORD, front))) == 7


def test_a_threshold_of_two_needs_two_keys() -> None:
    signed = sign_anchor(replace(ANCHOR, kind="policy"), [OWNER, SECOND])
    assert verify_anchor(signed, POLICY, now=NOW, registry=None).signers == ("owner", "second")


def test_revoked_and_superseded_anchors_are_refused() -> None:
    revoked = revocation_entry(sign_revocation(ANCHOR.digest, "lost", NOW, [OWNER]))
    forged = revocation_entry(sign_revocation(ANCHOR.digest, "lost", NOW, [SECOND]))
    newer = replace(ANCHOR, name="newer", supersedes=(ANCHOR.digest,))
    history = [registered(ANCHOR), registered(newer), promoted(newer)]
    assert check(registry=Registry.replay([revoked], POLICY)) == 8
    assert check(registry=Registry.replay(history, POLICY)) == 9
    weaker = replace(newer, kind="observation")
    history = [registered(ANCHOR), registered(weaker), promoted(weaker)]
    registry = Registry.replay(history, POLICY)
    assert registry.believed["promote"] == 1
    verify_anchor(sign_anchor(ANCHOR, [OWNER]), POLICY, now=NOW, registry=registry, model=MODEL)
    registry = Registry.replay([forged, b"not json", b'{"type":"revoke","v":1}', b"[]"], POLICY)
    assert not registry.revoked and not registry.superseded


def test_a_policy_that_forbids_more_than_the_registry_s_is_asked_again() -> None:
    """Check 12 is for a registry that was replayed with another policy; with one policy check 11 comes first."""
    lenient = replace(POLICY, kinds={**POLICY.kinds, "identity": KindRule(("owner",), 1, 100, 60)})
    seen = replace(ANCHOR, name="seen", kind="observation")
    child = replace(ANCHOR, name="child", text="Read: Falcon.", parents=(seen.digest,))
    history = [registered(seen), registered(child)]
    assert check(child, registry=Registry.replay(history, lenient)) == 12
    assert check(child, registry=Registry.replay(history, POLICY)) == 11


def test_a_label_of_its_own_is_endorsed_away_in_the_registry_only() -> None:
    tainted = replace(ANCHOR, taint=("untrusted",))
    signed = sign_anchor(tainted, [OWNER])

    def with_registry(*entries: bytes, policy: Policy = POLICY) -> int:
        registry = Registry.replay(entries, policy)
        try:
            verify_anchor(signed, POLICY, now=NOW, registry=registry, model=MODEL)
        except VerificationError as error:
            return error.check
        return 0

    both = endorsed(tainted, OWNER, SECOND)
    assert with_registry(both, registered(tainted)) == 0
    assert with_registry(endorsed(tainted, OWNER), registered(tainted)) == 5
    assert with_registry(endorsed(ANCHOR, OWNER, SECOND), registered(tainted)) == 5
    assert with_registry(both) == 5  # not registered: the registry knows no labels of it
    lenient = replace(POLICY, kinds={**POLICY.kinds, "identity": KindRule(("owner",), 1, 100, 60)})
    assert with_registry(registered(tainted), policy=lenient) == 5
    hidden = replace(Registration.of(tainted), taint=())
    assert with_registry(registration_entry(sign_statement(hidden, [OWNER]))) == 5
    with pytest.raises(VerificationError, match=f"endorse {tainted.digest} --label untrusted") as caught:
        verify_anchor(signed, POLICY, now=NOW, registry=None, model=MODEL)
    assert caught.value.check == 5
    strict = replace(POLICY, endorsement={})
    with pytest.raises(VerificationError, match="lets nobody endorse untrusted"):
        verify_anchor(signed, strict, now=NOW, registry=None, model=MODEL)


@settings(max_examples=300, deadline=None)
@given(st.data())
def test_any_flipped_byte_of_a_signed_anchor_is_refused(data: st.DataObject) -> None:
    signed = bytearray(sign_anchor(ANCHOR, [OWNER]))
    index = data.draw(st.integers(0, len(signed) - 1))
    signed[index] ^= data.draw(st.integers(1, 255))
    with pytest.raises((VerificationError, FormatError)):
        verify_anchor(bytes(signed), POLICY, now=NOW, registry=None, model=MODEL)


@pytest.fixture(scope="module")
def receipt() -> Receipt:
    return story()[1]


def receipt_check(receipt: Receipt, registry: Registry | None = None) -> int:
    return refused(lambda: verify_receipt(receipt.to_bytes(), POLICY, now=NOW, registry=registry))


def good(receipt: Receipt) -> VerifiedReceipt:
    return verify_receipt(receipt.to_bytes(), POLICY, now=NOW)


def test_a_good_receipt_passes_and_round_trips(receipt: Receipt) -> None:
    verified = good(receipt)
    assert (verified.text, verified.prompt_len, verified.num_tokens) == ("The answer.", 20, 17)
    assert verified.anchor is not None and verified.anchor.digest == ANCHOR.digest
    assert Receipt.from_bytes(receipt.to_bytes()) == receipt
    for leaf in receipt.leaves:
        assert Commitment.from_bytes(leaf.leaf).to_bytes() == leaf.leaf


def test_each_check_of_a_receipt(receipt: Receipt) -> None:
    leaves = receipt.leaves
    assert refused(lambda: verify_receipt(b"{}", POLICY, now=NOW)) == 1
    assert refused(lambda: verify_receipt(receipt.to_bytes() + b"\n", POLICY, now=NOW)) == 1
    stranger = NoteSigner(SIGNER.name, Ed25519PrivateKey.generate()).verifier_key
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
    another = sign_anchor(replace(ANCHOR, text="Your codename is Heron."), [OWNER])
    assert receipt_check(replace(receipt, anchor=another)) == 7
    revoked = Registry.replay([revocation_entry(sign_revocation(ANCHOR.digest, "x", NOW, [OWNER]))], POLICY)
    assert receipt_check(receipt, revoked) == 7


@settings(max_examples=300, deadline=None)
@given(st.data())
def test_any_flipped_byte_of_a_receipt_is_refused(receipt: Receipt, data: st.DataObject) -> None:
    changed = bytearray(receipt.to_bytes())
    index = data.draw(st.integers(0, len(changed) - 1))
    changed[index] ^= data.draw(st.integers(1, 255))
    with pytest.raises((VerificationError, FormatError)):
        verify_receipt(bytes(changed), POLICY, now=NOW)


def test_unknown_fields_and_floats_are_refused(receipt: Receipt) -> None:
    fields = json.loads(receipt.to_bytes())
    with pytest.raises(FormatError, match="exactly the fields"):
        Receipt.from_bytes(rfc8785.dumps(fields | {"more": 1}))
    with pytest.raises(FormatError):
        Receipt.from_bytes(rfc8785.dumps(fields | {"v": 1}).replace(b'"v":1}', b'"v":1.0}'))


def test_true_is_no_version(receipt: Receipt) -> None:
    leaf = receipt.leaves[0].leaf
    for parse, data in ((Receipt.from_bytes, receipt.to_bytes()), (Commitment.from_bytes, leaf)):
        parse(data)
        with pytest.raises(FormatError, match="of version 1"):
            parse(data[: data.rindex(b'"v":1')] + b'"v":true' + data[data.rindex(b'"v":1') + 5 :])
    newer = replace(ANCHOR, name="newer", supersedes=(ANCHOR.digest,))
    for old, new in ((b"", b""), (b'"v":1', b'"v":true')):
        history = [registered(newer), promoted(newer).replace(old, new)]
        assert bool(Registry.replay(history, POLICY).superseded) is (old == new)


def test_an_auditor_needs_neither_torch_nor_numpy() -> None:
    script = (
        "import sys, fieldprint.verify, fieldprint.tlog, fieldprint.registry, fieldprint.commit, fieldprint.anchor;"
        "sys.exit(bool({'torch', 'numpy'} & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", script], check=False).returncode == 0
