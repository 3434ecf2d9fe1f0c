"""What verification costs a decode step on one GPU, beside v2.5; `python -m benchmarks.verification_gpu`.

Llama-3-8B's sizes with random weights in bf16, an anchor of 128 tokens under the mixture operator (which v2.5 has), contexts
whose K/V is drawn at random. A step with everything on hashes its new slots, the pinned slots, old slots under the budget
and, every 48 tokens, all that the tokens depend on, and commits them to a log on disk; the same steps are measured without a
log before and after. Steps are counted once the prompts are committed, from one token to the next, the host's work included.
"""

import argparse
import gc
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch

from benchmarks.attention_gpu import microseconds, row, say
from benchmarks.attention_peers import World, ours, pure_read
from benchmarks.baseline_v25 import V25, G, ms_per_step
from benchmarks.engine_gpu import MODEL, NUM_ANCHOR, Bench
from benchmarks.record import write_results
from fieldprint.blake3.pages import hash_pages
from fieldprint.errors import CapacityError
from fieldprint.generate import (
    AttentionSettings,
    Committed,
    Engine,
    Event,
    Finished,
    GenerationRequest,
    Provisional,
)
from fieldprint.generate.request import Prefix
from fieldprint.kvcache import PagedSequence, PagePool, SlotHasher
from fieldprint.promote import PinnedAnchor
from fieldprint.tlog import LogWriter

CELLS = tuple((batch, context) for context in (4096, 32768) for batch in (1, 8, 64))
NEW_TOKENS = 256
WARM = 8
MIXTURE = AttentionSettings("mixture", G)


@dataclass(slots=True)
class Timing:
    """When each token of row 0 came, and when everything was final; seconds."""

    prompt_len: int
    rows: int
    committed: dict[int, int] = field(default_factory=dict)
    times: list[float] = field(default_factory=list)
    end: float = 0.0

    def see(self, event: Event, *, with_log: bool) -> None:
        """Take an event; steps count once every prompt is committed."""
        if isinstance(event, Committed):
            self.committed[event.request] = event.upto
        elif isinstance(event, Provisional) and event.request == 0:
            ready = [upto >= self.prompt_len for upto in self.committed.values()]
            if not with_log or (len(ready) == self.rows and all(ready)):
                self.times.append(time.perf_counter())
        elif isinstance(event, Finished):
            self.end = time.perf_counter()

    @property
    def step_ms(self) -> float:
        """Milliseconds of a step, those of the beginning left out."""
        return 1e3 * (self.times[-1] - self.times[WARM]) / (len(self.times) - 1 - WARM)


class Place:
    """A pool with an anchor and `batch` contexts of random K/V, and an engine over it."""

    def __init__(self, bench: Bench, batch: int, context: int) -> None:
        pages = context // 16 + -(-(NEW_TOKENS + 1) // 16) + 2
        self.pool = PagePool(
            bench.decoder.page_layout(16), batch * pages + NUM_ANCHOR // 16 + 1, device="cuda"
        )
        for layer in self.pool.storage:
            layer.normal_()
        self.pinned: PinnedAnchor = bench.pin(self.pool)
        self.engine = Engine(bench.decoder, self.pool, decode=lambda ids: str(len(ids)), model=MODEL)
        hasher = SlotHasher(self.pool)
        self.prefixes = []
        tokens = tuple(range(1, context + 1))
        for _ in range(batch):
            sequence = PagedSequence(self.pool)
            sequence.reserve(context)
            sequence.length = context
            digests = np.concatenate([hasher.now(sequence.slots(a, a + 512)) for a in range(0, context, 512)])
            chunks = tuple((a, a + 512) for a in range(0, context, 512))
            self.prefixes.append(
                Prefix(tokens, sequence, chunks, digests, self.pinned.verified.digest, MIXTURE)
            )

    def requests(self, new_tokens: int) -> list[GenerationRequest]:
        """One request behind each context."""
        return [GenerationRequest((7,), new_tokens, prefix=prefix) for prefix in self.prefixes]

    def time(self, log: LogWriter | None, new_tokens: int = NEW_TOKENS) -> Timing:
        """An answer of every row."""
        timing = Timing(len(self.prefixes[0].tokens) + 1, len(self.prefixes))
        for event in self.engine.generate(
            self.requests(new_tokens), anchor=self.pinned, attention=MIXTURE, log=log
        ):
            timing.see(event, with_log=log is not None)
        return timing

    def v25(self, bench: Bench) -> float:
        """Milliseconds of a step of v2.5."""
        baseline = V25(bench.decoder, self.pool, self.pinned, G)
        contexts = [prefix.sequence for prefix in self.prefixes]
        return ms_per_step(baseline.steps([[7]] * len(contexts), 16, contexts))


