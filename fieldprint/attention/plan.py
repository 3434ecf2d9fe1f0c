"""What every layer of a step shares: which runs of memory each sequence's queries look at, and how."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, slots=True)
class Run:
    """Neighbouring positions of one sequence: neighbouring slots of the pool from `first_slot` on, or else `slots`.

    How positions are cut into runs depends on positions alone, so that where pages happen to lie changes no bit of the
    result. Pages that are no neighbours cost a copy.

    `mask` is None when every query sees every key, "causal" when query i sees keys 0..i of the run, else an
    additive [num_queries, num_keys] tensor; then `unseeing` marks the queries that see no key of the run.
    """

    first_slot: int
    num_keys: int
    mask: Tensor | str | None
    unseeing: Tensor | None = None
    slots: Tensor | None = None

    def to(self, device: torch.device) -> "Run":
        """This run with its tensors on `device`."""
        if device.type == "cpu":
            return self
        mask = self.mask.to(device) if isinstance(self.mask, Tensor) else self.mask
        unseeing = None if self.unseeing is None else self.unseeing.to(device)
        slots = None if self.slots is None else self.slots.to(device)
        return Run(self.first_slot, self.num_keys, mask, unseeing, slots)


@dataclass(frozen=True, slots=True)
class SequencePlan:
    """Queries `first`..`stop` of the flat q, and the runs of keys that they see."""

    first: int
    stop: int
    runs: tuple[Run, ...]


@dataclass(frozen=True, slots=True)
class AttentionPlan:
    """The runs of each sequence of a batch. Made once a step by `plan_attention`, used by every layer."""

    sequences: tuple[SequencePlan, ...]
    total_q: int
    num_slots: int
    device: torch.device


def plan_attention(
    page_table: Sequence[Sequence[int]] | Tensor,
    seq_lens: Sequence[int] | Tensor,
    cu_seqlens_q: Sequence[int] | Tensor,
    *,
    page_size: int,
    num_pages: int,
    window: int | None = None,
    num_sinks: int = 0,
    device: str | torch.device = "cpu",
) -> AttentionPlan:
    """The plan of a step, made on the host.

    Args:
        page_table: row b holds the pages of sequence b; entries that no query can see may be anything.
        seq_lens: positions of each sequence, the new queries included; 0 is a padding row whose output is zero
            (or the anchor's).
        cu_seqlens_q: prefix sums of the numbers of queries, [batch + 1].
        page_size: slots of a page.
        num_pages: pages of the pool.
        window: a query at position p sees positions above p - window; None means all of them.
        num_sinks: positions below this one are seen whatever the window.
        device: of the pages and the queries.

    Raises:
        ValueError: sizes that do not fit together, or a visible page outside the pool.
    """
    if page_size < 1 or num_pages < 1:
        raise ValueError("page_size and num_pages must be at least 1")
    if window is not None and window < 1:
        raise ValueError(f"window must be at least 1 or None, not {window}")
    if num_sinks < 0:
        raise ValueError(f"num_sinks must not be negative, got {num_sinks}")
    where = torch.device(device)
    lens = [int(n) for n in seq_lens]
    bounds = [int(n) for n in cu_seqlens_q]
    if len(bounds) != len(lens) + 1 or len(page_table) != len(lens) or bounds[0] != 0:
        raise ValueError("page_table, seq_lens and cu_seqlens_q do not describe the same batch")
    sequences = []
    for row, length in enumerate(lens):
        first, stop = bounds[row], bounds[row + 1]
        if stop < first or (0 < length < stop - first) or length < 0:
            raise ValueError(f"sequence {row}: {stop - first} queries do not fit a length of {length}")
        pages = page_table[row]
        runs = _runs(pages, length, stop - first, page_size, num_pages, window, num_sinks, row)
        sequences.append(SequencePlan(first, stop, tuple(run.to(where) for run in runs)))
    return AttentionPlan(tuple(sequences), bounds[-1], num_pages * page_size, where)


def _runs(
    pages: Sequence[int] | Tensor,
    length: int,
    num_queries: int,
    page_size: int,
    num_pages: int,
    window: int | None,
    num_sinks: int,
    row: int,
) -> list[Run]:
    if length == 0 or num_queries == 0:
        return []
    first_query = length - num_queries
    oldest = 0 if window is None else max(0, first_query - window + 1)
    sinks = min(num_sinks, oldest)
    # The new keys are kept apart: among them the mask is the causal triangle, which needs no tensor.
    borders = (
        [(0, sinks), (oldest, first_query), (first_query, length)]
        if num_queries > 1
        else [(0, sinks), (oldest, length)]
    )
    runs = []
    for start, stop in borders:
        if start == stop:
            continue
        pieces = _neighbours(pages, start, stop, page_size, num_pages, row)
        slots = None
        if len(pieces) > 1:
            slots = torch.cat([torch.arange(slot, slot + end - begin) for begin, end, slot in pieces])
        mask = _mask(start, stop, first_query, num_queries, window, num_sinks)
        unseeing = torch.isneginf(mask).all(-1) if isinstance(mask, Tensor) else None
        runs.append(Run(pieces[0][2], stop - start, mask, unseeing, slots))
    return runs


def _neighbours(
    pages: Sequence[int] | Tensor, start: int, stop: int, page_size: int, num_pages: int, row: int
) -> list[tuple[int, int, int]]:
    """(first position, stop, first slot) of the maximal runs of neighbouring slots in [start, stop)."""
    found: list[tuple[int, int, int]] = []
    position = start
    while position < stop:
        index = position // page_size
        if index >= len(pages) or not 0 <= int(pages[index]) < num_pages:
            raise ValueError(f"sequence {row}: position {position} lies in no page of the pool")
        slot = int(pages[index]) * page_size + position % page_size
        end = min((index + 1) * page_size, stop)
        if found and found[-1][2] + (position - found[-1][0]) == slot:
            found[-1] = (found[-1][0], end, found[-1][2])
        else:
            found.append((position, end, slot))
        position = end
    return found


def _mask(
    begin: int, end: int, first_query: int, num_queries: int, window: int | None, num_sinks: int
) -> Tensor | str | None:
    last_query = first_query + num_queries - 1
    sees_old = window is None or begin > last_query - window or end <= num_sinks
    if end - 1 <= first_query and sees_old:
        return None
    if begin == first_query and end == last_query + 1 and sees_old:
        return "causal"
    keys = torch.arange(begin, end)
    queries = torch.arange(first_query, last_query + 1).unsqueeze(1)
    visible = keys <= queries
    if window is not None:
        visible &= (keys > queries - window) | (keys < num_sinks)
    return torch.zeros(visible.shape).masked_fill_(~visible, float("-inf"))
