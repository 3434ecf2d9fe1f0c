"""Codes and what they do to attention: R10 to R13 of docs/theory.md."""

import math
import struct
from collections.abc import Callable
from fractions import Fraction

import pytest
from hypothesis import strategies as st

from fieldprint.theory import quantization as theory
from fieldprint.theory.distance import fisher_rao, total_variation
from fieldprint.theory.mass import injection_weight, lse, natural_mass
from tests.theory.refuting import for_all, refuted

exponents = st.integers(-12, 9)
numbers = st.fractions(min_value=-1000, max_value=1000, max_denominator=4096)
# A quarter of a step is where ties and near-ties are.
placed = st.tuples(numbers | st.integers(-500, 500).map(lambda n: Fraction(n, 4)), exponents)


def step_of(exponent: int) -> Fraction:
    return Fraction(2) ** exponent


# R10


def is_near(rounding: Callable[[Fraction], int], case: tuple[Fraction, int]) -> bool:
    x, exponent = case
    step = step_of(exponent)
    return abs(x - rounding(x / step) * step) <= theory.rounding_bound(step)


@for_all(placed)
def test_a_code_is_within_half_a_step(case: tuple[Fraction, int]) -> None:
    assert is_near(lambda ratio: theory.code(ratio, Fraction(1)), case)
    x, exponent = case
    assert theory.code(x, step_of(exponent)) == theory.code(x / step_of(exponent), Fraction(1))


@pytest.mark.parametrize(
    "mutant",
    [math.floor, math.ceil, math.trunc, lambda r: math.floor(r) + 1],
    ids=["floor", "ceil", "trunc", "next"],
)
def test_another_rounding_is_refuted(mutant: Callable[[Fraction], int]) -> None:
    assert refuted(placed, lambda case: is_near(mutant, case))


@pytest.mark.parametrize("exponent", range(-24, 10))
def test_half_a_step_is_reached_and_ties_go_to_even(exponent: int) -> None:
    step = step_of(exponent)
    assert [theory.code(step * Fraction(n, 2), step) for n in (1, 3, 5, -1, -3)] == [0, 2, 2, 0, -2]
    assert abs(step / 2 - theory.code(step / 2, step) * step) == theory.rounding_bound(step)


def chosen_exponent(column: list[float]) -> int:
    """The rule of `fieldprint.quantize`: the least exponent whose codes do not clamp."""
    return next(
        e for e in range(-24, 10) if all(abs(theory.code(Fraction(x), step_of(e))) <= 127 for x in column)
    )


columns = st.lists(st.floats(width=32, min_value=-65000, max_value=65000), min_size=1, max_size=6)


def channel_is_near(bound: Callable[[float], float], column: list[float]) -> bool:
    step = step_of(chosen_exponent(column))
    worst = max(abs(Fraction(x) - theory.code(Fraction(x), step) * step) for x in column)
    return worst <= bound(max(map(abs, column))) * (1 + 1e-15)


@for_all(columns)
def test_a_channel_is_within_its_largest_over_127_and_a_half(column: list[float]) -> None:
    assert channel_is_near(theory.channel_bound, column)


@pytest.mark.parametrize(
    "mutant", [lambda largest: largest / 255, lambda largest: largest / 160], ids=["no power of two", "160"]
)
def test_a_smaller_channel_bound_is_refuted(mutant: Callable[[float], float]) -> None:
    near = st.integers(-2000, 2000).map(lambda n: n / 16)
    assert refuted(st.tuples(near, near).map(list), lambda column: channel_is_near(mutant, column))


def test_the_channel_bound_is_reached() -> None:
    assert chosen_exponent([127.5, 1.0]) == 1 and theory.channel_bound(127.5) == 1.0
    assert abs(1.0 - theory.code(1.0, 2.0) * 2.0) == 1.0


# R11

MOST = {"float16": 65504.0, "float32": struct.unpack("<f", b"\xff\xff\x7f\x7f")[0]}


def survives(value: Fraction, dtype: str) -> bool:
    """Whether packing into the format and reading it again gives the same number."""
    if dtype == "bfloat16":  # the upper half of a float32
        return survives(value, "float32") and struct.pack("<f", float(value))[:2] == b"\0\0"
    if abs(value) > MOST[dtype]:
        return False
    layout = {"float16": "<e", "float32": "<f"}[dtype]
    return Fraction(*struct.unpack(layout, struct.pack(layout, float(value)))[0].as_integer_ratio()) == value


@pytest.mark.parametrize("dtype", theory.FORMATS)
def test_every_code_is_exact_in(dtype: str) -> None:
    for exponent in range(-24, 10):
        for code in range(-127, 128):
            assert theory.is_exact(code, exponent, dtype)
            assert survives(code * step_of(exponent), dtype)


