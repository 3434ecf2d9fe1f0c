"""The laws of taint: it comes down with lineage and text, and nothing but an endorsement takes it away."""

from hypothesis import given, settings
from hypothesis import strategies as st

from fieldprint.anchor import Registration
from fieldprint.registry import Registry
from fieldprint.registry.lineage import Lineage
from tests.registry.naive import naive_ancestors, naive_taint
from tests.registry.world import POLICY, anchor, digest

LABELS = ("a", "b", "untrusted")
ADDED = {kind: frozenset(rule.adds_taint) for kind, rule in POLICY.kinds.items()}


@st.composite
def families(draw: st.DrawFn, *, own_texts: bool = False) -> list[Registration]:
    """Up to eight anchors in order, each with parents among the earlier ones; some share a text."""
    made: list[Registration] = []
    for number in range(draw(st.integers(1, 8))):
        parents = draw(st.sets(st.sampled_from(made), max_size=3)) if made else set()
        text = number if own_texts else draw(st.integers(0, 4))
        made.append(
            anchor(
                f"n{number}",
                draw(st.sampled_from(["memory", "observation"])),
                parents=[parent.anchor for parent in parents],
                taint=draw(st.sets(st.sampled_from(LABELS))),
                text_sha256=digest(f"text {text}"),
            )
        )
    return made


endorsements = st.lists(
    st.tuples(st.integers(0, 7), st.integers(0, 7), st.sets(st.sampled_from(LABELS), min_size=1)), max_size=5
)  # after how many registrations, of which anchor, which labels


def build(family: list[Registration], acts: list[tuple[int, int, set[str]]]) -> Lineage:
    lineage = Lineage(ADDED)
    for number, made in enumerate(family):
        for when, which, labels in acts:
            if min(when, len(family) - 1) == number:
                lineage.endorse(family[which % len(family)].anchor, labels)
        expected = lineage.taint_of(made)
        assert lineage.add(number, made).taint == expected
    return lineage


def found(lineage: Lineage) -> dict[str, set[str]]:
    return {record.registration.name: set(record.taint) for record in lineage.records.values()}


def endorsed(family: list[Registration], acts: list[tuple[int, int, set[str]]]) -> dict[str, set[str]]:
    labels: dict[str, set[str]] = {}
    for _, which, taken in acts:
        labels.setdefault(family[which % len(family)].anchor, set()).update(taken)
    return labels


@settings(deadline=None)
@given(families(), endorsements)
def test_taint_is_that_of_the_slow_twin_whenever_endorsements_come(
    family: list[Registration], acts: list[tuple[int, int, set[str]]]
) -> None:
    assert found(build(family, acts)) == naive_taint(family, endorsed(family, acts), POLICY)


@settings(deadline=None)
@given(families(), st.integers(0, 7), st.sampled_from(LABELS))
def test_taint_is_monotone(family: list[Registration], which: int, label: str) -> None:
    """One more label anywhere takes no label away anywhere."""
    which %= len(family)
    before = found(build(family, []))
    changed = anchor(
        family[which].name,
        family[which].kind,
        parents=family[which].parents,
        taint={*family[which].taint, label},
        text_sha256=family[which].text_sha256,
    )
    after = found(build([*family[:which], changed, *family[which + 1 :]], []))
    assert all(before[name] <= after[name] for name in before)
    assert label in after[changed.name]


@settings(deadline=None)
@given(families(own_texts=True))
def test_taint_is_the_join_of_what_it_comes_from(family: list[Registration]) -> None:
    """The least set above its own labels, its kind's and those of all ancestors, and no larger."""
    taint = found(build(family, []))
    own = {made.name: set(made.taint) | ADDED[made.kind] for made in family}
    for made in family:
        above = naive_ancestors(family, made.name)
        assert taint[made.name] == own[made.name].union(*(own[name] for name in above))


@settings(deadline=None)
@given(families(), endorsements, st.integers(0, 7), st.sets(st.sampled_from(LABELS), min_size=1))
def test_an_endorsement_only_removes_what_it_names(
    family: list[Registration], acts: list[tuple[int, int, set[str]]], which: int, labels: set[str]
) -> None:
    """From the anchor and from what descends from it or has its text; nothing is added, and nobody else changes."""
    lineage = build(family, acts)
    before, target = found(lineage), family[which % len(family)]
    changed = lineage.endorse(target.anchor, labels)
    after = found(lineage)
    assert not after[target.name] & labels
    reached = {target.name}
    for made in family:  # in order: whoever has a parent or an earlier text among the reached
        earlier = family[: family.index(made)]
        if any(
            other.name in reached and (other.anchor in made.parents or other.text_sha256 == made.text_sha256)
            for other in earlier
        ):
            reached.add(made.name)
    for name, taint in before.items():
        assert after[name] <= taint and taint - after[name] <= labels
        assert name in reached or after[name] == taint
    names = [lineage.records[digest].registration.name for digest in changed]
    assert names == [made.name for made in family if before[made.name] != after[made.name]]


@settings(deadline=None)
@given(families(own_texts=True), endorsements, st.randoms(use_true_random=False))
def test_the_order_of_registrations_that_do_not_depend_on_each_other_does_not_matter(
    family: list[Registration], acts: list[tuple[int, int, set[str]]], chance: object
) -> None:
    """Any order in which parents come first gives the same, as long as no two have one text."""
    waiting, order = list(family), []
    while waiting:
        done = {made.anchor for made in order}
        ready = [made for made in waiting if done.issuperset(made.parents)]
        order.append(chance.choice(ready))  # type: ignore[attr-defined]
        waiting.remove(order[-1])
    labels = endorsed(family, acts)
    lineage = build(order, [])
    for name, taken in labels.items():
        lineage.endorse(name, taken)
    assert found(lineage) == found(build(family, acts))


@settings(deadline=None)
@given(families(), st.integers(0, 7))
def test_a_revocation_marks_exactly_the_descendants(family: list[Registration], which: int) -> None:
    lineage, target = build(family, []), family[which % len(family)]
    marked = lineage.revoked(target.anchor)
    expected = [made for made in family if target.name in naive_ancestors(family, made.name)]
    assert marked == [made.anchor for made in expected]
    assert lineage.revoked(target.anchor) == []
    assert all(
        (record.revoked_ancestor == target.anchor) == (digest in marked)
        for digest, record in lineage.records.items()
    )


def test_a_text_that_is_registered_often_or_a_long_line_of_descent_costs_no_square() -> None:
    """Twenty thousand of each, with an endorsement at the top; a square would take minutes."""
    lineage = Lineage(ADDED)
    first = anchor("n0", "observation", text_sha256=digest("one text"))
    lineage.add(0, first)
    before = first
    for number in range(1, 20_000):
        made = anchor(f"n{number}", parents=[before.anchor], text_sha256=digest("one text"))
        lineage.add(number, made)
        before = made
    assert lineage.records[before.anchor].taint == {"untrusted"}
    assert len(lineage.endorse(first.anchor, ["untrusted"])) == 20_000
    assert lineage.records[before.anchor].taint == frozenset()
    assert len(lineage.revoked(first.anchor)) == 19_999


def test_the_registry_uses_what_the_policy_says_a_kind_adds() -> None:
    assert Registry(POLICY)._lineage.added == ADDED
