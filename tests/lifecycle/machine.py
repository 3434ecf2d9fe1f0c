"""All operations on anchors in any order, by whoever holds whichever keys; after each, the invariants.

    non-interference   no text that holds a forbidden label is verified as `identity` or `policy` without its endorsement
    authority          nothing is believed that too few of those who may sign it signed
    taint              each anchor has exactly the labels of what it comes from, less those that were endorsed for it
    finality           what was revoked or superseded, or comes from what was revoked, does not come back
    rules              nothing is believed or verified against another rule of the policy
    door               who may override always can, nobody else can, and no order comes back
    status             no status root is believed that misses a revocation
    liveness           what breaks no rule is believed and verified
    names              what is refused is refused for a reason that holds
    nothing-changes    what is refused changes nothing
    replay             the log replayed gives the same registry
    no-crash           nothing that is appended raises

What is right is decided by `Truth`. An invariant that is not watched is not checked, and then the truth takes over what the
registry believed: so a mutant of the registry can be followed to where it breaks the one invariant that is of interest.

One file, though long: a machine is one class to hypothesis, with a rule for each operation.
"""

from collections.abc import Callable, Collection
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from typing import Any, ClassVar

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, rule, run_state_machine_as_test

from fieldprint import registry as registry_package
from fieldprint import verify
from fieldprint.anchor import (
    AnchorArtifact,
    Endorsement,
    Envelope,
    FieldprintRecord,
    KindRule,
    Lift,
    Override,
    Registration,
    Revocation,
    Statement,
    StatusRoot,
    Supersession,
    sign_anchor,
    sign_statement,
)
from fieldprint.errors import VerificationError
from fieldprint.registry import Promotion, event_entry
from tests.lifecycle.truth import Made, Truth
from tests.registry.test_state import snapshot
from tests.registry.world import (
    CLERK,
    DAY,
    MODEL,
    OTHER_MODEL,
    OWNER,
    POLICY,
    READER,
    ROOT,
    SECOND,
    STRANGER,
    TIME,
    WARDEN,
    digest,
)

Keys = tuple[Ed25519PrivateKey, ...]
LABELS = ("untrusted", "web", "wild")  # two endorse the first, one the second, nobody the third
POLICY_OF_ALL = replace(
    POLICY,
    kinds=dict(POLICY.kinds) | {"memory": KindRule(("owner", "reader"), 1, 512, 60, ("wild",))},
)
STRICT = replace(
    POLICY_OF_ALL,
    status=None,
    kinds={kind: replace(one, forbidden_taint=LABELS) for kind, one in POLICY_OF_ALL.kinds.items()},
)
RIGHT: dict[str, Keys] = {
    "identity": (OWNER, SECOND), "policy": (OWNER,), "memory": (READER,), "observation": (READER,), "assertion": (OWNER,),
}  # fmt: skip
WRONG: tuple[Keys, ...] = (
    (OWNER,), (OWNER, OWNER), (READER,), (READER, SECOND), (STRANGER,), (STRANGER, OWNER), (WARDEN,), (CLERK, WARDEN),
)  # fmt: skip
MAX_ARTIFACTS = 12
SIZES = {False: 40, True: 600}  # tokens; the policy allows 512
INVARIANTS = (
    "non-interference", "authority", "taint", "finality", "rules", "door", "status", "liveness", "names", "nothing-changes",
    "replay", "no-crash",
)  # fmt: skip
OF_NAME = {
    "signatures": "authority", "no-rule": "authority",
    "already-registered": "finality", "revoked": "finality", "superseded": "finality", "parent-revoked": "finality",
    "parent-unknown": "rules", "unknown-anchor": "rules", "differs": "rules", "kind": "rules", "model": "rules",
    "validity": "rules", "forbidden-taint": "rules", "label": "rules",
    "number": "door", "not-in-force": "door",
    "size": "status", "count": "status", "root": "status",
}  # fmt: skip
OF_CHECK = {
    3: "rules", 4: "authority", 5: "rules", 6: "rules", 7: "rules", 8: "finality", 9: "finality", 10: "rules",
    11: "rules", 12: "rules", 13: "finality", 14: "rules", 15: "door", 16: "status", 17: "rules",
}  # fmt: skip


