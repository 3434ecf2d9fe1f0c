"""Entries: what is an event, and that nothing else says anything, however close it comes."""

import base64
import json
from dataclasses import replace
from typing import Any

import pytest
import rfc8785
from hypothesis import given, settings
from hypothesis import strategies as st

from fieldprint.anchor import KINDS, AnchorArtifact, Registration, sign_anchor, sign_envelope
from fieldprint.anchor.artifact import statement
from fieldprint.anchor.sign import PAYLOAD_TYPE
from fieldprint.anchor.statements import (
    MAX_LINEAGE,
    MAX_TAINT,
    REVOCATION_TYPE,
    Revocation,
)
from fieldprint.errors import FormatError
from fieldprint.registry import EVENT_TYPES, Promotion, Registry, event_entry, events
from fieldprint.registry.events import event_type
from fieldprint.tlog.tile import MAX_ENTRY_SIZE
from tests.registry.test_state import snapshot
from tests.registry.world import (
    DAY,
    MODEL,
    OWNER,
    POLICY,
    READER,
    ROOT,
    SECOND,
    TIME,
    anchor,
    digest,
    endorse,
    lift,
    override,
    promote,
    replay,
    revoke,
    sign,
    status,
    supersede,
)

OLD, NEW, OTHER = anchor("old"), anchor("new", supersedes=[digest("old")]), anchor("other")
SIGNED, PROMOTED, REVOKED = sign(NEW), promote(NEW), revoke(OTHER)
EACH = {  # with no signature more than it needs
    "sign": SIGNED,
    "supersede": supersede(OLD, OTHER),
    "endorse": endorse(NEW, "web", keys=(READER,)),
    "revoke": REVOKED,
    "override": override(1),
    "lift": lift(1),
    "status": status(Registry(POLICY)),
    "promote": PROMOTED,
}
BEFORE = [sign(OLD), SIGNED, sign(OTHER), override(2)]


def test_there_is_an_entry_of_each_type_and_it_is_told_from_its_end() -> None:
    assert set(EACH) == set(EVENT_TYPES)
    for kind, entry in EACH.items():
        assert event_type(entry) == kind == json.loads(entry)["type"]


def state(*entries: bytes) -> object:
    return snapshot(replay(*BEFORE, *entries))


def _with(entry: bytes, **changes: Any) -> bytes:
    return rfc8785.dumps(json.loads(entry) | changes)


def _revocation(payload: bytes, payload_type: str = PAYLOAD_TYPE) -> bytes:
    """The entry of what both revokers signed, whatever it is."""
    return event_entry("revoke", sign_envelope(payload_type, payload, [OWNER, SECOND]).to_bytes())


def _statement(
    subject: Any = OTHER.anchor, name: Any = "anchor", kind: str = REVOCATION_TYPE, **changes: Any
) -> bytes:
    predicate = {"reason": "lost", "time": "2026-11-24T00:00:00Z"} | changes
    return statement(kind, name, subject, predicate)


def test_a_statement_by_hand_is_a_revocation() -> None:
    """Else the refusals of its variants below would say nothing."""
    assert _statement() == Revocation(OTHER.anchor, "lost", TIME).to_bytes()
    assert state(_revocation(_statement())) == state(REVOKED) != state()
    assert state(PROMOTED) != state()


