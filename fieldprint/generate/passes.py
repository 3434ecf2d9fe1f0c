"""The forward passes of a batch: a prefill chunk of one row, and a decode step of all rows, here by torch's operators."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import torch
from torch import Tensor

from fieldprint.attention import plan_attention
from fieldprint.decoder import Decoder, Injection, Step
from fieldprint.generate.request import EngineSettings
from fieldprint.generate.row import Row
from fieldprint.kvcache import PagedSequence, PagePool

Cells = dict[int, tuple[PagedSequence, int]]  # row index to (sequence, token behind its end)


@dataclass(frozen=True, slots=True)
class Passes:
    """What a batch computes with, and its prefill; `steps` are made for it once its rows are known.

    window: the positions that a query sees, of the settings and of the model's own training. injection: the anchor.
    """

    decoder: Decoder
    pool: PagePool
    settings: EngineSettings
    injection: Injection | None
    window: int | None
    num_sinks: int

    @property
    def offset(self) -> int:
        """Where a request's own rotary positions begin: behind the anchor's."""
        return 0 if self.injection is None or self.injection.before else self.injection.num_tokens

    @property
    def anchor_limit(self) -> int:
        """A + W, the last virtual position: the anchor stays within the trained range however far the context goes."""
        if self.window is not None:
            return self.offset + self.window
        return self.decoder.config.max_positions - 1

    def forward_chunk(self, sequence: PagedSequence, tokens: Sequence[int]) -> Tensor:
        """Hidden states of `tokens` behind the end of `sequence`, whose pages they fill."""
        slots = sequence.prepare(len(tokens))
        positions = range(sequence.length - len(tokens), sequence.length)
        step = self.step(tokens, positions, slots, [sequence.pages], [sequence.length])
        return self.decoder.forward(step, self.pool, self.injection)

    def step(
        self,
        tokens: Sequence[int],
        positions: Sequence[int],
        slots: Sequence[int],
        tables: Sequence[Sequence[int]],
        lens: Sequence[int],
    ) -> Step:
        """A pass over `tables`, with as many queries for each; positions count a request's own context."""
        device = self.pool.storage.device
        plan = plan_attention(
            tables,
            lens,
            range(0, len(tokens) + 1, len(tokens) // len(tables)),
            page_size=self.settings.page_size,
            num_pages=self.pool.num_pages,
            window=self.window,
            num_sinks=self.num_sinks,
            device=device,
        )
        rotary, virtual = torch.tensor(positions) + self.offset, None
        if self.injection is not None and not self.injection.before:
            clamped = rotary.clamp(max=self.anchor_limit)
            virtual = None if torch.equal(clamped, rotary) else clamped.to(device)
        ids = torch.tensor(tokens, dtype=torch.int64, device=device)
        return Step(ids, rotary.to(device), torch.tensor(slots, device=device), plan, virtual)


@dataclass(slots=True)
class Flight:
    """A decode step that was started: its rows, and what they drew, when it is asked for.

    A row that is taken out of `rows` meanwhile forgets the step. masses: [num_rows, num_q_heads] of each layer.
    """

    rows: dict[int, Row]
    tokens: Callable[[], Sequence[int]]
    masses: list[Tensor] = field(default_factory=list)


class Steps(Protocol):
    """Decode steps of a batch.

    A batch keeps its shape: a row that does not take part in a step is padding, so that every row is computed from the
    same shapes whatever happens to the others.
    """

    runs_ahead: bool
    """Whether a step can be started before the tokens of the one before are known."""

    def decode(self, rows: Sequence[Row], ahead: dict[int, Row]) -> Flight:
        """Start a step of `rows`; those in `ahead` go on from what the step before draws."""

    def replay(self, cells: Cells) -> None:
        """A step of the past once more: the same shapes, known tokens, nothing drawn."""


class HostSteps:
    """Decode steps by torch's operators; the host draws the tokens at once.

    Args:
        passes: of the batch.
        num_rows: of the batch.
        scratch: a page that padding may write to.
        decoder: of the steps; its weights may be packed for `num_rows`.
        with_mass: whether steps give anchor masses.
    """

    runs_ahead = False

    def __init__(
        self, passes: Passes, num_rows: int, scratch: int, decoder: Decoder, *, with_mass: bool
    ) -> None:
        self._passes, self._num_rows, self._scratch = passes, num_rows, scratch
        self._decoder, self._with_mass = decoder, with_mass

    def decode(self, rows: Sequence[Row], ahead: dict[int, Row]) -> Flight:  # noqa: ARG002
        """A step that is through when this returns."""
        masses: list[Tensor] | None = [] if self._with_mass else None
        hidden = self._forward({row.index: (row.sequence, row.tokens[-1]) for row in rows}, masses)
        logits = self._decoder.logits(hidden)
        tokens = [0] * self._num_rows
        for row in rows:
            tokens[row.index] = row.request.sampler.draw(logits[row.index], len(row.tokens))
        return Flight({row.index: row for row in rows}, lambda: tokens, masses or [])

    def replay(self, cells: Cells) -> None:
        """A step of the past once more."""
        self._forward(cells, None)

    def _forward(self, cells: Cells, masses: list[Tensor] | None) -> Tensor:
        size = self._passes.settings.page_size
        ids, positions, slots, tables, lens = [], [], [], [], []
        for index in range(self._num_rows):
            if index in cells:
                sequence, token = cells[index]
                slots += sequence.prepare(1)
                ids.append(token)
                positions.append(sequence.length - 1)
                tables.append(sequence.pages)
                lens.append(sequence.length)
            else:
                slots.append(self._scratch * size + index % size)
                ids.append(0)
                positions.append(0)
                tables.append([])
                lens.append(0)
        step = self._passes.step(ids, positions, slots, tables, lens)
        return self._decoder.forward(step, self._passes.pool, self._passes.injection, masses)
