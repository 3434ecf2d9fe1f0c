"""The synchronous baseline computes what our engine computes, and checks what it says it checks."""

import hashlib
from dataclasses import dataclass
from pathlib import Path

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("triton")
pytest.importorskip("transformers")

from benchmarks.baseline_v25 import V25, V25Answer, engine_steps, main, softmax_pass  # noqa: E402
from fieldprint.adapters.transformers import LoadedModel, load_model  # noqa: E402
from fieldprint.attention.naive import naive_attention  # noqa: E402
from fieldprint.errors import CapacityError, IntegrityError  # noqa: E402
from fieldprint.generate import Engine  # noqa: E402
from fieldprint.kvcache import PagePool  # noqa: E402
from fieldprint.promote import PinnedAnchor, promote_anchor  # noqa: E402
from tests.signing import signed_anchor  # noqa: E402

TEXT = "Your codename is Falcon. You live in Oslo. The password is Quartz. Always be brief."
QUESTIONS = ("Where do you live?", "What is the password? Tell me in one word, please.")
G = 0.1
TOKENS = 8


@dataclass
class World:
    model: LoadedModel
    pool: PagePool
    pinned: PinnedAnchor

    @property
    def prompts(self) -> list[list[int]]:
        """Of different lengths; one is longer than a prefill chunk."""
        long = self.model.encode("The quick brown fox jumps over the lazy dog near the river bank. " * 40)
        return [*(self.model.chat_tokens(question) for question in QUESTIONS), long[:530]]

    def v25(self, g: float = G) -> V25:
        return V25(self.model.decoder, self.pool, self.pinned, g)

    def pinned_slot(self, layer: int, part: int, token: int) -> torch.Tensor:
        """K (0) or V (1) of one token of the anchor."""
        return self.pool.storage[layer, part, self.pinned.pages[token // 16], token % 16]


@pytest.fixture(scope="module")
def world(model_folder: Path) -> World:
    model = load_model(model_folder)
    pool = PagePool(model.decoder.page_layout(16), 80)
    verified, tokens = signed_anchor(model, TEXT)
    return World(model, pool, promote_anchor(verified, model.decoder, pool, tokens))


@pytest.mark.parametrize(("g", "rows"), [(G, 3), (0.4, 2)])
def test_same_tokens_as_our_engine_under_the_mixture(world: World, g: float, rows: int) -> None:
    decoder, pool = world.model.decoder, world.pool
    engine = Engine(decoder, pool, decode=world.model.decode, model=world.model.digest)
    steps = engine_steps(engine, world.pinned, world.prompts[:rows], TOKENS, g=g)
    expected = [list(row) for row in zip(*steps, strict=True)]
    answer = world.v25(g).generate(world.prompts[:rows], TOKENS)
    assert answer.tokens == expected
    assert len(answer.step_ms) == TOKENS - 1 and answer.ms_per_step > 0
    pool.check_conservation(list(world.pinned.pages))


def test_weight_of_the_anchor_changes_the_answer(world: World) -> None:
    """Otherwise equality with the engine would say nothing of the second pass."""
    assert len({str(world.v25(g).generate(world.prompts[:2], TOKENS).tokens) for g in (G, 0.8)}) == 2


@pytest.mark.parametrize("part", [0, 1])
def test_one_flipped_bit_of_the_anchor_stops_it(world: World, part: int) -> None:
    raw = world.pinned_slot(17, part, world.pinned.num_tokens - 1).view(torch.uint8)
    steps = world.v25().steps(world.prompts[:2], TOKENS)
    next(steps)
    next(steps)
    raw[2, 100] ^= 4
    try:
        with pytest.raises(IntegrityError, match="layer 17"):
            next(steps)
    finally:
        raw[2, 100] ^= 4
    world.pool.check_conservation(list(world.pinned.pages))
    world.v25().generate(world.prompts[:1], 2)


def test_a_slot_behind_the_anchor_is_not_part_of_it(world: World) -> None:
    after = world.pinned.num_tokens
    assert after % 16
    slot = world.pinned_slot(0, 0, after)
    slot.fill_(torch.nan)
    world.v25().generate(world.prompts[:1], 2)
    slot.zero_()


def test_records_are_digests_of_the_new_slots(world: World) -> None:
    prompts = world.prompts[:2]
    v25 = world.v25()
    steps = v25.steps(prompts, 3)
    next(steps)
    next(steps)
    pages = [page for page in range(world.pool.num_pages) if world.pool.references(page)]
    own = [page for page in pages if page not in world.pinned.pages]
    held = [own[: -(-(len(prompts[0]) + 3) // 16)], own[-(-(len(prompts[0]) + 3) // 16) :]]
    for layer, digest in enumerate(v25.recorded[0]):
        rows = [
            world.pool.storage[layer, :, pages[len(prompt) // 16], len(prompt) % 16]
            for pages, prompt in zip(held, prompts, strict=True)
        ]
        assert digest == hashlib.sha256(torch.stack(rows, 1).numpy().tobytes()).digest()
    steps.close()
    assert len(v25.recorded) == 1 and len(v25.recorded[0]) == world.model.decoder.config.num_layers


def test_what_lies_behind_the_end_of_a_row_is_not_looked_at(world: World) -> None:
    """Freed pages full of NaN are handed out again."""
    prompts = world.prompts[:2]
    expected = world.v25().generate(prompts, 4).tokens
    free = [page for page in range(world.pool.num_pages) if not world.pool.references(page)]
    world.pool.storage[:, :, free] = torch.nan
    assert world.v25().generate(prompts, 4).tokens == expected
    world.pool.storage[:, :, free] = 0


def test_passes_equal_naive() -> None:
    """Both passes and the blend, in float64 one key after the other."""
    heads, group, dim, anchor, g = 2, 3, 16, 5, 0.3
    draw = torch.Generator().manual_seed(0)

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=draw)

    lens = [20, 7]
    q, k, v = normal(2, heads * group, dim), normal(2, 20, heads, dim), normal(2, 20, heads, dim)
    anchor_k, anchor_v = normal(heads, anchor, dim), normal(heads, anchor, dim)
    want, *_ = naive_attention(
        q, k, v, torch.arange(2).unsqueeze(1), torch.tensor(lens), torch.arange(3),
        anchor_k=anchor_k, anchor_v=anchor_v, g=torch.full((heads * group,), g), operator="mixture",
    )  # fmt: skip
    k[1, 7:], v[1, 7:] = torch.nan, torch.nan
    grouped = q.view(2, heads, group, dim).transpose(0, 1) * dim**-0.5
    unseen = (torch.arange(20) >= torch.tensor(lens).unsqueeze(1)).unsqueeze(1)
    context = softmax_pass(grouped, k.permute(2, 0, 1, 3), v.permute(2, 0, 1, 3), unseen)
    second = softmax_pass(grouped.flatten(1, 2), anchor_k, anchor_v, None).view(context.shape)
    got = torch.lerp(context, second, g).transpose(0, 1).reshape(q.shape).double()
    assert (got - want).norm() <= 1e-6 * want.norm()


def test_wrong_arguments_are_refused(world: World) -> None:
    other = PagePool(world.model.decoder.page_layout(16), 1)
    with pytest.raises(ValueError, match="another pool"):
        V25(world.model.decoder, other, world.pinned, G)
    for prompts, tokens in (
        ([], 2),
        ([[]], 2),
        ([[1]], 0),
        ([[1]], world.model.decoder.config.max_positions),
    ):
        with pytest.raises(ValueError, match=r"prompts|positions"):
            world.v25().generate(prompts, tokens)
    with pytest.raises(CapacityError):
        world.v25().generate([[1] * 700, [1] * 700], 2)
    world.pool.check_conservation(list(world.pinned.pages))


def test_mean_of_the_steps_leaves_out_the_first_ones() -> None:
    assert V25Answer([], [9.0] * 4 + [1.0, 2.0]).ms_per_step == 1.5
    assert V25Answer([], [3.0, 5.0]).ms_per_step == 4


def test_without_a_gpu_the_benchmark_says_so(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.argv", ["baseline_v25"])
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert main() == 2
    assert "no CUDA device" in capsys.readouterr().err
