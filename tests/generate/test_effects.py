"""The effects gate: any stream against a naive reading of its whole history, and the engine with a flipped bit."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey  # noqa: E402
from hypothesis import given, settings  # noqa: E402
from hypothesis import strategies as st  # noqa: E402

from fieldprint.adapters.transformers import LoadedModel, load_model  # noqa: E402
from fieldprint.errors import CapacityError, IntegrityError  # noqa: E402
from fieldprint.generate import (  # noqa: E402
    Committed,
    Dropped,
    EffectsGate,
    Engine,
    EngineSettings,
    Event,
    Finished,
    GenerationRequest,
    GenerationResult,
    Provisional,
    Released,
    RolledBack,
)
from fieldprint.kvcache import PagePool  # noqa: E402
from fieldprint.note import NoteSigner  # noqa: E402
from fieldprint.promote import PinnedAnchor, promote_anchor  # noqa: E402
from tests.faulty_log import FaultyLog  # noqa: E402
from tests.signing import signed_anchor  # noqa: E402

PAGE = 4
Hold = tuple[int, int, str]


def token_at(request: int, position: int) -> int:
    """What the model says: the same after a rollback."""
    return 1000 * request + position


def finished(request: int, prompt: int, count: int) -> Finished:
    tokens = tuple(token_at(request, prompt + i) for i in range(count))
    return Finished(request, GenerationResult((7,) * prompt, tokens, "", "stop", bytes(16)))


def any_stream(data: st.DataObject, prompts: Sequence[int]) -> Iterator[Event]:
    """What an engine may say: pages are committed in order, and a rollback goes to the last one or to the prompt."""
    end, committed = list(prompts), [0] * len(prompts)
    running = set(range(len(prompts)))
    while running:
        request = data.draw(st.sampled_from(sorted(running)))
        kinds = ["token", "token", "token"]
        if end[request] // PAGE * PAGE > committed[request]:
            kinds += ["commit", "commit"]
        kinds += ["back"] if data.draw(st.integers(0, 3)) == 0 else []
        kinds += ["finish"] if end[request] - prompts[request] > 8 else []
        kind = data.draw(st.sampled_from(kinds))
        if kind == "token":
            end[request] += 1
            yield Provisional(request, end[request] - 1, token_at(request, end[request] - 1))
        elif kind == "commit":
            pages = st.integers(committed[request] // PAGE + 1, end[request] // PAGE)
            committed[request] = data.draw(pages) * PAGE
            yield Committed(request, committed[request])
        elif kind == "back":
            end[request] = max(committed[request], prompts[request])
            yield RolledBack(request, end[request], "a test")
        else:
            running.remove(request)
            yield finished(request, prompts[request], end[request] - prompts[request])


def fate(history: Sequence[Event | Hold], at: int) -> tuple[str, int]:
    """What becomes of the effect that was held at a place of the history, and at which place: read from there on."""
    request, upto, _ = history[at]  # type: ignore[misc]
    committed = 0
    for place, event in enumerate(history):
        if not isinstance(event, tuple) and event.request == request:
            if isinstance(event, Committed):
                committed = max(committed, event.upto)
            elif isinstance(event, Finished):
                committed = 10**9
            elif isinstance(event, RolledBack) and place > at and event.to < upto:
                return "dropped", place
        if place >= at and committed >= upto:
            return "released", place
    return "held", len(history)


def tokens_of(history: Sequence[Event | Hold], request: int) -> tuple[int, ...]:
    known: dict[int, int] = {}
    for event in history:
        if isinstance(event, Provisional) and event.request == request:
            known[event.position] = event.token_id
        elif isinstance(event, RolledBack) and event.request == request:
            known = {position: token for position, token in known.items() if position < event.to}
    return tuple(known[position] for position in sorted(known))


class Twin:
    """The whole history of one stream, and what came out."""

    def __init__(self) -> None:
        self.history: list[Event | Hold] = []
        self.holds: dict[int, Hold] = {}  # those that were taken, by their place
        self.out: list[tuple[str, int, int, str]] = []

    def hold(self, request: int, upto: int, effect: str) -> bool:
        """Whether it is a new one: none that waits or was released is there."""
        for at, (r, u, _) in self.holds.items():
            if (r, u) == (request, upto) and fate(self.history, at)[0] != "dropped":
                return False
        self.holds[len(self.history)] = request, upto, effect
        self.history.append((request, upto, effect))
        return True

    def expected(self) -> list[tuple[str, int, int, str]]:
        """What must have come out by now."""
        ends = [(fate(self.history, at), hold) for at, hold in self.holds.items()]
        return [(kind, *hold) for (kind, _), hold in ends if kind != "held"]

    def check(self, gate: EffectsGate[str]) -> None:
        assert sorted(self.out) == sorted(self.expected())
        held = [hold for at, hold in self.holds.items() if fate(self.history, at)[0] == "held"]
        assert sorted(gate.held) == sorted(held)
        for request in range(3):
            assert gate.tokens(request) == tokens_of(self.history, request)


@settings(deadline=None, max_examples=150)
@given(st.data(), st.lists(st.integers(1, 9), min_size=1, max_size=3))
def test_what_comes_out_is_what_the_whole_history_says(data: st.DataObject, prompts: list[int]) -> None:
    gate: EffectsGate[str] = EffectsGate()
    twin = Twin()

    def events() -> Iterator[Event]:
        for event in any_stream(data, prompts):
            twin.check(gate)  # everything that is due is out before the next event is asked for
            yield event

    stream = gate.watch(events())
    for event in stream:
        if isinstance(event, Released | Dropped):
            kind = "released" if isinstance(event, Released) else "dropped"
            twin.out.append((kind, event.request, event.upto, event.effect))
        else:
            twin.history.append(event)
        request, known = event.request, len(gate.tokens(event.request))
        for _ in range(data.draw(st.sampled_from([0, 0, 1, 2])) if known else 0):
            upto = prompts[request] + data.draw(st.integers(0, known))
            assert gate.hold(request, upto, f"at {upto}") == twin.hold(request, upto, f"at {upto}")
        if data.draw(st.integers(0, 40)) == 0:
            stream.close()
    released = [entry[1:] for entry in twin.out if entry[0] == "released"]
    assert len(released) == len(set(released))
    with pytest.raises(ValueError, match="while the events are watched"):
        gate.hold(0, 1, "late")


# By example


def drive(script: Sequence[Event | Hold]) -> tuple[EffectsGate[str], list[Any]]:
    """What comes out when holds follow the event that stands before them."""
    gate: EffectsGate[str] = EffectsGate()
    events = [item for item in script if not isinstance(item, tuple)]
    holds: dict[int, list[Hold]] = {}
    number = -1
    for item in script:
        if isinstance(item, tuple):
            holds.setdefault(number, []).append(item)
        else:
            number += 1
    out: list[Any] = []
    number = -1
    for event in gate.watch(events):
        if isinstance(event, Released | Dropped):
            out.append((type(event).__name__, event.upto, event.effect))
            continue
        number += 1
        for hold in holds.get(number, []):
            gate.hold(*hold)
    return gate, out


def tokens(first: int, last: int, request: int = 0) -> list[Event]:
    return [Provisional(request, i, token_at(request, i)) for i in range(first, last)]


def test_effects_come_in_the_order_of_their_tokens() -> None:
    script = [*tokens(3, 9), (0, 8, "third"), (0, 5, "first"), (0, 7, "second"), Committed(0, 7)]
    gate, out = drive(script)
    assert out == [("Released", 5, "first"), ("Released", 7, "second")]
    assert gate.held == ((0, 8, "third"),)


def test_what_was_taken_back_is_dropped_and_released_once_when_it_comes_again() -> None:
    script: list[Event | Hold] = [*tokens(3, 8), (0, 4, "a"), (0, 6, "b"), Committed(0, 4)]
    script += [RolledBack(0, 4, "a test"), *tokens(4, 6), (0, 4, "a"), (0, 6, "b")]
    script += [*tokens(6, 8), Committed(0, 8), finished(0, 3, 5)]
    gate, out = drive(script)
    assert out == [("Released", 4, "a"), ("Dropped", 6, "b"), ("Released", 6, "b")]
    assert gate.held == ()


def test_what_is_final_already_is_released_at_once() -> None:
    script = [*tokens(3, 8), Committed(0, 8), (0, 6, "late"), finished(0, 3, 5), (0, 8, "the answer")]
    assert drive(script)[1] == [("Released", 6, "late"), ("Released", 8, "the answer")]


def test_nothing_is_released_twice_though_the_consumer_fails() -> None:
    gate: EffectsGate[str] = EffectsGate()
    stream = gate.watch(iter([*tokens(3, 5), Committed(0, 5), *tokens(5, 6), finished(0, 3, 3)]))
    seen = []
    next(stream)
    gate.hold(0, 4, "call")
    for event in stream:
        if isinstance(event, Released):
            seen.append(event)
            assert gate.held == ()
            assert gate.hold(0, 4, "call") is False
    assert seen == [Released(0, 4, "call")]


def test_a_closed_stream_releases_nothing_and_closes_the_engine() -> None:
    closed = []

    def events() -> Iterator[Event]:
        try:
            yield from tokens(3, 5)
            yield Committed(0, 5)
        finally:
            closed.append(True)

    gate: EffectsGate[str] = EffectsGate()
    stream = gate.watch(events())
    next(stream)
    gate.hold(0, 4, "call")
    stream.close()
    assert closed == [True] and list(stream) == [] and gate.held == ((0, 4, "call"),)


def test_holding_what_cannot_be_is_refused() -> None:
    gate: EffectsGate[str] = EffectsGate()
    with pytest.raises(ValueError, match="while the events are watched"):
        gate.hold(0, 1, "early")
    stream = gate.watch([*tokens(3, 6), RolledBack(0, 3, "a test"), *tokens(3, 4)])
    next(stream)
    for upto in (-1, 0, 5):
        with pytest.raises(ValueError, match="within 1 and 4"):
            gate.hold(0, upto, "call")
    with pytest.raises(ValueError, match="request 1 so far"):
        gate.hold(1, 1, "of another")
    assert gate.hold(0, 4, "call") and not gate.hold(0, 4, "call")
    with pytest.raises(ValueError, match="another effect at 4"):
        gate.hold(0, 4, "another call")
    for event in stream:
        if isinstance(event, RolledBack):
            with pytest.raises(ValueError, match="within 1 and 3"):  # the token is not there any more
                gate.hold(0, 4, "call")
    with pytest.raises(ValueError, match="another gate"):
        next(gate.watch([]))


BROKEN = {
    "a token is missing": [*tokens(3, 5), *tokens(6, 7)],
    "a token comes twice": [*tokens(3, 5), *tokens(4, 5)],
    "tokens after a rollback are missing": [*tokens(3, 7), RolledBack(0, 4, ""), *tokens(5, 6)],
    "more is committed than was seen": [*tokens(3, 5), Committed(0, 8)],
    "more is finished than was seen": [*tokens(3, 5), finished(0, 3, 4)],
    "the horizon moves back": [*tokens(3, 9), Committed(0, 8), RolledBack(0, 4, "")],
}


@pytest.mark.parametrize("what", BROKEN)
def test_a_broken_stream_is_refused(what: str) -> None:
    with pytest.raises(IntegrityError):
        drive([*BROKEN[what][:2], (0, 5, "call"), *BROKEN[what][2:]])


# The engine


@pytest.fixture(scope="module")
def model(model_folder: Path) -> LoadedModel:
    return load_model(model_folder)


class Watched:
    """A run of the engine whose effects are the lines of its answer so far, one every three tokens."""

    def __init__(self, model: LoadedModel, log: FaultyLog) -> None:
        self.pool = PagePool(model.decoder.page_layout(16), 64)
        verified, ids = signed_anchor(model, "Your codename is Falcon. You live in Oslo.")
        self.pinned: PinnedAnchor = promote_anchor(verified, model.decoder, self.pool, ids)
        settings = EngineSettings(commit_interval=16)
        self.engine = Engine(
            model.decoder, self.pool, decode=model.decode, model=model.digest, settings=settings
        )
        prompt = tuple(model.chat_tokens("Tell me a story about a ship."))
        self.requests = [GenerationRequest(prompt, 40, salt=bytes(16))]
        self.log = log
        self.gate: EffectsGate[tuple[int, ...]] = EffectsGate()
        self.out: list[Any] = []

    def run(self, where: str | None = None, at: int = 0, fault: str | None = None) -> None:
        self.gate = EffectsGate()
        self.out = []
        generated = 0
        for event in self.gate.watch(self.engine.generate(self.requests, anchor=self.pinned, log=self.log)):
            self.out.append(event)
            if isinstance(event, Provisional):
                generated += 1
                if event.position % 3 == 0:
                    said = self.gate.tokens(event.request)
                    assert self.gate.hold(event.request, event.position + 1, said)
                if where is not None and generated == at:
                    page = self.pinned.pages[0] if where == "pinned" else self.engine.pages_of(0)[1]
                    self.pool.storage.view(torch.uint8)[13, 1, page, 2, 0, 9] ^= 1 << 5
                if fault == "full" and generated == at:
                    self.log.refuse(10**6)

    def of(self, kind: type) -> list[Any]:
        return [event for event in self.out if isinstance(event, kind)]


@pytest.fixture
def log(tmp_path: Path) -> Iterator[FaultyLog]:
    with FaultyLog(tmp_path / "log", NoteSigner("test/log", Ed25519PrivateKey.generate())) as writer:
        yield writer


def released_after_committed(out: Sequence[Any]) -> bool:
    committed: dict[int, int] = {}
    for event in out:
        if isinstance(event, Committed):
            committed[event.request] = event.upto
        elif isinstance(event, Released) and event.upto > committed.get(event.request, 0):
            return False
    return True


def test_effects_of_a_run_with_faults_are_those_of_one_without(model: LoadedModel, log: FaultyLog) -> None:
    watched = Watched(model, log)
    watched.run()
    plain = watched.of(Released)
    assert len(plain) >= 12 and not watched.of(Dropped) and watched.gate.held == ()
    for where in ("pinned", "context"):
        watched.run(where, at=30)
        assert watched.of(RolledBack) and watched.of(Dropped)
        assert sorted(watched.of(Released), key=str) == sorted(plain, key=str)
        assert released_after_committed(watched.out)


def test_a_log_that_stays_full_releases_nothing_that_it_does_not_hold(
    model: LoadedModel, log: FaultyLog
) -> None:
    watched = Watched(model, log)
    with pytest.raises(CapacityError):
        watched.run(at=30, fault="full")
    assert watched.of(Released) and released_after_committed(watched.out)
    horizon = {event.request: event.upto for event in watched.of(Committed)}
    assert all(upto > horizon[request] for request, upto, _ in watched.gate.held)
    with pytest.raises(ValueError, match="while the events are watched"):
        watched.gate.hold(0, 1, ())
