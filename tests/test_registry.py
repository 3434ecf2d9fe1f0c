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

from fieldprint import registry as module
from fieldprint.anchor import (
    KINDS,
    AnchorArtifact,
    KindRule,
    Policy,
    sign_anchor,
    sign_envelope,
    sign_revocation,
)
from fieldprint.anchor.artifact import statement
from fieldprint.anchor.sign import PAYLOAD_TYPE
from fieldprint.anchor.statements import REVOCATION_TYPE, Revocation
from fieldprint.note import NoteSigner
from fieldprint.registry import Promotion, Registry, revocation_entry
from fieldprint.tlog.tile import MAX_ENTRY_SIZE

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


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_superseded_is_so_for_the_newer_anchor_s_kind(kind: str) -> None:
    assert state([Promotion(B, B, C, kind, (A, C)).to_entry()])[1] == {(A, kind), (C, kind)}


def test_the_first_revocation_of_an_anchor_counts() -> None:
    again = revocation_entry(sign_revocation(A, "found again", TIME, [OWNER]))
    forged = revocation_entry(sign_revocation(A, "forged", TIME, [STRANGER]))
    assert state([REVOKED, again])[2] == {A: "lost"}
    assert state([forged, again, REVOKED])[2] == {A: "found again"}
    assert state([again, revocation_entry(sign_revocation(B, "b", TIME, [SECOND]))])[2].keys() == {A, B}


def test_a_threshold_of_two_needs_two_revokers() -> None:
    both = revocation_entry(sign_revocation(A, "lost", TIME, [OWNER, SECOND]))
    twice = revocation_entry(sign_revocation(A, "lost", TIME, [OWNER, OWNER]))
    by_second = revocation_entry(sign_revocation(A, "lost", TIME, [SECOND]))
    with_stranger = revocation_entry(sign_revocation(A, "lost", TIME, [OWNER, STRANGER]))
    assert state([REVOKED, twice, with_stranger], policy(2))[2] == {}
    assert state([REVOKED, by_second], policy(2))[2] == {}  # signatures of two entries do not add up
    assert state([both], policy(2))[2] == {A: "lost"}


def _with(entry: bytes, **changes: Any) -> bytes:
    return rfc8785.dumps(json.loads(entry) | changes)


def _revocation(payload: bytes, payload_type: str = PAYLOAD_TYPE) -> bytes:
    """The entry of what the owner signed, whatever it is."""
    return revocation_entry(sign_envelope(payload_type, payload, [OWNER]).to_bytes())


def _statement(anchor: Any = A, name: str = "anchor", kind: str = REVOCATION_TYPE, **changes: Any) -> bytes:
    predicate = {"reason": "lost", "time": "2026-11-24T00:00:00Z"} | changes
    return statement(kind, name, anchor, predicate)


def test_a_statement_by_hand_is_a_revocation() -> None:
    """Else the refusals of its variants below would say nothing."""
    assert _statement() == Revocation(A, "lost", TIME).to_bytes()
    assert state([_revocation(_statement())])[2] == {A: "lost"}


@pytest.mark.parametrize(
    "entry",
    [
        revocation_entry(sign_revocation(A, "forged", TIME, [STRANGER])),
        revocation_entry(sign_envelope("text/plain", b"{}", [OWNER]).to_bytes()),
        revocation_entry(b"no envelope"),
        _revocation(_statement(), "text/plain"),
        _revocation(_statement(anchor="short")),
        _revocation(_statement(anchor=A.upper())),
        _revocation(_statement(anchor=None)),
        _revocation(_statement(name="anchor/facts")),
        _revocation(_statement(kind="urn:fieldprint:anchor:v1")),
        _revocation(_statement(reason="")),
        _revocation(_statement(reason="zero\u200bwidth")),
        _revocation(_statement(reason=5)),
        _revocation(_statement(time="2026-11-24")),
        _revocation(_statement(time="2026-11-24T0:00:00Z")),
        _revocation(_statement(more=1)),
        _revocation(_statement() + b"\n"),
        revocation_entry(
            sign_anchor(AnchorArtifact("a", "identity", "x", TIME, TIME.replace(year=2027)), [OWNER])
        ),
        revocation_entry(sign_revocation(A, "lost", TIME, [OWNER]) + b"\n"),
        PROMOTED.replace(b'"promote"', b'"revoke"'),
        REVOKED.replace(b'"revoke"', b'"promote"'),
        _with(REVOKED, envelope=5),
        _with(REVOKED, envelope=base64.b64encode(b"{}").decode()),
        _with(REVOKED, v=2),
        _with(REVOKED, v=True),
        _with(REVOKED, more=1),
        _with(NEWER, supersedes=A),
        _with(NEWER, supersedes=[A, "short"]),
        _with(NEWER, supersedes=[[A]]),
        _with(NEWER, supersedes={A: True}),
        _with(NEWER, supersedes=None),
        _with(NEWER, anchor="short"),
        _with(NEWER, fieldprint=B.upper()),
        _with(NEWER, more=1),
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


def test_every_field_of_an_event_is_needed() -> None:
    for entry in (NEWER, REVOKED):
        for name in json.loads(entry):
            fields = json.loads(entry)
            del fields[name]
            assert state([rfc8785.dumps(fields)]) == ([], set(), {}), name


def test_events_are_read_up_to_the_size_of_a_log_entry(monkeypatch: pytest.MonkeyPatch) -> None:
    assert module.MAX_EVENT_SIZE == MAX_ENTRY_SIZE == 65535
    monkeypatch.setattr(module, "MAX_EVENT_SIZE", len(NEWER))
    assert state([NEWER])[1] == {(A, "identity")}
    monkeypatch.setattr(module, "MAX_EVENT_SIZE", len(NEWER) - 1)
    assert state([NEWER]) == ([], set(), {})


json_values = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**53) + 1, 2**53 - 1) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)
events = st.sampled_from([PROMOTED, NEWER, REVOKED])
CHECKED = (
    "anchor",
    "fieldprint",
    "kind",
    "model",
    "type",
)  # any other value of these makes no event of NEWER
near_misses = st.one_of(
    st.builds(lambda name, value: _with(NEWER, **{name: value}), st.sampled_from(CHECKED), json_values),
    st.builds(lambda value: _with(NEWER, supersedes=[A, value]), json_values),
    st.builds(lambda value: _with(NEWER, more=value), json_values),
    st.builds(lambda value: _with(REVOKED, envelope=value), json_values),
    st.builds(
        lambda at, bits: REVOKED[:at] + bytes([REVOKED[at] ^ bits]) + REVOKED[at + 1 :],
        st.integers(0, len(REVOKED) - 1),
        st.integers(1, 255),
    ),
)


@given(
    st.lists(events, max_size=5),
    st.binary(max_size=60) | json_values.map(rfc8785.dumps) | near_misses,
    st.integers(0, 5),
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
