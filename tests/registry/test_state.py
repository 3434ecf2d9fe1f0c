"""What the registry believes, and each thing that it refuses, by name; a refused event changes nothing."""

from collections.abc import Callable
from dataclasses import replace
from datetime import timedelta

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fieldprint.anchor import Policy
from fieldprint.registry import Registry
from fieldprint.registry.state import MAX_REFUSED
from tests.registry.world import (
    DAY,
    OTHER_MODEL,
    OWNER,
    POLICY,
    READER,
    SECOND,
    STRANGER,
    TIME,
    anchor,
    endorse,
    lift,
    override,
    promote,
    replay,
    revoke,
    sign,
    states,
    status,
    supersede,
    taints,
)

ME, NOTE, SEEN, RULE = (
    anchor("me", "identity"),
    anchor("note"),
    anchor("seen", "observation"),
    anchor("rule", "policy"),
)
HEIR = anchor("heir", parents=[NOTE.anchor])
NEWER = anchor("newer", "identity", supersedes=[ME.anchor])
NEXT = anchor("next", "identity")


def snapshot(registry: Registry) -> object:
    """Everything that an event may change."""
    return (
        [(d, replace(r, promotions=list(r.promotions))) for d, r in registry.anchors.items()],
        dict(registry.revoked),
        dict(registry.superseded),
        dict(registry.overrides),
        registry.status,
        dict(registry._lineage._endorsed),
        registry._last_number,
        registry.status_tree.root,
    )


