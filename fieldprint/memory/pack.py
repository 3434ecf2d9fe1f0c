"""The best memories under a token budget, laid out as the text of a candidate: an artifact that nobody has signed yet.

    Memories: 2

    1. observation, 2026-11-24T08:00:00Z, source cli, labels untrusted
    | The user keeps a falcon.
    | It is called Ada.

    2. memory, 2026-11-25T09:30:00Z, source agent, no labels
    | Ada is a bird of prey.

Every line of a memory's text begins with "| ", and no line of the layout does, so a text cannot write a head of its own;
`unpack` reads back what was packed. A text holds no end of a line but the newline (`Memory` refuses others).
"""

import re
import unicodedata
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

import numpy as np

from fieldprint.anchor.artifact import MAX_TEXT_BYTES, AnchorArtifact, format_time
from fieldprint.errors import CapacityError, FormatError
from fieldprint.memory.memory import Memory, union
from fieldprint.memory.store import Found, MemoryStore

HEAD = re.compile(r"(\d+)\. ([a-z]+), (\S+), source (\S+), (?:no labels|labels (\S+(?: \S+)*))")


@dataclass(frozen=True, slots=True)
class Packed:
    """A candidate, the memories in it from the best on, its tokens, and ids of those that hold a control token."""

    candidate: AnchorArtifact
    memories: tuple[Found, ...]
    tokens: int
    refused: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Choice:
    """How the best are chosen: greedily, by (1 - diversity) * worth - diversity * (largest cosine to one that is chosen).

    worth = (1 - recency) * cosine to the query + recency * 0.5 ** (age / half_life): Carbonell and Goldstein's maximal
    marginal relevance (1998) with an age.
    """

    diversity: float = 0.3
    recency: float = 0.1
    half_life: timedelta = timedelta(days=30)

    def __post_init__(self) -> None:
        if not 0 <= self.diversity <= 1 or not 0 <= self.recency <= 1:
            raise ValueError("diversity and recency are between 0 and 1")
        if self.half_life <= timedelta(0):
            raise ValueError("half_life must be positive")

    def worth(self, found: Found, now: datetime) -> float:
        """What a memory is worth alone."""
        age = max(now - found.memory.time, timedelta(0))
        freshness: float = 0.5 ** (age / self.half_life)
        return (1 - self.recency) * found.score + self.recency * freshness


def pack(
    store: MemoryStore,
    found: Sequence[Found],
    budget: int,
    count_tokens: Callable[[str], int],
    *,
    name: str,
    now: datetime,
    lifetime: timedelta,
    choice: Choice | None = None,
    is_anchor: Callable[[str], bool] | None = None,
    reserved: Collection[str] = (),
) -> Packed:
    """A candidate of kind memory that still has to be signed, verified and promoted.

    Its taint is the union of the labels of what was packed, as the store has them now. Its parents are the ids of what was
    packed, and of all that it was derived from, that are digests of registered anchors.

    Args:
        store: that gave `found`; labels and lineage are read again.
        found: what to choose from, as `search` gives it.
        budget: the most tokens of the whole text.
        count_tokens: tokens of a text under the model that will be anchored.
        name: of the anchor.
        now: the time from which it is valid, in whole seconds.
        lifetime: how long it is valid.
        choice: how the best are chosen.
        is_anchor: whether the registry has an anchor with this digest; without it there are no parents.
        reserved: what the model's tokenizer reads as a control token, as "<|im_end|>"; a memory that holds one could end
            the system message, and is left out.

    Raises:
        CapacityError: not even one memory fits.
    """
    stored = [(each, store.get(each.memory.id)) for each in found]
    current = [Found(memory, each.score, each.vector) for each, memory in stored if memory is not None]
    refused = tuple(each.memory.id for each in current if holds(each.memory.text, reserved))
    current = [each for each in current if each.memory.id not in refused]
    chosen, tokens = _choose(current, budget, count_tokens, choice or Choice(), now)
    if not chosen:
        raise CapacityError(
            f"none of {len(current)} memories fits into {budget} tokens"
            + (f"; {len(refused)} more hold a control token of the model" if refused else ""),
            remedy="Give a larger budget, or search for something else",
        )
    digests = {each.memory.id for each in chosen}
    digests |= {digest for each in chosen for digest in store.ancestors(each.memory.id)}
    candidate = AnchorArtifact(
        name=name,
        kind="memory",
        text=lay_out([each.memory for each in chosen]),
        not_before=now,
        not_after=now + lifetime,
        parents=tuple(sorted(digest for digest in digests if is_anchor is not None and is_anchor(digest))),
        taint=union(*(each.memory.taint for each in chosen)),
    )
    return Packed(candidate, tuple(chosen), tokens, refused)


