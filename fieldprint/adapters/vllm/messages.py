"""What scheduler and workers tell each other at each step."""

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray
from vllm.distributed.kv_transfer.kv_connector.v1.base import KVConnectorMetadata, KVConnectorWorkerMetadata

Slots = NDArray[np.int64]
Digests = NDArray[np.uint8]


@dataclass(frozen=True)
class Install:
    """An anchor to be put into blocks: number `index` (from 1 on), the file of its fieldprint, the root that it must have."""

    index: int
    file: str
    root: str
    blocks: tuple[int, ...]


@dataclass(frozen=True)
class Span:
    """The first `count` positions of a request, and the blocks that hold them."""

    blocks: tuple[int, ...]
    count: int


@dataclass
class StepOrders(KVConnectorMetadata):  # type: ignore[misc]
    """From the scheduler to each worker.

    installs: anchors that some worker may not have yet; owners: anchor number by first block of a request, where it has
    changed. bind: slots that this step writes. check: what must still be what is bound to it, with a number for the answer.
    rewrite: anchors to be written again from their codes before anything is computed. scrub: whether to look at the pinned blocks.
    """

    step: int
    computes: bool = False
    installs: tuple[Install, ...] = ()
    removed: tuple[int, ...] = ()
    owners: dict[int, int] = field(default_factory=dict)
    bind: Slots | None = None
    check: tuple[Span, ...] | None = None
    rewrite: tuple[int, ...] = ()
    scrub: bool = False


@dataclass
class StepReport(KVConnectorWorkerMetadata):  # type: ignore[misc]
    """From all workers to the scheduler: by rank where ranks differ, united where any counts.

    installed: fieldprint root by (anchor number, rank). digests: [n, 32] by rank, of the slots that the step bound. damaged: by span of
    the check, block positions in it; None where nothing was checked. pinned: numbers of anchors that are damaged.
    """

    step: int
    installed: dict[tuple[int, int], str] = field(default_factory=dict)
    digests: dict[int, Digests] = field(default_factory=dict)
    damaged: tuple[tuple[int, ...], ...] | None = None
    pinned: frozenset[int] = frozenset()

    def aggregate(self, other: KVConnectorWorkerMetadata) -> "StepReport":
        """The reports of two ranks, or of several, as one.

        Raises:
            ValueError: they are of different steps, or only one has checked.
        """
        if not isinstance(other, StepReport) or other.step != self.step:
            raise ValueError("workers have reported different steps")
        if (self.damaged is None) != (other.damaged is None):
            raise ValueError("some workers have checked and others have not")
        damaged = None
        if self.damaged is not None and other.damaged is not None:
            pairs = zip(self.damaged, other.damaged, strict=True)
            damaged = tuple(tuple(sorted({*ours, *theirs})) for ours, theirs in pairs)
        return StepReport(
            self.step,
            self.installed | other.installed,
            self.digests | other.digests,
            damaged,
            self.pinned | other.pinned,
        )