@for_all(
    st.integers(-(2**26), 2**26) | st.integers(-300, 300),
    st.integers(-156, 130),
    st.sampled_from(sorted(theory.FORMATS)),
)
def test_the_rule_of_exactness_is_that_of_the_formats(code: int, exponent: int, dtype: str) -> None:
    assert theory.is_exact(code, exponent, dtype) == survives(code * step_of(exponent), dtype)


def test_the_range_of_exponents_cannot_be_wider() -> None:
    assert not theory.is_exact(1, -25, "float16") and not survives(step_of(-25), "float16")
    assert not theory.is_exact(127, 10, "float16") and not survives(127 * step_of(10), "float16")
    assert theory.is_exact(256, 0, "bfloat16") and survives(Fraction(256), "bfloat16")
    assert not theory.is_exact(257, 0, "bfloat16") and not survives(Fraction(257), "bfloat16")


def test_a_step_that_is_no_power_of_two_is_not_exact() -> None:
    """What scaling by max / 127 would store: 127 thirds are no number of any format."""
    assert not any(survives(Fraction(code, 3), dtype) for code in (1, 2, 127) for dtype in theory.FORMATS)


# R12

channels = st.lists(
    st.tuples(st.floats(min_value=-8, max_value=8), st.floats(min_value=-8, max_value=8), exponents),
    min_size=1,
    max_size=6,
)


def logits_are_near(
    bound: Callable[[list[float], list[float], float], float], case: list[tuple[float, float, int]]
) -> bool:
    query = [q for q, _, _ in case]
    steps = [float(step_of(e)) for _, _, e in case]
    moved = sum(
        Fraction(q) * (Fraction(k) - theory.code(k, step) * Fraction(step))
        for (q, k, _), step in zip(case, steps, strict=True)
    )
    return abs(moved) / 4 <= bound(query, steps, 0.25) * (1 + 1e-12)


@for_all(channels)
def test_a_logit_moves_by_at_most_eps(case: list[tuple[float, float, int]]) -> None:
    assert logits_are_near(theory.logit_bound, case)


@pytest.mark.parametrize(
    "mutant",
    [
        lambda query, steps, scale: theory.logit_bound(query, steps, scale) / 2,
        lambda query, steps, scale: scale / 2 * max(abs(q) * d for q, d in zip(query, steps, strict=True)),
        lambda query, steps, scale: abs(scale / 2 * sum(q * d for q, d in zip(query, steps, strict=True))),
        lambda query, steps, scale: (
            scale / 2 * math.sqrt(sum((q * d) ** 2 for q, d in zip(query, steps, strict=True)))
        ),
    ],
    ids=["half", "max instead of sum", "signs kept", "Euclidean"],
)
def test_a_smaller_eps_is_refuted(mutant: Callable[[list[float], list[float], float], float]) -> None:
    quarters = st.integers(-9, 9).map(lambda n: n / 4)
    few = st.lists(st.tuples(quarters, quarters, st.integers(0, 3)), min_size=1, max_size=4)
    assert refuted(few, lambda case: logits_are_near(mutant, case))


def test_eps_is_reached() -> None:
    """Keys half a step from their values, each in the direction of its query."""
    case = [(1.5, 0.5, 0), (-2.0, -1.0, 1), (0.25, 2.0, 2)]
    moved = sum(q * (k - theory.code(k, 2.0**e) * 2.0**e) for q, k, e in case) / 4
    assert abs(moved) == theory.logit_bound([q for q, _, _ in case], [2.0**e for _, _, e in case], 0.25)


# A change of logits of half-range eps, in exact rationals: token i's weight is multiplied by x_i^2 with
# exp(-eps / 2) <= x_i <= exp(eps / 2), after a shift that a softmax does not see. M = max x / min x is exp(eps).
factors = st.tuples(st.integers(1, 9), st.integers(1, 9)).map(lambda pair: Fraction(*pair))
tilts = st.lists(st.tuples(factors, factors), min_size=2, max_size=5)


def tilted(case: list[tuple[Fraction, Fraction]]) -> tuple[list[Fraction], list[Fraction], Fraction]:
    """p, the distribution after the change, and exp(eps)."""
    total = sum(weight for weight, _ in case)
    after = sum(weight * x * x for weight, x in case)
    ratio = max(x for _, x in case) / min(x for _, x in case)
    return [weight / total for weight, _ in case], [weight * x * x / after for weight, x in case], ratio


