"""The way back: each thing that can go wrong ends in the same leaves as if it had not.

On the first layers of the demo model: real weights, and nothing here depends on what is said.
"""

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey  # noqa: E402

from fieldprint.adapters.transformers import LoadedModel  # noqa: E402
from fieldprint.audit import EntryCheck  # noqa: E402
from fieldprint.errors import LogError  # noqa: E402
from fieldprint.generate import (  # noqa: E402
    Committed,
    Engine,
    EngineSettings,
    Event,
    GenerationRequest,
    GenerationResult,
    Provisional,
    RolledBack,
)
from fieldprint.kvcache import PagedSequence, PagePool  # noqa: E402
from fieldprint.note import NoteSigner, VerifierKey  # noqa: E402
from fieldprint.promote import PinnedAnchor, promote_anchor  # noqa: E402
from fieldprint.tlog import LogReader, LogWriter, leaf_hash  # noqa: E402
from fieldprint.verify import VerifiedAnchor  # noqa: E402
from tests.collecting import collect  # noqa: E402
from tests.cut_model import cut_model  # noqa: E402
from tests.faulty_log import FaultyLog  # noqa: E402
from tests.signing import signed_anchor  # noqa: E402

SETTINGS = EngineSettings(chunk_size=64, commit_interval=16, log_timeout=0.5)
PROMPTS = ("Tell me a long story about a lighthouse and the sea. " * 6, "Say hello.")
TEXT = "Your codename is Falcon. You live in Oslo. Always be brief."
Inject = Callable[[int, Event], None]
Anchor = tuple[VerifiedAnchor, Sequence[int]]


class World:
    """An engine over the cut model, a pinned anchor, and two requests."""

    def __init__(self, model: LoadedModel, anchor: Anchor, settings: EngineSettings = SETTINGS) -> None:
        self.pool = PagePool(model.decoder.page_layout(16), 120)
        self.pinned: PinnedAnchor = promote_anchor(anchor[0], model.decoder, self.pool, anchor[1])
        self.engine = Engine(
            model.decoder, self.pool, decode=model.decode, model=model.digest, settings=settings
        )
        self.requests = [
            GenerationRequest(tuple(model.chat_tokens(text)), 60, salt=bytes(16)) for text in PROMPTS
        ]

    def run(
        self, log: LogWriter | None, inject: Inject = lambda number, event: None
    ) -> tuple[list[GenerationResult], list[Event]]:
        return collect(self.engine.generate(self.requests, anchor=self.pinned, log=log), inject)

    def flip(self, page: int, offset: int = 2) -> None:
        self.pool.storage.view(torch.uint8)[1, 1, page, offset, 0, 9] ^= 1 << 5


@pytest.fixture(scope="module")
def model(demo_model: LoadedModel) -> LoadedModel:
    return cut_model(demo_model)


@pytest.fixture(scope="module")
def anchor(model: LoadedModel) -> Anchor:
    return signed_anchor(model, TEXT)


@pytest.fixture(scope="module")
def undisturbed(model: LoadedModel, anchor: Anchor, tmp_path_factory: pytest.TempPathFactory) -> list[bytes]:
    signer = NoteSigner("test/log", Ed25519PrivateKey.generate())
    with FaultyLog(tmp_path_factory.mktemp("undisturbed") / "log", signer) as log:
        return leaves(World(model, anchor).run(log)[0])


@pytest.fixture
def world(model: LoadedModel, anchor: Anchor) -> World:
    return World(model, anchor)


@pytest.fixture
def log(tmp_path: Path) -> Iterator[FaultyLog]:
    with FaultyLog(tmp_path / "log", NoteSigner("test/log", Ed25519PrivateKey.generate())) as writer:
        yield writer


def leaves(results: Sequence[GenerationResult]) -> list[bytes]:
    return [page.leaf for result in results for page in result.pages]


def assert_audited(log: LogWriter) -> None:
    """What the log holds although nobody heard of it is no finding: an abort entry stands before the leaves that count."""
    check = EntryCheck()
    for index, entry in enumerate(LogReader(log.source, [VerifierKey.parse(log.verifier_key)]).entries()):
        check.add(index, entry, leaf_hash(entry))
    assert check.findings == [] and check.counts["abort"] > 0


def backs(events: Sequence[Event]) -> list[RolledBack]:
    return [event for event in events if isinstance(event, RolledBack)]


def at(number: int, act: Callable[[], object]) -> Inject:
    """Do it once, when so many tokens have come."""
    return lambda seen, event: act() and None if seen == number else None


@pytest.mark.parametrize("kind", ["old checkpoint", "fork", "other key", "hang", "refuse"])
def test_a_log_that_cannot_be_believed_commits_nothing_and_generation_goes_on(
    world: World, log: FaultyLog, undisturbed: list[bytes], kind: str
) -> None:
    acts = {
        "old checkpoint": lambda: log.lie("old"),
        "other key": lambda: log.lie("other key"),
        "fork": log.fork,
        "hang": lambda: log.hang(1.5),
        "refuse": log.refuse,
    }
    results, events = world.run(log, at(40, acts[kind]))
    assert backs(events) and all("log" in back.reason for back in backs(events))
    assert leaves(results) == undisturbed
    assert_audited(log)