@pytest.mark.parametrize(
    "entry",
    [
        event_entry("revoke", sign_envelope("text/plain", b"{}", [OWNER, SECOND]).to_bytes()),
        event_entry("revoke", b"no envelope"),
        _revocation(_statement(), "text/plain"),
        _revocation(_statement(subject="short")),
        _revocation(_statement(subject=OTHER.anchor.upper())),
        _revocation(_statement(subject=None)),
        _revocation(_statement(name="anchor/facts")),
        _revocation(_statement(name=None)),
        _revocation(_statement(kind="urn:fieldprint:anchor:v1")),
        _revocation(_statement(reason="")),
        _revocation(_statement(reason="zero\u200bwidth")),
        _revocation(_statement(reason="long" * 1025)),
        _revocation(_statement(reason=5)),
        _revocation(_statement(time="2026-11-24")),
        _revocation(_statement(time="2026-11-24T0:00:00Z")),
        _revocation(_statement(more=1)),
        _revocation(_statement() + b"\n"),
        event_entry(
            "revoke", sign_anchor(AnchorArtifact("a", "memory", "x", TIME, TIME + DAY), [OWNER, SECOND])
        ),
        PROMOTED.replace(b'"promote"', b'"revoke"'),
        REVOKED.replace(b'"revoke"', b'"promote"'),
        REVOKED.replace(b'"revoke"', b'"endorse"'),
        _with(REVOKED, envelope=5),
        _with(REVOKED, envelope=base64.b64encode(b"{}").decode()),
        _with(REVOKED, v=2),
        _with(REVOKED, v=True),
        _with(REVOKED, more=1),
        _with(PROMOTED, supersedes=OLD.anchor),
        _with(PROMOTED, supersedes=[OLD.anchor, "short"]),
        _with(PROMOTED, supersedes=[[OLD.anchor]]),
        _with(PROMOTED, supersedes={OLD.anchor: True}),
        _with(PROMOTED, supersedes=None),
        _with(PROMOTED, anchor="short"),
        _with(PROMOTED, fieldprint=ROOT.upper()),
        _with(PROMOTED, more=1),
        _with(PROMOTED, model=None),
        _with(PROMOTED, v=True),
        _with(PROMOTED, kind="fancy"),
        _with(PROMOTED, kind=["memory"]),
        _with(PROMOTED, type="demote"),
        PROMOTED + b"\n",
        PROMOTED.replace(b":", b": ", 1),
        b"",
        b"[]",
        b"null",
        b"\xff\xfe",
        b'{"type":' + b"[" * 5000,
        b" " * 70_000,
        b" " * 70_000 + PROMOTED[-40:],
        b"[" * 5000 + b',"type":"lift","v":1}',
    ],
    ids=lambda entry: repr(entry[:24]),
)
def test_what_is_no_event_changes_nothing(entry: bytes) -> None:
    assert state(entry) == state()
    assert state(entry, PROMOTED, REVOKED) == snapshot(
        Registry.replay([*BEFORE, b"", PROMOTED, REVOKED], POLICY)
    )


@pytest.mark.parametrize("kind", EVENT_TYPES)
def test_every_field_of_an_event_is_needed_and_no_other(kind: str) -> None:
    entry = EACH[kind]
    for name in json.loads(entry):
        fields = json.loads(entry)
        del fields[name]
        assert state(rfc8785.dumps(fields)) == state(), name
    assert state(_with(entry, more=1)) == state()
    if kind != "promote":
        for other in EACH:
            if other not in (kind, "promote"):
                assert state(_with(entry, type=other)) == state()


def test_events_are_read_up_to_the_size_of_a_log_entry(monkeypatch: pytest.MonkeyPatch) -> None:
    assert events.MAX_EVENT_SIZE == MAX_ENTRY_SIZE == 65535
    monkeypatch.setattr(events, "MAX_EVENT_SIZE", len(PROMOTED) - 1)
    assert replay(*BEFORE, PROMOTED).refused[-1].why == "malformed"


def test_the_largest_registration_fits_into_an_entry() -> None:
    """With 32 signatures; one parent or label more is refused before anybody signs."""
    many = sorted(digest(str(number)) for number in range(MAX_LINEAGE))
    labels = sorted(f"{number:064d}" for number in range(MAX_TAINT))
    largest = anchor("x" * 64, parents=many, supersedes=many, taint=labels)
    assert len(sign(largest, *[OWNER] * 32)) <= MAX_ENTRY_SIZE
    for more in (
        {"parents": [*many, "ff" * 32]},
        {"taint": [*labels, "z"]},
        {"supersedes": [*many, "ff" * 32]},
    ):
        with pytest.raises(FormatError, match="cannot be registered"):
            anchor("x", **more)
    with pytest.raises(FormatError, match="more than 65535"):
        event_entry("sign", b"x" * 50_000)
    with pytest.raises(ValueError, match="kind must be"):
        event_entry("promote", b"")


