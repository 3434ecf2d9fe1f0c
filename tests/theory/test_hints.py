"""Getting codes back from noisy values: R14 to R17 of docs/theory.md, in exact rationals."""

import math
from collections.abc import Callable
from fractions import Fraction
from itertools import product

import pytest
from hypothesis import strategies as st

from fieldprint.theory import hints as theory
from fieldprint.theory.quantization import code
from tests.theory.refuting import for_all, refuted

steps = st.integers(-12, 9).map(lambda exponent: Fraction(2) ** exponent)
bits = st.integers(1, 4)
# x in steps; eighths put a third of all cases on ties or one move away from them.
places = st.integers(-4000, 4000).map(lambda n: Fraction(n, 8)) | st.integers(-(10**6), 10**6).map(
    lambda n: Fraction(n, 1999)
)
shares = st.fractions(min_value=-1, max_value=1, max_denominator=1000) | st.sampled_from(
    [Fraction(-1), Fraction(1)]
)
cases = st.tuples(places, steps, bits, shares)
BELOW = Fraction(999999, 1000000)

Encode = Callable[[Fraction, Fraction, int], int]
Recover = Callable[[Fraction, Fraction, int, int], int]


def recovers(
    case: tuple[Fraction, Fraction, int, Fraction],
    *,
    reach: Fraction = BELOW,
    encode: Encode = theory.encode_hint,
    recover: Recover = theory.recover,
) -> bool:
    """Whether the code comes back from noise of `share` times `reach` times the limit."""
    place, step, b, share = case
    x = place * step
    y = x + share * reach * theory.noise_limit(step, b)
    return recover(y, step, b, encode(x, step, b)) == code(x, step)


# R14


@for_all(cases)
def test_every_noise_below_the_limit_is_borne(case: tuple[Fraction, Fraction, int, Fraction]) -> None:
    assert recovers(case)


@for_all(places.filter(lambda place: abs(place) < 120), st.integers(-8, 4), bits, shares)
def test_the_same_in_float64(place: Fraction, exponent: int, b: int, share: Fraction) -> None:
    step = 2.0**exponent
    x = float(place) * step
    y = x + float(share) * 0.999 * theory.noise_limit(step, b)
    assert theory.recover(y, step, b, theory.encode_hint(x, step, b)) == code(x, step)


@pytest.mark.parametrize("b", [1, 2, 3, 4])
def test_at_the_limit_itself_a_tie_breaks_the_wrong_way(b: int) -> None:
    """The example of proofs/Hints.v: x is half a step above 2^b, y half a turn above it."""
    size, step = 1 << b, Fraction(1, 4)
    x, y = (size + Fraction(1, 2)) * step, Fraction(3 * size, 2) * step
    assert y - x == theory.noise_limit(step, b)
    assert code(x, step) == size
    assert theory.recover(y, step, b, theory.encode_hint(x, step, b)) == 2 * size


@pytest.mark.parametrize(
    "changes",
    [
        {"reach": Fraction(1001, 1000)},
        {"reach": Fraction(2)},
        {"encode": lambda x, step, b: math.floor(x / step) % (1 << b)},
        {"encode": lambda x, step, b: code(x, step) % (1 << b - 1)},
        {"recover": lambda y, step, b, h: (1 << b) * math.floor((y / step - h) / (1 << b)) + h},
        {"recover": lambda y, step, b, h: code(y, step) - code(y, step) % (1 << b) + h},
        {"recover": lambda y, step, b, h: code(y, step)},
    ],
    ids=[
        "limit a thousandth higher", "limit (2^b - 1) D", "hint of the floor", "a bit less",
        "floor instead of nearest", "the verifier's own high bits", "no hint",
    ],
)  # fmt: skip
def test_another_limit_or_scheme_is_refuted(changes: dict[str, object]) -> None:
    assert refuted(cases, lambda case: recovers(case, **changes))  # type: ignore[arg-type]