def test_a_log_that_hangs_for_good_ends_with_an_error_in_time(world: World, log: FaultyLog) -> None:
    with pytest.raises(LogError, match=r"did not answer within 0.5 s"):
        world.run(log, at(40, log.hang))
    log.release()
    world.pool.check_conservation(list(world.pinned.pages))


@pytest.mark.parametrize("number", [1, 2, 33, 77, 101])
@pytest.mark.parametrize("back", [1, 0], ids=["page before", "newest page"])
def test_a_flip_in_a_page_that_is_not_committed_yet_is_found_too(
    world: World, log: FaultyLog, undisturbed: list[bytes], number: int, back: int
) -> None:
    """A slot is bound right after the step that wrote it: not the page when it is whole."""
    when: list[int] = []

    def flip(seen: int, event: Event) -> None:
        if seen >= number and not when and event.request == 0:
            last = event.position - 1 - 16 * back  # K/V of the newest token itself is not there yet
            world.flip(world.engine.pages_of(0)[last // 16], last % 16)
            when.append(event.position)

    results, events = world.run(log, flip)
    assert len(backs(events)) == 1
    early = events[: events.index(backs(events)[0])]
    assert not [e for e in early if isinstance(e, Committed) and e.request == 0 and e.upto > when[0] + 1]
    assert leaves(results) == undisturbed


@pytest.mark.parametrize("settings", [SETTINGS, EngineSettings(chunk_size=64, commit_interval=64)])
def test_a_flip_in_a_pinned_page_stops_generation_within_two_steps(
    model: LoadedModel, anchor: Anchor, log: FaultyLog, settings: EngineSettings
) -> None:
    """Whether or not a commit is due."""
    world = World(model, anchor, settings)
    results, events = world.run(log, at(50, lambda: world.flip(world.pinned.pages[0])))
    first = events.index(backs(events)[0])
    tokens = [i for i, event in enumerate(events) if isinstance(event, Provisional)]
    after = [i for i in tokens if tokens[49] < i < first]
    assert len(after) <= 2 * len(world.requests)
    assert world.pinned.damaged() == [] and len(results) == 2


@pytest.mark.parametrize("taken", [False, True], ids=["free", "given to somebody else"])
@pytest.mark.parametrize("which", [0, 1, -1], ids=["committed", "next", "newest"])
def test_a_page_that_was_freed_too_early_is_replaced(
    world: World, log: FaultyLog, undisturbed: list[bytes], which: int, taken: bool
) -> None:
    stranger = PagedSequence(world.pool)

    def free() -> None:
        used = -(-world.engine._batch.rows[0].sequence.length // 16)  # type: ignore[union-attr]
        page = world.engine.pages_of(0)[:used][which]
        world.pool.release([page])
        if taken:
            stranger.pages = world.pool.allocate(1, after=page - 1)
            assert stranger.pages == [page]
            stranger.length = 16
            world.pool.storage[:, :, page] = 7.0

    results, _ = world.run(log, at(60, free))
    assert leaves(results) == undisturbed
    world.pool.check_conservation([*world.pinned.pages, *stranger.pages])
    if taken:
        assert (world.pool.storage[:, :, stranger.pages] == 7.0).all()


def test_two_damaged_pages_of_two_requests_are_one_fault_each(
    world: World, log: FaultyLog, undisturbed: list[bytes]
) -> None:
    def damage() -> None:
        world.flip(world.engine.pages_of(0)[0])
        world.flip(world.engine.pages_of(1)[0])
        world.flip(world.pinned.pages[-1], 0)

    results, events = world.run(log, at(70, damage))
    assert {back.request for back in backs(events)} == {0, 1}
    assert leaves(results) == undisturbed


def test_old_slots_are_checked_in_rotation_within_the_budget(model: LoadedModel) -> None:
    """A row that no pass has looked at for 1 / budget steps is looked at, a part a step, from its first slot to its last."""
    from fieldprint.commit.committer import RequestTerms
    from fieldprint.generate.row import Row
    from fieldprint.generate.watch import Watch

    pool = PagePool(model.decoder.page_layout(16), 8)
    terms = RequestTerms("0" * 64, bytes(16), 100, "0" * 64, None, None, {}, {})
    row = Row(0, GenerationRequest((1,) * 100, 1), pool, terms)
    row.sequence.prepare(100)
    watch = Watch(pool, None, EngineSettings(scrub_budget=0.1))
    row.take_digests(0, watch.hasher.now(row.sequence.slots(0, 100)))
    watch.step = 10
    assert watch.due([row]) == []
    looked: list[int] = []
    for step in range(11, 21):
        watch.step = step
        ((slots, digests),) = watch.due([row])
        assert len(slots) == 10  # a tenth of what is held
        assert np.array_equal(digests, watch.hasher.now(slots))
        looked += slots.tolist()
    assert looked == row.sequence.slots(0, 100).tolist()
    watch.step = 21
    assert watch.due([row]) == [] and row.checked_at == 20
    watch.close()
