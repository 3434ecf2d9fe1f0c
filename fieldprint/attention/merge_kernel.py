"""The end of a decode step on a GPU: merging partial results, the injection operator, and what is written."""

import triton
import triton.language as tl

LN_2 = tl.constexpr(0.6931471805599453)
# The plan, int32: units a program, units of one KV head, then for each sequence where its units end, then its length.
PLAN_HEADER = tl.constexpr(2)


@triton.jit
def finish(
    o_c, lse_c, o_a, lse_a, g, rows, heads, row_mask, out, lse_out, mass_out, weight_out, num_q_heads,
    D: tl.constexpr, BLOCK_D: tl.constexpr, ANCHOR: tl.constexpr, OPERATOR: tl.constexpr, HAS_G: tl.constexpr,
    WITH_LSE: tl.constexpr, WITH_MASS: tl.constexpr,
):  # fmt: skip
    """Apply the injection operator to normalized outputs and base-2 lses, and write what was asked for."""
    offs_d = tl.arange(0, BLOCK_D)
    where = rows * num_q_heads + heads
    if ANCHOR == 2:  # anchor apart from the context
        mass = 1.0 / (1.0 + tl.exp2(tl.minimum(lse_c - lse_a, 126.0)))
        w = mass
        if HAS_G:
            share = tl.load(g + heads, mask=row_mask, other=0.0)
            if OPERATOR == 1:
                w = tl.where(lse_c == float("-inf"), 1.0, share)
            else:
                w = tl.maximum(share, mass)
        o = o_c + w[:, None] * (o_a - o_c)
        if WITH_MASS:
            tl.store(mass_out + where, mass, mask=row_mask)
            tl.store(weight_out + where, w, mask=row_mask)
        if WITH_LSE:
            top = tl.maximum(lse_c, lse_a)
            lse_c = top + tl.log2(tl.exp2(lse_c - top) + tl.exp2(lse_a - top))
    else:
        o = o_c
    if WITH_LSE:
        tl.store(lse_out + where, lse_c * LN_2, mask=row_mask)
    tl.store(
        out + where[:, None] * D + offs_d[None, :],
        o.to(out.dtype.element_ty),
        mask=row_mask[:, None] & (offs_d < D)[None, :],
    )


