"""Fieldprint as vLLM's KV connector: the scheduler's half keeps the ledger, the worker's half installs, hashes and checks.

No request is scheduled before every worker has said which fieldprint lies in its blocks; a worker in which anything is not
as it must be raises, and vLLM ends the engine.
"""

from collections import deque
from typing import Any

import torch
from vllm.distributed import get_tensor_model_parallel_rank
from vllm.distributed.kv_transfer.kv_connector.v1.base import (
    KVConnectorBase_V1,
    KVConnectorRole,
    SupportsHMA,
)

from fieldprint.adapters.vllm.backend import AnchorBuilder, AnchorTable
from fieldprint.adapters.vllm.layout import learn_layout
from fieldprint.adapters.vllm.messages import Digests, StepOrders, StepReport, Sums
from fieldprint.adapters.vllm.metrics import FieldprintMetrics, FieldprintStats, new_counters
from fieldprint.adapters.vllm.paged import MassSums
from fieldprint.adapters.vllm.residency import Asked, Installed, Residency, digests_of
from fieldprint.adapters.vllm.settings import PAGED, ServeSettings
from fieldprint.adapters.vllm.supervisor import Supervisor
from fieldprint.adapters.vllm.versions import check_engine
from fieldprint.errors import CompatibilityError, IntegrityError


