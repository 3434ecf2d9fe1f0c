"""What is looked at after each step: new slots are bound to their digests, pinned ones and old ones are checked again."""

import math
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np

from fieldprint.generate.passes import Flight
from fieldprint.generate.request import EngineSettings
from fieldprint.generate.row import Row
from fieldprint.kvcache import PagePool, SlotHasher
from fieldprint.kvcache.slot_hash import Digests, Hashing, Slots
from fieldprint.promote import PinnedAnchor

PATIENCE = 8  # steps that the scrubber may take; then the loop looks itself, in case that it has died


@dataclass(slots=True)
class _Look:
    """Slots that are being hashed: new ones of rows, or old ones with the digests that are bound to them.

    rows: by index; one that was rolled back or has ended meanwhile is taken out. spans: first new position of a row, and
    how many. step: at which they were asked for.
    """

    rows: dict[int, Row]
    spans: dict[int, tuple[int, int]]
    expected: Digests
    hashing: Hashing
    step: int


class Watch:
    """Binds slots to digests, and raises the `alarm` when one that was bound is not what it was.

    On a GPU slots are hashed on a side stream, new ones behind the step that writes them and old ones beside it, and looked
    at when their digests are there. On a CPU new slots are hashed at once, before anybody sees the step's tokens, and old
    ones by a thread.

    Args:
        pool: of the pages.
        anchor: whose slots are checked every `settings.scrub_interval` steps, or None.
        settings: interval and budget.
    """

    def __init__(self, pool: PagePool, anchor: PinnedAnchor | None, settings: EngineSettings) -> None:
        self._settings = settings
        self._thread: ThreadPoolExecutor | None = None
        if pool.storage.device.type == "cpu":
            self._thread = ThreadPoolExecutor(1, "fieldprint-scrubber")
        self.hasher = SlotHasher(pool)
        # Apart, so that it does not queue behind a pass over everything.
        self._scrubber = SlotHasher(pool, self._thread, urgent=True)
        self.pinned_slots: Slots = np.empty(0, dtype=np.int64) if anchor is None else anchor.slots
        self.pinned_digests: Digests = np.empty((0, 32), dtype=np.uint8) if anchor is None else anchor.digests
        self.alarm = False
        self.step = 0
        self.pending: list[_Look] = []

    def bind_chunk(self, row: Row, start: int) -> None:
        """Bind the positions from `start` on that a prefill pass has written."""
        self._look({row.index: row}, {row.index: (start, row.sequence.length - start)}, [])

    def bind_step(self, flight: Flight, rows: Sequence[Row]) -> None:
        """Bind the slot that a decode step has written for each of its rows, and check old slots that are due."""
        self.step += 1
        spans = {index: (row.sequence.length - 1, 1) for index, row in flight.rows.items()}
        self._look(flight.rows, spans, self.due(rows))

    def land(self, *, wait: bool = False) -> None:
        """Take what is there; with `wait`, everything."""
        looks, self.pending = self.pending, []
        for look in looks:
            if not (wait or look.hashing.ready() or self.step - look.step > PATIENCE):
                self.pending.append(look)
                continue
            found, at = look.hashing.digests(), 0
            for index, (start, count) in look.spans.items():
                row = look.rows.get(index)
                if row is not None:
                    row.take_digests(start, found[at : at + count])
                at += count
            self.alarm |= not np.array_equal(found[at:], look.expected)

    def close(self) -> None:
        """End the thread."""
        if self._thread is not None:
            self._thread.shutdown()

    def _look(
        self, rows: dict[int, Row], spans: dict[int, tuple[int, int]], due: list[tuple[Slots, Digests]]
    ) -> None:
        new = [rows[index].sequence.slots(start, start + count) for index, (start, count) in spans.items()]
        none = self.pinned_digests[:0]
        if self._thread is None:
            self.pending.append(_Look(rows, spans, none, self.hasher.later(np.concatenate(new)), self.step))
        else:
            for (index, (start, _)), slots in zip(spans.items(), new, strict=True):
                rows[index].take_digests(start, self.hasher.now(slots))
        if due and sum(not look.spans for look in self.pending) < 2:  # who does not keep up looks less often
            slots = np.concatenate([slots for slots, _ in due])
            expected = np.concatenate([digests for _, digests in due])
            hashing = self._scrubber.later(slots, behind_queue=False)
            self.pending.append(_Look({}, {}, expected, hashing, self.step))

    def due(self, rows: Sequence[Row]) -> list[tuple[Slots, Digests]]:
        """The pinned slots at their interval; and of rows that no pass has checked for 1 / budget steps, as much as may be."""
        due = []
        if len(self.pinned_slots) and self.step % self._settings.scrub_interval == 0:
            due.append((self.pinned_slots, self.pinned_digests))
        budget = self._settings.scrub_budget
        left = math.ceil(budget * sum(row.hashed for row in rows))
        for row in rows:
            if left and not row.finished and (self.step - row.checked_at) * budget > 1:
                part = slice(row.scrubbed, row.scrubbed + left)
                held, slots, bound = row.held()
                positions = held[part]
                due.append((slots[part], bound[part]))
                left -= len(positions)
                row.scrubbed += len(positions)
                if not len(positions) or positions[-1] + 1 == row.hashed:
                    row.scrubbed, row.checked_at = 0, self.step
        return due
