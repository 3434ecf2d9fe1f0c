"""The registry: what the log's entries say of anchors, and that nothing else says anything."""

import base64
import json
from datetime import UTC, datetime
from typing import Any

import pytest
import rfc8785
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from hypothesis import given
from hypothesis import strategies as st

from fieldprint.anchor import KindRule, Policy, sign_envelope, sign_revocation
from fieldprint.note import NoteSigner
from fieldprint.registry import Promotion, Registry, revocation_entry

TIME = datetime(2026, 11, 24, tzinfo=UTC)
OWNER, SECOND, STRANGER = (Ed25519PrivateKey.from_private_bytes(bytes([i]) * 32) for i in (1, 2, 3))
A, B, C = ("aa" * 32, "bb" * 32, "cc" * 32)


def policy(threshold: int = 1) -> Policy:
    keys = {"owner": OWNER.public_key().public_bytes_raw(), "second": SECOND.public_key().public_bytes_raw()}
    log = str(NoteSigner("test/log", OWNER).verifier_key)
    return Policy(keys, {"identity": KindRule(("owner",))}, ("owner", "second"), threshold, log)


POLICY = policy()
PROMOTED = Promotion(A, B, C, "identity").to_entry()
NEWER = Promotion(B, B, C, "identity", supersedes=(A,)).to_entry()
REVOKED = revocation_entry(sign_revocation(A, "lost", TIME, [OWNER]))


def state(entries: list[bytes], policy: Policy = POLICY) -> tuple[Any, ...]:
    registry = Registry.replay(entries, policy)
    return registry.promotions, registry.superseded, {k: v.reason for k, v in registry.revoked.items()}


def test_promotions_supersede_and_revocations_revoke() -> None:
    assert state([]) == ([], set(), {})
    assert state([PROMOTED]) == ([Promotion(A, B, C, "identity")], set(), {})
    assert state([PROMOTED, NEWER, REVOKED]) == (
        [Promotion(A, B, C, "identity"), Promotion(B, B, C, "identity", (A,))],
        {(A, "identity")},
        {A: "lost"},
    )


def test_the_first_revocation_of_an_anchor_counts() -> None:
    again = revocation_entry(sign_revocation(A, "found again", TIME, [OWNER]))
    assert state([REVOKED, again])[2] == {A: "lost"}


def test_a_threshold_of_two_needs_two_revokers() -> None:
    both = revocation_entry(sign_revocation(A, "lost", TIME, [OWNER, SECOND]))
    twice = revocation_entry(sign_revocation(A, "lost", TIME, [OWNER, OWNER]))
    assert state([REVOKED, twice], policy(2))[2] == {}
    assert state([both], policy(2))[2] == {A: "lost"}


def _with(entry: bytes, **changes: Any) -> bytes:
    return rfc8785.dumps(json.loads(entry) | changes)


@pytest.mark.parametrize(
    "entry",
    [
        revocation_entry(sign_revocation(A, "forged", TIME, [STRANGER])),
        revocation_entry(sign_envelope("text/plain", b"{}", [OWNER]).to_bytes()),
        revocation_entry(b"no envelope"),
        _with(REVOKED, envelope=5),
        _with(REVOKED, envelope=base64.b64encode(b"{}").decode()),
        _with(REVOKED, v=2),
        _with(REVOKED, v=True),
        _with(REVOKED, more=1),
        _with(NEWER, supersedes=A),
        _with(NEWER, supersedes=[A, "short"]),
        _with(NEWER, supersedes=[[A]]),
        _with(NEWER, anchor="short"),
        _with(NEWER, model=None),
        _with(NEWER, v=True),
        _with(NEWER, kind="fancy"),
        _with(NEWER, kind=["identity"]),
        _with(NEWER, type="demote"),
        NEWER + b"\n",
        NEWER.replace(b":", b": ", 1),
        b"",
        b"[]",
        b"null",
        b"\xff\xfe",
        b'{"type":' + b"[" * 5000,
        b" " * 70_000,
    ],
    ids=lambda entry: repr(entry[:24]),
)
def test_what_is_no_event_changes_nothing(entry: bytes) -> None:
    assert state([entry]) == ([], set(), {})
    assert state([PROMOTED, entry, REVOKED]) == state([PROMOTED, REVOKED])


json_values = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**53) + 1, 2**53 - 1) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)
events = st.sampled_from([PROMOTED, NEWER, REVOKED])


@given(
    st.lists(events, max_size=5), st.binary(max_size=60) | json_values.map(rfc8785.dumps), st.integers(0, 5)
)
def test_a_strange_entry_anywhere_changes_nothing(entries: list[bytes], strange: bytes, at: int) -> None:
    assert state([*entries[:at], strange, *entries[at:]]) == state(entries)


@given(st.lists(events, max_size=6))
def test_revoked_and_superseded_stay_so(entries: list[bytes]) -> None:
    for end in range(len(entries)):
        before, after = Registry.replay(entries[:end], POLICY), Registry.replay(entries, POLICY)
        assert before.superseded <= after.superseded
        assert before.revoked.keys() <= after.revoked.keys()


def test_signed_by_a_key_of_another_role_changes_nothing() -> None:
    keys = {"owner": OWNER.public_key().public_bytes_raw(), "second": SECOND.public_key().public_bytes_raw()}
    only = Policy(keys, {"identity": KindRule(("second",))}, ("owner",), 1, POLICY.log)
    by_signer = revocation_entry(sign_revocation(A, "lost", TIME, [SECOND]))
    assert state([by_signer], only)[2] == {}
