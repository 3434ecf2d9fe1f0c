"""The synchronous design ("v2.5") that the paper starts from, beside our engine; `python -m benchmarks.baseline_v25`.

In every layer of every decode step the anchor's K/V and the new tokens' K/V go to the host, the host waits for them,
hashes them with SHA-256 and compares the anchor's digest with the recorded one; only then attention runs, as two softmax
passes of torch's operators, one over the context and one over the anchor, blended with a constant weight:

    out = (1 - g) softmax(q K_c^T / sqrt(d)) V_c + g softmax(q K_a^T / sqrt(d)) V_a

It is written as one who has chosen that design would write it: copies of neighbouring bytes into page-locked memory that
is allocated once, one wait a layer, hashlib with OpenSSL, pages gathered once in the order in which they are multiplied.
Weights, pages, prompts, positions and prefill are the engine's. Without a GPU the copies are copies within memory.

The main function needs a GPU; with it, one table: batches of 1, 8 and 64 of 4k and 32k, those that fit.
"""

import argparse
import gc
import hashlib
import math
import statistics
import sys
import time
from collections.abc import Generator, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.profiler import record_function

from benchmarks.attention_gpu import row, say
from benchmarks.engine_gpu import MODEL, NUM_ANCHOR, Bench
from benchmarks.record import write_results
from fieldprint.decoder import Decoder, LayerWeights
from fieldprint.errors import CapacityError, IntegrityError
from fieldprint.generate import AttentionSettings, Engine, EngineSettings, GenerationRequest, Provisional
from fieldprint.generate.passes import Passes
from fieldprint.kvcache import PagedSequence, PagePool
from fieldprint.kvcache.store import Rotation, rotate_and_store
from fieldprint.promote import PinnedAnchor
from fieldprint.tlog import LogWriter

COPY, HASH = "to_host", "sha256"  # what a profiler's trace calls the two halves of a check
CELLS = tuple((batch, context) for context in (4096, 32768) for batch in (1, 8, 64))
NEW_TOKENS = 24
WARM = 4  # steps that compile, capture and allocate
G = 0.1


@dataclass(frozen=True, slots=True)
class V25Answer:
    """The new tokens of each prompt, and the milliseconds of each decode step (the first token is the prefill's)."""

    tokens: list[list[int]]
    step_ms: list[float]

    @property
    def ms_per_step(self) -> float:
        """The mean of the steps, without those of the beginning where there are enough."""
        return statistics.fmean(self.step_ms[WARM:] or self.step_ms)


