"""A sequence's pages: which page holds which positions, and how they come and go."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from fieldprint.errors import IntegrityError
from fieldprint.kvcache.pool import PagePool

Pages = NDArray[np.int64]
EVICTED = -1  # in a page table: this page is no longer held; attention never looks at it


class PagedSequence:
    """The page table of one sequence: position p lies in page `pages[p // page_size]`, slot `p % page_size`.

    `length` counts positions whose K/V is there or has been evicted. Pages are owned by reference: `fork` shares
    them, and a shared page is copied before the first write (`prepare`). A page that somebody else has released too early
    is `lost`: it is not written to or released again, and `replace` puts another in its place.
    """

    def __init__(self, pool: PagePool) -> None:
        self.pool = pool
        self.pages: list[int] = []
        self.length = 0
        self._generations: list[int] = []  # of the pages, when each was taken
        self._arrays: tuple[Pages, Pages] | None = None  # both lists, until one changes

    @property
    def page_size(self) -> int:
        """Slots of a page."""
        return self.pool.layout.page_size

    def held(self) -> list[int]:
        """The pages on which this sequence has a reference, in order."""
        return [page for page in self.pages if page != EVICTED]

    def filled(self, length: int) -> Pages:
        """The held pages among those that the first `length` positions fill: nothing is written to them any more."""
        pages = self._as_arrays()[0][: length // self.page_size]
        held: Pages = pages[pages != EVICTED]
        return held

    def lost(self) -> list[int]:
        """Indices of the pages that were freed behind this sequence's back."""
        pages, generations = self._as_arrays()
        here = pages != EVICTED
        differs = self.pool.generations(np.where(here, pages, 0)) != generations
        return [int(index) for index in np.nonzero(here & differs)[0]]

    def slots(self, start: int, stop: int) -> NDArray[np.int64]:
        """The slots (page * page_size + offset) of positions [start, stop); negative where the page was evicted."""
        size = self.page_size
        first = start // size
        pages = self._as_arrays()[0][first : -(-stop // size)]
        slots = pages[:, None] * size + np.arange(size)
        return slots.reshape(-1)[start - first * size : stop - first * size]

    def replace(self, index: int) -> None:
        """Put a fresh page in the place of page number `index`, filled with what no K/V is (NaN).

        A page that was used before may hold just what was lost, while something was computed from what lay there instead.

        Raises:
            CapacityError: no page is free.
        """
        (page,) = self.pool.allocate(1)
        self.pool.storage[:, :, page] = float("nan")
        self._release([index])
        self._put(index, page)

    def prepare(self, count: int) -> list[int]:
        """The slots (page * page_size + offset) for the next `count` positions, allocated and owned; extends `length`.

        Raises:
            CapacityError: the pool has too few pages; the sequence is unchanged.
        """
        size = self.page_size
        start, stop = self.length, self.length + count
        last = next((page for page in reversed(self.pages) if page != EVICTED), None)
        if start % size and count:
            index = start // size
            if self._is_lost(index):
                self.replace(index)
            neighbour = self.pages[index - 1] if index else None
            self._put(index, self.pool.own(self.pages[index], after=neighbour))
            last = self.pages[index]
        missing = -(-stop // size) - len(self.pages)
        if missing > 0:
            self._extend(self.pool.allocate(missing, after=last))
        self.length = stop
        return [self.pages[p // size] * size + p % size for p in range(start, stop)]

    def reserve(self, num_positions: int) -> None:
        """Hold pages for `num_positions` further positions at once, so that they are neighbours."""
        missing = -(-(self.length + num_positions) // self.page_size) - len(self.pages)
        if missing > 0:
            self._extend(self.pool.allocate(missing, after=self.pages[-1] if self.pages else None))

    def evict_before(self, position: int, *, num_sinks: int = 0) -> int:
        """Release the pages whose positions are all below `position` and not sinks; returns how many."""
        first = -(-num_sinks // self.page_size)
        victims = [
            index
            for index in range(first, min(position, self.length) // self.page_size)
            if self.pages[index] != EVICTED and not self.pool.is_pinned(self.pages[index])
        ]
        self._release(victims)
        for index in victims:
            self.pages[index] = EVICTED
        self._arrays = None
        return len(victims)

    def truncate(self, length: int) -> None:
        """Forget positions from `length` on and release the pages that held only those.

        Raises:
            ValueError: `length` is beyond the end, or the page that holds its last position was evicted.
        """
        if not 0 <= length <= self.length:
            raise ValueError(f"length must be within 0..{self.length}, not {length}")
        keep = -(-length // self.page_size)
        if keep and self.pages[keep - 1] == EVICTED:
            raise ValueError(f"position {length - 1} was evicted; the sequence cannot go back to it")
        self._release(range(keep, len(self.pages)))
        del self.pages[keep:], self._generations[keep:]
        self._arrays = None
        self.length = length

    def fork(self, length: int | None = None) -> "PagedSequence":
        """A sequence with the same content, up to `length` if given; the pages are shared until one of the two writes.

        Raises:
            IntegrityError: a page that would be shared was lost.
        """
        twin = PagedSequence(self.pool)
        twin.length = self.length if length is None else length
        used = -(-twin.length // self.page_size)
        if any(index < used for index in self.lost()):
            raise IntegrityError(
                "a page of this sequence was freed behind its back", remedy="Compute it again"
            )
        twin.pages, twin._generations = self.pages[:used], self._generations[:used]
        self.pool.share(twin.held())
        return twin

    def close(self) -> None:
        """Release every page; the sequence is empty afterwards."""
        self._release(range(len(self.pages)))
        self.pages, self._generations = [], []
        self._arrays = None
        self.length = 0

    def _as_arrays(self) -> tuple[Pages, Pages]:
        """The pages and their generations; lists are quick to change one by one, arrays to compute with."""
        if self._arrays is None:
            pages, generations = (np.asarray(x, dtype=np.int64) for x in (self.pages, self._generations))
            self._arrays = pages, generations
        return self._arrays

    def _put(self, index: int, page: int) -> None:
        generation = self.pool.generation(page)
        if (self.pages[index], self._generations[index]) != (page, generation):
            self.pages[index], self._generations[index] = page, generation
            self._arrays = None

    def _extend(self, pages: list[int]) -> None:
        self.pages += pages
        self._generations += [self.pool.generation(page) for page in pages]
        self._arrays = None

    def _is_lost(self, index: int) -> bool:
        return self._generations[index] != self.pool.generation(self.pages[index])

    def _release(self, indices: Sequence[int]) -> None:
        """Give back those of the pages that are still held."""
        if not indices:
            return
        lost = set(self.lost())
        self.pool.release([self.pages[i] for i in indices if self.pages[i] != EVICTED and i not in lost])
