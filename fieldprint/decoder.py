"""The language model: tokens and pages in, hidden states and logits out.

One decoder covers the Llama, Mistral, Qwen2 and Qwen3 families, which differ in biases and in a norm on q and k.
It exists because the engine needs what a general library's forward pass does not give: a flat batch of queries of
different sequences, K/V written straight into pages, the query rotated a second time for the anchor, and no
overhead to speak of (docs/design/0001-own-decoder.md has the measurement). Weights, configuration and rotary
frequencies come from transformers (`adapters/transformers.py`), and tests hold the logits to transformers' own.
"""

from dataclasses import dataclass, fields, replace
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor

from fieldprint.attention import AttentionPlan, paged_fieldprint_attention, plan_attention
from fieldprint.kvcache import PagePool
from fieldprint.kvcache.pool import PageLayout
from fieldprint.kvcache.store import Rotation, rotate_and_store

if TYPE_CHECKING:
    from fieldprint.attention.decode import DecodePlan


@dataclass(frozen=True, slots=True)
class DecoderConfig:
    """Sizes of a decoder, and the window that the model itself was trained with (None: full attention)."""

    num_layers: int
    hidden_size: int
    num_q_heads: int
    num_kv_heads: int
    head_dim: int
    rms_eps: float
    max_positions: int
    native_window: int | None = None


@dataclass(frozen=True, slots=True)
class Linear:
    """y = x W^T + b; W is [out, in]."""

    weight: Tensor
    bias: Tensor | None = None

    def __call__(self, x: Tensor) -> Tensor:
        return F.linear(x, self.weight, self.bias)

    def to(self, device: torch.device, dtype: torch.dtype) -> "Linear":
        """The same map elsewhere."""
        return Linear(
            self.weight.to(device, dtype), None if self.bias is None else self.bias.to(device, dtype)
        )


@dataclass(frozen=True, slots=True)
class PackedLinear(Linear):
    """The same map over weights that oneDNN has put in its own order for small batches.

    On a CPU this halves the time of a decode step of 4 to 64 rows, and costs a second copy of the weights. The
    operators are private names of torch, those that its own compiler emits; test_packed_linear holds them to Linear.
    """

    packed: Tensor | None = None

    def __call__(self, x: Tensor) -> Tensor:
        out: Tensor = torch.ops.mkldnn._linear_pointwise(x, self.packed, self.bias, "none", [], "")
        return out

    @classmethod
    def of(cls, linear: Linear, rows: int) -> "PackedLinear":
        """`linear`, packed for batches of about `rows` rows."""
        return cls(linear.weight, linear.bias, torch.ops.mkldnn._reorder_linear_weight(linear.weight, rows))


@dataclass(frozen=True, slots=True)
class LayerWeights:
    """Weights of one layer; q, k and v are one matrix. Gate and up are two: one of both is slower on a CPU, see 0001."""

    input_norm: Tensor
    qkv: Linear
    out: Linear
    post_norm: Tensor
    gate: Linear
    up: Linear
    down: Linear
    q_norm: Tensor | None = None
    k_norm: Tensor | None = None

    def to(self, device: torch.device, dtype: torch.dtype) -> "LayerWeights":
        """The same weights elsewhere."""
        given = {f.name: getattr(self, f.name) for f in fields(self) if getattr(self, f.name) is not None}
        return replace(self, **{name: x.to(device, dtype) for name, x in given.items()})


@dataclass(frozen=True, slots=True)
class Injection:
    """The anchor as attention sees it: views of pinned pages, and how much weight it gets.

    k, v: [num_layers, num_kv_heads, A, head_dim], rotated for positions 0..A-1, or -A..-1 where `before` says so.
    g: [num_q_heads] float32, or None for 0.
    """

    k: Tensor
    v: Tensor
    g: Tensor | None = None
    operator: str = "floor"
    before: bool = False

    @property
    def num_tokens(self) -> int:
        """A."""
        return self.k.shape[2]


