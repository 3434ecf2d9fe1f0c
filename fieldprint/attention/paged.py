"""The entry of PagedFieldprintAttention: checks the arguments, runs the path of the device."""

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from fieldprint.attention.plan import AttentionPlan
from fieldprint.attention.runs import attend

if TYPE_CHECKING:
    from fieldprint.attention.decode import DecodePlan

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
    plan: "AttentionPlan | DecodePlan",
    *,
    anchor_k: Tensor | None = None,
    anchor_v: Tensor | None = None,
    q_anchor: Tensor | None = None,
    g: Tensor | None = None,
    operator: str = "floor",
    softmax_scale: float | None = None,
    soft_cap: float = 0.0,
    k_scale: Tensor | None = None,
    v_scale: Tensor | None = None,
    with_mass: bool = False,
    out: Tensor | None = None,
) -> AttentionOutput:
    """Attention of each query to its own paged context and to the anchor, under the injection operator.

        out = (1 - w) O_context + w O_anchor,   a = sigmoid(lse_anchor - lse_context)
        floor: w = max(g, a)  (g = 0 is one softmax over [context, anchor], "concat")      mixture: w = g

    The anchor is exempt from the causal mask and from the window. A query without context gets the anchor's output.
    The same bits come back for a sequence whatever else is in the batch (test_same_bits_for_any_batch).

    Args:
        q: [total_q, num_q_heads, head_dim]; float32, bfloat16 or float16.
        k_pages: [num_pages, page_size, num_kv_heads, head_dim], dtype of q; slots behind a sequence's end are not read.
            Without the decode kernel slots must be equally spaced, and each a run of memory.
        v_pages: as k_pages.
        plan: page table, lengths, window and sinks: of `plan_attention` (a CPU, and prefill on a GPU) or of
            `plan_decode` (decode steps on a GPU, where the arguments marked "decode kernel" belong).
        anchor_k: [num_kv_heads, A, head_dim], 0 <= A <= 512, rotated for positions 0..A-1.
        anchor_v: as anchor_k.
        q_anchor: the same queries rotated for a virtual position, or None to use q.
        g: [num_q_heads] float32 in [0, 1], or None for 0.
        operator: "floor" or "mixture".
        softmax_scale: 1 / sqrt(head_dim) unless given.
        soft_cap: c > 0 makes every logit x to c tanh(x / c); decode kernel.
        k_scale: [num_kv_heads] float32, by which fp8 keys are multiplied; decode kernel.
        v_scale: as k_scale.
        with_mass: whether lse, mass and weight are returned.
        out: where the output is written; a new tensor unless given; decode kernel.

    Raises:
        ValueError: an argument does not fit; the text names it. On a GPU the range of g is not looked at, since that
            would stop the host; `PinnedAnchor.injection` has done so.
    """
    _check(q, k_pages, v_pages, plan, anchor_k, anchor_v, q_anchor, g, operator)
    scale = 1 / math.sqrt(q.shape[-1]) if softmax_scale is None else softmax_scale
    if not isinstance(plan, AttentionPlan):
        return _decode(
            q, k_pages, v_pages, plan, anchor_k, anchor_v, q_anchor, g, operator, scale, soft_cap, k_scale, v_scale,
            with_mass, out,
        )  # fmt: skip
    if soft_cap or k_scale is not None or v_scale is not None or out is not None:
        raise ValueError("soft_cap, k_scale, v_scale and out need a plan of plan_decode")
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


def _decode(
    q: Tensor,
    k_pages: Tensor,
    v_pages: Tensor,
    plan: "DecodePlan",
    anchor_k: Tensor | None,
    anchor_v: Tensor | None,
    q_anchor: Tensor | None,
    g: Tensor | None,
    operator: str,
    scale: float,
    soft_cap: float,
    k_scale: Tensor | None,
    v_scale: Tensor | None,
    with_mass: bool,
    out: Tensor | None,
) -> AttentionOutput:
    from fieldprint.attention.decode import decode

    length = 0 if anchor_k is None else anchor_k.shape[1]
    if length != plan.num_anchor:
        raise ValueError(f"anchor_k holds {length} tokens, and plan was made for {plan.num_anchor}")
    _check_decode(
        q,
        k_pages,
        plan,
        soft_cap,
        {"q": q, "q_anchor": q_anchor, "out": out},
        {"k_scale": k_scale, "v_scale": v_scale},
        {"k_pages": k_pages, "v_pages": v_pages, "anchor_k": anchor_k, "anchor_v": anchor_v, "g": g},
    )
    result, lse, mass, weight = decode(
        q,
        k_pages,
        v_pages,
        plan,
        anchor_k=anchor_k if length else None,
        anchor_v=anchor_v if length else None,
        q_anchor=q_anchor,
        g=g if length else None,
        mixture=operator == "mixture" and length > 0,
        scale=scale,
        soft_cap=soft_cap,
        k_scale=k_scale,
        v_scale=v_scale,
        with_mass=with_mass,
        out=out,
    )
    if lse is not None and mass is None:
        return AttentionOutput(result, lse, torch.zeros_like(lse), torch.zeros_like(lse))
    return AttentionOutput(result, lse, mass, weight)


