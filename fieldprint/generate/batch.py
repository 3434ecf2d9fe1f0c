"""One batch: prefill, decode, commit, and the way back when something is wrong.

A batch keeps its shape from first to last: a request that has ended, waits or was rolled back stays in its row as
padding. Every row is computed from the same shapes whatever happens to the others, so that a run with faults ends
in the same bytes as a run without.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING

import numpy as np
from torch import Tensor

from fieldprint.commit.committer import CommitJob, CommitResult, Committer, RequestTerms
from fieldprint.commit.leaf import request_digest
from fieldprint.decoder import Injection
from fieldprint.errors import CapacityError, IntegrityError
from fieldprint.generate.gate import Gate
from fieldprint.generate.passes import Flight, HostSteps, Passes, Steps
from fieldprint.generate.rebuild import rebuild_pages
from fieldprint.generate.request import (
    AttentionSettings,
    Committed,
    Event,
    Finished,
    GenerationRequest,
    GenerationResult,
    Prefix,
    Provisional,
    RolledBack,
)
from fieldprint.generate.row import Row
from fieldprint.generate.watch import Watch
from fieldprint.promote import PinnedAnchor
from fieldprint.registry.gate import Ruling
from fieldprint.tlog import LogWriter

if TYPE_CHECKING:
    from fieldprint.generate.engine import Engine

MassObserver = Callable[[list[Tensor]], None]


class Batch:
    """One call of `Engine.generate`: its rows, its committer, and the loop over both."""

    def __init__(
        self,
        engine: "Engine",
        anchor: PinnedAnchor | None,
        attention: AttentionSettings,
        log: LogWriter | None,
        observe_mass: MassObserver | None,
        gate: Gate | None = None,
    ) -> None:
        self.gate = gate
        self.ruling: Ruling | None = None  # the gate's last word
        self.engine, self.anchor, self.attention = engine, anchor, attention
        self.settings = engine.settings
        self.pool = engine.pool
        if anchor is not None and anchor.pool is not engine.pool:
            raise ValueError("anchor is pinned in another pool")
        self.injection: Injection | None = None
        if anchor is not None:
            heads = engine.decoder.config.num_q_heads
            self.injection = anchor.injection(heads, g=attention.g, operator=attention.operator)
        elif attention.operator != "floor" or attention.g not in (0, 0.0, ()):
            raise ValueError("g is above 0 but there is no anchor to give that weight to")
        native = engine.decoder.config.native_window
        windows = [w for w in (attention.window, native) if w is not None]
        self.window = min(windows) if windows else None
        self.num_sinks = attention.num_sinks
        self.passes = Passes(
            engine.decoder, engine.pool, engine.settings, self.injection, self.window, self.num_sinks
        )
        self.observe_mass = observe_mass
        self.watch = Watch(engine.pool, anchor, self.settings)
        self.committer = None
        if log is not None:
            self.committer = Committer(log, engine.follower_of(log), timeout=self.settings.log_timeout)
        self.anchor_digest = None if anchor is None else anchor.verified.digest
        self.rows: list[Row] = []
        self.steps: Steps  # made by `add`, once the rows are known
        self.flight: Flight | None = None  # the step whose tokens are not known yet
        self.scratch: list[int] = []  # the page that padding writes to
        self.leased = np.empty(0, dtype=np.int64)  # pages on which the job in flight has a reference
        self.lease = self.leased  # their generations then
        self.repairs = 0 if anchor is None else anchor.repairs  # of the anchor, that this batch went back for
        self.faults = 0

    def add(self, requests: Sequence[GenerationRequest]) -> None:
        """Open a row for each request, with pages for its whole life where no window bounds it."""
        for request in requests:
            self._check_prefix(request.prefix)
        self.scratch = self.pool.allocate(1)
        for index, request in enumerate(requests):
            row = Row(index, request, self.pool, self._terms(request))
            self.rows.append(row)
            row.plan_chunks(self.settings.chunk_size)
            if self.window is None:
                row.sequence.reserve(row.prompt_len - row.sequence.length + request.max_new_tokens)
        self.steps = self._make_steps()

    def _make_steps(self) -> Steps:
        count, engine = len(self.rows), self.engine
        with_mass = self.observe_mass is not None
        kernel = self.settings.decode_kernel
        if kernel is False or (kernel is None and engine.decoder.device.type == "cpu"):
            packed = self.settings.pack_weights
            decoder = engine.decoder_for(count) if packed else engine.decoder
            return HostSteps(self.passes, count, self.scratch[0], decoder, with_mass=with_mass)
        from fieldprint.generate.graph import GraphSteps, graph_shape

        longest = max(row.prompt_len + row.request.max_new_tokens for row in self.rows)
        seeded = any(row.request.sampler.temperature for row in self.rows)
        shape = graph_shape(self.passes, count, longest, seeded=seeded, with_mass=with_mass)
        return GraphSteps(self.passes, engine.graph_for(shape, self.injection), self.scratch[0])

    def _check_prefix(self, prefix: Prefix | None) -> None:
        if prefix is None:
            return
        if prefix.sequence.pool is not self.pool:
            raise ValueError("prefix lies in another pool")
        if (prefix.anchor, prefix.attention) != (self.anchor_digest, self.attention):
            raise ValueError("prefix was computed under another anchor or other attention settings")

    def _terms(self, request: GenerationRequest) -> RequestTerms:
        prompt = (() if request.prefix is None else request.prefix.tokens) + request.prompt
        return RequestTerms(
            request=request_digest(request.salt, prompt),
            salt=request.salt,
            prompt_len=len(prompt),
            model=self.engine.model,
            anchor=self.anchor_digest,
            fieldprint=None if self.anchor is None else self.anchor.root,
            sampler=request.sampler.terms(),
            attention=self.attention.terms(),
        )

    def close(self) -> None:
        """End the committer and give every page back."""
        if self.committer is not None:
            self.committer.close()
        self.watch.close()
        self._end_lease()
        for row in self.rows:
            row.sequence.close()
        self.pool.release(self.scratch)
        self.scratch = []

    def run(self) -> Iterator[Event]:
        """Prefill or decode, look at results, submit jobs, until every row is finished."""
        while not all(row.finished for row in self.rows):
            yield from self._ask_gate()
            prefilling = next((row for row in self.rows if self._needs_prefill(row)), None)
            decoding = [row for row in self.rows if row.decoding and self._may_go_on(row)]
            if self.watch.alarm:  # nothing is computed on until a pass over everything has found out
                yield from self._land_all()
                yield from self._pass_over_everything()
            elif prefilling is not None:
                yield from self._prefill(prefilling)
            elif decoding or self.flight is not None:
                yield from self._decode(decoding)
            elif self.watch.pending:
                self.watch.land(wait=True)
            elif self.committer is not None:
                if not self.committer.busy:
                    self._submit()
                yield from self._receive(self.committer.wait())
            yield from self._finish_without_log()
            if self.committer is not None:
                self.watch.land()
                result = self.committer.poll() if self.committer.busy else None
                if result is not None:
                    yield from self._receive(result)
                if not self.committer.busy and self._commit_due():
                    self._submit()

    def _ask_gate(self) -> Iterator[Event]:
        """Where the gate rules, no further step is started: every request ends with the step that was in flight."""
        ruling = None if self.gate is None or self.ruling is not None else self.gate.ruling()
        if ruling is not None and (ruling.action == "stop" or self.anchor is not None):
            yield from self._land_all()
            self.ruling = ruling
            for row in self.rows:
                if row.reason is None and not row.finished:
                    row.reason = ruling.reason

    def _needs_prefill(self, row: Row) -> bool:
        return row.reason is None and not row.finished and row.chunk_to_do() is not None

    def _may_go_on(self, row: Row) -> bool:
        ahead = self.flight is not None and row.index in self.flight.rows  # one token more than is known
        if row.num_generated + ahead >= row.request.max_new_tokens:
            return False
        return self.committer is None or row.provisional + ahead < self.settings.provisional_cap

    # Computing

    def _prefill(self, row: Row) -> Iterator[Event]:
        """One chunk of a row's prompt, and the first token after the last chunk."""
        chunk = row.chunk_to_do()
        if chunk is None:
            return
        start, stop = chunk
        if self.engine.stopping and not row.generated and row.committed < row.prompt_len:
            row.reason = "interrupted"
            return
        try:
            hidden = self.passes.forward_chunk(row.sequence, row.tokens[start:stop])
        except CapacityError:
            if self.committer is None or not self.committer.busy:
                raise
            yield from self._receive(self.committer.wait())  # committed pages can be evicted: room
            return
        if self.committer is not None:
            self.watch.bind_chunk(row, start)
        self._evict(row)
        if stop == row.prompt_len and len(row.tokens) == row.prompt_len:
            logits = self.engine.decoder.logits(hidden[-1:])[0]
            yield from self._accept(row, row.request.sampler.draw(logits, len(row.tokens)))

    def _decode(self, rows: Sequence[Row]) -> Iterator[Event]:
        """Start a step of `rows`; take the tokens of the one before while it runs, or its own where it has run."""
        before, self.flight = self.flight, None
        if rows:
            self.flight = self.steps.decode(rows, {} if before is None else before.rows)
            if self.committer is not None:
                self.watch.bind_step(self.flight, self.rows)
        if before is not None:
            yield from self._land(before)
        if not self.steps.runs_ahead:
            yield from self._land_all()

    def _land_all(self) -> Iterator[Event]:
        flight, self.flight = self.flight, None
        if flight is not None:
            yield from self._land(flight)

    def _land(self, flight: Flight) -> Iterator[Event]:
        """One token for each row of a step."""
        tokens = flight.tokens()
        if self.observe_mass is not None and flight.masses:
            self.observe_mass([mass[list(flight.rows)] for mass in flight.masses])
        for row in flight.rows.values():
            yield from self._accept(row, tokens[row.index])
            if row.reason is not None:
                self._forget_flight(row)
                row.sequence.truncate(min(row.sequence.length, len(row.tokens) - 1))
            self._evict(row)

    def _forget_flight(self, row: Row) -> None:
        """The step in flight does not count for this row: what it writes lies behind the row's end."""
        if self.flight is not None:
            self.flight.rows.pop(row.index, None)

    def _accept(self, row: Row, token: int) -> Iterator[Event]:
        row.accept(token)
        if self.engine.stopping and row.reason is None:
            row.reason = "interrupted"
        yield Provisional(row.index, len(row.tokens) - 1, token)

    def _evict(self, row: Row) -> None:
        row.evict(self.window, self.num_sinks, verified=self.committer is not None)

    # Committing

    def _commit_due(self) -> bool:
        """Whether leaves should be made: enough new tokens, a finished row, or a prompt that waits for them.

        A prompt waits while it is computed only where a window can then evict its pages; each pass looks at all of it.
        """
        for row in self.rows:
            new = row.complete_pages() - len(row.pages)
            if row.finished or new <= 0 or (self.window is None and self._needs_prefill(row)):
                continue
            if row.reason is not None or not row.decoding or row.committed < row.prompt_len:
                return True
            if new * self.settings.page_size >= self.settings.commit_interval:
                return True
        return False

    def _submit(self, *, everything: bool = False) -> None:
        """Start a pass over the pinned slots and all that new leaves depend on; or over `everything` that is held."""
        if self.committer is None:
            return
        self._replace_lost()  # the pass finds that what is bound is not there
        jobs = []
        for row in self.rows:
            new = not row.finished and row.complete_pages() > len(row.pages)
            if new or (everything and not row.finished):
                ends = new and row.reason is not None and row.all_hashed
                jobs.append(row.job(self.engine.text(row.generated) if ends else None))
                row.checked_at = self.watch.step
        size = self.settings.page_size
        slots = [self.watch.pinned_slots, *(job.slots for job in jobs)]
        rows = [self.rows[job.key] for job in jobs]
        # The last page, which a step may write to, its row keeps anyway: another holder would make it a copy.
        held = [row.sequence.filled(row.hashed) for row in rows]
        self.leased = np.concatenate([self.leased, *held])
        self.pool.share(self.leased)
        self.lease = self.pool.generations(self.leased)
        hashing = self.watch.hasher.later(np.concatenate(slots))
        self.committer.submit(
            CommitJob(size, self.watch.pinned_digests, tuple(jobs), hashing, self._repaired)
        )

    def _repaired(self) -> bool:
        return self.anchor is not None and self.anchor.repairs != self.repairs

    def _end_lease(self) -> None:
        self.pool.release(self.leased[self.pool.generations(self.leased) == self.lease])
        self.leased, self.lease = self.leased[:0], self.lease[:0]

    def _pass_over_everything(self) -> Iterator[Event]:
        """What is in flight, then a pass that finds whatever raised the alarm, if it is still there."""
        if self.committer is not None:
            if self.committer.busy:
                yield from self._receive(self.committer.wait())
            self.watch.land(wait=True)
            self.watch.alarm = False
            if not all(row.finished for row in self.rows):
                self._submit(everything=True)
                yield from self._receive(self.committer.wait())

    def _receive(self, result: CommitResult) -> Iterator[Event]:
        """Move the horizon, or go back to it."""
        self._end_lease()
        for key, pages in result.committed.items():
            row = self.rows[key]
            row.pages += pages
            row.failed = None
            self._evict(row)
            yield Committed(key, row.committed)
            if row.reason is not None and row.all_hashed and len(row.pages) == row.complete_pages():
                yield self._finished(row)
        if result.clean:
            self.faults = 0 if result.committed else self.faults
            return
        self.faults += 1
        if self.faults > self.settings.max_faults:
            raise result.log_error or IntegrityError(
                f"damage was found {self.faults} times without progress",
                remedy="Test the memory of this machine",
            )
        yield from self._recover(result)

    def _recover(self, result: CommitResult) -> Iterator[Event]:
        """Repair the damage from what is signed or committed, then roll back what may depend on it."""
        yield from self._land_all()
        self.watch.land(wait=True)
        self._replace_lost()
        pinned = bool(result.damaged_pinned)
        if self.anchor is not None:
            if self.anchor.damaged():
                self.anchor.rewrite()
            pinned |= self._repaired()
            self.repairs = self.anchor.repairs
        rows = [row for row in self.rows if not row.finished]
        # As it is now: more may have been damaged since the pass. What is rebuilt starts from pages that are whole.
        damaged = {row.index: row.damaged_pages(self.watch.hasher) for row in rows}
        reasons: dict[int, str] = {}
        if result.log_error is not None:
            for job in result.job.requests:
                reasons[job.key] = f"the log refused: {result.log_error.what}"
                self.rows[job.key].failed = "the log did not commit the pages from here on"
        found = {self.rows[key].sequence.pages[i] for key, indices in result.damaged.items() for i in indices}
        for row in rows:
            # A page of a shared prefix is one page of several rows: all of them may have read it.
            if row.index in result.damaged or damaged[row.index] or found.intersection(row.sequence.held()):
                reasons[row.index] = "a context page was damaged"
            if pinned:
                reasons[row.index] = "a pinned page was damaged"
        for row in rows:
            rebuild_pages(self.passes, self.steps, self.watch.hasher, row, damaged[row.index])
        for key, reason in sorted(reasons.items()):
            row = self.rows[key]
            if row.finished:
                continue
            row.roll_back()
            yield RolledBack(key, max(row.committed, row.prompt_len), reason)
            if self.ruling is not None:
                row.reason = self.ruling.reason
                if row.complete_pages() == len(
                    row.pages
                ):  # nothing is left that a last leaf could be made of
                    yield self._finished(row)

    def _replace_lost(self) -> None:
        """Fresh pages in the place of those that somebody else has released too early."""
        for row in self.rows:
            for index in row.sequence.lost():
                row.sequence.replace(index)

    def _finish_without_log(self) -> Iterator[Event]:
        if self.committer is None:
            for row in self.rows:
                if row.reason is not None and not row.finished:
                    yield self._finished(row)

    def _finished(self, row: Row) -> Finished:
        row.finished = True
        tokens = row.generated
        result = GenerationResult(
            row.prompt, tokens, self.engine.text(tokens), row.reason or "", row.request.salt, tuple(row.pages)
        )
        row.sequence.close()
        return Finished(row.index, result)
