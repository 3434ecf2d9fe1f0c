"""Counterexamples of the model's mutants (docs/protocol.md), played on the engine."""

# ruff: noqa: F811  # fixtures of another file are imported by their names

import pytest

torch = pytest.importorskip("torch")

from dataclasses import replace  # noqa: E402

from fieldprint.adapters.transformers import LoadedModel  # noqa: E402
from fieldprint.errors import IntegrityError  # noqa: E402
from fieldprint.generate import (  # noqa: E402
    Event,
    Finished,
    GenerationRequest,
    GenerationResult,
    rebuild,
)
from fieldprint.generate.passes import Passes  # noqa: E402
from fieldprint.generate.request import Prefix  # noqa: E402
from fieldprint.kvcache import PagedSequence  # noqa: E402
from tests.faulty_log import FaultyLog  # noqa: E402
from tests.generate.test_recovery import (  # noqa: E402, F401
    SETTINGS,
    Anchor,
    World,
    anchor,
    at,
    backs,
    leaves,
    log,
    model,
    undisturbed,
    world,
)


def continued(world: World, model: LoadedModel, prefix: Prefix, log: FaultyLog) -> list[GenerationResult]:
    tail = tuple(model.encode(" number one is very big"))
    requests = [GenerationRequest(tail, 20, prefix=prefix, salt=bytes(16)) for _ in range(2)]
    events = world.engine.generate(requests, anchor=world.pinned, log=log)
    results = {event.request: event.result for event in events if isinstance(event, Finished)}
    return [results[0], results[1]]


def test_a_flip_while_a_prefix_is_computed_is_never_committed(
    world: World, model: LoadedModel, anchor: Anchor, log: FaultyLog, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither by the first batch on the prefix, which repairs the page, nor by the second, which finds nothing."""
    ids = tuple(model.encode("The quick brown fox jumps over the lazy dog near the river bank. " * 20))[:220]
    other = World(model, anchor)
    plain = continued(other, model, other.engine.prefill(ids, anchor=other.pinned), log)
    forward, chunks = Passes.forward_chunk, []

    def flip_before_the_second(self: Passes, sequence: PagedSequence, tokens: list[int]) -> torch.Tensor:
        chunks.append(tokens)
        if len(chunks) == 2:
            world.flip(sequence.pages[1])
        return forward(self, sequence, tokens)

    with monkeypatch.context() as patch:
        patch.setattr(Passes, "forward_chunk", flip_before_the_second)
        try:
            prefix = world.engine.prefill(ids, anchor=world.pinned)
        except IntegrityError:
            prefix = world.engine.prefill(ids, anchor=world.pinned)
    try:
        first = continued(world, model, prefix, log)
    except IntegrityError:
        first = plain  # nothing was finished; what counts is what comes next
    second = continued(world, model, prefix, log)
    same = leaves(first) == leaves(second) == leaves(plain)
    assert same  # pytest's own account of where two such lists differ takes long


def test_an_anchor_that_somebody_else_repairs_takes_its_readers_back(
    model: LoadedModel, anchor: Anchor, log: FaultyLog, undisturbed: list[bytes]
) -> None:
    """Between two looks of the scrub, a token is computed on damage and `prefill` rewrites the anchor."""
    world = World(model, anchor, replace(SETTINGS, scrub_interval=1000, commit_interval=48))
    flipped: list[int] = []

    def flip_then_repair(number: int, event: Event) -> None:
        batch = world.engine._batch
        assert batch is not None and batch.committer is not None
        if event.request or number < 60:
            return
        if not flipped and event.position % 16 == 4 and not batch.committer.busy:
            world.flip(world.pinned.pages[0])
            flipped.append(event.position)
        elif len(flipped) == 1:
            flipped.append(event.position)
            with pytest.raises(IntegrityError, match="while the prefix was computed"):
                world.engine.prefill((1, 2, 3), anchor=world.pinned)

    results, events = world.run(log, flip_then_repair)
    same = leaves(results) == undisturbed
    assert backs(events) and same


def test_a_second_fault_during_a_repair_is_repaired_too(
    world: World, log: FaultyLog, undisturbed: list[bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    real, hit = rebuild._twin, []

    def flip_the_anchor_first(*arguments: object) -> PagedSequence:
        if not hit:
            hit.append(True)
            world.flip(world.pinned.pages[0])
        return real(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(rebuild, "_twin", flip_the_anchor_first)
    results, _ = world.run(log, at(60, lambda: world.flip(world.engine.pages_of(0)[1])))
    same = leaves(results) == undisturbed
    assert same
