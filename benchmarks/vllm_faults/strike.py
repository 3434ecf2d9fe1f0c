"""The damage itself, done by a thread beside the engine's at any moment of a step.

Only slots that are bound are struck: between being written and being hashed right after the step, a slot is nobody's yet, and
damage there is out of what commitments cover (docs/faults.md). No block is struck twice before it is written anew, since
a second fault could undo the first: what is there for a moment only leaves no trace.
"""

import gc
import random
import threading
import time
from collections import OrderedDict, deque
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from fieldprint.errors import LogError

FLIPPED, FLIPPED_PINNED = "bit flip in a context block", "bit flip in a pinned block"
SWAPPED, SWAPPED_PINNED = "swapped context blocks", "pinned block swapped with a context block"
ZEROED, ZEROED_PINNED = "zeroed context block", "zeroed pinned block"
STALE = "stale context block"
THREAD, REFUSES, HANGS = "committer's thread ended", "log refuses", "log hangs"
MEMORY_KINDS = (FLIPPED, FLIPPED_PINNED, SWAPPED, SWAPPED_PINNED, ZEROED, ZEROED_PINNED, STALE)
SERVICE_KINDS = (THREAD, REFUSES, HANGS)
RECENT = 24  # blocks
COPIES = 32
HANG, PATIENCE = 1.5, 0.5  # seconds that the log hangs, and that the committer then waits for it
COMMITTER = "fieldprint-committer"


def memory_here() -> "Memory | None":
    """The worker's memory, if this process is a worker."""
    from vllm.distributed.kv_transfer import get_kv_transfer_group, has_kv_transfer_group

    if not has_kv_transfer_group() or not hasattr(get_kv_transfer_group(), "residency"):
        return None
    return Memory(get_kv_transfer_group())


def service_here() -> "Service | None":
    """The committer and the log, if this process has the engine's core."""
    from fieldprint.adapters.vllm.supervisor import Supervisor

    gc.unfreeze()  # vLLM hides what is there at the end of its start
    found = [thing for thing in gc.get_objects() if isinstance(thing, Supervisor)]
    return Service(found[0]) if found else None


