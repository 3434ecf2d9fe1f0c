"""The page pool: one tensor of K/V pages, reference counts, and the pins that keep a page from eviction."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fieldprint.errors import CapacityError

Pages = Iterable[int] | NDArray[np.integer]


@dataclass(frozen=True, slots=True)
class PageLayout:
    """Sizes of a page: the shape of every tensor of the pool in one place."""

    num_layers: int
    num_kv_heads: int
    head_dim: int
    page_size: int = 16
    dtype: torch.dtype = torch.float32

    def __post_init__(self) -> None:
        for name in ("num_layers", "num_kv_heads", "head_dim", "page_size"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, not {getattr(self, name)}")

    @property
    def bytes_per_page(self) -> int:
        """K and V of every layer, in bytes."""
        slot = self.num_kv_heads * self.head_dim * torch.empty((), dtype=self.dtype).element_size()
        return self.num_layers * 2 * self.page_size * slot


class PagePool:
    """Pages of K/V with reference counts.

    The memory is one tensor [num_layers, 2 (K, V), num_pages, page_size, num_kv_heads, head_dim], so that a run of
    neighbouring pages of one layer is a plain [tokens, num_kv_heads, head_dim] view, without a copy.

    Laws, held after every operation (`check_conservation`):

    1. free pages and held pages partition the pool;
    2. a free page has no reference and no pin;
    3. a pinned page is held, and its last reference cannot be released;
    4. the sum of references changes only by `allocate`, `share` (+1 a page) and `release` (-1 a page);
    5. a page's generation changes when it becomes free, and then only.

    One thread changes the pool. Other threads may read pages on which a reference is held for them.
    """

    def __init__(self, layout: PageLayout, num_pages: int, *, device: str | torch.device = "cpu") -> None:
        if num_pages < 1:
            raise ValueError(f"num_pages must be at least 1, not {num_pages}")
        self.layout = layout
        self.num_pages = num_pages
        shape = (layout.num_layers, 2, num_pages, layout.page_size, layout.num_kv_heads, layout.head_dim)
        try:
            self.storage = torch.zeros(shape, dtype=layout.dtype, device=device)
        except (RuntimeError, MemoryError) as error:
            size = layout.bytes_per_page * num_pages / 2**30
            raise CapacityError(
                f"no memory for {num_pages} pages ({size:.1f} GiB)",
                remedy="Ask for fewer or shorter contexts, or set a sliding window",
            ) from error
        self._references = np.zeros(num_pages, dtype=np.int32)
        self._pins = np.zeros(num_pages, dtype=np.int32)
        self._generations = np.zeros(num_pages, dtype=np.int64)
        self._free = set(range(num_pages))

    @property
    def num_free(self) -> int:
        """Pages that `allocate` can still hand out."""
        return len(self._free)

    def references(self, page: int) -> int:
        """How many holders the page has; 0 means free."""
        return int(self._references[page])

    def generation(self, page: int) -> int:
        """How often the page has been freed; a holder for whom the number has changed does not hold it any more."""
        return int(self._generations[page])

    def generations(self, pages: NDArray[np.int64]) -> NDArray[np.int64]:
        """`generation` of each page."""
        return self._generations[pages]

    def is_pinned(self, page: int) -> bool:
        """Whether the page is kept from eviction."""
        return bool(self._pins[page] > 0)

    def k_pages(self, layer: int) -> Tensor:
        """K of one layer, a view [num_pages, page_size, num_kv_heads, head_dim]."""
        return self.storage[layer, 0]

    def v_pages(self, layer: int) -> Tensor:
        """V of one layer, a view [num_pages, page_size, num_kv_heads, head_dim]."""
        return self.storage[layer, 1]

    def allocate(self, count: int, *, after: int | None = None, contiguous: bool = False) -> list[int]:
        """`count` pages, each with one reference, neighbours in memory where the pool allows it.

        Args:
            count: number of pages.
            after: a page that the first new one should follow in memory, if that one is free.
            contiguous: whether anything but one run of neighbours is refused.

        Raises:
            CapacityError: fewer pages (or no such run) are free; nothing was taken.
        """
        if count < 0:
            raise ValueError(f"count must not be negative, got {count}")
        if count > len(self._free):
            raise self._full(count)
        if count == 0:
            return []
        pages = self._choose(count, after)
        if contiguous and pages[-1] - pages[0] != count - 1:
            raise self._full(count, "in one run ")
        for page in pages:
            self._free.remove(page)
            self._references[page] = 1
        return pages

    def _full(self, count: int, how: str = "") -> CapacityError:
        return CapacityError(
            f"{count} pages {how}are needed and {len(self._free)} of {self.num_pages} are free",
            remedy="Make the pool larger, the window shorter or the batch smaller",
        )

    def _choose(self, count: int, after: int | None) -> list[int]:
        """The run behind `after`, else the smallest hole that fits, else the lowest free pages."""
        if after is not None and all(after + 1 + i in self._free for i in range(count)):
            return list(range(after + 1, after + 1 + count))
        ordered = sorted(self._free)
        holes: list[tuple[int, int]] = []  # (length, first page)
        first = ordered[0]
        for page, following in zip(ordered, [*ordered[1:], -1], strict=True):
            if following != page + 1:
                holes.append((page + 1 - first, first))
                first = following
        fitting = [hole for hole in holes if hole[0] >= count]
        if fitting:
            start = min(fitting)[1]
            return list(range(start, start + count))
        return ordered[:count]

    def share(self, pages: Pages) -> None:
        """Add one reference to each page."""
        self._references += np.bincount(self._held(pages), minlength=self.num_pages).astype(np.int32)

    def release(self, pages: Pages) -> None:
        """Take one reference from each page; a page without references is free.

        Raises:
            ValueError: a page is free already, or is pinned and this is its last reference; nothing was changed.
        """
        held, counts = np.unique(self._held(pages), return_counts=True)
        left = self._references[held] - counts
        for page in held[(left < 0) | ((left == 0) & (self._pins[held] > 0))].tolist():
            if self.is_pinned(page):
                raise ValueError(f"page {page} is pinned; unpin it before its last release")
            raise ValueError(f"page {page} has {self._references[page]} references, fewer than are released")
        self._references[held] = left
        self._generations[held[left == 0]] += 1
        self._free.update(held[left == 0].tolist())

    def pin(self, pages: Pages) -> None:
        """Keep the pages from eviction; pins nest."""
        np.add.at(self._pins, self._held(pages), 1)

    def unpin(self, pages: Pages) -> None:
        """Take one pin from each page."""
        held, counts = np.unique(self._held(pages), return_counts=True)
        for page in held[self._pins[held] < counts].tolist():
            raise ValueError(f"page {page} is not pinned")
        self._pins[held] -= counts.astype(np.int32)

    def _held(self, pages: Pages) -> NDArray[np.intp]:
        held = np.asarray(pages if isinstance(pages, np.ndarray) else list(pages), dtype=np.intp)
        for page in held[(held < 0) | (held >= self.num_pages)].tolist():
            raise ValueError(f"page {page} is not a page of this pool of {self.num_pages}")
        for page in held[self._references[held] == 0].tolist():
            raise ValueError(f"page {page} is free")
        return held

    def own(self, page: int, *, after: int | None = None) -> int:
        """A page with the same content that only the caller holds: `page` itself, or a copy (copy on write)."""
        held = int(self._held([page])[0])
        if self._references[held] == 1 and not self.is_pinned(held):
            return held
        (copy,) = self.allocate(1, after=after)
        self.storage[:, :, copy].copy_(self.storage[:, :, held])
        self.release([held])
        return copy

    def slots(self) -> Tensor:
        """Every slot of the pool, a view [num_pages * page_size, num_layers, 2 (K, V), num_kv_heads, head_dim]."""
        return self.storage.flatten(2, 3).permute(2, 0, 1, 3, 4)

    def check_conservation(self, held: Sequence[int] | None = None) -> None:
        """Raise AssertionError if a law of the pool is broken.

        Args:
            held: every reference that holders have, page by page with repetition, to be compared with the counts.
        """
        for page in range(self.num_pages):
            if (page in self._free) != (self._references[page] == 0):
                raise AssertionError(f"page {page}: free set and references disagree")
            if self._references[page] < 0 or self._pins[page] < 0:
                raise AssertionError(f"page {page}: negative count")
            if self._pins[page] and not self._references[page]:
                raise AssertionError(f"page {page} is pinned and free")
        if held is not None and sorted(held) != sorted(
            page for page in range(self.num_pages) for _ in range(self._references[page])
        ):
            raise AssertionError(
                "the references that holders have are not the references that the pool counts"
            )
