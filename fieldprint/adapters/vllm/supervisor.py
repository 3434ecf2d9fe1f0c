"""Everything of Fieldprint that lives beside vLLM's scheduler: policy, log, anchors, ledger, and the orders of each step."""

from collections import deque
from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from fieldprint.adapters.model_folder import model_digest
from fieldprint.adapters.vllm.anchors import ServedAnchor, ServedAnchors, read_file
from fieldprint.adapters.vllm.control import ControlFolder, LiveRegistry
from fieldprint.adapters.vllm.ledger import Ledger
from fieldprint.adapters.vllm.mass import AnchorMass
from fieldprint.adapters.vllm.messages import StepOrders, StepReport
from fieldprint.adapters.vllm.metrics import ANCHORS, new_counters
from fieldprint.adapters.vllm.receipts import ReceiptFolder
from fieldprint.adapters.vllm.row import Row
from fieldprint.adapters.vllm.settings import ServeSettings
from fieldprint.adapters.vllm.watching import WatchedOnce
from fieldprint.anchor import Policy
from fieldprint.errors import (
    CapacityError,
    CompatibilityError,
    FieldprintError,
    IntegrityError,
)
from fieldprint.registry.append import open_log
from fieldprint.registry.events import Promotion
from fieldprint.registry.gate import Watched
from fieldprint.registry.orders import OrdersFile, record_orders
from fieldprint.registry.state import Registry
from fieldprint.tlog import LogReader