@triton.jit
def _merge(
    parts_o, parts_lse, first_slot, step_slot, count, apart,
    SLOT_ROWS: tl.constexpr, BLOCK_R: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    """(output, lse) of `count` partial results, merged in their order.

    The first lies in slot `first_slot`, the others in every second (`step_slot` = 2) or every slot from `apart` on.
    """
    offs_r = tl.arange(0, BLOCK_R)
    offs_d = tl.arange(0, BLOCK_D)
    offs_c = tl.arange(0, BLOCK_C)
    top = tl.full([BLOCK_R], float("-inf"), tl.float32)
    total = tl.zeros([BLOCK_R], tl.float32)
    acc = tl.zeros([BLOCK_R, BLOCK_D], tl.float32)
    for begin in tl.range(0, count, BLOCK_C, num_stages=1):
        index = begin + offs_c
        slot = tl.where(index == 0, first_slot, apart + (index - 1) * step_slot)
        there = index < count
        row = slot[:, None] * SLOT_ROWS + offs_r[None, :]
        lse = tl.load(parts_lse + row, mask=there[:, None], other=float("-inf"), cache_modifier=".cg")
        o = tl.load(
            parts_o + row.to(tl.int64)[:, :, None] * BLOCK_D + offs_d[None, None, :],
            mask=there[:, None, None],
            other=0.0,
            cache_modifier=".cg",
        )
        new = tl.maximum(top, tl.max(lse, 0))
        base = tl.where(new == float("-inf"), 0.0, new)
        share = tl.exp2(lse - base[None, :])
        shrink = tl.exp2(top - base)
        total = total * shrink + tl.sum(share, 0)
        acc = acc * shrink[:, None] + tl.sum(o * share[:, :, None], 0)
        top = new
    lse = tl.where(total > 0, top + tl.log2(tl.where(total > 0, total, 1.0)), float("-inf"))
    return acc / tl.where(total > 0, total, 1.0)[:, None], lse


@triton.jit
def merge_and_finish(
    parts_o, parts_lse, begin, per, parts, anchor_units, g, rows, heads, row_mask, out, lse_out, mass_out, weight_out,
    num_q_heads, D: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_R: tl.constexpr, SLOT_ROWS: tl.constexpr,
    ANCHOR_ROWS: tl.constexpr, BLOCK_C: tl.constexpr, INVARIANT: tl.constexpr, ANCHOR: tl.constexpr,
    OPERATOR: tl.constexpr, HAS_G: tl.constexpr, WITH_LSE: tl.constexpr, WITH_MASS: tl.constexpr,
):  # fmt: skip
    """Merge the partial results of the sequence and KV head whose units begin at `begin`, and write the output.

    Slots are one a unit if invariant; else two a program, for the segment that it begins with and the one it ends with.
    """
    if INVARIANT:
        first_slot = begin
        apart = begin + 1
        step: tl.constexpr = 1
        a_parts = anchor_units
    else:
        leader = begin // per
        first_slot = 2 * leader + (begin > leader * per).to(tl.int32)
        apart = 2 * leader + 2
        step: tl.constexpr = 2
        a_parts = (begin + tl.maximum(anchor_units, 1) - 1) // per - leader + 1
    o_c, lse_c = _merge(
        parts_o, parts_lse, first_slot, step, parts, apart, SLOT_ROWS, BLOCK_R, BLOCK_D, BLOCK_C
    )
    if ANCHOR == 2:
        o_a, lse_a = _merge(
            parts_o + ANCHOR_ROWS * BLOCK_D, parts_lse + ANCHOR_ROWS, first_slot, step, a_parts, apart,
            SLOT_ROWS, BLOCK_R, BLOCK_D, BLOCK_C,
        )  # fmt: skip
    else:
        o_a, lse_a = o_c, lse_c
    finish(
        o_c, lse_c, o_a, lse_a, g, rows, heads, row_mask, out, lse_out, mass_out, weight_out, num_q_heads,
        D, BLOCK_D, ANCHOR, OPERATOR, HAS_G, WITH_LSE, WITH_MASS,
    )  # fmt: skip


@triton.jit(do_not_specialize=["batch", "num_kv_heads", "anchor_units"])
def merge_kernel(
    plan, g, out, lse_out, mass_out, weight_out, parts_o, parts_lse, batch, num_kv_heads, anchor_units,
    GROUP: tl.constexpr, Q_LEN: tl.constexpr, D: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_R: tl.constexpr,
    BLOCK_C: tl.constexpr, INVARIANT: tl.constexpr, ANCHOR: tl.constexpr, OPERATOR: tl.constexpr, HAS_G: tl.constexpr,
    WITH_LSE: tl.constexpr, WITH_MASS: tl.constexpr, EARLY: tl.constexpr,
):  # fmt: skip
    """The merge as a launch of its own, a program for each row of each (sequence, KV head).

    EARLY: it was launched while decode_kernel runs (programmatic dependent launch), and waits for its end.
    """
    index = tl.program_id(0)
    inner = index % (Q_LEN * GROUP)
    row = (index // (Q_LEN * GROUP)) % batch
    head = index // (Q_LEN * GROUP) // batch
    per = tl.load(plan)
    before = tl.load(plan + PLAN_HEADER - 1 + row, mask=row > 0, other=0)
    count = tl.load(plan + PLAN_HEADER + row) - before
    begin = head * tl.load(plan + 1) + before
    parts = (begin + count - 1) // per - begin // per + 1
    if INVARIANT:
        parts = count
    if EARLY:
        tl.extra.cuda.gdc_wait()
    if parts > 1:  # else the one program that had it all has written the output
        SLOT_ROWS: tl.constexpr = 2 * BLOCK_R if ANCHOR == 2 else BLOCK_R
        one = tl.arange(0, 1)
        merge_and_finish(
            parts_o + inner * BLOCK_D, parts_lse + inner, begin, per, parts, anchor_units, g,
            row * Q_LEN + inner // GROUP + one, head * GROUP + inner % GROUP + one, one < 1,
            out, lse_out, mass_out, weight_out, num_kv_heads * GROUP,
            D, BLOCK_D, 1, SLOT_ROWS, BLOCK_R, BLOCK_C, INVARIANT, ANCHOR, OPERATOR, HAS_G, WITH_LSE, WITH_MASS,
        )  # fmt: skip
