"""A sequence's pages: which page holds which positions, and how they come and go."""

import numpy as np
from numpy.typing import NDArray

from fieldprint.kvcache.pool import PagePool

EVICTED = -1  # in a page table: this page is no longer held; attention never looks at it


class PagedSequence:
    """The page table of one sequence: position p lies in page `pages[p // page_size]`, slot `p % page_size`.

    `length` counts positions whose K/V is there or has been evicted. Pages are owned by reference: `fork` shares
    them, and a shared page is copied before the first write (`prepare`).
    """

    def __init__(self, pool: PagePool) -> None:
        self.pool = pool
        self.pages: list[int] = []
        self.length = 0

    @property
    def page_size(self) -> int:
        """Slots of a page."""
        return self.pool.layout.page_size

    def held(self) -> list[int]:
        """The pages on which this sequence has a reference, in order."""
        return [page for page in self.pages if page != EVICTED]

    def slots(self, start: int, stop: int) -> NDArray[np.int64]:
        """The slots (page * page_size + offset) of positions [start, stop); negative where the page was evicted."""
        size = self.page_size
        positions = np.arange(start, stop, dtype=np.int64)
        pages = np.asarray(self.pages[start // size : -(-stop // size)], dtype=np.int64)
        return pages[positions // size - start // size] * size + positions % size

    def replace(self, index: int) -> None:
        """Put a fresh page in the place of page number `index`, whose reference somebody else goes on with.

        Raises:
            CapacityError: no page is free.
        """
        self.pages[index] = self.pool.allocate(1)[0]

    def prepare(self, count: int) -> list[int]:
        """The slots (page * page_size + offset) for the next `count` positions, allocated and owned; extends `length`.

        Raises:
            CapacityError: the pool has too few pages; the sequence is unchanged.
        """
        size = self.page_size
        start, stop = self.length, self.length + count
        last = next((page for page in reversed(self.pages) if page != EVICTED), None)
        if start % size and count:
            page = start // size
            if (
                self.pool.references(self.pages[page]) == 0
            ):  # released behind our back: what lay there is not trusted
                self.replace(page)
            neighbour = self.pages[page - 1] if page else None
            self.pages[page] = self.pool.own(self.pages[page], after=neighbour)
            last = self.pages[page]
        missing = -(-stop // size) - len(self.pages)
        if missing > 0:
            self.pages += self.pool.allocate(missing, after=last)
        self.length = stop
        return [self.pages[p // size] * size + p % size for p in range(start, stop)]

    def reserve(self, num_positions: int) -> None:
        """Hold pages for `num_positions` further positions at once, so that they are neighbours."""
        missing = -(-(self.length + num_positions) // self.page_size) - len(self.pages)
        if missing > 0:
            self.pages += self.pool.allocate(missing, after=self.pages[-1] if self.pages else None)

    def evict_before(self, position: int, *, num_sinks: int = 0) -> int:
        """Release the pages whose positions are all below `position` and not sinks; returns how many."""
        first = -(-num_sinks // self.page_size)
        victims = [
            index
            for index in range(first, min(position, self.length) // self.page_size)
            if self.pages[index] != EVICTED and not self.pool.is_pinned(self.pages[index])
        ]
        self.pool.release([self.pages[index] for index in victims])
        for index in victims:
            self.pages[index] = EVICTED
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
        self.pool.release([page for page in self.pages[keep:] if page != EVICTED])
        del self.pages[keep:]
        self.length = length

    def fork(self) -> "PagedSequence":
        """A sequence with the same content; the pages are shared until one of the two writes."""
        twin = PagedSequence(self.pool)
        used = -(-self.length // self.page_size)
        twin.pages = self.pages[:used]
        twin.length = self.length
        self.pool.share(twin.held())
        return twin

    def close(self) -> None:
        """Release every page; the sequence is empty afterwards."""
        self.pool.release(self.held())
        self.pages = []
        self.length = 0
