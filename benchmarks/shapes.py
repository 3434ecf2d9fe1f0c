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
