"""The kernel of `store`, in Triton: one program rotates one head of one row and puts it where it belongs."""

import triton
import triton.language as tl


@triton.jit
def _rotated(x, cos, sin, offs, mask, D: tl.constexpr):
    """x cos + swap(x) sin, in float32; sin carries the sign of the half that is swapped in."""
    own = tl.load(x + offs, mask=mask, other=0.0).to(tl.float32)
    other = tl.load(x + (offs + D // 2) % D, mask=mask, other=0.0).to(tl.float32)
    c = tl.load(cos + offs, mask=mask, other=0.0).to(tl.float32)
    s = tl.load(sin + offs, mask=mask, other=0.0).to(tl.float32)
    return own * c + other * s


@triton.jit(do_not_specialize=["num_q_heads", "num_kv_heads"])
def rotate_and_store_kernel(
    qk, v, cos, sin, anchor_cos, anchor_sin, slots, q_out, q_anchor_out, k_pages, v_pages,
    num_q_heads, num_kv_heads, stride_qk, stride_v,
    D: tl.constexpr, BLOCK_D: tl.constexpr, HAS_ANCHOR: tl.constexpr,
):  # fmt: skip
    """Heads in order: queries, keys, values. K and V go to slot `slots[row]` of pages without gaps."""
    row = tl.program_id(0).to(tl.int64)
    head = tl.program_id(1)
    offs = tl.arange(0, BLOCK_D)
    mask = offs < D
    at = tl.load(slots + row).to(tl.int64) * num_kv_heads
    if head < num_q_heads:
        x = qk + row * stride_qk + head * D
        where = (row * num_q_heads + head) * D + offs
        y = _rotated(x, cos + row * D, sin + row * D, offs, mask, D)
        tl.store(q_out + where, y.to(q_out.dtype.element_ty), mask=mask)
        if HAS_ANCHOR:
            y = _rotated(x, anchor_cos + row * D, anchor_sin + row * D, offs, mask, D)
            tl.store(q_anchor_out + where, y.to(q_out.dtype.element_ty), mask=mask)
    elif head < num_q_heads + num_kv_heads:
        y = _rotated(qk + row * stride_qk + head * D, cos + row * D, sin + row * D, offs, mask, D)
        where = (at + head - num_q_heads) * D + offs
        tl.store(k_pages + where, y.to(k_pages.dtype.element_ty), mask=mask)
    else:
        inner = head - num_q_heads - num_kv_heads
        value = tl.load(v + row * stride_v + inner * D + offs, mask=mask, other=0.0)
        tl.store(v_pages + (at + inner) * D + offs, value.to(v_pages.dtype.element_ty), mask=mask)