Entries = list[bytes]
TAINTED = anchor("tainted", "identity", parents=[SEEN.anchor])
REFUSED: list[tuple[str, str, Entries, bytes]] = [
    ("a kind without a rule", "no-rule", [], sign(anchor("x", "assertion"), OWNER)),
    ("one of two signers", "signatures", [], sign(ME, OWNER)),
    ("one signer twice", "signatures", [], sign(ME, OWNER, OWNER)),
    ("signers of another kind", "signatures", [], sign(ME, OWNER, READER)),
    ("a stranger", "signatures", [], sign(NOTE, STRANGER)),
    ("registered twice", "already-registered", [sign(NOTE)], sign(NOTE)),
    ("registered with other words", "already-registered", [sign(NOTE)], sign(replace(NOTE, name="other"))),
    ("revoked before", "revoked", [revoke(NOTE)], sign(NOTE)),
    ("superseded before", "superseded", [sign(NEWER), promote(NEWER)], sign(ME)),
    ("parent not registered", "parent-unknown", [], sign(HEIR)),
    ("parent revoked", "parent-revoked", [sign(NOTE), revoke(NOTE)], sign(HEIR)),
    ("parent's parent revoked", "parent-revoked", [sign(NOTE), sign(HEIR), revoke(NOTE)], sign(anchor("x", parents=[HEIR.anchor]))),
    ("valid for too long", "validity", [], sign(replace(NOTE, not_after=TIME + 60 * DAY + timedelta(seconds=1)))),
    ("tainted by itself", "forbidden-taint", [], sign(anchor("x", "identity", taint=["untrusted"]))),
    ("tainted by a parent", "forbidden-taint", [sign(SEEN)], sign(TAINTED)),
    ("tainted by a parent's parent", "forbidden-taint", [sign(SEEN), sign(anchor("m", parents=[SEEN.anchor]))], sign(anchor("x", "policy", parents=[anchor("m").anchor]))),
    ("tainted by its text", "forbidden-taint", [sign(SEEN)], sign(anchor("x", "identity", text_sha256=SEEN.text_sha256))),
    ("another label endorsed", "forbidden-taint", [sign(SEEN), endorse(TAINTED, "web")], sign(TAINTED)),
    ("endorsed elsewhere", "forbidden-taint", [sign(SEEN), endorse(NOTE, "untrusted")], sign(TAINTED)),
    ("promotion of nobody", "unknown-anchor", [], promote(NOTE)),
    ("promotion of a revoked one", "revoked", [sign(NOTE), revoke(NOTE)], promote(NOTE)),
    ("promotion of a superseded one", "superseded", [sign(ME), sign(NEWER), promote(NEWER)], promote(ME)),
    ("promotion of an heir of a revoked one", "parent-revoked", [sign(NOTE), sign(HEIR), revoke(NOTE)], promote(HEIR)),
    ("promotion as another kind", "differs", [sign(NOTE)], promote(NOTE, kind="identity")),
    ("promotion with other supersedes", "differs", [sign(NOTE)], promote(NOTE, supersedes=(ME.anchor,))),
    ("promotion with a model that the rule does not name", "model", [sign(RULE)], promote(RULE, model=OTHER_MODEL)),
    ("supersession of nobody", "unknown-anchor", [sign(NEXT)], supersede(ME, NEXT)),
    ("supersession by nobody", "unknown-anchor", [sign(ME)], supersede(ME, NEXT)),
    ("supersession by one of two signers", "signatures", [sign(ME), sign(NEXT)], supersede(ME, NEXT, OWNER)),
    ("supersession by the newer kind's signers", "signatures", [sign(ME), sign(RULE)], supersede(ME, RULE, OWNER)),
    ("supersession by another kind", "kind", [sign(ME), sign(RULE)], supersede(ME, RULE)),
    ("supersession of a revoked one", "revoked", [sign(ME), sign(NEXT), revoke(ME)], supersede(ME, NEXT)),
    ("supersession by a revoked one", "revoked", [sign(ME), sign(NEXT), revoke(NEXT)], supersede(ME, NEXT)),
    ("supersession twice", "superseded", [sign(ME), sign(NEXT), supersede(ME, NEXT)], supersede(ME, NEXT)),
    ("supersession in a circle", "superseded", [sign(ME), sign(NEXT), supersede(ME, NEXT)], supersede(NEXT, ME)),
    ("endorsement by one of two", "signatures", [], endorse(ME, "untrusted", keys=(OWNER,))),
    ("endorsement by one twice", "signatures", [], endorse(ME, "untrusted", keys=(OWNER, OWNER))),
    ("endorsement of two labels with the signers of one", "signatures", [], endorse(ME, "untrusted", "web", keys=(READER,))),
    ("endorsement of a label that nobody may endorse", "no-rule", [], endorse(ME, "web", "wild")),
    ("endorsement of a label that it does not have", "label", [sign(SEEN)], endorse(SEEN, "web")),
    ("endorsement of two labels, of which it has one", "label", [sign(SEEN)], endorse(SEEN, "untrusted", "web")),
    ("endorsement of a label that was endorsed away", "label", [sign(SEEN), endorse(SEEN, "untrusted")], endorse(SEEN, "untrusted")),
    ("endorsement of a revoked one", "revoked", [revoke(ME)], endorse(ME, "untrusted")),
    ("revocation by one of two", "signatures", [sign(ME)], revoke(ME, OWNER)),
    ("revocation twice", "revoked", [revoke(ME)], revoke(ME)),
    ("override by a signer of anchors", "signatures", [], override(1, keys=(OWNER, SECOND))),
    ("override with an old number", "number", [override(7)], override(7)),
    ("override with a number from before its lift", "number", [override(7), lift(7)], override(6)),
    ("lift of nothing", "not-in-force", [override(7)], lift(6)),
    ("lift twice", "not-in-force", [override(7), lift(7)], lift(7)),
    ("lift by a signer of anchors", "signatures", [override(7)], lift(7, OWNER)),
    ("status by a stranger", "signatures", [], status(Registry(POLICY), keys=(STRANGER,))),
    ("status from behind it", "size", [], status(Registry(POLICY), size=1)),
    ("status of a past that is shorter", "size", [sign(NOTE), status(replay(sign(NOTE)))], status(Registry(POLICY))),
    ("status that misses a revocation", "count", [revoke(NOTE)], status(Registry(POLICY))),
    ("status with another root", "root", [revoke(NOTE)], status(replay(revoke(ME)))),
    ("no statement", "malformed", [], sign(NOTE).replace(b'"sign"', b'"revoke"')),
    ("no envelope", "malformed", [], b'{"envelope":"e30=","type":"lift","v":1}'),
]  # fmt: skip


@pytest.mark.parametrize(
    ("why", "before", "entry"), [row[1:] for row in REFUSED], ids=[row[0] for row in REFUSED]
)
def test_it_is_refused_by_name_and_changes_nothing(why: str, before: Entries, entry: bytes) -> None:
    registry = replay(*before)
    assert registry.num_refused == 0, registry.refused
    known = snapshot(registry)
    assert registry.apply(len(before), entry) is None
    (refused,) = registry.refused
    assert (refused.why, refused.index, registry.num_refused) == (why, len(before), 1)
    assert refused.type in entry.decode() and refused.what
    assert snapshot(registry) == known


def test_every_name_of_a_refusal_is_documented_and_has_a_case() -> None:
    from fieldprint.registry import Refused

    text = (Refused.__doc__ or "").split("why: ")[1].split(". what")[0]
    documented = set(" ".join(text.split()).replace(" or ", ", ").split(", "))
    assert documented == {row[1] for row in REFUSED}


