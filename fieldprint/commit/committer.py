"""The worker thread of the verification path: checks slots, appends leaves, moves the committed horizon.

The engine hands over a `CommitJob`, whose slots are being hashed, and goes on decoding; the worker

1. compares the digests of the pinned slots (the anchor) with the promoted ones;
2. compares those of every slot that the job's tokens depend on, the new ones included, with what is bound to them;
3. builds one leaf a page and appends them to the log in one batch, which returns when the leaves are durable and a signed
   checkpoint covers them, and follows the log: a checkpoint that does not continue its tree by these leaves is refused;
4. for each request with a bad page, appends an abort entry instead; and one before the leaves of a request whose last ones
   the log may hold although it did not say so in time.

A pass starts after the tokens of its job were computed, so a clean pass shows that whatever they read was still what
is bound. One job is in flight at a time. A worker that dies, or whose log does not answer in time, is replaced by another.
"""

import queue
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from fieldprint import blake3
from fieldprint.commit.follower import LogFollower
from fieldprint.commit.leaf import AbortEntry, Commitment, text_digest, tokens_digest
from fieldprint.errors import FieldprintError, LogError
from fieldprint.kvcache.slot_hash import Digests, Hashing, Slots
from fieldprint.tlog import LogWriter, leaf_hash

Scalars = dict[str, str | int | bool | None]


@dataclass(frozen=True, slots=True, eq=False)
class NewPage:
    """A page to be committed: tokens at positions [start, start + len(token_ids)), and the digests of their slots.

    The answer's last token has no K/V and no digest.
    """

    index: int
    start: int
    token_ids: tuple[int, ...]
    digests: Digests

    @property
    def digest(self) -> bytes:
        """The page's digest: the root over its slots', or the digest of nothing where there is none."""
        return (
            blake3.tree_root([row.tobytes() for row in self.digests])
            if len(self.digests)
            else blake3.digest(b"")
        )


@dataclass(frozen=True, slots=True)
class RequestTerms:
    """What is the same in every leaf of a request."""

    request: str
    salt: bytes
    prompt_len: int
    model: str
    anchor: str | None
    fieldprint: str | None
    sampler: Scalars
    attention: Scalars


@dataclass(frozen=True, slots=True, eq=False)
class RequestJob:
    """One request's part of a job; `final_text` is set when its last page is among `new`.

    page: the first one that is not committed. positions, slots: [n], what is checked and where it lies; expected: [n, 32],
    the digests that are bound to them. failed: why the request's last commitment failed, when that was the log's doing.
    """

    key: int
    terms: RequestTerms
    page: int
    previous: str | None
    positions: NDArray[np.int64]
    slots: Slots
    expected: Digests
    new: tuple[NewPage, ...]
    final_text: str | None = None
    failed: str | None = None


@dataclass(frozen=True, slots=True, eq=False)
class CommitJob:
    """What one pass checks and commits.

    pinned: [A, 32], the promoted digests of the anchor's slots. hashing: what lies there now, and then in the requests'
    slots, in this order. repaired: asked once they are there, whether somebody has written the pinned pages again since the
    job's tokens were begun, so that they may come from what is not there any more.
    """

    page_size: int
    pinned: Digests
    requests: tuple[RequestJob, ...]
    hashing: Hashing
    repaired: Callable[[], bool]


@dataclass(frozen=True, slots=True)
class CommittedPage:
    """A page whose leaf is in the log under a published checkpoint."""

    index: int
    digest: bytes
    leaf: bytes
    leaf_index: int

    @property
    def leaf_hash(self) -> str:
        """Hex RFC 9162 hash of the leaf, the next leaf's `previous`."""
        return leaf_hash(self.leaf).hex()


@dataclass(slots=True)
class CommitResult:
    """What a pass found and did. Damage and a log error exclude the commitment of what depends on it.

    damaged_pinned: page indices of the anchor. damaged: page indices by request.
    """

    job: CommitJob
    committed: dict[int, list[CommittedPage]] = field(default_factory=dict)
    damaged_pinned: list[int] = field(default_factory=list)
    damaged: dict[int, list[int]] = field(default_factory=dict)
    log_error: FieldprintError | None = None
    seconds: float = 0.0

    @property
    def clean(self) -> bool:
        """Whether nothing was found."""
        return not (self.damaged_pinned or self.damaged or self.log_error)


class Committer:
    """Runs one job at a time beside the engine; `submit` it, then `poll` or `wait` for its result.

    Args:
        log: where leaves go.
        follower: of that log.
        timeout: seconds that an append may take.
    """

    def __init__(self, log: LogWriter, follower: LogFollower, *, timeout: float) -> None:
        self._log, self._follower, self._timeout = log, follower, timeout
        self._worker = _Worker(log, self._follower)
        self._job: CommitJob | None = None

    @property
    def busy(self) -> bool:
        """Whether a result is still to come."""
        return self._job is not None

    def submit(self, job: CommitJob) -> None:
        """Start a pass. The caller keeps references on the job's pages until its result is there."""
        if self._job is not None:
            raise ValueError("a job is in flight; wait for its result")
        self._job = job
        self._worker.jobs.put(job)

    def poll(self) -> CommitResult | None:
        """The result if it is there; a worker that died or waits too long for the log gives one too."""
        return self._taken(0.0)

    def wait(self) -> CommitResult:
        """The result, when it is there."""
        while True:
            result = self._taken(min(1.0, self._timeout / 4))
            if result is not None:
                return result

    def _taken(self, seconds: float) -> CommitResult | None:
        if self._job is None:
            raise ValueError("no job is in flight")
        result: CommitResult | None = None
        alive = self._worker.alive  # asked first: what a worker leaves, it leaves before it dies
        try:
            result = self._worker.results.get(seconds > 0, seconds)
        except queue.Empty:
            if not alive:
                result = self._replaced("the committer's thread has died")
            elif self._worker.waits_for_log > self._timeout:
                result = self._replaced(f"the log did not answer within {self._timeout:g} s")
        if result is not None:
            self._job = None
        return result

    def _replaced(self, what: str) -> CommitResult:
        """The result of a job whose worker is given up; what it may still append is entries of nobody's for the next."""
        if self._job is None:
            raise ValueError("no job is in flight")
        self._worker.give_up()
        self._worker = _Worker(self._log, self._follower)
        return CommitResult(self._job, log_error=LogError(what, remedy="Look at the log, then start again"))

    def close(self) -> None:
        """End the thread, after the job in flight; one that waits for the log longer than it may is left alone."""
        self._worker.jobs.put(None)
        while self._worker.alive and self._worker.waits_for_log <= self._timeout:
            self._worker.join(min(1.0, self._timeout / 4))
        self._worker.give_up()
        self._job = None


