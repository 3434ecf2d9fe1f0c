"""Decode steps in the Triton kernel against those by torch's operators: the same tokens, leaves and repairs.

On a GPU: captured graphs and the whole demo model. Without one: Triton's interpreter and the model's first layer.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("triton")

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey  # noqa: E402

from fieldprint.adapters.transformers import LoadedModel  # noqa: E402
from fieldprint.decoder import Decoder, DecoderConfig, LayerWeights, Linear  # noqa: E402
from fieldprint.generate import (  # noqa: E402
    AttentionSettings,
    Engine,
    EngineSettings,
    Event,
    Finished,
    GenerationRequest,
    GenerationResult,
    RolledBack,
    Sampler,
)
from fieldprint.generate.graph import DecodeGraph, GraphRow, GraphShape  # noqa: E402
from fieldprint.kvcache import PagePool  # noqa: E402
from fieldprint.note import NoteSigner  # noqa: E402
from fieldprint.promote import PinnedAnchor, promote_anchor  # noqa: E402
from fieldprint.tlog import LogWriter  # noqa: E402
from tests.collecting import collect  # noqa: E402
from tests.cut_model import cut_model  # noqa: E402
from tests.signing import signed_anchor  # noqa: E402
from tests.synchronizing import no_synchronization  # noqa: E402

GPU = torch.cuda.is_available()
TEXT = "Your codename is Falcon. You live in Oslo. The password is Quartz. Always be brief."
LONG = "The quick brown fox jumps over the lazy dog near the river bank. "


@dataclass
class World:
    """An engine, by torch's operators on the CPU or with the decode kernel, and an anchor in its pool."""

    model: LoadedModel
    engine: Engine
    pinned: PinnedAnchor

    def requests(self, count: int = 1, tokens: int = 40, **options: object) -> list[GenerationRequest]:
        texts = [
            "Where do you live?",
            LONG * (8 if GPU else 3),
            "Tell me a joke.",
            "Name three colors.",
            "Hi.",
        ]
        return [
            GenerationRequest(
                tuple(self.model.chat_tokens(text)), max(1, tokens - 2 * i), salt=bytes(16), **options
            )
            for i, text in enumerate(texts[:count])
        ]

    def run(
        self,
        requests: Sequence[GenerationRequest],
        on_event: Callable[[int, Event], None] = lambda number, event: None,
        **options: object,
    ) -> tuple[list[GenerationResult], list[Event]]:
        found = collect(self.engine.generate(requests, anchor=self.pinned, **options), on_event)
        self.engine.pool.check_conservation(list(self.pinned.pages))
        return found


@pytest.fixture(scope="module")
def model(demo_model: LoadedModel) -> LoadedModel:
    return demo_model if GPU else cut_model(demo_model, 1)


def make_world(model: LoadedModel, *, kernel: bool, **settings: object) -> World:
    device = "cuda" if kernel and GPU else "cpu"
    chosen = EngineSettings(decode_kernel=kernel, **settings)
    decoder = model.decoder.to(device)
    pool = PagePool(decoder.page_layout(16), 220, device=device)
    verified, tokens = signed_anchor(model, TEXT)
    pinned = promote_anchor(verified, model.decoder, pool, tokens)
    engine = Engine(decoder, pool, decode=model.decode, model=model.digest, settings=chosen)
    return World(model, engine, pinned)


@pytest.fixture(scope="module")
def host(model: LoadedModel) -> World:
    return make_world(model, kernel=False)


@pytest.fixture(scope="module")
def kernel(model: LoadedModel) -> World:
    return make_world(model, kernel=True)


@pytest.fixture
def log(tmp_path: Path) -> Iterator[LogWriter]:
    signer = NoteSigner("test/log", Ed25519PrivateKey.generate())
    with LogWriter(tmp_path / "log", signer, create=True) as writer:
        yield writer


TOKENS = 48 if GPU else 6  # of an answer; the interpreter is slow
SETTINGS = [
    AttentionSettings(),
    AttentionSettings("floor", 0.3),
    AttentionSettings("mixture", 0.2, window=32, num_sinks=4),
]


