"""A model folder of transformers, as what Fieldprint needs of it: decoder, tokenizer, chat template, digest.

    model = load_model(Path("~/models/smollm2").expanduser())
    ids = model.chat_tokens("What is your name?")
    text = model.decode(ids)

transformers reads the configuration, the weights (shards, ties, dtypes), the rotary parameters and the tokenizer;
from there on the engine runs on `fieldprint.decoder`. Nothing is fetched from a hub.
"""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fieldprint.adapters.model_folder import check_model_folder, model_digest
from fieldprint.decoder import Decoder, DecoderConfig, LayerWeights, Linear
from fieldprint.errors import ModelError

STATIC_ROTARY = ("default", "linear", "llama3", "yarn")
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


@dataclass(frozen=True, slots=True)
class LoadedModel:
    """A decoder with its tokenizer; `digest` is the SHA-256 over the model folder's manifest."""

    folder: Path
    digest: str
    decoder: Decoder
    tokenizer: Any
    stop_ids: frozenset[int]

    def encode(self, text: str) -> list[int]:
        """Token ids of `text` alone, without special tokens around it."""
        ids: list[int] = self.tokenizer(text, add_special_tokens=False)["input_ids"]
        return ids

    def decode(self, ids: Sequence[int]) -> str:
        """The text of `ids`, special tokens left out."""
        text: str = self.tokenizer.decode(
            list(ids), skip_special_tokens=True, clean_up_tokenization_spaces=False
        )
        return text

    def system_tokens(self, text: str) -> list[int]:
        """Token ids of the system message `text` as the chat template writes it: what an anchor is realized from.

        Raises:
            ModelError: the template does not put a system message first, as a part of its own.
        """
        return self.encode(self._system_prefix(text))

    def chat_tokens(self, user: str, *, system: str | None = None, answer: str = "") -> list[int]:
        """Token ids of a request: the user's message, the header of the answer, and the answer's beginning.

        Args:
            user: the user's message.
            system: a system message as ordinary text of the request; None leaves it out, since the anchor, which
                carries it, lies before the request.
            answer: text that the answer begins with.
        """
        marker = "system" if system is None else system
        prefix = self._system_prefix(marker)
        messages = [{"role": "system", "content": marker}, {"role": "user", "content": user}]
        whole = self._template(messages, add_generation_prompt=True)
        request = whole[len(prefix) :] + answer
        return ([] if system is None else self.encode(prefix)) + self.encode(request)

    def _system_prefix(self, text: str) -> str:
        alone = self._template([{"role": "system", "content": text}], add_generation_prompt=False)
        both = self._template(
            [{"role": "system", "content": text}, {"role": "user", "content": "?"}],
            add_generation_prompt=True,
        )
        if not both.startswith(alone) or text not in alone:
            raise ModelError(
                f"the chat template of {self.folder.name} does not put the system message first, unchanged",
                remedy="Sign the anchor with --form raw, which uses the text's tokens without a template",
            )
        return alone

    def _template(self, messages: list[dict[str, str]], *, add_generation_prompt: bool) -> str:
        if not self.tokenizer.chat_template:
            raise ModelError(
                f"{self.folder.name} has no chat template",
                remedy="Use --form raw for anchors and --raw for prompts",
            )
        text: str = self.tokenizer.apply_chat_template(
            messages, tokenize=False, add_generation_prompt=add_generation_prompt
        )
        return text