def test_without_a_hint_no_noise_is_borne_and_none_is() -> None:
    step = Fraction(1)
    tie = Fraction(1, 2)
    assert theory.recover(tie, step, 0, theory.encode_hint(tie, step, 0)) == code(tie, step)
    for tau in (Fraction(1, 1000), Fraction(1, 10**9)):
        assert theory.recover(tie + tau, step, 0, theory.encode_hint(tie, step, 0)) != code(tie, step)
    with pytest.raises(ValueError, match="no noise"):
        theory.noise_limit(step, 0)


def test_a_hint_of_another_size_is_refused() -> None:
    for hint in (-1, 4):
        with pytest.raises(ValueError, match="lies within"):
            theory.recover(0.0, 1.0, 2, hint)


# R15


def codes_near(y: Fraction, tau: Fraction) -> set[int]:
    """The codes of all x within tau of y, for steps of 1: the ends, and each integer between."""
    low, high = y - tau, y + tau
    return {code(low, Fraction(1)), code(high, Fraction(1)), *range(math.ceil(low), math.floor(high) + 1)}


@for_all(places, st.fractions(min_value=0, max_value=7, max_denominator=64))
def test_no_more_codes_are_possible_than_a_hint_can_tell_apart(y: Fraction, tau: Fraction) -> None:
    b = theory.bits_needed(Fraction(1), tau)
    possible = codes_near(y, tau)
    assert len(possible) <= 1 << b
    assert len({c % (1 << b) for c in possible}) == len(possible)


@pytest.mark.parametrize("b", [1, 2, 3, 4])
def test_at_the_limit_more_codes_are_possible_than_hints_exist(b: int) -> None:
    """Whatever hints mean, 2^b of them cannot tell 2^b + 1 codes apart that one y leaves possible."""
    size = 1 << b
    y, tau = Fraction(size, 2), theory.noise_limit(Fraction(1), b)
    assert len(codes_near(y, tau)) == size + 1
    assert len(codes_near(y, tau * BELOW)) == size - 1


@for_all(st.fractions(min_value=Fraction(1, 1000), max_value=40, max_denominator=1000), steps)
def test_the_least_number_of_bits(tau: Fraction, step: Fraction) -> None:
    b = theory.bits_needed(step, tau * step)
    assert tau * step < theory.noise_limit(step, b)
    assert b == 1 or tau * step >= theory.noise_limit(step, b - 1)
    assert theory.bits_needed(step, Fraction(0)) == 0


def test_no_table_of_hints_bears_the_limit_for_one_bit() -> None:
    """All schemes of one bit on three codes that lie within the limit of one y: two codes share a hint in each."""
    possible = sorted(codes_near(Fraction(1), theory.noise_limit(Fraction(1), 1)))
    assert possible == [0, 1, 2]
    assert all(len(set(table)) < len(possible) for table in product(range(2), repeat=len(possible)))


# R16

Scheme = tuple[
    Callable[[Fraction, Fraction, Fraction], bool | None], Callable[[Fraction, Fraction, bool | None], int]
]
SPARSE: Scheme = (theory.encode_sparse_hint, theory.recover_sparse)
taus = st.integers(0, 249).map(lambda n: Fraction(n, 1000))
sparse_cases = st.tuples(places, steps, taus, shares)


def recovers_sparse(
    case: tuple[Fraction, Fraction, Fraction, Fraction],
    scheme: Scheme = SPARSE,
    reach: Fraction = Fraction(1),
) -> bool:
    encode, recover = scheme
    place, step, tau, share = case
    x, noise = place * step, tau * step
    return recover(x + share * reach * noise, step, encode(x, step, noise)) == code(x, step)


@for_all(sparse_cases, examples=300)
def test_sparse_hints_bear_less_than_a_quarter_of_a_step(
    case: tuple[Fraction, Fraction, Fraction, Fraction],
) -> None:
    assert recovers_sparse(case)


def test_at_a_quarter_of_a_step_a_sparse_hint_fails() -> None:
    """The example of proofs/Hints.v."""
    step, tau, x = Fraction(8), Fraction(2), Fraction(6)
    assert code(x, step) == 1 and theory.encode_sparse_hint(x, step, tau) is True
    assert theory.recover_sparse(x + tau, step, theory.encode_sparse_hint(x, step, tau)) == 2


