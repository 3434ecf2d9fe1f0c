"""Getting a code back exactly from a value that is off by noise, with b low bits of the code as a hint.

The prover has x and publishes h = RNE(x / D) mod 2^b; the verifier has y with |x - y| <= tau and takes the integer
nearest y / D among those congruent to h. Sources: docs/theory.md R14 to R17, proofs/Hints.v.
"""

import math
from fractions import Fraction
from typing import TypeVar

from fieldprint.theory.quantization import code

Number = TypeVar("Number", float, Fraction)


def encode_hint(x: float | Fraction, step: float | Fraction, bits: int) -> int:
    """The low `bits` bits of x's code, within [0, 2^bits)."""
    return code(x, step) % (1 << bits)


def recover(y: Number, step: Number, bits: int, hint: int) -> int:
    """The integer nearest y / step among those whose low bits are `hint`.

    It is the code of every x within less than `noise_limit` of y whose hint this is (R14).

    Raises:
        ValueError: the hint is not within [0, 2^bits).
    """
    size = 1 << bits
    if not 0 <= hint < size:
        raise ValueError(f"a hint of {bits} bits lies within [0, {size}), not {hint}")
    return size * round((y / step - hint) / size) + hint


def noise_limit(step: Number, bits: int) -> Number:
    """(2^b - 1) D / 2: with b >= 1 every noise tau strictly below it is borne, and none from it on (R14).

    Raises:
        ValueError: `bits` is below 1; without a hint no noise above 0 is borne, and 0 is.
    """
    if bits < 1:
        raise ValueError("without a hint no noise is borne, so there is no limit to stay below")
    return ((1 << bits) - 1) * step / 2


def bits_needed(step: float | Fraction, tau: float | Fraction) -> int:
    """The least b that bears noise `tau`: the least with 2^b > 1 + 2 tau / D, 0 for no noise (R15)."""
    if tau == 0:
        return 0
    return (math.floor(1 + 2 * Fraction(tau) / Fraction(step))).bit_length()


def encode_sparse_hint(x: Number, step: Number, tau: Number) -> bool | None:
    """Whether x's code is the upper of the two whose boundary noise `tau` could carry it over; None if there is none (R16)."""
    lower = math.floor(x / step)
    if abs(x / step - lower - Fraction(1, 2)) > tau / step:
        return None
    return code(x, step) == lower + 1


def recover_sparse(y: Number, step: Number, hint: bool | None) -> int:
    """The code of every x within less than a quarter of a step of y whose sparse hint this is (R16)."""
    return code(y, step) if hint is None else math.floor(y / step) + hint


def acceptance_radius(step: Number, bits: int) -> Number:
    """2^b D / 2: whoever chose the hint, what is recovered lies that near to the verifier's own value (R17)."""
    return (1 << bits) * step / 2


def residual_bound(step: Number, tau: Number) -> Number:
    """tau + D / 2: the value of an honest code is that near to the verifier's own; checked, it is the radius left to a
    liar, if less than `acceptance_radius` (R17)."""
    return tau + step / 2
