"""What scheduler and workers tell each other at each step."""

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray
from vllm.distributed.kv_transfer.kv_connector.v1.base import KVConnectorMetadata, KVConnectorWorkerMetadata

Slots = NDArray[np.int64]
Digests = NDArray[np.uint8]
Sums = NDArray[np.float32]


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
    changed. alone: the anchor of all requests of this step, where they have the same. bind: slots that this step writes. check: what must still be what is bound to it, with a number for the answer.
    rewrite: anchors to be written again from their codes before anything is computed. scrub: whether to look at the pinned blocks.
    in_order: whether blocks under a check may be written to, which must wait for it.
    """

    step: int
    computes: bool = False
    installs: tuple[Install, ...] = ()
    owners: dict[int, int] = field(default_factory=dict)
    alone: int | None = None
    bind: Slots | None = None
    check: tuple[Span, ...] | None = None
    rewrite: tuple[int, ...] = ()
    scrub: bool = False
    in_order: bool = False


@dataclass
class StepReport(KVConnectorWorkerMetadata):  # type: ignore[misc]
    """From all workers to the scheduler: by rank where ranks differ, united where any counts.

    On a GPU what a step asked for is reported in a later step, so everything goes by the number of the step that asked.
    installed: fieldprint root by (anchor number, rank). digests: [n, 32] by step and rank, of the slots that it bound. checked: by
    step and rank, by span, block positions that are damaged. pinned: by step and rank, numbers of anchors that are damaged. mass: by
    anchor and rank, queries since the last report and sums over them, [num_layers, 2 (natural mass, weight), heads of the rank].
    """

    installed: dict[tuple[int, int], str] = field(default_factory=dict)
    digests: dict[tuple[int, int], Digests] = field(default_factory=dict)
    checked: dict[tuple[int, int], tuple[tuple[int, ...], ...]] = field(default_factory=dict)
    pinned: dict[tuple[int, int], frozenset[int]] = field(default_factory=dict)
    mass: dict[tuple[int, int], tuple[int, Sums]] = field(default_factory=dict)

    def aggregate(self, other: KVConnectorWorkerMetadata) -> "StepReport":
        """The reports of two ranks, or of several, as one.

        Raises:
            TypeError: the other is none.
        """
        if not isinstance(other, StepReport):
            raise TypeError(f"a worker has reported {type(other).__name__}")
        return StepReport(
            self.installed | other.installed,
            self.digests | other.digests,
            self.checked | other.checked,
            self.pinned | other.pinned,
            self.mass | other.mass,
        )
