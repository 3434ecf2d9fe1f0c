"""The bounds of docs/theory.md on the code that runs: the quantizer and the operator, beside `fieldprint.theory`."""

import math

import pytest
from hypothesis import strategies as st

torch = pytest.importorskip("torch")

from fieldprint.attention.naive import naive_attention  # noqa: E402
from fieldprint.quantize import channel_exponents, dequantize, quantize  # noqa: E402
from fieldprint.theory import mass, quantization  # noqa: E402
from tests.theory.refuting import for_all  # noqa: E402

HEAD_DIM, SCALE = 8, 0.35
Scene = tuple["torch.Tensor", "torch.Tensor", "torch.Tensor", "torch.Tensor", "torch.Tensor"]


def scene(seed: int, num_anchor: int, num_context: int, loudness: float) -> Scene:
    """q [1, 1, d], context k and v [pages of one, 1, 1, d], anchor k and v [1, A, d]; one head, channels of unlike size."""
    draw = torch.Generator().manual_seed(seed)
    sizes = torch.exp2(torch.randint(-3, 4, (HEAD_DIM,), generator=draw).float())

    def normal(*shape: int) -> "torch.Tensor":
        return torch.randn(*shape, HEAD_DIM, generator=draw)

    return (
        normal(1, 1) / sizes,
        normal(num_context, 1, 1) * sizes * loudness,
        normal(num_context, 1, 1) * sizes,
        normal(1, num_anchor) * sizes,
        normal(1, num_anchor) * sizes,
    )


def attend(
    world: Scene,
    anchor_k: "torch.Tensor",
    anchor_v: "torch.Tensor",
    g: float,
    operator: str = "floor",
    **sight: int,
) -> tuple["torch.Tensor", float, float]:
    """The output, the mass and the weight of one query over its context and the anchor."""
    q, k, v = world[:3]
    out, _, a, w = naive_attention(
        q, k, v, torch.arange(len(k)).unsqueeze(0), torch.tensor([len(k)]), torch.tensor([0, 1]),
        anchor_k=anchor_k, anchor_v=anchor_v, g=g, operator=operator, softmax_scale=SCALE, **sight,
    )  # fmt: skip
    return out[0, 0], float(a), float(w)


worlds = st.builds(
    scene, st.integers(0, 10**6), st.integers(1, 6), st.integers(1, 20), st.sampled_from([0.1, 1.0, 6.0])
)
floors = st.sampled_from([0.0, 0.05, 0.3, 0.9, 1.0])


@for_all(worlds, floors, st.sampled_from(["floor", "mixture"]), examples=60)
def test_an_anchor_served_from_its_codes_moves_the_output_by_at_most_the_bound(
    world: Scene, g: float, operator: str
) -> None:
    q, _, v, anchor_k, anchor_v = world
    served_k, served_v = (dequantize(*quantize(x)) for x in (anchor_k, anchor_v))
    before, _, _ = attend(world, anchor_k, anchor_v, g, operator)
    after, _, weight = attend(world, served_k, served_v, g, operator)
    key_steps, value_steps = (
        torch.exp2(channel_exponents(x)[0].double()).tolist() for x in (anchor_k, anchor_v)
    )
    eps = quantization.logit_bound(q[0, 0].tolist(), key_steps, SCALE)
    for channel, step in enumerate(value_steps):
        every = [*v[:, 0, 0, channel].tolist(), *anchor_v[0, :, channel].tolist()]
        bound = quantization.output_bound(eps, max(every) - min(every), step, weight)
        assert abs(float(after[channel] - before[channel])) <= bound + 1e-9


@for_all(worlds, examples=60)
def test_logits_and_channels_move_by_at_most_their_bounds(world: Scene) -> None:
    q, _, _, anchor_k, _ = world
    served = dequantize(*quantize(anchor_k))
    steps = torch.exp2(channel_exponents(anchor_k)[0].double()).tolist()
    moved = SCALE * ((served - anchor_k)[0].double() @ q[0, 0].double())
    assert float(moved.abs().max()) <= quantization.logit_bound(q[0, 0].tolist(), steps, SCALE) + 1e-12
    for channel in range(HEAD_DIM):
        largest = float(anchor_k[0, :, channel].abs().max())
        error = float((served - anchor_k)[0, :, channel].abs().max())
        assert error <= quantization.channel_bound(largest)