class BrokenError(AssertionError):
    """An invariant does not hold."""

    def __init__(self, invariant: str, what: str) -> None:
        super().__init__(f"{invariant}: {what}")
        self.invariant = invariant


@dataclass(frozen=True)
class Signed:
    """An anchor as it goes around, registered or not."""

    artifact: AnchorArtifact
    keys: Keys
    data: bytes


@dataclass(frozen=True)
class Stored:
    """The registry as a database gives it."""

    registry: Any

    def standing(self, anchor: str, kind: str, now: datetime) -> Any:
        return replace(self.registry.standing(anchor, kind, now), policy=POLICY_OF_ALL.digest)


def _sign(artifact: AnchorArtifact, keys: Keys, right: Keys) -> Signed:
    data = sign_anchor(artifact, keys or right)
    return Signed(artifact, keys, data if keys else _forged(data))


def _forged(data: bytes) -> bytes:
    """The envelope with the same key ids, and signatures over something else."""
    envelope = Envelope.from_bytes(data)
    signatures = tuple((name, OWNER.sign(b"something else")) for name, _ in envelope.signatures)
    return replace(envelope, signatures=signatures).to_bytes()


def _record(model: str, num_tokens: int) -> FieldprintRecord:
    return FieldprintRecord(model, "raw", num_tokens, "aa" * 32, 2, 1, 8, 16, "int8-pow2-v1", ROOT)


which = st.integers(0, 63)
kinds = st.sampled_from(("identity", "policy", "memory", "memory", "observation") * 3 + ("assertion",))
taints = st.sampled_from([set()] * 12 + [{"untrusted"}, {"web"}, {"wild"}])
odd = st.sampled_from([""] * 12 + ["long", "large", "later"])
by = st.sampled_from(["right"] * 40 + list(range(len(WRONG))) + ["forged"])
some_labels = st.sampled_from([{"untrusted"}, {"web"}, {"untrusted", "wild"}, {"untrusted", "web"}])
held = st.sampled_from([False] * 9 + [True])


