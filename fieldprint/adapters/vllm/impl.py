"""vLLM's attention layers by our own kernel, over the same blocks."""

from typing import Any

import torch
from torch import Tensor
from vllm.v1.attention.backend import AttentionImpl, AttentionType

from fieldprint.adapters.vllm.paged import MassSums, PagedStep, Sizes, attend_parts, views
from fieldprint.adapters.vllm.versions import config_of_model, settings_in
from fieldprint.errors import CompatibilityError


class PagedImpl(AttentionImpl):  # type: ignore[misc]
    """One layer; arguments as vLLM gives them.

    Raises:
        CompatibilityError: the layer needs what the kernel has not.
    """

    def __init__(
        self,
        num_heads: int,
        head_size: int,
        scale: float,
        num_kv_heads: int,
        alibi_slopes: list[float] | None = None,
        sliding_window: int | None = None,
        kv_cache_dtype: str = "auto",
        logits_soft_cap: float | None = None,
        attn_type: str = AttentionType.DECODER,
        kv_sharing_target_layer_name: str | None = None,
        sinks: Tensor | None = None,
        **others: Any,
    ) -> None:
        for has, what in (
            (alibi_slopes is not None, "ALiBi"),
            (sliding_window is not None, "a sliding window of the model's own"),
            (bool(logits_soft_cap), "a soft cap on its logits"),
            (attn_type != AttentionType.DECODER, f"attention of the kind {attn_type}"),
            (kv_sharing_target_layer_name is not None, "another layer's K/V"),
            (sinks is not None, "learned sinks"),
            (bool(others), ", ".join(others)),
        ):
            if has:
                raise CompatibilityError(
                    f"the model's layers have {what}, which Fieldprint's kernel does not cover in vLLM",
                    remedy="Serve without --g, --operator, --window and --mass",
                )
        self.num_heads, self.head_size, self.num_kv_heads = num_heads, head_size, num_kv_heads
        self.scale, self.kv_cache_dtype = float(scale), kv_cache_dtype
        self.sliding_window = None
        settings = settings_in(config_of_model())
        if settings is None:
            raise CompatibilityError("Fieldprint's kernel needs Fieldprint's connector")
        self._attention = settings.attention
        self._g: Tensor | None = None
        self.number = 0  # of the layer; the connector sets it, and where sums go
        self.sums: MassSums | None = None

    def forward(
        self,
        layer: Any,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        kv_cache: Tensor,
        attn_metadata: PagedStep | None,
        output: Tensor,
        output_scale: Tensor | None = None,
        output_block_scale: Tensor | None = None,
    ) -> Tensor:
        """`output`, with the attention of each query in it; K/V have been written by `do_kv_cache_update`."""
        del layer, key, value
        if output_scale is not None or output_block_scale is not None:
            raise CompatibilityError("Fieldprint's kernel does not quantize its output")
        if attn_metadata is None or not attn_metadata.parts:  # vLLM measures its memory
            return output.zero_()
        if self._g is None:
            (weight,) = self._attention.weights
            self._g = torch.full((self.num_heads,), weight, dtype=torch.float32, device=query.device)
        k_pages, v_pages = views(kv_cache, self._sizes(kv_cache))
        count = attn_metadata.num_actual_tokens
        attend_parts(
            query.view(-1, self.num_heads, self.head_size)[:count],
            k_pages,
            v_pages,
            attn_metadata,
            self._attention,
            self._g,
            scale=self.scale,
            out=output.view(-1, self.num_heads, self.head_size)[:count],
            layer=self.number,
            sums=self.sums,
        )
        return output

    def do_kv_cache_update(
        self, layer: Any, key: Tensor, value: Tensor, kv_cache: Tensor, slot_mapping: Tensor
    ) -> None:
        """Write K/V into their slots; where there is none (-1) they are padding."""
        k_pages, v_pages = views(kv_cache, self._sizes(kv_cache))
        count = len(slot_mapping)
        if kv_cache.device.type != "cpu":
            from vllm import _custom_ops as ops

            ops.reshape_and_cache_flash(
                key[:count],
                value[:count],
                k_pages,
                v_pages,
                slot_mapping,
                "auto",
                layer._k_scale,
                layer._v_scale,
            )
            return
        there = slot_mapping >= 0
        for pages, new in ((k_pages, key), (v_pages, value)):
            slots = pages.view(-1, self.num_kv_heads, self.head_size)
            slots.index_copy_(0, slot_mapping[there].long(), new[:count][there])

    def _sizes(self, cache: Tensor) -> Sizes:
        """Of the layer's cache, [num_blocks, ...]."""
        slots = cache[0].numel() // (2 * self.num_kv_heads * self.head_size)
        return Sizes(cache.shape[0], slots, self.num_heads, self.num_kv_heads, self.head_size, cache.dtype)
