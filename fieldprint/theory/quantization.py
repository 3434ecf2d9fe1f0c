"""Power-of-two INT8 codes, and what they do to attention.

A channel has a step D = 2^e; the code of x is c = RNE(x / D), its value c D. Sources: docs/theory.md R10 to R13,
proofs/Quantize.v, proofs/Formats.v; the codes themselves are made in `fieldprint.quantize`.
"""

import math
from collections.abc import Sequence
from fractions import Fraction
from typing import TypeVar

Number = TypeVar("Number", float, Fraction)

MAX_CODE = 127
MIN_EXPONENT = -24
# Significant bits, exponent of a subnormal's last bit, exponent of the greatest number's leading bit.
FORMATS = {"bfloat16": (8, -133, 127), "float16": (11, -24, 15), "float32": (24, -149, 127)}


def code(x: float | Fraction, step: float | Fraction) -> int:
    """RNE(x / step): the nearest integer, the even one of two. Exact for a power of two, short of subnormals."""
    return round(x / step)


def rounding_bound(step: Number) -> Number:
    """D / 2: no x is further from the value of its code, and a tie is exactly that far (R10)."""
    return step / 2


def channel_bound(largest: float) -> float:
    """max|x| / 127.5, and at least 2^-25: `rounding_bound` of the step that the quantizer chooses for a channel (R10)."""
    return max(largest / 127.5, 2.0 ** (MIN_EXPONENT - 1))


def is_exact(code: int, exponent: int, dtype: str) -> bool:
    """Whether code * 2^exponent is a finite number of the format: bfloat16, float16 or float32 (R11)."""
    significant, lowest, highest = FORMATS[dtype]
    if code == 0:
        return True
    odd = abs(code)
    while odd % 2 == 0:
        odd, exponent = odd // 2, exponent + 1
    return (
        odd.bit_length() <= significant and lowest <= exponent and exponent + odd.bit_length() - 1 <= highest
    )


def logit_bound(query: Sequence[float], key_steps: Sequence[float], softmax_scale: float) -> float:
    """eps = scale / 2 sum_d |q_d| D_d: no logit moves further when keys are replaced by the values of their codes (R12).

    Args:
        query: one number a channel, rotated as the stored keys are.
        key_steps: the steps D_d of the keys' channels; the largest of all pages where they differ.
        softmax_scale: not negative.
    """
    return softmax_scale / 2 * math.fsum(abs(q) * step for q, step in zip(query, key_steps, strict=True))


def half_range(changes: Sequence[float]) -> float:
    """(max - min) / 2: how far logits move apart; a softmax sees nothing else of a change (R12)."""
    return (max(changes) - min(changes)) / 2


def total_variation_bound(eps: float) -> float:
    """tanh(eps / 2): the total variation between two softmaxes whose logits differ by at most `eps`, or by a change of
    half-range `eps`, is no more (R12)."""
    return math.tanh(eps / 2)


def fisher_rao_bound(eps: float) -> float:
    """2 arctan(sinh(eps / 2)): the same for the Fisher-Rao distance; at most `eps` (R12)."""
    return 2 * math.atan(math.sinh(eps / 2))


def mass_change_bound(eps: float) -> float:
    """tanh(eps / 4): the anchor's mass, and its weight under a floor, move no more when its logits move by `eps` (R13)."""
    return math.tanh(eps / 4)


def output_bound(eps: float, value_range: float, value_step: float, weight: float = 1.0) -> float:
    """tanh(eps / 2) R + w D / 2: how far a channel of the output moves when the anchor is served from its codes (R13).

    Args:
        eps: `logit_bound`.
        value_range: R, the largest value of the channel less the smallest, over anchor and context, before quantization.
        value_step: D, of the channel of the anchor's values.
        weight: w, the anchor's weight with quantized keys; 1 where everything is quantized, or for a bound ahead of time.
    """
    return math.tanh(eps / 2) * value_range + weight * value_step / 2
