"""How much of the attention each anchor gets, as the workers have summed it."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from fieldprint.adapters.vllm.messages import Sums


class AnchorMass:
    """Means over all queries since the engine's start, by anchor.

    Args:
        ranks: workers; each has its heads.
    """

    def __init__(self, ranks: int) -> None:
        self._ranks = ranks
        self._told: dict[int, dict[int, tuple[int, Sums]]] = {}

    def take(self, told: Mapping[tuple[int, int], tuple[int, Sums]]) -> None:
        """What workers tell, by anchor and rank."""
        for (index, rank), sums in told.items():
            self._told.setdefault(index, {})[rank] = sums

    def of(self, index: int) -> dict[str, Any] | None:
        """Of one anchor, or None before all workers have told.

        {"queries": 120, "natural": [[0.12, ...], ...], "weight": [[0.2, ...], ...]}      layers, then query heads
        """
        told = self._told.get(index, {})
        if len(told) < self._ranks:
            return None
        queries = min(count for count, _ in told.values())
        if not queries:
            return None
        means = np.concatenate([told[rank][1] / told[rank][0] for rank in sorted(told)], axis=2)
        natural, weight = np.round(means.astype(np.float64), 6).transpose(1, 0, 2).tolist()
        return {"queries": queries, "natural": natural, "weight": weight}