@dataclass(frozen=True, slots=True)
class Step:
    """One forward pass over a flat batch.

    token_ids, positions, slots: [total_q] int64; `positions` are rotary positions, `slots` say where K and V go.
    anchor_positions: virtual positions of the queries towards the anchor, or None when they equal `positions`.
    """

    token_ids: Tensor
    positions: Tensor
    slots: Tensor
    plan: "AttentionPlan | DecodePlan"
    anchor_positions: Tensor | None = None


class Decoder:
    """A decoder-only transformer over paged K/V."""

    def __init__(
        self,
        config: DecoderConfig,
        embedding: Tensor,
        layers: list[LayerWeights],
        final_norm: Tensor,
        head: Linear,
        inv_freq: Tensor,
        rotary_scale: float = 1.0,
    ) -> None:
        if len(layers) != config.num_layers:
            raise ValueError(f"{len(layers)} layers given for a config of {config.num_layers}")
        self.config = config
        self.embedding = embedding
        self.layers = layers
        self.final_norm = final_norm
        self.head = head
        self.inv_freq = inv_freq.float()
        self.rotary_scale = rotary_scale

    @property
    def dtype(self) -> torch.dtype:
        """The serving dtype."""
        return self.embedding.dtype

    @property
    def device(self) -> torch.device:
        """Where the weights lie."""
        return self.embedding.device

    def to(self, device: str | torch.device, dtype: torch.dtype | None = None) -> "Decoder":
        """This decoder on `device`, in `dtype` unless that is None; itself where nothing changes."""
        where, dtype = torch.device(device), dtype or self.dtype
        if (where.type, dtype) == (self.device.type, self.dtype):
            return self
        tied = self.head.weight.data_ptr() == self.embedding.data_ptr()
        embedding = self.embedding.to(where, dtype)
        return Decoder(
            self.config,
            embedding,
            [layer.to(where, dtype) for layer in self.layers],
            self.final_norm.to(where, dtype),
            Linear(embedding, self.head.bias) if tied else self.head.to(where, dtype),
            self.inv_freq.to(where),
            self.rotary_scale,
        )

    def page_layout(self, page_size: int) -> PageLayout:
        """The layout of the pages that this decoder reads and writes."""
        c = self.config
        return PageLayout(c.num_layers, c.num_kv_heads, c.head_dim, page_size, self.dtype)

    def packed(self, rows: int) -> "Decoder":
        """A decoder for decode steps of `rows` rows, on packed weights where that helps (from 4 rows on); else this one."""
        cpu = self.device.type == "cpu" and torch.backends.mkldnn.is_available()
        if rows < 4 or self.dtype != torch.float32 or not cpu:
            return self
        layers = [
            replace(
                layer,
                qkv=PackedLinear.of(layer.qkv, rows),
                out=PackedLinear.of(layer.out, rows),
                gate=PackedLinear.of(layer.gate, rows),
                up=PackedLinear.of(layer.up, rows),
                down=PackedLinear.of(layer.down, rows),
            )
            for layer in self.layers
        ]
        head = PackedLinear.of(self.head, rows)
        return Decoder(
            self.config, self.embedding, layers, self.final_norm, head, self.inv_freq, self.rotary_scale
        )

    @torch.inference_mode()
    def forward(
        self,
        step: Step,
        pool: PagePool,
        injection: Injection | None = None,
        masses: list[Tensor] | None = None,
    ) -> Tensor:
        """Hidden states after the last norm, [total_q, hidden_size]; K and V of the step are written to its slots.

        Args:
            step: tokens, positions, slots and plan.
            pool: the pages; its layout is `page_layout`.
            injection: the anchor of every query of this step, or None.
            masses: a list that gets the anchor mass of each layer, [total_q, num_q_heads].
        """
        c = self.config
        rotation = self._rotation(step.positions)
        anchor_rotation = None if step.anchor_positions is None else self._rotation(step.anchor_positions)
        use_kernel = not isinstance(step.plan, AttentionPlan) or self.device.type != "cpu"
        x = F.embedding(step.token_ids, self.embedding)
        rows = x.shape[0]
        num_heads = c.num_q_heads + 2 * c.num_kv_heads
        for index, layer in enumerate(self.layers):
            h = F.rms_norm(x, (c.hidden_size,), layer.input_norm, c.rms_eps)
            heads = layer.qkv(h).view(rows, num_heads, c.head_dim)
            qk = heads[:, : c.num_q_heads + c.num_kv_heads]
            if layer.q_norm is not None and layer.k_norm is not None:
                q, k = qk.split([c.num_q_heads, c.num_kv_heads], 1)
                q = F.rms_norm(q, (c.head_dim,), layer.q_norm, c.rms_eps)
                qk = torch.cat([q, F.rms_norm(k, (c.head_dim,), layer.k_norm, c.rms_eps)], 1)
            k_pages, v_pages = pool.k_pages(index), pool.v_pages(index)
            q, q_anchor = rotate_and_store(
                qk,
                heads[:, c.num_q_heads + c.num_kv_heads :],
                rotation,
                None if injection is None else anchor_rotation,
                step.slots,
                k_pages,
                v_pages,
                use_kernel=use_kernel,
            )
            attended = paged_fieldprint_attention(
                q,
                k_pages,
                v_pages,
                step.plan,
                anchor_k=None if injection is None else injection.k[index],
                anchor_v=None if injection is None else injection.v[index],
                q_anchor=q_anchor,
                g=None if injection is None else injection.g,
                operator="floor" if injection is None else injection.operator,
                with_mass=masses is not None,
            )
            if masses is not None and attended.mass is not None:
                masses.append(attended.mass)
            x = x + layer.out(attended.out.reshape(rows, -1))
            h = F.rms_norm(x, (c.hidden_size,), layer.post_norm, c.rms_eps)
            x = x + layer.down(F.silu(layer.gate(h)).mul_(layer.up(h)))
        return F.rms_norm(x, (c.hidden_size,), self.final_norm, c.rms_eps)

    @torch.inference_mode()
    def logits(self, hidden: Tensor) -> Tensor:
        """Next-token logits [rows, vocab_size] of hidden states [rows, hidden_size]."""
        return self.head(hidden)

    def realize(self, token_ids: list[int], *, first_position: int = 0) -> tuple[Tensor, Tensor]:
        """K and V of `token_ids` on the canonical path, float32 [num_layers, A, num_kv_heads, head_dim].

        The canonical path is one forward pass over all tokens in float32 with full causal attention.

        Args:
            token_ids: A tokens.
            first_position: rotary position of the first of them: 0 for 0..A-1, -A for -A..-1.

        Raises:
            ValueError: the decoder does not compute in float32 on a CPU, or no token is given.
        """
        if self.dtype != torch.float32 or self.device.type != "cpu":
            raise ValueError(
                f"anchors are realized in float32 on a CPU, and this decoder computes in {self.dtype} on {self.device}"
            )
        if not token_ids:
            raise ValueError("token_ids must hold at least one token")
        count = len(token_ids)
        pool = PagePool(self.page_layout(count), 1)
        ids = torch.tensor(token_ids)
        slots = torch.arange(count)
        plan = plan_attention([[0]], [count], [0, count], page_size=count, num_pages=1)
        self.forward(Step(ids, slots + first_position, slots, plan), pool)
        return pool.storage[:, 0, 0].clone(), pool.storage[:, 1, 0].clone()

    def _rotation(self, positions: Tensor) -> Rotation:
        """cos and signed sin of the rotary angles, [rows, 1, head_dim] in the serving dtype."""
        angles = positions.float().unsqueeze(1) * self.inv_freq
        cos, sin = angles.cos() * self.rotary_scale, angles.sin() * self.rotary_scale
        return (
            torch.cat([cos, cos], -1).unsqueeze(1).to(self.dtype),
            torch.cat([-sin, sin], -1).unsqueeze(1).to(self.dtype),
        )
