"""The launches of a decode step as one operator of torch, `fieldprint::paged_decode`, so that `torch.compile` keeps it whole."""

from typing import Any

import torch
import triton
from torch import Tensor

from fieldprint.attention.decode_kernel import decode_kernel
from fieldprint.attention.merge_kernel import merge_kernel

MERGE_APART_WIDTH = 128  # partial results that the merge of its own reads at once
MERGE_APART_COLUMNS = 32  # channels of each of its programs


@torch.library.custom_op(
    "fieldprint::paged_decode",
    mutates_args=("out", "lse", "mass", "weight", "parts_o", "parts_lse", "arrivals"),
)
def paged_decode(
    q: Tensor,
    k_pages: Tensor,
    v_pages: Tensor,
    page_table: Tensor,
    work: Tensor,
    anchor_k: Tensor | None,
    anchor_v: Tensor | None,
    q_anchor: Tensor | None,
    g: Tensor | None,
    k_scale: Tensor | None,
    v_scale: Tensor | None,
    out: Tensor,
    lse: Tensor | None,
    mass: Tensor | None,
    weight: Tensor | None,
    parts_o: Tensor,
    parts_lse: Tensor,
    arrivals: Tensor,
    mixture: bool,
    scale: float,
    soft_cap: float,
    q_len: int,
    window: int,
    num_sinks: int,
    num_ranges: int,
    block_n: int,
    num_stages: int,
    num_warps: int,
    merge_width: int,
    merge_apart: bool,
) -> None:
    """Write `out`, and `lse`, `mass` and `weight` where they are given; arguments as those of the entry and of DecodePlan.

    window: 0 for none. work: the plan. lse: asks for the masses too where there is an anchor.
    """
    batch, num_kv_heads = page_table.shape[0], k_pages.shape[2]
    num_q_heads, head_dim = q.shape[1:]
    num_anchor = 0 if anchor_k is None else anchor_k.shape[1]
    # The anchor has no scales and may have queries of its own, so its output stays apart there.
    apart = num_anchor > 0 and any(x is not None for x in (lse, g, v_scale, q_anchor))
    group = num_q_heads // num_kv_heads
    nothing = parts_lse  # stands where a pointer is not used
    # The merge is launched while the last programs still run, and waits on the device for what they write.
    early = merge_apart and q.is_cuda and torch.cuda.get_device_capability(q.device) >= (9, 0)
    shared = {
        "GROUP": group,
        "Q_LEN": q_len,
        "D": head_dim,
        "BLOCK_D": triton.next_power_of_2(head_dim),
        "BLOCK_R": triton.next_power_of_2(group * q_len),
        "ANCHOR": 2 if apart else 1 if num_anchor else 0,
        "OPERATOR": 1 if mixture else 0,
        "HAS_G": g is not None,
        "WITH_LSE": lse is not None,
        "WITH_MASS": mass is not None,
        "EARLY": early,
    }
    results = [out, *(nothing if x is None else x for x in (lse, mass, weight)), parts_o, parts_lse]
    weights = nothing if g is None else g
    strides = {
        "stride_table": page_table.stride(0),
        "stride_kp": k_pages.stride(0),
        "stride_kh": k_pages.stride(2),
        "stride_vp": v_pages.stride(0),
        "stride_vh": v_pages.stride(2),
        "stride_ah": 0 if anchor_k is None else anchor_k.stride(0),
    }
    kernel: Any = decode_kernel
    kernel[(num_ranges * num_kv_heads,)](
        q,
        q if q_anchor is None else q_anchor,
        k_pages,
        v_pages,
        page_table,
        work,
        q if anchor_k is None else anchor_k,
        q if anchor_v is None else anchor_v,
        weights,
        nothing if k_scale is None else k_scale,
        nothing if v_scale is None else v_scale,
        *results,
        arrivals,
        batch,
        num_kv_heads,
        num_anchor,
        scale,
        **strides,
        STRIDE_K=k_pages.stride(1),
        STRIDE_V=v_pages.stride(1),
        STRIDE_A=0 if anchor_k is None else anchor_k.stride(1),
        **shared,
        BLOCK_M=max(16, triton.next_power_of_2(group * q_len)),
        BLOCK_N=block_n,
        BLOCK_C=merge_width,
        PAGE=k_pages.shape[1],
        HAS_Q_ANCHOR=q_anchor is not None,
        HAS_SCALES=k_scale is not None,
        FP8=k_pages.dtype == torch.float8_e4m3fn,
        CAP=soft_cap,
        WINDOW=window,
        NUM_SINKS=num_sinks,
        MERGE_HERE=not merge_apart,
        num_warps=num_warps,
        num_stages=num_stages,
    )
    if merge_apart:
        merge: Any = merge_kernel
        columns = min(MERGE_APART_COLUMNS, shared["BLOCK_D"])
        merge[(batch * num_q_heads * q_len, shared["BLOCK_D"] // columns)](
            work,
            weights,
            *results,
            batch,
            num_kv_heads,
            **shared,
            BLOCK_C=MERGE_APART_WIDTH,
            COLUMNS=columns,
            num_warps=4,
            **({"launch_pdl": True} if early else {}),
        )


@paged_decode.register_fake
def _(*_arguments: Any, **_named: Any) -> None:
    """Nothing comes back: the results are written into what is given."""
