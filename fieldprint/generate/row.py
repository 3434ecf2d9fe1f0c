"""One request inside the engine: its tokens, its pages, and how far they are computed and committed."""

import numpy as np
from numpy.typing import NDArray

from fieldprint.commit.committer import CommittedPage, NewPage, RequestJob, RequestTerms
from fieldprint.generate.request import GenerationRequest
from fieldprint.kvcache import PagedSequence, PagePool, SlotHasher
from fieldprint.kvcache.slot_hash import Digests, Slots


class Row:
    """The state of a request: row `index` of the batch, for as long as the batch lives.

    Positions count the request's own context from 0 (the anchor's are not among them). K/V is computed for positions
    below `sequence.length`, and its digest known for those below `hashed`; `tokens` goes one further than K/V while an
    answer is being generated.
    """

    def __init__(self, index: int, request: GenerationRequest, pool: PagePool, terms: RequestTerms) -> None:
        self.index = index
        self.request = request
        self.terms = terms
        prefix = request.prefix
        self.sequence = PagedSequence(pool) if prefix is None else prefix.sequence.fork()
        self.chunks: list[tuple[int, int]] = [] if prefix is None else list(prefix.chunks)
        self.prompt = (() if prefix is None else prefix.tokens) + request.prompt
        self.tokens = list(self.prompt)
        self.digests = np.zeros((len(self.prompt) + request.max_new_tokens, 32), dtype=np.uint8)
        self.hashed = 0
        self.checked_at = 0  # the step at which everything bound was checked last
        self.scrubbed = 0  # held positions that the rotation has checked since then
        if prefix is not None:
            self.hashed = len(prefix.tokens)
            self.digests[: self.hashed] = prefix.digests
        self.pages: list[CommittedPage] = []
        self.failed: str | None = None  # why its last commitment failed, when that was the log's doing
        self.reason: str | None = None
        self.finished = False

    @property
    def prompt_len(self) -> int:
        """Tokens of the prompt, a shared prefix included."""
        return len(self.prompt)

    @property
    def generated(self) -> tuple[int, ...]:
        """Tokens of the answer so far."""
        return tuple(self.tokens[self.prompt_len :])

    @property
    def num_generated(self) -> int:
        """Tokens of the answer so far, counted."""
        return len(self.tokens) - self.prompt_len

    @property
    def committed(self) -> int:
        """Positions that are final."""
        return min(len(self.pages) * self.sequence.page_size, len(self.tokens))

    @property
    def provisional(self) -> int:
        """Generated tokens that are not final."""
        return len(self.tokens) - max(self.committed, self.prompt_len)

    @property
    def decoding(self) -> bool:
        """Whether the prompt is computed and the answer is not complete."""
        return self.reason is None and len(self.tokens) > self.prompt_len

    def plan_chunks(self, chunk_size: int) -> None:
        """Append the prefill chunks of the rest of the prompt, at multiples of `chunk_size` from its start."""
        start = self.chunks[-1][1] if self.chunks else 0
        while start < self.prompt_len:
            stop = min(start + chunk_size, self.prompt_len)
            self.chunks.append((start, stop))
            start = stop

    def chunk_to_do(self) -> tuple[int, int] | None:
        """The next prefill chunk, or None when the prompt is computed."""
        return next(((a, b) for a, b in self.chunks if a >= self.sequence.length), None)

    def accept(self, token: int) -> None:
        """Take a generated token; ends the answer at a stop token or at the limit."""
        self.tokens.append(token)
        if token in self.request.stop_ids:
            self.reason = "stop"
        elif self.num_generated >= self.request.max_new_tokens:
            self.reason = "length"

    def take_digests(self, start: int, digests: Digests) -> None:
        """Bind the slots of positions from `start` on, again after a rollback; what is committed stays bound as it was.

        A committed position that is computed again from damaged pages then differs from what is bound to it.
        """
        if start != self.hashed:
            raise ValueError(f"position {self.hashed} is the next to be bound, not {start}")
        self.hashed += len(digests)
        shared = 0 if self.request.prefix is None else len(self.request.prefix.tokens)
        first = min(max(start, self.committed, shared), self.hashed)
        self.digests[first : self.hashed] = digests[first - start :]

    @property
    def all_hashed(self) -> bool:
        """Whether every position whose K/V is there is bound."""
        return self.hashed == self.sequence.length

    def complete_pages(self) -> int:
        """Pages that can be committed now: whole ones, and the last one when the answer is complete."""
        if self.reason is not None and self.all_hashed:
            return -(-len(self.tokens) // self.sequence.page_size)
        return self.hashed // self.sequence.page_size

    def resume_position(self) -> int:
        """Where computing would start again after a rollback: before the last committed position, or at its chunk."""
        if self.committed > self.prompt_len:
            return self.committed - 1
        last = max(0, min(self.committed, self.prompt_len - 1))
        # Earlier chunks of a prefix are known by their digests, and may be evicted.
        if self.request.prefix is not None:
            last = max(last, self.request.prefix.chunks[-1][0])
        return max((a for a, _ in self.chunks if a <= last), default=0)

    def roll_back(self) -> None:
        """Forget what is not committed; the next step computes from `resume_position`."""
        resume = self.resume_position()
        self.tokens = self.tokens[: max(self.committed, self.prompt_len)]
        if self.committed <= self.prompt_len:
            self.tokens = list(self.prompt)
        self.reason = None
        self.sequence.truncate(min(resume, self.sequence.length))
        self.hashed = min(self.hashed, self.sequence.length)

    def evict(self, window: int | None, num_sinks: int, *, verified: bool) -> None:
        """Release pages that no query from `resume_position` on can see."""
        if window is not None:
            known = min(self.sequence.length, len(self.tokens) - 1)  # a step in flight is one further
            resume = self.resume_position() if verified else known
            # With a window of 1 the page before `resume` is seen by nobody, and still its end is where a rollback goes.
            self.sequence.evict_before(resume - max(window, 2) + 1, num_sinks=num_sinks)

    def held(self) -> tuple[NDArray[np.int64], Slots, Digests]:
        """The bound positions whose pages are still held, their slots, and what is bound to them."""
        slots = self.sequence.slots(0, self.hashed)
        here = slots >= 0
        if here.all():  # views, where copies would be most of a job's cost
            return np.arange(self.hashed), slots, self.digests[: self.hashed]
        positions = np.nonzero(here)[0]
        return positions, slots[positions], self.digests[positions]

    def damaged_pages(self, hasher: SlotHasher) -> list[int]:
        """Numbers of the held pages with a slot that is not what is bound to it."""
        positions, slots, expected = self.held()
        differs = (hasher.now(slots) != expected).any(1)
        return [int(index) for index in np.unique(positions[differs] // self.sequence.page_size)]

    def job(self, text: str | None) -> RequestJob:
        """This request's part of a commit job: everything bound is checked; `text` when the answer is complete."""
        size = self.sequence.page_size
        new = []
        for index in range(len(self.pages), self.complete_pages()):
            start, stop = index * size, min((index + 1) * size, len(self.tokens))
            digests = self.digests[start : min(stop, self.hashed)].copy()
            new.append(NewPage(index, start, tuple(self.tokens[start:stop]), digests))
        positions, slots, expected = self.held()
        previous = self.pages[-1].leaf_hash if self.pages else None
        return RequestJob(
            self.index,
            self.terms,
            len(self.pages),
            previous,
            positions,
            slots,
            expected,
            tuple(new),
            text,
            self.failed,
        )
