"""The engine: prefill, decode, commit, and the way back when something is wrong.

A batch keeps its shape from first to last: a request that has ended, waits or was rolled back stays in its row as
padding. Every row is computed from the same shapes whatever happens to the others, so that a run with faults ends
in the same bytes as a run without.
"""

from collections.abc import Callable, Generator, Iterator, Sequence
from typing import TYPE_CHECKING

from torch import Tensor

from fieldprint.commit.committer import CommitJob, CommitResult, Committer, PageCheck, RequestTerms
from fieldprint.commit.leaf import request_digest
from fieldprint.decoder import Decoder, Injection
from fieldprint.errors import CapacityError, IntegrityError
from fieldprint.generate.passes import Flight, HostSteps, Passes, Steps
from fieldprint.generate.rebuild import rebuild_pages
from fieldprint.generate.request import (
    AttentionSettings,
    Committed,
    EngineSettings,
    Event,
    Finished,
    GenerationRequest,
    GenerationResult,
    Prefix,
    Provisional,
    RolledBack,
)
from fieldprint.generate.row import Row, page_digests
from fieldprint.kvcache import PagedSequence, PagePool
from fieldprint.promote import PinnedAnchor
from fieldprint.tlog import LogWriter

if TYPE_CHECKING:
    from fieldprint.generate.graph import DecodeGraph, GraphShape

MassObserver = Callable[[list[Tensor]], None]


class Engine:
    """Generates under a pinned anchor, with everything that it generates committed to a log.

        pool = PagePool(decoder.page_layout(16), num_pages=1024)
        engine = Engine(decoder, pool, decode=tokenizer.decode, model=digest)
        for event in engine.generate([GenerationRequest(prompt)], anchor=pinned, log=writer):
            ...

    `decode` turns the answer's token ids into its text; `model` is the model folder's digest.
    """

    def __init__(
        self,
        decoder: Decoder,
        pool: PagePool,
        *,
        decode: Callable[[Sequence[int]], str],
        model: str,
        settings: EngineSettings | None = None,
    ) -> None:
        self.decoder = decoder
        self.pool = pool
        self.model = model
        self.settings = EngineSettings(pool.layout.page_size) if settings is None else settings
        if pool.layout != decoder.page_layout(self.settings.page_size):
            raise ValueError("the pool's page layout is not the one of the decoder and the settings")
        if pool.storage.device.type != decoder.device.type:
            raise ValueError(f"the pool is on {pool.storage.device}, and the decoder on {decoder.device}")
        self._decode = decode
        self._stopping = False
        self._packed: dict[int, Decoder] = {}
        self._graphs: dict[GraphShape, DecodeGraph] = {}
        self._batch: _Batch | None = None

    def stop(self) -> None:
        """End every request at its next token with the reason "interrupted"; what was generated is committed."""
        self._stopping = True

    def prefill(
        self,
        tokens: Sequence[int],
        *,
        anchor: PinnedAnchor | None = None,
        attention: AttentionSettings | None = None,
    ) -> Prefix:
        """A beginning that several requests can share, computed once.

        Raises:
            CapacityError: the pool cannot hold it.
            IntegrityError: the anchor's pages were damaged meanwhile; they are whole again.
        """
        attention = attention or AttentionSettings()
        batch = _Batch(self, anchor, attention, None, None)
        sequence = PagedSequence(self.pool)
        chunks: list[tuple[int, int]] = []
        digests: tuple[bytes, ...] = ()
        size = self.settings.chunk_size
        try:
            for start in range(0, len(tokens), size):
                chunk = tokens[start : start + size]
                batch.passes.forward_chunk(sequence, chunk)
                chunks.append((start, start + len(chunk)))
                digests = page_digests(sequence, digests)
                if batch.window is not None:  # a rollback computes the last chunk again: keep what it sees
                    sequence.evict_before(start - max(batch.window, 2) + 1, num_sinks=attention.num_sinks)
            if anchor is not None and anchor.damaged():
                anchor.rewrite()
                raise IntegrityError(
                    "a pinned page was damaged while the prefix was computed",
                    remedy="Compute the prefix again",
                )
        except BaseException:
            sequence.close()
            raise
        finally:
            batch.close()
        return Prefix(tuple(tokens), sequence, tuple(chunks), digests, batch.anchor_digest, attention)

    def generate(
        self,
        requests: Sequence[GenerationRequest],
        *,
        anchor: PinnedAnchor | None = None,
        attention: AttentionSettings | None = None,
        log: LogWriter | None = None,
        observe_mass: MassObserver | None = None,
    ) -> Generator[Event]:
        """The events of all requests until each one is finished.

        Args:
            requests: the batch; prompts of any lengths.
            anchor: pinned in this engine's pool, or None.
            attention: operator, floor, window and sinks.
            log: where leaves go; None switches verification off, and every token is final at once.
            observe_mass: called each decode step with the anchor mass of each layer, [rows, num_q_heads].

        Raises:
            CapacityError: the pool cannot hold the batch.
            LogError: the log refused for `max_faults` passes in a row; committed tokens stay committed.
            IntegrityError: damage comes back as fast as it is repaired, or what is rebuilt differs from what was
                committed.
        """
        self._stopping = False
        if not requests:
            raise ValueError("requests must hold at least one request")
        batch = _Batch(self, anchor, attention or AttentionSettings(), log, observe_mass)
        self._batch = batch
        try:
            batch.add(requests)
            yield from batch.run()
        finally:
            self._batch = None
            batch.close()

    def pages_of(self, request: int) -> list[int]:
        """The pool's pages that a request of the running batch holds, in order; for monitors and fault injection."""
        return [] if self._batch is None else self._batch.rows[request].sequence.held()

    def decoder_for(self, rows: int) -> Decoder:
        """The decoder of decode steps of `rows` rows; packed weights are kept for the next batch of that size."""
        if rows not in self._packed:
            self._packed = {rows: self.decoder.packed(rows)}
        return self._packed[rows]

    def graph_for(self, shape: "GraphShape", injection: Injection | None) -> "DecodeGraph":
        """The captured decode step of that shape; the last one is kept for the next batch that fits it."""
        from fieldprint.generate.graph import DecodeGraph

        if shape not in self._graphs:
            self._graphs.clear()  # its memory first
            self._graphs[shape] = DecodeGraph(self.decoder, self.pool, shape, injection)
        return self._graphs[shape]

    @property
    def stopping(self) -> bool:
        """Whether `stop` was called."""
        return self._stopping

    def text(self, tokens: Sequence[int]) -> str:
        """The text of an answer's tokens."""
        return self._decode(tokens)


