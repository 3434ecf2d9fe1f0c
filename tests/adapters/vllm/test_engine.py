"""One engine of vLLM under fire: damage, a dead thread, a log that refuses, revocation and override in mid-stream, new anchors.

What must hold each time: texts as if nothing had happened where nothing must change, no token sent twice or taken back,
every receipt verifies, and the prefix cache can be emptied afterwards.
"""

import base64
import json
import time
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from fieldprint.adapters.vllm.control import write_whole
from fieldprint.adapters.vllm.receipts import receipt_path
from fieldprint.adapters.vllm.versions import public_id
from fieldprint.anchor import sign_revocation, sign_statement
from fieldprint.anchor.statements import Lift, Override
from fieldprint.commit.leaf import Commitment
from fieldprint.commit.receipt import Receipt
from fieldprint.errors import LogError
from fieldprint.verify import VerifiedAnchor, verify_receipt
from tests.adapters.vllm.world import Running, World

pytestmark = pytest.mark.slow
TEXTS = ("What is the password?", "Where do you live?", "Tell me of a fox.", "Who are you?")
NAMES = ("main", "second", "main", None)


@pytest.fixture(scope="module")
def control(world: World) -> Path:
    return world.folder / "control"


@pytest.fixture(scope="module")
def running(world: World, control: Path) -> Iterator[Running]:
    engine = world.engine(settings=world.settings(control=str(control), log_timeout=5.0))
    yield Running(engine, world.model)
    engine.llm_engine.engine_core.shutdown()


@pytest.fixture(scope="module")
def whole(running: Running) -> list[list[int]]:
    """What is said when nothing happens."""
    return tokens(running.play(TEXTS, anchors=NAMES))


@pytest.fixture(autouse=True)
def _afterwards(running: Running) -> Iterator[None]:
    running.engine.reset_prefix_cache()
    yield
    assert not running.ledger.rows
    assert running.engine.reset_prefix_cache()
    running.scheduler._faults = 0


def tokens(outputs: list[Any]) -> list[list[int]]:
    return [list(output.outputs[0].token_ids) for output in outputs]


@dataclass(frozen=True)
class Kept:
    """A receipt that has passed."""

    receipt: Receipt
    anchor: VerifiedAnchor | None


def verified(world: World, name: str, *, registry: bool = True) -> Kept:
    data = receipt_path(world.folder / "receipts", public_id(name)).read_bytes()
    known = world.registry() if registry else None
    checked = verify_receipt(data, world.policy, now=datetime.now(UTC), registry=known)
    return Kept(Receipt.from_bytes(data), checked.anchor)


def ask(control: Path, **asked: Any) -> dict[str, Any]:
    """A question to the engine and its answer; the engine's thread answers also while nothing is generated."""
    name = f"{time.monotonic_ns()}.json"
    write_whole(control / "in" / name, asked)
    out = control / "out" / name
    for _ in range(400):
        if out.exists():
            found: dict[str, Any] = json.loads(out.read_text())
            out.unlink()
            return found
        time.sleep(0.05)
    raise AssertionError("no answer")


def test_receipts_verify_and_say_which_anchor(running: Running, world: World, whole: list[list[int]]) -> None:
    outputs = running.play(TEXTS, anchors=NAMES)
    assert tokens(outputs) == whole
    for output, name in zip(outputs, NAMES, strict=True):
        receipt = verified(world, output.request_id)
        assert receipt.receipt.tokens == tuple(output.outputs[0].token_ids)
        assert receipt.anchor is not None
        assert receipt.anchor.artifact.name == (name or "main")


@pytest.mark.parametrize("layer", [0, 29])
@pytest.mark.parametrize("where", ["first block", "last block", "anchor"])
def test_a_flipped_bit_changes_nothing(
    running: Running, world: World, whole: list[list[int]], where: str, layer: int
) -> None:
    before = running.supervisor.counters["faults"]

    def hook(step: int, ids: list[str]) -> None:
        row = running.row(ids[0])
        if step == 45 and row is not None:
            block = {
                "first block": row.blocks[0],
                "last block": row.blocks[-1],
                "anchor": row.anchor.blocks[0],
            }[where]
            running.flip(block, 3, layer)

    outputs = running.play(TEXTS, anchors=NAMES, hook=hook)
    assert tokens(outputs) == whole
    assert running.supervisor.counters["faults"] > before
    for output in outputs:
        verified(world, output.request_id)


