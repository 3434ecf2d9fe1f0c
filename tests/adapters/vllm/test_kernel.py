"""Which kernel attends, what it refuses, and the means of what it sums."""

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from fieldprint.adapters.vllm import backend, impl
from fieldprint.adapters.vllm.connector import FieldprintConnector
from fieldprint.adapters.vllm.impl import PagedImpl
from fieldprint.adapters.vllm.mass import AnchorMass
from fieldprint.adapters.vllm.settings import ServeSettings, kernel_for
from fieldprint.adapters.vllm.versions import settings_in
from fieldprint.errors import CompatibilityError, FormatError

PLAIN: dict[str, Any] = {"operator": "floor", "g": 0.0, "window": None, "num_sinks": 0, "mass": False}
FILES = {"policy": "p", "model": "m", "log": "l", "log_key": "k", "receipts": "r"}


def config(connector: str = "FieldprintConnector", module: str | None = None, **extra: Any) -> Any:
    """As much of vLLM's configuration as is looked at."""
    transfer = SimpleNamespace(
        kv_connector=connector,
        kv_connector_module_path=module or "fieldprint.adapters.vllm.connector",
        kv_connector_extra_config=FILES | extra,
    )
    return SimpleNamespace(kv_transfer_config=transfer)


@pytest.mark.parametrize(
    "changed",
    [{"g": 0.1}, {"operator": "mixture", "g": 0.2}, {"window": 64}, {"num_sinks": 4}, {"mass": True}],
)
def test_what_vllms_kernels_cannot_do_needs_ours(changed: dict[str, Any]) -> None:
    assert kernel_for(None, **PLAIN) == "vllm" and kernel_for("paged", **PLAIN) == "paged"
    assert kernel_for(None, **(PLAIN | changed)) == "paged"
    with pytest.raises(FormatError, match='Set kernel to "paged"'):
        kernel_for("vllm", **(PLAIN | changed))
    with pytest.raises(FormatError, match='Set kernel to "paged"'):
        ServeSettings.from_config(FILES | changed)
    settings = ServeSettings.from_config(FILES | {"kernel": "paged"} | changed)
    assert ServeSettings.from_config(settings.to_config()) == settings


@pytest.mark.parametrize(
    ("changed", "what"),
    [
        ({"g": 1.5}, "g must lie within"),
        ({"g": float("nan")}, "g must lie within"),
        ({"operator": "sum"}, "operator must be one of"),
        ({"operator": "mixture"}, "no weight at all"),
        ({"window": 0}, "window must be at least 1"),
        ({"num_sinks": -1}, "num_sinks must not be negative"),
    ],
)
def test_settings_out_of_their_range_are_refused(changed: dict[str, Any], what: str) -> None:
    with pytest.raises(FormatError, match=what):
        kernel_for("paged", **(PLAIN | changed))


@pytest.mark.parametrize(
    ("changed", "what"),
    [({"g": "0.1"}, "g must be a number"), ({"mass": 1}, "mass must be true or false"), ({"window": True}, "window must be a number")],
)  # fmt: skip
def test_settings_of_another_type_are_refused(changed: dict[str, Any], what: str) -> None:
    with pytest.raises(FormatError, match=what):
        ServeSettings.from_config(FILES | {"kernel": "paged"} | changed)


def test_settings_are_those_of_our_connector_and_of_no_other() -> None:
    ours = settings_in(config(kernel="paged", g=0.25))
    assert ours is not None and ours.attention.g == 0.25
    assert settings_in(config("ExactConnector", "tests.adapters.vllm.exact")) is not None
    assert settings_in(config("SimpleNamespace", "types", anchors={}, foo=1)) is None
    assert settings_in(SimpleNamespace(kv_transfer_config=None)) is None
    assert settings_in(None) is None
    with pytest.raises(FormatError, match="foo"):
        settings_in(config(foo=1))


def made(monkeypatch: pytest.MonkeyPatch, **given: Any) -> PagedImpl:
    monkeypatch.setattr(impl, "config_of_model", lambda: config(kernel="paged"))
    return PagedImpl(9, 64, 0.125, 3, **given)


@pytest.mark.parametrize(
    ("given", "what"),
    [
        ({"alibi_slopes": [0.5]}, "ALiBi"),
        ({"sliding_window": 128}, "sliding window"),
        ({"logits_soft_cap": 30.0}, "soft cap"),
        ({"attn_type": "encoder"}, "encoder"),
        ({"kv_sharing_target_layer_name": "layer.0"}, "another layer's K/V"),
        ({"sinks": torch.zeros(9)}, "learned sinks"),
        ({"something_new": 1}, "something_new"),
    ],
)
def test_layers_that_need_more_are_refused(
    given: dict[str, Any], what: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(CompatibilityError, match=what):
        made(monkeypatch, **given)


def test_the_backend_gives_our_layers_where_the_settings_say_so(monkeypatch: pytest.MonkeyPatch) -> None:
    cpu: Any = backend.CpuBackend
    theirs = cpu.get_impl_cls()
    assert not issubclass(theirs, PagedImpl)  # no engine is being made
    monkeypatch.setattr(backend, "config_of_model", lambda: config())
    assert cpu.get_impl_cls() is theirs
    monkeypatch.setattr(backend, "config_of_model", lambda: config(kernel="paged"))
    assert cpu.get_impl_cls() is PagedImpl


@pytest.mark.parametrize("kernel", ["vllm", "paged"])
def test_an_engine_whose_layers_attend_by_another_kernel_ends(
    kernel: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    connector = FieldprintConnector.__new__(FieldprintConnector)
    connector.settings = ServeSettings.from_config(FILES | {"kernel": kernel})
    other = object() if kernel == "paged" else made(monkeypatch)
    connector._layers = [SimpleNamespace(impl=other)]
    with pytest.raises(CompatibilityError, match="layer 0 attends by"):
        connector._choose_kernel()


def test_a_cache_of_another_dtype_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    connector = FieldprintConnector.__new__(FieldprintConnector)
    connector.settings = ServeSettings.from_config(FILES | {"kernel": "paged"})
    connector._layers = [SimpleNamespace(impl=made(monkeypatch))]
    connector._caches = [torch.zeros(1, dtype=torch.bfloat16)]
    connector._config = SimpleNamespace(model_config=SimpleNamespace(dtype=torch.float32))
    with pytest.raises(CompatibilityError, match="--kv-cache-dtype auto"):
        connector._choose_kernel()


def test_means_hold_after_weeks_and_join_the_heads_of_all_ranks() -> None:
    mass = AnchorMass(2)
    for rank in range(2):
        mass.take({(1, rank): (2**30, np.full((3, 2, 4), 2.0**28, np.float32))})
        assert (mass.of(1) is None) == (rank == 0)
    for _ in range(4096):  # each is below the last bit that a float32 of the sum has
        mass.take({(1, rank): (8, np.full((3, 2, 4), 8.0, np.float32)) for rank in range(2)})
    found = mass.of(1)
    assert found is not None and found["queries"] == 2**30 + 8 * 4096
    assert np.array(found["natural"]).shape == np.array(found["weight"]).shape == (3, 8)
    assert found["natural"][0][0] == pytest.approx((2**28 + 8 * 4096) / (2**30 + 8 * 4096), abs=1e-6)
    assert mass.of(2) is None
