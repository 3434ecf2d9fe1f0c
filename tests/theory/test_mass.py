"""The anchor's share of attention: R1 to R6 of docs/theory.md.

In exact rationals a token is the exponential of its logit, any positive rational; then masses, bounds and outputs are
rational too, and no tolerance is needed.
"""

import math
from collections.abc import Callable, Sequence
from fractions import Fraction
from itertools import pairwise, product

import pytest
from hypothesis import strategies as st

from fieldprint.theory import mass as theory
from tests.theory.refuting import for_all, refuted

Tokens = list[tuple[Fraction, Fraction]]  # exponential of the logit, one channel of the value

ROUNDING = 1e-12  # of float64, relative
weights = st.integers(1, 300).map(lambda n: Fraction(n, 12))
values = st.integers(-90, 90).map(lambda n: Fraction(n, 8))
floors = st.integers(0, 20).map(lambda n: Fraction(n, 20))
logits = st.floats(min_value=-300, max_value=300)
some_logits = st.lists(logits, min_size=1, max_size=9)
pairs = st.tuples(st.lists(weights, min_size=1, max_size=5), st.lists(weights, min_size=1, max_size=5))
tokens = st.lists(st.tuples(weights, values), min_size=1, max_size=4)
# Contexts loud enough to hold an anchor at its floor are half of all.
loud = st.lists(st.tuples(weights.map(lambda weight: 10000 * weight), values), min_size=1, max_size=4)
worlds = st.tuples(floors, tokens, tokens | loud, tokens | loud)


def mass(anchor: Sequence[Fraction], context: Sequence[Fraction]) -> Fraction:
    return sum(anchor, Fraction(0)) / (sum(anchor, Fraction(0)) + sum(context, Fraction(0)))


def output(of: Tokens) -> Fraction:
    return sum(weight * value for weight, value in of) / sum(weight for weight, _ in of)


def mass_of(anchor: Tokens, context: Tokens) -> Fraction:
    return mass([weight for weight, _ in anchor], [weight for weight, _ in context])


def attend(weight: Fraction, anchor: Tokens, context: Tokens) -> Fraction:
    return (1 - weight) * output(context) + weight * output(anchor)


# R1


@for_all(some_logits, some_logits)
def test_the_mass_is_the_sigmoid_of_the_difference(anchor: list[float], context: list[float]) -> None:
    largest = max(*anchor, *context)
    shares = [math.exp(logit - largest) for logit in (*anchor, *context)]
    expected = math.fsum(shares[: len(anchor)]) / math.fsum(shares)
    assert theory.natural_mass(anchor, context) == pytest.approx(expected, rel=1e-9, abs=1e-300)


@for_all(tokens, tokens)
def test_concat_is_the_mixture_by_the_natural_mass(anchor: Tokens, context: Tokens) -> None:
    assert attend(mass_of(anchor, context), anchor, context) == output(anchor + context)


def test_no_constant_weight_is_concat() -> None:
    anchor = [(Fraction(1), Fraction(1))]
    quiet, strong = [(Fraction(1), Fraction(0))], [(Fraction(3), Fraction(0))]
    assert mass_of(anchor, quiet) == Fraction(1, 2) and mass_of(anchor, strong) == Fraction(1, 4)
    assert output(anchor + quiet) == Fraction(1, 2) and output(anchor + strong) == Fraction(1, 4)


def test_a_mass_at_the_edges() -> None:
    assert theory.natural_mass([0.0], []) == 1 and theory.natural_mass([], [0.0]) == 0
    assert theory.natural_mass([1e6], [-1e6]) == 1 and theory.natural_mass([-1e6], [1e6]) == 0
    with pytest.raises(ValueError, match="no tokens"):
        theory.natural_mass([], [])


@pytest.mark.parametrize(
    "mutant",
    [
        lambda anchor, context: (
            1 / (1 + math.exp(min(700, max(context) - max(anchor))))
        ),  # max instead of sum
        lambda anchor, context: theory.natural_mass(context, anchor),
        lambda anchor, context: 1 / (1 + math.exp(min(700, math.fsum(context) - math.fsum(anchor)))),
    ],
    ids=["max instead of sum", "the other side", "no exponential"],
)
def test_another_mass_is_refuted(mutant: Callable[[list[float], list[float]], float]) -> None:
    small = st.lists(st.floats(min_value=-5, max_value=5), min_size=1, max_size=4)
    assert refuted(
        st.tuples(small, small),
        lambda case: math.isclose(mutant(*case), theory.natural_mass(*case), rel_tol=1e-6),
    )


