"""The anchor's share of attention. Logits are natural, after scale and soft cap, of one query in one head.

With expsum(l) = sum_i exp(l_i): lse(l) = ln expsum(l), and the natural mass of an anchor beside a context is
a = expsum(anchor) / (expsum(anchor) + expsum(context)). Sources: docs/theory.md R1 to R6, proofs/Mass.v.
"""

import math
from collections.abc import Sequence
from fractions import Fraction
from typing import TypeVar

Number = TypeVar("Number", float, Fraction)


def lse(logits: Sequence[float]) -> float:
    """ln sum_i exp(l_i), without overflow; -inf of nothing."""
    largest = max(logits, default=-math.inf)
    if largest == -math.inf:
        return -math.inf
    return largest + math.log(math.fsum(math.exp(logit - largest) for logit in logits))


def natural_mass(anchor_logits: Sequence[float], context_logits: Sequence[float]) -> float:
    """a = sigmoid(lse_anchor - lse_context), what one softmax over both gives to the anchor (R1).

    1 without a context, 0 without an anchor.

    Raises:
        ValueError: both are empty.
    """
    anchor, context = lse(anchor_logits), lse(context_logits)
    if anchor == context == -math.inf:
        raise ValueError("a softmax over no tokens has no masses")
    return _sigmoid(anchor - context)


def mass_bound(num_anchor: int, num_context: int, gap: float) -> float:
    """A / (A + N e^gap): the natural mass is at least that where no context logit is more than `gap` above an
    anchor logit, and exactly that where all are `gap` above all (R2).

    Raises:
        ValueError: `num_anchor` is below 1 or `num_context` below 0.
    """
    _check_counts(num_anchor, num_context)
    if num_context == 0:
        return 1.0
    return _sigmoid(math.log(num_anchor) - math.log(num_context) - gap)


def window_bound(num_anchor: int, window: int, num_sinks: int, gap: float) -> float:
    """A / (A + (W + S) e^gap): `mass_bound` for any length of context, where a query sees the last W positions and the
    first S (R4).

    Raises:
        ValueError: `window` is below 1, or as `mass_bound`.
    """
    if window < 1:
        raise ValueError("a window has at least one position")
    return mass_bound(num_anchor, window + num_sinks, gap)


def longest_context(num_anchor: int, mass: float, gap: float) -> int:
    """The largest N with A / (A + N e^gap) >= `mass`: up to there the anchor keeps it; N + 1 tokens whose logits all are
    `gap` above the anchor's take it away (R3).

    Raises:
        ValueError: `mass` is not within (0, 1), or `num_anchor` is below 1.
    """
    _check_counts(num_anchor, 0)
    if not 0 < mass < 1:
        raise ValueError(f"a mass that a context can take away lies within (0, 1), not {mass}")
    return math.floor(num_anchor * math.exp(-gap) * (1 - mass) / mass)


def logit_gap_bound(
    softmax_scale: float, query_norm: float, key_distance: float, soft_cap: float = 0.0
) -> float:
    """scale |q| max|k_context - k_anchor|, or 2 cap if that is less: no context logit is further above an anchor logit (R2).

    Args:
        softmax_scale: not negative.
        query_norm: Euclidean.
        key_distance: the largest Euclidean distance between a context key and an anchor key.
        soft_cap: 0 for none.
    """
    gap = softmax_scale * query_norm * key_distance
    return min(gap, 2 * soft_cap) if soft_cap else gap


def injection_weight(floor: Number, mass: Number) -> Number:
    """w = max(g, a), the anchor's weight under a floor g; a itself for g = 0, which is concat (R5)."""
    return max(floor, mass)


def raised_logits(floor: float, mass: float) -> float:
    """b = max(0, logit(g) - logit(a)): a floor is one softmax with b added to the anchor's logits (R5).

    Raises:
        ValueError: `floor` is not within [0, 1) or `mass` not within (0, 1).
    """
    if not (0 <= floor < 1 and 0 < mass < 1):
        raise ValueError("the floor lies within [0, 1) and the mass within (0, 1)")
    if floor <= mass:
        return 0.0
    return math.log(floor) - math.log1p(-floor) - math.log(mass) + math.log1p(-mass)


def context_influence_bound(floor: Number, diameter: Number) -> Number:
    """(1 - g) diameter: no two contexts give outputs further apart under a floor g (R5).

    Args:
        floor: g, within [0, 1].
        diameter: of all values, the anchor's and both contexts', in the norm that the bound is wanted in; 1 for total
            variation between the weights on tokens.
    """
    return (1 - floor) * diameter


def mixture_shortfall(floor: Number, mass: Number, distance: Number) -> Number:
    """|a - g| distance: how far a mixture's output lies from concat's (R6).

    Args:
        floor: g, the constant weight.
        mass: a.
        distance: of the anchor's output from the context's, in any norm.
    """
    return abs(mass - floor) * distance


def _sigmoid(x: float) -> float:
    if x >= 0:
        return 1 / (1 + math.exp(-x))
    return math.exp(x) / (1 + math.exp(x))


def _check_counts(num_anchor: int, num_context: int) -> None:
    if num_anchor < 1 or num_context < 0:
        raise ValueError(
            f"an anchor has at least one token and a context none or more, not {num_anchor} and {num_context}"
        )