def test_blocks_of_two_requests_swapped_change_nothing(
    running: Running, world: World, whole: list[list[int]]
) -> None:
    def hook(step: int, ids: list[str]) -> None:
        one, other = running.row(ids[0]), running.row(ids[1])
        if step == 50:
            for flat in running.residency._flats:
                blocks = flat.view(-1, running.residency.layout.stride)
                blocks[[one.blocks[0], other.blocks[1]]] = blocks[[other.blocks[1], one.blocks[0]]]

    outputs = running.play(TEXTS, anchors=NAMES, hook=hook)
    assert tokens(outputs) == whole
    for output in outputs:
        verified(world, output.request_id)


def test_a_request_that_shares_a_damaged_block_goes_back_too(running: Running) -> None:
    text = "Tell me, in as many words as you like and with every detail that you can think of, about the sea and its fish."
    alone = tokens(running.play([text]))
    assert tokens(running.play([text])) == alone  # from the prefix cache

    def hook(step: int, ids: list[str]) -> None:
        rows = [running.row(name) for name in ids]
        if step == 40 and all(rows):
            assert rows[0].blocks[0] == rows[1].blocks[0]
            running.flip(rows[0].blocks[0], 5)

    assert tokens(running.play([text, text], hook=hook)) == alone * 2


def test_a_thread_that_dies_is_replaced(running: Running, world: World, whole: list[list[int]]) -> None:
    def hook(step: int, ids: list[str]) -> None:
        if step == 30:
            running.ledger._committer._worker.jobs.put(None)
            running.ledger._committer._worker.join(10)

    outputs = running.play(TEXTS, anchors=NAMES, hook=hook)
    assert tokens(outputs) == whole
    for output in outputs:
        verified(world, output.request_id)


