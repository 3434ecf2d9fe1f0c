"""Rebuilding damaged context pages from committed tokens, bit for bit."""

from collections.abc import Sequence

from fieldprint.errors import IntegrityError
from fieldprint.generate.passes import Passes, Steps
from fieldprint.generate.row import Row
from fieldprint.kvcache import EVICTED, PagedSequence


def rebuild_pages(passes: Passes, steps: Steps, row: Row, damaged: Sequence[int]) -> None:
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
    twin = _twin(passes, row, set(wanted))
    try:
        end = (max(wanted) + 1) * size
        while twin.length < end:
            _replay_next(passes, steps, row, twin)
            for index in [i for i in wanted if twin.length >= (i + 1) * size]:
                if passes.pool.digest(twin.pages[index]) != expected[index].digest:
                    raise IntegrityError(
                        f"page {index} was rebuilt from committed tokens and differs from what was committed",
                        remedy="Audit the receipts of this request by recomputation",
                    )
                target = passes.pool.storage[:, :, row.sequence.pages[index]]
                target.copy_(passes.pool.storage[:, :, twin.pages[index]])
                wanted.remove(index)
            if passes.window is not None and wanted:
                oldest = min(twin.length - passes.window + 1, min(wanted) * size)
                twin.evict_before(oldest, num_sinks=passes.num_sinks)
    finally:
        twin.close()


def _intact(row: Row, digest: bytes, index: int) -> bool:
    return row.sequence.pool.digest(row.sequence.pages[index]) == digest


def _twin(passes: Passes, row: Row, damaged: set[int]) -> PagedSequence:
    """A sequence that shares the row's pages up to the place where the replay starts."""
    size = row.sequence.page_size
    first = min(damaged) * size
    places = sorted(
        {a for a, _ in row.chunks if a <= first} | ({first} if first >= row.prompt_len else set())
    )
    for place in reversed(places):
        oldest = 0 if passes.window is None else max(0, place - passes.window + 1)
        seen = [*range(oldest // size, -(-place // size))]
        if passes.window is not None:
            seen += range(-(-min(place, passes.num_sinks) // size))
        pages = row.sequence.pages
        if place % size == 0 and all(pages[i] != EVICTED and i not in damaged for i in seen):
            twin = PagedSequence(row.sequence.pool)
            twin.pages = pages[: place // size]
            twin.length = place
            twin.pool.share(twin.held())
            return twin
    return PagedSequence(row.sequence.pool)


def _replay_next(passes: Passes, steps: Steps, row: Row, twin: PagedSequence) -> None:
    """The pass that computed the position behind the twin's end."""
    for start, stop in row.chunks:
        if start == twin.length:
            passes.forward_chunk(twin, row.tokens[start:stop])
            return
    steps.replay({row.index: (twin, row.tokens[twin.length])})