# R2


def exact_bound(num_anchor: int, num_context: int, ratio: Fraction) -> Fraction:
    """`mass_bound` with e^gap as a rational."""
    return Fraction(num_anchor) / (num_anchor + num_context * ratio)


def mass_is_bounded(
    bound: Callable[[int, int, Fraction], Fraction], case: tuple[list[Fraction], list[Fraction]]
) -> bool:
    anchor, context = case
    return mass(anchor, context) >= bound(len(anchor), len(context), max(context) / min(anchor))


@for_all(pairs)
def test_the_mass_is_at_least_the_bound(case: tuple[list[Fraction], list[Fraction]]) -> None:
    assert mass_is_bounded(exact_bound, case)


@pytest.mark.parametrize(
    "mutant",
    [
        lambda a, n, ratio: a / (a + ratio),
        lambda a, n, ratio: a / (a + n / ratio),
        lambda a, n, ratio: a / (a + n),
        lambda a, n, ratio: a / (1 + n * ratio),
        lambda a, n, ratio: exact_bound(a, n, ratio) * Fraction(1001, 1000),
    ],
    ids=[
        "one token of context",
        "gap of the other sign",
        "no gap",
        "one token in the sum",
        "a thousandth more",
    ],
)
def test_a_larger_bound_is_refuted(mutant: Callable[[int, int, Fraction], Fraction]) -> None:
    assert refuted(pairs, lambda case: mass_is_bounded(mutant, case))


def test_a_mass_by_the_largest_tokens_falls_below_the_bound() -> None:
    """Max instead of sum on both sides."""
    assert refuted(
        pairs,
        lambda case: (
            mass([max(case[0])], [max(case[1])])
            >= exact_bound(len(case[0]), len(case[1]), max(case[1]) / min(case[0]))
        ),
    )


@for_all(st.integers(1, 40), st.integers(1, 40), weights, weights)
def test_the_bound_is_reached(num_anchor: int, num_context: int, level: Fraction, ratio: Fraction) -> None:
    reached = mass([level] * num_anchor, [level * ratio] * num_context)
    assert reached == exact_bound(num_anchor, num_context, ratio)
    got = theory.mass_bound(num_anchor, num_context, math.log(ratio))
    assert got == pytest.approx(float(reached), rel=ROUNDING)


@for_all(some_logits, some_logits)
def test_the_bound_in_float64(anchor: list[float], context: list[float]) -> None:
    gap = max(context) - min(anchor)
    bound = theory.mass_bound(len(anchor), len(context), gap)
    assert theory.natural_mass(anchor, context) >= bound * (1 - 1e-9)


@for_all(pairs)
def test_the_mass_is_at_most_the_bound_by_the_least_gap(case: tuple[list[Fraction], list[Fraction]]) -> None:
    anchor, context = case
    assert mass(anchor, context) <= exact_bound(len(anchor), len(context), min(context) / max(anchor))


vectors = st.lists(st.floats(min_value=-4, max_value=4), min_size=3, max_size=3)
scenes = st.tuples(
    vectors,
    st.lists(vectors, min_size=1, max_size=4),
    st.lists(vectors, min_size=1, max_size=4),
    st.sampled_from([0.0, 0.5, 3.0]),
)


def gap_is_bounded(
    bound: Callable[[float, float, float, float], float],
    case: tuple[list[float], list[list[float]], list[list[float]], float],
) -> bool:
    query, anchor, context, cap = case

    def logit(key: list[float]) -> float:
        x = 0.3 * math.fsum(q * k for q, k in zip(query, key, strict=True))
        return cap * math.tanh(x / cap) if cap else x

    gap = max(logit(c) - logit(a) for c, a in product(context, anchor))
    distance = max(math.dist(c, a) for c, a in product(context, anchor))
    return gap <= bound(0.3, math.hypot(*query), distance, cap) + 1e-12


