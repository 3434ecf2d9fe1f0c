"""Rulings of the gate: what ends, in which order, and what an engine does while nobody answers."""

from datetime import datetime, timedelta
from pathlib import Path

import pytest

from fieldprint.anchor import Override, Revocation
from fieldprint.errors import FieldprintError
from fieldprint.registry.gate import AnchorGate, GatedAnchor, Ruling, Unwatched
from fieldprint.registry.orders import OrdersFile
from tests.registry.world import DAY, POLICY, TIME, anchor, lift, override, replay, revoke, sign

PARENT, CHILD = anchor("parent"), anchor("child", parents=(anchor("parent").anchor,))
USED = GatedAnchor(CHILD.anchor, "memory", TIME + 30 * DAY)
REPREFILL = POLICY.from_bytes(
    POLICY.to_bytes().replace(b"[kinds.memory]\n", b'[kinds.memory]\non_revoke = "reprefill"\n')
)


class Live:
    """A registry that entries come to while a gate watches."""

    def __init__(self, *entries: bytes) -> None:
        self.registry = replay(*entries)
        self.new = True
        self.lost = False

    def add(self, entry: bytes) -> None:
        assert self.registry.apply(self.registry.position, entry) is not None
        self.new = True

    def poll(self) -> bool:
        if self.lost:
            raise FieldprintError("the registry cannot be reached")
        new, self.new = self.new, False
        return new

    def revocation_of(self, anchor: str) -> Revocation | None:
        if self.lost:
            raise FieldprintError("the registry cannot be reached")
        return self.registry.revocation_of(anchor)

    def orders(self) -> list[Override]:
        return list(self.registry.overrides.values())


def short(ruling: Ruling | None) -> tuple[str, str] | None:
    return None if ruling is None else (ruling.action, ruling.reason)


@pytest.mark.parametrize(("policy", "action"), [(POLICY, "stop"), (REPREFILL, "bypass")])
@pytest.mark.parametrize("revoked", [CHILD, PARENT])
def test_a_revocation_of_it_or_of_what_it_comes_from(policy: object, action: str, revoked: object) -> None:
    live = Live(sign(PARENT), sign(CHILD))
    gate = AnchorGate(policy, USED, registry=live, clock=lambda: TIME)  # type: ignore[arg-type]
    assert gate.ruling() is None
    live.add(revoke(revoked))  # type: ignore[arg-type]
    ruling = gate.ruling()
    assert short(ruling) == (action, "revoked")
    assert ruling is not None
    assert "lost" in ruling.why


def test_a_revocation_of_another_anchor_disturbs_nobody() -> None:
    live = Live(sign(PARENT), sign(CHILD), sign(anchor("other")))
    gate = AnchorGate(POLICY, USED, registry=live, clock=lambda: TIME)
    live.add(revoke(anchor("other")))
    assert gate.ruling() is None


@pytest.mark.parametrize(
    ("scope", "target"),
    [("all", "*"), ("anchor", CHILD.anchor), ("kind", "memory"), ("engine", "north")],
)
@pytest.mark.parametrize("place", ["registry", "orders"])
def test_orders_of_every_scope_from_both_places(tmp_path: Path, scope: str, target: str, place: str) -> None:
    live, orders = Live(sign(PARENT), sign(CHILD)), OrdersFile(tmp_path / "orders", POLICY)
    put = live.add if place == "registry" else orders.append
    gate = AnchorGate(POLICY, USED, engine="north", registry=live, orders=orders, clock=lambda: TIME)
    other = AnchorGate(
        POLICY, GatedAnchor("ab" * 32, "policy", TIME + DAY), engine="south", registry=Live(), orders=orders,
        clock=lambda: TIME,
    )  # fmt: skip
    assert gate.ruling() is None
    put(override(1, scope, target, action="bypass"))
    assert short(gate.ruling()) == ("bypass", "bypassed")
    put(override(2, scope, target))
    assert short(gate.ruling()) == ("stop", "frozen")
    concerned = place == "orders" and scope == "all"
    assert (other.ruling() is not None) == concerned
    put(lift(2))
    assert short(gate.ruling()) == ("bypass", "bypassed")
    put(lift(1))
    assert gate.ruling() is None


def test_without_an_anchor_there_is_nothing_to_bypass_and_a_freeze_holds(tmp_path: Path) -> None:
    orders = OrdersFile(tmp_path / "orders", POLICY)
    gate = AnchorGate(POLICY, None, orders=orders, clock=lambda: TIME)
    orders.append(override(1, action="bypass"))
    assert gate.ruling() is None
    orders.append(override(2, action="freeze"))
    assert short(gate.ruling()) == ("stop", "frozen")


def test_orders_that_cannot_be_believed_stop_everything(tmp_path: Path) -> None:
    path = tmp_path / "orders"
    gate = AnchorGate(POLICY, None, orders=OrdersFile(path, POLICY), clock=lambda: TIME)
    assert gate.ruling() is None
    path.write_bytes(b"lift everything\n")
    ruling = gate.ruling()
    assert short(ruling) == ("stop", "frozen")
    assert ruling is not None
    assert "cannot be believed" in ruling.why


def test_an_order_works_while_the_registry_is_out_of_reach(tmp_path: Path) -> None:
    orders, live = OrdersFile(tmp_path / "orders", POLICY), Live(sign(PARENT), sign(CHILD))
    live.lost = True
    gate = AnchorGate(POLICY, USED, registry=live, orders=orders, clock=lambda: TIME)
    orders.append(override(1))
    assert short(gate.ruling()) == ("stop", "frozen")


def test_a_registry_that_is_lost_for_longer_than_the_grace_ends_it() -> None:
    live = Live(sign(PARENT), sign(CHILD))
    patient = AnchorGate(POLICY, USED, registry=live, clock=lambda: TIME)
    strict = AnchorGate(POLICY, USED, registry=live, grace=0, clock=lambda: TIME)
    assert patient.ruling() is None
    assert strict.ruling() is None
    live.lost = True
    assert patient.ruling() is None
    assert short(strict.ruling()) == ("stop", "registry-lost")
    live.lost = False
    assert strict.ruling() is None


def test_a_change_that_could_not_be_read_is_read_later() -> None:
    class Torn(Live):
        torn = True

        def orders(self) -> list[Override]:
            if self.torn:
                raise FieldprintError("the connection was lost")
            return super().orders()

    live = Torn(sign(PARENT), sign(CHILD))
    gate = AnchorGate(POLICY, USED, registry=live, clock=lambda: TIME)
    live.add(override(1))
    assert gate.ruling() is None
    live.torn = False
    assert not live.new
    assert short(gate.ruling()) == ("stop", "frozen")


def test_what_was_heard_before_the_registry_was_lost_still_counts() -> None:
    live = Live(sign(PARENT), sign(CHILD))
    live.add(revoke(CHILD))
    gate = AnchorGate(POLICY, USED, registry=live, clock=lambda: TIME)
    assert short(gate.ruling()) == ("stop", "revoked")
    live.lost = True
    assert short(gate.ruling()) == ("stop", "revoked")


def test_an_anchor_whose_time_ends_while_it_is_used() -> None:
    now = [TIME]

    def clock() -> datetime:
        return now[0]

    gate = AnchorGate(POLICY, USED, registry=Unwatched(replay(sign(PARENT), sign(CHILD))), clock=clock)
    now[0] = TIME + 30 * DAY - timedelta(seconds=1)
    assert gate.ruling() is None
    now[0] = TIME + 30 * DAY
    assert short(gate.ruling()) == ("stop", "expired")