class _Worker:
    """One thread, its queues, and how long it has been waiting for the log."""

    def __init__(self, log: LogWriter, follower: LogFollower) -> None:
        self.jobs: queue.SimpleQueue[CommitJob | None] = queue.SimpleQueue()
        self.results: queue.SimpleQueue[CommitResult] = queue.SimpleQueue()
        self._log, self._follower = log, follower
        self._asked_log_at: float | None = None
        self._given_up = False
        self._answering = threading.Lock()  # for a worker that was given up the follower does not move
        self._thread = threading.Thread(target=self._work, name="fieldprint-committer", daemon=True)
        self._thread.start()

    @property
    def alive(self) -> bool:
        return self._thread.is_alive()

    @property
    def waits_for_log(self) -> float:
        asked = self._asked_log_at
        return 0.0 if asked is None else time.monotonic() - asked

    def join(self, seconds: float) -> None:
        self._thread.join(seconds)

    def give_up(self) -> None:
        with self._answering:
            self._given_up = True

    def _work(self) -> None:
        while (job := self.jobs.get()) is not None:
            started = time.perf_counter()
            result = CommitResult(job)
            try:
                self._pass(job, result)
            except FieldprintError as error:
                result.committed, result.log_error = {}, error
            except Exception as error:  # nothing of the job is committed; the engine rolls back
                result.committed = {}
                result.log_error = LogError(
                    f"the committer failed: {error!r}", remedy="Start the engine again"
                )
            result.seconds = time.perf_counter() - started
            self.results.put(result)

    def _pass(self, job: CommitJob, result: CommitResult) -> None:
        found = job.hashing.digests()
        at = len(job.pinned)
        suspect = np.full(at, job.repaired()) | (found[:at] != job.pinned).any(1)
        result.damaged_pinned = _pages(suspect.nonzero()[0], job.page_size)
        leaves: list[tuple[int, CommittedPage]] = []
        failed = [_abort(request, request.failed) for request in job.requests if request.failed is not None]
        aborts: list[bytes] = []
        for request in job.requests:
            bad = (found[at : at + len(request.slots)] != request.expected).any(1)
            at += len(request.slots)
            damaged = _pages(request.positions[bad], job.page_size)
            if damaged:
                result.damaged[request.key] = damaged
            if damaged or result.damaged_pinned:
                what = (
                    f"pinned pages {result.damaged_pinned}"
                    if result.damaged_pinned
                    else f"context pages {damaged}"
                )
                aborts.append(_abort(request, f"damaged {what}"))
            else:
                leaves += [(request.key, page) for page in _leaves(request)]
        entries = failed + [page.leaf for _, page in leaves] + aborts
        if not entries:
            return
        first = self._append(entries) + len(failed)
        for offset, (key, page) in enumerate(leaves):
            committed = CommittedPage(page.index, page.digest, page.leaf, first + offset)
            result.committed.setdefault(key, []).append(committed)

    def _append(self, entries: list[bytes]) -> int:
        """The index of the first entry, once the log has shown a tree with all of them in it."""
        self._asked_log_at = time.monotonic()
        try:
            appended = self._log.append(entries)
            with self._answering:
                if self._given_up:
                    raise LogError("the log answered too late", remedy="Start the engine again")
                self._follower.accept(appended, entries)
        finally:
            self._asked_log_at = None
        return appended.first_index


def _pages(positions: NDArray[np.integer], page_size: int) -> list[int]:
    return [int(page) for page in np.unique(positions // page_size)]


def _leaves(request: RequestJob) -> list[CommittedPage]:
    terms, previous, pages = request.terms, request.previous, []
    for new in request.new:
        last = new is request.new[-1] and request.final_text is not None
        digest = new.digest
        commitment = Commitment(
            request=terms.request,
            page=new.index,
            start=new.start,
            end=new.start + len(new.token_ids),
            prompt_len=terms.prompt_len,
            tokens=tokens_digest(terms.salt, new.start, new.token_ids),
            kv=digest.hex(),
            anchor=terms.anchor,
            fieldprint=terms.fieldprint,
            model=terms.model,
            sampler=terms.sampler,
            attention=terms.attention,
            previous=previous,
            text=text_digest(terms.salt, request.final_text)
            if last and request.final_text is not None
            else None,
        )
        pages.append(CommittedPage(new.index, digest, commitment.to_bytes(), -1))
        previous = pages[-1].leaf_hash
        time.sleep(0)  # lets the engine's thread have the interpreter, which waits 5 ms for it otherwise
    return pages


def _abort(request: RequestJob, reason: str) -> bytes:
    return AbortEntry(request=request.terms.request, page=request.page, reason=reason).to_bytes()
