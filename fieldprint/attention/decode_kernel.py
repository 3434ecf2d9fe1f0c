"""The kernel of PagedFieldprintAttention for decode on a GPU, in Triton. docs/kernel.md has the drawings and the reasons.

A program has one KV head and a record of the plan: some neighbouring tiles of BLOCK_N keys of one sequence, the
anchor's first. One loop goes over them, whatever they are. What is only a part of its sequence is written as a partial
result; the program that arrives last, or a launch of its own, merges the parts in their order.
"""

import triton
import triton.language as tl

from fieldprint.attention.merge_kernel import finish, merge_and_finish
from fieldprint.attention.plan_kernel import LOOKAHEAD, PLAN_RECORD, PLAN_ROW, context_span, place_of

LOG2_E = tl.constexpr(1.4426950408889634)


@triton.jit
def _cap(s, CAP: tl.constexpr):
    """CAP * tanh(s / CAP) for base-2 scores, or `s` itself."""
    if CAP > 0:
        x = s * (2.0 / CAP)  # in base 2 already: exp2(2 x log2(e)) = exp(2 x)
        s = CAP * LOG2_E * (1.0 - 2.0 / (tl.exp2(tl.minimum(x, 126.0)) + 1.0))
    return s


@triton.jit
def _page_of(
    table, tile, anchor_tiles, sinks, first, tiles, WINDOW: tl.constexpr, BLOCK_N: tl.constexpr, PAGE: tl.constexpr
):  # fmt: skip
    """The page in which a tile of the sequence's line lies."""
    return tl.load(table + place_of(tile, anchor_tiles, sinks, first, tiles, WINDOW) * BLOCK_N // PAGE)


@triton.jit
def _pair(low, high):
    """Two numbers below 2^31 in one. Triton pipelines no loop that hands a value on unchanged, as a queue in four would."""
    return (low.to(tl.int64) & 0xFFFFFFFF) | (high.to(tl.int64) << 32)


@triton.jit
def _attend(
    q, k, v, anchor_k, anchor_v, table, lo, hi, near, far, length, anchor_tiles, num_anchor,
    sinks, first, tiles, query, stride_kp, stride_kt, stride_vp, stride_vt, stride_at, scale,
    D: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_N: tl.constexpr, PAGE: tl.constexpr,
    CAP: tl.constexpr, Q_LEN: tl.constexpr, WINDOW: tl.constexpr, NUM_SINKS: tl.constexpr, STAGES: tl.constexpr,
    ANCHOR: tl.constexpr, CONTEXT: tl.constexpr,
):  # fmt: skip
    """(normalized output, base-2 lse) of rows of q over the tiles [lo, hi) of a sequence's line.

    `query` is the number of each row's query among the Q_LEN; `near` and `far` hold the pages of the first LOOKAHEAD tiles.
    ANCHOR, CONTEXT: whether there are such tiles among them. Only what some query sees is read: slots behind the end or
    before the window, and the pages of such slots, may be anything.
    """
    offs_n = tl.arange(0, BLOCK_N)
    offs_d = tl.arange(0, BLOCK_D)
    m = tl.full([BLOCK_M], float("-inf"), tl.float32)
    l = tl.zeros([BLOCK_M], tl.float32)
    acc = tl.zeros([BLOCK_M, BLOCK_D], tl.float32)
    for tile in tl.range(lo, hi):
        # Of the tile's keys, `there` are those to read, and row m sees those before end[m].
        place = place_of(tile, anchor_tiles, sinks, first, tiles, WINDOW)
        of_anchor = CONTEXT == 0
        if ANCHOR and CONTEXT:
            of_anchor = tile < anchor_tiles
        stop = length - place * BLOCK_N
        end = stop
        if Q_LEN > 1:
            end = stop - (Q_LEN - 1) + query
        if ANCHOR:
            stop = tl.where(of_anchor, num_anchor - tile * BLOCK_N, stop)
            end = tl.where(of_anchor, num_anchor - tile * BLOCK_N, end)
        there = offs_n < stop
        if Q_LEN > 1:
            seen = offs_n[None, :] < end[:, None]
        else:
            seen = there[None, :]
        if WINDOW > 0:
            position = place * BLOCK_N + offs_n
            kept = (position < NUM_SINKS) | of_anchor
            there &= kept | (position > length - Q_LEN - WINDOW)
            seen &= kept[None, :] | (position[None, :] > length - Q_LEN - WINDOW + query[:, None])

        # Where its rows lie: from start on, step apart; or, of pages smaller than it, row by row.
        start_k = tile * BLOCK_N * stride_at
        start_v = start_k
        step_k, step_v = stride_at, stride_at
        k_from, v_from = anchor_k, anchor_v
        if CONTEXT:
            if PAGE >= BLOCK_N:
                page = near & 0xFFFFFFFF
                page_k = page * stride_kp + (place * BLOCK_N % PAGE) * stride_kt
                page_v = page * stride_vp + (place * BLOCK_N % PAGE) * stride_vt
                near = _pair(near >> 32, far)
                far = _pair(
                    far >> 32, _page_of(table, tile + LOOKAHEAD, anchor_tiles, sinks, first, tiles, WINDOW, BLOCK_N, PAGE)
                )
            else:
                in_page = there & (tile >= anchor_tiles)
                inside = (place * BLOCK_N + offs_n) % PAGE
                page = tl.load(table + (place * BLOCK_N + offs_n) // PAGE, mask=in_page, other=0).to(tl.int64)
                page_k = page * stride_kp + (inside - offs_n) * stride_kt
                page_v = page * stride_vp + (inside - offs_n) * stride_vt
            if ANCHOR:
                start_k, start_v = tl.where(of_anchor, start_k, page_k), tl.where(of_anchor, start_v, page_v)
                step_k, step_v = tl.where(of_anchor, step_k, stride_kt), tl.where(of_anchor, step_v, stride_vt)
                k_from, v_from = tl.where(of_anchor, k_from, k), tl.where(of_anchor, v_from, v)
            else:
                start_k, start_v, step_k, step_v, k_from, v_from = page_k, page_v, stride_kt, stride_vt, k, v
        at_k = start_k + offs_n * step_k
        at_v = start_v + offs_n * step_v
        mask = there[:, None]
        if BLOCK_D != D:
            mask = mask & (offs_d < D)[None, :]
        keys = tl.load(
            k_from + at_k[:, None] + offs_d[None, :], mask=mask, other=0.0, eviction_policy="evict_first"
        )
        values = tl.load(
            v_from + at_v[:, None] + offs_d[None, :], mask=mask, other=0.0, eviction_policy="evict_first"
        )

        s = _cap(tl.dot(q, tl.trans(keys.to(q.dtype)), input_precision="ieee") * scale, CAP)
        s = tl.where(seen, s, float("-inf"))
        top = tl.maximum(m, tl.max(s, 1))
        base = tl.where(top == float("-inf"), 0.0, top)  # a row that has seen no key yet
        p = tl.exp2(s - base[:, None])
        shrink = tl.exp2(m - base)
        l = l * shrink + tl.sum(p, 1)
        acc = tl.dot(p.to(q.dtype), values.to(q.dtype), acc * shrink[:, None], input_precision="ieee")
        m = top
    some = l > 0
    total = tl.where(some, l, 1.0)
    return acc / total[:, None], tl.where(some, m + tl.log2(total), float("-inf"))


@triton.jit
def _store_part(o, lse, parts_o, parts_lse, slot_row, BLOCK_M: tl.constexpr, BLOCK_R: tl.constexpr, BLOCK_D: tl.constexpr):  # fmt: skip
    """Write a partial result to the BLOCK_R rows from `slot_row` on."""
    offs_m = tl.arange(0, BLOCK_M)
    at = slot_row + offs_m
    tl.store(parts_lse + at, lse, mask=offs_m < BLOCK_R)
    where = at.to(tl.int64)[:, None] * BLOCK_D + tl.arange(0, BLOCK_D)[None, :]
    tl.store(parts_o + where, o, mask=(offs_m < BLOCK_R)[:, None] & (where >= 0))


@triton.jit(do_not_specialize=["batch", "num_kv_heads", "num_anchor", "stride_table"])
def decode_kernel(
    q, q_anchor, k_pages, v_pages, table, plan, anchor_k, anchor_v, g, k_scale, v_scale, out, lse_out, mass_out,
    weight_out, parts_o, parts_lse, arrivals, batch, num_kv_heads, num_anchor, scale, stride_table, stride_kp,
    stride_kt, stride_kh, stride_vp, stride_vt, stride_vh, stride_ah, stride_at,
    GROUP: tl.constexpr, Q_LEN: tl.constexpr, D: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_M: tl.constexpr,
    BLOCK_R: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_C: tl.constexpr, PAGE: tl.constexpr, ANCHOR: tl.constexpr,
    OPERATOR: tl.constexpr, HAS_G: tl.constexpr, HAS_Q_ANCHOR: tl.constexpr, HAS_SCALES: tl.constexpr,
    FP8: tl.constexpr, CAP: tl.constexpr, WINDOW: tl.constexpr, NUM_SINKS: tl.constexpr, STAGES: tl.constexpr,
    WITH_LSE: tl.constexpr, WITH_MASS: tl.constexpr, MERGE_HERE: tl.constexpr, EARLY: tl.constexpr,
):  # fmt: skip
    """The attention of one step. ANCHOR: 0 none, 1 folded into the context's softmax (concat), 2 apart. OPERATOR: 0 floor, 1 mixture."""
    head = tl.program_id(0) % num_kv_heads
    record = tl.program_id(0) // num_kv_heads
    offs_m = tl.arange(0, BLOCK_M)
    offs_r = tl.arange(0, BLOCK_R)
    offs_d = tl.arange(0, BLOCK_D)
    m_valid = offs_m < Q_LEN * GROUP
    query = offs_m // GROUP
    anchor_tiles = 0
    if ANCHOR > 0:
        anchor_tiles = (num_anchor + BLOCK_N - 1) // BLOCK_N
    SLOT_ROWS: tl.constexpr = 2 * BLOCK_R if ANCHOR == 2 else BLOCK_R
    if EARLY:
        tl.extra.cuda.gdc_launch_dependents()
    while record >= 0:
        at = plan + batch * PLAN_ROW + record * PLAN_RECORD
        row = tl.load(at)
        lo = tl.load(at + 1)
        hi = tl.load(at + 2)
        slot = tl.load(at + 3)
        record = tl.load(at + 4)
        length = tl.load(at + 5)
        near = _pair(tl.load(at + 6), tl.load(at + 7))
        far = _pair(tl.load(at + 8), tl.load(at + 9))
        if row >= 0:
            sinks, first, tiles = context_span(length, Q_LEN, WINDOW, NUM_SINKS, BLOCK_N)
            count = anchor_tiles + sinks + tiles - first
            q_row = row * Q_LEN + query
            q_head = head * GROUP + offs_m % GROUP
            q_at = (q_row * (num_kv_heads * GROUP) + q_head)[:, None] * D + offs_d[None, :]
            q_mask = m_valid[:, None] & (offs_d < D)[None, :]
            queries = tl.load(q + q_at, mask=q_mask, other=0.0)
            k_head, v_head = k_pages + head * stride_kh, v_pages + head * stride_vh
            a_k, a_v = anchor_k + head * stride_ah, anchor_v + head * stride_ah
            pages = table + row.to(tl.int64) * stride_table
            a_factor = scale * LOG2_E
            k_factor = a_factor
            if HAS_SCALES:
                k_factor *= tl.load(k_scale + head)
            q_c = queries.to(tl.float16) if FP8 else queries
            slot_row = (slot * num_kv_heads + head) * SLOT_ROWS
            whole = False
            if ANCHOR == 2 and lo < anchor_tiles:
                q_a = queries
                if HAS_Q_ANCHOR:
                    q_a = tl.load(q_anchor + q_at, mask=q_mask, other=0.0)
                o, lse = _attend(
                    q_a, k_head, v_head, a_k, a_v, pages, lo, tl.minimum(hi, anchor_tiles), near, far, length, anchor_tiles, num_anchor, sinks, first, tiles, query, stride_kp, stride_kt,
                    stride_vp, stride_vt, stride_at, a_factor, D, BLOCK_M, BLOCK_D, BLOCK_N, PAGE, CAP, Q_LEN, WINDOW,
                    NUM_SINKS, STAGES, True, False,
                )  # fmt: skip
                _store_part(o, lse, parts_o, parts_lse, slot_row + BLOCK_R, BLOCK_M, BLOCK_R, BLOCK_D)
                lo = anchor_tiles
                if PAGE >= BLOCK_N:  # the record has pages of the anchor's tiles, that is none
                    near = _pair(
                        _page_of(pages, lo, lo, sinks, first, tiles, WINDOW, BLOCK_N, PAGE),
                        _page_of(pages, lo + 1, lo, sinks, first, tiles, WINDOW, BLOCK_N, PAGE),
                    )
                    far = _pair(
                        _page_of(pages, lo + 2, lo, sinks, first, tiles, WINDOW, BLOCK_N, PAGE),
                        _page_of(pages, lo + 3, lo, sinks, first, tiles, WINDOW, BLOCK_N, PAGE),
                    )
            if ANCHOR < 2 or hi > anchor_tiles:
                o, lse = _attend(
                    q_c, k_head, v_head, a_k, a_v, pages, lo, hi, near, far, length, anchor_tiles,
                    num_anchor, sinks, first, tiles, query, stride_kp, stride_kt, stride_vp, stride_vt, stride_at,
                    k_factor, D, BLOCK_M, BLOCK_D, BLOCK_N, PAGE, CAP, Q_LEN, WINDOW, NUM_SINKS, STAGES, ANCHOR == 1,
                    True,
                )  # fmt: skip
                if HAS_SCALES:
                    o *= tl.load(v_scale + head)
                if ANCHOR < 2 and (lo == 0 and hi == count):
                    whole = True
                    finish(
                        o, lse, o, lse, g, q_row, q_head, m_valid, 0, out, lse_out, mass_out, weight_out,
                        num_kv_heads * GROUP, D, BLOCK_D, ANCHOR, OPERATOR, HAS_G, WITH_LSE, WITH_MASS,
                    )  # fmt: skip
                else:
                    _store_part(o, lse, parts_o, parts_lse, slot_row, BLOCK_M, BLOCK_R, BLOCK_D)
            if MERGE_HERE and not whole:
                counter = arrivals + row * num_kv_heads + head
                parts = tl.load(plan + row * PLAN_ROW + 1)
                tl.debug_barrier()
                arrived = tl.atomic_add(counter, 1, sem="acq_rel", scope="gpu")
                tl.debug_barrier()
                if arrived == parts - 1:
                    merge_and_finish(
                        plan, parts_o, parts_lse, row, head, num_kv_heads, g,
                        row * Q_LEN + offs_r // GROUP, head * GROUP + offs_r % GROUP, offs_r < Q_LEN * GROUP, 0,
                        out, lse_out, mass_out, weight_out, num_kv_heads * GROUP,
                        D, BLOCK_D, BLOCK_D, BLOCK_R, BLOCK_R, BLOCK_C, ANCHOR, OPERATOR, HAS_G, WITH_LSE, WITH_MASS,
                    )  # fmt: skip
                    tl.store(counter, 0)  # ready for the next launch
