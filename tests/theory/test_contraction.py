"""The recursion under disturbance: R7 to R9 of docs/theory.md."""

import math
import random
from collections.abc import Callable
from fractions import Fraction
from itertools import pairwise

import pytest
from hypothesis import strategies as st

from fieldprint.theory import contraction as theory
from fieldprint.theory.distance import fisher_rao, total_variation
from tests.theory.refuting import for_all, refuted

rates = st.integers(0, 19).map(lambda n: Fraction(n, 20))
sizes = st.integers(0, 80).map(lambda n: Fraction(n, 8))
signs = st.lists(st.integers(-8, 8).map(lambda n: Fraction(n, 8)), min_size=1, max_size=10)
orbits = st.tuples(rates, sizes, sizes, signs)
Orbit = tuple[Fraction, Fraction, Fraction, list[Fraction]]
Bound = Callable[[int, Fraction, Fraction, Fraction], Fraction]

# R7


def orbit(case: Orbit) -> list[Fraction]:
    """x_0, x_1, ...: T(x) = -rho x, whose fixed point is 0, disturbed by at most delta."""
    rho, start, delta, disturbances = case
    found = [start]
    for sign in disturbances:
        found.append(-rho * found[-1] + sign * delta)
    return found


def orbit_is_bounded(bound: Bound, case: Orbit) -> bool:
    rho, start, delta, _ = case
    return all(abs(x) <= bound(n, start, rho, delta) for n, x in enumerate(orbit(case)))


@for_all(orbits)
def test_an_orbit_stays_within_the_bound(case: Orbit) -> None:
    assert orbit_is_bounded(theory.distance_bound, case)


@pytest.mark.parametrize(
    "mutant",
    [
        lambda n, start, rho, delta: rho**n * start + delta,
        lambda n, start, rho, delta: rho**n * start + delta * (1 - rho**n) / (1 + rho),
        lambda n, start, rho, delta: rho ** (n + 1) * start + theory.noise_floor(rho, delta),
        lambda n, start, rho, delta: max(rho**n * start, theory.noise_floor(rho, delta)),
    ],
    ids=["one disturbance", "1 + rho", "one step ahead", "max instead of sum"],
)
def test_a_smaller_bound_is_refuted(mutant: Bound) -> None:
    assert refuted(orbits, lambda case: orbit_is_bounded(mutant, case))


@for_all(rates, sizes, sizes, st.integers(0, 30))
def test_the_bound_is_reached(rho: Fraction, start: Fraction, delta: Fraction, steps: int) -> None:
    x = start
    for _ in range(steps):
        x = rho * x + delta
    assert x == theory.distance_bound(steps, start, rho, delta)


@for_all(rates, sizes)
def test_the_noise_floor_is_where_an_orbit_stays(rho: Fraction, delta: Fraction) -> None:
    floor = theory.noise_floor(rho, delta)
    assert rho * floor + delta == floor
    assert abs(theory.distance_bound(2000, Fraction(10), rho, delta) - floor) < Fraction(1, 10**20)


@for_all(orbits)
def test_the_last_step_says_how_far_the_fixed_point_is(case: Orbit) -> None:
    rho, _, delta, _ = case
    xs = orbit(case)
    for x, following in pairwise(xs):
        assert abs(x) <= theory.fixed_point_distance(abs(following - x), rho, delta)


def test_the_last_steps_bound_is_reached_and_a_smaller_one_refuted() -> None:
    rho, delta = Fraction(1, 2), Fraction(1, 4)
    x, following = Fraction(3), Fraction(3, 2) + delta  # T(x) = x / 2: disturbed away from the fixed point
    assert abs(x) == theory.fixed_point_distance(x - following, rho, delta)
    assert refuted(orbits, lambda case: abs(case[1]) <= abs(orbit(case)[1] - case[1]) / (1 - case[0]))


def steep(x: Fraction, rho: Fraction, radius: Fraction) -> Fraction:
    """A map that contracts within the ball and doubles outside of it."""
    return rho * x if abs(x) <= radius else 2 * x


@for_all(rates, sizes, signs)
def test_a_ball_as_large_as_the_noise_floor_is_not_left(
    rho: Fraction, delta: Fraction, disturbances: list[Fraction]
) -> None:
    radius = theory.noise_floor(rho, delta)
    x = radius
    for n, sign in enumerate(disturbances, 1):
        x = steep(x, rho, radius) + sign * delta
        assert abs(x) <= radius
        assert abs(x) <= theory.distance_bound(n, radius, rho, delta)


