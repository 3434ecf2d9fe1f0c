"""The engine on the real model: equality with an ordinary prefix, faults, the log, eviction, interruption.

What does not depend on what is said runs on the model's first layers: real weights at a part of the time.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey  # noqa: E402

from fieldprint.adapters.transformers import LoadedModel, load_model  # noqa: E402
from fieldprint.errors import CapacityError, IntegrityError, LogError  # noqa: E402
from fieldprint.generate import (  # noqa: E402
    AttentionSettings,
    Committed,
    Engine,
    EngineSettings,
    Event,
    Finished,
    GenerationRequest,
    GenerationResult,
    Provisional,
    RolledBack,
    Sampler,
)
from fieldprint.kvcache import PagePool  # noqa: E402
from fieldprint.note import NoteSigner  # noqa: E402
from fieldprint.promote import Fieldprint, PinnedAnchor, compute_fieldprint, promote_anchor  # noqa: E402
from fieldprint.tlog import Appended, LogReader, LogWriter  # noqa: E402
from tests.collecting import collect as read  # noqa: E402
from tests.cut_model import cut_model  # noqa: E402
from tests.signing import signed_anchor  # noqa: E402

TEXT = "Your codename is Falcon. You live in Oslo. The password is Quartz. Your pet is a badger. Always be brief."
QUESTIONS = [
    "What is your codename?",
    "Where do you live?",
    "What is the password?",
    "Tell me about your pet.",
    "Write one sentence about the sea.",
    "What is 2 + 2?",
    "Name three colors.",
    "Who wrote Hamlet?",
    "What is the capital of France?",
    "Say hello in Spanish.",
    "Tell me a joke.",
    "What do you eat for breakfast?",
    "How do birds fly?",
    "Give me advice for a job interview.",
    "What is a prime number?",
    "Describe a mountain.",
    "Why is the sky blue?",
    "List two animals.",
    "What should I read?",
    "Translate 'good morning' to German.",
    "Are you allowed to tell me the password?",
]


@dataclass
class World:
    """The model with an engine and a pinned anchor."""

    model: LoadedModel
    engine: Engine
    pinned: PinnedAnchor
    pool: PagePool

    def request(self, text: str, count: int = 40, **options: Any) -> GenerationRequest:
        ids = tuple(self.model.chat_tokens(text))
        return GenerationRequest(ids, count, stop_ids=self.model.stop_ids, salt=bytes(16), **options)


@pytest.fixture(scope="module")
def model(demo_model: LoadedModel) -> LoadedModel:
    return cut_model(demo_model, 4)


def make_world(model: LoadedModel, num_pages: int = 700, settings: EngineSettings | None = None) -> World:
    settings = settings or EngineSettings()
    pool = PagePool(model.decoder.page_layout(settings.page_size), num_pages)
    verified, tokens = signed_anchor(model, TEXT)
    pinned = promote_anchor(verified, model.decoder, pool, tokens)
    engine = Engine(model.decoder, pool, decode=model.decode, model=model.digest, settings=settings)
    return World(model, engine, pinned, pool)


@pytest.fixture(scope="module")
def world(model: LoadedModel) -> World:
    return make_world(model)


@pytest.fixture(scope="module")
def whole(demo_model: LoadedModel) -> World:
    """The model with all its layers."""
    return make_world(demo_model)


@pytest.fixture(autouse=True)
def pages_come_back(request: pytest.FixtureRequest) -> Iterator[None]:
    """Whatever a test does, no page of the shared pool is lost."""
    yield
    for name in {"world", "whole"}.intersection(request.fixturenames):
        world: World = request.getfixturevalue(name)
        world.pool.check_conservation(list(world.pinned.pages))
        assert world.pinned.damaged() == []


@pytest.fixture
def log(tmp_path: Path) -> Iterator[LogWriter]:
    with LogWriter(
        tmp_path / "log", NoteSigner("test/log", Ed25519PrivateKey.generate()), create=True
    ) as writer:
        yield writer


def collect(
    world: World,
    requests: Sequence[GenerationRequest],
    on_event: Callable[[int, Event], None] = lambda number, event: None,
    **options: Any,
) -> tuple[list[GenerationResult], list[Event]]:
    return read(world.engine.generate(requests, anchor=world.pinned, **options), on_event)


def peer_tokens(model: LoadedModel, kv: Any, prompt: Sequence[int], count: int, hf: Any) -> list[int]:
    """Greedy tokens of transformers with `kv` as the ordinary K/V of a prefix."""
    import transformers

    cache = transformers.DynamicCache(config=hf.config)
    for layer in range(kv.shape[0]):
        k, v = (kv[layer, part].transpose(0, 1).unsqueeze(0).clone() for part in (0, 1))
        cache.update(k, v, layer)
    tokens: list[int] = []
    feed = list(prompt)
    with torch.inference_mode():
        while len(tokens) < count:
            logits = hf(torch.tensor([feed]), past_key_values=cache, logits_to_keep=1).logits
            feed = [int(logits[0, -1].argmax())]
            tokens += feed
            if feed[0] in model.stop_ids:
                break
    return tokens


@pytest.fixture(scope="module")
def hf(model_folder: Path) -> Any:
    import transformers

    return transformers.AutoModelForCausalLM.from_pretrained(
        str(model_folder), dtype=torch.float32, local_files_only=True
    )


def test_concat_equals_the_anchor_as_an_ordinary_prefix(whole: World, hf: Any) -> None:
    """Token for token, 21 prompts, against transformers' own attention over the same K/V."""
    results, _ = collect(whole, [whole.request(q, 12) for q in QUESTIONS])
    kv = whole.pinned.fieldprint.values(torch.float32)
    for question, result in zip(QUESTIONS, results, strict=True):
        prompt = whole.model.chat_tokens(question)
        assert list(result.tokens) == peer_tokens(whole.model, kv, prompt, 12, hf), question


