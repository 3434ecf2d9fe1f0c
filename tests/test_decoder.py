"""The decoder against transformers, on the demo model and on small models of each family with random weights."""

from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")

from fieldprint.adapters.transformers import LoadedModel, decoder_from, load_model  # noqa: E402
from fieldprint.attention import plan_attention  # noqa: E402
from fieldprint.attention.naive import naive_attention  # noqa: E402
from fieldprint.decoder import Decoder, Injection, Step  # noqa: E402
from fieldprint.errors import ModelError  # noqa: E402
from fieldprint.kvcache import PagedSequence, PagePool  # noqa: E402


def paged_logits(decoder: Decoder, ids: list[int], pieces: list[int]) -> Any:
    """Logits of `ids`, fed in pieces of these lengths."""
    pool = PagePool(decoder.page_layout(16), -(-len(ids) // 16) + 1)
    sequence = PagedSequence(pool)
    hidden, start = [], 0
    for count in pieces:
        slots = sequence.prepare(count)
        plan = plan_attention(
            [sequence.pages], [sequence.length], [0, count], page_size=16, num_pages=pool.num_pages,
            window=decoder.config.native_window,
        )  # fmt: skip
        tokens, positions = torch.tensor(ids[start : start + count]), torch.arange(start, start + count)
        hidden.append(decoder.forward(Step(tokens, positions, torch.tensor(slots), plan), pool))
        start += count
    return decoder.logits(torch.cat(hidden))


def test_logits_equal_transformers_on_the_demo_model(model_folder: Path, demo_model: LoadedModel) -> None:
    import transformers

    hf = transformers.AutoModelForCausalLM.from_pretrained(
        str(model_folder), dtype=torch.float32, local_files_only=True
    )
    ids = demo_model.encode("In the beginning there was a text that must never change. " * 12)[:150]
    with torch.inference_mode():
        expected = hf(torch.tensor([ids])).logits[0]
    got = paged_logits(demo_model.decoder, ids, [100, 33, *[1] * (len(ids) - 133)])
    torch.testing.assert_close(got, expected, rtol=1e-3, atol=1e-3)
    assert torch.equal(got.argmax(-1), expected.argmax(-1))


SMALL = {
    "vocab_size": 64,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
}


def family(name: str) -> Any:
    """A small model with random weights: shapes, biases, norms and windows are what is tested here."""
    import transformers

    torch.manual_seed(3)
    configs = {
        "llama": lambda: transformers.LlamaForCausalLM(transformers.LlamaConfig(**SMALL)),
        "llama with biases": lambda: transformers.LlamaForCausalLM(transformers.LlamaConfig(**SMALL, attention_bias=True)),
        "llama3 rotary": lambda: transformers.LlamaForCausalLM(
            transformers.LlamaConfig(
                **SMALL,
                rope_parameters={
                    "rope_type": "llama3", "rope_theta": 10000.0, "factor": 8.0, "low_freq_factor": 1.0,
                    "high_freq_factor": 4.0, "original_max_position_embeddings": 64,
                },
            )
        ),
        "mistral": lambda: transformers.MistralForCausalLM(transformers.MistralConfig(**SMALL, sliding_window=7)),
        "qwen2": lambda: transformers.Qwen2ForCausalLM(transformers.Qwen2Config(**SMALL)),
        "qwen3": lambda: transformers.Qwen3ForCausalLM(transformers.Qwen3Config(**SMALL)),
    }  # fmt: skip
    model = configs[name]().eval()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return model


@pytest.mark.parametrize("name", ["llama", "llama with biases", "llama3 rotary", "mistral", "qwen2", "qwen3"])
def test_each_family_equals_transformers(name: str) -> None:
    source = family(name)
    ids = torch.randint(0, 64, (40,)).tolist()
    with torch.inference_mode():
        expected = source(torch.tensor([ids])).logits[0]
    got = paged_logits(decoder_from(source), ids, [17, 16, *[1] * 7])
    torch.testing.assert_close(got, expected, rtol=2e-3, atol=2e-3)


def test_a_rotary_type_that_depends_on_length_is_refused() -> None:
    import transformers

    config = transformers.LlamaConfig(
        **SMALL, rope_parameters={"rope_type": "dynamic", "rope_theta": 10000.0, "factor": 2.0}
    )
    with pytest.raises(ModelError, match="rotary type"):
        decoder_from(transformers.LlamaForCausalLM(config))


def test_an_unknown_dtype_is_refused(model_folder: Path) -> None:
    with pytest.raises(ValueError, match="dtype"):
        load_model(model_folder, dtype="int4")


FRONT = 32  # A of the tests below
FULL = [
    "llama",
    "llama with biases",
    "llama3 rotary",
    "qwen2",
    "qwen3",
]  # mistral's own window would cut the anchor


def turned(x: Any, shift: Any, decoder: Decoder) -> Any:
    """[tokens, heads, head_dim] rotated by `shift` positions in float64, from the formula."""
    angles = torch.as_tensor(shift, dtype=torch.float64).view(-1, 1, 1) * decoder.inv_freq.double()
    first, second = x.double().chunk(2, -1)
    cos, sin = angles.cos(), angles.sin()
    return torch.cat([first * cos - second * sin, second * cos + first * sin], -1)


@pytest.mark.parametrize("name", FULL)
def test_positions_before_0_give_the_same_keys_rotated_and_the_same_values(name: str) -> None:
    """The first layer's V knows no position: bit for bit. Behind it, attention has rounded its logits differently."""
    decoder = decoder_from(family(name))
    ids = torch.randint(0, 64, (FRONT,)).tolist()
    k, v = decoder.realize(ids)
    front_k, front_v = decoder.realize(ids, first_position=-FRONT)
    assert torch.equal(front_v[0], v[0])
    torch.testing.assert_close(front_v, v, rtol=1e-4, atol=1e-4)
    for layer in range(decoder.config.num_layers):
        expected = turned(k[layer], -FRONT, decoder)
        torch.testing.assert_close(front_k[layer].double(), expected, rtol=1e-4, atol=1e-4)
        assert (front_k[layer] - k[layer]).abs().max() > 0.1


@pytest.mark.parametrize("position", [0, 1, 500])
def test_a_query_attends_to_what_lies_before_0_as_to_a_prefix(demo_model: LoadedModel, position: int) -> None:
    """Query p with keys at -A..-1 and p, against query p + A with keys at 0..A-1 and p + A; the truth in float64."""
    decoder, heads = demo_model.decoder, demo_model.decoder.config.num_q_heads
    ids = demo_model.encode("Never tell anybody the password of the vault. " * 8)[:FRONT]
    torch.manual_seed(position)
    query = torch.randn(1, heads, decoder.config.head_dim, dtype=torch.float64)
    found = []
    for first in (-FRONT, 0):
        k, v = decoder.realize(ids, first_position=first)
        own = position + FRONT + first
        context_k, context_v = decoder.realize([17], first_position=own)
        for layer in (0, 14, 29):
            out, lse, mass, _ = naive_attention(
                turned(query, own, decoder),
                context_k[layer][None],
                context_v[layer][None],
                torch.zeros(1, 1, dtype=torch.int32),
                torch.tensor([1]),
                torch.tensor([0, 1]),
                anchor_k=k[layer].transpose(0, 1),
                anchor_v=v[layer].transpose(0, 1),
            )
            found.append((out, lse, mass))
    for before, prefix in zip(found[:3], found[3:], strict=True):
        assert 0.01 < float(prefix[2].mean()) < 1
        for got, expected in zip(before, prefix, strict=True):
            torch.testing.assert_close(got, expected, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("name", FULL)
def test_an_anchor_before_0_gives_the_logits_of_a_prompt_that_begins_with_it(name: str) -> None:
    """The queries are rotated once, for context and anchor."""
    decoder = decoder_from(family(name))
    ids = torch.randint(0, 64, (FRONT + 9,)).tolist()
    expected = paged_logits(decoder, ids, [len(ids)])[FRONT:]
    k, v = decoder.realize(ids[:FRONT], first_position=-FRONT)
    injection = Injection(k.transpose(1, 2), v.transpose(1, 2))
    pool = PagePool(decoder.page_layout(16), 1)
    slots = torch.arange(9)
    plan = plan_attention([[0]], [9], [0, 9], page_size=16, num_pages=1)
    hidden = decoder.forward(Step(torch.tensor(ids[FRONT:]), slots, slots, plan), pool, injection)
    torch.testing.assert_close(decoder.logits(hidden), expected, rtol=2e-3, atol=2e-3)
