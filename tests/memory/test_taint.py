"""Taint never shrinks: no sequence of adding, deriving, labelling, deleting, searching and packing loses a label.

A model that is nothing but the definition says which labels each memory must have; the store may have no fewer.
"""

from dataclasses import replace
from datetime import timedelta
from itertools import count
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import ClassVar

import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    Bundle,
    RuleBasedStateMachine,
    initialize,
    invariant,
    rule,
    run_state_machine_as_test,
)

from fieldprint.errors import CapacityError
from fieldprint.memory import Memory, MemoryStore, naive, pack, unpack
from tests.memory.stores import TIME, memory, open_store
from tests.postgres import PostgresServer

TAINT = st.sets(st.sampled_from(["untrusted", "web", "pii", "bulk"]), max_size=2)


class TaintMachine(RuleBasedStateMachine):
    """Operations on a store, beside the definition of what its labels must be."""

    server: ClassVar[PostgresServer | None] = None
    memories = Bundle("memories")

    @initialize()
    def open(self) -> None:
        self.folder = TemporaryDirectory()
        self.url = self.server.create_database() if self.server else str(Path(self.folder.name) / "memory.db")
        self.store: MemoryStore = open_store(self.url)
        self.own: dict[str, set[str]] = {}
        self.parents: dict[str, tuple[str, ...]] = {}
        self.known: dict[str, Memory] = {}
        self.deleted: set[str] = set()
        self.anchors: dict[str, set[str]] = {}
        self.numbers = count()

    def teardown(self) -> None:
        if hasattr(self, "store"):
            self.store.close()
            if self.server:
                self.server.drop_database(self.url)
            self.folder.cleanup()

    def remember(self, stored: Memory, taint: set[str]) -> str:
        same = [key for key, each in self.known.items() if each.text == stored.text]
        earlier = set().union(*(naive.labels(key, self.own, self.parents) for key in same), set())
        self.own.setdefault(stored.id, set()).update(taint, earlier)
        self.parents[stored.id] = stored.parents
        self.known[stored.id] = stored
        self.deleted.discard(stored.id)
        return stored.id

    @rule(
        target=memories,
        taint=TAINT,
        kind=st.sampled_from(["memory", "assertion", "observation"]),
        again=st.integers(0, 3),
    )
    def add(self, taint: set[str], kind: str, again: int) -> str:
        """Some texts come again, from another time and with other labels."""
        text = f"text {again}" if again else f"new {next(self.numbers)}"
        made = memory(text, *taint, kind=kind, age_days=next(self.numbers) % 3)
        return self.remember(self.store.add(made), taint)

    @rule(
        target=memories,
        of=st.lists(memories, min_size=1, max_size=3),
        taint=TAINT,
        anchored=st.booleans(),
        anchor=TAINT,
    )
    def derive(self, of: list[str], taint: set[str], anchored: bool, anchor: set[str]) -> str:
        anchors: dict[str, set[str]] = {}
        if anchored:
            digest = f"{next(self.numbers):064x}"
            self.own[digest] = anchor
            anchors = {digest: anchor}
        stored = self.store.derive(
            f"derived {next(self.numbers)}",
            [*of, *anchors],
            source="test",
            time=TIME,
            taint=taint,
            anchors=anchors,
        )
        return self.remember(stored, taint)

    @rule(which=memories, taint=TAINT)
    def label(self, which: str, taint: set[str]) -> None:
        if which not in self.deleted:
            self.store.add_labels(which, taint)
            self.own[which] |= taint

    @rule(which=memories)
    def delete(self, which: str) -> None:
        assert self.store.delete(which) == (which not in self.deleted)
        self.deleted.add(which)

    @rule(which=memories, taint=TAINT)
    def add_again(self, which: str, taint: set[str]) -> None:
        bare = replace(self.known[which], taint=tuple(sorted(taint)))
        self.remember(self.store.add(bare), taint)

    @rule(asked=st.integers(0, 3), forbidden=TAINT, k=st.integers(1, 8))
    def search(self, asked: int, forbidden: set[str], k: int) -> None:
        found = self.store.search(f"text {asked}", k, forbidden=forbidden)
        must = {
            key: naive.labels(key, self.own, self.parents) for key in self.known if key not in self.deleted
        }
        assert len(found) == min(k, sum(forbidden.isdisjoint(labels) for labels in must.values()))
        for each in found:
            assert must[each.memory.id] <= set(each.memory.taint)
            assert forbidden.isdisjoint(each.memory.taint)

    @rule(asked=st.integers(0, 3), budget=st.integers(10, 400))
    def pack(self, asked: int, budget: int) -> None:
        found = self.store.search(f"text {asked}", 8)
        try:
            packed = pack(
                self.store,
                found,
                budget,
                len,
                name="m",
                now=TIME,
                lifetime=timedelta(days=1),
                is_anchor=self.own.__contains__,
            )
        except CapacityError:
            return
        assert packed.tokens == len(packed.candidate.text) <= budget
        must = frozenset().union(
            *(naive.labels(each.memory.id, self.own, self.parents) for each in packed.memories)
        )
        assert must <= set(packed.candidate.taint)
        assert must <= {label for each in unpack(packed.candidate.text) for label in each.taint}

    @invariant()
    def every_memory_has_every_label(self) -> None:
        if not hasattr(self, "store"):
            return
        stored = {each.id: each for each in self.store.iterate()}
        assert stored.keys() == self.known.keys() - self.deleted
        for key, each in stored.items():
            assert set(each.taint) == naive.labels(key, self.own, self.parents)


SETTINGS = settings(deadline=None, suppress_health_check=list(HealthCheck))


def test_taint_never_shrinks() -> None:
    run_state_machine_as_test(
        TaintMachine, settings=settings(SETTINGS, max_examples=25, stateful_step_count=20)
    )  # type: ignore[no-untyped-call]


def test_taint_never_shrinks_on_postgresql(pgvector_server: PostgresServer) -> None:
    machine = type("OnPostgres", (TaintMachine,), {"server": pgvector_server})
    run_state_machine_as_test(machine, settings=settings(SETTINGS, max_examples=5, stateful_step_count=15))  # type: ignore[no-untyped-call]


@pytest.mark.parametrize("check", ["parents", "the row's own", "the same text", "descendants"])
def test_the_machine_finds_each_check_that_is_taken_out(check: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the triggers, which refuse most of these a second time."""
    from fieldprint.memory import labels, schema

    monkeypatch.setattr(schema, "_sqlite_triggers", list)
    if check == "parents":
        whole = labels.inherited

        def forgets(connection, batch, anchors):  # type: ignore[no-untyped-def]
            found = whole(connection, batch, anchors)
            return {each.id: each.taint if each.parents else found[each.id] for each in batch}

        monkeypatch.setattr("fieldprint.memory.store.inherited", forgets)
    elif check == "the row's own":
        monkeypatch.setattr(
            "fieldprint.memory.store.spread",
            lambda connection, grown: labels.spread(connection, {}) if len(grown) else {},
        )
    elif check == "the same text":
        monkeypatch.setattr(labels, "_labels_of_texts", lambda connection, digests: {})
    else:
        monkeypatch.setattr(labels, "_children", lambda connection, ids: {})
    hunt = settings(
        SETTINGS,
        max_examples=100,
        stateful_step_count=20,
        phases=(Phase.generate,),
        database=None,
        derandomize=True,
    )
    with pytest.raises(AssertionError):
        run_state_machine_as_test(TaintMachine, settings=hunt)  # type: ignore[no-untyped-call]