@pytest.mark.parametrize("attention", SETTINGS, ids=["concat", "floor", "mixture and window"])
def test_same_tokens_as_on_the_host(host: World, kernel: World, attention: AttentionSettings) -> None:
    requests = host.requests(3, TOKENS)
    expected, _ = host.run(requests, attention=attention)
    got, _ = kernel.run(requests, attention=attention)
    assert [r.tokens for r in got] == [r.tokens for r in expected]


def test_same_seeded_tokens_and_stops_as_on_the_host(host: World, kernel: World) -> None:
    stops = frozenset(range(0, 49152, 9 if GPU else 3))  # rows end at different steps, one of them in flight
    requests = [
        replace(request, sampler=Sampler(0.9, 0.95, seed), stop_ids=stops if seed else frozenset())
        for seed, request in enumerate(host.requests(3, TOKENS))
    ]
    expected, _ = host.run(requests)
    got, _ = kernel.run(requests)
    assert [(r.tokens, r.reason) for r in got] == [(r.tokens, r.reason) for r in expected]
    assert "stop" in {r.reason for r in got}


def test_a_log_changes_no_token_and_leaves_bind_what_lies_in_the_pages(kernel: World, log: LogWriter) -> None:
    requests = kernel.requests(2, TOKENS)
    plain, _ = kernel.run(requests)
    first, _ = kernel.run(requests, log=log)
    again, _ = kernel.run(requests, log=log)
    assert [r.tokens for r in plain] == [r.tokens for r in first]
    assert [p.leaf for r in first for p in r.pages] == [p.leaf for r in again for p in r.pages]


def test_a_flipped_bit_of_the_anchor_is_found_and_repaired(model: LoadedModel, log: LogWriter) -> None:
    world = make_world(model, kernel=True, commit_interval=16)
    requests = world.requests(2, 20)
    plain, _ = world.run(requests, log=log)

    def inject(number: int, event: Event) -> None:
        if number == 25:
            world.engine.pool.storage.view(torch.uint8)[0, 1, world.pinned.pages[0], 2, 0, 9] ^= 1 << 5

    faulty, events = world.run(requests, inject, log=log)
    assert [e for e in events if isinstance(e, RolledBack)]
    assert [p.leaf for r in faulty for p in r.pages] == [p.leaf for r in plain for p in r.pages]