def test_a_log_that_refuses_for_a_while_changes_nothing(
    running: Running, world: World, whole: list[list[int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    log, refusals = running.supervisor._log, []
    append = log.append

    def refuse(entries: Any) -> Any:
        if len(refusals) < 3:
            refusals.append(len(entries))
            raise LogError("the disk is full")
        return append(entries)

    monkeypatch.setattr(log, "append", refuse)
    outputs = running.play(TEXTS, anchors=NAMES)
    assert len(refusals) == 3
    assert tokens(outputs) == whole
    for output in outputs:
        verified(world, output.request_id)


def test_what_was_computed_under_a_damaged_anchor_is_not_found_again_when_the_log_refuses_too(
    running: Running, world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = "Tell me of the sea. " * 16  # fills blocks that the prefix cache keeps
    alone = running.play([text], anchors=["second"], max_tokens=3)
    running.engine.reset_prefix_cache()
    log, refusals = running.supervisor._log, []
    append = log.append

    def refuse(entries: Any) -> Any:
        if not refusals:
            refusals.append(len(entries))
            raise LogError("the disk is full")
        return append(entries)

    monkeypatch.setattr(log, "append", refuse)
    for flat in running.residency._flats:
        for block in running.supervisor.anchors.named("second").blocks:
            flat.view(-1, running.residency.layout.stride)[block] = 0
    again = running.play([text], anchors=["second"], max_tokens=3)
    assert refusals
    assert tokens(again) == tokens(alone)
    of_cache = [[leaf.kv for leaf in leaves(world, outputs)] for outputs in (alone, again)]
    assert of_cache[0] == of_cache[1]


def leaves(world: World, outputs: list[Any]) -> list[Commitment]:
    receipt = verified(world, outputs[0].request_id).receipt
    return [Commitment.from_bytes(item.leaf) for item in receipt.leaves]


def test_with_a_log_that_refuses_for_good_nothing_is_final(
    running: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(entries: Any) -> Any:
        raise LogError("the disk is full")

    monkeypatch.setattr(running.supervisor._log, "append", refuse)
    outputs = running.play(TEXTS[:2])
    for output in outputs:
        assert output.outputs[0].finish_reason == "error"
        assert "the disk is full" in output.outputs[0].stop_reason
        assert not output.outputs[0].token_ids


def test_a_request_for_an_anchor_that_is_not_there_is_refused(running: Running) -> None:
    refused, answered = running.play(TEXTS[:2], anchors=["nobody", "main"])
    assert refused.outputs[0].finish_reason == "error"
    assert "nobody" in refused.outputs[0].stop_reason
    assert len(answered.outputs[0].token_ids) == 70


def test_an_abort_frees_everything_and_leaves_a_receipt(running: Running, world: World) -> None:
    outputs: list[str] = []

    def hook(step: int, ids: list[str]) -> None:
        if step == 40:
            outputs.append(ids[0])
            running.scheduler.finish_requests(running.row(ids[0]).request.request_id, aborted())

    with pytest.raises(KeyError):  # the client of the first does not wait for it
        running.play(TEXTS[:2], hook=forgetting(running, hook))
    while running.ledger.rows:
        running.engine.llm_engine.engine_core.engine_core.step()
    assert verified(world, outputs[0]).receipt.tokens


def aborted() -> Any:
    from vllm.v1.request import RequestStatus

    return RequestStatus.FINISHED_ABORTED


def test_what_was_computed_from_a_damaged_block_is_never_found_again(running: Running) -> None:
    """Another request has computed later blocks from one that was damaged, and is not due when that is found."""
    text = "Tell me of the sea and of all that lives in it, as long as you can. " * 8
    alone = tokens(running.play([text], max_tokens=34))
    running.engine.reset_prefix_cache()
    running.play([text[:160]], max_tokens=3)  # the first blocks, which the next two share

    def hook(step: int, ids: list[str]) -> None:
        row = running.row(ids[0])
        if step == 1 and row is not None:
            running.flip(row.blocks[0], 9)

    running.play([text, text[:160]], max_tokens=34, hook=hook)
    assert tokens(running.play([text], max_tokens=34)) == alone


def test_an_abort_while_it_is_computed_again_ends(running: Running) -> None:
    """Its blocks were taken away, and it has to be computed before it can be committed."""
    aborts: list[str] = []

    def hook(step: int, ids: list[str]) -> None:
        row = running.row(ids[0])
        if step == 40:
            running.scheduler.reset_prefix_cache(reset_running_requests=True)
            aborts.append(row.request.request_id)
            running.scheduler.finish_requests(row.request.request_id, aborted())

    with pytest.raises(KeyError):
        running.play(TEXTS[:2], hook=forgetting(running, hook))
    while running.ledger.rows:
        running.engine.llm_engine.engine_core.engine_core.step()
    assert aborts


def forgetting(running: Running, hook: Any) -> Any:
    """The hook, with a front end that forgets the first request at step 40, as at an abort of its client's."""
    processor = running.engine.llm_engine.output_processor

    def watch(step: int, ids: list[str]) -> None:
        hook(step, ids)
        if step == 40:
            processor.abort_requests([*processor.request_states][:1], internal=True)

    return watch


def test_an_override_takes_the_anchor_away_in_mid_stream(
    running: Running, world: World, control: Path
) -> None:
    now = datetime.now(UTC).replace(microsecond=0)
    override = Override("bypass", "anchor", world.artifacts["second"].digest, 1, "a test", now)

    def hook(step: int, ids: list[str]) -> None:
        if step == 30:
            signed = base64.b64encode(sign_statement(override, [world.overrider])).decode()
            assert "index" in ask(control, type="override", signed=signed)

    left, kept = running.play(TEXTS[:2], anchors=["second", "main"], hook=hook)
    assert [len(left.outputs[0].token_ids), len(kept.outputs[0].token_ids)] == [70, 70]
    # Of what came before; while the order is in force the anchor does not verify with the registry.
    before = verified(world, f"{public_id(left.request_id)}.1", registry=False)
    after = verified(world, left.request_id)
    assert after.anchor is None
    assert before.receipt.tokens + after.receipt.tokens == tuple(left.outputs[0].token_ids)
    assert verified(world, kept.request_id).anchor is not None
    without = running.play(TEXTS[:1], anchors=["second"])[0]
    assert verified(world, without.request_id).anchor is None
    lift = sign_statement(Lift(1, "it is over", now), [world.overrider])
    assert "index" in ask(control, type="lift", signed=base64.b64encode(lift).decode())
    again = running.play(TEXTS[:1], anchors=["second"])[0]
    assert verified(world, again.request_id).anchor is not None


def test_an_anchor_that_comes_at_run_time_is_served(running: Running, world: World, control: Path) -> None:
    fieldprint_file = world.folder / "third.fieldprint"
    signed = world.make(
        "third", "Your codename is Raven. You live in Bergen. You like rain.", fieldprint_file
    )
    registration = base64.b64encode(world.registration("third")).decode()
    artifact = base64.b64encode(signed).decode()
    asked = {"type": "install", "name": "third", "artifact": artifact, "fieldprint": str(fieldprint_file)}
    assert "not registered" in ask(control, **asked)["what"]
    assert "index" in ask(control, type="registration", signed=registration)
    assert ask(control, **asked) == {"accepted": "third"}
    assert "already" in ask(control, **asked)["what"]
    output = running.play(["Where do you live?"], anchors=["third"])[0]
    receipt = verified(world, output.request_id)
    assert receipt.anchor is not None
    assert receipt.anchor.artifact.name == "third"


def is_taken_back(running: Running, name: str, *, begun: bool = True) -> bool:
    """Whether a request is about to be computed again, of which a client has something, or nothing."""
    row = running.row(name)
    if row is None or row.request.status.name != "PREEMPTED":
        return False
    return (len(row.tokens) > row.prompt_len) == begun


def test_an_override_of_what_is_computed_again_loses_nothing(
    running: Running, world: World, control: Path
) -> None:
    now = datetime.now(UTC).replace(microsecond=0)
    override = Override("bypass", "anchor", world.artifacts["second"].digest, 2, "a test", now)
    given: list[int] = []

    def hook(step: int, ids: list[str]) -> None:
        row = running.row(ids[0])
        if step == 45 and row is not None:
            running.flip(row.blocks[-1], 3)
        if not given and is_taken_back(running, ids[0]):
            given.append(step)
            signed = base64.b64encode(sign_statement(override, [world.overrider])).decode()
            assert "index" in ask(control, type="override", signed=signed)

    (left,) = running.play(TEXTS[:1], anchors=["second"], hook=hook)
    lift = sign_statement(Lift(2, "it is over", now), [world.overrider])
    assert "index" in ask(control, type="lift", signed=base64.b64encode(lift).decode())
    assert given
    before = verified(world, f"{public_id(left.request_id)}.1")
    after = verified(world, left.request_id)
    assert after.anchor is None and before.anchor is not None
    assert before.receipt.tokens + after.receipt.tokens == tuple(left.outputs[0].token_ids)
    assert len(left.outputs[0].token_ids) == 70


@pytest.mark.parametrize("begun", [True, False], ids=["begun", "not begun"])
def test_a_revocation_of_what_is_computed_again_leaves_a_receipt(
    running: Running, world: World, control: Path, begun: bool
) -> None:
    name = "fourth" if begun else "fifth"
    file = world.folder / f"{name}.fieldprint"
    signed = base64.b64encode(world.make(name, "Your codename is Crow. You live in Turku.", file)).decode()
    registration = base64.b64encode(world.registration(name)).decode()
    assert "index" in ask(control, type="registration", signed=registration)
    asked = {"type": "install", "name": name, "artifact": signed, "fieldprint": str(file)}
    assert ask(control, **asked) == {"accepted": name}
    now = datetime.now(UTC).replace(microsecond=0)
    revocation = sign_revocation(world.artifacts[name].digest, "a test", now, [world.owner])
    given: list[int] = []

    def hook(step: int, ids: list[str]) -> None:
        row = running.row(ids[0])
        if row is not None and step == (45 if begun else 5):
            running.flip(row.blocks[-1] if begun else row.anchor.blocks[0], 3)
        if not given and is_taken_back(running, ids[0], begun=begun):
            given.append(step)
            assert "index" in ask(control, type="revocation", signed=base64.b64encode(revocation).decode())

    (ended,) = running.play(TEXTS[:1], anchors=[name], hook=hook)
    assert given and ended.outputs[0].stop_reason == "revoked"
    if not begun:
        assert ended.outputs[0].finish_reason == "error" and not ended.outputs[0].token_ids
        return
    receipt = verified(world, ended.request_id, registry=False).receipt
    assert receipt.tokens == tuple(ended.outputs[0].token_ids)
    assert receipt.text == ended.outputs[0].text


def test_a_revocation_ends_requests_within_a_step_and_for_good(
    running: Running, world: World, control: Path
) -> None:
    revocation = sign_revocation(
        world.artifacts["third"].digest, "a test", datetime.now(UTC).replace(microsecond=0), [world.owner]
    )
    counts: list[int] = []

    def hook(step: int, ids: list[str]) -> None:
        row = running.row(ids[0])
        if step == 30:
            assert "index" in ask(control, type="revocation", signed=base64.b64encode(revocation).decode())
        if step >= 30 and row is not None:
            counts.append(len(row.tokens))

    ended, kept = running.play(TEXTS[:2], anchors=["third", "main"], hook=hook)
    assert len(set(counts)) == 1  # the step in which it was heard of has ended, and none after it was begun
    assert ended.outputs[0].stop_reason == "revoked"
    # All of what the receipt says, the last token too.
    assert ended.outputs[0].text == verified(world, ended.request_id, registry=False).receipt.text
    assert len(ended.outputs[0].token_ids) < 70 == len(kept.outputs[0].token_ids)
    refused = running.play(TEXTS[:1], anchors=["third"])[0]
    assert "revoked" in refused.outputs[0].stop_reason
    twice = ask(control, type="revocation", signed=base64.b64encode(revocation).decode())
    assert twice["refused"]
