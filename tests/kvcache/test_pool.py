"""The pool: its laws as a state machine, digests, copy on write, and what it refuses."""

import numpy as np
import pytest
import torch
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from fieldprint.errors import CapacityError
from fieldprint.kvcache import PagePool
from fieldprint.kvcache.pool import PageLayout

LAYOUT = PageLayout(num_layers=2, num_kv_heads=1, head_dim=4, page_size=4)


class PoolMachine(RuleBasedStateMachine):
    """References and pins as a list that the pool's counts must equal after every step."""

    def __init__(self) -> None:
        super().__init__()
        self.pool = PagePool(LAYOUT, 7)
        self.held: list[int] = []
        self.pinned: list[int] = []

    @rule(count=st.integers(0, 9), after=st.none() | st.integers(0, 6), contiguous=st.booleans())
    def allocate(self, count: int, after: int | None, contiguous: bool) -> None:
        free = self.pool.num_free
        try:
            pages = self.pool.allocate(count, after=after, contiguous=contiguous)
        except CapacityError:
            assert count > free or contiguous
            assert self.pool.num_free == free
        else:
            assert len(set(pages)) == count and not set(pages) & set(self.held)
            assert not contiguous or not pages or pages[-1] - pages[0] == count - 1
            self.held += pages

    @precondition(lambda self: self.held)
    @rule(data=st.data())
    def share(self, data: st.DataObject) -> None:
        page = data.draw(st.sampled_from(self.held))
        self.pool.share([page])
        self.held.append(page)

    @precondition(lambda self: self.held)
    @rule(data=st.data())
    def release(self, data: st.DataObject) -> None:
        page = data.draw(st.sampled_from(self.held))
        if page in self.pinned and self.held.count(page) == 1:
            with pytest.raises(ValueError, match="pinned"):
                self.pool.release([page])
        else:
            self.pool.release([page])
            self.held.remove(page)

    @precondition(lambda self: self.held)
    @rule(data=st.data())
    def pin(self, data: st.DataObject) -> None:
        page = data.draw(st.sampled_from(self.held))
        self.pool.pin([page])
        self.pinned.append(page)

    @precondition(lambda self: self.pinned)
    @rule(data=st.data())
    def unpin(self, data: st.DataObject) -> None:
        page = data.draw(st.sampled_from(self.pinned))
        self.pool.unpin([page])
        self.pinned.remove(page)

    @precondition(lambda self: self.held)
    @rule(data=st.data())
    def own(self, data: st.DataObject) -> None:
        page = data.draw(st.sampled_from(self.held))
        before = self.pool.storage[:, :, page].clone()
        shared = self.held.count(page) > 1 or page in self.pinned
        if shared and (self.pool.num_free == 0 or self.held.count(page) == 1):
            return  # no room for a copy, or the pin forbids to let the page go
        copy = self.pool.own(page)
        assert (copy != page) == shared
        assert torch.equal(self.pool.storage[:, :, copy], before)
        self.held.remove(page)
        self.held.append(copy)

    @rule(page=st.integers(-2, 9))
    def refuse_pages_that_are_free(self, page: int) -> None:
        if page not in self.held:
            for operation in (self.pool.share, self.pool.release, self.pool.pin):
                with pytest.raises(ValueError, match="page"):
                    operation([page])

    @invariant()
    def laws_hold(self) -> None:
        self.pool.check_conservation(self.held)


PoolMachine.TestCase.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)
TestPool = PoolMachine.TestCase


def test_neighbours_are_preferred() -> None:
    pool = PagePool(LAYOUT, 10)
    first = pool.allocate(3)
    second = pool.allocate(2)
    assert pool.allocate(2, after=second[-1]) == [second[-1] + 1, second[-1] + 2]
    pool.release(first)
    assert pool.allocate(3) == first  # the smallest hole that fits


def test_a_generation_changes_when_a_page_becomes_free_and_then_only() -> None:
    pool = PagePool(LAYOUT, 3)
    pages = pool.allocate(2)
    pool.share(pages)
    pool.release(pages)
    assert pool.generations(np.array(pages)).tolist() == [0, 0]
    pool.release(pages[:1])
    assert pool.generation(pages[0]) == 1 and pool.generation(pages[1]) == 0
    assert pages[0] in pool.allocate(2)
    assert pool.generation(pages[0]) == 1


def test_many_pages_are_shared_and_released_at_once() -> None:
    pool = PagePool(PageLayout(1, 1, 1, page_size=1), 20_000)
    pages = np.array(pool.allocate(20_000))
    pool.share(np.concatenate([pages, pages]))
    pool.release(pages[::-1])
    assert pool.references(17) == 2 and pool.num_free == 0
    pool.release(np.concatenate([pages, pages]))
    assert pool.num_free == 20_000


def test_no_memory_is_a_clear_error() -> None:
    with pytest.raises(CapacityError, match="GiB"):
        PagePool(PageLayout(1000, 1000, 1000, 1000), 10**6)
    with pytest.raises(ValueError, match="num_pages"):
        PagePool(LAYOUT, 0)
    with pytest.raises(ValueError, match="head_dim"):
        PageLayout(1, 1, 0)