def _check_decode(
    q: Tensor,
    k_pages: Tensor,
    plan: "DecodePlan",
    soft_cap: float,
    like_q: dict[str, Tensor | None],
    scales: dict[str, Tensor | None],
    others: dict[str, Tensor | None],
) -> None:
    """What the kernel needs beyond `_check`."""
    layout = (k_pages.shape[0], k_pages.shape[1], k_pages.shape[2], q.shape[1], q.shape[2])
    if layout != (plan.num_pages, plan.page_size, plan.num_kv_heads, plan.num_q_heads, plan.head_dim):
        raise ValueError(f"plan was made for other sizes than those of q {_of(q)} and k_pages {_of(k_pages)}")
    if soft_cap < 0:
        raise ValueError(f"soft_cap must not be negative, got {soft_cap}")
    if (scales["k_scale"] is None) != (scales["v_scale"] is None):
        raise ValueError("k_scale and v_scale must be given together")
    for name, factor in scales.items():
        if factor is not None and (factor.shape != k_pages.shape[2:3] or factor.dtype != torch.float32):
            raise ValueError(f"{name} must be [{k_pages.shape[2]}] float32, not {_of(factor)}")
    for name, tensor in like_q.items():
        if tensor is not None and (
            tensor.shape != q.shape or tensor.dtype != q.dtype or not tensor.is_contiguous()
        ):
            raise ValueError(f"{name} must be contiguous and like q {_of(q)}, not {_of(tensor)}")
    for name, tensor in (like_q | scales | others | {"page_table": plan.page_table}).items():
        if tensor is not None and tensor.device != q.device:
            raise ValueError(f"{name} is on {tensor.device}, and q on {q.device}")
    anchor_k, anchor_v = others["anchor_k"], others["anchor_v"]
    if anchor_k is None or anchor_v is None:
        return
    if anchor_k.stride() != anchor_v.stride() or anchor_k.stride(2) != 1:
        raise ValueError("anchor_k and anchor_v must have the same strides, and neighbouring channels")


def _check(
    q: Tensor,
    k_pages: Tensor,
    v_pages: Tensor,
    plan: "AttentionPlan | DecodePlan",
    anchor_k: Tensor | None,
    anchor_v: Tensor | None,
    q_anchor: Tensor | None,
    g: Tensor | None,
    operator: str,
) -> None:
    if q.dim() != 3 or q.dtype not in (torch.float32, torch.bfloat16, torch.float16):
        raise ValueError(f"q must be [total_q, num_q_heads, head_dim] in fp32, bf16 or fp16, not {_of(q)}")
    decode = not isinstance(plan, AttentionPlan)
    if isinstance(plan, AttentionPlan) and q.device.type != plan.device.type:
        raise ValueError(f"q is on {q.device}, and plan was made for {plan.device}")
    eight = decode and k_pages.dtype == torch.float8_e4m3fn
    if k_pages.dim() != 4 or k_pages.shape[3] != q.shape[2] or (k_pages.dtype != q.dtype and not eight):
        raise ValueError(
            f"k_pages must be [num_pages, page_size, num_kv_heads, {q.shape[2]}] {q.dtype}, not {_of(k_pages)}"
        )
    if v_pages.shape != k_pages.shape or v_pages.dtype != k_pages.dtype:
        raise ValueError(f"v_pages must be like k_pages {_of(k_pages)}, not {_of(v_pages)}")
    if decode and (k_pages.stride(3) != 1 or v_pages.stride(3) != 1):
        raise ValueError("k_pages and v_pages must be contiguous in their last dimension")
    if not decode and not (_equally_spaced(k_pages) and _equally_spaced(v_pages)):
        raise ValueError("k_pages and v_pages must have equally spaced slots, each a run of memory")
    num_kv_heads = k_pages.shape[2]
    if q.shape[1] % num_kv_heads:
        raise ValueError(f"q has {q.shape[1]} heads, not a multiple of the {num_kv_heads} of k_pages")
    if plan.total_q != q.shape[0] or plan.num_slots != k_pages.shape[0] * k_pages.shape[1]:
        raise ValueError("plan was made for another number of queries or another pool")
    _check_anchor(q, num_kv_heads, anchor_k, anchor_v)
    if q_anchor is not None and (q_anchor.shape != q.shape or q_anchor.dtype != q.dtype):
        raise ValueError(f"q_anchor must be like q {_of(q)}, not {_of(q_anchor)}")
    if operator not in OPERATORS:
        raise ValueError(f"operator must be one of {OPERATORS}, not {operator!r}")
    if g is not None:
        _check_g(
            g,
            q.shape[1],
            0 if anchor_k is None else anchor_k.shape[1],
            stop=not decode and q.device.type == "cpu",
        )


def _equally_spaced(pages: Tensor) -> bool:
    page, slot, head, channel = pages.stride()
    return pages.is_contiguous() or (
        page == slot * pages.shape[1] and head == pages.shape[3] * channel and channel == 1
    )


def _check_anchor(q: Tensor, num_kv_heads: int, anchor_k: Tensor | None, anchor_v: Tensor | None) -> None:
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


def _check_g(g: Tensor, num_q_heads: int, num_anchor: int, *, stop: bool) -> None:
    """`stop`: whether the values are looked at, for which the host has to have them."""
    if g.shape != (num_q_heads,) or g.dtype != torch.float32:
        raise ValueError(f"g must be [{num_q_heads}] float32, one per query head, not {_of(g)}")
    if not stop:
        if num_anchor == 0:
            raise ValueError("g is given but there is no anchor to give that weight to")
        return
    low, high = torch.aminmax(g)
    if not (float(low) >= 0 and float(high) <= 1):
        raise ValueError("g must lie within [0, 1]")
    if float(high) > 0 and num_anchor == 0:
        raise ValueError("g is above 0 but there is no anchor to give that weight to")


def _of(x: Tensor) -> str:
    return f"{list(x.shape)} {x.dtype}"