def test_a_smaller_ball_is_left() -> None:
    rho, delta = Fraction(1, 2), Fraction(1)
    radius = theory.noise_floor(rho, delta) * Fraction(99, 100)
    x = radius
    for _ in range(12):
        x = steep(x, rho, radius) + delta
    assert x > 1000


def test_two_maps_that_contract_have_the_fixed_point_where_the_orbits_meet() -> None:
    """Banach: orbits of cos from any two starts in [0, 1] meet, with rho = sin 1."""
    one, other = 0.0, 1.0
    for n in range(1, 60):
        one, other = math.cos(one), math.cos(other)
        assert abs(one - other) <= theory.distance_bound(n, 1.0, math.sin(1), 0.0) + 1e-15
    assert one == pytest.approx(math.cos(one), abs=1e-4)


def test_without_a_contraction_nothing_is_promised() -> None:
    for rho in (1.0, 1.5, -0.1):
        for refused in (
            lambda rho=rho: theory.distance_bound(3, 1.0, rho, 0.1),
            lambda rho=rho: theory.noise_floor(rho, 0.1),
            lambda rho=rho: theory.mean_square_bound(3, 1.0, rho, 0.1),
            lambda rho=rho: theory.fixed_point_distance(1.0, rho, 0.1),
        ):
            with pytest.raises(ValueError, match="rho"):
                refused()


# R8: disturbances that are +1 or -1, evenly, so that every expectation is a sum over all paths


def paths(rho: Fraction, start: Fraction, size: Fraction, steps: int) -> list[Fraction]:
    """x_n of T(x) = rho x on each of the 2^n equally likely paths."""
    ends = [start]
    for _ in range(steps):
        ends = [rho * x + sign * size for x in ends for sign in (1, -1)]
    return ends


def mean(numbers: list[Fraction]) -> Fraction:
    return sum(numbers, Fraction(0)) / len(numbers)


walks = st.tuples(rates, sizes, sizes, st.integers(0, 7))
Walk = tuple[Fraction, Fraction, Fraction, int]


@for_all(walks, examples=60)
def test_the_expected_distance_is_bounded(case: Walk) -> None:
    rho, start, size, steps = case
    expected = mean([abs(x) for x in paths(rho, start, size, steps)])
    assert expected <= theory.distance_bound(steps, start, rho, size)


@for_all(walks, examples=60)
def test_the_mean_square_is_reached_by_a_linear_map(case: Walk) -> None:
    rho, start, size, steps = case
    square = mean([x * x for x in paths(rho, start, size, steps)])
    assert square == theory.mean_square_bound(steps, start, rho, size * size)
    assert square <= theory.distance_bound(steps, start, rho, size) ** 2


@pytest.mark.parametrize(
    "mutant",
    [
        lambda n, start, rho, var: rho ** (2 * n) * start**2 + var,
        lambda n, start, rho, var: rho**n * start**2 + var * (1 - rho**n) / (1 + rho),
        lambda n, start, rho, var: rho ** (2 * n) * start**2,
    ],
    ids=["one disturbance", "rho not squared", "no noise"],
)
def test_a_smaller_mean_square_is_refuted(mutant: Bound) -> None:
    def holds(case: Walk) -> bool:
        rho, start, size, steps = case
        return mean([x * x for x in paths(rho, start, size, steps)]) <= mutant(steps, start, rho, size * size)

    assert refuted(walks, holds)


def test_a_disturbance_with_a_mean_breaks_the_mean_square_bound() -> None:
    """The hypothesis is needed: always +1 adds up as in R7."""
    rho, steps = Fraction(1, 2), 8
    x = Fraction(0)
    for _ in range(steps):
        x = rho * x + 1
    assert x * x > theory.mean_square_bound(steps, Fraction(0), rho, Fraction(1))