def variation_is_bounded(
    bound: Callable[[Fraction], Fraction], case: list[tuple[Fraction, Fraction]]
) -> bool:
    p, q, ratio = tilted(case)
    return sum(abs(a - b) for a, b in zip(p, q, strict=True)) / 2 <= bound(ratio)


def exact_tanh(ratio: Fraction) -> Fraction:
    """tanh(eps / 2) of exp(eps)."""
    return (ratio - 1) / (ratio + 1)


@for_all(tilts)
def test_the_total_variation_is_at_most_tanh_of_half_eps(case: list[tuple[Fraction, Fraction]]) -> None:
    assert variation_is_bounded(exact_tanh, case)
    ratio = tilted(case)[2]
    assert theory.total_variation_bound(math.log(ratio)) == pytest.approx(float(exact_tanh(ratio)), rel=1e-12)


@pytest.mark.parametrize(
    "mutant",
    [
        lambda ratio: exact_tanh(ratio) / 2,
        lambda ratio: (ratio - 1) / (ratio + 3),
        lambda ratio: exact_tanh(ratio) ** 2,
        lambda ratio: exact_tanh(ratio) * Fraction(99, 100),
    ],
    ids=["half", "another denominator", "squared", "a hundredth less"],
)
def test_a_smaller_variation_is_refuted(mutant: Callable[[Fraction], Fraction]) -> None:
    assert refuted(tilts, lambda case: variation_is_bounded(mutant, case))


@for_all(factors.filter(lambda x: x > 1))
def test_two_tokens_reach_the_variation_and_the_distance(ratio: Fraction) -> None:
    """Weights exp(eps) to 1 and tilts the other way: the extreme case of R12."""
    case = [(ratio, 1 / ratio), (Fraction(1), Fraction(1))]
    p, q, found = tilted(case)
    assert found == ratio
    assert sum(abs(a - b) for a, b in zip(p, q, strict=True)) / 2 == exact_tanh(ratio)
    eps = math.log(ratio)
    assert fisher_rao([float(x) for x in p], [float(x) for x in q]) == pytest.approx(
        theory.fisher_rao_bound(eps), rel=1e-9
    )


def overlap_is_bounded(case: list[tuple[Fraction, Fraction]], bound: Callable[[Fraction], Fraction]) -> bool:
    """The square of sum sqrt(p q) against the square of 1 / cosh(eps / 2), as rationals."""
    p, _, ratio = tilted(case)
    first = sum(a * x for a, (_, x) in zip(p, case, strict=True))
    second = sum(a * x * x for a, (_, x) in zip(p, case, strict=True))
    return first * first / second >= bound(ratio)


@for_all(tilts)
def test_the_overlap_is_at_least_one_over_cosh_of_half_eps(case: list[tuple[Fraction, Fraction]]) -> None:
    assert overlap_is_bounded(case, lambda ratio: 4 * ratio / (1 + ratio) ** 2)


@pytest.mark.parametrize(
    "mutant",
    [
        lambda ratio: 4 * ratio / (1 + ratio) ** 2 * Fraction(101, 100),
        lambda ratio: (1 + 4 * ratio / (1 + ratio) ** 2) / 2,
    ],
    ids=["a hundredth more", "half the loss"],
)
def test_a_larger_overlap_is_refuted(mutant: Callable[[Fraction], Fraction]) -> None:
    assert refuted(tilts, lambda case: overlap_is_bounded(case, mutant))


changed = st.lists(
    st.tuples(st.floats(min_value=-20, max_value=20), st.floats(min_value=-3, max_value=3)),
    min_size=1,
    max_size=8,
)


def softmax(logits: list[float]) -> list[float]:
    level = lse(logits)
    raw = [math.exp(logit - level) for logit in logits]
    return [p / math.fsum(raw) for p in raw]


@for_all(changed)
def test_both_distances_in_float64(case: list[tuple[float, float]]) -> None:
    p, q = softmax([a for a, _ in case]), softmax([a + d for a, d in case])
    eps = theory.half_range([d for _, d in case])
    assert eps <= max(abs(d) for _, d in case)
    assert total_variation(p, q) <= theory.total_variation_bound(eps) + 1e-12
    assert fisher_rao(p, q) <= theory.fisher_rao_bound(eps) + 1e-7
    assert theory.fisher_rao_bound(eps) <= eps + 1e-15


@for_all(changed, st.sampled_from([0.5, 3.0, 30.0]))
def test_a_soft_cap_does_not_widen_a_change(case: list[tuple[float, float]], cap: float) -> None:
    for logit, change in case:
        capped = cap * (math.tanh((logit + change) / cap) - math.tanh(logit / cap))
        assert abs(capped) <= abs(change) + 1e-12


# R13


