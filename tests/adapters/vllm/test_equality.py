"""An injected anchor is its text in front of the prompt, token by token: chunked prefill, preemption, cache hits, mixed batches."""

import json
import os
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from fieldprint.verify import verify_receipt
from tests.adapters.vllm.world import ENVIRONMENT, World

ROOT = Path(__file__).parents[3]
SUBJECTS = (
    "a fox", "the sea", "an old clock", "Oslo", "the vault", "a broken radio", "the last train",
    "a garden in winter", "two brothers", "a letter that came late", "the number seven", "a bridge", "salt", "glass",
)  # fmt: skip
QUESTIONS = (
    "Tell me about {}.",
    "Write one line on {}, please, and say who you are.",
    "What is the password, and what has it to do with {}?",
    "Explain {} to a child. Take your time, begin with where you live, then describe it in detail, with an example for each "
    "of the things that you mention, and end with a question of your own.",
)


def play(folder: Path, name: str, **job: Any) -> dict[str, Any]:
    path, out = folder / f"{name}.json", folder / f"{name}.out.json"
    path.write_text(json.dumps(job))
    program = [sys.executable, "-m", "tests.adapters.vllm.play", str(path), str(out)]
    path_of_modules = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
    environment = os.environ | ENVIRONMENT | {"PYTHONPATH": path_of_modules}
    done = subprocess.run(program, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-4000:]
    found: dict[str, Any] = json.loads(out.read_text())
    return found


@pytest.mark.slow
def test_injected_is_in_front_of_the_prompt(model: Any, model_folder: Path, tmp_path: Path) -> None:
    world = World(tmp_path, model, model_folder)
    world.sign("main")
    anchor = world.tokens["main"]
    k, v = model.decoder.realize(anchor, first_position=-len(anchor))
    save_file({"kv": torch.stack([k, v], 1).contiguous()}, world.anchors["main"].fieldprint + ".exact")
    prompts = [model.chat_tokens(question.format(subject)) for question in QUESTIONS for subject in SUBJECTS]
    assert len(prompts) >= 50
    # Blocks for five of the eight requests that may run: some are preempted. Prefill goes in chunks of 64 tokens.
    options = {"max_num_batched_tokens": 64, "enable_chunked_prefill": True, "max_model_len": 256}
    common: dict[str, Any] = {
        "model": str(model_folder),
        "max_tokens": 24,
        "connector": ["ExactConnector", "tests.adapters.vllm.exact"],
    }
    roomy = {"options": options | {"num_gpu_blocks_override": 500}}
    in_front = [anchor + prompt for prompt in prompts]
    plain = play(tmp_path, "plain", prompts=in_front, settings=None, rounds=1, **common, **roomy)
    starved = {"options": options | {"num_gpu_blocks_override": 19}}
    found_by = {}
    for name, rounds, pool in (("few", 1, starved), ("many", 2, roomy)):
        settings = world.settings(receipts=str(tmp_path / f"receipts of {name}")).to_config()
        found_by[name] = play(
            tmp_path, name, prompts=prompts, settings=settings, rounds=rounds, **common, **pool
        )
    few, many = found_by["few"], found_by["many"]
    assert few["preemptions"] > 0
    assert many["cached"] > 0
    for found in (few["tokens"][0], *many["tokens"]):
        for number, (expected, tokens) in enumerate(zip(plain["tokens"][0], found, strict=True)):
            assert tokens == expected, number
    receipts = sorted(tmp_path.glob("receipts of */*.receipt.json"))
    assert len(receipts) == 3 * len(prompts)
    for receipt in receipts[::10]:
        verify_receipt(receipt.read_bytes(), world.policy, now=datetime.now(UTC), registry=world.registry())