class Anchors(RuleBasedStateMachine):
    """The registry, the verifier, the truth, and a log that is only appended to."""

    watched: ClassVar[Collection[str]] = INVARIANTS
    steps: ClassVar[int] = 0

    def __init__(self) -> None:
        super().__init__()
        self.registry = registry_package.Registry(POLICY_OF_ALL)
        self.truth = Truth(POLICY_OF_ALL)
        self.log: list[Made] = []
        self.entries: list[bytes] = []
        self.withheld: list[Made] = []
        self.signed: list[Signed] = []
        self.now = TIME
        self.last = 0

    @initialize(
        first=st.lists(
            st.fixed_dictionaries(
                {
                    "kind": kinds, "text": st.integers(0, 5), "parents": st.lists(which, max_size=2), "older": st.lists(which, max_size=1),
                    "odd": odd, "sealed": by, "taint": taints, "at_once": st.sampled_from([True, True, False]),
                }
            ),
            min_size=4, max_size=7,
        )
    )  # fmt: skip
    def begin(self, first: list[dict[str, Any]]) -> None:
        """A few anchors, most of them registered by those who may."""
        for one in first:
            self.write(**one, name=0, by="right")

    # What anybody may do

    @rule(
        kind=kinds, name=st.integers(0, 2), text=st.integers(0, 5),
        parents=st.lists(which, max_size=2), taint=taints, older=st.lists(which, max_size=1),
        odd=odd, sealed=by, by=by, at_once=st.sampled_from([True, True, False]),
    )  # fmt: skip
    def write(self, kind: str, name: int, text: int, parents: list[int], taint: set[str], older: list[int], odd: str, sealed: Any, by: Any, at_once: bool) -> None:  # fmt: skip
        """A new anchor, of one of six texts, from whatever is there; mostly it is registered at once."""
        if len(self.signed) >= MAX_ARTIFACTS:
            return
        start = self.now + (3 * DAY if odd == "later" else 0 * DAY)
        artifact = AnchorArtifact(
            f"n{name}",
            kind,
            f"Text number {text}.",
            start,
            start + (61 if odd == "long" else 30) * DAY,
            parents=self._some(parents),
            taint=tuple(sorted(taint)),
            supersedes=self._older(kind, older),
            fieldprints=tuple(_record(model, SIZES[odd == "large"]) for model in (MODEL, OTHER_MODEL)),
        )
        self.signed.append(_sign(artifact, self._keys(sealed, RIGHT[kind]), RIGHT[kind]))
        if at_once:
            self._append("sign", Registration.of(artifact), by, RIGHT[kind])

    @rule(one=which)
    def renew(self, one: int) -> None:
        """The same words under another digest in the place of an anchor, registered or not; signed and pinned at once."""
        if 0 < len(self.signed) < MAX_ARTIFACTS:
            older = self._pick(one).artifact
            start = older.not_before + timedelta(seconds=len(self.signed))
            newer = replace(older, not_before=start, supersedes=(older.digest,))
            self.signed.append(_sign(newer, RIGHT[newer.kind], RIGHT[newer.kind]))
            self._append("sign", Registration.of(newer), "right", RIGHT[newer.kind])
            made = Promotion(newer.digest, ROOT, MODEL, newer.kind, newer.supersedes)
            self._take(Made("promote", made, (), made.to_entry()), False)

    @rule(
        one=which, by=by, hold=held,
        change=st.sampled_from([""] * 6 + ["kind", "parents", "taint", "text", "supersedes", "validity"]),
    )  # fmt: skip
    def register(self, one: int, by: Any, hold: bool, change: str) -> None:
        """An anchor that is there, once more or for the first time, truthfully or not."""
        if not self.signed:
            return
        chosen = self._waiting(one) if one % 4 else self._pick(one)
        made = Registration.of(chosen.artifact)
        changes: dict[str, Any] = {
            "kind": {"kind": "memory" if made.kind != "memory" else "identity"},
            "parents": {"parents": ()},
            "taint": {"taint": ()},
            "text": {"text_sha256": digest("another text")},
            "supersedes": {"supersedes": ()},
            "validity": {"not_after": made.not_after - DAY},
        }
        made = replace(made, **changes.get(change, {}))
        self._append("sign", made, by, RIGHT[made.kind], hold)

    @rule(
        one=which,
        hold=held,
        change=st.sampled_from([""] * 9 + ["kind", "supersedes", "model", "model", "model"]),
    )
    def promote(self, one: int, hold: bool, change: str) -> None:
        """As an engine does, which signs nothing."""
        if not self.signed:
            return
        known = [signed for signed in self.signed if signed.artifact.digest in self.truth.registered]
        artifact = (known[one // 4 % len(known)] if known and one % 4 else self._pick(one)).artifact
        made = Promotion(artifact.digest, ROOT, MODEL, artifact.kind, artifact.supersedes)
        changes: dict[str, Any] = {
            "kind": {"kind": "identity" if made.kind != "identity" else "memory"},
            "supersedes": {"supersedes": () if made.supersedes else (digest("x"),)},
            "model": {"model": OTHER_MODEL},
        }
        made = replace(made, **changes.get(change, {}))
        self._take(Made("promote", made, (), made.to_entry()), hold)

    @rule(older=which, newer=which, by=by, hold=held)
    def supersede(self, older: int, newer: int, by: Any, hold: bool) -> None:
        if not self.signed:
            return
        first, second = self._pick(older).artifact, self._pick(newer).artifact
        known = [one.artifact for one in self.signed if one.artifact.digest in self.truth.registered]
        if known and older % 4:
            first = known[older // 4 % len(known)]
        alike = [one.artifact for one in self.signed if one.artifact.kind == first.kind]
        if newer % 2:
            second = alike[newer // 2 % len(alike)]
        elif known:
            second = known[newer // 2 % len(known)]
        if first.digest != second.digest:
            made = Supersession(first.digest, second.digest, "better", TIME)
            self._append("supersede", made, by, RIGHT[first.kind], hold)

    @rule(one=which, labels=some_labels, by=by, hold=held)
    def endorse(self, one: int, labels: set[str], by: Any, hold: bool) -> None:
        """Any anchor; or one that names labels itself, for these, and it is registered then."""
        if not self.signed:
            return
        own = one % 4 == 0
        artifact = (self._labelled if own else self._pick)(one).artifact
        chosen = artifact.taint if own and artifact.taint else tuple(sorted(labels))
        made = Endorsement(artifact.digest, chosen, "read", TIME)
        self._append("endorse", made, by, (OWNER, SECOND), hold)
        if own:
            self._append("sign", Registration.of(artifact), "right", RIGHT[artifact.kind])

    @rule(one=which, by=by, hold=held)
    def revoke(self, one: int, by: Any, hold: bool) -> None:
        if self.signed:
            chosen = (self._pick, self._waiting, self._above, self._above)[one % 4](one)
            made = Revocation(chosen.artifact.digest, "lost", TIME)
            self._append("revoke", made, by, (OWNER, SECOND), hold)

    @rule(
        scope=st.sampled_from(["anchor", "kind", "engine", "all"]), one=which, step=st.integers(-1, 2), by=by,
        days=st.none() | st.integers(1, 3), hold=held, action=st.sampled_from(["freeze", "bypass"]),
    )  # fmt: skip
    def override(self, scope: Any, one: int, step: int, by: Any, days: int | None, hold: bool, action: Any) -> None:  # fmt: skip
        if not self.signed:
            return
        artifact = self._pick(one).artifact
        target = {"anchor": artifact.digest, "kind": artifact.kind, "engine": "e1", "all": "*"}[scope]
        number = max(1, self.truth.last_number + step)
        expires = None if days is None else self.now + days * DAY
        made = Override(action, scope, target, number, "an alarm", self.now, expires)
        self._append("override", made, by, (WARDEN,), hold)

    @rule(back=st.integers(0, 3), by=by, hold=held)
    def lift(self, back: int, by: Any, hold: bool) -> None:
        made = Lift(max(1, self.truth.last_number - back), "over", TIME)
        self._append("lift", made, by, (WARDEN,), hold)

    @rule(by=by, hold=held, change=st.sampled_from([""] * 3 + ["root", "count", "behind", "before"]))
    def status(self, by: Any, hold: bool, change: str) -> None:
        size = len(self.entries)
        values: dict[str, Any] = {
            "root": self.truth.root,
            "count": len(self.truth.revoked),
            "size": max(size, 9),
        }
        if size < 9:
            return
        changes: dict[str, dict[str, Any]] = {
            "root": {"root": digest("x")},
            "count": {"count": values["count"] + 1 if values["count"] < 9 else 0},
            "behind": {"size": size + 1},
            "before": {"size": max(values["count"], self.truth.last_size - 1)},
        }
        made = StatusRoot(**(values | changes.get(change, {})), time=self.now, max_age=600)
        self._append("status", made, by, (CLERK,), hold)

    @rule(one=which)
    def release(self, one: int) -> None:
        """What was signed before and held back comes now, in any order."""
        if self.withheld:
            self._take(self.withheld.pop(one % len(self.withheld)), False)

    @rule(one=which)
    def play_again(self, one: int) -> None:
        """An entry that stands in the log already."""
        if self.log:
            self._take(self.log[one % len(self.log)], False)

    @rule(
        noise=st.sampled_from(
            [b"", b"{}", b'{"type":"sign","v":1}', b'{"envelope":"e30=","type":"lift","v":1}']
        )
    )
    def strange_entry(self, noise: bytes) -> None:
        """Bytes that are no event, or none that can be read."""
        self.step()
        known = snapshot(self.registry)
        self._guard(lambda: self.registry.apply(len(self.entries), noise))
        self.entries.append(noise)
        self._expect(snapshot(self.registry) == known, "nothing-changes", repr(noise))

    @rule(days=st.sampled_from([1, 3, 31]), really=st.integers(0, 1))
    def time_passes(self, days: int, really: int) -> None:
        if really == 0:
            self.step()
            self.now += days * DAY
            self.verify_all()

    @rule(one=which, model=st.sampled_from([None, MODEL, OTHER_MODEL, "ee" * 32]))
    def verify_otherwise(self, one: int, model: str | None) -> None:
        """Under a stricter policy than the log was replayed with, and without a log."""
        if self.signed:
            self.step()
            chosen = self._pick(one)
            self.verify(chosen, model, policy=STRICT)
            self.verify(chosen, model, policy=STRICT, stored=True)
            self.verify(chosen, model, stored=True)
            self.verify(chosen, model, policy=STRICT, with_registry=False)
            self.verify(chosen, model, with_registry=False)

    def teardown(self) -> None:
        """The whole log replayed, as a verifier does who was not there."""
        again = self._guard(lambda: registry_package.Registry.replay(self.entries, POLICY_OF_ALL))
        if again is not None:
            self._expect(snapshot(again) == snapshot(self.registry), "replay", "another registry")

    # What is checked

    def step(self) -> None:
        type(self).steps += 1

    def _append(self, kind: str, made: Statement, by: Any, right: Keys, hold: bool = False) -> None:
        """An event signed by whoever `by` says: the right ones, others, or nobody although it says so."""
        keys = self._keys(by, right)
        data = sign_statement(made, keys or right)
        if by == "forged":
            data = _forged(data)
        self._take(Made(kind, made, keys, event_entry(kind, data)), hold)

    def _take(self, made: Made, hold: bool) -> None:
        """The next entry of the log, unless it is held back."""
        self.step()
        if hold:
            self.withheld.append(made)
            return
        index = len(self.entries)
        why = self.truth.refusals(made, index)
        known, count = snapshot(self.registry), self.registry.num_refused
        change = self._guard(lambda: self.registry.apply(index, made.entry))
        self.entries.append(made.entry)
        self.log.append(made)
        if change is not None:
            for name in sorted(why):
                self._expect(False, OF_NAME[name], f"{made.type} believed in spite of {name}")
            self.truth.believe(made)
            self._compare_taint()
            self.verify_all()
            return
        self._expect(snapshot(self.registry) == known, "nothing-changes", made.type)
        door = made.type in ("override", "lift")
        self._expect(bool(why), "door" if door else "liveness", f"{made.type} refused")
        if self.registry.num_refused > count:
            refused = self.registry.refused[-1].why
            self._expect(
                refused in why, "names", f"{made.type} refused for {refused}, not one of {sorted(why)}"
            )

    def _compare_taint(self) -> None:
        for record in self.registry.anchors.values():
            made = record.registration
            if made.anchor in self.truth.registered:
                expected = self.truth.taint(made)
                self._expect(
                    record.taint == expected, "taint", f"{sorted(record.taint)}, not {sorted(expected)}"
                )

    def verify_all(self) -> None:
        for one in self.signed:
            self.verify(one, MODEL)

    def verify(self, one: Signed, model: str | None, *, policy: Any = POLICY_OF_ALL, with_registry: bool = True, stored: bool = False) -> None:  # fmt: skip
        """stored: as in a database, which says under which policy it was filled."""
        artifact = one.artifact
        failed = self.truth.failed_checks(
            artifact, one.keys, policy=policy, now=self.now, model=model, with_registry=with_registry
        )
        failed |= {17} if stored and policy != POLICY_OF_ALL else set()
        view = Stored(self.registry) if stored else self.registry
        registry = view if with_registry else None
        check = self._guard(lambda: _check_of(one.data, policy, self.now, registry, model))
        if check == 0:
            if artifact.kind in ("identity", "policy") and with_registry:
                forbidden = self.truth.taint(Registration.of(artifact)).intersection(
                    policy.kinds[artifact.kind].forbidden_taint
                )
                self._expect(not forbidden, "non-interference", f"{artifact.kind} with {sorted(forbidden)}")
            for number in sorted(failed):
                self._expect(False, OF_CHECK[number], f"{artifact.kind} verified in spite of check {number}")
        elif check is not None:
            self._expect(bool(failed), "liveness", f"{artifact.kind} refused by check {check}")
            self._expect(check in failed, "names", f"refused by check {check}, not one of {sorted(failed)}")

    def _expect(self, holds: bool, invariant: str, what: str) -> None:
        if not holds and invariant in self.watched:
            raise BrokenError(invariant, what)

    def _guard(self, call: Callable[[], Any]) -> Any:
        try:
            return call()
        except BrokenError:
            raise
        except Exception as error:
            self._expect(False, "no-crash", repr(error))
            return None

    # Choosing

    def _pick(self, one: int) -> Signed:
        """Often the one of the last time: what goes wrong, goes wrong with one anchor."""
        if one % 2:
            self.last = one // 2
        return self.signed[self.last % len(self.signed)]

    def _some(self, chosen: list[int]) -> tuple[str, ...]:
        picked = [self._pick(one).artifact.digest for one in chosen] if self.signed else []
        return tuple(sorted(set(picked)))

    def _waiting(self, one: int) -> Signed:
        """One that is not registered and, if possible, whose parents are; or any."""
        known = self.truth.registered
        found = [signed for signed in self.signed if signed.artifact.digest not in known]
        ready = [signed for signed in found if known.keys() >= set(signed.artifact.parents)]
        found = ready or found
        return found[one // 4 % len(found)] if found else self._pick(one)

    def _labelled(self, one: int) -> Signed:
        """One that names a label itself and, if possible, is not registered yet; or any."""
        found = [signed for signed in self.signed if signed.artifact.taint]
        waiting = [signed for signed in found if signed.artifact.digest not in self.truth.registered]
        found = waiting or found
        return found[one // 4 % len(found)] if found else self._pick(one)

    def _above(self, one: int) -> Signed:
        """One that another names as its parent, or any."""
        named = {parent for signed in self.signed for parent in signed.artifact.parents}
        found = [signed for signed in self.signed if signed.artifact.digest in named]
        return found[one // 4 % len(found)] if found else self._pick(one)

    def _older(self, kind: str, chosen: list[int]) -> tuple[str, ...]:
        """Mostly of the same kind."""
        alike = [one.artifact.digest for one in self.signed if one.artifact.kind == kind]
        if alike and chosen and chosen[0] % 4:
            return (alike[chosen[0] // 4 % len(alike)],)
        return self._some(chosen)

    @staticmethod
    def _keys(by: Any, right: Keys) -> Keys:
        """Whose signatures are valid."""
        if by == "forged":
            return ()
        return right if by == "right" else WRONG[by]


def _check_of(data: bytes, policy: Any, now: datetime, registry: Any, model: str | None) -> int:
    """The number of the check that fails, or 0."""
    try:
        verify.verify_anchor(data, policy, now=now, registry=registry, model=model)
    except VerificationError as error:
        return error.check
    return 0


def search(steps: int, *, watched: Collection[str] = INVARIANTS, seed: int = 0) -> tuple[int, BrokenError | None]:  # fmt: skip
    """How many steps were done, and what broke first, if anything did: as many steps as given, or a few more.

    seed: the same one gives the same search.
    """
    chosen = type("Chosen", (Anchors,), {"watched": tuple(watched), "steps": 0})
    round_number = 0
    while chosen.steps < steps:
        chosen_settings = settings(
            max_examples=max(
                5, min(100, (steps - chosen.steps) // 40)
            ),  # the first is the shortest, of no step
            stateful_step_count=60,
            deadline=None,
            database=None,
            phases=[Phase.generate],
            report_multiple_bugs=False,
            suppress_health_check=list(HealthCheck),  # a busy machine is no finding
        )
        chosen._hypothesis_internal_use_seed = seed * 1_000_003 + round_number
        round_number += 1
        try:
            run_state_machine_as_test(chosen, settings=chosen_settings)
        except BrokenError as broken:
            return chosen.steps, broken
    return chosen.steps, None
