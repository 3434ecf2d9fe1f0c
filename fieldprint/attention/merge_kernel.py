"""The end of a decode step on a GPU: merging partial results, the injection operator, and what is written."""

import triton
import triton.language as tl

from fieldprint.attention.plan_kernel import PLAN_ROW

LN_2 = tl.constexpr(0.6931471805599453)


@triton.jit
def finish(
    o_c, lse_c, o_a, lse_a, share, rows, heads, row_mask, column, out, lse_out, mass_out, weight_out, num_q_heads,
    D: tl.constexpr, COLUMNS: tl.constexpr, ANCHOR: tl.constexpr, OPERATOR: tl.constexpr, HAS_G: tl.constexpr,
    WITH_LSE: tl.constexpr, WITH_MASS: tl.constexpr,
):  # fmt: skip
    """Apply the injection operator to normalized outputs and base-2 lses, and write what was asked for.

    The outputs are COLUMNS channels from `column` on; `share` is g of each row.
    """
    offs_d = column + tl.arange(0, COLUMNS)
    where = rows * num_q_heads + heads
    once = row_mask & (column == 0)
    if ANCHOR == 2:  # anchor apart from the context
        mass = 1.0 / (1.0 + tl.exp2(tl.minimum(lse_c - lse_a, 126.0)))
        w = mass
        if HAS_G:
            if OPERATOR == 1:
                w = tl.where(lse_c == float("-inf"), 1.0, share)
            else:
                w = tl.maximum(share, mass)
        o = o_c + w[:, None] * (o_a - o_c)
        if WITH_MASS:
            tl.store(mass_out + where, mass, mask=once)
            tl.store(weight_out + where, w, mask=once)
        if WITH_LSE:
            top = tl.maximum(lse_c, lse_a)
            lse_c = top + tl.log2(tl.exp2(lse_c - top) + tl.exp2(lse_a - top))
    else:
        o = o_c
    if WITH_LSE:
        tl.store(lse_out + where, lse_c * LN_2, mask=once)
    tl.store(
        out + where[:, None] * D + offs_d[None, :],
        o.to(out.dtype.element_ty),
        mask=row_mask[:, None] & (offs_d < D)[None, :],
    )


@triton.jit
def _take(lse, o, top, total, acc):
    """Take neighbouring partial results into the running maximum, sum and output."""
    new = tl.maximum(top, tl.max(lse, 0))
    base = tl.where(new == float("-inf"), 0.0, new)
    share = tl.exp2(lse - base[None, :])
    shrink = tl.exp2(top - base)
    total = total * shrink + tl.sum(share, 0)
    acc = acc * shrink[:, None] + tl.sum(o * share[:, :, None], 0)
    return new, total, acc


@triton.jit
def normalized(top, total, acc):
    """(output, base-2 lse) of a finished softmax; zero and -inf if it has seen nothing."""
    some = total > 0
    safe = tl.where(some, total, 1.0)
    return acc / safe[:, None], tl.where(some, top + tl.log2(safe), float("-inf"))


@triton.jit
def merge_terms(plan, row, g, heads, row_mask, ANCHOR: tl.constexpr, HAS_G: tl.constexpr):
    """(first slot, parts, parts that touch the anchor, first part that touches the context, g of each row).

    All of it can be read before the parts are there.
    """
    first = tl.load(plan + row * PLAN_ROW)
    parts = tl.load(plan + row * PLAN_ROW + 1)
    anchor_parts = 0
    first_part = 0
    if ANCHOR == 2:
        anchor_parts = tl.load(plan + row * PLAN_ROW + 2)
        first_part = tl.load(plan + row * PLAN_ROW + 3)
    share = tl.zeros(heads.shape, tl.float32)
    if HAS_G:
        share = tl.load(g + heads, mask=row_mask, other=0.0)
    return first, parts, anchor_parts, first_part, share