class Memory:
    """The cache of a worker. Watches from now on which slots are bound, and which a step under way will write.

    Args:
        connector: the worker's half.
    """

    def __init__(self, connector: Any) -> None:
        self._connector, self._residency = connector, connector.residency
        self._size = self._residency.size
        stride, elements = self._residency.layout.stride, self._residency.layout.elements
        blocks = len(self._residency.bound) // self._size
        self._layers = [flat.as_strided((blocks, elements), (stride, 1)) for flat in self._residency._flats]
        self._bound: OrderedDict[int, int] = OrderedDict()  # slots by block, the latest last
        self._writing: dict[int, int] = {}  # by block, the first slot that the step under way writes
        self._struck: set[int] = set()
        self._copies: deque[tuple[int, list[Tensor]]] = deque(maxlen=COPIES)
        self._lock = threading.RLock()
        self._begin, self._bind = connector.handle_preemptions, self._residency.bind
        connector.handle_preemptions, self._residency.bind = self._begun, self._ended

    def _begun(self, orders: Any) -> None:
        with self._lock:
            # First: it writes anchors, reads them back and binds them, which is no end of the step.
            self._begin(orders)
            self._writing = {}
            for slot in [] if orders.bind is None else orders.bind.tolist():
                block, offset = divmod(slot, self._size)
                self._writing[block] = min(offset, self._writing.get(block, offset))

    def _ended(self, slots: Any) -> Any:
        with self._lock:
            for slot in slots.tolist():
                block, offset = divmod(slot, self._size)
                if offset == 0:
                    self._struck.discard(block)
                self._bound[block] = offset + 1
                self._bound.move_to_end(block)
            found = self._bind(slots)
            if len(slots):
                block = int(slots[-1]) // self._size
                self._copies.append((block, [layer[block].clone() for layer in self._layers]))
            self._writing = {}
            return found

    def strike(self, kind: str, chance: random.Random) -> str | None:
        """What was done, or None where nothing could be struck."""
        with self._lock:
            pinned = [block for one in self._connector._installed.values() for block in one.blocks]
            context = [
                block for block in list(self._bound)[-RECENT:] if block not in pinned and self._safe(block)
            ]
            pinned, context = ([b for b in some if b not in self._struck] for some in (pinned, context))
            some = pinned if kind in (FLIPPED_PINNED, ZEROED_PINNED, SWAPPED_PINNED) else context
            if kind == STALE:
                return self._make_stale(context, chance)
            if not some or (kind == SWAPPED and len(context) < 2) or (kind == SWAPPED_PINNED and not context):
                return None
            first = chance.choice(some)
            if kind in (FLIPPED, FLIPPED_PINNED):
                return self._flip(first, self._size if first in pinned else self._safe(first), chance)
            if kind in (SWAPPED, SWAPPED_PINNED):
                return self._swap(first, chance.choice([block for block in context if block != first]))
            self._write(first, [torch.zeros_like(layer[first]) for layer in self._layers])
            return f"block {first} is zeros"

    def _safe(self, block: int) -> int:
        """Slots of it that are bound and not about to be written."""
        return min(self._bound[block], self._writing.get(block, self._size))

    def _flip(self, block: int, slots: int, chance: random.Random) -> str:
        offsets = self._residency.layout.offsets
        layer, slot = chance.randrange(len(self._layers)), chance.randrange(slots)
        part, head, dim = (chance.randrange(count) for count in offsets.shape[1:])
        at = int(offsets[slot, part, head, dim])
        memory = self._layers[layer][block, at : at + 1].view(torch.uint8)
        byte, bit = chance.randrange(len(memory)), chance.randrange(8)
        memory[byte] ^= 1 << bit
        self._struck.add(block)
        return f"block {block}, layer {layer}, slot {slot}, part {part}, head {head}, dim {dim}, byte {byte}, bit {bit}"

    def _swap(self, first: int, other: int) -> str:
        kept = [layer[first].clone() for layer in self._layers]
        self._write(first, [layer[other] for layer in self._layers])
        self._write(other, kept)
        return f"blocks {first} and {other} changed places"

    def _make_stale(self, context: Sequence[int], chance: random.Random) -> str | None:
        for block, copy in chance.sample(list(self._copies), len(self._copies)):
            if block in context and self._differs(block, copy):
                self._write(block, copy)
                return f"block {block} is an older copy of itself"
        return None

    def _differs(self, block: int, copy: list[Tensor]) -> bool:
        where = self._residency.layout.offsets[: self._safe(block)].flatten()
        return any(
            not torch.equal(layer[block][where], old[where])
            for layer, old in zip(self._layers, copy, strict=True)
        )

    def _write(self, block: int, content: Sequence[Tensor]) -> None:
        for layer, new in zip(self._layers, content, strict=True):
            layer[block].copy_(new)
        self._struck.add(block)


class Service:
    """The committer's thread, and the log as it sees it.

    Args:
        supervisor: of the engine.
    """

    def __init__(self, supervisor: Any) -> None:
        self._committer, log = supervisor.ledger._committer, supervisor._log
        self._append: Callable[..., Any] = log.append
        self._refusals = 0
        self._hang = False
        log.append = self._appended

    def strike(self, kind: str, chance: random.Random) -> str | None:
        """What was done; None while what was done before has not struck yet."""
        if kind == THREAD:
            self._committer._worker.jobs.put(None)
            return f"while it was {'at work' if self._committer.busy else 'idle'}"
        if self._refusals or self._hang:
            return None
        if kind == REFUSES:
            self._refusals = count = chance.randint(1, 2)
            return f"{count} times"
        self._hang = True
        return f"for {HANG:g} s"

    def _appended(self, entries: Any) -> Any:
        """The log's append; control's thread is not disturbed."""
        if threading.current_thread().name != COMMITTER:
            return self._append(entries)
        if self._refusals:
            self._refusals -= 1
            raise LogError("no room on the disk", remedy="This is a fault that the campaign has made")
        if self._hang:
            before, self._committer._timeout = self._committer._timeout, PATIENCE
            time.sleep(HANG)
            self._committer._timeout, self._hang = before, False
        return self._append(entries)
