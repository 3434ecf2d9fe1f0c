"""vLLM on a GPU: the same tokens as with the anchor in front, and damage under captured graphs found and undone."""

from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from fieldprint.verify import verify_receipt
from tests.adapters.vllm.test_equality import QUESTIONS, SUBJECTS, play
from tests.adapters.vllm.world import World

pytestmark = pytest.mark.gpu
TRITON = {"dtype": "float32", "attention_config": {"backend": "TRITON_ATTN"}, "gpu_memory_utilization": 0.3}


def test_injected_is_in_front_of_the_prompt(model: Any, model_folder: Path, tmp_path: Path) -> None:
    world = World(tmp_path, model, model_folder)
    world.sign("main")
    anchor = world.tokens["main"]
    k, v = model.decoder.realize(anchor, first_position=-len(anchor))
    save_file({"kv": torch.stack([k, v], 1).contiguous()}, world.anchors["main"].fieldprint + ".exact")
    prompts = [model.chat_tokens(question.format(subject)) for question in QUESTIONS for subject in SUBJECTS]
    common: dict[str, Any] = {
        "model": str(model_folder),
        "max_tokens": 24,
        "rounds": 1,
        "connector": ["ExactConnector", "tests.adapters.vllm.exact"],
        "options": TRITON | {"max_num_batched_tokens": 256, "async_scheduling": False},
    }
    plain = play(tmp_path, "plain", prompts=[anchor + prompt for prompt in prompts], settings=None, **common)
    ours = play(tmp_path, "ours", prompts=prompts, settings=world.settings().to_config(), **common)
    same = [one == other for one, other in zip(plain["tokens"][0], ours["tokens"][0], strict=True)]
    assert all(same), f"{sum(same)} of {len(same)}"


def test_damage_under_captured_graphs_is_found_and_undone(world: World) -> None:
    engine = world.engine(
        dtype="bfloat16",
        enforce_eager=False,
        async_scheduling=False,
        block_size=16,
        gpu_memory_utilization=0.3,
        compilation_config={"cudagraph_capture_sizes": [1, 2, 4]},
    )
    from vllm import SamplingParams
    from vllm.distributed.kv_transfer import get_kv_transfer_group

    connector = get_kv_transfer_group()
    scheduler = engine.llm_engine.engine_core.engine_core.scheduler
    prompts = [
        {"prompt_token_ids": world.model.chat_tokens(f"Tell me of {subject}.")} for subject in SUBJECTS[:4]
    ]
    names = ["main", "second", "main", "second"]
    parameters = [
        SamplingParams(temperature=0, max_tokens=150, ignore_eos=True, extra_args={"fieldprint_anchor": name})
        for name in names
    ]
    whole = [list(one.outputs[0].token_ids) for one in engine.generate(prompts, parameters, use_tqdm=False)]
    engine.reset_prefix_cache()
    for prompt, parameter in zip(prompts, parameters, strict=True):
        engine.enqueue([prompt], parameter, use_tqdm=False)
    found, steps = {}, 0
    while engine.llm_engine.has_unfinished_requests():
        for output in engine.llm_engine.step():
            if output.finished:
                found[int(output.request_id.split("-")[0])] = list(output.outputs[0].token_ids)
        steps += 1
        rows = list(scheduler.ledger.rows.values())
        if steps in (40, 90):
            block = rows[1].blocks[0] if steps == 40 else scheduler.supervisor.anchors.all[1].blocks[0]
            flat = connector.residency._flats[3].view(torch.int16)
            flat[block * connector.residency.layout.stride + 77] ^= 1 << 9
    # In bf16 another batch may round differently, so the texts need not be the same: what is asked is that all end and verify.
    assert [len(found[key]) for key in sorted(found)] == [len(tokens) for tokens in whole] == [150] * 4
    assert scheduler.supervisor.counters["faults"] == 2
    receipts = sorted((world.folder / "receipts").glob("*.receipt.json"))
    assert len(receipts) == 8
    for receipt in receipts:
        verify_receipt(receipt.read_bytes(), world.policy, now=datetime.now(UTC), registry=world.registry())
