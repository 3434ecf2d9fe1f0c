"""The gate of a running engine: whether it may go on under its anchor, asked at every step boundary.

What can end it, the strongest first:

1. an order to freeze, of the file or of the registry, on the anchor, its kind, this engine, or everything; also a file of
   orders that cannot be believed;
2. an order to bypass, of either;
3. a revocation of the anchor or of one that it comes from, and the end of its validity: stop or go on without it, as its
   kind's `on_revoke` says;
4. a registry that cannot be read for longer than the grace: the same.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Literal, Protocol

from fieldprint.anchor.artifact import format_time
from fieldprint.anchor.policy import Policy
from fieldprint.anchor.statements import Override, Revocation, strongest
from fieldprint.errors import FieldprintError
from fieldprint.registry.orders import OrdersFile
from fieldprint.registry.state import Registry

GRACE = 60.0  # seconds that a registry may be out of reach


@dataclass(frozen=True, slots=True)
class Ruling:
    """What must become of generation: `stop`, or `bypass` to go on without the anchor.

    reason: a short name: frozen, bypassed, revoked, expired or registry-lost. why: in words.
    """

    action: Literal["stop", "bypass"]
    reason: str
    why: str


class Watched(Protocol):
    """A registry that may change while an engine runs. What is not `poll` is read only when that says so."""

    def poll(self) -> bool:
        """Whether it may have changed since this was last asked; quick enough for every step.

        Raises:
            FieldprintError: it cannot be reached.
        """

    def revocation_of(self, anchor: str) -> Revocation | None:
        """The revocation of the anchor, or of one that it comes from. Raises as `poll`."""

    def orders(self) -> Sequence[Override]:
        """The overrides that were not lifted. Raises as `poll`."""


@dataclass(frozen=True, slots=True)
class Unwatched:
    """What a registry says of itself, for an engine that nobody tells of changes."""

    registry: Registry

    def poll(self) -> bool:
        """Never."""
        return False

    def revocation_of(self, anchor: str) -> Revocation | None:
        """The revocation of the anchor, or of one that it comes from."""
        return self.registry.revocation_of(anchor)

    def orders(self) -> Sequence[Override]:
        """The overrides that were not lifted."""
        return tuple(self.registry.overrides.values())


@dataclass(frozen=True, slots=True)
class GatedAnchor:
    """What a gate must know of the anchor in use."""

    digest: str
    kind: str
    not_after: datetime


class AnchorGate:
    """Rulings on one anchor in one engine.

    Args:
        policy: for `on_revoke` of the anchor's kind.
        anchor: that is in use, or None: then only orders on the engine and on everything count.
        engine: the engine's name, for orders of scope `engine`.
        registry: watched for revocations and overrides; None where only the file counts.
        orders: the file of orders, or None.
        grace: seconds that the registry may be out of reach.
        clock: the time with a time zone.
    """

    def __init__(
        self,
        policy: Policy,
        anchor: GatedAnchor | None,
        *,
        engine: str = "engine",
        registry: Watched | None = None,
        orders: OrdersFile | None = None,
        grace: float = GRACE,
        clock: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        self._anchor, self._engine, self._registry, self._orders = anchor, engine, registry, orders
        self._grace, self._clock = grace, clock
        rule = None if anchor is None else policy.kinds.get(anchor.kind)
        self._on_revoke: Literal["stop", "bypass"] = (
            "bypass" if rule is not None and rule.on_revoke == "reprefill" else "stop"
        )
        self._revocation: Revocation | None = None
        self._overrides: Sequence[Override] = ()  # of the registry
        self._stale = self._registry is not None  # what the registry says is to be read
        self._reached = time.monotonic()
        self._lost: str | None = None

    def ruling(self) -> Ruling | None:
        """What must become of generation now, or None: go on."""
        now = self._clock()
        if self._orders is not None:
            self._orders.changed()
            if self._orders.broken is not None:
                return Ruling("stop", "frozen", f"the orders cannot be believed: {self._orders.broken}")
        self._look()
        order = self._order(now)
        if order is not None:
            why = f"override {order.number} on {order.scope} {order.target[:16]}: {order.reason}"
            if order.action == "freeze":
                return Ruling("stop", "frozen", why)
            if self._anchor is not None:
                return Ruling("bypass", "bypassed", why)
        return None if self._anchor is None else self._on_anchor(self._anchor, now)

    def _on_anchor(self, anchor: GatedAnchor, now: datetime) -> Ruling | None:
        revocation = self._revocation
        if revocation is not None:
            what = "the anchor" if revocation.anchor == anchor.digest else "what the anchor comes from"
            why = f"{what} was revoked at {format_time(revocation.time)}: {revocation.reason}"
            return Ruling(self._on_revoke, "revoked", why)
        if now >= anchor.not_after:
            return Ruling(
                self._on_revoke, "expired", f"the anchor expired at {format_time(anchor.not_after)}"
            )
        if self._lost is not None and time.monotonic() - self._reached > self._grace:
            why = f"the registry was out of reach for more than {self._grace:g} s: {self._lost}"
            return Ruling(self._on_revoke, "registry-lost", why)
        return None

    def _order(self, now: datetime) -> Override | None:
        """The order in force, of the file or of the registry."""
        orders = [*self._overrides, *([] if self._orders is None else self._orders.in_force)]
        anchor = self._anchor
        return strongest(
            orders,
            now,
            anchor=None if anchor is None else anchor.digest,
            kind=None if anchor is None else anchor.kind,
            engine=self._engine,
        )

    def _look(self) -> None:
        if self._registry is None:
            return
        try:
            self._stale |= self._registry.poll()
            if self._stale:
                if self._anchor is not None:
                    self._revocation = self._registry.revocation_of(self._anchor.digest)
                self._overrides = self._registry.orders()
                self._stale = False
            self._reached, self._lost = time.monotonic(), None
        except FieldprintError as error:
            self._lost = error.what
