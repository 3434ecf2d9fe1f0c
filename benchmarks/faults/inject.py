"""The damage, done between two events of a running engine, and whether it is still there.

Only bound slots are touched: those whose digest the host has by then. What lies in a page behind a sequence's end, in a page
reserved for later, in padding or in an evicted page is read by nobody before it is written again, and damage there is no
fault; nor is damage to a request whose answer is complete, since no token of it is still to be computed.
"""

import ctypes
import random
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray

from benchmarks.faults.log import WatchedLog
from benchmarks.faults.plan import PINNED_KINDS, SERVICE_KINDS, Fault
from benchmarks.faults.world import World
from fieldprint.generate import Event, Provisional
from fieldprint.generate.batch import Batch
from fieldprint.generate.row import Row
from fieldprint.kvcache import EVICTED, SlotHasher
from tests.faulty_log import LIES


@dataclass(frozen=True, slots=True)
class Place:
    """The first `count` slots of a page: page `index` of a row, or of the anchor where `row` is None."""

    row: Row | None
    index: int
    page: int
    count: int


@dataclass(slots=True, eq=False)
class Struck:
    """A fault that was injected.

    what: in words. step: decode steps before. pages: of the pool, that are damaged. indexes: by request that depends on it,
    its pages; empty lists for a pinned page. known: by request that has not got over it, its tokens that were known by then.
    thread: that was killed. seen: whether a rollback has named damage of this kind. steps: until it was found. outcome: "found"; "gone", where the slots were given up or written again before a token that depended on
    them could be final; "idle", where nothing was to be found; "missed".
    """

    fault: Fault
    what: str
    step: int
    submissions: int
    pages: tuple[int, ...] = ()
    indexes: dict[int, list[int]] = field(default_factory=dict)
    known: dict[int, int] = field(default_factory=dict)
    pinned: bool = False
    at: float = field(default_factory=time.monotonic)
    thread: threading.Thread | None = None
    seen: bool = False
    outcome: str = ""
    steps: int = 0
    rollbacks: int = 0