def test_a_floor_instead_of_rne_breaks_the_logits_bound() -> None:
    """The same property refutes codes that are rounded down."""
    broken = 0
    for seed in range(40):
        q, _, _, anchor_k, _ = scene(seed, 4, 1, 1.0)
        steps = torch.exp2(channel_exponents(anchor_k)[0].double())
        served = torch.floor(anchor_k.double() / steps) * steps
        moved = SCALE * ((served - anchor_k.double())[0] @ q[0, 0].double())
        broken += float(moved.abs().max()) > quantization.logit_bound(q[0, 0].tolist(), steps.tolist(), SCALE)
    assert broken > 5


@for_all(worlds, floors, st.integers(1, 8), st.integers(0, 3), examples=60)
def test_mass_and_weight_of_the_operator_keep_the_bounds(
    world: Scene, g: float, window: int, num_sinks: int
) -> None:
    q, k, _, anchor_k, anchor_v = world
    query = q[0, 0].double()
    context = (SCALE * k[:, 0, 0].double() @ query).tolist()
    anchor = (SCALE * anchor_k[0].double() @ query).tolist()
    for sight, seen in (
        ({}, context),
        ({"window": window, "num_sinks": num_sinks},
         [x for i, x in enumerate(context) if i > len(context) - 1 - window or i < num_sinks]),
    ):  # fmt: skip
        _, a, w = attend(world, anchor_k, anchor_v, g, **sight)
        gap = max(seen) - min(anchor)
        assert a == pytest.approx(mass.natural_mass(anchor, seen), rel=1e-9)
        assert w == mass.injection_weight(g, a) and w >= g and w >= a
        assert a >= mass.mass_bound(len(anchor), len(seen), gap) * (1 - 1e-9)
        if sight:
            assert a >= mass.window_bound(len(anchor), window, num_sinks, gap) * (1 - 1e-9)
    norm = float(query.norm())
    distance = max(math.dist(x, y) for x in k[:, 0, 0].tolist() for y in anchor_k[0].tolist())
    assert max(context) - min(anchor) <= mass.logit_gap_bound(SCALE, norm, distance) + 1e-9


@for_all(worlds, worlds, floors, examples=60)
def test_two_contexts_move_the_operators_output_by_at_most_one_minus_the_floor(
    world: Scene, other: Scene, g: float
) -> None:
    q, _, _, anchor_k, anchor_v = world
    one = attend(world, anchor_k, anchor_v, g)[0]
    two = attend((q, *other[1:]), anchor_k, anchor_v, g)[0]
    every = torch.cat([world[2][:, 0, 0], other[2][:, 0, 0], anchor_v[0]]).double()
    diameter = float(torch.cdist(every, every).max())
    assert float((one - two).norm()) <= mass.context_influence_bound(g, diameter) + 1e-5


def test_the_paged_operator_keeps_the_floor_under_a_context_that_grows() -> None:
    """The adversary of R3: one loud key, again and again. Concat's mass goes down, the floor's weight stays."""
    q = torch.ones(1, 1, HEAD_DIM)
    anchor_k, anchor_v = torch.zeros(1, 4, HEAD_DIM), torch.ones(1, 4, HEAD_DIM)
    gap = SCALE * HEAD_DIM * 0.5
    for count in (1, 10, 100):
        context = torch.full((count, 1, 1, HEAD_DIM), 0.5)
        world: Scene = (q, context, -torch.ones(count, 1, 1, HEAD_DIM), anchor_k, anchor_v)
        _, natural, _ = attend(world, anchor_k, anchor_v, 0.0)
        out, _, weight = attend(world, anchor_k, anchor_v, 0.2)
        assert natural == pytest.approx(mass.mass_bound(4, count, gap), rel=1e-9)
        assert weight == max(0.2, natural) and float(out.min()) == pytest.approx(2 * weight - 1)
    assert natural < 0.02 and count > mass.longest_context(4, 0.02, gap)
