"""A seed becomes a plan: which faults strike after how many events, one by one and in bursts."""

import random
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

PINNED_KINDS = {
    "bit flip in a pinned page": 12,
    "bit flip in a pinned page, and the scrubber killed": 3,
    "swapped anchor": 6,
}
CONTEXT_KINDS = {
    "bit flip in a committed page": 14,
    "bit flip in the newest page": 14,
    "swapped pages of one request": 9,
    "swapped pages of two requests": 9,
    "zeroed page": 10,
    "stale page": 9,
    "page freed too early": 6,
}
SERVICE_KINDS = {
    "log refuses": 9,
    "log hangs": 2,
    "log forks": 9,
    "log lies": 12,
    "worker killed": 10,
}
KINDS = PINNED_KINDS | CONTEXT_KINDS | SERVICE_KINDS
"""Every kind, and how often it is drawn."""

MAX_STRIKES = 12


@dataclass(frozen=True, slots=True)
class Fault:
    """One fault of a plan; `seed` draws where it strikes among what is there by then."""

    kind: str
    seed: int


@dataclass(frozen=True, slots=True)
class Strike:
    """Faults that strike at one event: the first one `wait` tokens after the engine has got over the last strike.

    again: one more while the engine is rolling back.
    """

    wait: int
    faults: tuple[Fault, ...]
    again: Fault | None = None


@dataclass(frozen=True, slots=True)
class Plan:
    """What one run has to get over."""

    seed: int
    strikes: tuple[Strike, ...]


def plan_of(seed: int, kinds: Iterable[str] = KINDS, *, burst: int = 12) -> Plan:
    """The plan of a seed, always the same; drawn from `kinds` alone, up to `burst` faults at a time."""
    chance = random.Random(f"fieldprint fault plan {seed}")  # noqa: S311
    kinds = list(kinds)
    memory = [kind for kind in kinds if kind not in SERVICE_KINDS]
    return Plan(seed, tuple(_strike(chance, kinds, memory, burst) for _ in range(MAX_STRIKES)))


def _strike(chance: random.Random, kinds: Sequence[str], memory: Sequence[str], burst: int) -> Strike:
    faults = [_fault(chance, kinds)]
    if memory and chance.random() < 0.75:  # a burst has one fault of the log or the worker at most
        faults += [_fault(chance, memory) for _ in range(chance.randint(1, burst - 1))]
    again = _fault(chance, memory) if memory and chance.random() < 0.15 else None
    if any(fault.kind in SERVICE_KINDS for fault in faults):
        again = None  # three passes in a row may fail, and these two would be too many
    return Strike(chance.randrange(24), tuple(faults), again)


def _fault(chance: random.Random, kinds: Sequence[str]) -> Fault:
    (kind,) = chance.choices(kinds, [KINDS[kind] for kind in kinds])
    return Fault(kind, chance.getrandbits(32))