def test_the_life_of_an_anchor() -> None:
    registry = replay()
    for index, (entry, expected, changed) in enumerate(
        [
            (sign(ME), {"me": "registered"}, [ME]),
            (promote(ME), {"me": "active"}, [ME]),
            (promote(ME, model=OTHER_MODEL), {"me": "active"}, [ME]),
            (sign(NEWER), {"me": "active", "newer": "registered"}, [NEWER]),
            (promote(NEWER), {"me": "superseded", "newer": "active"}, [NEWER, ME]),
            (sign(NEXT), {"me": "superseded", "newer": "active", "next": "registered"}, [NEXT]),
            (
                supersede(NEWER, NEXT),
                {"me": "superseded", "newer": "superseded", "next": "registered"},
                [NEWER],
            ),
            (revoke(NEWER), {"me": "superseded", "newer": "revoked", "next": "registered"}, [NEWER]),
        ]
    ):
        change = registry.apply(index, entry)
        assert change is not None and change.index == index
        assert change.anchors == tuple(made.anchor for made in changed)
        assert states(registry) == expected
    assert registry.anchors[ME.anchor].promotions == [1, 2]
    assert registry.anchors[ME.anchor].superseded_by == NEWER.anchor
    assert registry.believed == {"sign": 3, "promote": 3, "supersede": 1, "revoke": 1}


def test_an_entry_that_is_no_event_is_passed_over() -> None:
    registry = replay(
        b"", b"text", b'{"type":"commitment","v":1}', b'{"v":2}', b"\xff" * 100, sign(NOTE) + b"\n"
    )
    assert registry.num_refused == 0 and not registry.anchors and registry.position == 6


def test_an_index_is_applied_once() -> None:
    registry = replay(sign(NOTE))
    with pytest.raises(ValueError, match="applied before"):
        registry.apply(0, sign(HEIR))


def test_refusals_are_counted_beyond_those_that_are_kept() -> None:
    registry = Registry(POLICY)
    for index in range(MAX_REFUSED + 5):
        registry.apply(index, b'{"envelope":"e30=","type":"lift","v":1}')
    assert registry.num_refused == MAX_REFUSED + 5 and len(registry.refused) == MAX_REFUSED
    assert registry.refused[-1].index == MAX_REFUSED + 4


def test_a_tainted_anchor_is_registered_once_it_was_endorsed() -> None:
    before = replay(sign(SEEN), endorse(TAINTED, "untrusted"), sign(TAINTED), promote(TAINTED))
    assert taints(before) == {"seen": {"untrusted"}, "tainted": set()} and before.num_refused == 0
    through = replay(sign(SEEN), endorse(SEEN, "untrusted"), sign(TAINTED))
    assert taints(through) == {"seen": set(), "tainted": set()}


def test_a_label_that_a_policy_adds_by_kind_cannot_be_left_out() -> None:
    assert taints(replay(sign(SEEN))) == {"seen": {"untrusted"}}
    with_rule = dict(POLICY.kinds) | {"memory": replace(POLICY.kinds["memory"], adds_taint=("self",))}
    registry = replay(sign(NOTE), policy=replace(POLICY, kinds=with_rule))
    assert taints(registry) == {"note": {"self"}}


def test_what_comes_from_a_revoked_anchor_is_told() -> None:
    grandchild = anchor("grandchild", parents=[HEIR.anchor])
    registry = replay(sign(NOTE), sign(HEIR), sign(grandchild), sign(SEEN), revoke(NOTE))
    assert registry.tainted_by_revocation == [HEIR.anchor, grandchild.anchor]
    assert states(registry) == {
        "note": "revoked", "heir": "registered", "grandchild": "registered", "seen": "registered"
    }  # fmt: skip


def test_a_revocation_counts_for_an_anchor_that_nobody_registered() -> None:
    registry = replay(revoke(ME))
    assert registry.revoked[ME.anchor].reason == "lost" and len(registry.status_tree) == 1


@pytest.mark.parametrize(
    ("scope", "target", "concerned"),
    [
        ("all", "*", {"anchor", "kind", "engine"}),
        ("anchor", ME.anchor, {"anchor"}),
        ("kind", "identity", {"kind"}),
        ("engine", "gpu-1", {"engine"}),
        ("anchor", NOTE.anchor, set()),
        ("kind", "memory", set()),
        ("engine", "gpu-2", set()),
    ],
)
def test_an_override_is_in_force_within_its_scope(scope: str, target: str, concerned: set[str]) -> None:
    registry = replay(override(1, scope, target))
    asked = {"anchor": ME.anchor, "kind": "identity", "engine": "gpu-1"}
    for name, value in asked.items():
        assert (registry.override_on(TIME, **{name: value}) is not None) == (name in concerned)
    assert (registry.override_on(TIME, **asked) is not None) == bool(concerned)
    assert replay(override(1, scope, target), lift(1)).override_on(TIME, **asked) is None


