"""A recursion x' = T(x) that is disturbed at every step: how fast it nears the fixed point, and how near.

T brings points closer by a factor rho < 1, the disturbance is at most delta. Sources: docs/theory.md R7 to R9,
proofs/Contraction.v.
"""

from collections.abc import Sequence
from fractions import Fraction
from typing import TypeVar

Number = TypeVar("Number", float, Fraction)


def distance_bound(steps: int, start: Number, rho: Number, delta: Number) -> Number:
    """rho^n d_0 + delta (1 - rho^n) / (1 - rho): the distance from the fixed point after n steps is no more (R7).

    The same of expected distances, where `delta` bounds the expected disturbance (R8).

    Raises:
        ValueError: `rho` is not within [0, 1).
    """
    _check_rate(rho)
    power = rho**steps
    return power * start + delta * (1 - power) / (1 - rho)


def noise_floor(rho: Number, delta: Number) -> Number:
    """delta / (1 - rho): what `distance_bound` tends to (R7).

    Raises:
        ValueError: `rho` is not within [0, 1).
    """
    _check_rate(rho)
    return delta / (1 - rho)


def mean_square_bound(steps: int, start: Number, rho: Number, variance: Number) -> Number:
    """rho^2n d_0^2 + variance (1 - rho^2n) / (1 - rho^2): the expected square of the distance after n steps is no more, where
    the disturbance is a vector of mean zero given the past (R8).

    Args:
        steps: n.
        start: d_0.
        rho: within [0, 1).
        variance: the expected square of the disturbance's length, at most.

    Raises:
        ValueError: `rho` is not within [0, 1).
    """
    _check_rate(rho)
    return distance_bound(steps, start * start, rho * rho, variance)


def fixed_point_distance(move: Number, rho: Number, delta: Number) -> Number:
    """(|x' - x| + delta) / (1 - rho): how far x is from the fixed point, judged by the step that it just made (R7).

    Raises:
        ValueError: `rho` is not within [0, 1).
    """
    _check_rate(rho)
    return (move + delta) / (1 - rho)


def dobrushin(kernel: Sequence[Sequence[Number]]) -> Number:
    """The largest total variation between two rows: the factor by which one step of a Markov chain brings distributions
    closer (R9).

    Args:
        kernel: row i is the distribution of what follows i.
    """
    return max(_total_variation(one, other) for one in kernel for other in kernel)


def _total_variation(one: Sequence[Number], other: Sequence[Number]) -> Number:
    return sum((abs(p - q) for p, q in zip(one, other, strict=True)), 0 * one[0]) / 2


def _check_rate(rho: float | Fraction) -> None:
    if not 0 <= rho < 1:
        raise ValueError(f"rho lies within [0, 1), not {rho}")
