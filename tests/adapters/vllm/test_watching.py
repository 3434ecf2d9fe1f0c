"""One poll for many gates: each hears of every change, and of one registry while another is out of reach."""

from collections.abc import Sequence
from datetime import UTC, datetime

import pytest

from fieldprint.adapters.vllm.watching import WatchedOnce
from fieldprint.anchor.statements import Override, Revocation
from fieldprint.errors import FieldprintError

ANCHOR = "5e" * 32
TIME = datetime(2026, 1, 1, tzinfo=UTC)


class Source:
    """A registry that can be told things, and lost."""

    def __init__(self) -> None:
        self.revocation: Revocation | None = None
        self.changed = self.lost = False

    def poll(self) -> bool:
        if self.lost:
            raise FieldprintError("the database cannot be reached")
        changed, self.changed = self.changed, False
        return changed

    def revocation_of(self, anchor: str) -> Revocation | None:
        assert not self.lost
        return self.revocation

    def orders(self) -> Sequence[Override]:
        assert not self.lost
        return ()

    def revoke(self) -> None:
        self.revocation, self.changed = Revocation(ANCHOR, "a test", TIME), True


def test_every_gate_hears_of_a_change_once() -> None:
    source = Source()
    shared = WatchedOnce(source)
    views = [shared.view(), shared.view()]
    shared.look()
    assert [view.poll() for view in views] == [True, True]  # they have read nothing yet
    assert [view.poll() for view in views] == [False, False]
    source.revoke()
    shared.look()
    assert [view.poll() for view in views] == [True, True]
    assert all(view.revocation_of(ANCHOR) for view in views)
    shared.look()
    assert [view.poll() for view in views] == [False, False]


def test_a_revocation_counts_while_the_other_registry_is_lost() -> None:
    log, database = Source(), Source()
    shared = WatchedOnce(log, database)
    view = shared.view()
    shared.look()
    view.poll()
    database.lost = True
    log.revoke()
    shared.look()
    assert view.poll()
    assert view.revocation_of(ANCHOR)
    shared.look()
    with pytest.raises(FieldprintError, match="reached"):
        view.poll()


def test_what_a_lost_registry_said_stays_in_force() -> None:
    log, database = Source(), Source()
    shared = WatchedOnce(log, database)
    view = shared.view()
    database.revoke()
    shared.look()
    assert view.poll() and view.revocation_of(ANCHOR)
    database.lost = True
    log.changed = True
    shared.look()
    assert view.poll() and view.revocation_of(ANCHOR)