@triton.jit
def merge_and_finish(
    first, parts, anchor_parts, first_part, share, parts_o, parts_lse, head, num_kv_heads, rows, heads, row_mask,
    column, out, lse_out, mass_out, weight_out, num_q_heads, D: tl.constexpr, BLOCK_D: tl.constexpr,
    COLUMNS: tl.constexpr, ROWS: tl.constexpr, BLOCK_R: tl.constexpr, BLOCK_C: tl.constexpr, ANCHOR: tl.constexpr,
    OPERATOR: tl.constexpr, HAS_G: tl.constexpr, WITH_LSE: tl.constexpr, WITH_MASS: tl.constexpr,
):  # fmt: skip
    """Merge the parts of a sequence and KV head in the order of their tiles, and write the output.

    The first arguments are those of `merge_terms`. A slot has BLOCK_R rows for the context, and where the anchor is
    apart as many again for it. BLOCK_C parts are read at once.
    """
    SLOT_ROWS: tl.constexpr = 2 * BLOCK_R if ANCHOR == 2 else BLOCK_R
    offs_r = tl.arange(0, ROWS)
    offs_d = tl.arange(0, COLUMNS)
    count = parts
    top = tl.full([ROWS], float("-inf"), tl.float32)
    total = tl.zeros([ROWS], tl.float32)
    acc = tl.zeros([ROWS, COLUMNS], tl.float32)
    if ANCHOR == 2:
        count += anchor_parts - first_part
        top_a, total_a, acc_a = top, total, acc
    for begin in tl.range(0, count, BLOCK_C, num_stages=1):
        index = begin + tl.arange(0, BLOCK_C)
        there = index < count
        slot = index
        if ANCHOR == 2:
            of_anchor = index < anchor_parts
            slot = tl.where(of_anchor, index, index - anchor_parts + first_part)
        at = ((first + slot) * num_kv_heads + head) * SLOT_ROWS
        if ANCHOR == 2:
            at += tl.where(of_anchor, BLOCK_R, 0)
        at = at[:, None] + offs_r[None, :]
        lse = tl.load(parts_lse + at, mask=there[:, None], other=float("-inf"), cache_modifier=".cg")
        o = tl.load(
            parts_o + at.to(tl.int64)[:, :, None] * BLOCK_D + offs_d[None, None, :],
            mask=there[:, None, None],
            other=0.0,
            cache_modifier=".cg",
        )
        if ANCHOR == 2:
            if begin < anchor_parts:
                lse_a = tl.where(of_anchor[:, None], lse, float("-inf"))
                top_a, total_a, acc_a = _take(lse_a, o, top_a, total_a, acc_a)
            lse = tl.where(of_anchor[:, None], float("-inf"), lse)
        top, total, acc = _take(lse, o, top, total, acc)
    o_c, lse_c = normalized(top, total, acc)
    o_a, lse_a = o_c, lse_c
    if ANCHOR == 2:
        o_a, lse_a = normalized(top_a, total_a, acc_a)
    finish(
        o_c, lse_c, o_a, lse_a, share, rows, heads, row_mask, column, out, lse_out, mass_out, weight_out, num_q_heads,
        D, COLUMNS, ANCHOR, OPERATOR, HAS_G, WITH_LSE, WITH_MASS,
    )  # fmt: skip


@triton.jit(do_not_specialize=["batch", "num_kv_heads"])
def merge_kernel(
    plan, g, out, lse_out, mass_out, weight_out, parts_o, parts_lse, batch, num_kv_heads,
    GROUP: tl.constexpr, Q_LEN: tl.constexpr, D: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_R: tl.constexpr,
    BLOCK_C: tl.constexpr, COLUMNS: tl.constexpr, ANCHOR: tl.constexpr, OPERATOR: tl.constexpr, HAS_G: tl.constexpr,
    WITH_LSE: tl.constexpr, WITH_MASS: tl.constexpr, EARLY: tl.constexpr,
):  # fmt: skip
    """The merge as a launch of its own: a program for each row of a sequence and KV head and each COLUMNS channels.

    EARLY: it was launched while decode_kernel runs (programmatic dependent launch), and waits for its end.
    """
    index = tl.program_id(0)
    column = tl.program_id(1) * COLUMNS
    inner = index % (Q_LEN * GROUP)
    row = (index // (Q_LEN * GROUP)) % batch
    head = index // (Q_LEN * GROUP) // batch
    one = tl.arange(0, 1)
    heads = head * GROUP + inner % GROUP + one
    first, parts, anchor_parts, first_part, share = merge_terms(plan, row, g, heads, one < 1, ANCHOR, HAS_G)
    if EARLY:
        tl.extra.cuda.gdc_wait()
    if ANCHOR == 2 or parts > 1:  # else the one program that had it all has written the output
        merge_and_finish(
            first, parts, anchor_parts, first_part, share, parts_o + inner * BLOCK_D + column, parts_lse + inner, head,
            num_kv_heads, row * Q_LEN + inner // GROUP + one, heads, one < 1, column, out, lse_out, mass_out,
            weight_out, num_kv_heads * GROUP, D, BLOCK_D, COLUMNS, 1, BLOCK_R, BLOCK_C, ANCHOR, OPERATOR, HAS_G,
            WITH_LSE, WITH_MASS,
        )  # fmt: skip