def test_a_generated_page_is_rebuilt_bit_for_bit(model: LoadedModel, log: LogWriter) -> None:
    """Damage in a page of decode steps: they are replayed one by one, known tokens instead of drawn ones."""
    world = make_world(model, kernel=True, commit_interval=16)
    request = replace(world.requests(1, 40)[0], sampler=Sampler(0.8, 0.9, 5))
    plain, _ = world.run([request], log=log)
    page = -(-len(request.prompt) // 16)

    def inject(number: int, event: Event) -> None:
        if number == 36:
            world.engine.pool.storage[0, 0, world.engine.pages_of(0)[page], 3] += 1

    faulty, events = world.run([request], inject, log=log)
    assert [e for e in events if isinstance(e, RolledBack)]
    assert [p.leaf for p in faulty[0].pages] == [p.leaf for p in plain[0].pages]


def test_other_batches_and_contexts_need_no_other_capture(model: LoadedModel) -> None:
    world = make_world(model, kernel=True)
    world.run(world.requests(3, 6))
    (graph,) = world.engine._graphs.values()
    world.run(world.requests(4, 20))  # 3 rows were rounded up to 4
    assert list(world.engine._graphs.values()) == [graph]
    world.run(world.requests(5, 4))
    assert list(world.engine._graphs.values()) != [graph]


def test_masses_are_those_of_the_host(host: World, kernel: World) -> None:
    seen: dict[str, list[list[torch.Tensor]]] = {"host": [], "kernel": []}
    requests = host.requests(2, 6)
    host.run(requests, observe_mass=seen["host"].append)
    kernel.run(requests, observe_mass=seen["kernel"].append)
    assert len(seen["host"]) == len(seen["kernel"]) == 5
    for expected, got in zip(seen["host"], seen["kernel"], strict=True):
        for a, b in zip(expected, got, strict=True):
            torch.testing.assert_close(b.cpu(), a, rtol=2e-3, atol=2e-4)


def test_an_interruption_ends_at_the_next_token(kernel: World) -> None:
    def stop(number: int, event: Event) -> None:
        if number == 4:
            kernel.engine.stop()

    (result,), _ = kernel.run(kernel.requests(1, 30), stop)
    assert result.reason == "interrupted" and len(result.tokens) == 5


def test_pool_and_decoder_must_share_a_device(model: LoadedModel) -> None:
    pool = PagePool(model.decoder.page_layout(16), 4, device="meta")
    with pytest.raises(ValueError, match="the pool is on meta"):
        Engine(model.decoder, pool, decode=model.decode, model=model.digest)


def random_decoder(config: DecoderConfig, *, vocab: int, inner: int) -> Decoder:
    """Random weights, scaled so that hidden states stay of order 1; for shapes and times, not for equality."""
    torch.manual_seed(0)

    def normal(rows: int, columns: int) -> torch.Tensor:
        values = torch.randn(rows, columns, device="cuda", dtype=torch.bfloat16)
        return values.mul_(columns**-0.5)

    c = config
    width, ones = c.hidden_size, torch.ones(c.hidden_size, device="cuda", dtype=torch.bfloat16)
    heads = (c.num_q_heads + 2 * c.num_kv_heads) * c.head_dim
    layers = [
        LayerWeights(
            ones,
            Linear(normal(heads, width)),
            Linear(normal(width, c.num_q_heads * c.head_dim)),
            ones,
            Linear(normal(inner, width)),
            Linear(normal(inner, width)),
            Linear(normal(width, inner)),
        )
        for _ in range(c.num_layers)
    ]
    frequencies = 500000.0 ** -(torch.arange(0, c.head_dim, 2, device="cuda") / c.head_dim)
    return Decoder(c, normal(vocab, width), layers, ones, Linear(normal(vocab, width)), frequencies)


EIGHT_B = DecoderConfig(32, 4096, 32, 8, 128, 1e-5, 131072)


@pytest.mark.gpu
def test_a_32_layer_8b_shape_runs_and_repeats_itself(log: LogWriter) -> None:
    decoder = random_decoder(EIGHT_B, vocab=128256, inner=14336)
    pool = PagePool(decoder.page_layout(16), 1024, device="cuda")
    engine = Engine(decoder, pool, decode=lambda ids: " ".join(map(str, ids)), model="0" * 64)
    requests = [GenerationRequest(tuple(range(7, 900 + 300 * i)), 24, salt=bytes(16)) for i in range(3)]
    runs = [
        {e.request: e.result for e in engine.generate(requests, log=log) if isinstance(e, Finished)}
        for _ in range(2)
    ]
    assert [runs[0][i].pages for i in range(3)] and len(runs[0][2].tokens) == 24
    for i in range(3):
        assert runs[0][i].tokens == runs[1][i].tokens
        assert [p.digest for p in runs[0][i].pages] == [p.digest for p in runs[1][i].pages]


@pytest.mark.gpu
def test_decode_steps_do_not_synchronize(model: LoadedModel) -> None:
    """torch raises at any call that would wait for the device; only reading the tokens does, afterwards."""
    decoder = model.decoder.to("cuda")
    pool = PagePool(decoder.page_layout(16), 64, device="cuda")
    graph = DecodeGraph(decoder, pool, GraphShape(4, 16, None, 0, None, True, False, None), None)
    pages = pool.allocate(9)

    def row(length: int, token: int) -> dict[int, GraphRow]:
        slot = pages[(length - 1) // 16] * 16 + (length - 1) % 16
        return {2: GraphRow(token, slot, length, pages[: 1 + length // 16], Sampler(0.7, 0.9, 3))}

    graph.launch(row(1, 5), pages[8]).tokens()
    torch.cuda.synchronize()
    with no_synchronization():
        drawn = [graph.launch(row(length, -1), pages[8]) for length in range(2, 66)]
    ahead = [d.tokens()[2] for d in drawn]
    one = graph.launch(row(1, 5), pages[8]).tokens()[2]
    for length, expected in zip(range(2, 66), ahead, strict=True):
        one = graph.launch(row(length, one), pages[8]).tokens()[2]
        assert one == expected, length
