"""Generation under a gate: it stops, or goes on without its anchor, and what it commits is true of each part."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey  # noqa: E402

from fieldprint.adapters.transformers import LoadedModel  # noqa: E402
from fieldprint.commit.leaf import Commitment  # noqa: E402
from fieldprint.generate import (  # noqa: E402
    AttentionSettings,
    Bypassed,
    Committed,
    Engine,
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
from fieldprint.promote import PinnedAnchor, promote_anchor  # noqa: E402
from fieldprint.registry.gate import Ruling  # noqa: E402
from fieldprint.tlog import LogWriter  # noqa: E402
from tests.cut_model import cut_model  # noqa: E402
from tests.signing import signed_anchor  # noqa: E402

TEXT = "Your codename is Falcon. You live in Oslo. Always be brief."


class AfterSteps:
    """Rules once it was asked so often."""

    def __init__(self, asked: int, action: Any, reason: str = "revoked") -> None:
        self.left, self.made = asked, Ruling(action, reason, "somebody said so")

    def ruling(self) -> Ruling | None:
        self.left -= 1
        return self.made if self.left < 0 else None


class World:
    def __init__(self, model: LoadedModel, *, device: str = "cpu") -> None:
        self.model = model
        self.pool = PagePool(model.decoder.page_layout(16), 400, device=device)
        verified, tokens = signed_anchor(model, TEXT)
        self.pinned: PinnedAnchor = promote_anchor(verified, model.decoder, self.pool, tokens)
        decoder = model.decoder.to(device)
        self.engine = Engine(decoder, self.pool, decode=model.decode, model=model.digest)

    def request(self, text: str, count: int = 60, **options: Any) -> GenerationRequest:
        return GenerationRequest(tuple(self.model.chat_tokens(text)), count, salt=bytes(16), **options)

    def play(
        self, requests: list[GenerationRequest], **options: Any
    ) -> tuple[dict[int, GenerationResult], list[Event]]:
        options = {"anchor": self.pinned} | options
        events = list(self.engine.generate(requests, **options))
        self.pool.check_conservation(list(self.pinned.pages))
        return {event.request: event.result for event in events if isinstance(event, Finished)}, events


@pytest.fixture(scope="module")
def model(demo_model: LoadedModel) -> LoadedModel:
    return cut_model(demo_model, 2)


@pytest.fixture(
    scope="module", params=[None, pytest.param(True, marks=pytest.mark.gpu)], ids=["host", "graph"]
)
def world(model: LoadedModel, request: pytest.FixtureRequest) -> World:
    """Steps by torch's operators, and as launches of a graph, which run one ahead."""
    if request.param and not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    return World(model, device="cuda" if request.param else "cpu")


@pytest.fixture
def log(tmp_path: Path) -> Iterator[LogWriter]:
    with LogWriter(
        tmp_path / "log", NoteSigner("test/log", Ed25519PrivateKey.generate()), create=True
    ) as writer:
        yield writer


@pytest.mark.parametrize("asked", [0, 1, 3, 20, 50])
@pytest.mark.parametrize("with_log", [True, False])
def test_a_stop_ends_every_request_and_commits_what_was_seen(
    world: World, log: LogWriter, asked: int, with_log: bool
) -> None:
    requests = [world.request("Where do you live?"), world.request("Tell me a story about a fox.", 70)]
    whole, _ = world.play(requests)
    found, events = world.play(requests, gate=AfterSteps(asked, "stop"), log=log if with_log else None)
    for index, result in found.items():
        seen = [e.token_id for e in events if isinstance(e, Provisional) and e.request == index]
        assert result.reason == "revoked"
        assert list(result.tokens) == seen
        assert result.tokens == whole[index].tokens[: len(seen)]
        if with_log:
            last = Commitment.from_bytes(result.pages[-1].leaf)
            assert (last.end, last.text is not None) == (len(result.prompt) + len(seen), True)
    assert sum(isinstance(e, Provisional) for e in events) <= 2 * asked


