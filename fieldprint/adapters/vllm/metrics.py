"""Fieldprint's metrics beside vLLM's, at /metrics: counted by the scheduler, told with each step's statistics.

vllm:fieldprint_anchors{engine="0",...} 1.0
vllm:fieldprint_committed_tokens_total{engine="0",...} 1216.0
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from prometheus_client import Counter, Gauge
from vllm.distributed.kv_transfer.kv_connector.v1.metrics import KVConnectorPromMetrics, KVConnectorStats

ANCHORS = "anchors"
COUNTED = {
    "committed_tokens": "Tokens that a signed checkpoint of the log covers, prompts included.",
    "rolled_back": "Requests that were taken back to their last committed token.",
    "faults": "Damage that was found, and refusals of the log.",
    "commits": "Passes of the committer.",
    "commit_seconds": "Time that these took.",
}
PREFIX = (
    "vllm:fieldprint_"  # vLLM takes metrics that bear its name out of the registry when an engine starts anew
)


def new_counters() -> dict[str, float]:
    """What is counted from an engine's start on: zeros."""
    return dict.fromkeys((ANCHORS, *COUNTED), 0.0)


@dataclass
class FieldprintStats(KVConnectorStats):  # type: ignore[misc]
    """`data`: the number of anchors as it is, and by how much each counter has grown."""

    data: dict[str, float] = field(default_factory=new_counters)

    @classmethod
    def since(cls, before: Mapping[str, float], now: Mapping[str, float]) -> "FieldprintStats":
        """What has come between two readings of the counters."""
        return cls({name: now[name] - (0.0 if name == ANCHORS else before[name]) for name in now})

    def reset(self) -> None:
        """To zeros."""
        self.data = new_counters()

    def aggregate(self, other: KVConnectorStats) -> "FieldprintStats":
        """This and what came after it."""
        added = {name: self.data[name] + other.data[name] for name in COUNTED}
        return FieldprintStats({ANCHORS: other.data[ANCHORS], **added})

    def reduce(self) -> dict[str, int | float]:
        """What vLLM's line in its own log says."""
        return {f"fieldprint_{name}": round(value, 3) for name, value in self.data.items()}

    def is_empty(self) -> bool:
        """Never: a connector that has nothing new tells nothing."""
        return False


class FieldprintMetrics(KVConnectorPromMetrics):  # type: ignore[misc]
    """Prometheus's side, in the API server's process; arguments as vLLM gives them."""

    def __init__(
        self,
        vllm_config: Any,
        metric_types: Any,
        labelnames: list[str],
        per_engine_labelvalues: dict[int, list[object]],
    ) -> None:
        super().__init__(vllm_config, metric_types, labelnames, per_engine_labelvalues)
        self._anchors = metric_types[Gauge](
            name=f"{PREFIX}{ANCHORS}",
            documentation="Anchors that this engine serves.",
            labelnames=labelnames,
            multiprocess_mode="mostrecent",
        )
        self._counted = {
            name: metric_types[Counter](name=f"{PREFIX}{name}", documentation=text, labelnames=labelnames)
            for name, text in COUNTED.items()
        }
        for values in per_engine_labelvalues.values():  # so that a zero is shown as one
            for metric in (self._anchors, *self._counted.values()):
                metric.labels(*values)

    def observe(self, transfer_stats_data: dict[str, Any], engine_idx: int = 0) -> None:
        """Take what an engine has told."""
        values = self.per_engine_labelvalues[engine_idx]
        self._anchors.labels(*values).set(transfer_stats_data[ANCHORS])
        for name, metric in self._counted.items():
            metric.labels(*values).inc(transfer_stats_data[name])
