"""The scheduler's part: digests bound to slots, one pass at a time over what new leaves depend on, receipts.

The loop of an engine, with the worker's answers of a step before the next is planned:

    plan     which slots this step binds, and at a due time everything that some requests depend on, to be checked
    take     digests are bound; after a check one leaf a page is made and handed to the committer's thread
    result   leaves are in the log under a checkpoint: tokens are final. Or damage, or the log refused: back to what is
"""

import secrets
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from fieldprint import blake3
from fieldprint.adapters.vllm.anchors import ServedAnchor
from fieldprint.adapters.vllm.messages import Digests, Slots, Span, StepReport
from fieldprint.adapters.vllm.receipts import ReceiptFolder
from fieldprint.adapters.vllm.row import NO_DIGESTS, NO_POSITIONS, Row
from fieldprint.commit.committer import CommitJob, CommitResult, Committer, RequestJob, RequestTerms
from fieldprint.commit.follower import LogFollower
from fieldprint.commit.leaf import SALT_SIZE, request_digest
from fieldprint.generate.gate import continued_salt, without_anchor
from fieldprint.generate.request import AttentionSettings
from fieldprint.note import VerifierKey
from fieldprint.tlog import LogWriter

Decode = Callable[[Sequence[int]], str]


@dataclass(frozen=True, slots=True, eq=False)
class Found:
    """Digests that stand for a check that workers have made: equal to what is expected where all was whole."""

    found: Digests

    def ready(self) -> bool:
        """Always."""
        return True

    def digests(self) -> Digests:
        """[n, 32]."""
        return self.found


@dataclass(frozen=True, slots=True, eq=False)
class _Pass:
    """A check that the workers of this step make, and the jobs that come of it."""

    step: int
    rows: tuple[Row, ...]
    epochs: tuple[int, ...]
    jobs: tuple[RequestJob, ...]
    hashed: tuple[int, ...]
    found: dict[int, tuple[tuple[int, ...], ...]] = field(default_factory=dict)  # by rank
    pinned: set[int] = field(default_factory=set)


@dataclass(frozen=True, slots=True)
class _Binding:
    row: Row
    epoch: int
    start: int
    count: int


