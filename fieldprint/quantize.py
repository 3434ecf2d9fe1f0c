"""Power-of-two INT8 codes: the one place where a float becomes the bytes that are signed.

Per channel (the last dimension, and every leading dimension but the token dimension) a step D = 2^e and

    code c = RNE(x / D), |c| <= 127, never clamped        value = c * D

so |x - c D| <= D / 2, and c * D is exactly representable in bf16, fp16 and fp32: a code has 7 bits and the
exponents are kept within [-24, 9], where fp16 still holds every multiple. What attention reads is therefore
the very number that was hashed, in each serving dtype.
"""

import torch
from torch import Tensor

QUANTIZER = "int8-pow2-v1"
MIN_EXPONENT = -24  # fp16's smallest subnormal is 2^-24
MAX_EXPONENT = 9  # 127 * 2^9 = 65024 <= 65504, fp16's largest number
MAX_CODE = 127
SERVING_DTYPES = (torch.float32, torch.bfloat16, torch.float16)


def channel_exponents(x: Tensor) -> Tensor:
    """The smallest admissible e of each channel, int8: the one with RNE(max|x| / 2^e) <= 127.

    Args:
        x: [..., tokens, channels], float32.

    Raises:
        ValueError: `x` is not float32, is empty, holds NaN or infinity, or a channel would need e > 9 (its codes
            would clamp).
    """
    if x.dtype != torch.float32:
        raise ValueError(f"x must be float32, the canonical dtype, not {x.dtype}")
    if x.shape[-2] == 0:
        raise ValueError("x must hold at least one token")
    if not bool(torch.isfinite(x).all()):
        raise ValueError("x holds NaN or infinity; such K/V cannot be quantized")
    largest = x.abs().amax(dim=-2)
    # RNE(y) <= 127 exactly when y < 127.5; frexp writes y = m * 2^k with m in [0.5, 1), 127.5 = 0.99609375 * 2^7.
    mantissa, exponent = torch.frexp(largest)
    needed = torch.where(mantissa < 127.5 / 128, exponent - 7, exponent - 6)
    needed = torch.where(largest == 0, torch.full_like(needed, MIN_EXPONENT), needed)
    if bool((needed > MAX_EXPONENT).any()):
        raise ValueError(
            f"x holds values of {float(largest.max()):.6g}; codes above 127 * 2^{MAX_EXPONENT} would clamp"
        )
    return needed.clamp(min=MIN_EXPONENT).to(torch.int8)


def quantize(x: Tensor) -> tuple[Tensor, Tensor]:
    """Codes and exponents of `x`: int8 [..., tokens, channels] and int8 [..., channels].

    Args:
        x: [..., tokens, channels], float32.

    Raises:
        ValueError: as `channel_exponents`.
    """
    exponents = channel_exponents(x)
    scaled = torch.ldexp(x, -exponents.to(torch.int32).unsqueeze(-2))
    return torch.round(scaled).to(torch.int8), exponents


def dequantize(codes: Tensor, exponents: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
    """The values c * 2^e in `dtype`, without rounding.

    Args:
        codes: [..., tokens, channels], int8, |c| <= 127.
        exponents: [..., channels], int8, within [-24, 9].
        dtype: one of float32, bfloat16, float16.

    Raises:
        ValueError: another dtype, a code of -128, an exponent out of range, or shapes that do not belong together.
    """
    if dtype not in SERVING_DTYPES:
        raise ValueError(f"dtype must be float32, bfloat16 or float16, where a code is exact, not {dtype}")
    if codes.dtype != torch.int8 or exponents.dtype != torch.int8:
        raise ValueError("codes and exponents must be int8")
    if codes.shape[:-2] + codes.shape[-1:] != exponents.shape:
        raise ValueError(
            f"codes {tuple(codes.shape)} and exponents {tuple(exponents.shape)} do not belong together"
        )
    if bool((codes == -128).any()):
        raise ValueError("codes hold -128; codes are within [-127, 127]")
    if bool(((exponents < MIN_EXPONENT) | (exponents > MAX_EXPONENT)).any()):
        raise ValueError(f"exponents must be within [{MIN_EXPONENT}, {MAX_EXPONENT}]")
    return torch.ldexp(codes.to(torch.float32), exponents.to(torch.int32).unsqueeze(-2)).to(dtype)