def measure(bench: Bench, batch: int, context: int, log: LogWriter) -> list[dict[str, object]]:
    """The row of a cell, and of what is left to do when the last token is there."""
    place = Place(bench, batch, context)
    place.time(None, 8)  # compiles and captures
    before = place.time(None, 128).step_ms
    timing = place.time(log)
    after = place.time(None, 128).step_ms
    plain, everything = (before + after) / 2, timing.step_ms
    cell = f"8B shape B{batch} L{context // 1024}k A{NUM_ANCHOR}"
    beside = {"without verification": round(plain, 3), "before": round(before, 3), "after": round(after, 3)}
    beside["v2.5"] = round(place.v25(bench), 3)
    rows = [row(cell, "decode step, everything on", round(everything, 3), beside, plain, "ms")]
    tail = 1e3 * (timing.end - timing.times[-1])
    rows.append(row(cell, "last token to final", round(tail, 3), {}, None, "ms"))
    return rows


def hashing() -> list[dict[str, object]]:
    """BLAKE3 over much K/V, and over one step's slots beside that step's attention."""
    rows = []
    world = World([4096] * 64, 32, 8, 128, NUM_ANCHOR)
    storage = torch.randint(0, 256, (64, 8192, 2048), dtype=torch.uint8, device="cuda")
    slots = storage.permute(1, 0, 2)
    read = World([32768] * 8, 32, 8, 128, 0)
    taken = microseconds({
        "hash 1 GiB": lambda: hash_pages(slots),
        "hash 256 MiB": lambda: hash_pages(slots[:2048]),
        "hash 64": lambda: hash_pages(slots[:64]),
        "hash 64 + 128": lambda: hash_pages(slots[:192]),
        "hash 1": lambda: hash_pages(slots[:1]),
        "attention": ours(world),
        "read": pure_read(read),
    })  # fmt: skip
    rate = (read.k.nbytes + read.v.nbytes) / taken["read"] / 1e6
    for name, size in (("1 GiB", 2**30), ("256 MiB", 2**28)):
        speed = size / taken[f"hash {name}"] / 1e6
        say(f"BLAKE3 over {name}: {speed:.3f} TB/s, pure read {rate:.3f}")
        rows.append({
            "cell": f"{name} of slots of 128 KiB",
            "metric": "speed, BLAKE3",
            "unit": "TB/s",
            "ours": round(speed, 3),
            "peers": {"pure read (roof)": round(rate, 3)},
            "ratio": round(speed / rate, 3),
        })  # fmt: skip
    attention = 32 * taken["attention"]
    for name in ("hash 64", "hash 64 + 128", "hash 1"):
        beside = {"attention of 32 layers, B64 L4k": round(attention, 1)}
        rows.append(row(f"slots: {name[5:]}", "BLAKE3 of a step", taken[name], beside, attention))
    return rows


def main(arguments: Sequence[str] | None = None) -> int:
    """0 when every cell that fits was measured."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, help="file of the results; in benchmarks/results/ unless given")
    parser.add_argument("--quick", action="store_true", help="batches of 1 and 8 at 4k only")
    options = parser.parse_args(arguments)
    if not torch.cuda.is_available():
        print("no CUDA device", file=sys.stderr)  # noqa: T201
        return 2
    rows = hashing()
    torch.cuda.empty_cache()
    bench = Bench()
    with (
        tempfile.TemporaryDirectory() as folder,
        LogWriter(Path(folder) / "log", bench.signer, create=True) as log,
    ):
        for batch, context in CELLS[:2] if options.quick else CELLS:
            try:
                rows += measure(bench, batch, context, log)
            except (CapacityError, torch.OutOfMemoryError) as error:
                say(f"left out: batch {batch} at {context} ({str(error).splitlines()[0]})")
            gc.collect()
            torch.cuda.empty_cache()
    write_results(
        "verification_gpu",
        rows,
        device=torch.cuda.get_device_name(),
        command="python -m benchmarks.verification_gpu",
        packages=("torch", "triton", "blake3"),
        path=options.out,
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