class Supervisor:
    """Opens what the settings name, verifies the anchors, and plans what workers do at each step.

    Args:
        settings: of the engine.
        block_size: tokens of a block.
        num_blocks: of the cache.
        longest: tokens that a request may have.
        ranks: workers.

    Raises:
        VerificationError: an anchor or the log's key is not what the policy asks for; nothing is served.
        FormatError, LogError, CapacityError: a file is not what it should be.
    """

    def __init__(
        self, settings: ServeSettings, *, block_size: int, num_blocks: int, longest: int, ranks: int
    ) -> None:
        self.settings, self._size, self._ranks = settings, block_size, ranks
        self._longest, self.mass = longest, AnchorMass(ranks)
        if settings.provisional_cap < 2 * block_size:
            raise CompatibilityError(
                f"blocks of {block_size} tokens are committed whole, and only {settings.provisional_cap} may be provisional",
                remedy=f"Start with --block-size {settings.provisional_cap // 2} or less, or a larger provisional_cap",
            )
        self._closing = ExitStack()
        with ExitStack() as stack:
            policy = Policy.from_bytes(read_file(settings.policy))
            model = model_digest(Path(settings.model))
            last_signed = None if settings.last_signed is None else Path(settings.last_signed)
            log = stack.enter_context(
                open_log(settings.log, Path(settings.log_key), policy, last_signed=last_signed)
            )
            orders = None if settings.orders is None else OrdersFile(Path(settings.orders), policy)
            if orders is None:
                known = Registry.replay(LogReader(log.source, [policy.log_key]).entries(), policy)
            else:
                known = record_orders(orders, log, policy).registry
            live = LiveRegistry(log, policy, known)
            sources: list[Watched] = [live]
            if settings.database is not None:
                from fieldprint.registry.watched import WatchedDatabase

                sources.append(stack.enter_context(WatchedDatabase(settings.database, policy)))
            self.anchors = ServedAnchors(
                settings, policy, model=model, view=live, watched=WatchedOnce(*sources), orders=orders
            )
            self.ledger = Ledger(
                log,
                model=model,
                block_size=block_size,
                interval=settings.provisional_cap - block_size,
                num_blocks=num_blocks,
                ranks=ranks,
                decode=_decoder(settings.model),
                receipts=ReceiptFolder(Path(settings.receipts), log.source, policy.log_key),
                log_timeout=settings.log_timeout,
                attention=settings.attention,
            )
            stack.callback(self.ledger.close)
            self._model, self._log, self._live = model, log, live
            for anchor in self.anchors.all[1:]:
                self._promote(anchor)
            self._new: deque[ServedAnchor] = deque()
            self._pool: Any = None
            self._closing = stack.pop_all()
        self._owners = np.zeros(num_blocks, dtype=np.int64)
        self._step = 0
        self.damaged_anchors: set[int] = set()
        self._rewrite: tuple[int, ...] = ()
        self._written_at: dict[int, int] = {}  # by anchor, the step before which it was written again
        self.counters = new_counters()

    def take_blocks(self, pool: Any) -> None:
        """Take each anchor's blocks out of vLLM's pool, which later anchors' come from too, and begin to listen.

        Raises:
            CompatibilityError, CapacityError: as `_check_size`. FieldprintError: the control folder cannot be made.
        """
        self._pool = pool
        for anchor in self.anchors.all[1:]:
            self._check_size(anchor)
            self._take_blocks_of(anchor)
        if self.settings.control is not None:
            control = ControlFolder(Path(self.settings.control), self._live, self._install, self.state)
            self._closing.callback(control.close)

    def take_new_anchors(self) -> None:
        """Take the blocks of anchors that came at run time, once there is room; the next step's orders install them."""
        while self._new and self._new[0].tokens // self._size < self._pool.get_num_free_blocks():
            self._take_blocks_of(self._new.popleft())

    def _check_size(self, anchor: ServedAnchor) -> None:
        """Pass with an anchor that fits.

        Raises:
            CompatibilityError: it does not fill its blocks. CapacityError: the cache has too few.
        """
        if anchor.tokens % self._size:
            raise CompatibilityError(
                f"the anchor {anchor.name} has {anchor.tokens} tokens, no multiple of the {self._size} of a block",
                remedy="Start with --block-size 32 or 16",
            )
        left = self._pool.num_gpu_blocks - 1 - anchor.tokens // self._size  # one is vLLM's own
        waiting = sum(other.tokens // self._size for other in self._new)
        if left - waiting < -(-self._longest // self._size):
            raise CapacityError(
                f"beside the anchor {anchor.name} the cache has no room for one request of {self._longest} tokens",
                remedy="Give vLLM more memory, or start with a smaller --max-model-len",
            )

    def _take_blocks_of(self, anchor: ServedAnchor) -> None:
        """vLLM compares the pool's count of blocks with those that are free before it empties its prefix cache: it is lowered."""
        count = anchor.tokens // self._size
        anchor.blocks = tuple(block.block_id for block in self._pool.get_new_blocks(count))
        self._pool.num_gpu_blocks -= count

    def _install(self, name: str, signed: bytes, file: str) -> None:
        """Verify an anchor and have it installed at the next step; called by the control folder's thread."""
        anchor = self.anchors.make(name, signed, file)
        self._check_size(anchor)
        self._promote(anchor)
        self.anchors.admit(anchor)
        self._new.append(anchor)

    def _promote(self, anchor: ServedAnchor) -> None:
        """Put the promotion into the log."""
        if anchor.verified is None or anchor.root is None:
            raise FieldprintError(f"the anchor {anchor.name} was not verified")
        artifact = anchor.verified.artifact
        promotion = Promotion(
            anchor.verified.digest, anchor.root, self._model, artifact.kind, artifact.supersedes
        )
        self._log.append([promotion.to_entry()])

    def state(self) -> dict[str, Any]:
        """What the control folder says of this engine."""
        anchors = [
            {
                "name": anchor.name,
                "digest": anchor.digest,
                "root": anchor.root,
                "tokens": anchor.tokens,
                "ready": anchor.ready,
                "mass": self.mass.of(anchor.index),
                "ruling": None if anchor.ruling is None else asdict(anchor.ruling),
            }
            for anchor in tuple(self.anchors.all[1:])
        ]
        return {"anchors": anchors, "default": self.anchors.default.name or None}

    def plan(self, output: Any) -> StepOrders:
        """The orders that go with vLLM's plan of a step."""
        self._step += 1
        scheduled, owners = [], {}
        present: set[int] = set()
        for request_id, count in output.num_scheduled_tokens.items():
            row = self.ledger.rows.get(request_id)
            if row is None:
                raise IntegrityError(
                    f"vLLM has scheduled the request {request_id}, which the ledger does not know"
                )
            blocks = self._blocks_of(row)
            if self._owners[blocks[0]] != row.anchor.index:
                self._owners[blocks[0]] = owners[blocks[0]] = row.anchor.index
            present.add(row.anchor.index)
            scheduled.append((row, row.request.num_computed_tokens, count, blocks))
        bind, check = self.ledger.plan(self._step, scheduled)
        rewrite, self._rewrite = self._rewrite, ()
        self._written_at |= dict.fromkeys(rewrite, self._step)
        return StepOrders(
            self._step,
            computes=bool(scheduled),
            installs=tuple(
                anchor.install() for anchor in tuple(self.anchors.all) if anchor.blocks and not anchor.ready
            ),
            owners=owners,
            alone=next(iter(present)) if len(present) == 1 else None,
            bind=bind,
            check=check,
            rewrite=rewrite,
            in_order=self.ledger.overtaken,
            scrub=self._step % self.settings.scrub_interval == 0,
        )

    def may_start(self, request: Any) -> bool:
        """Whether every worker has this request's anchor in its blocks."""
        row = self.ledger.rows.get(request.request_id)
        return row is not None and row.anchor.ready

    def follow(self, cache_manager: Any) -> None:
        """Where the blocks of requests are looked up."""
        self._cache_manager = cache_manager

    def _blocks_of(self, row: Row) -> list[int]:
        blocks: list[int] = self._cache_manager.get_block_ids(row.request.request_id)[0]
        return blocks

    def take(self, report: StepReport) -> None:
        """What the workers of a step report.

        Raises:
            IntegrityError: a worker has another fieldprint than the signed one.
        """
        for (index, rank), root in report.installed.items():
            anchor = self.anchors.all[index]
            if root != anchor.root:
                raise IntegrityError(
                    f"worker {rank} has another fieldprint of the anchor {anchor.name} than the signed one"
                )
            anchor.acknowledged |= {rank}
            anchor.ready = len(anchor.acknowledged) == self._ranks
        self.mass.take(report.mass)
        self.counters[ANCHORS] = sum(anchor.ready for anchor in self.anchors.all[1:])
        for (step, rank), found in report.pinned.items():
            damaged = frozenset(index for index in found if step >= self._written_at.get(index, 0))
            report.pinned[step, rank] = damaged
            self.damaged_anchors |= damaged
        self.ledger.take(report)

    def rewrite(self, anchors: frozenset[int]) -> None:
        """Have these anchors written again before the next step."""
        self._rewrite = tuple(sorted({*self._rewrite, *anchors}))
        self.damaged_anchors -= anchors

    def distrust(self, row: Row) -> None:
        """Have nobody find in the prefix cache what of a request no clean pass has looked at; it is about to lose its blocks.

        They may have been computed from damage that is not found yet, and which will not be traced to them any more.
        """
        self._pool.evict_blocks(set(row.blocks[row.verified // self._size :]))

    def forget(self, request: Any) -> None:
        """A request has ended."""
        row = self.ledger.rows.get(request.request_id)
        if row is not None:
            self.distrust(row)
            self.ledger.drop(row)

    def close(self) -> None:
        """Close the log and the database."""
        self._closing.close()


def _decoder(model: str) -> Any:
    """Tokens of an answer to its text, as the model's tokenizer has it."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(model, local_files_only=True)
    return lambda tokens: tokenizer.decode(tokens, skip_special_tokens=True)