def test_an_override_ends_when_it_says_so_and_a_freeze_comes_first() -> None:
    registry = replay(
        override(1, expires=TIME + DAY),
        override(2, action="bypass", expires=TIME + 2 * DAY),
        override(3, "kind", "identity", action="bypass"),
    )

    def number(days: int, kind: str) -> int | None:
        found = registry.override_on(TIME + days * DAY, kind=kind)
        return None if found is None else found.number

    assert [number(days, "identity") for days in (0, 1, 2)] == [1, 3, 3]
    assert [number(days, "memory") for days in (0, 1, 2)] == [1, 2, None]


def test_nothing_that_an_anchor_says_stops_an_override() -> None:
    """Whatever was registered, revoked or superseded before, the next number is believed."""
    story = [sign(ME), sign(NEWER), promote(NEWER), revoke(NOTE), sign(SEEN), override(1), lift(1)]
    for end in range(len(story) + 1):
        registry = replay(*story[:end])
        for scope, target in (("all", "*"), ("anchor", ME.anchor), ("kind", "identity"), ("engine", "e")):
            number = registry._last_number + 1
            assert registry.apply(registry.position, override(number, scope, target)) is not None


def test_without_the_role_in_the_policy_nobody_overrides() -> None:
    policy = replace(POLICY, override=None, status=None)
    registry = replay(override(1), status(Registry(POLICY)), policy=policy)
    assert [refused.why for refused in registry.refused] == ["no-rule", "no-rule"]


def test_the_keys_that_override_sign_no_anchors() -> None:
    from fieldprint.errors import FormatError

    rules = dict(POLICY.kinds) | {"memory": replace(POLICY.kinds["memory"], signers=("warden",))}
    with pytest.raises(FormatError, match="warden signs anchors too"):
        replace(POLICY, kinds=rules)
    with pytest.raises(FormatError, match="warden signs anchors too"):
        Policy.from_bytes(POLICY.to_bytes().replace(b'["reader"]', b'["warden"]', 1))


def test_a_promotion_of_a_promoted_anchor_supersedes_nothing_anew() -> None:
    registry = replay(sign(ME), sign(NEWER), promote(NEWER), promote(NEWER))
    assert registry.superseded == {(ME.anchor, "identity"): NEWER.anchor}


def test_an_anchor_of_another_kind_is_not_superseded() -> None:
    weak = anchor("weak", "observation", supersedes=[ME.anchor])
    registry = replay(sign(ME), sign(weak), promote(weak), promote(ME))
    assert states(registry) == {"me": "active", "weak": "active"}


POOL: list[Callable[[Registry], bytes]] = [
    *(lambda _, made=made: sign(made) for made in (ME, NOTE, SEEN, RULE, HEIR, NEWER, NEXT, TAINTED)),
    *(lambda _, made=made: promote(made) for made in (ME, NOTE, RULE, HEIR, NEWER, NEXT, TAINTED)),
    *(lambda _, made=made: revoke(made) for made in (NOTE, NEWER)),
    lambda _: supersede(ME, NEXT),
    lambda _: supersede(NEXT, ME),
    lambda _: endorse(TAINTED, "untrusted"),
    lambda _: endorse(SEEN, "untrusted"),
    lambda registry: override(registry._last_number + 1),
    lambda registry: lift(registry._last_number or 1),
    lambda registry: status(registry),
    lambda _: b"no event",
]  # fmt: skip


@settings(deadline=None, max_examples=60)
@given(st.lists(st.sampled_from(POOL), max_size=20))
def test_what_holds_after_any_history(acts: list[Callable[[Registry], bytes]]) -> None:
    registry, history = Registry(POLICY), []
    for act in acts:
        before = {name: set(labels) for name, labels in taints(registry).items()}
        ended = {name for name, state in states(registry).items() if state in ("superseded", "revoked")}
        entry = act(registry)
        history.append(entry)
        known = snapshot(registry)
        if registry.apply(registry.position, entry) is None:
            assert snapshot(registry) == known
        after = taints(registry)
        assert all(after[name] <= labels for name, labels in before.items())  # taint never grows
        now = states(registry)
        assert all(now[name] in ("superseded", "revoked") for name in ended)  # nobody comes back
    for record in registry.anchors.values():
        rule = POLICY.kinds[record.registration.kind]
        assert not record.taint.intersection(rule.forbidden_taint)
        if record.superseded_by is not None:  # whoever follows it comes to an end
            seen = {record.registration.anchor}
            following: str | None = record.superseded_by
            while following is not None:
                assert following not in seen
                seen.add(following)
                following = registry.anchors[following].superseded_by
    assert registry.num_refused + sum(registry.believed.values()) <= len(history)
    assert snapshot(replay(*history)) == snapshot(registry)