@for_all(scenes)
def test_the_gap_is_bounded_by_norms_and_by_the_cap(
    case: tuple[list[float], list[list[float]], list[list[float]], float],
) -> None:
    assert gap_is_bounded(theory.logit_gap_bound, case)


@pytest.mark.parametrize(
    "mutant",
    [
        lambda scale, norm, distance, cap: theory.logit_gap_bound(scale, norm, distance, cap) / 2,
        lambda scale, norm, distance, cap: min(scale * norm * distance, cap) if cap else math.inf,
        lambda scale, norm, distance, cap: scale * distance,
    ],
    ids=["half", "one cap", "no norm"],
)
def test_a_smaller_gap_is_refuted(mutant: Callable[[float, float, float, float], float]) -> None:
    assert refuted(scenes, lambda case: gap_is_bounded(mutant, case))


def test_counts_that_make_no_sense_are_refused() -> None:
    with pytest.raises(ValueError, match="at least one token"):
        theory.mass_bound(0, 5, 0.0)
    with pytest.raises(ValueError, match="at least one token"):
        theory.mass_bound(1, -1, 0.0)
    assert theory.mass_bound(1, 0, 5.0) == 1


# R3


@for_all(
    st.integers(1, 512), st.floats(min_value=0.001, max_value=0.999), st.floats(min_value=-6, max_value=6)
)
def test_one_token_more_than_the_longest_context_dilutes_the_anchor(
    num_anchor: int, kept: float, gap: float
) -> None:
    longest = theory.longest_context(num_anchor, kept, gap)
    assert theory.mass_bound(num_anchor, longest, gap) >= kept * (1 - ROUNDING)
    assert theory.mass_bound(num_anchor, longest + 1, gap) < kept * (1 + ROUNDING)


@for_all(
    st.lists(weights, min_size=1, max_size=4),
    st.integers(1, 19).map(lambda n: Fraction(n, 20)),
    st.integers(1, 10).map(lambda n: Fraction(n, 2)),
)
def test_the_adversary_repeats_one_token(anchor: list[Fraction], kept: Fraction, loudness: Fraction) -> None:
    """In exact rationals: as many tokens of one loudness as the formula says take the mass below any level."""
    ratio = loudness / max(anchor)  # no anchor token is further above them
    count = math.floor(len(anchor) * (1 - kept) / (kept * ratio)) + 1
    assert mass(anchor, [loudness] * count) < kept


def test_the_anchors_own_text_repeated_takes_its_mass() -> None:
    """Gap 0: a context of k copies of the anchor's own logits leaves it 1 / (k + 1)."""
    anchor = [Fraction(3), Fraction(1, 7), Fraction(5, 2)]
    for copies in (1, 9, 99):
        assert mass(anchor, anchor * copies) == Fraction(1, copies + 1)
    assert theory.longest_context(3, 0.25, 0.0) == 9


def test_the_longest_context_refuses_what_cannot_be_taken_away() -> None:
    for kept in (0.0, 1.0, -1.0):
        with pytest.raises(ValueError, match="within"):
            theory.longest_context(4, kept, 0.0)


# R4


def visible(position: int, window: int, num_sinks: int) -> list[int]:
    """As attention/naive.py has it."""
    return [i for i in range(position + 1) if i > position - window or i < num_sinks]


@for_all(
    st.lists(st.floats(min_value=-5, max_value=5), min_size=1, max_size=5),
    st.lists(st.floats(min_value=-5, max_value=5), min_size=1, max_size=60),
    st.integers(1, 20),
    st.integers(0, 4),
)
def test_a_window_keeps_the_mass_for_any_length(
    anchor: list[float], context: list[float], window: int, num_sinks: int
) -> None:
    gap = max(context) - min(anchor)
    seen = [context[i] for i in visible(len(context) - 1, window, num_sinks)]
    bound = theory.window_bound(len(anchor), window, num_sinks, gap)
    assert theory.natural_mass(anchor, seen) >= bound * (1 - ROUNDING)


