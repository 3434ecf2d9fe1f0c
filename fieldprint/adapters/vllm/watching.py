"""One registry for many gates: asked once a step, and each gate still hears of every change."""

from collections.abc import Sequence

from fieldprint.anchor.statements import Override, Revocation
from fieldprint.errors import FieldprintError
from fieldprint.registry.gate import Watched


class WatchedOnce:
    """Registries behind one poll a step; what any of them says is in force, also while another cannot be reached.

    Args:
        sources: asked in this order.
    """

    def __init__(self, *sources: Watched) -> None:
        self._sources = sources
        self._lost: set[int] = set()  # sources that did not answer the last look
        self._revocations: dict[tuple[int, str], Revocation | None] = {}  # by source and anchor
        self._orders: dict[int, Sequence[Override]] = {}
        self.version = 0
        self.error: FieldprintError | None = None

    def look(self) -> None:
        """Ask each whether anything has changed; that one cannot be reached is told to every gate."""
        error: FieldprintError | None = None
        lost: set[int] = set()
        for number, source in enumerate(self._sources):
            try:
                self.version += source.poll()
            except FieldprintError as caught:
                error = caught
                lost.add(number)
        self.version += lost != self._lost
        self._lost, self.error = lost, error

    def view(self) -> "View":
        """What one gate sees."""
        return View(self)

    def revocation_of(self, anchor: str) -> Revocation | None:
        """The first revocation that one of them knows, or knew when it last answered."""
        for number, source in enumerate(self._sources):
            if number not in self._lost:
                self._revocations[number, anchor] = source.revocation_of(anchor)
        found = [self._revocations.get((number, anchor)) for number in range(len(self._sources))]
        return next((revocation for revocation in found if revocation is not None), None)

    def orders(self) -> Sequence[Override]:
        """The overrides of all, of one that does not answer those of its last answer."""
        for number, source in enumerate(self._sources):
            if number not in self._lost:
                self._orders[number] = tuple(source.orders())
        return [order for number in range(len(self._sources)) for order in self._orders.get(number, ())]


class View:
    """`registry.gate.Watched` for one gate: knows up to which change this gate has read."""

    def __init__(self, shared: WatchedOnce) -> None:
        self._shared = shared
        self._seen = -1

    def poll(self) -> bool:
        """Whether anything has changed since this gate last asked; if not, raises what the last look met."""
        changed = self._seen != self._shared.version
        self._seen = self._shared.version
        if not changed and self._shared.error is not None:
            raise self._shared.error
        return changed

    def revocation_of(self, anchor: str) -> Revocation | None:
        """As `WatchedOnce.revocation_of`."""
        return self._shared.revocation_of(anchor)

    def orders(self) -> Sequence[Override]:
        """As `WatchedOnce.orders`."""
        return self._shared.orders()
