"""The state of the registry: `Registry.apply` believes an event, or refuses it with a name."""

from collections import Counter, deque
from collections.abc import Iterable
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Protocol

from fieldprint.anchor.policy import Policy
from fieldprint.anchor.statements import (
    Endorsement,
    Lift,
    Override,
    Registration,
    Revocation,
    Statement,
    StatusRoot,
    Supersession,
    strongest,
)
from fieldprint.registry.events import Event, EventError, Promotion, check_kind_signers
from fieldprint.registry.lineage import AnchorRecord, Lineage
from fieldprint.registry.reading import Reading, read_entry
from fieldprint.tlog.status import StatusTree

MAX_REFUSED = 1000


@dataclass(frozen=True, slots=True)
class Refused:
    """An event that changed nothing.

    why: malformed, no-rule, signatures, already-registered, revoked, superseded, parent-unknown, parent-revoked, validity,
    forbidden-taint, unknown-anchor, label, differs, kind, model, number, not-in-force, size, count or root. what: in
    words.
    """

    index: int
    type: str
    why: str
    what: str


@dataclass(frozen=True, slots=True)
class Change:
    """An event that was believed: its place, what it says, and the registered anchors that it changed."""

    index: int
    type: str
    content: Statement | Promotion
    anchors: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Standing:
    """What a registry says of one anchor at one moment: all that `verify_anchor` asks.

    registration, taint, revoked_ancestor: of its record; None and empty if it is not registered. revocation: whether
    registered or not. newer: who superseded it for its kind. override: in force on it, its kind or everything.
    policy: digest of the one that a database was filled under, "" before that; None where the caller replayed with his own.
    """

    registration: Registration | None
    taint: frozenset[str]
    revoked_ancestor: str | None
    revocation: Revocation | None
    newer: str | None
    override: Override | None
    policy: str | None = None


class RegistryView(Protocol):
    """A registry, replayed in memory or stored in a database, as far as `verify_anchor` needs it."""

    def standing(self, anchor: str, kind: str, now: datetime) -> Standing:
        """What becomes of an anchor of this kind at this time."""