def test_the_window_bound_is_reached_and_counts_the_sinks() -> None:
    seen = visible(10**5, 16, 4)
    assert len(seen) == 20
    reached = theory.natural_mass([0.0] * 8, [1.5] * len(seen))
    assert reached == pytest.approx(theory.window_bound(8, 16, 4, 1.5), rel=ROUNDING)
    assert reached < theory.window_bound(8, 16, 0, 1.5)
    with pytest.raises(ValueError, match="window"):
        theory.window_bound(8, 0, 4, 1.5)


# R5


@for_all(floors, pairs)
def test_the_weight_is_never_below_the_floor_nor_below_the_mass(
    floor: Fraction, case: tuple[list[Fraction], list[Fraction]]
) -> None:
    natural = mass(*case)
    weight = theory.injection_weight(floor, natural)
    assert weight >= floor and weight >= natural and weight in (floor, natural)


@pytest.mark.parametrize(
    "mutant",
    [min, lambda floor, natural: floor, lambda floor, natural: natural],
    ids=["min", "mixture", "concat"],
)
def test_another_weight_is_refuted(mutant: Callable[[Fraction, Fraction], Fraction]) -> None:
    assert refuted(
        st.tuples(floors, pairs),
        lambda case: mutant(case[0], mass(*case[1])) >= max(case[0], mass(*case[1])),
    )


@for_all(st.floats(min_value=0, max_value=0.99), some_logits, some_logits)
def test_a_floor_is_a_softmax_with_raised_logits(
    floor: float, anchor: list[float], context: list[float]
) -> None:
    natural = theory.natural_mass(anchor, context)
    if not 1e-250 < natural < 1 - 1e-12:
        natural = 0.5
        anchor, context = [0.0], [0.0]
    raised = [logit + theory.raised_logits(floor, natural) for logit in anchor]
    weight = theory.injection_weight(floor, natural)
    assert theory.natural_mass(raised, context) == pytest.approx(weight, rel=1e-9)


def test_logits_cannot_be_raised_to_the_whole_mass() -> None:
    for floor, natural in ((1.0, 0.5), (0.5, 0.0), (0.5, 1.0), (-0.1, 0.5)):
        with pytest.raises(ValueError, match="within"):
            theory.raised_logits(floor, natural)


def influence_is_bounded(
    bound: Callable[[Fraction, Fraction], Fraction], case: tuple[Fraction, Tokens, Tokens, Tokens]
) -> bool:
    floor, anchor, one, other = case
    outputs = [
        attend(theory.injection_weight(floor, mass_of(anchor, context)), anchor, context)
        for context in (one, other)
    ]
    all_values = [value for _, value in (*anchor, *one, *other)]
    return abs(outputs[0] - outputs[1]) <= bound(floor, max(all_values) - min(all_values))


@for_all(worlds)
def test_two_contexts_differ_by_at_most_one_minus_the_floor(
    case: tuple[Fraction, Tokens, Tokens, Tokens],
) -> None:
    assert influence_is_bounded(theory.context_influence_bound, case)


@pytest.mark.parametrize(
    "mutant",
    [
        lambda floor, diameter: (1 - floor) * diameter / 2,
        lambda floor, diameter: (1 - floor) ** 2 * diameter,
        lambda floor, diameter: floor * diameter,
    ],
    ids=["radius instead of diameter", "squared", "the floor itself"],
)
def test_a_smaller_influence_is_refuted(mutant: Callable[[Fraction, Fraction], Fraction]) -> None:
    assert refuted(worlds, lambda case: influence_is_bounded(mutant, case))


def test_without_the_floor_the_influence_is_not_bounded_by_it() -> None:
    """Concat in place of the floor: the same two contexts go beyond the bound."""
    floor, anchor = Fraction(1, 2), [(Fraction(1), Fraction(0))]
    one, other = [(Fraction(99), Fraction(1))], [(Fraction(99), Fraction(-1))]
    assert influence_is_bounded(theory.context_influence_bound, (floor, anchor, one, other))
    apart = output(anchor + one) - output(anchor + other)
    assert apart > theory.context_influence_bound(floor, Fraction(2))


