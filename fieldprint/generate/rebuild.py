"""Rebuilding damaged context pages from committed tokens, bit for bit."""

from collections.abc import Sequence

from fieldprint.generate.passes import Passes, Steps
from fieldprint.generate.row import Row
from fieldprint.kvcache import EVICTED, PagedSequence, SlotHasher


def rebuild_pages(passes: Passes, steps: Steps, hasher: SlotHasher, row: Row, damaged: Sequence[int]) -> None:
    """Write the `damaged` pages of `row` again: the passes that made them are run again, in their shapes.

    A twin of the sequence is computed from the last place before the damage whose visible pages are all there, else
    from the start; each damaged page is copied from the twin once its slots have the digests that are bound to them. One that
    comes out otherwise, because more was damaged meanwhile, stays as it is: the next pass finds it again.
    """
    size = row.sequence.page_size
    shared = 0 if row.request.prefix is None else len(row.request.prefix.tokens) // size * size
    behind = max(shared, row.resume_position())  # what comes from there on is computed again anyway
    wanted = [
        index for index in sorted(set(damaged)) if index * size < behind and not _intact(hasher, row, index)
    ]
    if not wanted:
        return
    twin = _twin(passes, row, set(wanted))
    try:
        end = min((max(wanted) + 1) * size, row.hashed)
        while twin.length < end:
            _replay_next(passes, steps, row, twin)
            for index in [i for i in wanted if twin.length >= min((i + 1) * size, end)]:
                if _is_bound(hasher, row, index, twin):
                    target = passes.pool.storage[:, :, row.sequence.pages[index]]
                    target.copy_(passes.pool.storage[:, :, twin.pages[index]])
                wanted.remove(index)
            if passes.window is not None and wanted:
                oldest = min(twin.length - passes.window + 1, min(wanted) * size)
                twin.evict_before(oldest, num_sinks=passes.num_sinks)
    finally:
        twin.close()


def _intact(hasher: SlotHasher, row: Row, index: int) -> bool:
    return row.sequence.pages[index] == EVICTED or _is_bound(hasher, row, index, row.sequence)


def _is_bound(hasher: SlotHasher, row: Row, index: int, sequence: PagedSequence) -> bool:
    """Whether the page's slots, in `sequence`, have the digests that are bound to the row's positions."""
    start = index * sequence.page_size
    stop = min(start + sequence.page_size, row.hashed)
    return bool((hasher.now(sequence.slots(start, stop)) == row.digests[start:stop]).all())


def _twin(passes: Passes, row: Row, damaged: set[int]) -> PagedSequence:
    """A sequence that shares the row's pages up to the place where the replay starts."""
    size = row.sequence.page_size
    first = min([*damaged, *row.sequence.lost()]) * size
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
            return row.sequence.fork(place)
    return PagedSequence(row.sequence.pool)


def _replay_next(passes: Passes, steps: Steps, row: Row, twin: PagedSequence) -> None:
    """The pass that computed the position behind the twin's end."""
    for start, stop in row.chunks:
        if start == twin.length:
            passes.forward_chunk(twin, row.tokens[start:stop])
            return
    steps.replay({row.index: (twin, row.tokens[twin.length])})
