"""The engine: a decoder, a page pool, and what is kept from one batch to the next."""

from collections.abc import Callable, Generator, Sequence
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from fieldprint.commit.follower import LogFollower
from fieldprint.decoder import Decoder, Injection
from fieldprint.errors import IntegrityError
from fieldprint.generate.batch import Batch, MassObserver
from fieldprint.generate.gate import Gate, continuation, renumbered, without_anchor
from fieldprint.generate.request import (
    AttentionSettings,
    Bypassed,
    Committed,
    EngineSettings,
    Event,
    Finished,
    GenerationRequest,
    GenerationResult,
    Prefix,
)
from fieldprint.kvcache import PagedSequence, PagePool, SlotHasher
from fieldprint.note import VerifierKey
from fieldprint.promote import PinnedAnchor
from fieldprint.tlog import LogWriter

if TYPE_CHECKING:
    from fieldprint.generate.graph import DecodeGraph, GraphShape


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
        self._batch: Batch | None = None
        self._followed: tuple[LogWriter, LogFollower] | None = None

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

        Every slot is hashed again before its page is evicted or the prefix is handed out, so that a later chunk was not
        computed from damage that nobody saw.

        Raises:
            CapacityError: the pool cannot hold it.
            IntegrityError: pages were damaged meanwhile; the anchor's are whole again.
        """
        attention = attention or AttentionSettings()
        batch = Batch(self, anchor, attention, None, None)
        sequence = PagedSequence(self.pool)
        chunks: list[tuple[int, int]] = []
        digests = []
        size = self.settings.chunk_size
        try:
            for start in range(0, len(tokens), size):
                chunk = tokens[start : start + size]
                batch.passes.forward_chunk(sequence, chunk)
                chunks.append((start, start + len(chunk)))
                digests.append(batch.watch.hasher.now(sequence.slots(*chunks[-1])))
                if batch.window is not None or start + size >= len(tokens):
                    _check_held(sequence, np.concatenate(digests), batch.watch.hasher)
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
        return Prefix(
            tuple(tokens), sequence, tuple(chunks), np.concatenate(digests), batch.anchor_digest, attention
        )

    def generate(
        self,
        requests: Sequence[GenerationRequest],
        *,
        anchor: PinnedAnchor | None = None,
        attention: AttentionSettings | None = None,
        log: LogWriter | None = None,
        observe_mass: MassObserver | None = None,
        gate: Gate | None = None,
    ) -> Generator[Event]:
        """The events of all requests until each one is finished.

        Where the gate rules that the anchor must be left, what was generated under it is committed and ends there; then the
        requests go on without it, computed anew from their tokens (`Bypassed`).

        Args:
            requests: the batch; prompts of any lengths.
            anchor: pinned in this engine's pool, or None.
            attention: operator, floor, window and sinks.
            log: where leaves go; None switches verification off, and every token is final at once.
            observe_mass: called each decode step with the anchor mass of each layer, [rows, num_q_heads].
            gate: asked before each step whether generation may go on; None: it may.

        Raises:
            CapacityError: the pool cannot hold the batch.
            LogError: the log refused for `max_faults` passes in a row; committed tokens stay committed.
            IntegrityError: damage comes back as fast as it is repaired, or what is rebuilt never is what was committed.
        """
        self._stopping = False
        if not requests:
            raise ValueError("requests must hold at least one request")
        attention = attention or AttentionSettings()
        batch = Batch(self, anchor, attention, log, observe_mass, gate)
        before: dict[int, GenerationResult] = {}
        for event in self._play(batch, requests):
            if batch.ruling is not None and batch.ruling.action == "bypass" and isinstance(event, Finished):
                result = event.result
                if result.reason == batch.ruling.reason:
                    before[event.request] = result
                    length = len(result.prompt) + len(result.tokens)
                    yield Bypassed(event.request, length, batch.ruling.why)
                    continue
            yield event
        if before:
            indices = sorted(before)
            rest = [continuation(requests[index], before[index]) for index in indices]
            for event in self._play(Batch(self, None, without_anchor(attention), log, None, gate), rest):
                # What was final already is committed again, as the prompt of another chain.
                if not isinstance(event, Committed) or event.upto > len(rest[event.request].prompt):
                    yield renumbered(event, indices, before)

    def _play(self, batch: Batch, requests: Sequence[GenerationRequest]) -> Generator[Event]:
        """The events of one batch, which is closed behind them."""
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

    def follower_of(self, log: LogWriter) -> LogFollower:
        """What this engine knows of the log's tree; kept from one batch to the next, so that the log cannot change in between.

        Raises:
            LogError: the log cannot be followed.
        """
        if self._followed is None or self._followed[0] is not log:
            self._followed = (log, LogFollower(log.source, VerifierKey.parse(log.verifier_key)))
        return self._followed[1]

    @property
    def stopping(self) -> bool:
        """Whether `stop` was called."""
        return self._stopping

    def text(self, tokens: Sequence[int]) -> str:
        """The text of an answer's tokens."""
        return self._decode(tokens)


def _check_held(sequence: PagedSequence, digests: NDArray[np.uint8], hasher: SlotHasher) -> None:
    slots = sequence.slots(0, len(digests))
    held = slots >= 0
    if not np.array_equal(hasher.now(slots[held]), digests[held]):
        raise IntegrityError(
            "a page was damaged while the prefix was computed", remedy="Compute the prefix again"
        )
