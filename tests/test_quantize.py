"""The theorems of the quantizer, each with the boundary at which it would break."""

from fractions import Fraction

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fieldprint.quantize import (
    MAX_EXPONENT,
    MIN_EXPONENT,
    SERVING_DTYPES,
    channel_exponents,
    dequantize,
    quantize,
)

finite = st.floats(width=32, allow_nan=False, allow_infinity=False, min_value=-60000, max_value=60000)
columns = st.lists(finite, min_size=1, max_size=12)


def naive_code(x: float, exponent: int) -> int:
    """RNE(x / 2^e) over exact rationals."""
    return round(Fraction(x) / Fraction(2) ** exponent)


def naive_exponent(column: list[float]) -> int:
    """The smallest exponent in range whose codes do not clamp."""
    return next(
        e for e in range(MIN_EXPONENT, MAX_EXPONENT + 1) if all(abs(naive_code(x, e)) <= 127 for x in column)
    )


@given(columns)
def test_codes_and_exponent_equal_exact_rationals(column: list[float]) -> None:
    codes, exponents = quantize(torch.tensor(column).unsqueeze(1))
    assert int(exponents[0]) == naive_exponent(column)
    assert codes[:, 0].tolist() == [naive_code(x, int(exponents[0])) for x in column]


@given(columns)
def test_error_is_at_most_half_a_step(column: list[float]) -> None:
    codes, exponents = quantize(torch.tensor(column).unsqueeze(1))
    step = Fraction(2) ** int(exponents[0])
    for x, code in zip(column, codes[:, 0].tolist(), strict=True):
        assert abs(Fraction(x) - code * step) <= step / 2


def test_half_a_step_is_reached() -> None:
    codes, exponents = quantize(torch.tensor([[127.0], [0.5]]))
    assert int(exponents[0]) == 0
    assert abs(0.5 - int(codes[1, 0])) == 0.5


@pytest.mark.parametrize("dtype", SERVING_DTYPES, ids=str)
def test_every_code_and_exponent_is_exact_in(dtype: torch.dtype) -> None:
    exponents = torch.arange(MIN_EXPONENT, MAX_EXPONENT + 1, dtype=torch.int8)
    codes = torch.arange(-127, 128, dtype=torch.int8).unsqueeze(1).expand(-1, len(exponents))
    values = dequantize(codes, exponents, dtype)
    exact = codes.double() * torch.pow(2.0, exponents.double())
    assert torch.equal(values.double(), exact)


@settings(max_examples=50)
@given(st.lists(st.integers(-127, 127), min_size=1, max_size=9), st.integers(MIN_EXPONENT, MAX_EXPONENT))
def test_values_quantize_to_themselves(codes: list[int], exponent: int) -> None:
    values = dequantize(
        torch.tensor(codes, dtype=torch.int8).unsqueeze(1), torch.tensor([exponent], dtype=torch.int8)
    )
    again, exponents = quantize(values)
    assert torch.equal(dequantize(again, exponents), values)


def test_the_border_of_clamping() -> None:
    below = float(torch.nextafter(torch.tensor(127.5), torch.tensor(0.0)))
    assert channel_exponents(torch.tensor([[below]])).item() == 0
    assert channel_exponents(torch.tensor([[127.5]])).item() == 1  # 127.5 would round to 128
    largest = float(torch.nextafter(torch.tensor(127.5 * 2**9), torch.tensor(0.0)))
    assert quantize(torch.tensor([[largest]]))[0].item() == 127


@pytest.mark.parametrize("value", [127.5 * 2**9, 1e30])
def test_a_step_that_would_clamp_is_refused(value: float) -> None:
    with pytest.raises(ValueError, match="clamp"):
        quantize(torch.tensor([[value]]))


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_nan_and_infinity_are_refused(value: float) -> None:
    with pytest.raises(ValueError, match="NaN or infinity"):
        quantize(torch.tensor([[1.0], [value]]))


def test_other_dtypes_are_refused() -> None:
    with pytest.raises(ValueError, match="float32"):
        quantize(torch.zeros(2, 2, dtype=torch.bfloat16))
    codes, exponents = quantize(torch.ones(2, 2))
    with pytest.raises(ValueError, match="dtype"):
        dequantize(codes, exponents, torch.float64)


def test_codes_and_exponents_from_outside_are_checked() -> None:
    good = torch.zeros(3, 2, dtype=torch.int8)
    exponents = torch.zeros(2, dtype=torch.int8)
    with pytest.raises(ValueError, match="-128"):
        dequantize(torch.full((3, 2), -128, dtype=torch.int8), exponents)
    with pytest.raises(ValueError, match="within"):
        dequantize(good, torch.tensor([0, MAX_EXPONENT + 1], dtype=torch.int8))
    with pytest.raises(ValueError, match="belong together"):
        dequantize(good, torch.zeros(3, dtype=torch.int8))


def test_tiny_channels_keep_the_bound() -> None:
    codes, exponents = quantize(torch.tensor([[2.0**-26], [0.0]]))
    assert int(exponents[0]) == MIN_EXPONENT
    assert int(codes[0, 0]) == 0
