"""The worker thread of the verification path: hashes pages, appends leaves, moves the committed horizon.

The engine hands over a `CommitJob` and goes on decoding; the worker

1. re-hashes the pinned pages (the anchor) and compares;
2. re-hashes every context page that the job's tokens depend on and compares with what was committed;
3. hashes the new pages, builds one leaf a page, and appends them to the log in one batch, which returns when the
   leaves are durable and a signed checkpoint covers them;
4. for each request with a bad page, appends an abort entry instead.

A pass starts after the tokens of its job were computed, so a clean pass shows that whatever they read was still what
had been committed. One job is in flight at a time.
"""

import queue
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass, field

from fieldprint import blake3
from fieldprint.commit.leaf import AbortEntry, Commitment, text_digest, tokens_digest
from fieldprint.errors import FieldprintError, LogError
from fieldprint.kvcache import PagePool
from fieldprint.tlog import LogWriter, leaf_hash

Scalars = dict[str, str | int | bool | None]


@dataclass(frozen=True, slots=True)
class PageCheck:
    """A page of the pool whose first `filled` slots must have `digest`; `index` is its number in its sequence."""

    index: int
    page: int
    filled: int
    digest: bytes


@dataclass(frozen=True, slots=True)
class NewPage:
    """A page to be committed: tokens at positions [start, start + len(token_ids)), K/V of the first `filled` of them.

    `digest` is known already for a page of a shared prefix; else the worker computes it from `page`.
    """

    index: int
    page: int
    filled: int
    start: int
    token_ids: tuple[int, ...]
    digest: bytes | None = None


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


@dataclass(frozen=True, slots=True)
class RequestJob:
    """One request's part of a job; `final_text` is set when its last page is among `new`."""

    key: int
    terms: RequestTerms
    previous: str | None
    checks: tuple[PageCheck, ...]
    new: tuple[NewPage, ...]
    final_text: str | None = None


@dataclass(frozen=True, slots=True)
class CommitJob:
    """What one pass checks and commits; without requests it is a scrub of the pinned pages alone."""

    pinned: tuple[PageCheck, ...]
    requests: tuple[RequestJob, ...] = ()


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
    """What a pass found and did. Damage and a log error exclude the commitment of what depends on it."""

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
    """The thread; `submit` one job, then `poll` or `wait` for its result."""

    def __init__(self, pool: PagePool, log: LogWriter) -> None:
        self._pool = pool
        self._log = log
        self._jobs: queue.SimpleQueue[CommitJob | None] = queue.SimpleQueue()
        self._results: queue.SimpleQueue[CommitResult | BaseException] = queue.SimpleQueue()
        self._busy = False
        self._thread = threading.Thread(target=self._work, name="fieldprint-committer", daemon=True)
        self._thread.start()

    @property
    def busy(self) -> bool:
        """Whether a result is still to come."""
        return self._busy

    def submit(self, job: CommitJob) -> None:
        """Start a pass. The caller keeps references on the job's pages until its result is there."""
        if self._busy:
            raise ValueError("a job is in flight; wait for its result")
        self._busy = True
        self._jobs.put(job)

    def poll(self) -> CommitResult | None:
        """The result if it is there."""
        try:
            return self._taken(self._results.get_nowait())
        except queue.Empty:
            return None

    def wait(self) -> CommitResult:
        """The result, when it is there.

        Raises:
            LogError: the worker thread died.
        """
        if not self._busy:
            raise ValueError("no job is in flight")
        while True:
            try:
                return self._taken(self._results.get(timeout=1.0))
            except queue.Empty:
                if not self._thread.is_alive():
                    raise LogError(
                        "the committer's thread has died", remedy="Start the engine again"
                    ) from None

    def _taken(self, result: CommitResult | BaseException) -> CommitResult:
        self._busy = False
        if isinstance(result, BaseException):
            raise LogError(f"the committer failed: {result!r}", remedy="Start the engine again") from result
        return result

    def close(self) -> None:
        """End the thread, after the job in flight."""
        self._jobs.put(None)
        self._thread.join()
        self._busy = False

    def _work(self) -> None:
        while (job := self._jobs.get()) is not None:
            try:
                self._results.put(self._pass(job))
            except BaseException as error:  # the engine raises it; nothing is committed
                self._results.put(error)

    def _pass(self, job: CommitJob) -> CommitResult:
        started = time.perf_counter()
        result = CommitResult(job)
        result.damaged_pinned = self._damaged(job.pinned)
        leaves: list[tuple[int, CommittedPage]] = []
        entries: list[bytes] = []
        for request in job.requests:
            damaged = self._damaged(request.checks)
            if damaged:
                result.damaged[request.key] = damaged
            if damaged or result.damaged_pinned:
                entries.append(_abort(request, result.damaged_pinned, damaged))
                continue
            for page in self._leaves(request):
                leaves.append((request.key, page))
        try:
            entries = [page.leaf for _, page in leaves] + entries
            if entries:
                first = self._log.append(entries).first_index
                for offset, (key, page) in enumerate(leaves):
                    committed = CommittedPage(page.index, page.digest, page.leaf, first + offset)
                    result.committed.setdefault(key, []).append(committed)
        except FieldprintError as error:
            result.log_error = error
        result.seconds = time.perf_counter() - started
        return result

    def _damaged(self, checks: Sequence[PageCheck]) -> list[int]:
        return [check.index for check in checks if self._digest(check.page, check.filled) != check.digest]

    def _digest(self, page: int, filled: int) -> bytes:
        return self._pool.digest(page, filled) if filled else blake3.digest(b"")

    def _leaves(self, request: RequestJob) -> list[CommittedPage]:
        terms, previous, pages = request.terms, request.previous, []
        for new in request.new:
            digest = self._digest(new.page, new.filled) if new.digest is None else new.digest
            last = new is request.new[-1] and request.final_text is not None
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
        return pages


def _abort(request: RequestJob, pinned: Sequence[int], damaged: Sequence[int]) -> bytes:
    what = f"pinned pages {list(pinned)}" if pinned else f"context pages {list(damaged)}"
    page = request.new[0].index if request.new else 0
    return AbortEntry(request=request.terms.request, page=page, reason=f"damaged {what}").to_bytes()
