"""One request in the ledger: what of it is bound, committed, and still held back from its client."""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fieldprint.adapters.vllm.anchors import ServedAnchor
from fieldprint.adapters.vllm.messages import Digests, Slots, Span
from fieldprint.commit.committer import CommittedPage, NewPage, RequestJob, RequestTerms
from fieldprint.generate.gate import continued_salt

NO_POSITIONS: NDArray[np.int64] = np.empty(0, dtype=np.int64)
NO_DIGESTS: Digests = np.empty((0, 32), dtype=np.uint8)


@dataclass(frozen=True, slots=True)
class Ending:
    """How a request ends once all of it is committed: vLLM's status and stop reason; `goes_on` without its anchor.

    ruled: by a gate, and not by its last token, which vLLM would leave out of the text as one that stops.
    """

    status: Any
    stop_reason: int | str | None = None
    goes_on: bool = False
    heard: bool = True  # whether a client still waits for it
    ruled: bool = False


class Row:
    """The state of a request, for as long as vLLM has it. Positions count the request's own context.

    Args:
        key: a number of its own.
        request: vLLM's; its list of tokens is read, and cut at a roll-back.
        anchor: whose leaves it makes.
        terms: of its leaves.
    """

    def __init__(self, key: int, request: Any, anchor: ServedAnchor, terms: RequestTerms) -> None:
        self.key, self.request, self.anchor, self.terms = key, request, anchor, terms
        self.blocks: list[int] = []
        self.hashed = 0  # positions whose digests are bound
        self.verified = 0  # positions that the last clean pass looked at
        self.pages: list[CommittedPage] = []
        self.ending: Ending | None = None
        self.held: list[Any] = []  # outputs whose tokens are not final
        self.epoch = 0  # of its blocks: what was asked before they were taken away does not count
        self.failed: str | None = None
        self.client_salt: str | None = None  # of the prefix cache, as the client gave it
        self.parts = 0  # chains before this one, under anchors that had to be left

    @property
    def tokens(self) -> list[int]:
        """Prompt and answer so far."""
        tokens: list[int] = self.request._all_token_ids
        return tokens

    @property
    def prompt_len(self) -> int:
        """Tokens of what this chain of leaves calls the prompt."""
        return self.terms.prompt_len

    def committed(self, size: int) -> int:
        """Positions that are final; `size` is a block's."""
        return min(len(self.pages) * size, len(self.tokens))

    def provisional(self, size: int) -> int:
        """Generated tokens that are not final."""
        return len(self.tokens) - max(self.committed(size), self.prompt_len)

    @property
    def all_hashed(self) -> bool:
        """Whether every position whose K/V there will be is bound; the last token's is never computed."""
        return self.hashed >= len(self.tokens) - 1

    def complete_pages(self, size: int) -> int:
        """Pages that can be committed now: whole ones, and the last when the answer is complete."""
        if self.ending is not None and self.all_hashed:
            return -(-len(self.tokens) // size)
        return min(self.hashed, len(self.tokens)) // size

    def span(self) -> Span:
        """Everything bound, for a check."""
        return Span(tuple(self.blocks), self.hashed)

    def slots(self, start: int, stop: int, size: int) -> Slots:
        """Where positions [start, stop) lie."""
        positions = np.arange(start, stop, dtype=np.int64)
        return np.array(self.blocks, dtype=np.int64)[positions // size] * size + positions % size

    def job(self, bound: Digests, size: int, text: str | None) -> RequestJob:
        """Its part of a commit job; what the workers found is put in later. `text` is of a complete answer.

        Args:
            bound: [slots of the cache, 32].
            size: tokens of a block.
            text: where the answer is complete.
        """
        new = []
        for index in range(len(self.pages), self.complete_pages(size)):
            start, stop = index * size, min((index + 1) * size, len(self.tokens))
            digests = bound[self.slots(start, min(stop, self.hashed), size)]
            new.append(NewPage(index, start, tuple(self.tokens[start:stop]), digests))
        previous = self.pages[-1].leaf_hash if self.pages else None
        return RequestJob(
            self.key,
            self.terms,
            len(self.pages),
            previous,
            NO_POSITIONS,
            NO_POSITIONS,
            NO_DIGESTS,
            tuple(new),
            text,
            self.failed,
        )

    def lose_blocks(self) -> None:
        """Its blocks were taken away: what is computed again is bound again."""
        self.epoch += 1
        self.hashed = self.verified = 0
        self.blocks = []

    def go_on_without(
        self, none: ServedAnchor, request: str, attention: dict[str, str | int | bool | None]
    ) -> None:
        """Begin the chain of what comes after the anchor was left; `request` is the digest of that."""
        self.parts += 1
        self.anchor, self.ending, self.pages, self.failed = none, None, [], None
        self.terms = RequestTerms(
            request=request,
            salt=continued_salt(self.terms.salt),
            prompt_len=len(self.tokens),
            model=self.terms.model,
            anchor=None,
            fieldprint=None,
            sampler=self.terms.sampler,
            attention=attention,
        )
