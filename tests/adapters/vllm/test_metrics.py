"""Counters on their way from the scheduler to Prometheus; test_server.py reads them at /metrics."""

from functools import partial
from itertools import pairwise
from types import SimpleNamespace

import pytest

pytest.importorskip("vllm")

from hypothesis import given
from hypothesis import strategies as st
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

from fieldprint.adapters.vllm.metrics import ANCHORS, COUNTED, PREFIX, FieldprintMetrics, FieldprintStats

NUMBERS = st.integers(0, 1000).map(float)
READINGS = st.lists(
    st.fixed_dictionaries(dict.fromkeys((ANCHORS, *COUNTED), NUMBERS)), min_size=2, max_size=6
)


@given(READINGS)
def test_what_was_told_in_parts_is_what_was_counted(readings: list[dict[str, float]]) -> None:
    parts = [FieldprintStats.since(*pair) for pair in pairwise(readings)]
    whole = parts[0]
    for part in parts[1:]:
        whole = whole.aggregate(part)
    assert whole.data == FieldprintStats.since(readings[0], readings[-1]).data
    assert whole.data[ANCHORS] == readings[-1][ANCHORS]


def test_prometheus_shows_the_last_gauge_and_the_sum_of_each_counter() -> None:
    registry = CollectorRegistry()
    types = {kind: partial(kind, registry=registry) for kind in (Counter, Gauge, Histogram)}
    config = SimpleNamespace(kv_transfer_config=None)
    metrics = FieldprintMetrics(config, types, ["engine"], {0: ["0"], 1: ["1"]})
    label = {"engine": "1"}
    assert registry.get_sample_value(f"{PREFIX}faults_total", label) == 0
    for anchors, faults in ((2.0, 1.0), (1.0, 4.0)):
        metrics.observe({**FieldprintStats().data, ANCHORS: anchors, "faults": faults}, 1)
    assert registry.get_sample_value(f"{PREFIX}{ANCHORS}", label) == 1
    assert registry.get_sample_value(f"{PREFIX}faults_total", label) == 5
    assert registry.get_sample_value(f"{PREFIX}faults_total", {"engine": "0"}) == 0


def test_statistics_begin_anew() -> None:
    stats = FieldprintStats(dict.fromkeys((ANCHORS, *COUNTED), 3.0))
    assert set(stats.reduce().values()) == {3.0} and not stats.is_empty()
    stats.reset()
    assert set(stats.data.values()) == {0.0}