class Injector:
    """Strikes a running batch, and asks it whether damage is left.

    Args:
        world: whose engine runs.
        batch: that is running.
        log: that it appends to.
    """

    def __init__(self, world: World, batch: Batch, log: WatchedLog) -> None:
        self.world, self.batch, self.log = world, batch, log
        self.pool, self.pinned = world.pool, world.pinned
        self.hasher = SlotHasher(world.pool)
        self.struck: list[Struck] = []
        self.stolen: dict[
            int, NDArray[np.uint8] | None
        ] = {}  # pages freed too early; what the new owner wrote

    @property
    def step(self) -> int:
        """Decode steps of the batch so far."""
        return self.batch.watch.step

    @property
    def open(self) -> list[Struck]:
        """What was injected and has come to no end."""
        return [struck for struck in self.struck if not struck.outcome]

    def inject(self, fault: Fault, event: Event) -> Struck | None:
        """Do it; None if there is nothing that a fault of this kind could strike now."""
        chance = random.Random(fault.seed)  # noqa: S311
        if fault.kind in SERVICE_KINDS:
            struck = self._disturb(fault, chance)
        else:
            struck = self._damage(fault, chance, event)
        if struck is not None:
            self.struck.append(struck)
        return struck

    # The log and the worker

    def _disturb(self, fault: Fault, chance: random.Random) -> Struck | None:
        """One at a time, so that it is known which one a rollback comes from."""
        if any(struck.fault.kind in SERVICE_KINDS for struck in self.open):
            return None
        what, thread = fault.kind, None
        if fault.kind == "log refuses":
            count = chance.randint(1, 2)
            self.log.refuse(count)
            what = f"the log refuses {count} times"
        elif fault.kind == "log hangs":
            self.log.hang()
        elif fault.kind == "log forks":
            shown = chance.random() < 0.5
            self.log.fork(shown=shown)
            what = f"the log forks, shown to readers: {shown}"
        elif fault.kind == "log lies":
            lie = chance.choice(sorted(LIES))
            self.log.lie(lie)
            what = f"the log lies: {lie}"
        else:
            when = chance.choice(("before", "after", "idle"))
            what = f"the worker dies, {when}"
            if when != "idle":
                self.log.die(when)
            elif (thread := self._kill_committer()) is None:
                return None
        return Struck(fault, what, self.step, self.log.submissions, thread=thread)

    def _kill_committer(self) -> threading.Thread | None:
        """Raise SystemExit in the thread that waits for work; it dies of the next job.

        At work inside the log it could die with the log's lock in its hand, which is a fault of the log.
        """
        threads = [
            t for t in threading.enumerate() if t.name == "fieldprint-committer" and t.ident is not None
        ]
        if self.batch.committer is None or self.batch.committer.busy or not threads:
            return None
        set_exception: Callable[..., int] = ctypes.pythonapi.PyThreadState_SetAsyncExc
        killed = set_exception(ctypes.c_ulong(threads[-1].ident or 0), ctypes.py_object(SystemExit))
        return threads[-1] if killed == 1 else None

    # Memory

    def _damage(self, fault: Fault, chance: random.Random, event: Event) -> Struck | None:
        places = self._choose(fault.kind, chance, event)
        if not places:
            return None
        pages = [place.page for place in places]
        if "scrubber killed" in fault.kind and _kill("fieldprint-scrubber") is None:
            return None  # on a GPU there is no such thread
        if fault.kind == "page freed too early":
            what, done = "freed and taken by somebody else", self._free(places[0], chance)
        else:
            what, done = self._overwrite(fault.kind, places, chance)
        if not done:
            return None
        struck = Struck(fault, f"{what}: pages {pages}", self.step, self.log.submissions, tuple(pages))
        struck.pinned = places[0].row is None
        for row in self.batch.rows:
            if row.finished:
                continue
            found = [i for i, page in enumerate(row.sequence.pages) if page in pages]
            if struck.pinned or found:
                struck.indexes[row.index] = found
                struck.known[row.index] = len(row.tokens)
        return struck

    def _choose(self, kind: str, chance: random.Random, event: Event) -> list[Place]:
        """Where: one page, or two for a swap, or all of the anchor's."""
        taken = {page for struck in self.open for page in struck.pages}
        if kind in PINNED_KINDS:
            size, whole = self.pool.layout.page_size, self.pinned.num_tokens
            pinned = [
                Place(None, i, page, min(size, whole - i * size)) for i, page in enumerate(self.pinned.pages)
            ]
            if taken.intersection(self.pinned.pages) or not self._targets(event):
                return []
            return pinned if kind == "swapped anchor" else [chance.choice(pinned)]
        places = [
            place for row in self._targets(event) for place in self.bound(row) if place.page not in taken
        ]
        if kind == "bit flip in a committed page":
            places = [p for p in places if p.row is not None and p.index < len(p.row.pages)]
        elif kind == "bit flip in the newest page":
            places = [
                p
                for p in places
                if p.row is not None and p.index == (p.row.hashed - 1) // p.row.sequence.page_size
            ]
        elif kind == "page freed too early":
            places = [p for p in places if self._holders(p.page) == self._own_references(p.page) == 1]
        if not places:
            return []
        first = chance.choice(places)
        if not kind.startswith("swapped"):
            return [first]
        same = kind == "swapped pages of one request"
        others = [p for p in places if p.page != first.page and (p.row is first.row) == same]
        return [first, chance.choice(others)] if others else []

    def _targets(self, event: Event) -> list[Row]:
        """Rows that still compute; the one whose last token this is, too: its last pass has not begun."""
        return [
            row
            for row in self.batch.rows
            if not row.finished
            and (row.reason is None or (isinstance(event, Provisional) and event.request == row.index))
        ]

    def bound(self, row: Row) -> list[Place]:
        """The pages of a row that hold bound slots."""
        size = row.sequence.page_size
        return [
            Place(row, index, page, min(size, row.hashed - index * size))
            for index, page in enumerate(row.sequence.pages[: -(-row.hashed // size)])
            if page != EVICTED
        ]

    def _holders(self, page: int) -> int:
        return sum(page in row.sequence.pages for row in self.batch.rows)

    def _overwrite(self, kind: str, places: list[Place], chance: random.Random) -> tuple[str, bool]:
        """What was done, and whether any slot has other bytes by it."""
        before = [self._digests(place) for place in places]
        what = kind
        if kind.startswith("bit flip"):
            what = self._flip(places[0], chance)
        elif kind == "swapped anchor":
            self._swap_anchor()
        elif kind.startswith("swapped"):
            count = min(place.count for place in places)
            a, b = (self.pool.storage[:, :, place.page, :count] for place in places)
            kept = a.clone()
            a.copy_(b)
            b.copy_(kept)
        elif kind == "zeroed page":
            self.pool.storage[:, :, places[0].page, : places[0].count].zero_()
        else:
            what = self._make_stale(places[0], chance)
        after = [self._digests(place) for place in places]
        return what, not all(np.array_equal(a, b) for a, b in zip(before, after, strict=True))

    def _flip(self, place: Place, chance: random.Random) -> str:
        storage = self.pool.storage.view(torch.uint8)
        layers, parts, _, _, heads, size = storage.shape
        said = []
        for _ in range(chance.choice((1, 1, 1, 2, 3))):
            at = (
                chance.randrange(layers),
                chance.randrange(parts),
                place.page,
                chance.randrange(place.count),
                chance.randrange(heads),
                chance.randrange(size),
            )
            bit = chance.randrange(8)
            storage[at] ^= 1 << bit
            said.append(f"{at} bit {bit}")
        return "flipped " + ", ".join(said)

    def _swap_anchor(self) -> None:
        size = self.pool.layout.page_size
        for page, part in zip(self.pinned.pages, self.world.other_anchor.split(size, dim=2), strict=False):
            self.pool.storage[:, :, page, : part.shape[2]].copy_(part)

    def _make_stale(self, place: Place, chance: random.Random) -> str:
        """The bytes of a page that another request holds, or that an earlier one left behind."""
        written = self.pool.k_pages(0).flatten(1).any(1).nonzero()[:, 0].tolist()
        source = chance.choice([page for page in written if page != place.page])
        target = self.pool.storage[:, :, place.page, : place.count]
        target.copy_(self.pool.storage[:, :, source, : place.count].clone())
        return f"the bytes of page {source}"

    def _free(self, place: Place, chance: random.Random) -> bool:
        """Take the owner's reference away; whoever allocates next gets the page, at once or when no job reads it."""
        self.pool.release([place.page])
        self.stolen[place.page] = None
        self.take_freed(chance.getrandbits(32))
        return True

    def take_freed(self, seed: int = 0) -> None:
        """Somebody else allocates the pages that were freed too early, and writes where bound slots lie."""
        for page, written in list(self.stolen.items()):
            if written is not None or self.pool.references(page):
                continue
            if self.pool.allocate(1, after=page - 1) != [page]:
                raise AssertionError(f"page {page} is free and was not given out")
            places = [p for row in self.batch.rows for p in self.bound(row) if p.page == page]
            place = places[0] if places else Place(None, 0, page, self.pool.layout.page_size)
            target = self.pool.storage[:, :, page, : place.count]
            draw = torch.Generator().manual_seed(seed)
            target.copy_(torch.randn(target.shape, generator=draw).to(target.dtype))
            self.stolen[page] = self._digests(place)

    def give_back(self) -> list[str]:
        """Let the others release what they took; says whose page was taken from them or written to."""
        wrong = []
        for page, written in self.stolen.items():
            if written is None:
                continue
            found = self._digests(Place(None, 0, page, len(written)))
            if self.pool.references(page) != 1:
                wrong.append(f"page {page} has {self.pool.references(page)} references and one owner")
            elif not np.array_equal(found, written):
                wrong.append(f"page {page} was written to after it was given to somebody else")
            if self.pool.references(page):
                self.pool.release([page])
        self.stolen.clear()
        return wrong

    def _is_lost(self, page: int) -> bool:
        """Whether somebody else has a page that a row still holds, or may get it at any time."""
        if page not in self.stolen:
            return False
        return self.stolen[page] is not None or self._holders(page) > self._own_references(page)

    def _own_references(self, page: int) -> int:
        """The pool's count without the reference of the job in flight."""
        return self.pool.references(page) - int((self.batch.leased == page).sum())

    # What is left

    def left(self, struck: Struck, request: int) -> bool:
        """Whether slots that are bound to the request are damaged by it now."""
        row = self.batch.rows[request]
        if row.finished:
            return False
        if struck.pinned:
            return bool(self.pinned.damaged())
        places = [place for place in self.bound(row) if place.index in struck.indexes[request]]
        if any(self._is_lost(place.page) for place in places):
            return True
        return any(not np.array_equal(self._digests(p), self._expected(row, p)) for p in places)

    def _expected(self, row: Row, place: Place) -> NDArray[np.uint8]:
        start = place.index * row.sequence.page_size
        return row.digests[start : start + place.count]

    def _digests(self, place: Place) -> NDArray[np.uint8]:
        start = place.page * self.pool.layout.page_size
        return self.hasher.now(np.arange(start, start + place.count, dtype=np.int64))


def _kill(name: str) -> threading.Thread | None:
    """The newest thread of that name, in which SystemExit is raised as soon as it runs; None if there is none."""
    threads = [t for t in threading.enumerate() if t.name.startswith(name) and t.ident is not None]
    if not threads:
        return None
    set_exception: Callable[..., int] = ctypes.pythonapi.PyThreadState_SetAsyncExc
    killed = set_exception(ctypes.c_ulong(threads[-1].ident or 0), ctypes.py_object(SystemExit))
    return threads[-1] if killed == 1 else None