def test_unquantized_concat_equals_the_text_prefix(whole: World, hf: Any) -> None:
    """Without quantization the pinned path gives what transformers gives for [anchor + prompt] as plain tokens."""
    from fieldprint.decoder import Injection

    tokens = whole.model.system_tokens(TEXT)
    k, v = whole.model.decoder.realize(tokens)
    exact = Injection(k.transpose(1, 2), v.transpose(1, 2))
    text = list(tokens) + whole.model.chat_tokens(QUESTIONS[0])
    with torch.inference_mode():
        expected = hf(torch.tensor([text])).logits[0, len(tokens) :]
    from fieldprint.attention import plan_attention
    from fieldprint.decoder import Step

    prompt = torch.tensor(whole.model.chat_tokens(QUESTIONS[0]))
    count = len(prompt)
    pages = whole.pool.allocate(-(-count // 16), contiguous=True)
    plan = plan_attention([pages], [count], [0, count], page_size=16, num_pages=whole.pool.num_pages)
    positions = torch.arange(count)
    step = Step(prompt, positions + len(tokens), positions + pages[0] * 16, plan)
    logits = whole.model.decoder.logits(whole.model.decoder.forward(step, whole.pool, exact))
    whole.pool.release(pages)
    torch.testing.assert_close(logits, expected, rtol=2e-3, atol=2e-3)
    assert torch.equal(logits.argmax(-1), expected.argmax(-1))


def test_batches_of_different_lengths_equal_single_requests(whole: World) -> None:
    requests = [whole.request(q, 16) for q in ("Hi.", QUESTIONS[3] * 30, QUESTIONS[8])]
    together, _ = collect(whole, requests)
    for request, result in zip(requests, together, strict=True):
        alone, _ = collect(whole, [request])
        assert alone[0].tokens == result.tokens


def test_a_log_changes_no_token_and_commits_everything(whole: World, log: LogWriter) -> None:
    requests = [whole.request(q) for q in QUESTIONS[:3]]
    plain, _ = collect(whole, requests)
    committed, events = collect(whole, requests, log=log)
    assert [r.tokens for r in plain] == [r.tokens for r in committed]
    horizon: dict[int, int] = {}
    for event in events:
        if isinstance(event, Committed):
            assert event.upto >= horizon.get(event.request, 0), "the committed horizon never moves back"
            horizon[event.request] = event.upto
        if isinstance(event, Finished):
            assert horizon[event.request] == len(event.result.prompt) + len(event.result.tokens)


def test_leaves_are_made_once_an_interval_and_scrubs_make_none(model: LoadedModel, log: LogWriter) -> None:
    world = make_world(model, settings=EngineSettings(commit_interval=32, scrub_interval=2))
    prompt = tuple(model.chat_tokens("Tell me a long story."))
    request = GenerationRequest(prompt, 120)
    _, events = collect(world, [request], log=log)
    horizons = [event.upto for event in events if isinstance(event, Committed)]
    decoded = [upto for upto in horizons if upto > len(request.prompt)][1:-1]
    assert len(decoded) >= 2
    assert all(b - a >= 32 for a, b in pairwise(decoded)), horizons


def flip(world: World, page: int) -> None:
    world.pool.storage.view(torch.uint8)[3, 1, page, 2, 0, 9] ^= 1 << 5


def test_a_commitment_moves_no_page_and_waits_for_the_prompt(world: World, log: LogWriter) -> None:
    """A pass that held the page of the next token would have it copied, row by row."""
    requests = [replace(world.request(text, 60), stop_ids=frozenset()) for text in QUESTIONS[:2]]
    pages: dict[int, list[int]] = {}
    first_committed: dict[int, int] = {}
    for event in world.engine.generate(requests, anchor=world.pinned, log=log):
        if isinstance(event, Committed):
            first_committed.setdefault(event.request, event.upto)
        if isinstance(event, Provisional):
            held = world.engine.pages_of(event.request)
            assert pages.setdefault(event.request, held) == held[: len(pages[event.request])]
    size = world.pool.layout.page_size
    for index, request in enumerate(requests):
        assert first_committed[index] >= len(request.prompt) // size * size
    assert set(pages) == {0, 1}


@pytest.mark.parametrize("at", [1, 20, 47, 61])
@pytest.mark.parametrize("where", ["pinned", "context"])
def test_a_flipped_bit_is_found_and_the_text_is_the_undisturbed_one(
    world: World, log: LogWriter, where: str, at: int
) -> None:
    requests = [
        world.request("Tell me a long story about a lighthouse. " * 4, 48),
        world.request(QUESTIONS[0], 48),
    ]
    plain, _ = collect(world, requests, log=log)

    def inject(number: int, event: Event) -> None:
        if number == at:
            flip(world, world.pinned.pages[0] if where == "pinned" else world.engine.pages_of(0)[1])

    faulty, events = collect(world, requests, inject, log=log)
    backs = [event for event in events if isinstance(event, RolledBack)]
    assert backs and where in backs[0].reason
    assert [p.leaf for r in faulty for p in r.pages] == [p.leaf for r in plain for p in r.pages]
    assert [r.text for r in faulty] == [r.text for r in plain]


@pytest.mark.parametrize(("num_sinks", "page"), [(4, 3), (32, 5)])
def test_damage_in_an_evicted_neighbourhood_is_rebuilt(
    model: LoadedModel, log: LogWriter, num_sinks: int, page: int
) -> None:
    world = make_world(model, settings=EngineSettings(chunk_size=64, commit_interval=16))
    attention = AttentionSettings("floor", 0.1, window=96, num_sinks=num_sinks)
    request = world.request("The quick brown fox jumps over the lazy dog near the river bank. " * 30, 60)
    plain, _ = collect(world, [request], attention=attention, log=log)

    def inject(number: int, event: Event) -> None:
        if number == 30:
            flip(world, world.engine.pages_of(0)[page])

    faulty, events = collect(world, [request], inject, attention=attention, log=log)
    assert any(isinstance(event, RolledBack) for event in events)
    assert [p.leaf for p in faulty[0].pages] == [p.leaf for p in plain[0].pages]
    assert faulty[0].text == plain[0].text
    world.pool.check_conservation(list(world.pinned.pages))


class RefusingLog(LogWriter):
    """A log that refuses some appends."""

    refusals = 0

    def append(self, entries: Sequence[bytes]) -> Appended:
        if self.refusals:
            self.refusals -= 1
            raise CapacityError("the disk is full")
        return super().append(entries)


def test_a_refusing_log_rolls_back_and_goes_on(world: World, tmp_path: Path) -> None:
    signer = NoteSigner("test/log", Ed25519PrivateKey.generate())
    with RefusingLog(tmp_path / "log", signer, create=True) as log:
        requests = [world.request(QUESTIONS[10], 48)]
        plain, _ = collect(world, requests)

        def refuse(number: int, event: Event) -> None:
            if number == 10:
                log.refusals = 2

        got, events = collect(world, requests, refuse, log=log)
        assert [e for e in events if isinstance(e, RolledBack)]
        assert got[0].tokens == plain[0].tokens


def test_a_log_that_stays_full_ends_with_its_error_and_loses_nothing(world: World, tmp_path: Path) -> None:
    signer = NoteSigner("test/log", Ed25519PrivateKey.generate())
    with RefusingLog(tmp_path / "log", signer, create=True) as log:

        def refuse(number: int, event: Event) -> None:
            if number == 40:
                log.refusals = 10**6

        with pytest.raises(CapacityError, match="disk is full"):
            collect(world, [world.request("Tell me a long story about a ship. " * 3, 120)], refuse, log=log)
        size = log.tree_size
    reader = LogReader(tmp_path / "log", [signer.verifier_key])
    assert size > 0 and reader.root_hash() == reader.checkpoint().root_hash
    assert len(list(reader.entries())) == size


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_a_dead_worker_is_replaced_and_the_text_is_the_undisturbed_one(
    world: World, log: LogWriter, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A thread that dies between the log's answer and its own: the leaves are there, and nobody knows."""
    request = world.request(QUESTIONS[10], 48)
    plain, _ = collect(world, [request], log=log)
    whole, left = log.append, [1]

    def die_once(entries: Sequence[bytes]) -> Appended:
        appended = whole(entries)
        if left:
            left.pop()
            raise SystemExit
        return appended

    monkeypatch.setattr(log, "append", die_once)
    got, events = collect(world, [request], log=log)
    backs = [event for event in events if isinstance(event, RolledBack)]
    assert len(backs) == 1 and "thread has died" in backs[0].reason
    assert [p.leaf for p in got[0].pages] == [p.leaf for p in plain[0].pages]
    assert log.tree_size > got[0].pages[-1].leaf_index >= 2 * len(got[0].pages)


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_a_worker_that_always_dies_is_an_error_and_not_a_hang(
    world: World, log: LogWriter, monkeypatch: pytest.MonkeyPatch
) -> None:
    def die(entries: Sequence[bytes]) -> Appended:
        raise SystemExit

    monkeypatch.setattr(log, "append", die)
    with pytest.raises(LogError, match="thread has died"):
        collect(world, [world.request(QUESTIONS[0])], log=log)


def test_a_worker_that_fails_is_an_error_with_its_cause(
    world: World, log: LogWriter, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(entries: Sequence[bytes]) -> Appended:
        raise RuntimeError("worker failed")

    monkeypatch.setattr(log, "append", fail)
    with pytest.raises(LogError, match="worker failed"):
        collect(world, [world.request(QUESTIONS[0])], log=log)


def test_damage_that_comes_back_ends_with_an_error(world: World, log: LogWriter) -> None:
    def inject(number: int, event: Event) -> None:
        if number > 5:
            raw = world.pool.storage.view(torch.uint8)[3, 1, world.pinned.pages[0], 2, 0]
            raw[9] = 255 - raw[9]

    with pytest.raises(IntegrityError, match="without progress"):
        collect(world, [world.request("Tell me a long story.", 120)], inject, log=log)
    world.pinned.rewrite()


def test_provisional_tokens_are_capped(model: LoadedModel, tmp_path: Path) -> None:
    settings = EngineSettings(provisional_cap=17, commit_interval=1000)
    world = make_world(model, settings=settings)
    with LogWriter(
        tmp_path / "log", NoteSigner("test/log", Ed25519PrivateKey.generate()), create=True
    ) as log:
        _, events = collect(world, [world.request("Tell me a long story.", 60)], log=log)
    committed = position = prompt = 0
    for event in events:
        if isinstance(event, Provisional):
            prompt = prompt or event.position
            position = event.position + 1
            assert position - max(committed, prompt) <= 17
        elif isinstance(event, Committed):
            committed = event.upto


def test_stop_ends_and_commits_what_is_there(world: World, log: LogWriter) -> None:
    def stop(number: int, event: Event) -> None:
        if number == 9:
            world.engine.stop()

    results, _ = collect(world, [world.request("Tell me a long story.", 200)], stop, log=log)
    assert results[0].reason == "interrupted" and 9 <= len(results[0].tokens) <= 11
    assert len(results[0].pages) == -(-(len(results[0].prompt) + len(results[0].tokens)) // 16)


def test_closing_the_stream_keeps_the_log_valid(world: World, tmp_path: Path) -> None:
    signer = NoteSigner("test/log", Ed25519PrivateKey.generate())
    with LogWriter(tmp_path / "log", signer, create=True) as log:
        stream = world.engine.generate(
            [world.request("Tell me a long story.", 200)], anchor=world.pinned, log=log
        )
        for event in stream:
            if isinstance(event, Committed):
                break
        stream.close()  # type: ignore[attr-defined]
        size = log.tree_size
    reader = LogReader(tmp_path / "log", [signer.verifier_key])
    assert size > 0 and reader.root_hash() == reader.checkpoint().root_hash


def test_a_context_far_beyond_the_window_needs_few_pages(demo_model: LoadedModel, log: LogWriter) -> None:
    """2,000 tokens through a window of 64 in a pool of 600 positions, the anchor still answered from."""
    world = make_world(demo_model, num_pages=38, settings=EngineSettings(chunk_size=64))
    ids = world.model.encode("The river runs to the sea and the hills are green. " * 200)[:2000]
    prompt = tuple(ids) + tuple(
        world.model.chat_tokens(
            'Complete the sentence from your instructions: "Your codename is ..."', answer="Your codename is"
        )
    )
    request = GenerationRequest(prompt, 4, stop_ids=demo_model.stop_ids)
    results, _ = collect(world, [request], attention=AttentionSettings("floor", 0.0, window=64), log=log)
    assert "Falcon" in results[0].text
    assert len(results[0].pages) == -(-(len(prompt) + len(results[0].tokens)) // 16)


def test_seeded_sampling_depends_on_the_seed_alone(world: World, log: LogWriter) -> None:
    def sample(seed: int, **options: Any) -> tuple[int, ...]:
        request = world.request("Tell me a joke.", 24, sampler=Sampler(0.9, 0.95, seed))
        return collect(world, [request], **options)[0][0].tokens

    assert sample(1) == sample(1, log=log)
    assert len({sample(seed) for seed in range(4)}) > 1


def test_prefix_sharing_equals_whole_prompts(world: World, log: LogWriter) -> None:
    prompts = [tuple(world.model.chat_tokens("Some words. " * 60 + q)) for q in QUESTIONS[:3]]
    shared = next(i for i, ids in enumerate(zip(*prompts, strict=False)) if len(set(ids)) > 1)
    prefix = world.engine.prefill(prompts[0][:shared], anchor=world.pinned)
    requests = [
        GenerationRequest(p[shared:], 16, stop_ids=world.model.stop_ids, prefix=prefix) for p in prompts
    ]
    forked, _ = collect(world, requests, log=log)
    prefix.close()
    whole, _ = collect(world, [GenerationRequest(p, 16, stop_ids=world.model.stop_ids) for p in prompts])
    assert [r.tokens for r in forked] == [r.tokens for r in whole]
    assert [r.prompt for r in forked] == prompts


def forked(world: World, length: int, **options: Any) -> tuple[list[GenerationRequest], Any]:
    """Three requests that share a prefix of `length` tokens."""
    ids = world.model.encode("The quick brown fox jumps over the lazy dog near the river bank. " * 60)
    prefix = world.engine.prefill(tuple(ids[:length]), anchor=world.pinned, **options)
    tails = [tuple(world.model.encode(" very" * (5 * i) + f" big number {i} is")) for i in range(3)]
    return [GenerationRequest(tail, 40, prefix=prefix, salt=bytes(16)) for tail in tails], prefix


@pytest.mark.parametrize("at", [30, 61])
def test_damage_in_a_shared_page_rolls_back_every_request_that_reads_it(
    model: LoadedModel, log: LogWriter, at: int
) -> None:
    """Also those that had no new page in the pass that found it."""
    world = make_world(model, settings=EngineSettings(commit_interval=16))
    requests, prefix = forked(world, 200)
    plain, _ = collect(world, requests, log=log)

    def inject(number: int, event: Event) -> None:
        if number == at:
            flip(world, prefix.sequence.pages[2])

    faulty, events = collect(world, requests, inject, log=log)
    prefix.close()
    assert {event.request for event in events if isinstance(event, RolledBack)} == {0, 1, 2}
    assert [r.tokens for r in faulty] == [r.tokens for r in plain]
    assert [p.leaf for r in faulty for p in r.pages] == [p.leaf for r in plain for p in r.pages]


@pytest.mark.parametrize("at", [2, 40])
def test_a_windowed_prefix_survives_a_rollback(model: LoadedModel, log: LogWriter, at: int) -> None:
    world = make_world(model, settings=EngineSettings(chunk_size=64, commit_interval=16))
    attention = AttentionSettings(window=96)
    requests, prefix = forked(world, 500, attention=attention)
    plain, _ = collect(world, requests, attention=attention, log=log)
    events: list[Event] = []
    stream = world.engine.generate(requests, anchor=world.pinned, attention=attention, log=log)
    for number, event in enumerate(stream, 1):
        events.append(event)
        if number == at:
            flip(world, world.pinned.pages[0])
    prefix.close()
    results = {e.request: e.result for e in events if isinstance(e, Finished)}
    assert any(isinstance(event, RolledBack) for event in events)
    assert [results[i].tokens for i in range(3)] == [r.tokens for r in plain]
    world.pool.check_conservation(list(world.pinned.pages))


def test_a_prefix_belongs_to_its_anchor_and_settings(model: LoadedModel) -> None:
    world = make_world(model)
    requests, prefix = forked(world, 40)
    with pytest.raises(ValueError, match="another anchor or other attention settings"):
        list(world.engine.generate(requests))
    with pytest.raises(ValueError, match="another anchor or other attention settings"):
        collect(world, requests, attention=AttentionSettings(g=0.1))
    prefix.close()
    flip(world, world.pinned.pages[1])
    with pytest.raises(IntegrityError, match="while the prefix was computed"):
        forked(world, 40)
    assert world.pinned.damaged() == []
    world.pool.check_conservation(list(world.pinned.pages))


def test_stop_after_a_rollback_to_the_end_of_the_prompt_ends(world: World, log: LogWriter) -> None:
    prompt = tuple(world.model.encode("word " * 200))[:32]
    settings = {"anchor": world.pinned, "log": log}
    finished = None
    for event in world.engine.generate([GenerationRequest(prompt, 60)], **settings):
        if isinstance(event, Committed) and event.upto == 32:
            flip(world, world.pinned.pages[0])
        if isinstance(event, RolledBack):
            world.engine.stop()
        if isinstance(event, Finished):
            finished = event.result
    assert finished is not None and finished.reason == "interrupted" and len(finished.tokens) == 1


def test_a_pool_that_is_too_small_is_a_clear_error(model: LoadedModel) -> None:
    world = make_world(model, num_pages=6)
    with pytest.raises(CapacityError, match="are needed"):
        collect(world, [world.request("word " * 200)])


def test_bad_requests_are_refused(world: World) -> None:
    with pytest.raises(ValueError, match="prompt"):
        GenerationRequest(())
    with pytest.raises(ValueError, match="salt"):
        replace(world.request("hi"), salt=b"short")
    with pytest.raises(ValueError, match="no anchor"):
        list(world.engine.generate([world.request("hi")], attention=AttentionSettings("floor", 0.5)))
    with pytest.raises(ValueError, match="g must"):
        list(
            world.engine.generate(
                [world.request("hi")], anchor=world.pinned, attention=AttentionSettings(g=1.5)
            )
        )
    with pytest.raises(ValueError, match="temperature"):
        Sampler(-1.0)
    with pytest.raises(ValueError, match="provisional_cap"):
        EngineSettings(provisional_cap=16)
    with pytest.raises(ValueError, match="multiple"):
        EngineSettings(page_size=16, chunk_size=100)


def test_packed_linear_equals_linear() -> None:
    from fieldprint.decoder import Linear, PackedLinear

    torch.manual_seed(0)
    for rows in (4, 8, 33):
        linear = Linear(torch.randn(96, 48), torch.randn(96))
        x = torch.randn(rows, 48)
        torch.testing.assert_close(PackedLinear.of(linear, rows)(x), linear(x), rtol=1e-5, atol=1e-5)


def test_bfloat16_serves_a_fieldprint_file(
    demo_model: LoadedModel, model_folder: Path, tmp_path: Path
) -> None:
    verified, tokens = signed_anchor(demo_model, TEXT)
    compute_fieldprint(demo_model.decoder, tokens).save(tmp_path / "f.safetensors")
    half = load_model(model_folder, dtype="bfloat16")
    pool = PagePool(half.decoder.page_layout(16), 40)
    pinned = promote_anchor(verified, half.decoder, pool, tokens, fieldprint_file=tmp_path / "f.safetensors")
    engine = Engine(half.decoder, pool, decode=half.decode, model=half.digest)
    prompt = tuple(
        half.chat_tokens(
            'Complete the sentence from your instructions: "Your codename is ..."', answer="Your codename is"
        )
    )
    events = list(engine.generate([GenerationRequest(prompt, 4, stop_ids=half.stop_ids)], anchor=pinned))
    # Which of the anchor's words comes first is a matter of bf16's last bits, which differ between processors.
    text = events[-1].result.text  # type: ignore[union-attr]
    assert any(word in text for word in ("Falcon", "Oslo", "Quartz"))
    bare = list(engine.generate([GenerationRequest(prompt, 4, stop_ids=half.stop_ids)]))[-1].result.text  # type: ignore[union-attr]
    assert not any(word in bare for word in ("Falcon", "Oslo", "Quartz"))
    slots = pool.storage[:, :, list(pinned.pages)].flatten(2, 3)[:, :, : pinned.num_tokens]
    assert torch.equal(slots.float(), Fieldprint.load(tmp_path / "f.safetensors").values(torch.float32))
