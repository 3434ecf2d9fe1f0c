"""Rebuilding damaged context pages from committed tokens, bit for bit."""

from collections.abc import Sequence
from typing import Protocol

from torch import Tensor

from fieldprint.errors import IntegrityError
from fieldprint.generate.row import Row
from fieldprint.kvcache import EVICTED, PagedSequence, PagePool


class Replayer(Protocol):
    """What a batch offers: the two forward passes that computed every page in the first place."""

    pool: PagePool
    window: int | None
    num_sinks: int

    def forward_chunk(self, sequence: PagedSequence, tokens: Sequence[int]) -> Tensor:
        """A prefill chunk behind the end of `sequence`."""

    def forward_rows(
        self, cells: dict[int, tuple[PagedSequence, int]], masses: list[Tensor] | None = None
    ) -> Tensor:
        """A decode step."""


def rebuild_pages(replayer: Replayer, row: Row, damaged: Sequence[int]) -> None:
    """Write the `damaged` pages of `row` again: the passes that made them are run again, in their shapes.

    A twin of the sequence is computed from the last place before the damage whose visible pages are all there, else
    from the start; each damaged page is copied from the twin once its digest is the committed one.

    Raises:
        IntegrityError: the recomputed page is not the one that was committed.
    """
    expected = {check.index: check for check in row.checks()}
    wanted = [
        index for index in damaged if index in expected and not _intact(row, expected[index].digest, index)
    ]
    if not wanted:
        return
    size = row.sequence.page_size
    twin = _twin(replayer, row, set(wanted))
    try:
        end = (max(wanted) + 1) * size
        while twin.length < end:
            _replay_next(replayer, row, twin)
            for index in [i for i in wanted if twin.length >= (i + 1) * size]:
                if replayer.pool.digest(twin.pages[index]) != expected[index].digest:
                    raise IntegrityError(
                        f"page {index} was rebuilt from committed tokens and differs from what was committed",
                        remedy="Audit the receipts of this request by recomputation",
                    )
                target = replayer.pool.storage[:, :, row.sequence.pages[index]]
                target.copy_(replayer.pool.storage[:, :, twin.pages[index]])
                wanted.remove(index)
            if replayer.window is not None and wanted:
                oldest = min(twin.length - replayer.window + 1, min(wanted) * size)
                twin.evict_before(oldest, num_sinks=replayer.num_sinks)
    finally:
        twin.close()


def _intact(row: Row, digest: bytes, index: int) -> bool:
    return row.sequence.pool.digest(row.sequence.pages[index]) == digest


def _twin(replayer: Replayer, row: Row, damaged: set[int]) -> PagedSequence:
    """A sequence that shares the row's pages up to the place where the replay starts."""
    size = row.sequence.page_size
    first = min(damaged) * size
    places = sorted(
        {a for a, _ in row.chunks if a <= first} | ({first} if first >= row.prompt_len else set())
    )
    for place in reversed(places):
        oldest = 0 if replayer.window is None else max(0, place - replayer.window + 1)
        seen = [*range(oldest // size, -(-place // size))]
        if replayer.window is not None:
            seen += range(-(-min(place, replayer.num_sinks) // size))
        pages = row.sequence.pages
        if place % size == 0 and all(pages[i] != EVICTED and i not in damaged for i in seen):
            twin = PagedSequence(row.sequence.pool)
            twin.pages = pages[: place // size]
            twin.length = place
            twin.pool.share(twin.held())
            return twin
    return PagedSequence(row.sequence.pool)


def _replay_next(replayer: Replayer, row: Row, twin: PagedSequence) -> None:
    """The pass that computed the position behind the twin's end."""
    for start, stop in row.chunks:
        if start == twin.length:
            replayer.forward_chunk(twin, row.tokens[start:stop])
            return
    replayer.forward_rows({row.index: (twin, row.tokens[twin.length])})