class _Batch:
    """One call of `Engine.generate`: its rows, its committer, and the loop over both."""

    def __init__(
        self,
        engine: Engine,
        anchor: PinnedAnchor | None,
        attention: AttentionSettings,
        log: LogWriter | None,
        observe_mass: MassObserver | None,
    ) -> None:
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
        self.committer = None if log is None else Committer(self.pool, log)
        self.anchor_digest = None if anchor is None else anchor.verified.digest
        self.rows: list[Row] = []
        self.steps: Steps  # made by `add`, once the rows are known
        self.flight: Flight | None = None  # the step whose tokens are not known yet
        self.scratch: list[int] = []  # the page that padding writes to
        self.leased: list[int] = []  # pages on which the job in flight has a reference
        self.steps_since_check = 0
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
        self.pool.release(self.leased)
        self.leased = []
        for row in self.rows:
            row.sequence.close()
        self.pool.release(self.scratch)
        self.scratch = []

    def run(self) -> Iterator[Event]:
        """Prefill or decode, look at results, submit jobs, until every row is finished."""
        while not all(row.finished for row in self.rows):
            prefilling = next((row for row in self.rows if self._needs_prefill(row)), None)
            decoding = [row for row in self.rows if row.decoding and self._may_go_on(row)]
            if prefilling is not None:
                yield from self._prefill(prefilling)
            elif decoding or self.flight is not None:
                yield from self._decode(decoding)
            elif self.committer is not None:
                if not self.committer.busy:
                    self._submit()
                yield from self._receive(self.committer.wait())
            yield from self._finish_without_log()
            if self.committer is not None:
                result = self.committer.poll() if self.committer.busy else None
                if result is not None:
                    yield from self._receive(result)
                if not self.committer.busy and self._commit_due():
                    self._submit()
                elif not self.committer.busy and self._scrub_due():
                    self._submit(commit=False)

    def _needs_prefill(self, row: Row) -> bool:
        return row.reason is None and not row.finished and row.chunk_to_do() is not None

    def _may_go_on(self, row: Row) -> bool:
        ahead = self.flight is not None and row.index in self.flight.rows  # one token more than is known
        if len(row.generated) + ahead >= row.request.max_new_tokens:
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
        self._evict(row)
        if stop == row.prompt_len and len(row.tokens) == row.prompt_len:
            logits = self.engine.decoder.logits(hidden[-1:])[0]
            yield from self._accept(row, row.request.sampler.draw(logits, len(row.tokens)))

    def _decode(self, rows: Sequence[Row]) -> Iterator[Event]:
        """Start a step of `rows`; take the tokens of the one before while it runs, or its own where it has run."""
        before, self.flight = self.flight, None
        if rows:
            self.flight = self.steps.decode(rows, {} if before is None else before.rows)
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
        self.steps_since_check += 1
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

    def _pinned(self) -> tuple[PageCheck, ...]:
        if self.anchor is None:
            return ()
        return tuple(
            PageCheck(i, page, self.anchor.filled(i), self.anchor.page_digests[i])
            for i, page in enumerate(self.anchor.pages)
        )

    def _commit_due(self) -> bool:
        """Whether leaves should be made: enough new tokens, a finished row, or a prompt that waits for them."""
        for row in self.rows:
            new = row.complete_pages() - len(row.pages)
            if row.finished or new <= 0:
                continue
            if row.reason is not None or not row.decoding or row.committed < row.prompt_len:
                return True
            if new * self.settings.page_size >= self.settings.commit_interval:
                return True
        return False

    def _scrub_due(self) -> bool:
        return self.anchor is not None and self.steps_since_check >= self.settings.scrub_interval

    def _submit(self, *, commit: bool = True) -> None:
        """Start a pass: over the pinned pages, and with `commit` over everything that new leaves depend on."""
        if self.committer is None:
            return
        jobs = []
        for row in self.rows:
            if commit and not row.finished and row.complete_pages() > len(row.pages):
                jobs.append(row.job(None if row.reason is None else self.engine.text(row.generated)))
        self.steps_since_check = 0
        self.leased = [check.page for job in jobs for check in job.checks]
        self.leased += [new.page for job in jobs for new in job.new if new.digest is None and new.filled]
        self.pool.share(self.leased)
        self.committer.submit(CommitJob(self._pinned(), tuple(jobs)))

    def _receive(self, result: CommitResult) -> Iterator[Event]:
        """Move the horizon, or go back to it."""
        self.pool.release(self.leased)
        self.leased = []
        for key, pages in result.committed.items():
            row = self.rows[key]
            row.pages += pages
            self._evict(row)
            yield Committed(key, row.committed)
            if row.reason is not None and len(row.pages) == row.complete_pages():
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
        reasons: dict[int, str] = {}
        if result.log_error is not None:
            reasons = {job.key: f"the log refused: {result.log_error.what}" for job in result.job.requests}
        # A page of a shared prefix is one page of several rows: all of them may have read it.
        pages = {self.rows[key].sequence.pages[i] for key, found in result.damaged.items() for i in found}
        for row in self.rows:
            if row.index in result.damaged or pages.intersection(row.sequence.held()):
                reasons[row.index] = "a context page was damaged"
            if result.damaged_pinned:
                reasons[row.index] = "a pinned page was damaged"
        if result.damaged_pinned and self.anchor is not None:
            self.anchor.rewrite()
        for key, damaged in result.damaged.items():
            rebuild_pages(self.passes, self.steps, self.rows[key], damaged)
        for key, reason in sorted(reasons.items()):
            row = self.rows[key]
            if not row.finished:
                row.roll_back()
                yield RolledBack(key, max(row.committed, row.prompt_len), reason)

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
