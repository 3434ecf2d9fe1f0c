"""What is true of the anchors, from who made what and from what: written from docs/formats/events.md, without the registry.

The truth never looks at bytes or signatures. It knows an event as it was made, with the keys that really signed it.
"""

from collections.abc import Iterable
from dataclasses import dataclass, field
from datetime import datetime, timedelta

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from fieldprint.anchor import (
    AnchorArtifact,
    Endorsement,
    Lift,
    Override,
    Policy,
    Registration,
    Revocation,
    Statement,
    StatusRoot,
    Supersession,
)
from fieldprint.registry import Promotion
from tests.registry.world import NAMES
from tests.tlog.naive_status import root as naive_root


@dataclass(frozen=True)
class Made:
    """An event, the keys that signed it, and its entry."""

    type: str
    content: Statement | Promotion
    keys: tuple[Ed25519PrivateKey, ...]
    entry: bytes

    @property
    def names(self) -> frozenset[str]:
        """Of the policy's keys that signed, each once."""
        return frozenset(name for name, key in NAMES.items() if key in self.keys)


@dataclass
class Truth:
    """Everything that was believed, and what follows from it."""

    policy: Policy
    registered: dict[str, Registration] = field(default_factory=dict)
    endorsed: dict[str, set[str]] = field(default_factory=dict)
    revoked: set[str] = field(default_factory=set)
    replaced: dict[tuple[str, str], str] = field(default_factory=dict)
    promoted: set[str] = field(default_factory=set)
    overrides: dict[int, Override] = field(default_factory=dict)
    last_number: int = 0
    last_size: int = 0

    # What follows

    def come_from(self, text: str, parents: Iterable[str], before: list[str]) -> set[str]:
        """The labels of all that such a text comes from, if the anchors `before` are those that were there."""
        labels: dict[str, set[str]] = {}
        for digest in before:
            made = self.registered[digest]
            own = set(made.taint) | set(self.policy.kinds[made.kind].adds_taint)
            sources = [
                other
                for other in labels
                if other in made.parents or self.registered[other].text_sha256 == made.text_sha256
            ]
            labels[digest] = own.union(*(labels[other] for other in sources)) - self.endorsed.get(
                digest, set()
            )
        return set().union(
            *(
                found
                for digest, found in labels.items()
                if digest in parents or self.registered[digest].text_sha256 == text
            )
        )

    def taint(self, made: Registration) -> set[str]:
        """Of an anchor as it says itself, where it stands in the log, or would stand as the next."""
        order = list(self.registered)
        before = order[: order.index(made.anchor)] if made.anchor in order else order
        rule = self.policy.kinds.get(made.kind)
        own = set(made.taint) | set(rule.adds_taint if rule else ())
        found = own | self.come_from(made.text_sha256, made.parents, before)
        return found - self.endorsed.get(made.anchor, set())

    def taken_away(self, digest: str) -> set[str]:
        """The labels that a registered anchor names itself and has no more."""
        made = self.registered.get(digest)
        return set(made.taint) & self.endorsed.get(digest, set()) if made else set()

    def ancestors(self, digest: str) -> set[str]:
        """Of a registered anchor, or none."""
        made = self.registered.get(digest)
        parents = set(made.parents) if made else set()
        return parents.union(*(self.ancestors(parent) for parent in parents))

    def is_replaced(self, digest: str) -> bool:
        return digest in self.registered and (digest, self.registered[digest].kind) in self.replaced

    def unusable(self, digest: str) -> set[str]:
        """Why an anchor can be neither promoted nor take another's place."""
        if digest not in self.registered:
            return {"unknown-anchor"}
        found = {"revoked"} if digest in self.revoked else set()
        found |= {"parent-revoked"} if self.ancestors(digest) & self.revoked else set()
        return found | ({"superseded"} if self.is_replaced(digest) else set())

    # Events

    def unsigned(self, event: Made) -> set[str]:
        """Whether too few of those who may have signed it."""
        match event.content:
            case Registration(kind=kind):
                purposes = [f"kind {kind}"]
            case Revocation():
                purposes = ["revocation"]
            case Endorsement(labels=labels):
                purposes = [f"endorsement {label}" for label in labels]
            case Override() | Lift():
                purposes = ["override"]
            case StatusRoot():
                purposes = ["status"]
            case Supersession(anchor=anchor) if anchor in self.registered:
                purposes = [f"kind {self.registered[anchor].kind}"]
            case _:
                purposes = []
        found = set()
        for purpose in purposes:
            rule = self.policy.signer_rules.get(purpose)
            if rule is None:
                found.add("no-rule")
            elif len(event.names & set(rule.signers)) < rule.threshold:
                found.add("signatures")
        return found

    def refusals(self, event: Made, index: int) -> set[str]:
        """Every name under which the event must be refused at this index; none if it must be believed."""
        found = self.unsigned(event)
        match event.content:
            case Registration() as new:
                found |= self._of_registration(new)
            case Promotion() as new:
                found |= self._of_promotion(new)
            case Supersession() as new:
                found |= self._of_supersession(new)
            case Endorsement(anchor=anchor, labels=labels):
                found |= {"revoked"} if anchor in self.revoked else set()
                made = self.registered.get(anchor)
                found |= {"label"} if made and set(labels) - self.taint(made) else set()
            case Revocation(anchor=anchor):
                found |= {"revoked"} if anchor in self.revoked else set()
            case Override(number=number):
                found |= {"number"} if number <= self.last_number else set()
            case Lift(number=number):
                found |= {"not-in-force"} if number not in self.overrides else set()
            case StatusRoot() as new:
                found |= self._of_status(new, index)
        return found

    def _of_registration(self, new: Registration) -> set[str]:
        found = {"already-registered"} if new.anchor in self.registered else set()
        found |= {"revoked"} if new.anchor in self.revoked else set()
        found |= {"superseded"} if (new.anchor, new.kind) in self.replaced else set()
        for parent in new.parents:
            found |= {"parent-unknown"} if parent not in self.registered else set()
            if parent in self.registered and ({parent} | self.ancestors(parent)) & self.revoked:
                found.add("parent-revoked")
        rule = self.policy.kinds.get(new.kind)
        if rule is not None:
            if new.not_after - new.not_before > timedelta(days=rule.max_age_days):
                found.add("validity")
            if self.taint(new) & set(rule.forbidden_taint):
                found.add("forbidden-taint")
        return found

    def _of_promotion(self, new: Promotion) -> set[str]:
        found = self.unusable(new.anchor)
        made = self.registered.get(new.anchor)
        if made is not None:
            if (new.kind, new.supersedes) != (made.kind, made.supersedes):
                found.add("differs")
            models = self.policy.kinds[made.kind].models
            found |= {"model"} if models and new.model not in models else set()
        return found

    def _of_supersession(self, new: Supersession) -> set[str]:
        found = self.unusable(new.newer) | (self.unusable(new.anchor) - {"parent-revoked"})
        older, newer = self.registered.get(new.anchor), self.registered.get(new.newer)
        if older and newer and older.kind != newer.kind:
            found.add("kind")
        return found

    def _of_status(self, new: StatusRoot, index: int) -> set[str]:
        found = {"size"} if new.size > index or new.size < self.last_size else set()
        found |= {"count"} if new.count != len(self.revoked) else set()
        return found | ({"root"} if new.root != self.root else set())

    @property
    def root(self) -> str:
        """Over all revoked anchors."""
        return naive_root({bytes.fromhex(digest) for digest in self.revoked}).hex()

    def believe(self, event: Made) -> None:
        """Take it for true."""
        match event.content:
            case Registration() as new:
                self.registered.setdefault(new.anchor, new)
            case Promotion(anchor=anchor):
                made = self.registered.get(anchor)
                if made is not None and anchor not in self.promoted:
                    for older in made.supersedes:
                        self.replaced.setdefault((older, made.kind), anchor)
                self.promoted.add(anchor)
            case Supersession(anchor=anchor, newer=newer):
                if newer in self.registered:
                    self.replaced.setdefault((anchor, self.registered[newer].kind), newer)
            case Endorsement(anchor=anchor, labels=labels):
                self.endorsed.setdefault(anchor, set()).update(labels)
            case Revocation(anchor=anchor):
                self.revoked.add(anchor)
            case Override(number=number) as new:
                self.last_number = max(number, self.last_number)
                self.overrides[number] = new
            case Lift(number=number):
                self.overrides.pop(number, None)
            case StatusRoot(size=size):
                self.last_size = max(size, self.last_size)

    # Verification

    def failed_checks(
        self,
        artifact: AnchorArtifact,
        keys: tuple[Ed25519PrivateKey, ...],
        *,
        policy: Policy,
        now: datetime,
        model: str | None,
        with_registry: bool = True,
    ) -> set[int]:
        """The numbers of all checks of `verify_anchor` that must fail."""
        rule = policy.kinds.get(artifact.kind)
        if rule is None:
            return {3}
        names = {name for name in rule.signers if NAMES[name] in keys}
        longest = max((record.num_tokens for record in artifact.fieldprints), default=0)
        own = set(artifact.taint) & set(rule.forbidden_taint)
        says = {
            4: len(names) < rule.threshold,
            5: bool(own - self.taken_away(artifact.digest) if with_registry else own),
            6: not artifact.not_before <= now < artifact.not_after
            or artifact.not_after - artifact.not_before > timedelta(days=rule.max_age_days),
            7: longest > rule.max_tokens,
            10: model is not None and artifact.record_for(model) is None,
            14: model is not None and bool(rule.models) and model not in rule.models,
        }
        if with_registry:
            digest, made = artifact.digest, Registration.of(artifact)
            says |= {
                8: digest in self.revoked,
                9: (digest, artifact.kind) in self.replaced,
                11: self.registered.get(digest) != made,
                12: bool(self.taint(made) & set(rule.forbidden_taint)),
                13: bool(self.ancestors(digest) & self.revoked),
                15: any(
                    (order.expires is None or now < order.expires)
                    and (order.scope, order.target)
                    in (("all", "*"), ("kind", artifact.kind), ("anchor", digest))
                    for order in self.overrides.values()
                ),
            }
        elif policy.status is not None:
            says[16] = True
        return {number for number, holds in says.items() if holds}
