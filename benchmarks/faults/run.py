"""One run: a plan's faults strike a batch, the events are followed, and every fault has to come to its end."""

import signal
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from types import FrameType

from benchmarks.faults.inject import Injector, Struck
from benchmarks.faults.log import WatchedLog
from benchmarks.faults.observe import Reader
from benchmarks.faults.plan import SERVICE_KINDS, Fault, Plan, Strike
from benchmarks.faults.world import Scene, World
from fieldprint.errors import FieldprintError
from fieldprint.generate import Committed, Event, Finished, GenerationRequest, Provisional, RolledBack
from fieldprint.pipeline import receipt_of
from fieldprint.tlog import LogReader
from fieldprint.verify import verify_receipt

MAX_SECONDS = 300.0


class HungError(Exception):
    """A run has not come to its end in time."""


@dataclass(slots=True)
class Outcome:
    """What came of a run. `wrong` is empty if every promise was kept; `identical`: texts and leaves are the undisturbed ones."""

    scene: str
    seed: int
    struck: list[Struck] = field(default_factory=list)
    wrong: list[str] = field(default_factory=list)
    identical: bool = False
    released: int = 0
    unverified: int = 0
    receipts: int = 0
    seconds: float = 0.0


class Run:
    """A batch of a scene under a plan.

    Args:
        world: with the engine.
        scene: of the world.
        plan: of faults.
        tell: is called with what happens, in words.
    """

    def __init__(
        self, world: World, scene: Scene, plan: Plan, tell: Callable[[str], None] | None = None
    ) -> None:
        self.world, self.scene, self._tell = world, scene, tell
        self.outcome = Outcome(scene.name, plan.seed)
        self._strikes = list(plan.strikes)
        self._under_way: Strike | None = None
        self._wait = self._strikes[0].wait
        self._progress = True  # whether anything was committed since the last rollback
        self._injector: Injector | None = None
        self._log_timeout = world.engine.settings.log_timeout

    def tell(self, line: str) -> None:
        """Pass it on, if somebody listens."""
        if self._tell is not None:
            self._tell(line)

    def play(self) -> Outcome:
        """Run to the end, whatever that is."""
        started, outcome = time.monotonic(), self.outcome
        expected = self.world.undisturbed(self.scene)
        with self.world.log() as log:
            reader = Reader(expected)
            try:
                with _limit(MAX_SECONDS), self.world.requests(self.scene) as requests:
                    self._generate(requests, reader, log)
            except Exception as error:
                outcome.wrong.append(f"the engine ended with {error!r}\n{traceback.format_exc()}")
            log.honest_again()
            outcome.identical = reader.compare()
            outcome.wrong += reader.wrong
            outcome.released = reader.released
            outcome.unverified += reader.unverified
            self._check_receipts(reader, log)
        self._check_pages()
        outcome.seconds = time.monotonic() - started
        return outcome

    def _generate(self, requests: list[GenerationRequest], reader: Reader, log: WatchedLog) -> None:
        world = self.world
        events = world.engine.generate(requests, anchor=world.pinned, attention=self.scene.attention, log=log)
        with closing(events):
            for event in reader.follow(events):
                injector = self._injector or self._start(log)
                injector.take_freed()
                if not isinstance(event, Provisional | Finished):
                    self.tell(f"step {injector.step}: {event}")
                self._judge(event, injector)
                self._strike(event, injector)
        self._settle(log)

    def _start(self, log: WatchedLog) -> Injector:
        batch = self.world.engine._batch  # the engine tells nobody else what is bound
        if batch is None:
            raise RuntimeError("the engine gives events and runs no batch")
        self._injector = Injector(self.world, batch, log)
        self.outcome.struck = self._injector.struck
        return self._injector

    # Striking

    def _strike(self, event: Event, injector: Injector) -> None:
        """Inject what is due at this event."""
        if isinstance(event, RolledBack):
            self._progress = False
            if self._under_way is not None and self._under_way.again is not None:
                self._inject(self._under_way.again, event, injector)
                self._under_way = replace(self._under_way, again=None)
        elif isinstance(event, Committed):
            self._progress = True
        if injector.open or not self._progress:
            return
        if self._under_way is not None:
            self._under_way = None
            self._wait = self._strikes[0].wait if self._strikes else 0
        if isinstance(event, Provisional) and self._strikes:
            self._wait -= 1
            if self._wait <= 0:
                self._under_way = self._strikes.pop(0)
                for fault in self._under_way.faults:
                    self._inject(fault, event, injector)

    def _inject(self, fault: Fault, event: Event, injector: Injector) -> None:
        struck = injector.inject(fault, event)
        if struck is not None:
            where = f"requests {struck.indexes}" if struck.indexes else ""
            self.tell(f"step {injector.step}: STRIKE {fault.kind}: {struck.what} {where}")

    # Judging

    def _judge(self, event: Event, injector: Injector) -> None:
        """What this event says about the faults that are open."""
        for struck in injector.open:
            if struck.fault.kind in SERVICE_KINDS:
                if isinstance(event, RolledBack):
                    self._judge_service(event, injector, struck)
            elif event.request in struck.known:
                self._judge_damage(event, injector, struck)

    def _judge_service(self, event: RolledBack, injector: Injector, struck: Struck) -> None:
        """A fault of the log or the worker is found when all of it has struck, and a rollback comes of it.

        The rollback may have another reason besides, which it then names.
        """
        if (
            struck.fault.kind == "log hangs"
        ):  # every submission hangs, so that any rollback that took so long waited for it
            over = "did not answer" in event.reason or time.monotonic() - struck.at > self._log_timeout
        elif struck.thread is not None:
            over = not struck.thread.is_alive()
        else:
            over = not injector.log.armed
        if over:
            injector.log.release()
            struck.rollbacks += 1
            self._found(struck, injector)

    def _judge_damage(self, event: Event, injector: Injector, struck: Struck) -> None:
        request = event.request
        left = not isinstance(event, Provisional) and injector.left(struck, request)
        if isinstance(event, Committed) and left and event.upto > struck.known[request]:
            struck.outcome = "missed"
            self.outcome.unverified += 1
            self.outcome.wrong.append(
                f"request {request} was committed up to {event.upto} with damage since {struck.known[request]}: "
                f"{struck.fault.kind}, {struck.what}"
            )
            return
        if isinstance(event, RolledBack):
            struck.known[request] = min(struck.known[request], event.to)  # the damage is read again
            if not left:
                struck.rollbacks += 1
                struck.seen |= "a pinned page" in event.reason or (
                    "a context page" in event.reason and not struck.pinned
                )
        if not (left or isinstance(event, Provisional)):
            del struck.known[request]
            if not struck.known:
                if struck.seen:
                    self._found(struck, injector)
                else:
                    struck.outcome = "gone"

    def _found(self, struck: Struck, injector: Injector) -> None:
        struck.outcome, struck.steps = "found", injector.step - struck.step
        self.tell(
            f"step {injector.step}: found after {struck.steps} steps: {struck.fault.kind}: {struck.what}"
        )

    def _settle(self, log: WatchedLog) -> None:
        """The end of what is still open when the batch has ended."""
        for struck in self._injector.open if self._injector is not None else ():
            idle = log.submissions == struck.submissions or struck.thread is not None or log.armed
            struck.outcome = "idle" if struck.fault.kind in SERVICE_KINDS and idle else "missed"

    def _check_receipts(self, reader: Reader, log: WatchedLog) -> None:
        source = LogReader(log.path, [self.world.signer.verifier_key])
        for request, result in sorted(reader.results.items()):
            try:
                receipt = receipt_of(result, source, self.world.signed)
                verify_receipt(receipt.to_bytes(), self.world.policy, now=datetime.now(UTC))
                self.outcome.receipts += 1
            except FieldprintError as error:
                self.outcome.wrong.append(f"the receipt of request {request} does not verify: {error.what}")

    def _check_pages(self) -> None:
        """No page is lost, and none is taken from somebody else; whatever was wrong, the pool is whole afterwards."""
        wrong, pool, pinned = self.outcome.wrong, self.world.pool, self.world.pinned
        if self._injector is not None:
            for struck in self._injector.open:
                struck.outcome = "missed"
            wrong += self._injector.give_back()
        for page in set(range(pool.num_pages)).difference(pinned.pages):
            count = pool.references(page)
            if count:
                wrong.append(f"page {page} is lost: nobody holds it, and {count} references are counted")
            pool.release([page] * count)
        pool.check_conservation(list(pinned.pages))
        if pinned.damaged():
            wrong.append("a pinned page is damaged at the end")
            pinned.rewrite()


@contextmanager
def _limit(seconds: float) -> Iterator[None]:
    """Raise HungError in the main thread after so long, and again and again until this block is left."""

    def expired(number: int, frame: FrameType | None) -> None:  # noqa: ARG001
        raise HungError(f"no end within {seconds:g} s")

    before = signal.signal(signal.SIGALRM, expired)
    timer = signal.setitimer(signal.ITIMER_REAL, seconds, seconds)
    try:
        yield
    finally:
        signal.signal(signal.SIGALRM, before)
        signal.setitimer(signal.ITIMER_REAL, *timer)