@pytest.mark.parametrize("asked", [0, 1, 10, 40])
def test_a_bypass_goes_on_as_if_the_anchor_had_never_been_there(
    world: World, log: LogWriter, asked: int
) -> None:
    requests = [world.request("Where do you live?"), world.request("Tell me a story about a fox.", 70)]
    found, events = world.play(
        requests, gate=AfterSteps(asked, "bypass", "bypassed"), log=log, attention=AttentionSettings(g=0.1)
    )
    left = {event.request: event for event in events if isinstance(event, Bypassed)}
    assert set(left) == {0, 1}
    for index, request in enumerate(requests):
        result, before = found[index], found[index].before
        assert before is not None
        assert (before.reason, result.reason) == ("bypassed", "length")
        assert len(result.all_tokens) == request.max_new_tokens
        assert result.prompt == request.prompt + before.tokens
        assert left[index].position == len(result.prompt)
        # The same as a request without an anchor that begins with these tokens.
        fresh = GenerationRequest(
            result.prompt, request.max_new_tokens - len(before.tokens), salt=result.salt
        )
        plain, _ = world.play([fresh], anchor=None)
        assert plain[0].tokens == result.tokens
        assert {Commitment.from_bytes(page.leaf).anchor for page in before.pages} == {
            world.pinned.verified.digest
        }
        for page in result.pages:
            leaf = Commitment.from_bytes(page.leaf)
            assert (leaf.anchor, leaf.attention["g"]) == (None, "0.0")
        assert result.salt != request.salt
        seen = [e.token_id for e in events if isinstance(e, Provisional) and e.request == index]
        assert tuple(seen) == result.all_tokens


def test_a_committed_horizon_never_moves_back_over_a_bypass(world: World, log: LogWriter) -> None:
    _, events = world.play([world.request("Tell me a story.", 100)], gate=AfterSteps(50, "bypass"), log=log)
    horizon = [event.upto for event in events if isinstance(event, Committed)]
    assert horizon == sorted(horizon)
    positions = [event.position for event in events if isinstance(event, Provisional)]
    assert positions == list(range(positions[0], positions[0] + 100))


def test_a_request_that_was_through_before_the_ruling_stays_whole(world: World, log: LogWriter) -> None:
    requests = [world.request("Say hello.", 4), world.request("Tell me a story.", 60)]
    found, _ = world.play(requests, gate=AfterSteps(30, "bypass"), log=log)
    assert (found[0].reason, found[0].before) == ("length", None)
    assert found[1].before is not None


def test_seeded_sampling_goes_on_from_its_place(world: World) -> None:
    request = world.request("Tell me a story.", 40, sampler=Sampler(0.8, 0.9, 7))
    found, _ = world.play([request], gate=AfterSteps(10, "bypass"))
    before = found[0].before
    assert before is not None
    rest = GenerationRequest(found[0].prompt, 40 - len(before.tokens), sampler=request.sampler)
    plain, _ = world.play([rest], anchor=None)
    assert plain[0].tokens == found[0].tokens


def test_damage_behind_a_ruling_brings_no_injection_back(world: World, log: LogWriter) -> None:
    """The last pass finds a flipped bit: what was provisional is gone, and nothing is generated in its place."""
    request = world.request("Tell me a story about a fox.", 90)
    gate = AfterSteps(58, "stop")
    tokens: list[int] = []
    after_ruling = after_rollback = 0
    rolled_back = False
    finished: list[GenerationResult] = []
    for event in world.engine.generate([request], anchor=world.pinned, log=log, gate=gate):
        if isinstance(event, Provisional):
            tokens.append(event.token_id)
            after_ruling += gate.left < 0
            after_rollback += rolled_back
            if len(tokens) == 57:
                page = world.engine.pages_of(0)[0]
                world.pool.storage.view(torch.uint8)[1, 1, page, 2, 0, 9] ^= 1 << 5
        if isinstance(event, RolledBack):
            del tokens[max(0, event.to - len(request.prompt)) :]
            rolled_back = True
        if isinstance(event, Finished):
            finished.append(event.result)
    in_flight = 1 if world.pool.storage.is_cuda else 0  # steps of a graph run one ahead of the gate
    assert after_ruling <= in_flight
    assert rolled_back and after_rollback == 0
    (result,) = finished
    assert result.reason == "revoked"
    assert list(result.tokens) == tokens
    world.pool.check_conservation(list(world.pinned.pages))


def test_a_stop_reaches_a_batch_that_goes_on_without_its_anchor(world: World, log: LogWriter) -> None:
    class Both:
        def __init__(self) -> None:
            self.asked = 0

        def ruling(self) -> Ruling | None:
            self.asked += 1
            if self.asked < 20:
                return None
            return Ruling("bypass", "bypassed", "first") if self.asked < 21 else self._second()

        def _second(self) -> Ruling | None:
            return Ruling("stop", "frozen", "then") if self.asked > 40 else None

    found, _ = world.play([world.request("Tell me a story.", 100)], gate=Both(), log=log)
    assert found[0].reason == "frozen"
    assert found[0].before is not None
    assert found[0].before.reason == "bypassed"
    assert 0 < len(found[0].tokens) < 100
