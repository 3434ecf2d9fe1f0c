"""Distances between distributions over tokens. Source: docs/theory.md R21."""

import math
from collections.abc import Sequence


def fisher_rao(p: Sequence[float], q: Sequence[float]) -> float:
    """2 arccos(sum_i sqrt(p_i q_i)), within [0, pi]: the length of the shortest path under the Fisher metric.

    Computed as 4 arcsin(|sqrt p - sqrt q| / 2), which is the same and keeps its digits where p and q are close.

    Raises:
        ValueError: `p` and `q` are not distributions over the same tokens.
    """
    _check(p, q)
    chord = math.sqrt(math.fsum((math.sqrt(a) - math.sqrt(b)) ** 2 for a, b in zip(p, q, strict=True)))
    return 4 * math.asin(min(chord / 2, math.sqrt(0.5)))


def total_variation(p: Sequence[float], q: Sequence[float]) -> float:
    """sum_i |p_i - q_i| / 2, within [0, 1]: the largest difference in the probability of any event.

    Raises:
        ValueError: as `fisher_rao`.
    """
    _check(p, q)
    return math.fsum(abs(a - b) for a, b in zip(p, q, strict=True)) / 2


def total_variation_limits(distance: float) -> tuple[float, float]:
    """1 - cos(d / 2) and sin(d / 2): the total variation at Fisher-Rao distance d lies between them."""
    return 1 - math.cos(distance / 2), math.sin(distance / 2)


def _check(p: Sequence[float], q: Sequence[float]) -> None:
    if len(p) != len(q):
        raise ValueError(f"distributions over {len(p)} and {len(q)} tokens")
    for weights in (p, q):
        if not all(weight >= 0 for weight in weights) or abs(math.fsum(weights) - 1) > 1e-9:
            raise ValueError("a distribution has no weight below 0, and they sum to 1")
