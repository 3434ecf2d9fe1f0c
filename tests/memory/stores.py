"""What the tests of the memory share: an encoder that is cheap, and stores on both databases."""

from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from hashlib import sha256
from pathlib import Path

import numpy as np

from fieldprint.memory import Encoder, Memory, MemoryStore

TIME = datetime(2026, 1, 1, tzinfo=UTC)


def scatter(texts: Sequence[str]) -> np.ndarray:
    """A direction for each text, from its hash: texts that differ in one letter are as far apart as any."""
    seeds = [int.from_bytes(sha256(text.encode()).digest()[:8]) for text in texts]
    return np.stack([np.random.default_rng(seed).standard_normal(96) for seed in seeds]).astype(np.float32)


SCATTER = Encoder("scatter", sha256(b"scatter").hexdigest(), 96, scatter)


def open_store(url: str | Path, encoder: Encoder = SCATTER) -> MemoryStore:
    """A store that is made where there is none."""
    return MemoryStore(str(url), encoder, create=True)


def memory(
    text: str, *taint: str, parents: Sequence[str] = (), kind: str = "observation", age_days: float = 0
) -> Memory:
    """A memory of the test's time."""
    time = TIME - timedelta(days=age_days)
    return Memory(text, kind, "test", time, tuple(sorted(set(taint))), tuple(sorted(set(parents))))
