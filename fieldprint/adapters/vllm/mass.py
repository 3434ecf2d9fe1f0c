"""How much of the attention each anchor gets, as the workers have summed it."""

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fieldprint.adapters.vllm.messages import Sums


class AnchorMass:
    """Means over all queries since the engine's start, by anchor; tokens that are computed again count again.

    Args:
        ranks: workers; each has its heads.
    """

    def __init__(self, ranks: int) -> None:
        self._ranks = ranks
        self._totals: dict[int, dict[int, tuple[int, NDArray[np.float64]]]] = {}
        self._means: dict[int, dict[str, Any]] = {}

    def take(self, told: Mapping[tuple[int, int], tuple[int, Sums]]) -> None:
        """Add what workers tell, by anchor and rank."""
        for (index, rank), (count, sums) in told.items():
            ranks = self._totals.setdefault(index, {})
            queries, total = ranks.get(rank, (0, np.zeros(sums.shape)))
            ranks[rank] = (queries + count, total + sums)
            if len(ranks) == self._ranks:
                self._means[index] = _mean([ranks[each] for each in sorted(ranks)])

    def of(self, index: int) -> dict[str, Any] | None:
        """Of one anchor, or None before all workers have told.

        {"queries": 120, "natural": [[0.12, ...], ...], "weight": [[0.2, ...], ...]}      layers, then query heads
        """
        return self._means.get(index)


def _mean(ranks: list[tuple[int, NDArray[np.float64]]]) -> dict[str, Any]:
    means = np.concatenate([total / count for count, total in ranks], axis=2)
    natural, weight = np.round(means, 6).transpose(1, 0, 2).tolist()
    return {"queries": min(count for count, _ in ranks), "natural": natural, "weight": weight}
