"""What a batch asks at every step boundary, and how it goes on where an anchor must not be used any more."""

from dataclasses import replace
from hashlib import sha256
from typing import Protocol

from fieldprint.commit.leaf import SALT_SIZE
from fieldprint.generate.request import (
    AttentionSettings,
    Bypassed,
    Committed,
    Event,
    Finished,
    GenerationRequest,
    GenerationResult,
    Provisional,
    RolledBack,
)
from fieldprint.registry.gate import Ruling


class Gate(Protocol):
    """Whether generation may go on; `registry.gate.AnchorGate` is one."""

    def ruling(self) -> Ruling | None:
        """What must become of it now, or None: go on. Asked before every step, so it must be quick."""


def without_anchor(attention: AttentionSettings) -> AttentionSettings:
    """The same window and sinks, with no weight for an anchor."""
    return AttentionSettings(window=attention.window, num_sinks=attention.num_sinks)


def continuation(request: GenerationRequest, before: GenerationResult) -> GenerationRequest:
    """The request that goes on where `before` ended: all of it is a prompt, computed anew."""
    return replace(
        request,
        prompt=before.prompt + before.tokens,
        max_new_tokens=request.max_new_tokens - len(before.tokens),
        salt=continued_salt(before.salt),
        prefix=None,
    )


def continued_salt(salt: bytes) -> bytes:
    """The salt of what goes on without the anchor: SHA-256 over the old one and what it is for, cut to 16 bytes."""
    return sha256(b"without the anchor" + salt).digest()[:SALT_SIZE]


def renumbered(event: Event, indices: list[int], before: dict[int, GenerationResult]) -> Event:
    """The event of a continued batch as one of the batch that it continues."""
    index = indices[event.request]
    match event:
        case Finished():
            return Finished(index, replace(event.result, before=before[index]))
        case Provisional() | Committed() | RolledBack() | Bypassed():
            return replace(event, request=index)