def _choose(
    found: Sequence[Found],
    budget: int,
    count_tokens: Callable[[str], int],
    choice: Choice,
    now: datetime,
) -> tuple[list[Found], int]:
    """The chosen ones, best first, and the tokens of their text; one that does not fit is passed over."""
    waiting = sorted(
        found, key=lambda each: each.memory.id
    )  # so that equals are chosen the same way every time
    worths = np.array([choice.worth(each, now) for each in waiting])
    nearest = np.zeros(len(waiting))  # no cosine below zero makes a memory better
    open_ = np.ones(len(waiting), bool)
    chosen: list[Found] = []
    tokens = 0
    while open_.any():
        values = (1 - choice.diversity) * worths - choice.diversity * nearest
        best = int(np.argmax(np.where(open_, values, -np.inf)))
        open_[best] = False
        text = lay_out([each.memory for each in (*chosen, waiting[best])])
        count = count_tokens(text)
        if count > budget or len(text.encode()) > MAX_TEXT_BYTES:
            continue
        chosen.append(waiting[best])
        tokens = count
        cosines = np.array([float(each.vector @ waiting[best].vector) for each in waiting])
        nearest = np.maximum(nearest, cosines)
    return chosen, tokens


def lay_out(memories: Collection[Memory]) -> str:
    """The text of a candidate, as the module's docstring shows it."""
    parts = [f"Memories: {len(memories)}"]
    for number, memory in enumerate(memories, 1):
        labels = f"labels {' '.join(memory.taint)}" if memory.taint else "no labels"
        head = f"{number}. {memory.kind}, {format_time(memory.time)}, source {memory.source}, {labels}"
        parts.append("\n".join([head, *(f"| {line}" for line in memory.text.split("\n"))]))
    return "\n\n".join(parts)


def holds(text: str, reserved: Collection[str]) -> bool:
    """Whether a control token is in the text, in any letter case or compatible form: tokenizers may normalise first."""
    plain = _plain(text)
    return any(token in text or _plain(token) in plain for token in reserved if token)


def _plain(text: str) -> str:
    return unicodedata.normalize("NFKC", text).casefold()


@dataclass(frozen=True, slots=True)
class PackedMemory:
    """What the layout says of one memory."""

    kind: str
    time: str
    source: str
    taint: tuple[str, ...]
    text: str


def unpack(text: str) -> list[PackedMemory]:
    """The memories that a candidate's text was laid out from.

    Raises:
        FormatError: `lay_out` did not write this.
    """
    first, *parts = text.split("\n\n")
    if first != f"Memories: {len(parts)}":
        raise FormatError("the text is no packed memories, or says another number of them")
    read: list[PackedMemory] = []
    for number, part in enumerate(parts, 1):
        head, *lines = part.split("\n")
        match = HEAD.fullmatch(head)
        if match is None or match[1] != str(number) or not lines:
            raise FormatError(f"packed memory {number} has no head")
        if not all(line.startswith("| ") for line in lines):
            raise FormatError(f"a line of packed memory {number} is not marked")
        taint = tuple((match[5] or "").split())
        read.append(PackedMemory(match[2], match[3], match[4], taint, "\n".join(line[2:] for line in lines)))
    return read