class Ledger:
    """What of each request is bound, checked, committed.

    Args:
        log: where leaves go.
        model: digest of the model's folder.
        block_size: tokens of a block, and of a leaf.
        num_blocks: of the cache.
        ranks: workers; each has its heads.
        decode: tokens of an answer to its text.
        receipts: where they are written.
        interval: generated tokens after which a request's pages are committed.
        log_timeout: seconds that an append may take.
        attention: the operator, which leaves name.
    """

    def __init__(
        self,
        log: LogWriter,
        *,
        model: str,
        block_size: int,
        interval: int,
        num_blocks: int,
        ranks: int,
        decode: Decode,
        receipts: ReceiptFolder,
        log_timeout: float,
        attention: AttentionSettings,
    ) -> None:
        self._attention = attention
        self.size, self.model, self.ranks = block_size, model, ranks
        self._interval = interval
        self.bound: Digests = np.zeros((num_blocks * block_size, 32), dtype=np.uint8)
        self.rows: dict[str, Row] = {}
        self._decode, self.receipts = decode, receipts
        follower = LogFollower(log.source, VerifierKey.parse(log.verifier_key))
        self._committer = Committer(log, follower, timeout=log_timeout)
        self._by_key: dict[int, Row] = {}
        self._keys = 0
        self._bindings: dict[int, tuple[Slots, list[_Binding]]] = {}
        self._told: dict[int, dict[int, Digests]] = {}  # by step and rank, what not all have told yet
        self._pass: _Pass | None = None
        self._writing: dict[int, Future[None]] = {}
        self._writer = ThreadPoolExecutor(1, "fieldprint-receipts")
        self.committed_tokens = 0

    # Requests

    def open(self, request: Any, anchor: ServedAnchor, sampler: dict[str, str | int | bool | None]) -> Row:
        """The row of a new request."""
        salt = secrets.token_bytes(SALT_SIZE)
        prompt = request._all_token_ids
        terms = RequestTerms(
            request=request_digest(salt, prompt),
            salt=salt,
            prompt_len=len(prompt),
            model=self.model,
            anchor=anchor.digest,
            fieldprint=anchor.root,
            sampler=sampler,
            attention=(self._attention if anchor.index else without_anchor(self._attention)).terms(),
        )
        self._keys += 1
        row = Row(self._keys, request, anchor, terms)
        self.rows[request.request_id] = self._by_key[row.key] = row
        return row

    def drop(self, row: Row) -> None:
        """Forget a request; what is committed of it stays in the log."""
        self.rows.pop(row.request.request_id, None)
        self._by_key.pop(row.key, None)
        self._writing.pop(row.key, None)

    def go_on_without(self, row: Row, none: ServedAnchor) -> None:
        """Begin the second chain of a request that had to leave its anchor."""
        request = request_digest(continued_salt(row.terms.salt), row.tokens)
        row.go_on_without(none, request, without_anchor(self._attention).terms())
        self._writing.pop(row.key, None)

    # A step

    def plan(
        self, step: int, scheduled: Iterable[tuple[Row, int, int, list[int]]]
    ) -> tuple[Slots, tuple[Span, ...] | None]:
        """Slots that this step binds, and spans that it checks, if a pass is due.

        Args:
            step: its number.
            scheduled: row, first position, how many, blocks.
        """
        bindings, slots = [], []
        for row, start, count, blocks in scheduled:
            row.blocks = blocks
            bindings.append(_Binding(row, row.epoch, start, count))
            slots.append(row.slots(start, start + count, self.size))
        check = self._begin_pass(step)
        if not slots:
            return NO_POSITIONS, check
        bind = np.concatenate(slots)
        self._bindings[step] = (bind, bindings)
        return bind, check

    def _begin_pass(self, step: int) -> tuple[Span, ...] | None:
        if self._pass is not None or self._committer.busy:
            return None
        due = [row for row in self.rows.values() if self._due(row)]
        if not due:
            return None
        jobs = []
        for row in due:
            ends = row.ending is not None and row.all_hashed
            text = self._decode(row.tokens[row.prompt_len :]) if ends else None
            jobs.append(row.job(self.bound, self.size, text))
        self._pass = _Pass(
            step,
            tuple(due),
            tuple(row.epoch for row in due),
            tuple(jobs),
            tuple(row.hashed for row in due),
        )
        return tuple(row.span() for row in due)

    def _due(self, row: Row) -> bool:
        """Whether a pass should look at it: each looks at all that it depends on, so not for every page."""
        if row.complete_pages(self.size) <= len(row.pages):
            return False
        return row.ending is not None or row.provisional(self.size) >= self._interval

    def take(self, report: StepReport) -> None:
        """What the workers found: bind, and hand what was checked to the committer. Steps count when all workers have told.

        Raises:
            ValueError: a worker has answered what it was not asked.
        """
        for (step, rank), digests in report.digests.items():
            self._told.setdefault(step, {})[rank] = digests
        for step in sorted(step for step, told in self._told.items() if len(told) == self.ranks):
            self._bind(step, self._told.pop(step))
        now = self._pass
        if now is None:
            return
        for (step, rank), damaged in report.checked.items():
            if step != now.step:  # of a pass that was given up
                continue
            if len(damaged) != len(now.rows):
                raise ValueError(f"worker {rank} did not check what it was asked to in step {now.step}")
            now.found[rank] = damaged
            now.pinned.update(report.pinned.get((step, rank), ()))
        if len(now.found) == self.ranks:
            self._pass = None
            damaged = tuple(tuple(sorted(set().union(*one))) for one in zip(*now.found.values(), strict=True))
            self._submit(now, damaged, frozenset(now.pinned))

    def _bind(self, step: int, digests: dict[int, Digests]) -> None:
        slots, bindings = self._bindings.pop(step)
        self.bound[slots] = united(digests)
        for binding in bindings:
            if binding.row.epoch == binding.epoch:
                binding.row.hashed = binding.start + binding.count

    @property
    def overtaken(self) -> bool:
        """Whether a check is under way of blocks that their request does not have any more."""
        now = self._pass
        return now is not None and any(
            row.epoch != epoch or self._by_key.get(row.key) is not row
            for row, epoch in zip(now.rows, now.epochs, strict=True)
        )

    def _submit(self, now: _Pass, damaged: tuple[tuple[int, ...], ...], pinned: frozenset[int]) -> None:
        """One job of all rows that are still what they were; where an anchor is damaged, of its rows alone."""
        jobs, found = [], []
        for row, epoch, job, hashed, bad in zip(
            now.rows, now.epochs, now.jobs, now.hashed, damaged, strict=True
        ):
            if row.epoch != epoch or self._by_key.get(row.key) is not row:
                continue
            if pinned and row.anchor.index not in pinned:
                continue
            if not bad and not pinned:
                row.verified = hashed
            positions = np.array(bad, dtype=np.int64) * self.size
            jobs.append(
                replace(
                    job, positions=positions, slots=positions, expected=np.zeros((len(bad), 32), np.uint8)
                )
            )
            found.append(np.ones((len(bad), 32), np.uint8))
        if not jobs:
            return
        expected = np.zeros((1, 32), np.uint8) if pinned else NO_DIGESTS
        verdict = np.concatenate([expected + 1, *found])
        self._committer.submit(CommitJob(self.size, expected, tuple(jobs), Found(verdict), lambda: False))

    def abort_all_of(self, anchors: frozenset[int]) -> None:
        """Put an abort entry into the log for every request under one of these damaged anchors."""
        if self._committer.busy:
            raise ValueError("a job is in flight; wait for its result")
        rows = [row for row in self.rows.values() if row.anchor.index in anchors]
        if not rows:
            return
        self._pass = None
        jobs = tuple(replace(row.job(self.bound, self.size, None), new=()) for row in rows)
        expected = np.zeros((1, 32), np.uint8)
        self._committer.submit(CommitJob(self.size, expected, jobs, Found(expected + 1), lambda: False))
        self._committer.wait()

    # Results

    @property
    def busy(self) -> bool:
        """Whether something is under way that moves on without a step being computed."""
        waits = self._pass is not None or bool(self._bindings)
        return self._committer.busy or waits or bool(self._writing)

    def poll(self, *, wait: bool = False) -> CommitResult | None:
        """The result of the job in flight, with the pages that it has committed taken over; None while there is none."""
        if not self._committer.busy:
            return None
        result = self._committer.wait() if wait else self._committer.poll()
        if result is None:
            return None
        for key, pages in result.committed.items():
            row = self._by_key.get(key)
            if row is not None:
                row.pages += pages
                row.failed = None
                self.committed_tokens += sum(
                    len(new.token_ids) for job in result.job.requests if job.key == key for new in job.new
                )
        return result

    def row_of(self, key: int) -> Row | None:
        """The request of a job, if it is still there."""
        return self._by_key.get(key)

    def is_committed(self, row: Row) -> bool:
        """Whether a row has ended and is committed to its end: nothing of it can be taken back."""
        return row.ending is not None and row.all_hashed and len(row.pages) >= row.complete_pages(self.size)

    def is_complete(self, row: Row) -> bool:
        """Whether an ending row is committed to its end and its receipt is written; begins to write that.

        Raises:
            FieldprintError: the receipt cannot be written.
        """
        if not self.is_committed(row):
            return False
        future = self._writing.get(row.key)
        if future is None:
            text = self._decode(row.tokens[row.prompt_len :])
            future = self._writing[row.key] = self._writer.submit(
                self.receipts.write, *self.receipts.content(row, text)
            )
        if not future.done():
            return False
        future.result()
        return True

    def roll_back(self, row: Row) -> int:
        """Forget what is not committed; how many tokens stay."""
        keep = max(row.committed(self.size), row.prompt_len)
        row.ending = None
        row.held.clear()
        row.lose_blocks()
        self._writing.pop(row.key, None)
        return keep

    def close(self) -> None:
        """End the threads."""
        self._committer.close()
        self._writer.shutdown()


def united(digests: dict[int, Digests]) -> Digests:
    """Slots' digests over all ranks' heads: a rank's own where there is one, else BLAKE3 over all in the order of ranks."""
    if len(digests) == 1:
        return next(iter(digests.values()))
    ordered = np.concatenate([digests[rank] for rank in sorted(digests)], axis=1)
    rows = [np.frombuffer(blake3.digest(row.tobytes()), dtype=np.uint8) for row in ordered]
    return np.stack(rows) if rows else NO_DIGESTS
