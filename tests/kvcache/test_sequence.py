"""Sequences over the pool, against a model that remembers every value: writes, forks, eviction, rollback."""

import pytest
import torch
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from fieldprint.errors import CapacityError, IntegrityError
from fieldprint.kvcache import EVICTED, PagedSequence, PagePool
from fieldprint.kvcache.pool import PageLayout

SIZE = 4


class SequenceMachine(RuleBasedStateMachine):
    """Each sequence beside the list of values that its positions must hold (None: evicted)."""

    def __init__(self) -> None:
        super().__init__()
        self.pool = PagePool(PageLayout(1, 1, 1, page_size=SIZE), 14)
        self.counter = 0.0
        self.pairs: list[tuple[PagedSequence, list[float | None]]] = []

    @initialize()
    def begin(self) -> None:
        self.pairs = [(PagedSequence(self.pool), [])]

    def pick(self, data: st.DataObject) -> tuple[PagedSequence, list[float | None]]:
        return self.pairs[data.draw(st.integers(0, len(self.pairs) - 1))]

    @rule(data=st.data(), count=st.integers(0, 9))
    def append(self, data: st.DataObject, count: int) -> None:
        sequence, values = self.pick(data)
        if values and values[-1] is None and sequence.length % SIZE:
            return
        try:
            slots = sequence.prepare(count)
        except CapacityError:
            assert sequence.length == len(values)
            return
        for slot in slots:
            self.counter += 1
            self.pool.k_pages(0).view(-1)[slot] = self.counter
            values.append(self.counter)

    @rule(data=st.data(), count=st.integers(1, 6))
    def reserve(self, data: st.DataObject, count: int) -> None:
        sequence, _ = self.pick(data)
        if self.pool.num_free >= 3:
            sequence.reserve(count)

    @precondition(lambda self: len(self.pairs) < 4)
    @rule(data=st.data())
    def fork(self, data: st.DataObject) -> None:
        sequence, values = self.pick(data)
        self.pairs.append((sequence.fork(), list(values)))

    @rule(data=st.data(), back=st.integers(0, 9))
    def truncate(self, data: st.DataObject, back: int) -> None:
        sequence, values = self.pick(data)
        length = max(0, len(values) - back)
        if length and values[length - 1] is None:
            with pytest.raises(ValueError, match="evicted"):
                sequence.truncate(length)
        else:
            sequence.truncate(length)
            del values[length:]

    @rule(data=st.data(), window=st.integers(1, 9), sinks=st.integers(0, 5))
    def evict(self, data: st.DataObject, window: int, sinks: int) -> None:
        sequence, values = self.pick(data)
        border = len(values) - window
        sequence.evict_before(border, num_sinks=sinks)
        kept = -(-sinks // SIZE) * SIZE
        for position in range(kept, max(0, border) // SIZE * SIZE):
            values[position] = None

    @precondition(lambda self: len(self.pairs) > 1)
    @rule(data=st.data())
    def close(self, data: st.DataObject) -> None:
        sequence, _ = self.pairs.pop(data.draw(st.integers(0, len(self.pairs) - 1)))
        sequence.close()

    @invariant()
    def every_position_holds_its_value(self) -> None:
        for sequence, values in self.pairs:
            assert sequence.length == len(values)
            for position, value in enumerate(values):
                page = sequence.pages[position // SIZE]
                if value is None:
                    assert page == EVICTED
                else:
                    assert float(self.pool.k_pages(0)[page, position % SIZE]) == value

    @invariant()
    def references_are_conserved(self) -> None:
        self.pool.check_conservation([page for sequence, _ in self.pairs for page in sequence.held()])


SequenceMachine.TestCase.settings = settings(max_examples=80, stateful_step_count=40, deadline=None)
TestSequence = SequenceMachine.TestCase


def test_a_pinned_page_is_never_evicted() -> None:
    pool = PagePool(PageLayout(1, 1, 1, page_size=SIZE), 4)
    sequence = PagedSequence(pool)
    sequence.prepare(16)
    pool.pin([sequence.pages[1]])
    assert sequence.evict_before(16) == 3
    assert sequence.pages[1] != EVICTED


def test_a_fork_does_not_see_later_writes() -> None:
    pool = PagePool(PageLayout(1, 1, 1, page_size=SIZE), 8)
    one = PagedSequence(pool)
    pool.k_pages(0).view(-1)[one.prepare(6)] = torch.arange(6.0)
    two = one.fork()
    pool.k_pages(0).view(-1)[one.prepare(1)] = 10.0
    pool.k_pages(0).view(-1)[two.prepare(1)] = 20.0
    assert float(pool.k_pages(0)[one.pages[1], 2]) == 10.0
    assert float(pool.k_pages(0)[two.pages[1], 2]) == 20.0
    assert one.pages[0] == two.pages[0]


@pytest.mark.parametrize("taken", [False, True])
def test_a_page_that_was_freed_behind_its_back_is_lost_and_stays_with_its_new_owner(taken: bool) -> None:
    pool = PagePool(PageLayout(1, 1, 1, page_size=SIZE), 8)
    sequence = PagedSequence(pool)
    sequence.prepare(3 * SIZE)
    page = sequence.pages[1]
    pool.release([page])
    stranger = pool.allocate(1, after=page - 1) if taken else []
    assert sequence.lost() == [1]
    with pytest.raises(IntegrityError, match="behind its back"):
        sequence.fork()
    twin = sequence.fork(SIZE)
    assert twin.lost() == []
    twin.close()
    sequence.replace(1)
    assert sequence.lost() == [] and (sequence.pages[1] != page) == taken
    assert pool.storage[:, :, sequence.pages[1]].isnan().all()
    pool.release([sequence.pages[2]])
    sequence.truncate(2 * SIZE)  # the lost page is not released again
    sequence.close()
    assert [pool.references(p) for p in stranger] == [1] * len(stranger)


def test_a_lost_page_is_not_written_to() -> None:
    pool = PagePool(PageLayout(1, 1, 1, page_size=SIZE), 8)
    sequence = PagedSequence(pool)
    sequence.prepare(SIZE + 1)
    page = sequence.pages[1]
    pool.release([page])
    assert pool.allocate(1, after=page - 1) == [page]
    assert sequence.prepare(1)[0] // SIZE == sequence.pages[1] != page
