"""New K/V into the pages: rotary embedding of queries and keys, and the write to the slots of a step."""

import torch
from torch import Tensor

Rotation = tuple[Tensor, Tensor]  # cos and signed sin, [rows, 1, head_dim]


def rotate_and_store(
    qk: Tensor,
    v: Tensor,
    rotation: Rotation,
    anchor_rotation: Rotation | None,
    slots: Tensor,
    k_pages: Tensor,
    v_pages: Tensor,
    *,
    use_kernel: bool,
) -> tuple[Tensor, Tensor | None]:
    """The rotated queries, and those for the anchor's positions; K and V lie in their slots afterwards.

        rotated = x cos + swap(x) sin        swap: the halves of a head exchanged; sin is negative for the first half

    Args:
        qk: [rows, num_q_heads + num_kv_heads, head_dim], the queries first; heads without gaps.
        v: [rows, num_kv_heads, head_dim].
        rotation: of the rows' positions.
        anchor_rotation: of their virtual positions towards the anchor, or None for no second query.
        slots: [rows] int64, where K and V of each row go.
        k_pages: [num_pages, page_size, num_kv_heads, head_dim], contiguous.
        v_pages: as k_pages.
        use_kernel: one Triton launch (a GPU, or Triton's interpreter) instead of torch's operators.
    """
    num_kv_heads = v.shape[1]
    num_q_heads = qk.shape[1] - num_kv_heads
    if not use_kernel:
        rotated = rotate(qk, *rotation)
        k_pages.view(-1, *v.shape[1:]).index_copy_(0, slots, rotated[:, num_q_heads:])
        v_pages.view(-1, *v.shape[1:]).index_copy_(0, slots, v)
        second = None if anchor_rotation is None else rotate(qk[:, :num_q_heads], *anchor_rotation)
        return rotated[:, :num_q_heads], second
    from fieldprint.kvcache.store_kernel import rotate_and_store_kernel

    rows, _, head_dim = qk.shape
    q = torch.empty(rows, num_q_heads, head_dim, dtype=qk.dtype, device=qk.device)
    q_anchor = None if anchor_rotation is None else torch.empty_like(q)
    rotate_and_store_kernel[(rows, num_q_heads + 2 * num_kv_heads)](
        qk,
        v,
        *rotation,
        *(rotation if anchor_rotation is None else anchor_rotation),
        slots,
        q,
        q if q_anchor is None else q_anchor,
        k_pages,
        v_pages,
        num_q_heads,
        num_kv_heads,
        qk.stride(0),
        v.stride(0),
        D=head_dim,
        BLOCK_D=1 << (head_dim - 1).bit_length(),
        HAS_ANCHOR=anchor_rotation is not None,
        num_warps=1,
    )
    return q, q_anchor


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotary embedding of [rows, heads, head_dim]."""
    return torch.addcmul(x * cos, torch.roll(x, x.shape[-1] // 2, -1), sin)
