"""Lineage: who descends from whom, and the taint and the revocations that come down with it.

Sets of labels are ordered by inclusion: a lattice with the empty set at its bottom, whose join is the union.
The effective taint of an anchor a is

    taint(a) = (own(a) | added(kind of a) | taint of each parent | taint of each anchor with the same text that was
                registered before a)  -  endorsed(a)

so a text does not lose its labels by being signed anew, and an endorsement takes away what it names, at a and,
through a, at what descends from a. Each term comes from anchors that were registered before a: there are no cycles,
and in the order of registration one pass computes everything. `tests/registry/naive.py` writes the formula down as
it stands here.

What earlier anchors of one text hand on is kept as one growing set, `carried`, so that a text which is registered n
times costs n unions and not n squared.
"""

import heapq
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Literal

from fieldprint.anchor.statements import Registration, Revocation

State = Literal["registered", "active", "superseded", "revoked"]
NONE: frozenset[str] = frozenset()


@dataclass(slots=True)
class AnchorRecord:
    """What became of a registered anchor.

    index: of its registration in the log. promotions: indexes of its promotions. endorsed: labels that were taken away.
    taint: the labels that it has, all told. carried: what it and earlier anchors of its text hand on to later ones.
    revoked_ancestor: one that was revoked, or None.
    """

    registration: Registration
    index: int
    taint: frozenset[str] = NONE
    endorsed: frozenset[str] = NONE
    carried: frozenset[str] = NONE
    promotions: list[int] = field(default_factory=list)
    superseded_by: str | None = None
    revocation: Revocation | None = None
    revoked_ancestor: str | None = None

    @property
    def state(self) -> State:
        """Registered, active (promoted), superseded or revoked; the last that applies."""
        if self.revocation is not None:
            return "revoked"
        if self.superseded_by is not None:
            return "superseded"
        return "active" if self.promotions else "registered"


@dataclass(slots=True)
class Lineage:
    """The registered anchors, as a graph that grows only downwards.

    added: by kind, the labels that each anchor of it has. records: by digest, in the order of registration.
    """

    added: Mapping[str, frozenset[str]] = field(default_factory=dict)
    records: dict[str, AnchorRecord] = field(default_factory=dict)
    _children: dict[str, list[str]] = field(default_factory=lambda: defaultdict(list))
    _newest_of_text: dict[str, str] = field(default_factory=dict)
    _next_of_text: dict[str, str] = field(default_factory=dict)
    _before_of_text: dict[str, str] = field(default_factory=dict)
    _endorsed: dict[str, frozenset[str]] = field(default_factory=dict)

    def taint_of(self, registration: Registration) -> frozenset[str]:
        """The effective taint that the anchor would have if it were registered now."""
        before = self._newest_of_text.get(registration.text_sha256)
        return self._taint(registration, before)

    def add(self, index: int, registration: Registration) -> AnchorRecord:
        """The record of a newly registered anchor; its parents are registered."""
        digest, text = registration.anchor, registration.text_sha256
        before = self._newest_of_text.get(text)
        record = AnchorRecord(registration, index, endorsed=self._endorsed.get(digest, NONE))
        record.taint = self._taint(registration, before)
        record.carried = record.taint | self._carried(before)
        if before is not None:
            self._next_of_text[before] = digest
            self._before_of_text[digest] = before
        self._newest_of_text[text] = digest
        for parent in registration.parents:
            self._children[parent].append(digest)
        self.records[digest] = record
        return record

    def endorse(self, anchor: str, labels: Iterable[str]) -> list[str]:
        """Take the labels away at the anchor, registered or not yet; gives whose taint changed, in order."""
        self._endorsed[anchor] = self._endorsed.get(anchor, NONE).union(labels)
        record = self.records.get(anchor)
        if record is None:
            return []
        record.endorsed = self._endorsed[anchor]
        return self._compute_from(anchor)

    def revoked(self, anchor: str) -> list[str]:
        """Mark all who descend from the anchor; gives those who had no revoked ancestor yet, in order."""
        found = []
        waiting = list(self._children.get(anchor, ()))
        while waiting:
            digest = waiting.pop()
            record = self.records[digest]
            if record.revoked_ancestor is None:
                record.revoked_ancestor = anchor
                found.append(digest)
                waiting += self._children.get(digest, ())
        return sorted(found, key=lambda digest: self.records[digest].index)

    def _taint(self, registration: Registration, before: str | None) -> frozenset[str]:
        inherited = frozenset(registration.taint) | self.added.get(registration.kind, NONE)
        inherited |= self._carried(before)
        for parent in registration.parents:
            inherited |= self.records[parent].taint
        return inherited - self._endorsed.get(registration.anchor, NONE)

    def _carried(self, before: str | None) -> frozenset[str]:
        return NONE if before is None else self.records[before].carried

    def _compute_from(self, anchor: str) -> list[str]:
        """Compute the anchor anew, and whoever depends on what changed; an earlier one always before a later one."""
        found = []
        queue = [(self.records[anchor].index, anchor)]
        done: set[str] = set()
        while queue:
            _, digest = heapq.heappop(queue)
            if digest in done:
                continue
            done.add(digest)
            record = self.records[digest]
            before = self._before_of_text.get(digest)
            taint = self._taint(record.registration, before)
            carried = taint | self._carried(before)
            affected: list[str] = []
            if taint != record.taint:
                found.append(digest)
                affected += self._children.get(digest, ())
            if carried != record.carried and digest in self._next_of_text:
                affected.append(self._next_of_text[digest])
            record.taint, record.carried = taint, carried
            for other in affected:
                heapq.heappush(queue, (self.records[other].index, other))
        return found