@for_all(rates, sizes, sizes, st.integers(0, 7), rates, examples=60)
def test_a_random_rate_counts_by_its_mean(
    rho: Fraction, start: Fraction, size: Fraction, steps: int, spread: Fraction
) -> None:
    """The factor is rho (1 + spread) or rho (1 - spread), evenly; the distance grows by `size` at each step."""
    ends = [start]
    for _ in range(steps):
        ends = [rho * factor * d + size for d in ends for factor in (1 + spread, 1 - spread)]
    assert mean(ends) == theory.distance_bound(steps, start, rho, size)


def test_no_path_is_bounded_by_the_mean() -> None:
    rho, steps = Fraction(1, 2), 6
    ends = paths(rho, Fraction(0), Fraction(1), steps)
    assert max(x * x for x in ends) > theory.mean_square_bound(steps, Fraction(0), rho, Fraction(1))


# R9

rows = st.lists(st.integers(0, 9), min_size=3, max_size=3).filter(any)


def distribution(row: list[int]) -> list[Fraction]:
    return [Fraction(n, sum(row)) for n in row]


distributions = rows.map(distribution)
kernels = st.lists(distributions, min_size=3, max_size=3)
chains = st.tuples(kernels, distributions, distributions)
Chain = tuple[list[list[Fraction]], list[Fraction], list[Fraction]]


def after(p: list[Fraction], kernel: list[list[Fraction]]) -> list[Fraction]:
    return [sum((p[i] * kernel[i][j] for i in range(len(p))), Fraction(0)) for j in range(len(p))]


def variation(p: list[Fraction], q: list[Fraction]) -> Fraction:
    return sum((abs(a - b) for a, b in zip(p, q, strict=True)), Fraction(0)) / 2


def floats(p: list[Fraction]) -> list[float]:
    return [float(x) for x in p]


def step_contracts(factor: Callable[[list[list[Fraction]]], Fraction], case: Chain) -> bool:
    kernel, p, q = case
    return variation(after(p, kernel), after(q, kernel)) <= factor(kernel) * variation(p, q)


@for_all(chains)
def test_a_step_of_a_chain_contracts_by_dobrushins_coefficient(case: Chain) -> None:
    assert step_contracts(theory.dobrushin, case)


@pytest.mark.parametrize(
    "mutant",
    [
        lambda kernel: theory.dobrushin(kernel) / 2,
        lambda kernel: min(variation(a, b) for i, a in enumerate(kernel) for b in kernel[:i]),
    ],
    ids=["half", "the nearest rows"],
)
def test_a_smaller_factor_is_refuted(mutant: Callable[[list[list[Fraction]]], Fraction]) -> None:
    assert refuted(chains, lambda case: step_contracts(mutant, case))


@for_all(kernels)
def test_dobrushins_coefficient_is_reached(kernel: list[list[Fraction]]) -> None:
    ends = [[Fraction(i == j) for j in range(3)] for i in range(3)]
    reached = max(variation(after(p, kernel), after(q, kernel)) for p in ends for q in ends)
    assert reached == theory.dobrushin(kernel)


restarts = st.integers(1, 20).map(lambda n: Fraction(n, 20))


def with_restart(kernel: list[list[Fraction]], anchored: list[Fraction], g: Fraction) -> list[list[Fraction]]:
    return [[g * a + (1 - g) * k for a, k in zip(anchored, row, strict=True)] for row in kernel]


@for_all(kernels, distributions, restarts)
def test_a_restart_with_probability_g_contracts_by_one_minus_g(
    kernel: list[list[Fraction]], anchored: list[Fraction], g: Fraction
) -> None:
    restarted = with_restart(kernel, anchored, g)
    assert theory.dobrushin(restarted) == (1 - g) * theory.dobrushin(kernel) <= 1 - g
    p, q = [Fraction(1), Fraction(0), Fraction(0)], [Fraction(0), Fraction(0), Fraction(1)]
    for n in range(1, 6):
        p, q = after(p, restarted), after(q, restarted)
        assert variation(p, q) <= theory.distance_bound(n, Fraction(1), 1 - g, Fraction(0))


def fisher_rao_contracts(
    rate: Callable[[float], float], case: tuple[Chain, list[Fraction], Fraction]
) -> bool:
    (kernel, p, q), anchored, g = case
    restarted = with_restart(kernel, anchored, g)
    before = fisher_rao(floats(p), floats(q))
    return (
        fisher_rao(floats(after(p, restarted)), floats(after(q, restarted))) <= rate(float(g)) * before + 1e-7
    )