def load_model(folder: Path, *, dtype: str = "float32") -> LoadedModel:
    """The model in `folder`, ready to generate on the CPU.

    Args:
        folder: a local folder of the Llama, Mistral, Qwen2 or Qwen3 family, as `save_pretrained` writes it.
        dtype: serving dtype: "float32", "bfloat16" or "float16".

    Raises:
        ModelError: the folder is incomplete, of another family, or uses rotary positions that change with length.
        ValueError: another dtype.
    """
    if dtype not in DTYPES:
        raise ValueError(f"dtype must be one of {', '.join(DTYPES)}, not {dtype!r}")
    check_model_folder(folder)
    digest = model_digest(folder)
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    import transformers

    transformers.utils.logging.disable_progress_bar()
    try:
        source = transformers.AutoModelForCausalLM.from_pretrained(
            str(folder), dtype=DTYPES[dtype], local_files_only=True, attn_implementation="sdpa"
        )
        tokenizer = transformers.AutoTokenizer.from_pretrained(str(folder), local_files_only=True)
    except (OSError, ValueError, KeyError, RuntimeError) as error:
        raise ModelError(
            f"{folder} cannot be loaded: {error}", remedy="Restore the folder from its source"
        ) from error
    decoder = decoder_from(source)
    return LoadedModel(folder, digest, decoder, tokenizer, _stop_ids(source, tokenizer))


def decoder_from(source: Any) -> Decoder:
    """The Fieldprint decoder with the weights of a transformers model (`LlamaForCausalLM` and its like).

    Raises:
        ModelError: rotary positions of a type that changes with the length of the sequence.
    """
    config = source.config
    rotary = source.model.rotary_emb
    if rotary.rope_type not in STATIC_ROTARY:
        raise ModelError(
            f"rotary type {rotary.rope_type!r} changes with the sequence's length, so pinned keys would not stay valid",
            remedy=f"Use a model with one of {', '.join(STATIC_ROTARY)}",
        )
    head_dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    sizes = DecoderConfig(
        num_layers=config.num_hidden_layers,
        hidden_size=config.hidden_size,
        num_q_heads=config.num_attention_heads,
        num_kv_heads=config.num_key_value_heads,
        head_dim=head_dim,
        rms_eps=config.rms_norm_eps,
        max_positions=config.max_position_embeddings,
        native_window=_native_window(config),
    )
    base = source.model
    return Decoder(
        sizes,
        base.embed_tokens.weight.detach(),
        [_layer(layer) for layer in base.layers],
        base.norm.weight.detach(),
        _linear(source.lm_head),
        rotary.inv_freq,
        float(rotary.attention_scaling),
    )


def _native_window(config: Any) -> int | None:
    kinds = set(getattr(config, "layer_types", None) or [])
    if "sliding_attention" in kinds and "full_attention" in kinds:
        raise ModelError("the model mixes sliding and full attention layers, which is not supported yet")
    if "sliding_attention" in kinds or (not kinds and config.model_type == "mistral"):
        window: int | None = getattr(config, "sliding_window", None)
        return window
    return None


def _layer(layer: Any) -> LayerWeights:
    attention, mlp = layer.self_attn, layer.mlp
    q_norm, k_norm = getattr(attention, "q_norm", None), getattr(attention, "k_norm", None)
    return LayerWeights(
        input_norm=layer.input_layernorm.weight.detach(),
        qkv=_linear(attention.q_proj, attention.k_proj, attention.v_proj),
        out=_linear(attention.o_proj),
        post_norm=layer.post_attention_layernorm.weight.detach(),
        gate=_linear(mlp.gate_proj),
        up=_linear(mlp.up_proj),
        down=_linear(mlp.down_proj),
        q_norm=None if q_norm is None else q_norm.weight.detach(),
        k_norm=None if k_norm is None else k_norm.weight.detach(),
    )


def _linear(*modules: Any) -> Linear:
    """Several linear modules over one input, as one."""
    weight: Tensor = (
        torch.cat([m.weight.detach() for m in modules]) if len(modules) > 1 else modules[0].weight.detach()
    )
    biases = [m.bias for m in modules if getattr(m, "bias", None) is not None]
    if biases and len(biases) != len(modules):
        raise ModelError("a fused projection has a bias on some of its parts only")
    return Linear(weight, torch.cat([b.detach() for b in biases]) if biases else None)


def _stop_ids(source: Any, tokenizer: Any) -> frozenset[int]:
    found: set[int] = set()
    for ids in (source.generation_config.eos_token_id, source.config.eos_token_id, tokenizer.eos_token_id):
        found.update(ids if isinstance(ids, (list, tuple)) else [] if ids is None else [ids])
    return frozenset(found)
