"""One request inside the engine: its tokens, its pages, and how far they are computed and committed."""

from fieldprint.commit.committer import CommittedPage, NewPage, PageCheck, RequestJob, RequestTerms
from fieldprint.generate.request import GenerationRequest
from fieldprint.kvcache import EVICTED, PagedSequence, PagePool


class Row:
    """The state of a request: row `index` of the batch, for as long as the batch lives.

    Positions count the request's own context from 0 (the anchor's are not among them). K/V is computed for positions
    below `sequence.length`; `tokens` goes one further while an answer is being generated.
    """

    def __init__(self, index: int, request: GenerationRequest, pool: PagePool, terms: RequestTerms) -> None:
        self.index = index
        self.request = request
        self.terms = terms
        prefix = request.prefix
        self.sequence = PagedSequence(pool) if prefix is None else prefix.sequence.fork()
        self.chunks: list[tuple[int, int]] = [] if prefix is None else list(prefix.chunks)
        self.prefix_digests = () if prefix is None else prefix.digests
        self.prompt = (() if prefix is None else prefix.tokens) + request.prompt
        self.tokens = list(self.prompt)
        self.pages: list[CommittedPage] = []
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
        elif len(self.generated) >= self.request.max_new_tokens:
            self.reason = "length"

    def complete_pages(self) -> int:
        """Pages that can be committed now: whole ones, and the last one when the answer is complete."""
        if self.reason is not None:
            return -(-len(self.tokens) // self.sequence.page_size)
        return self.sequence.length // self.sequence.page_size

    def resume_position(self) -> int:
        """Where computing would start again after a rollback: before the last committed position, or at its chunk."""
        if self.committed > self.prompt_len:
            return self.committed - 1
        last = max(0, min(self.committed, self.prompt_len - 1))
        if (
            self.request.prefix is not None
        ):  # its earlier chunks are known by their digests, and may be evicted
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

    def evict(self, window: int | None, num_sinks: int, *, verified: bool) -> None:
        """Release pages that no query from `resume_position` on can see."""
        if window is not None:
            known = min(self.sequence.length, len(self.tokens) - 1)  # a step in flight is one further
            resume = self.resume_position() if verified else known
            # With a window of 1 the page before `resume` is seen by nobody, and still its end is where a rollback goes.
            self.sequence.evict_before(resume - max(window, 2) + 1, num_sinks=num_sinks)

    def checks(self) -> tuple[PageCheck, ...]:
        """The committed (or prefix) pages that are still held, with the digests that they must have."""
        size = self.sequence.page_size
        known = [page.digest for page in self.pages]
        known += list(self.prefix_digests[len(known) :])
        checks = []
        for index, digest in enumerate(known):
            filled = min(size, self.sequence.length - index * size)
            if index < len(self.sequence.pages) and self.sequence.pages[index] != EVICTED and filled == size:
                checks.append(PageCheck(index, self.sequence.pages[index], size, digest))
        return tuple(checks)

    def job(self, text: str | None) -> RequestJob:
        """This request's part of a commit job; `text` when the answer is complete."""
        size = self.sequence.page_size
        new = []
        for index in range(len(self.pages), self.complete_pages()):
            start, stop = index * size, min((index + 1) * size, len(self.tokens))
            digest = self.prefix_digests[index] if index < len(self.prefix_digests) else None
            filled = max(0, min(size, self.sequence.length - start))
            page = self.sequence.pages[index] if index < len(self.sequence.pages) else EVICTED
            new.append(NewPage(index, page, filled, start, tuple(self.tokens[start:stop]), digest))
        previous = self.pages[-1].leaf_hash if self.pages else None
        return RequestJob(self.index, self.terms, previous, self.checks(), tuple(new), text)


def page_digests(sequence: PagedSequence, done: tuple[bytes, ...]) -> tuple[bytes, ...]:
    """`done`, and the digests of the sequence's further whole pages."""
    size = sequence.page_size
    whole = sequence.length // size
    return done + tuple(sequence.pool.digest(sequence.pages[i], size) for i in range(len(done), whole))