def operator(
    anchor: list[tuple[float, float]], context: list[tuple[float, float]], floor: float, mixture: bool
) -> tuple[float, float]:
    """The output and the anchor's weight, of tokens (logit, value)."""
    natural = natural_mass([a for a, _ in anchor], [c for c, _ in context])
    weight = floor if mixture else injection_weight(floor, natural)
    sides = [
        math.fsum(p * v for p, (_, v) in zip(softmax([logit for logit, _ in side]), side, strict=True))
        for side in (context, anchor)
    ]
    return (1 - weight) * sides[0] + weight * sides[1], weight


small = st.floats(min_value=-4, max_value=4)
side = st.lists(st.tuples(small, small), min_size=1, max_size=4)
errors = st.tuples(st.floats(min_value=-1, max_value=1), st.floats(min_value=-1, max_value=1))
quantized = st.tuples(
    side,
    side,
    st.lists(errors, min_size=4, max_size=4),
    st.floats(min_value=0, max_value=2),
    st.sampled_from([0.0, 0.1, 0.5, 1.0]),
)
QuantizedCase = tuple[
    list[tuple[float, float]], list[tuple[float, float]], list[tuple[float, float]], float, float
]


def outputs_are_near(
    bound: Callable[[float, float, float, float], float], case: QuantizedCase, mixture: bool = False
) -> bool:
    """Anchor logits moved within eps, anchor values within half a step of 0.5, the context as it was."""
    anchor, context, moved, eps, floor = case
    served = [
        (logit + eps * d, value + 0.25 * e) for (logit, value), (d, e) in zip(anchor, moved, strict=False)
    ]
    before, _ = operator(anchor, context, floor, mixture)
    after, weight = operator(served, context, floor, mixture)
    every = [value for _, value in (*anchor, *context)]
    return abs(after - before) <= bound(eps, max(every) - min(every), 0.5, weight) + 1e-12


@for_all(quantized, st.booleans(), examples=300)
def test_an_output_moves_by_at_most_the_bound(case: QuantizedCase, mixture: bool) -> None:
    assert outputs_are_near(theory.output_bound, case, mixture)


@pytest.mark.parametrize(
    "mutant",
    [
        lambda eps, spread, step, weight: weight * step / 2,
        lambda eps, spread, step, weight: math.tanh(eps / 2) * spread,
        lambda eps, spread, step, weight: math.tanh(eps / 4) * spread + weight * step / 2,
        lambda eps, spread, step, weight: math.tanh(eps / 2) * spread / 2 + weight * step / 2,
    ],
    ids=["values only", "logits only", "a quarter of eps", "half the range"],
)
def test_a_smaller_output_bound_is_refuted(mutant: Callable[[float, float, float, float], float]) -> None:
    extreme = st.sampled_from([-1.0, 1.0])
    sided = st.lists(st.tuples(st.sampled_from([-1.0, 0.0, 1.0]), extreme), min_size=1, max_size=2)
    corners = st.tuples(
        sided,
        sided,
        st.lists(st.tuples(extreme, extreme), min_size=2, max_size=2),
        st.just(1.0),
        st.just(0.0),
    )
    assert refuted(corners, lambda case: outputs_are_near(mutant, case))


def test_the_output_bound_is_reached() -> None:
    """Two anchor tokens, no context to speak of: logits move apart by 2 eps, values by half a step."""
    eps = 0.75
    p, q = softmax([eps / 2, -eps / 2]), softmax([-eps / 2, eps / 2])
    assert abs(p[0] - q[0]) == pytest.approx(theory.total_variation_bound(eps), rel=1e-12)
    values, step = [1.0, -2.0], 0.5
    before = math.fsum(a * v for a, v in zip(p, values, strict=True))
    after = math.fsum(a * (v - step / 2) for a, v in zip(q, values, strict=True))
    assert before - after == pytest.approx(theory.output_bound(eps, 3.0, step), rel=1e-12)


@for_all(
    st.floats(min_value=-30, max_value=30),
    st.floats(min_value=0, max_value=5),
    st.floats(min_value=0, max_value=1),
)
def test_the_weight_moves_by_at_most_tanh_of_a_quarter(difference: float, eps: float, floor: float) -> None:
    before, after = (natural_mass([logit], [0.0]) for logit in (difference, difference + eps))
    bound = theory.mass_change_bound(eps)
    assert after - before <= bound + 1e-12
    assert injection_weight(floor, after) - injection_weight(floor, before) <= bound + 1e-12
    centred = natural_mass([eps / 2], [0.0]) - natural_mass([-eps / 2], [0.0])
    assert centred == pytest.approx(bound, abs=1e-12)
