"""How soon a flipped bit is found on one GPU, and whether anything that came after it was final; `python -m benchmarks.detection_gpu`.

Llama-3-8B's sizes with random weights in bf16, eight contexts of 4,096 tokens. A stream of its own flips one bit in the memory
of a page while steps run; nothing waits for it, as nothing waits for a fault. Steps count from the last token that was given
out before the flip to the last one before the rollback: the step that the fault fell into and those after it.
"""

import argparse
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

import torch

from benchmarks.attention_gpu import row
from benchmarks.engine_gpu import NUM_ANCHOR, Bench
from benchmarks.record import write_results
from benchmarks.verification_gpu import MIXTURE, Place
from fieldprint.generate import Committed, Provisional, RolledBack
from fieldprint.tlog import LogWriter

BATCH, CONTEXT, NEW_TOKENS = 8, 4096, 140
MOMENTS = (66, 75, 84, 93, 102)  # tokens of row 0 after which a bit is flipped
GENERATED = (CONTEXT + 16) // 16  # a page of generated tokens


def flip(place: Place, page: int, moment: int, stream: torch.cuda.Stream) -> None:
    """Change one bit of a page beside the steps in flight."""
    raw = place.pool.storage.view(torch.uint8)
    with torch.cuda.stream(stream):
        raw[moment % 32, 1, page, 2, 0, 9] ^= 4
    stream.synchronize()


def detect(
    place: Place, log: LogWriter, where: str, moment: int, stream: torch.cuda.Stream
) -> tuple[int, int]:
    """Steps until the rollback, and how many tokens behind the flip were final before it.

    Raises:
        RuntimeError: nothing was rolled back.
    """
    seen, position, early = 0, -1, 0
    events = place.engine.generate(
        place.requests(NEW_TOKENS), anchor=place.pinned, attention=MIXTURE, log=log
    )
    for event in events:
        if isinstance(event, Provisional) and event.request == 0:
            seen += 1
            if seen == moment:
                page = place.pinned.pages[3] if where == "pinned" else place.engine.pages_of(0)[GENERATED]
                flip(place, page, moment, stream)
                position = event.position
        elif position >= 0 and isinstance(event, Committed) and event.request == 0:
            early += max(0, event.upto - position - 1)
        elif position >= 0 and isinstance(event, RolledBack) and event.request == 0:
            events.close()
            return seen - moment, early
    raise RuntimeError(f"a bit that was flipped in a {where} page at token {moment} was not found")


def measure(bench: Bench) -> list[dict[str, object]]:
    """Two rows for each place of a fault: the most steps of any try, and the tokens that were final too early in all."""
    rows, cell = [], f"8B shape B{BATCH} L{CONTEXT // 1024}k A{NUM_ANCHOR}"
    place, stream = Place(bench, BATCH, CONTEXT), torch.cuda.Stream(priority=-1)
    with (
        tempfile.TemporaryDirectory() as folder,
        LogWriter(Path(folder) / "log", bench.signer, create=True) as log,
    ):
        place.time(log, 8)
        flip(place, place.pinned.pages[0], 1, stream)  # compiles
        place.pinned.rewrite()
        for where in ("pinned", "context"):
            found = [detect(place, log, where, moment, stream) for moment in MOMENTS]
            steps = sorted(taken for taken, _ in found)
            beside = {"median": steps[len(steps) // 2], "tries": len(steps)}
            rows.append(row(cell, f"to detection, {where}", steps[-1], beside, None, "steps"))
            early = sum(tokens for _, tokens in found)
            name = f"final too early, {where}"
            rows.append(row(cell, name, early, {}, None, "tokens") | {"metric": name})
    return rows


def main(arguments: Sequence[str] | None = None) -> int:
    """0 when every flipped bit was found."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, help="file of the results; in benchmarks/results/ unless given")
    options = parser.parse_args(arguments)
    if not torch.cuda.is_available():
        print("no CUDA device", file=sys.stderr)  # noqa: T201
        return 2
    write_results(
        "detection_gpu",
        measure(Bench()),
        device=torch.cuda.get_device_name(),
        command="python -m benchmarks.detection_gpu",
        packages=("torch", "triton", "blake3"),
        path=options.out,
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