@for_all(st.tuples(chains, distributions, restarts))
def test_a_restart_contracts_fisher_rao_by_the_root(case: tuple[Chain, list[Fraction], Fraction]) -> None:
    assert fisher_rao_contracts(lambda g: math.sqrt(1 - g), case)


def test_one_minus_g_is_no_rate_of_fisher_rao() -> None:
    """Where the restart puts nothing on what p and q differ in, sin(d / 4) shrinks by exactly sqrt(1 - g)."""
    stay = [[Fraction(i == j) for j in range(3)] for i in range(3)]
    anchored = [Fraction(0), Fraction(0), Fraction(1)]
    p, q, g = (
        [Fraction(1, 2), Fraction(1, 2), Fraction(0)],
        [Fraction(1, 3), Fraction(2, 3), Fraction(0)],
        Fraction(1, 4),
    )
    assert not fisher_rao_contracts(lambda g: 1 - g, ((stay, p, q), anchored, g))
    restarted = with_restart(stay, anchored, g)
    shrunk = fisher_rao(floats(after(p, restarted)), floats(after(q, restarted)))
    assert math.sin(shrunk / 4) == pytest.approx(
        math.sqrt(0.75) * math.sin(fisher_rao(floats(p), floats(q)) / 4)
    )


@for_all(chains)
def test_no_step_of_a_chain_moves_distributions_apart(case: Chain) -> None:
    kernel, p, q = case
    apart = fisher_rao(floats(after(p, kernel)), floats(after(q, kernel)))
    assert apart <= fisher_rao(floats(p), floats(q)) + 1e-7


@for_all(
    st.lists(st.floats(min_value=-1, max_value=1), min_size=8, max_size=8),
    st.sampled_from([0.0, 0.5, 2.0]),
    examples=50,
)
def test_a_window_of_bounded_logits_forgets_its_start(logits: list[float], spread: float) -> None:
    """Two tokens, a window of two: whatever the logits, two steps share exp(-2 R) of uniform, so they contract."""
    windows = [(i, j) for i in (0, 1) for j in (0, 1)]
    kernel = [[0.0] * 4 for _ in windows]
    for state, (_, last) in enumerate(windows):
        scores = [spread / 2 * logits[2 * state + token] for token in (0, 1)]
        for token in (0, 1):
            share = math.exp(scores[token]) / (math.exp(scores[0]) + math.exp(scores[1]))
            kernel[state][windows.index((last, token))] += share
    twice = [[math.fsum(row[i] * kernel[i][j] for i in range(4)) for j in range(4)] for row in kernel]
    assert min(min(row) for row in twice) >= math.exp(-2 * spread) / 4 - 1e-12
    assert theory.dobrushin(twice) <= 1 - math.exp(-2 * spread) + 1e-12
    assert theory.dobrushin(kernel) == pytest.approx(1), "one step alone does not: the last token stays"


def test_a_greedy_agent_may_run_in_a_circle() -> None:
    """Always the other token than the last: probabilities of 0, no contraction, and no limit."""
    kernel = [[Fraction(0), Fraction(1)], [Fraction(1), Fraction(0)]]
    assert theory.dobrushin(kernel) == 1
    p = [Fraction(1), Fraction(0)]
    assert after(p, kernel) != p and after(after(p, kernel), kernel) == p


def test_a_chain_that_is_simulated_forgets_its_start() -> None:
    """Two starts, 20,000 runs each: their distributions after n steps are within the bound and sampling error."""
    draw = random.Random(7)
    g, n, runs = Fraction(3, 10), 4, 20_000
    stay = [[Fraction(i == j) for j in range(3)] for i in range(3)]
    kernel = with_restart(stay, [Fraction(1, 3)] * 3, g)
    rows_of = [floats(row) for row in kernel]
    found = []
    for start in (0, 2):
        counts = [0, 0, 0]
        for _ in range(runs):
            state = start
            for _ in range(n):
                state = draw.choices(range(3), rows_of[state])[0]
            counts[state] += 1
        found.append([count / runs for count in counts])
    bound = float(theory.distance_bound(n, Fraction(1), 1 - g, Fraction(0)))
    error = 4 * math.sqrt(0.5 / runs)  # four standard deviations of a difference of shares
    assert abs(total_variation(*found) - bound) <= 2 * error, "and it is reached: the bound is tight here"
