"""One registry for many gates: asked once a step, and each gate still hears of every change."""

from collections.abc import Sequence

from fieldprint.anchor.statements import Override, Revocation
from fieldprint.errors import FieldprintError
from fieldprint.registry.gate import Watched


class WatchedOnce:
    """Registries behind one poll a step; what any of them says is in force.

    Args:
        sources: asked in this order.
    """

    def __init__(self, *sources: Watched) -> None:
        self._sources = sources
        self.version = 0
        self.error: FieldprintError | None = None

    def look(self) -> None:
        """Ask whether anything has changed; one that cannot be reached is told to every gate."""
        try:
            changed = [
                source.poll() for source in self._sources
            ]  # every one: each remembers that it was asked
            self.version += any(changed)
            self.error = None
        except FieldprintError as error:
            self.error = error

    def view(self) -> "View":
        """What one gate sees."""
        return View(self)

    def revocation_of(self, anchor: str) -> Revocation | None:
        """The first revocation that one of them knows."""
        found = [source.revocation_of(anchor) for source in self._sources]
        return next((revocation for revocation in found if revocation is not None), None)

    def orders(self) -> Sequence[Override]:
        """The overrides of all."""
        return [order for source in self._sources for order in source.orders()]


class View:
    """`registry.gate.Watched` for one gate: knows up to which change this gate has read."""

    def __init__(self, shared: WatchedOnce) -> None:
        self._shared = shared
        self._seen = -1

    def poll(self) -> bool:
        """Whether anything has changed since this gate last asked. Raises what the last look met."""
        if self._shared.error is not None:
            raise self._shared.error
        changed = self._seen != self._shared.version
        self._seen = self._shared.version
        return changed

    def revocation_of(self, anchor: str) -> Revocation | None:
        """As `WatchedOnce.revocation_of`."""
        return self._shared.revocation_of(anchor)

    def orders(self) -> Sequence[Override]:
        """As `WatchedOnce.orders`."""
        return self._shared.orders()