@dataclass(slots=True)
class Registry:
    """What became of every anchor, after all entries up to `position`.

    Args:
        policy: whose signatures count, for what.

    revoked: by digest, whether registered or not. superseded: (digest, kind of the newer anchor) to the newer anchor's
    digest. overrides: by number, those that were not lifted. status: the last status root, and the index of its entry.
    status_tree: over the revoked anchors. believed: how many events, by type.
    refused: the last thousand; `num_refused` counts all.
    """

    policy: Policy
    position: int = 0
    revoked: dict[str, Revocation] = field(default_factory=dict)
    superseded: dict[tuple[str, str], str] = field(default_factory=dict)
    overrides: dict[int, Override] = field(default_factory=dict)
    status: tuple[int, StatusRoot] | None = None
    believed: Counter[str] = field(default_factory=Counter)
    refused: deque[Refused] = field(default_factory=lambda: deque(maxlen=MAX_REFUSED))
    num_refused: int = 0
    status_tree: StatusTree = field(default_factory=StatusTree)
    _lineage: Lineage = field(default_factory=Lineage)
    _last_number: int = 0

    def __post_init__(self) -> None:
        self._lineage.added = {kind: frozenset(rule.adds_taint) for kind, rule in self.policy.kinds.items()}

    @classmethod
    def replay(cls, entries: Iterable[bytes], policy: Policy) -> "Registry":
        """The registry after all entries of a log, from the first on."""
        registry = cls(policy)
        for index, entry in enumerate(entries):
            registry.apply(index, entry)
        return registry

    @property
    def anchors(self) -> dict[str, AnchorRecord]:
        """The registered anchors by digest, in the order of registration."""
        return self._lineage.records

    @property
    def tainted_by_revocation(self) -> list[str]:
        """The registered anchors with a revoked ancestor, in the order of registration."""
        return [digest for digest, record in self.anchors.items() if record.revoked_ancestor is not None]

    @property
    def last_number(self) -> int:
        """The number of the last override, lifted or not; 0 before the first."""
        return self._last_number

    def revocation_of(self, anchor: str) -> Revocation | None:
        """The revocation of the anchor, or of one that it comes from."""
        record = self.anchors.get(anchor)
        above = None if record is None else record.revoked_ancestor
        return self.revoked.get(anchor) or (None if above is None else self.revoked[above])

    def override_on(
        self, now: datetime, *, anchor: str | None = None, kind: str | None = None, engine: str | None = None
    ) -> Override | None:
        """The override in force on this anchor, kind or engine: a freeze before a bypass, then the newest."""
        return strongest(self.overrides.values(), now, anchor=anchor, kind=kind, engine=engine)

    def taint_of(self, new: Registration) -> frozenset[str]:
        """The labels that an anchor has, or would have if it were registered now.

        Raises:
            EventError: a parent is not registered; then nobody knows.
        """
        record = self.anchors.get(new.anchor)
        if record is not None:
            return record.taint
        for parent in new.parents:
            if parent not in self.anchors:
                raise EventError("parent-unknown", f"the parent {parent[:16]} is not registered")
        return self._lineage.taint_of(new)

    def standing(self, anchor: str, kind: str, now: datetime) -> Standing:
        """What is said of an anchor of this kind at this time."""
        record = self.anchors.get(anchor)
        return Standing(
            registration=None if record is None else record.registration,
            taint=frozenset() if record is None else record.taint,
            revoked_ancestor=None if record is None else record.revoked_ancestor,
            revocation=self.revoked.get(anchor),
            newer=self.superseded.get((anchor, kind)),
            override=self.override_on(now, anchor=anchor, kind=kind),
        )

    def restore(
        self,
        position: int,
        registrations: Iterable[tuple[int, Registration]],
        endorsements: Iterable[tuple[str, tuple[str, ...]]],
        promotions: Iterable[tuple[str, int]],
        revocations: Iterable[Revocation],
        last_number: int,
    ) -> None:
        """Take in what was believed before, each in the order of the log; `superseded` and the others are set directly.

        Taint and revoked ancestors are computed anew: with all endorsements known before, one pass over the registrations
        gives what the log's order gave, because taint follows from the formula and not from the order of endorsing.
        """
        self.position, self._last_number = position, last_number
        for anchor, labels in endorsements:
            self._lineage.endorse(anchor, labels)
        for index, registration in registrations:
            record = self._lineage.add(index, registration)
            record.superseded_by = self.superseded.get((registration.anchor, registration.kind))
        for anchor, index in promotions:
            self.anchors[anchor].promotions.append(index)
        for revocation in revocations:
            self._revoke(revocation)

    def apply(self, index: int, entry: bytes) -> Change | None:
        """Believe the log's entry at `index`, or change nothing: the one place where that is decided.

        None for an entry that is no event (passed over), and for one that is refused (kept in `refused`).

        Raises:
            ValueError: an entry at this index or behind it was applied before.
        """
        return self.believe(index, read_entry(entry, self.policy))

    def believe(self, index: int, read: Reading) -> Change | None:
        """As `apply`, of an entry that `read_entry` has read with this registry's policy."""
        if index < self.position:
            raise ValueError(f"index {index} was applied before; the next is {self.position}")
        self.position = index + 1
        if read.type is None:
            return None
        refused = read.refused
        if read.event is not None:
            try:
                anchors = self._believe(index, read.event)
                self.believed[read.type] += 1
                return Change(index, read.type, read.event.content, tuple(anchors))
            except EventError as error:
                refused = (error.why, str(error))
        why, what = refused or ("malformed", "it was not read")
        self.refused.append(Refused(index, read.type, why, what))
        self.num_refused += 1
        return None

    def _believe(self, index: int, event: Event) -> list[str]:
        """Check first, then change; gives the registered anchors that changed."""
        match event.content:
            case Promotion():
                return self._promote(index, event.content)
            case Registration():
                return self._register(index, event.content)
            case Supersession():
                return self._supersede(event, event.content)
            case Endorsement():
                return self._endorse(event.content)
            case Revocation():
                return self._revoke(event.content)
            case Override():
                return self._override(event.content)
            case Lift():
                if self.overrides.pop(event.content.number, None) is None:
                    raise EventError("not-in-force", f"no override {event.content.number} is in force")
                return []
            case StatusRoot():
                return self._status(index, event.content)

    def _register(self, index: int, new: Registration) -> list[str]:
        if new.anchor in self.anchors:
            raise EventError("already-registered", "the anchor is registered already")
        if new.anchor in self.revoked:
            raise EventError("revoked", "the anchor was revoked before it was registered")
        if (new.anchor, new.kind) in self.superseded:
            raise EventError("superseded", "the anchor was superseded before it was registered")
        for parent in new.parents:
            record = self.anchors.get(parent)
            if record is None:
                raise EventError("parent-unknown", f"the parent {parent[:16]} is not registered")
            if record.revocation is not None or record.revoked_ancestor is not None:
                raise EventError("parent-revoked", f"the parent {parent[:16]}, or one of its own, is revoked")
        rule = self.policy.kinds[new.kind]
        if new.not_after - new.not_before > timedelta(days=rule.max_age_days):
            raise EventError(
                "validity", f"it is valid for longer than the {rule.max_age_days} days of the policy"
            )
        forbidden = sorted(self.taint_of(new).intersection(rule.forbidden_taint))
        if forbidden:
            raise EventError(
                "forbidden-taint",
                f"its taint holds {', '.join(forbidden)}, which {new.kind} must not have",
                remedy=self.policy.endorsing(new.anchor, forbidden),
            )
        self._lineage.add(index, new)
        return [new.anchor]

    def _usable(self, anchor: str, what: str) -> AnchorRecord:
        """The record of an anchor that is registered, and neither revoked nor superseded, nor of a revoked ancestor."""
        record = self.anchors.get(anchor)
        if record is None:
            raise EventError("unknown-anchor", f"{what} is not registered")
        if record.revocation is not None:
            raise EventError("revoked", f"{what} is revoked")
        if record.revoked_ancestor is not None:
            raise EventError("parent-revoked", f"an ancestor of {what} is revoked")
        if record.superseded_by is not None:
            raise EventError("superseded", f"{what} is superseded")
        return record

    def _promote(self, index: int, promotion: Promotion) -> list[str]:
        """A promotion has no time of its own, so it cannot be compared with a validity; `verify_anchor` does that."""
        record = self._usable(promotion.anchor, "the promoted anchor")
        registered = record.registration
        if (promotion.kind, promotion.supersedes) != (registered.kind, registered.supersedes):
            raise EventError("differs", "the promotion says another kind or lineage than the registration")
        models = self.policy.kinds[registered.kind].models
        if models and promotion.model not in models:
            raise EventError("model", f"the policy does not allow the model {promotion.model[:16]}")
        changed = [promotion.anchor]
        if not record.promotions:
            for older in registered.supersedes:
                changed += self._replace(older, registered)
        record.promotions.append(index)
        return changed

    def _replace(self, older: str, newer: Registration) -> list[str]:
        """`older` is superseded for anchors of the newer's kind, registered or not yet."""
        self.superseded.setdefault((older, newer.kind), newer.anchor)
        record = self.anchors.get(older)
        if record is None or record.registration.kind != newer.kind or record.superseded_by is not None:
            return []
        record.superseded_by = newer.anchor
        return [older]

    def _supersede(self, event: Event, new: Supersession) -> list[str]:
        """The newer anchor is not superseded itself: so whoever follows `superseded_by` comes to an end."""
        older = self.anchors.get(new.anchor)
        if older is None:
            raise EventError("unknown-anchor", "the superseded anchor is not registered")
        check_kind_signers(event, self.policy, older.registration.kind)
        if older.revocation is not None:
            raise EventError("revoked", "the superseded anchor is revoked")
        if older.superseded_by is not None:
            raise EventError("superseded", "the anchor is superseded already")
        newer = self._usable(new.newer, "the newer anchor").registration
        if newer.kind != older.registration.kind:
            raise EventError(
                "kind", f"an anchor of kind {newer.kind} supersedes none of kind {older.registration.kind}"
            )
        return self._replace(new.anchor, newer)

    def _revoke(self, new: Revocation) -> list[str]:
        if new.anchor in self.revoked:
            raise EventError("revoked", "the anchor is revoked already")
        self.revoked[new.anchor] = new
        self.status_tree.add(bytes.fromhex(new.anchor))
        record = self.anchors.get(new.anchor)
        if record is None:
            return []
        record.revocation = new
        return [new.anchor, *self._lineage.revoked(new.anchor)]

    def _endorse(self, new: Endorsement) -> list[str]:
        """Of an anchor that is not registered nobody knows the labels; of one that is, they never become more."""
        if new.anchor in self.revoked:
            raise EventError("revoked", "the endorsed anchor is revoked")
        record = self.anchors.get(new.anchor)
        missing = [] if record is None else sorted(set(new.labels) - record.taint)
        if missing:
            raise EventError("label", f"the anchor does not have {', '.join(missing)}, or has it no more")
        changed = self._lineage.endorse(new.anchor, new.labels)
        registered = [new.anchor] if new.anchor in self.anchors else []  # its taint may be what it was
        return list(dict.fromkeys(registered + changed))

    def _override(self, new: Override) -> list[str]:
        if new.number <= self._last_number:
            raise EventError("number", f"its number is {new.number}, and {self._last_number} was used before")
        self._last_number = new.number
        self.overrides[new.number] = new
        return []

    def _status(self, index: int, new: StatusRoot) -> list[str]:
        """One that misses a revocation in front of it says too little, and its writer has to make another."""
        if new.size > index or (self.status is not None and new.size < self.status[1].size):
            raise EventError(
                "size", "it counts entries that stand behind it, or fewer than the status root before"
            )
        if new.count != len(self.revoked):
            raise EventError(
                "count", f"it counts {new.count} revoked anchors, and {len(self.revoked)} are revoked"
            )
        if bytes.fromhex(new.root) != self.status_tree.root:
            raise EventError("root", "its root is not the one over the revoked anchors")
        self.status = (index, new)
        return []