class FieldprintConnector(KVConnectorBase_V1, SupportsHMA):  # type: ignore[misc]
    """Both halves; vLLM makes one in the scheduler's process and one in each worker.

    Args:
        vllm_config: the engine's.
        role: which half.
        kv_cache_config: groups of layers and the number of blocks.

    Raises:
        CompatibilityError: the engine has something that is not covered.
        FieldprintError: in the scheduler's half, as `Supervisor`.
    """

    def __init__(self, vllm_config: Any, role: KVConnectorRole, kv_cache_config: Any) -> None:
        super().__init__(vllm_config, role, kv_cache_config)
        check_engine(vllm_config, kv_cache_config)
        self.settings = ServeSettings.from_config(vllm_config.kv_transfer_config.kv_connector_extra_config)
        self._config = vllm_config
        spec = kv_cache_config.kv_cache_groups[0].kv_cache_spec
        self._spec = spec
        if role == KVConnectorRole.SCHEDULER:
            self.supervisor = Supervisor(
                self.settings,
                block_size=spec.block_size,
                num_blocks=kv_cache_config.num_blocks,
                longest=vllm_config.model_config.max_model_len,
                ranks=vllm_config.parallel_config.tensor_parallel_size,
            )
        else:
            self._applied = self._looked = -1
            self._report = StepReport()
            self._binding: deque[tuple[int, Asked[Digests]]] = deque()
            self._checking: deque[tuple[StepOrders, tuple[int, ...], Asked[tuple[tuple[int, ...], ...]]]] = (
                deque()
            )
            self._installed: dict[int, Installed] = {}
            self._sums: MassSums | None = None
            self._summing: deque[tuple[dict[int, int], Asked[Sums]]] = deque()
        self._told: dict[str, float] = new_counters()

    # The scheduler's half

    def bind_gpu_block_pool(self, gpu_block_pool: Any) -> None:
        """Take the anchors' blocks out of the pool, for good."""
        self.supervisor.take_blocks(gpu_block_pool)

    def get_num_new_matched_tokens(self, request: Any, num_computed_tokens: int) -> tuple[int | None, bool]:
        """Nothing is loaded from elsewhere; while a worker has not installed its anchor, the request waits."""
        del num_computed_tokens
        return (0, False) if self.supervisor.may_start(request) else (None, False)

    def update_state_after_alloc(self, request: Any, blocks: Any, num_external_tokens: int) -> None:
        """Nothing is loaded from elsewhere."""

    def build_connector_meta(self, scheduler_output: Any) -> StepOrders:
        """The orders of this step."""
        return self.supervisor.plan(scheduler_output)

    def update_connector_output(self, connector_output: Any) -> None:
        """Take the workers' reports."""
        report = connector_output.kv_connector_worker_meta
        if isinstance(report, StepReport):
            self.supervisor.take(report)

    def get_kv_connector_stats(self) -> FieldprintStats | None:
        """What was counted since the last time; the worker's half counts nothing."""
        if not hasattr(self, "supervisor") or self._told == self.supervisor.counters:
            return None
        before, self._told = self._told, dict(self.supervisor.counters)
        return FieldprintStats.since(before, self._told)

    @classmethod
    def build_kv_connector_stats(cls, data: dict[str, Any] | None = None) -> FieldprintStats:
        """What another process has told."""
        return FieldprintStats() if data is None else FieldprintStats(data)

    @classmethod
    def build_prom_metrics(
        cls, vllm_config: Any, metric_types: Any, labelnames: list[str], per_engine_labelvalues: Any
    ) -> FieldprintMetrics:
        """What shows it at /metrics."""
        return FieldprintMetrics(vllm_config, metric_types, labelnames, per_engine_labelvalues)

    def request_finished(self, request: Any, block_ids: list[int]) -> tuple[bool, dict[str, Any] | None]:
        """Blocks may go: what had to be looked at was looked at before the request ended."""
        del block_ids
        self.supervisor.forget(request)
        return False, None

    def request_finished_all_groups(
        self, request: Any, block_ids: tuple[list[int], ...]
    ) -> tuple[bool, dict[str, Any] | None]:
        """As `request_finished`."""
        return self.request_finished(request, list(block_ids[0]))

    # The worker's half

    def register_kv_caches(self, kv_caches: dict[str, torch.Tensor]) -> None:
        """Learn how blocks are laid out, by the layers' own writers.

        Raises:
            CompatibilityError: a layer's metadata are not built by ours, or its blocks are not understood.
        """
        layers = self._config.compilation_config.static_forward_context
        for name in kv_caches:
            builder = layers[name].get_attn_backend().get_builder_cls()
            if not issubclass(builder, AnchorBuilder):
                raise CompatibilityError(
                    f"layer {name} attends by {builder.__name__}, which puts no anchor in front",
                    remedy="Name fieldprint in VLLM_PLUGINS, and look in vLLM's log why the plugin did not load",
                )
        self._layers = [layers[name] for name in kv_caches]
        self._caches = list(kv_caches.values())
        self._choose_kernel()
        spec, first, cache = self._spec, self._layers[0], self._caches[0]

        def write(k: torch.Tensor, v: torch.Tensor, slots: torch.Tensor) -> None:
            first.impl.do_kv_cache_update(first, k, v, cache, slots)

        # Block 0 is vLLM's null block: no request has it.
        layout = learn_layout(cache, 0, spec.block_size, spec.num_kv_heads, spec.head_size, write)
        self.residency = Residency(self._caches, layout)
        self.table = AnchorTable(cache.shape[0], cache.device)

    def _choose_kernel(self) -> None:
        """See that every layer attends by the kernel of the settings, and sums mass if it shall.

        Raises:
            CompatibilityError: a layer attends by another.
        """
        from fieldprint.adapters.vllm.impl import PagedImpl

        ours = self.settings.kernel == PAGED
        for number, layer in enumerate(self._layers):
            if isinstance(layer.impl, PagedImpl) != ours:
                raise CompatibilityError(
                    f"layer {number} attends by {type(layer.impl).__name__}, and the kernel of the settings is "
                    f"{self.settings.kernel}",
                    remedy="Choose another attention backend",
                )
            if ours and self._caches[number].dtype != self._config.model_config.dtype:
                raise CompatibilityError(
                    f"K/V are in {self._caches[number].dtype}, and Fieldprint's kernel needs the model's {self._config.model_config.dtype}",
                    remedy="Start with --kv-cache-dtype auto",
                )
            if ours and self.settings.mass:
                if self._sums is None:
                    heads, device = layer.impl.num_heads, self._caches[0].device
                    self._sums = MassSums(len(self._layers), heads, device)
                layer.impl.number, layer.impl.sums = number, self._sums

    def handle_preemptions(self, kv_connector_metadata: StepOrders) -> None:
        """What must be so before this step's metadata are built: anchors in their blocks, requests with their anchors."""
        orders = kv_connector_metadata
        if orders.step == self._applied:
            return
        if orders.in_order or orders.rewrite:
            self.residency.order()
        elif self._binding:
            self._binding[-1][1].before(self.residency.device)
        for order in orders.installs:
            if order.index not in self._installed:
                self._installed[order.index] = self._loaded(order.index, order.file, order.root, order.blocks)
            installed = self._installed[order.index]
            self._report.installed[order.index, self._rank] = installed.root
        for index in orders.rewrite:
            self.residency.install(self._installed[index])
        self.table.own(orders.step, orders.owners, orders.alone)
        self._applied = orders.step

    @property
    def _rank(self) -> int:
        rank: int = get_tensor_model_parallel_rank()
        return rank

    def _loaded(self, index: int, file: str, root: str, blocks: tuple[int, ...]) -> Installed:
        from pathlib import Path

        from fieldprint.promote import Fieldprint

        fieldprint = Fieldprint.load(Path(file))
        if fieldprint.root() != root:
            raise IntegrityError(
                f"{file} does not have the root that was signed",
                remedy="Make it again: fieldprint promote --out",
            )
        values = self.anchor_values(fieldprint)
        heads = self._spec.num_kv_heads
        total = values.shape[3]
        # With more ranks than heads several have the same one.
        first = self._rank * heads if total > heads else 0
        if (
            total > heads
            and total % heads == 0
            and self._config.parallel_config.tensor_parallel_size > total // heads
        ):
            first = self._rank * total // self._config.parallel_config.tensor_parallel_size
        values = values[:, :, :, first : first + heads].transpose(1, 2).transpose(0, 1).contiguous()
        expected = (len(self._caches), self._spec.block_size * len(blocks), heads, self._spec.head_size)
        if (values.shape[1], values.shape[0], *values.shape[3:]) != expected:
            raise IntegrityError(f"{file} has the sizes of another model, or of other blocks")
        installed = Installed(root, blocks, values, digests_of(values).numpy())
        self.residency.install(installed)
        self.table.put(index, blocks)
        return installed

    def anchor_values(self, fieldprint: Any) -> torch.Tensor:
        """K/V of an anchor in the cache's dtype, [num_layers, 2, A, heads, dim]; exact, since codes are."""
        values: torch.Tensor = fieldprint.values(self._caches[0].dtype)
        return values

    def start_load_kv(self, forward_context: Any, **kwargs: Any) -> None:
        """Nothing is loaded from elsewhere; see that this step's orders were carried out in time.

        Raises:
            CompatibilityError: they were not: this runner of vLLM builds metadata first.
        """
        del forward_context, kwargs
        orders = self._get_connector_metadata()
        if not orders.computes:
            self.handle_preemptions(orders)
        elif self._applied != orders.step or self.table.built != orders.step:
            raise CompatibilityError(
                "a step was computed with metadata that were built before its anchors were known",
                remedy="Set VLLM_USE_V2_MODEL_RUNNER=0",
            )

    def wait_for_layer_load(self, layer_name: str) -> None:
        """Nothing is loaded from elsewhere."""

    def save_kv_layer(self, layer_name: str, kv_layer: Any, attn_metadata: Any, **kwargs: Any) -> None:
        """Nothing: a step is looked at when it is over."""

    def wait_for_save(self) -> None:
        """Bind what the step has written, and check what is due."""
        self._look(self._get_connector_metadata())

    def _look(self, orders: StepOrders) -> None:
        """The work behind a step, once: 0.24 does not call `wait_for_save` where nothing was computed."""
        self.handle_preemptions(orders)
        if orders.step == self._looked:
            return
        self._looked = orders.step
        if orders.bind is not None and len(orders.bind):
            self._binding.append((orders.step, self.residency.bind(orders.bind)))
        if orders.check is not None or orders.scrub:
            pinned = tuple(self._installed)
            spans = [self._installed[index].span(self.residency.size) for index in pinned]
            asked = self.residency.damaged([*spans, *(orders.check or ())])
            self._checking.append((orders, pinned, asked))
        taken = self._sums.take() if orders.scrub and self._sums is not None else None
        if taken is not None:
            self._summing.append((taken[0], self.residency.copied(taken[1])))

    def build_connector_worker_meta(self) -> StepReport | None:
        """What is there of the answers to this step's orders, and to earlier ones'."""
        self._look(self._get_connector_metadata())
        rank = self._rank
        while self._binding and self._binding[0][1].ready():
            step, bound = self._binding.popleft()
            self._report.digests[step, rank] = bound.result().copy()
        while self._checking and self._checking[0][2].ready():
            orders, pinned, asked = self._checking.popleft()
            found = asked.result()
            self._report.pinned[orders.step, rank] = frozenset(
                index for index, numbers in zip(pinned, found, strict=False) if numbers
            )
            if orders.check is not None:
                self._report.checked[orders.step, rank] = found[len(pinned) :]
        while self._summing and self._summing[0][1].ready():
            queries, sums = self._summing.popleft()
            for (index, count), values in zip(queries.items(), sums.result(), strict=True):
                before = self._report.mass.get((index, rank))
                self._report.mass[index, rank] = (
                    (count, values) if before is None else (before[0] + count, before[1] + values)
                )
        report, self._report = self._report, StepReport()
        return report

    def shutdown(self) -> None:
        """End the threads."""
        if hasattr(self, "supervisor"):
            self.supervisor.close()
        if hasattr(self, "residency"):
            self.residency.close()
