"""A decode step on a GPU, captured once as a CUDA graph and replayed: embedding, layers, logits and the draw."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from fieldprint.attention.decode import plan_decode
from fieldprint.decoder import Decoder, Injection, Step
from fieldprint.generate.passes import Cells, Flight, Passes
from fieldprint.generate.row import Row
from fieldprint.generate.sampling import Sampler, draw_rows
from fieldprint.kvcache import PagedSequence, PagePool

LAST_DRAWN = -1  # in place of a token id: what the launch before drew for this row


@dataclass(frozen=True, slots=True)
class GraphShape:
    """What a captured step is fixed to; batches and contexts that fit into it need no other capture.

    rows: of the batch, padding included. max_pages: of a sequence. anchor_limit: the last virtual position towards the
    anchor, or None when queries keep their own. seeded: whether some row draws at random. anchor: where the pinned keys
    lie, how many there are, the operator and its weights.
    """

    rows: int
    max_pages: int
    window: int | None
    num_sinks: int
    anchor_limit: int | None
    seeded: bool
    with_mass: bool
    anchor: tuple[int, int, str, tuple[float, ...]] | None


@dataclass(frozen=True, slots=True)
class GraphRow:
    """One row of a launch: the token (or LAST_DRAWN) that stands behind `length - 1` positions, and its pages."""

    token: int
    slot: int
    length: int
    pages: Sequence[int]
    sampler: Sampler


class Drawn:
    """The tokens that a launch draws, on their way to the host; `masses` are those of each layer."""

    def __init__(self, drawn: Tensor, masses: list[Tensor]) -> None:
        self.masses = [mass.clone() for mass in masses]
        self._event: torch.cuda.Event | None = None
        if drawn.device.type == "cpu":
            self._host = drawn.clone()
            return
        self._host = torch.empty(drawn.shape, dtype=drawn.dtype, pin_memory=True)
        self._host.copy_(drawn, non_blocking=True)
        self._event = torch.cuda.Event()
        self._event.record()

    def tokens(self) -> list[int]:
        """Token ids by row, once that launch is through; later launches go on meanwhile."""
        if self._event is not None:
            self._event.synchronize()
        found: list[int] = self._host.tolist()
        return found


class GraphSteps:
    """Decode steps of a batch as launches of a graph; the host may be one step behind the device."""

    runs_ahead = True

    def __init__(self, passes: Passes, graph: "DecodeGraph", scratch: int) -> None:
        self._size, self._graph, self._scratch = passes.settings.page_size, graph, scratch

    def decode(self, rows: Sequence[Row], ahead: dict[int, Row]) -> Flight:
        """Start a step of `rows`; those in `ahead` go on from what the step before draws."""
        launched = {}
        for row in rows:
            token = LAST_DRAWN if row.index in ahead else row.tokens[-1]
            launched[row.index] = _graph_row(row.sequence, token, row.request.sampler)
        drawn = self._graph.launch(launched, self._scratch)
        return Flight({row.index: row for row in rows}, drawn.tokens, drawn.masses)

    def replay(self, cells: Cells) -> None:
        """A step of the past once more; a later step must name its tokens."""
        rows = {i: _graph_row(sequence, token, Sampler()) for i, (sequence, token) in cells.items()}
        self._graph.launch(rows, self._scratch)


def _graph_row(sequence: PagedSequence, token: int, sampler: Sampler) -> GraphRow:
    (slot,) = sequence.prepare(1)
    return GraphRow(token, slot, sequence.length, sequence.pages, sampler)


def graph_shape(passes: Passes, num_rows: int, longest: int, *, seeded: bool, with_mass: bool) -> GraphShape:
    """The shape for `num_rows` rows of up to `longest` positions, both rounded up to powers of two."""
    injection, limit = passes.injection, passes.anchor_limit
    anchor = None
    if injection is not None:
        g = () if injection.g is None else tuple(injection.g.tolist())
        anchor = (injection.k.data_ptr(), injection.num_tokens, injection.operator, g)
    return GraphShape(
        rows=_power_of_two(num_rows),
        max_pages=max(64, _power_of_two(-(-longest // passes.settings.page_size))),
        window=passes.window,
        num_sinks=passes.num_sinks,
        anchor_limit=limit if injection is not None and longest + passes.offset > limit else None,
        seeded=seeded,
        with_mass=with_mass,
        anchor=anchor,
    )


def _power_of_two(number: int) -> int:
    return 1 << (number - 1).bit_length()


class DecodeGraph:
    """Decode steps of one shape: `launch` uploads a few numbers a row, replays, and does not wait.

    Tokens, lengths and page tables lie on the device, and a launch reads the tokens that the one before has drawn, so
    that the host can be a step behind (test_decode_steps_do_not_synchronize). A row gets the same bits whatever else is
    in the batch: attention is batch-invariant, and every launch has the same number of rows.
    """

    def __init__(
        self, decoder: Decoder, pool: PagePool, shape: GraphShape, injection: Injection | None
    ) -> None:
        self.shape = shape
        self._decoder, self._pool, self._injection = decoder, pool, injection
        device, sizes = decoder.device, decoder.config
        self._inputs = torch.zeros(
            4, shape.rows, dtype=torch.int64, device=device
        )  # token, position, slot, length
        self._draws = torch.ones(3, shape.rows, dtype=torch.float64, device=device)
        self._drawn = torch.zeros(shape.rows, dtype=torch.int64, device=device)
        self._table = torch.zeros(shape.rows, shape.max_pages, dtype=torch.int32, device=device)
        self._uploaded: list[list[int]] = [[] for _ in range(shape.rows)]
        self._masses: list[Tensor] = []
        self._graph: torch.cuda.CUDAGraph | None = None
        self._plan = plan_decode(
            self._table,
            torch.zeros(shape.rows, dtype=torch.int32, device=device),
            page_size=pool.layout.page_size,
            num_pages=pool.num_pages,
            num_q_heads=sizes.num_q_heads,
            num_kv_heads=sizes.num_kv_heads,
            head_dim=sizes.head_dim,
            dtype=decoder.dtype,
            num_anchor=0 if injection is None else injection.num_tokens,
            window=shape.window,
            num_sinks=shape.num_sinks,
            batch_invariant=True,
        )

    def launch(self, rows: dict[int, GraphRow], scratch: int) -> Drawn:
        """Start a step: K/V of each row's token goes to its slot, and its next token is drawn.

        Args:
            rows: by index; the others are padding.
            scratch: a page that padding may write to.
        """
        size = self._pool.layout.page_size
        inputs: list[list[int]] = [[], [], [], []]
        draws: list[list[float]] = [[], [], []]
        for index in range(self.shape.rows):
            row = rows.get(index)
            if row is None:
                values, sampler = (0, 0, scratch * size + index % size, 0), Sampler()
            else:
                values, sampler = (row.token, row.length - 1, row.slot, row.length), row.sampler
                self._upload_pages(index, row.pages)
            for column, value in zip(inputs, values, strict=True):
                column.append(value)
            chance = sampler.uniform(values[3]) if sampler.temperature else 0.0
            for numbers, number in zip(draws, (sampler.temperature, sampler.top_p, chance), strict=True):
                numbers.append(number)
        _upload(self._inputs, inputs)
        if self.shape.seeded:
            _upload(self._draws, draws)
        self._replay()
        return Drawn(self._drawn, self._masses)

    def _upload_pages(self, index: int, pages: Sequence[int]) -> None:
        if self._uploaded[index] != pages:
            self._uploaded[index] = list(pages)
            _upload(self._table[index, : len(pages)], list(pages))

    def _replay(self) -> None:
        if self._inputs.device.type == "cpu":
            self._step()
            return
        if self._graph is None:
            self._capture()
        else:
            self._graph.replay()

    def _capture(self) -> None:
        """Run the step once, which also compiles its kernels, then capture it. Running it again changes nothing."""
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        drawn = self._drawn.clone()
        with torch.cuda.stream(stream):
            self._step()
        torch.cuda.current_stream().wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        # Kernels keep the priority of the stream that they were captured on: the step's go before those that hash beside it.
        first = torch.cuda.Stream(priority=-1)
        with torch.cuda.graph(graph, stream=first, capture_error_mode="thread_local"):
            self._step()
        self._drawn.copy_(drawn)
        graph.replay()
        self._graph = graph

    @torch.inference_mode()
    def _step(self) -> None:
        token, position, slot, length = self._inputs
        self._plan.seq_lens.copy_(length)
        self._plan.update()
        offset = 0 if self._injection is None else self._injection.num_tokens
        position = position + offset
        limit = self.shape.anchor_limit
        step = Step(
            torch.where(token == LAST_DRAWN, self._drawn, token),
            position,
            slot,
            self._plan,
            None if limit is None else position.clamp(max=limit),
        )
        masses: list[Tensor] | None = [] if self.shape.with_mass else None
        hidden = self._decoder.forward(step, self._pool, self._injection, masses)
        self._masses = masses or []
        logits = self._decoder.logits(hidden)
        self._drawn.copy_(draw_rows(logits, *self._draws) if self.shape.seeded else torch.argmax(logits, -1))


def _upload(target: Tensor, values: Sequence[object]) -> None:
    """Copy to the device without waiting: pinned memory is kept until the copy is through."""
    if target.device.type == "cpu":
        target.copy_(torch.tensor(values, dtype=target.dtype))
        return
    target.copy_(torch.tensor(values, dtype=target.dtype, pin_memory=True), non_blocking=True)
