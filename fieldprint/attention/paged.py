"""The entry of PagedFieldprintAttention: checks the arguments, runs the path of the device."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from fieldprint.attention.cpu import attend
from fieldprint.attention.plan import AttentionPlan

OPERATORS = ("floor", "mixture")
MAX_ANCHOR_TOKENS = 512


@dataclass(frozen=True, slots=True)
class AttentionOutput:
    """What the operator gives back; all but `out` only when `with_mass` asked for it.

    out: [total_q, num_q_heads, head_dim], dtype of q.
    lse: [total_q, num_q_heads] float32, natural log, over context and anchor.
    mass: the natural mass a = sigmoid(lse_anchor - lse_context), float32.
    weight: the weight w that the anchor got, float32.
    """

    out: Tensor
    lse: Tensor | None = None
    mass: Tensor | None = None
    weight: Tensor | None = None


def paged_fieldprint_attention(
    q: Tensor,
    k_pages: Tensor,
    v_pages: Tensor,
    plan: AttentionPlan,
    *,
    anchor_k: Tensor | None = None,
    anchor_v: Tensor | None = None,
    q_anchor: Tensor | None = None,
    g: Tensor | None = None,
    operator: str = "floor",
    softmax_scale: float | None = None,
    with_mass: bool = False,
) -> AttentionOutput:
    """Attention of each query to its own paged context and to the anchor, under the injection operator.

        out = (1 - w) O_context + w O_anchor,   a = sigmoid(lse_anchor - lse_context)
        floor: w = max(g, a)  (g = 0 is one softmax over [context, anchor], "concat")      mixture: w = g

    The anchor is exempt from the causal mask and from the window. A query without context gets the anchor's output.
    The same bits come back for a sequence whatever else is in the batch (test_same_bits_for_any_batch).

    Args:
        q: [total_q, num_q_heads, head_dim]; float32, bfloat16 or float16.
        k_pages: [num_pages, page_size, num_kv_heads, head_dim], dtype of q; slots behind a sequence's end are not read.
        v_pages: as k_pages.
        plan: of `plan_attention`, which holds page table, lengths, window and sinks.
        anchor_k: [num_kv_heads, A, head_dim], 0 <= A <= 512, rotated for positions 0..A-1.
        anchor_v: as anchor_k.
        q_anchor: the same queries rotated for a virtual position, or None to use q.
        g: [num_q_heads] float32 in [0, 1], or None for 0.
        operator: "floor" or "mixture".
        softmax_scale: 1 / sqrt(head_dim) unless given.
        with_mass: whether lse, mass and weight are returned.

    Raises:
        ValueError: an argument does not fit; the text names it.
    """
    _check(q, k_pages, v_pages, plan, anchor_k, anchor_v, q_anchor, g, operator)
    if q.device.type != "cpu":
        raise ValueError(f"q is on {q.device}; this build has the CPU path only")
    scale = 1 / math.sqrt(q.shape[-1]) if softmax_scale is None else softmax_scale
    anchor = None
    if anchor_k is not None and anchor_v is not None and anchor_k.shape[1]:
        anchor = (anchor_k, anchor_v)
    out, lse_c, lse_a, mass, weight = attend(
        q, k_pages, v_pages, plan, anchor, q_anchor, g, operator == "mixture", scale
    )
    if not with_mass:
        return AttentionOutput(out)
    if lse_a is None or mass is None or weight is None:
        return AttentionOutput(out, lse_c, torch.zeros_like(lse_c), torch.zeros_like(lse_c))
    return AttentionOutput(out, torch.logaddexp(lse_c, lse_a), mass, weight)


def _check(
    q: Tensor,
    k_pages: Tensor,
    v_pages: Tensor,
    plan: AttentionPlan,
    anchor_k: Tensor | None,
    anchor_v: Tensor | None,
    q_anchor: Tensor | None,
    g: Tensor | None,
    operator: str,
) -> None:
    if q.dim() != 3 or q.dtype not in (torch.float32, torch.bfloat16, torch.float16):
        raise ValueError(f"q must be [total_q, num_q_heads, head_dim] in fp32, bf16 or fp16, not {_of(q)}")
    if k_pages.dim() != 4 or k_pages.shape[3] != q.shape[2] or k_pages.dtype != q.dtype:
        raise ValueError(
            f"k_pages must be [num_pages, page_size, num_kv_heads, {q.shape[2]}] {q.dtype}, not {_of(k_pages)}"
        )
    if v_pages.shape != k_pages.shape or v_pages.dtype != k_pages.dtype:
        raise ValueError(f"v_pages must be like k_pages {_of(k_pages)}, not {_of(v_pages)}")
    if not k_pages.is_contiguous() or not v_pages.is_contiguous():
        raise ValueError("k_pages and v_pages must be contiguous")
    num_kv_heads = k_pages.shape[2]
    if q.shape[1] % num_kv_heads:
        raise ValueError(f"q has {q.shape[1]} heads, not a multiple of the {num_kv_heads} of k_pages")
    if plan.total_q != q.shape[0] or plan.num_slots != k_pages.shape[0] * k_pages.shape[1]:
        raise ValueError("plan was made for another number of queries or another pool")
    if (anchor_k is None) != (anchor_v is None):
        raise ValueError("anchor_k and anchor_v must be given together")
    if anchor_k is not None and anchor_v is not None:
        shape = (num_kv_heads, anchor_k.shape[1] if anchor_k.dim() == 3 else -1, q.shape[2])
        if anchor_k.shape != shape or anchor_k.dtype != q.dtype:
            raise ValueError(
                f"anchor_k must be [{num_kv_heads}, A, {q.shape[2]}] {q.dtype}, not {_of(anchor_k)}"
            )
        if anchor_v.shape != shape or anchor_v.dtype != q.dtype:
            raise ValueError(f"anchor_v must be like anchor_k, not {_of(anchor_v)}")
        if shape[1] > MAX_ANCHOR_TOKENS:
            raise ValueError(f"anchor_k holds {shape[1]} tokens, more than {MAX_ANCHOR_TOKENS}")
    if q_anchor is not None and (q_anchor.shape != q.shape or q_anchor.dtype != q.dtype):
        raise ValueError(f"q_anchor must be like q {_of(q)}, not {_of(q_anchor)}")
    if operator not in OPERATORS:
        raise ValueError(f"operator must be one of {OPERATORS}, not {operator!r}")
    if g is not None:
        if g.shape != (q.shape[1],) or g.dtype != torch.float32:
            raise ValueError(f"g must be [{q.shape[1]}] float32, one per query head, not {_of(g)}")
        low, high = torch.aminmax(g)
        if not (float(low) >= 0 and float(high) <= 1):
            raise ValueError("g must lie within [0, 1]")
        if float(high) > 0 and (anchor_k is None or anchor_k.shape[1] == 0):
            raise ValueError("g is above 0 but there is no anchor to give that weight to")


def _of(x: Tensor) -> str:
    return f"{list(x.shape)} {x.dtype}"
