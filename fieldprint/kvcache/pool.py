"""The page pool: one tensor of K/V pages, reference counts, and the pins that keep a page from eviction."""

import threading
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from fieldprint import blake3
from fieldprint.errors import CapacityError


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
    4. the sum of references changes only by `allocate`, `share` (+1 a page) and `release` (-1 a page).

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
        self._staging = threading.local()  # where each thread lays a page's bytes in a row to hash them
        self._references = [0] * num_pages
        self._pins = [0] * num_pages
        self._free = set(range(num_pages))

    @property
    def num_free(self) -> int:
        """Pages that `allocate` can still hand out."""
        return len(self._free)

    def references(self, page: int) -> int:
        """How many holders the page has; 0 means free."""
        return self._references[page]

    def is_pinned(self, page: int) -> bool:
        """Whether the page is kept from eviction."""
        return self._pins[page] > 0

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

    def share(self, pages: Iterable[int]) -> None:
        """Add one reference to each page."""
        for page in self._held(pages):
            self._references[page] += 1

    def release(self, pages: Iterable[int]) -> None:
        """Take one reference from each page; a page without references is free.

        Raises:
            ValueError: a page is free already, or is pinned and this is its last reference; nothing was changed.
        """
        held = self._held(pages)
        for page in set(held):
            if self.is_pinned(page) and self._references[page] <= held.count(page):
                raise ValueError(f"page {page} is pinned; unpin it before its last release")
            if self._references[page] < held.count(page):
                raise ValueError(
                    f"page {page} has {self._references[page]} references, not {held.count(page)}"
                )
        for page in held:
            self._references[page] -= 1
            if self._references[page] == 0:
                self._free.add(page)

    def pin(self, pages: Iterable[int]) -> None:
        """Keep the pages from eviction; pins nest."""
        for page in self._held(pages):
            self._pins[page] += 1

    def unpin(self, pages: Iterable[int]) -> None:
        """Take one pin from each page."""
        held = self._held(pages)
        for page in set(held):
            if self._pins[page] < held.count(page):
                raise ValueError(f"page {page} is not pinned")
        for page in held:
            self._pins[page] -= 1

    def _held(self, pages: Iterable[int]) -> list[int]:
        held = list(pages)
        for page in held:
            if not 0 <= page < self.num_pages:
                raise ValueError(f"page {page} is not a page of this pool of {self.num_pages}")
            if self._references[page] == 0:
                raise ValueError(f"page {page} is free")
        return held

    def own(self, page: int, *, after: int | None = None) -> int:
        """A page with the same content that only the caller holds: `page` itself, or a copy (copy on write)."""
        (held,) = self._held([page])
        if self._references[held] == 1 and not self.is_pinned(held):
            return held
        (copy,) = self.allocate(1, after=after)
        self.storage[:, :, copy].copy_(self.storage[:, :, held])
        self.release([held])
        return copy

    def digest(self, page: int, num_tokens: int | None = None) -> bytes:
        """BLAKE3 over the bytes of the first `num_tokens` slots: layer by layer, K before V, slot by slot.

        Reads the memory itself, without the pool's lock or torch's threads, so that a worker thread may call it
        while the owner goes on computing.
        """
        size = self.layout.page_size if num_tokens is None else num_tokens
        if not 0 < size <= self.layout.page_size:
            raise ValueError(f"num_tokens must be within 1..{self.layout.page_size}, not {size}")
        raw = self.storage[:, :, page, :size].view(torch.uint8)
        if raw.device.type != "cpu":
            return blake3.digest(raw.cpu().numpy().reshape(-1).data)
        source = raw.numpy()
        # A fresh array a page would be mapped, zeroed and unmapped each time, at the cost of every running thread.
        if not hasattr(self._staging, "bytes"):
            self._staging.bytes = np.empty(self.layout.bytes_per_page, dtype=np.uint8)
        staged = self._staging.bytes[: source.size]
        np.copyto(staged.reshape(source.shape), source)
        return blake3.digest(staged.data)

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