@for_all(floors.filter(bool), values, values)
def test_the_influence_bound_is_reached(floor: Fraction, low: Fraction, high: Fraction) -> None:
    anchor, loudness = [(Fraction(1), low)], 1 / floor
    one, other = (
        attend(theory.injection_weight(floor, mass_of(anchor, context)), anchor, context)
        for context in ([(loudness, high)], [(loudness, low)])
    )
    assert abs(one - other) == theory.context_influence_bound(floor, abs(high - low))


def attention_weights(floor: Fraction, anchor: Tokens, contexts: list[Tokens], index: int) -> list[Fraction]:
    """The weights on all tokens, those of contexts that are not there 0."""
    natural = mass_of(anchor, contexts[index])
    weight = theory.injection_weight(floor, natural)
    total = sum(exponential for exponential, _ in anchor)
    found = [weight * exponential / total for exponential, _ in anchor]
    for i, context in enumerate(contexts):
        total = sum(exponential for exponential, _ in context)
        found += [
            (1 - weight) * exponential / total if i == index else Fraction(0) for exponential, _ in context
        ]
    return found


@for_all(worlds)
def test_the_weights_on_tokens_differ_by_at_most_one_minus_the_floor(
    case: tuple[Fraction, Tokens, Tokens, Tokens],
) -> None:
    floor, anchor, one, other = case
    weights_of = [attention_weights(floor, anchor, [one, other], index) for index in (0, 1)]
    assert [sum(weights) for weights in weights_of] == [1, 1]
    variation = sum(abs(p - q) for p, q in zip(*weights_of, strict=True)) / 2
    assert variation <= theory.context_influence_bound(floor, Fraction(1))


@for_all(
    st.floats(min_value=0, max_value=1),
    st.lists(st.tuples(st.floats(min_value=-3, max_value=9), vectors), min_size=3, max_size=3),
)
def test_the_influence_is_bounded_in_every_norm(floor: float, three: list[tuple[float, list[float]]]) -> None:
    """One anchor token and two contexts of one token each, in the maximum, the Euclidean and the sum norm."""
    (anchor, at), *contexts = three
    outputs = []
    for logit, value in contexts:
        weight = theory.injection_weight(floor, theory.natural_mass([anchor], [logit]))
        outputs.append([(1 - weight) * c + weight * a for c, a in zip(value, at, strict=True)])
    norms: list[Callable[[list[float]], float]] = [
        lambda x: max(map(abs, x)), lambda x: math.hypot(*x), lambda x: math.fsum(map(abs, x)),
    ]  # fmt: skip
    points = [at, *(value for _, value in contexts)]
    for norm in norms:
        diameter = max(norm([p - q for p, q in zip(a, b, strict=True)]) for a in points for b in points)
        apart = norm([p - q for p, q in zip(*outputs, strict=True)])
        assert apart <= theory.context_influence_bound(floor, diameter) + 1e-12


# R6


@for_all(floors, tokens, tokens)
def test_a_mixture_misses_concat_by_the_difference_of_the_weights(
    floor: Fraction, anchor: Tokens, context: Tokens
) -> None:
    natural = mass_of(anchor, context)
    missed = abs(attend(floor, anchor, context) - output(anchor + context))
    distance = abs(output(anchor) - output(context))
    assert missed == theory.mixture_shortfall(floor, natural, distance)


def test_a_mixture_loses_what_a_floor_keeps() -> None:
    """A head that reads a fact: only the anchor's token has it, and the margin needs 0.5 of it."""
    fact = [(Fraction(99), Fraction(1))]
    filler = [(Fraction(1), Fraction(0))]
    natural, floor, needed = mass_of(fact, filler), Fraction(1, 10), Fraction(1, 2)
    assert attend(natural, fact, filler) == Fraction(99, 100) > needed
    assert attend(theory.injection_weight(floor, natural), fact, filler) == Fraction(99, 100) > needed
    assert attend(floor, fact, filler) == floor < needed


@for_all(floors, st.lists(floors, min_size=2, max_size=6))
def test_a_floors_weight_never_falls_when_the_mass_grows(floor: Fraction, masses: list[Fraction]) -> None:
    found = [theory.injection_weight(floor, natural) for natural in sorted(masses)]
    assert all(less <= more for less, more in pairwise(found))
    assert theory.injection_weight(floor, Fraction(1)) == 1