class V25:
    """Greedy decoding in the synchronous design.

        answer = V25(decoder, pool, pinned, 0.1).generate(prompts, 32)
        answer.tokens, answer.ms_per_step

    `expected` are SHA-256 digests of the anchor's K/V in each layer, of the verified values and not of the pages; `recorded`
    has those of the new K/V, of each layer of each step since the last call.
    """

    def __init__(self, decoder: Decoder, pool: PagePool, pinned: PinnedAnchor, g: float) -> None:
        if pinned.pool is not pool:
            raise ValueError("pinned is pinned in another pool")
        if decoder.config.native_window is not None:
            raise ValueError("v2.5 has no sliding window, and this model was trained with one")
        self._decoder, self._pool, self._g = decoder, pool, g
        self._injection = pinned.injection(decoder.config.num_q_heads, g=g, operator="mixture")
        settings = EngineSettings(pool.layout.page_size)
        self._prefills = Passes(decoder, pool, settings, self._injection, None, 0)
        first = pinned.pages[0] * pool.layout.page_size
        self._anchor_slots = slice(first, first + pinned.num_tokens)
        values = pinned.fieldprint.values(pool.layout.dtype)
        self.expected = [hashlib.sha256(_bytes_of(layer.contiguous())).digest() for layer in values]
        self.recorded: list[list[bytes]] = []
        self._anchor_host = self._host_memory(pinned.num_tokens)
        self._new_host = self._host_memory(1)

    def generate(self, prompts: Sequence[Sequence[int]], new_tokens: int) -> V25Answer:
        """The answers to `prompts`, and the time of each step.

        Raises:
            ValueError: no prompt, an empty one, no new token, or positions beyond those of the model.
            CapacityError: the pool cannot hold the batch.
            IntegrityError: the anchor's pages are not what was recorded.
        """
        found, times = [], []
        for tokens in self.steps(prompts, new_tokens):
            found.append(tokens)
            times.append(time.perf_counter())
        taken = [1e3 * (after - before) for before, after in pairwise(times)]
        return V25Answer([list(row) for row in zip(*found, strict=True)], taken)

    def steps(
        self,
        prompts: Sequence[Sequence[int]],
        new_tokens: int,
        contexts: Sequence[PagedSequence] | None = None,
    ) -> Generator[list[int]]:
        """One token for each prompt, step by step; the first ones come from the prefill. Raises as `generate`.

        `contexts` are what stands before the prompts, with K/V in the pool; they stay the caller's.
        """
        if not prompts or not all(prompts) or new_tokens < 1:
            raise ValueError("prompts must hold at least one token each, and new_tokens be at least 1")
        longest = max(map(len, prompts)) + new_tokens
        if longest + self._injection.num_tokens > self._decoder.config.max_positions:
            raise ValueError(f"{longest} positions behind the anchor are more than the model has")
        self.recorded = []
        self._new_host = self._host_memory(len(prompts))
        sequences: list[PagedSequence] = []
        try:
            drawn = []
            for prompt in prompts:
                sequences.append(
                    PagedSequence(self._pool) if contexts is None else contexts[len(sequences)].fork()
                )
                sequences[-1].reserve(len(prompt) + new_tokens)
            for sequence, prompt in zip(sequences, prompts, strict=True):
                drawn.append(self._prefill(sequence, prompt))
            yield drawn
            table = self._table([sequence.pages for sequence in sequences])
            for _ in range(new_tokens - 1):
                for sequence in sequences:
                    sequence.prepare(1)
                drawn = self._step(drawn, [sequence.length for sequence in sequences], table)
                yield drawn
        finally:
            for sequence in sequences:
                sequence.close()

    def _prefill(self, sequence: PagedSequence, prompt: Sequence[int]) -> int:
        """The first token, after the engine's own prefill."""
        size = self._prefills.settings.chunk_size
        for start in range(0, len(prompt), size):
            hidden = self._prefills.forward_chunk(sequence, prompt[start : start + size])
        return int(torch.argmax(self._decoder.logits(hidden[-1:])))

    def _table(self, tables: Sequence[Sequence[int]]) -> Tensor:
        """[rows, pages] on the device; behind a row's own pages stands its first one, where nothing is looked at."""
        longest = max(map(len, tables))
        filled = [[*pages, *[pages[0]] * (longest - len(pages))] for pages in tables]
        return torch.tensor(filled, device=self._decoder.device)

    @torch.inference_mode()
    def _step(self, tokens: list[int], lens: list[int], table: Tensor) -> list[int]:
        """The next tokens; `lens` count the positions of `tokens` themselves."""
        decoder, size, device = self._decoder, self._pool.layout.page_size, self._decoder.device
        longest = max(lens)
        lengths = torch.tensor(lens, device=device)
        own = lengths - 1
        slots = table.gather(1, (own // size).unsqueeze(1)).squeeze(1) * size + own % size
        unseen = None
        if min(lens) < longest:
            unseen = torch.arange(longest, device=device) >= lengths.unsqueeze(1)
        pages = table[:, : -(-longest // size)].flatten()
        rotation = decoder._rotation(own + self._injection.num_tokens)
        x = F.embedding(torch.tensor(tokens, device=device), decoder.embedding)
        self.recorded.append([])
        for index, layer in enumerate(decoder.layers):
            q = self._store(index, layer, x, rotation, slots)
            self.recorded[-1].append(self._verify(index, slots))
            x = x + layer.out(self._attend(index, q, pages, longest, unseen))
            h = F.rms_norm(x, x.shape[-1:], layer.post_norm, decoder.config.rms_eps)
            x = x + layer.down(F.silu(layer.gate(h)).mul_(layer.up(h)))
        hidden = F.rms_norm(x, x.shape[-1:], decoder.final_norm, decoder.config.rms_eps)
        drawn: list[int] = torch.argmax(decoder.logits(hidden), -1).tolist()
        return drawn

    def _store(self, index: int, layer: LayerWeights, x: Tensor, rotation: Rotation, slots: Tensor) -> Tensor:
        """The rotated queries [rows, num_q_heads, head_dim]; the new K and V lie in their slots."""
        c = self._decoder.config
        h = F.rms_norm(x, (c.hidden_size,), layer.input_norm, c.rms_eps)
        heads = layer.qkv(h).view(len(x), -1, c.head_dim)
        q, k, v = heads.split([c.num_q_heads, c.num_kv_heads, c.num_kv_heads], 1)
        if layer.q_norm is not None and layer.k_norm is not None:
            q = F.rms_norm(q, (c.head_dim,), layer.q_norm, c.rms_eps)
            k = F.rms_norm(k, (c.head_dim,), layer.k_norm, c.rms_eps)
            qk = torch.cat([q, k], 1)
        else:
            qk = heads[:, : c.num_q_heads + c.num_kv_heads]
        pool = self._pool
        on_gpu = self._decoder.device.type != "cpu"
        rotated, _ = rotate_and_store(
            qk, v, rotation, None, slots, pool.k_pages(index), pool.v_pages(index), use_kernel=on_gpu
        )
        return rotated

    def _verify(self, index: int, slots: Tensor) -> bytes:
        """The digest of the new K/V of a layer; the anchor's was compared. The host waits for both."""
        kv = self._pool.storage[index].flatten(1, 2)  # K and V, [2, slots, num_kv_heads, head_dim]
        with record_function(COPY):
            for part in range(2):  # each is one run of bytes
                self._anchor_host[part].copy_(kv[part, self._anchor_slots], non_blocking=True)
            self._new_host.copy_(kv.index_select(1, slots), non_blocking=True)
            if self._decoder.device.type != "cpu":
                copied = torch.cuda.Event()
                copied.record()
                copied.synchronize()
        with record_function(HASH):
            anchor = hashlib.sha256(_bytes_of(self._anchor_host)).digest()
            new = hashlib.sha256(_bytes_of(self._new_host)).digest()
        if anchor != self.expected[index]:
            raise IntegrityError(
                f"the anchor's K/V of layer {index} are not what was recorded",
                remedy="Promote the anchor again from its signed artifact",
            )
        return new

    def _attend(self, index: int, q: Tensor, pages: Tensor, longest: int, unseen: Tensor | None) -> Tensor:
        """The blended output, [rows, num_q_heads * head_dim]."""
        rows, _, dim = q.shape
        heads = self._decoder.config.num_kv_heads
        k, v = (
            part.permute(2, 0, 1, 3).index_select(1, pages).view(heads, rows, -1, dim)[:, :, :longest]
            for part in (self._pool.k_pages(index), self._pool.v_pages(index))
        )
        q = q.view(rows, heads, -1, dim).transpose(0, 1) / math.sqrt(dim)
        context = softmax_pass(q, k, v, None if unseen is None else unseen.unsqueeze(1))
        anchor_k, anchor_v = self._injection.k[index], self._injection.v[index]
        anchor = softmax_pass(q.flatten(1, 2), anchor_k, anchor_v, None).view(context.shape)
        return torch.lerp(context, anchor, self._g).transpose(0, 1).reshape(rows, -1)

    def _host_memory(self, tokens: int) -> Tensor:
        """K and V of so many tokens of one layer, page-locked where there is a GPU."""
        layout, on_gpu = self._pool.layout, self._decoder.device.type != "cpu"
        shape = (2, tokens, layout.num_kv_heads, layout.head_dim)
        return torch.empty(shape, dtype=layout.dtype, pin_memory=on_gpu)


def softmax_pass(q: Tensor, k: Tensor, v: Tensor, unseen: Tensor | None) -> Tensor:
    """softmax(q K^T) V by torch's operators, the scores in memory; q is scaled.

    Args:
        q: [..., queries, head_dim].
        k: [..., keys, head_dim].
        v: as k.
        unseen: [..., 1, keys], true at keys that are not there, whatever k and v hold; or None.
    """
    scores = torch.matmul(q, k.transpose(-1, -2))
    if unseen is not None:
        scores = scores.masked_fill(unseen, -math.inf)
        v = v.masked_fill(unseen.transpose(-1, -2), 0)
    return torch.matmul(torch.softmax(scores, -1, dtype=torch.float32).to(v.dtype), v)


def _bytes_of(x: Tensor) -> memoryview:
    """The memory of a contiguous tensor on the host."""
    raw: memoryview = x.view(torch.uint8).numpy().reshape(-1).data
    return raw


def engine_steps(
    engine: Engine,
    pinned: PinnedAnchor,
    prompts: Sequence[Sequence[int]],
    new_tokens: int,
    *,
    g: float,
    log: LogWriter | None = None,
) -> Generator[list[int]]:
    """As `V25.steps`, of our engine under the mixture operator; with a log everything that it verifies is on."""
    answers: list[list[int]] = [[] for _ in prompts]
    told = 0
    requests = [GenerationRequest(tuple(prompt), new_tokens) for prompt in prompts]
    mixture = AttentionSettings("mixture", g)
    with closing(engine.generate(requests, anchor=pinned, attention=mixture, log=log)) as events:
        for event in events:
            if isinstance(event, Provisional):
                answers[event.request].append(event.token_id)
            if min(map(len, answers)) > told:
                yield [answer[told] for answer in answers]
                told += 1


def ms_per_step(steps: Iterator[list[int]]) -> float:
    """Milliseconds of a step after the first WARM ones."""
    times = [time.perf_counter() for _ in steps]
    return 1e3 * (times[-1] - times[WARM]) / (len(times) - 1 - WARM)


def main() -> int:
    """0 when every cell that fits was measured."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, help="file of the results; none is written unless given")
    options = parser.parse_args()
    if not torch.cuda.is_available():
        print("no CUDA device", file=sys.stderr)  # noqa: T201
        return 2
    bench = Bench()
    rows = []
    for batch, context in CELLS:
        cell = f"8B shape B{batch} L{context // 1024}k A{NUM_ANCHOR}"
        try:
            ours, theirs = measure(bench, batch, context)
        except (CapacityError, torch.OutOfMemoryError) as error:
            say(f"left out: {cell} ({str(error).splitlines()[0]})")
            continue
        finally:
            gc.collect()
            torch.cuda.empty_cache()
        rows.append(row(cell, f"decode step, mixture {G}", ours, {"v2.5": theirs}, theirs, "ms"))
    if options.out is not None:
        write_results(
            "baseline_v25",
            rows,
            device=torch.cuda.get_device_name(),
            command="python -m benchmarks.baseline_v25",
            packages=("torch", "triton"),
            path=options.out,
        )
    return 0


def measure(bench: Bench, batch: int, context: int) -> tuple[float, float]:
    """Milliseconds of a step of our engine without a log, and of v2.5, over the same pool."""
    pages = -(-(context + NEW_TOKENS) // 16) + 2
    pool = PagePool(bench.decoder.page_layout(16), batch * pages + NUM_ANCHOR // 16 + 1, device="cuda")
    pinned, prompts = bench.pin(pool), bench.prompts(batch, context)
    engine = Engine(bench.decoder, pool, decode=lambda ids: str(len(ids)), model=MODEL)
    ours = ms_per_step(engine_steps(engine, pinned, prompts, NEW_TOKENS, g=G))
    theirs = V25(bench.decoder, pool, pinned, G).generate(prompts, NEW_TOKENS).ms_per_step
    return round(ours, 3), round(theirs, 3)


if __name__ == "__main__":
    sys.exit(main())
