"""The error near a fixed point as a diffusion: in which sense it dies out.

    multiplicative   de = -k e dt + s e dW                 Ito; the noise fades with the error
    additive         dX = -k X dt + s dW in R^d, e = |X|   so de = (-k e + (d - 1) s^2 / (2 e)) dt + s dB, the radial process

Source: docs/theory.md R18 to R20.
"""

import math


def moment_exponent(rate: float, noise: float, power: float = 2.0) -> float:
    """p (-k + (p - 1) s^2 / 2): the multiplicative error has E|e|^p = |e_0|^p exp(this t) (R18)."""
    return power * (-rate + (power - 1) * noise**2 / 2)


def path_exponent(rate: float, noise: float) -> float:
    """-k - s^2 / 2: ln|e| / t tends to it on almost every path of the multiplicative error (R18)."""
    return -rate - noise**2 / 2


def is_mean_square_stable(rate: float, noise: float) -> bool:
    """Whether E e^2 tends to 0: exactly if k > s^2 / 2 (R18)."""
    return moment_exponent(rate, noise) < 0


def is_almost_surely_stable(rate: float, noise: float) -> bool:
    """Whether e tends to 0 on almost every path: exactly if k > -s^2 / 2 (R18).

    It may while E|e| grows: for -s^2 / 2 < k < 0.
    """
    return path_exponent(rate, noise) < 0


def stationary_mean_square(rate: float, noise: float, dimension: int) -> float:
    """d s^2 / (2 k): what E e^2 of the additive error tends to, from any start (R19).

    Raises:
        ValueError: `rate` is not above 0, where there is no such state.
    """
    if rate <= 0:
        raise ValueError("without a pull (k > 0) the additive error has no stationary state")
    return dimension * noise**2 / (2 * rate)


def reaches_zero(dimension: int) -> bool:
    """Whether the additive error, started above zero, is zero at some time: exactly in one dimension (R20)."""
    return dimension < 2


def hitting_probability(
    low: float, start: float, high: float, *, rate: float, noise: float, dimension: int
) -> float:
    """The probability that the radial process falls to `low` before it rises to `high` (R20).

    (S(high) - S(start)) / (S(high) - S(low)), where S is the integral of e^(1-d) exp(k e^2 / s^2), the scale function.

    Raises:
        ValueError: not 0 < low <= start <= high with low < high.
    """
    if not 0 < low <= start <= high or low == high:
        raise ValueError("0 < low <= start <= high is needed, and low < high")
    above = _scale(start, high, rate, noise, dimension)
    return above / (above + _scale(low, start, rate, noise, dimension))


def _scale(low: float, high: float, rate: float, noise: float, dimension: int, pieces: int = 2000) -> float:
    """The scale function's increase, by Simpson's rule over u = ln e."""
    first, last = math.log(low), math.log(high)
    width = (last - first) / pieces
    heights = [
        math.exp((2 - dimension) * u + rate * math.exp(2 * u) / noise**2)
        for u in (first + width * i for i in range(pieces + 1))
    ]
    return width / 3 * math.fsum([*heights, *heights[1:-1], *(2 * height for height in heights[1:-1:2])])
