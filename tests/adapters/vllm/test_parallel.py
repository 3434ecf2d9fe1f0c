"""Tensor parallel: each worker hashes its heads, and a leaf binds all of them."""

from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import blake3
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fieldprint.adapters.vllm.ledger import united
from fieldprint.adapters.vllm.messages import StepReport
from fieldprint.verify import verify_receipt
from tests.adapters.vllm.test_equality import play
from tests.adapters.vllm.world import World


@given(ranks=st.permutations(range(4)), count=st.integers(0, 5), seed=st.integers(0, 99))
def test_digests_are_united_in_the_order_of_ranks_whoever_tells_first(
    ranks: list[int], count: int, seed: int
) -> None:
    drawn = np.random.default_rng(seed).integers(0, 256, (4, count, 32), dtype=np.uint8)
    report = StepReport()
    for rank in ranks:
        report = report.aggregate(StepReport(digests={(7, rank): drawn[rank]}))
    told = {rank: report.digests[7, rank] for rank in ranks}
    expected = [
        blake3.blake3(b"".join(drawn[rank, row].tobytes() for rank in range(4))).digest()
        for row in range(count)
    ]
    assert [row.tobytes() for row in united(told)] == expected
    assert np.array_equal(united({2: drawn[2]}), drawn[2])


def test_a_report_of_something_else_is_refused() -> None:
    with pytest.raises(TypeError, match="reported"):
        StepReport().aggregate(object())  # type: ignore[arg-type]


@pytest.mark.slow
def test_three_workers_say_what_one_says(model: Any, model_folder: Path, tmp_path: Path) -> None:
    world = World(tmp_path, model, model_folder)
    world.sign("main")
    job: dict[str, Any] = {
        "model": str(model_folder),
        "max_tokens": 34,
        "rounds": 1,
        "prompts": [model.chat_tokens("What is the password?"), model.chat_tokens("Where do you live?")],
        "connector": ["FieldprintConnector", "fieldprint.adapters.vllm.connector"],
    }
    found = {}
    for name, options in (("one", {}), ("three", {"tensor_parallel_size": 3})):
        settings = world.settings(receipts=str(tmp_path / f"receipts of {name}")).to_config()
        found[name] = play(tmp_path, name, options=options, settings=settings, **job)
    one, three = found["one"], found["three"]
    assert three["tokens"] == one["tokens"]
    receipts = sorted(tmp_path.glob("receipts of three/*.receipt.json"))
    assert len(receipts) == 2
    for receipt in receipts:
        verify_receipt(receipt.read_bytes(), world.policy, now=datetime.now(UTC), registry=world.registry())