json_values = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**53) + 1, 2**53 - 1) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)
CHECKED = (
    "anchor",
    "kind",
    "model",
    "type",
)  # another value of these makes no event of PROMOTED, but for a digest
near_misses = st.one_of(
    st.builds(lambda name, value: _with(PROMOTED, **{name: value}), st.sampled_from(CHECKED), json_values),
    st.builds(lambda value: _with(PROMOTED, supersedes=[OLD.anchor, value]), json_values),
    st.builds(lambda value: _with(PROMOTED, more=value), json_values),
    st.builds(
        lambda kind, value: _with(EACH[kind], envelope=value), st.sampled_from(EVENT_TYPES[:-1]), json_values
    ),
    st.builds(
        lambda kind, at, bits: (
            (e := EACH[kind])[: at % len(e)] + bytes([e[at % len(e)] ^ bits]) + e[at % len(e) + 1 :]
        ),
        st.sampled_from(EVENT_TYPES[:-1]),
        st.integers(0, 4000),
        st.integers(1, 255),
    ),
)


@settings(deadline=None)
@given(st.binary(max_size=60) | json_values.map(rfc8785.dumps) | near_misses)
def test_a_strange_entry_changes_nothing(strange: bytes) -> None:
    assert state(strange) == state()


@settings(deadline=None, max_examples=200)
@given(
    st.sampled_from(EVENT_TYPES[:-1]),
    json_values,
    st.sampled_from(["subject", "predicate", "one", "drop"]),
    st.integers(0, 7),
)
def test_a_signed_statement_of_a_strange_form_is_refused_and_never_a_crash(
    kind: str, value: Any, where: str, which: int
) -> None:
    """Whoever may sign can sign anything."""
    payload = json.loads(
        base64.b64decode(json.loads(base64.b64decode(json.loads(EACH[kind])["envelope"]))["payload"])
    )
    name = sorted(payload["predicate"])[which % len(payload["predicate"])]
    if where == "drop":
        del payload["predicate"][name]
    elif where == "one":
        payload["predicate"][name] = value
    else:
        payload[where] = value
    try:
        written = rfc8785.dumps(payload)
    except rfc8785.CanonicalizationError:
        return
    keys = [*POLICY.keys]
    from tests.registry.world import NAMES

    entry = event_entry(kind, sign_envelope(PAYLOAD_TYPE, written, [NAMES[key] for key in keys]).to_bytes())
    registry = replay(*BEFORE)
    known = snapshot(registry)
    change = registry.apply(len(BEFORE), entry)
    if change is None:
        assert snapshot(registry) == known and registry.num_refused == 1
    else:
        assert change.content.to_bytes() == written  # type: ignore[union-attr]


@pytest.mark.parametrize("kind", KINDS)
def test_a_promotion_says_of_an_anchor_what_its_registration_says(kind: str) -> None:
    said = Promotion(NEW.anchor, ROOT, MODEL, kind, NEW.supersedes).to_entry()
    assert (state(said) != state()) == (kind == NEW.kind)


def test_a_registration_is_that_of_its_artifact_and_holds_no_text() -> None:
    artifact = AnchorArtifact("a", "memory", "A secret word.", TIME, TIME + DAY, taint=("web",))
    made = Registration.of(artifact)
    assert made.anchor == artifact.digest and made.text_sha256 == digest("A secret word.")
    assert Registration.from_bytes(made.to_bytes()) == made and b"secret" not in made.to_bytes()
    assert Registration.of(replace(artifact, name="b")).anchor != made.anchor