@pytest.mark.parametrize(
    ("scheme", "reach"),
    [
        (SPARSE, Fraction(2)),
        ((lambda x, step, tau: None, theory.recover_sparse), Fraction(1)),
        ((lambda x, step, tau: theory.encode_sparse_hint(x, step, tau / 2), theory.recover_sparse), Fraction(1)),
        ((theory.encode_sparse_hint, lambda y, step, hint: code(y, step) if hint is None else math.ceil(y / step) + hint), Fraction(1)),
        ((theory.encode_sparse_hint, lambda y, step, hint: code(y, step) + bool(hint)), Fraction(1)),
    ],
    ids=["twice the noise", "no hints", "hints for half the noise", "ceiling", "the bit added to the code"],
)  # fmt: skip
def test_other_sparse_schemes_are_refuted(scheme: Scheme, reach: Fraction) -> None:
    assert refuted(sparse_cases, lambda case: recovers_sparse(case, scheme, reach))


@for_all(st.integers(0, 40).map(lambda n: Fraction(n, 200)))
def test_the_share_of_sparse_hints(tau: Fraction) -> None:
    """Over an even grid of 1,000 places in a step, up to the grid's own width."""
    hinted = sum(
        theory.encode_sparse_hint(Fraction(n, 1000), Fraction(1), tau) is not None for n in range(1000)
    )
    assert abs(Fraction(hinted, 1000) - 2 * tau) <= Fraction(1, 1000)


# R17

lies = st.tuples(places, steps, bits, st.integers(0, 15))


def lie_is_near(
    radius: Callable[[Fraction, int], Fraction], case: tuple[Fraction, Fraction, int, int]
) -> bool:
    place, step, b, hint = case
    y = place * step
    return abs(y - theory.recover(y, step, b, hint % (1 << b)) * step) <= radius(step, b)


@for_all(lies)
def test_whoever_chooses_the_hint_stays_within_the_radius(case: tuple[Fraction, Fraction, int, int]) -> None:
    assert lie_is_near(theory.acceptance_radius, case)


@pytest.mark.parametrize(
    "mutant",
    [
        lambda step, b: theory.noise_limit(step, b),
        lambda step, b: step / 2,
        lambda step, b: theory.acceptance_radius(step, b) * Fraction(99, 100),
    ],
    ids=["the limit", "half a step", "a hundredth less"],
)
def test_a_smaller_radius_is_refuted(mutant: Callable[[Fraction, int], Fraction]) -> None:
    assert refuted(lies, lambda case: lie_is_near(mutant, case))


@for_all(places, bits)
def test_a_liar_can_choose_each_of_the_codes_in_the_radius(y: Fraction, b: int) -> None:
    """One code a hint: 2^b in all, and they are neighbours."""
    reached = sorted(theory.recover(y, Fraction(1), b, hint) for hint in range(1 << b))
    assert reached == list(range(reached[0], reached[0] + (1 << b)))


@for_all(cases)
def test_the_residual_check_refuses_no_honest_code(case: tuple[Fraction, Fraction, int, Fraction]) -> None:
    place, step, b, share = case
    x, tau = place * step, theory.noise_limit(step, b)
    y = x + share * tau
    assert abs(y - code(x, step) * step) <= theory.residual_bound(step, tau)


def test_the_residual_check_shrinks_what_a_liar_may_choose() -> None:
    step, b, tau, y = Fraction(1), 3, Fraction(1, 50), Fraction(1, 3)
    free = [theory.recover(y, step, b, hint) for hint in range(1 << b)]
    left = [c for c in free if abs(y - c * step) <= theory.residual_bound(step, tau)]
    assert len(free) == 8 and left == [0]
    assert theory.residual_bound(step, tau) < theory.acceptance_radius(step, b)
    biased = Fraction(1, 2)  # near a tie both neighbours pass, so a bias of one step on such elements is left
    assert sum(abs(biased - c) <= theory.residual_bound(step, tau) for c in (0, 1)) == 2
