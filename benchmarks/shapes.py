"""Named shapes, so that a result says what it is of."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class DecodeShape:
    """A batch of prompts of equal length, and how many tokens each is continued by."""

    name: str
    batch: int
    context: int
    new_tokens: int
    repeats: int


DECODE = (
    DecodeShape("batch 1, context 1k", 1, 1024, 96, 3),
    DecodeShape("batch 1, context 4k", 1, 4096, 96, 3),
    DecodeShape("batch 8, context 1k", 8, 1024, 96, 3),
    DecodeShape("batch 8, context 4k", 8, 4096, 96, 3),
)
FIRST_TOKEN_CONTEXT = 2048
FIRST_TOKEN_REPEATS = 5
STARTUP_REPEATS = 7


@dataclass(frozen=True, slots=True)
class LogShape:
    """What the log's measurements do."""

    entry_size: int = 200
    entries: int = 200_000  # of a run of the throughput
    threads: int = 2
    rates: tuple[int, ...] = (5_000, 1_000, 10)  # single entries a second, an open loop
    latency_seconds: int = 20
    sizes: tuple[int, ...] = (10**4, 10**5, 10**6, 10**7)
    bulk: int = 2**16  # entries of an append while the log grows
    batches: int = 100  # of 256 entries each, appended to the grown log
    cold: int = 100  # proofs made by a fresh reader each
    proofs: int = 2_000
    rounds: int = 5
    audited: int = 200_000  # entries of the middle that are read and checked


LOG = LogShape()
