"""Floor, mixture and window inside vLLM by our kernel, held to a forward pass of transformers with the operator written out."""

from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from fieldprint.commit.leaf import Commitment
from fieldprint.commit.receipt import Receipt
from fieldprint.generate.gate import without_anchor
from fieldprint.promote import Fieldprint
from fieldprint.verify import verify_receipt
from tests.adapters.vllm.conftest import SECOND
from tests.adapters.vllm.test_equality import QUESTIONS, SUBJECTS, play
from tests.adapters.vllm.world import World

OPERATORS: dict[str, dict[str, Any]] = {
    "concat": {},
    "floor": {"g": 0.3},
    "mixture": {"operator": "mixture", "g": 0.4},
    "window": {"g": 0.1, "window": 24, "num_sinks": 4},
}
NEW = 20
NEAR = 2e-3  # of a logit: closer ones may change places with the order of sums


class Written:
    """Attention with an anchor as the formula says, for one sequence: an attention function of transformers."""

    def __init__(
        self,
        values: Tensor | None,
        *,
        operator: str = "floor",
        g: float = 0.0,
        window: int | None = None,
        num_sinks: int = 0,
    ):
        self.values, self.operator, self.g = values, operator, g
        self.window, self.num_sinks = window, num_sinks
        self.mass: list[Tensor] = []
        self.weight: list[Tensor] = []

    def __call__(
        self,
        module: Any,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attention_mask: Tensor | None,
        scaling: float,
        **_: Any,
    ) -> tuple[Tensor, None]:
        heads, length = query.shape[1:3]
        group = heads // key.shape[1]
        k_c, v_c = (part[0].repeat_interleave(group, 0).double() for part in (key, value))
        q = query[0].double()
        position, other = torch.arange(length)[:, None], torch.arange(length)[None]
        seen = other <= position
        if self.window is not None:
            seen &= (other > position - self.window) | (other < self.num_sinks)
        logits = (q @ k_c.transpose(1, 2) * scaling).masked_fill(~seen, -torch.inf)
        out = logits.softmax(-1) @ v_c
        if self.values is not None:
            k_a, v_a = (
                part.transpose(0, 1).repeat_interleave(group, 0).double()
                for part in self.values[module.layer_idx]
            )
            anchor = q @ k_a.transpose(1, 2) * scaling
            mass = torch.sigmoid(anchor.logsumexp(-1) - logits.logsumexp(-1))
            weight = torch.full_like(mass, self.g) if self.operator == "mixture" else mass.clamp(min=self.g)
            self.mass.append(mass)
            self.weight.append(weight)
            out = torch.lerp(out, anchor.softmax(-1) @ v_a, weight[..., None])
        return out.transpose(0, 1)[None].to(query.dtype), None


@pytest.fixture(scope="module")
def plain(model_folder: Path) -> Any:
    """The demo model in transformers, whose attention is registered by name."""
    import transformers

    return transformers.AutoModelForCausalLM.from_pretrained(
        str(model_folder), dtype=torch.float32, attn_implementation="eager", local_files_only=True
    ).eval()


@pytest.mark.slow
@pytest.mark.parametrize("name", OPERATORS)
def test_what_is_said_is_what_the_operator_gives(
    name: str, plain: Any, model: Any, model_folder: Path, tmp_path: Path
) -> None:
    import transformers

    world = World(tmp_path, model, model_folder)
    world.sign("main")
    world.sign("second", SECOND)
    prompts = [
        model.chat_tokens(question.format(subject)) for question in QUESTIONS for subject in SUBJECTS[:3]
    ]
    anchors = [("main", None, "second", "main")[number % 4] for number in range(len(prompts))]
    settings = world.settings(kernel="paged", mass=True, scrub_interval=1, default=None, **OPERATORS[name])
    # Prefill in chunks of 64 tokens, and blocks for a few of the requests: some are preempted.
    found = play(
        tmp_path,
        name,
        model=str(model_folder),
        prompts=prompts,
        anchors=anchors,
        settings=settings.to_config(),
        connector=["FieldprintConnector", "fieldprint.adapters.vllm.connector"],
        max_tokens=NEW,
        rounds=1,
        options={
            "max_num_batched_tokens": 64,
            "enable_chunked_prefill": True,
            "max_model_len": 256,
            "num_gpu_blocks_override": 13,
        },
    )
    assert found["preemptions"] > 0
    sums: dict[str | None, list[Tensor]] = {"main": [], "second": [], None: []}
    for number, (prompt, tokens, anchor) in enumerate(zip(prompts, found["tokens"][0], anchors, strict=True)):
        values = None
        if anchor is not None:
            values = Fieldprint.load(Path(world.anchors[anchor].fieldprint)).values(torch.float32)
        written = Written(values, **OPERATORS[name])
        transformers.AttentionInterface.register("written", written)
        plain.set_attn_implementation("written")
        with torch.inference_mode():
            logits = plain(torch.tensor([prompt + tokens[:-1]])).logits[0, len(prompt) - 1 :]
        given = logits.gather(1, torch.tensor(tokens)[:, None])[:, 0]
        assert bool((given >= logits.max(1).values - NEAR).all()), number
        if anchor is not None:
            sums[anchor].append(torch.stack([torch.stack(written.mass), torch.stack(written.weight)], 1))
    for state in found["state"]["anchors"]:
        assert state["mass"]["queries"] >= sum(part.shape[-1] for part in sums[state["name"]]) - 2 * NEW
        told = np.stack([state["mass"]["natural"], state["mass"]["weight"]], 1)
        expected = torch.cat(sums[state["name"]], -1).mean(-1).numpy()
        assert np.abs(told - expected).max() < 0.1, state["name"]  # a request that was preempted counts again
    receipts = sorted(tmp_path.glob("receipts/*.receipt.json"))
    assert len(receipts) == len(prompts)
    for path in receipts:
        leaf = Commitment.from_bytes(Receipt.from_bytes(path.read_bytes()).leaves[0].leaf)
        acted = without_anchor(settings.attention) if leaf.anchor is None else settings.attention
        assert leaf.attention == acted.terms()
    for path in receipts[::4]:
        verify_receipt(path.read_bytes(), world.policy, now=datetime.now(UTC), registry=world.registry())
