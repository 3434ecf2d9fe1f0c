"""The kernel of PagedFieldprintAttention for decode on a GPU, in Triton. docs/kernel.md has the drawings and the reasons.

A program has one KV head and a record of the plan: some neighbouring tiles of BLOCK_N keys of one sequence, the
anchor's first. One loop goes over them, whatever they are. What is only a part of its sequence is written as a partial
result; the program that arrives last, or a launch of its own, merges the parts in their order.
"""

import triton
import triton.language as tl

from fieldprint.attention.merge_kernel import finish, merge_and_finish, merge_terms, normalized
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
    table, tile, sinks, first, tiles, WINDOW: tl.constexpr, BLOCK_N: tl.constexpr, PAGE: tl.constexpr
):  # fmt: skip
    """The page in which a tile of the context lies."""
    return tl.load(table + place_of(tile, sinks, first, tiles, WINDOW) * BLOCK_N // PAGE)


@triton.jit
def _pair(low, high):
    """Two numbers below 2^31 in one. Triton pipelines no loop that hands a value on unchanged, as a queue in four would."""
    return (low.to(tl.int64) & 0xFFFFFFFF) | (high.to(tl.int64) << 32)


@triton.jit
def _softmax_step(s, v, m, l, acc):
    """Take scores `s` (base 2) and values `v` into the running maximum, sum and output."""
    top = tl.maximum(m, tl.max(s, 1))
    base = tl.where(top == float("-inf"), 0.0, top)  # a row that has seen no key yet
    p = tl.exp2(s - base[:, None])
    shrink = tl.exp2(m - base)
    l = l * shrink + tl.sum(p, 1)
    acc = tl.dot(p.to(v.dtype), v, acc * shrink[:, None], input_precision="ieee")
    return top, l, acc


@triton.jit
def _anchor_tiles(
    q, k, v, lo, hi, num_anchor, scale, m, l, acc,
    STRIDE: tl.constexpr, D: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_N: tl.constexpr, CAP: tl.constexpr,
):  # fmt: skip
    """The anchor's tiles [lo, hi): every query sees every key."""
    offs_n = tl.arange(0, BLOCK_N)
    offs_d = tl.arange(0, BLOCK_D)
    offsets = offs_n[:, None] * STRIDE + offs_d[None, :]
    for tile in tl.range(lo, hi):
        there = offs_n < num_anchor - tile * BLOCK_N
        mask = there[:, None] & (offs_d < D)[None, :]
        start = tile * BLOCK_N * STRIDE
        keys = tl.load(k + start + offsets, mask=mask, other=0.0, eviction_policy="evict_last")
        values = tl.load(v + start + offsets, mask=mask, other=0.0, eviction_policy="evict_last")
        s = _cap(tl.dot(q, tl.trans(keys), input_precision="ieee") * scale, CAP)
        m, l, acc = _softmax_step(tl.where(there[None, :], s, float("-inf")), values, m, l, acc)
    return m, l, acc


@triton.jit
def _context_tiles(
    q, k, v, table, lo, hi, near, far, length, sinks, first, tiles, query, stride_kp, stride_vp, scale, m, l, acc,
    STRIDE_K: tl.constexpr, STRIDE_V: tl.constexpr, D: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_N: tl.constexpr,
    PAGE: tl.constexpr, CAP: tl.constexpr, Q_LEN: tl.constexpr, WINDOW: tl.constexpr, NUM_SINKS: tl.constexpr,
):  # fmt: skip
    """The context's tiles [lo, hi) of those that some query sees; `near` and `far` hold the pages of the first LOOKAHEAD.

    `query` is the number of each row's query among the Q_LEN. Slots behind the end or before the window, and the pages
    of such slots, may hold anything: their scores are put aside, and their values are not read.
    """
    offs_n = tl.arange(0, BLOCK_N)
    offs_d = tl.arange(0, BLOCK_D)
    for tile in tl.range(lo, hi):
        place = place_of(tile, sinks, first, tiles, WINDOW)
        end = length - place * BLOCK_N
        there = offs_n < end
        if WINDOW > 0:
            position = place * BLOCK_N + offs_n
            oldest = length - Q_LEN - WINDOW
            there &= (position > oldest) | (position < NUM_SINKS)
        seen = there[None, :]
        if Q_LEN > 1:
            seen &= offs_n[None, :] < (end - (Q_LEN - 1) + query)[:, None]
            if WINDOW > 0:
                seen &= (position[None, :] > (oldest + query)[:, None]) | (position < NUM_SINKS)[None, :]

        if PAGE >= BLOCK_N:
            page = near & 0xFFFFFFFF
            near = _pair(near >> 32, far)
            far = _pair(
                far >> 32, _page_of(table, tile + LOOKAHEAD, sinks, first, tiles, WINDOW, BLOCK_N, PAGE)
            )
            inside = place * BLOCK_N % PAGE
            keys_at = (
                k + (page * stride_kp + inside * STRIDE_K) + (offs_n[:, None] * STRIDE_K + offs_d[None, :])
            )
            values_at = (
                v + (page * stride_vp + inside * STRIDE_V) + (offs_n[:, None] * STRIDE_V + offs_d[None, :])
            )
        else:
            slot = place * BLOCK_N + offs_n
            page = tl.load(table + slot // PAGE, mask=there, other=0).to(tl.int64)
            keys_at = k + (page * stride_kp + slot % PAGE * STRIDE_K)[:, None] + offs_d[None, :]
            values_at = v + (page * stride_vp + slot % PAGE * STRIDE_V)[:, None] + offs_d[None, :]
        if BLOCK_D == D:
            keys = tl.load(keys_at, eviction_policy="evict_first")
        else:
            keys = tl.load(keys_at, mask=(offs_d < D)[None, :], other=0.0, eviction_policy="evict_first")
        mask = there[:, None] & (offs_d < D)[None, :]
        values = tl.load(values_at, mask=mask, other=0.0, eviction_policy="evict_first")
        s = _cap(tl.dot(q, tl.trans(keys.to(q.dtype)), input_precision="ieee") * scale, CAP)
        m, l, acc = _softmax_step(tl.where(seen, s, float("-inf")), values.to(q.dtype), m, l, acc)
    return m, l, acc


@triton.jit
def _store_part(
    o, lse, parts_o, parts_lse, slot_row, BLOCK_M: tl.constexpr, BLOCK_R: tl.constexpr, BLOCK_D: tl.constexpr
):
    """Write a partial result to the BLOCK_R rows from `slot_row` on."""
    offs_m = tl.arange(0, BLOCK_M)
    at = slot_row + offs_m
    tl.store(parts_lse + at, lse, mask=offs_m < BLOCK_R)
    where = at.to(tl.int64)[:, None] * BLOCK_D + tl.arange(0, BLOCK_D)[None, :]
    tl.store(parts_o + where, o, mask=(offs_m < BLOCK_R)[:, None])


@triton.jit(do_not_specialize=["batch", "num_kv_heads", "num_anchor", "stride_table"])
def decode_kernel(
    q, q_anchor, k_pages, v_pages, table, plan, anchor_k, anchor_v, g, k_scale, v_scale, out, lse_out, mass_out,
    weight_out, parts_o, parts_lse, arrivals, batch, num_kv_heads, num_anchor, scale, stride_table, stride_kp,
    stride_kh, stride_vp, stride_vh, stride_ah,
    STRIDE_K: tl.constexpr, STRIDE_V: tl.constexpr, STRIDE_A: tl.constexpr, GROUP: tl.constexpr, Q_LEN: tl.constexpr,
    D: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_R: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_C: tl.constexpr, PAGE: tl.constexpr, ANCHOR: tl.constexpr,
    OPERATOR: tl.constexpr, HAS_G: tl.constexpr, HAS_Q_ANCHOR: tl.constexpr, HAS_SCALES: tl.constexpr,
    FP8: tl.constexpr, CAP: tl.constexpr, WINDOW: tl.constexpr, NUM_SINKS: tl.constexpr,
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
            if MERGE_HERE:
                r_head, r_valid = head * GROUP + offs_r % GROUP, offs_r < Q_LEN * GROUP
                first_slot, parts, anchor_parts, first_part, share = merge_terms(
                    plan, row, g, r_head, r_valid, ANCHOR, HAS_G
                )
            slot_row = (slot * num_kv_heads + head) * SLOT_ROWS
            m = tl.full([BLOCK_M], float("-inf"), tl.float32)
            l = tl.zeros([BLOCK_M], tl.float32)
            acc = tl.zeros([BLOCK_M, BLOCK_D], tl.float32)
            if ANCHOR > 0 and lo < anchor_tiles:
                q_a = queries
                if HAS_Q_ANCHOR:
                    q_a = tl.load(q_anchor + q_at, mask=q_mask, other=0.0)
                m, l, acc = _anchor_tiles(
                    q_a, anchor_k + head * stride_ah, anchor_v + head * stride_ah, lo, tl.minimum(hi, anchor_tiles),
                    num_anchor, scale * LOG2_E, m, l, acc, STRIDE_A, D, BLOCK_D, BLOCK_N, CAP,
                )  # fmt: skip
                if ANCHOR == 2:
                    o, lse = normalized(m, l, acc)
                    _store_part(o, lse, parts_o, parts_lse, slot_row + BLOCK_R, BLOCK_M, BLOCK_R, BLOCK_D)
                    m = tl.full([BLOCK_M], float("-inf"), tl.float32)
                    l = tl.zeros([BLOCK_M], tl.float32)
                    acc = tl.zeros([BLOCK_M, BLOCK_D], tl.float32)
            whole = ANCHOR < 2 and (lo == 0 and hi == count)
            if ANCHOR < 2 or hi > anchor_tiles:
                k_factor = scale * LOG2_E
                if HAS_SCALES:
                    k_factor *= tl.load(k_scale + head)
                m, l, acc = _context_tiles(
                    queries.to(tl.float16) if FP8 else queries, k_pages + head * stride_kh, v_pages + head * stride_vh,
                    table + row.to(tl.int64) * stride_table, tl.maximum(lo - anchor_tiles, 0), hi - anchor_tiles, near,
                    far, length, sinks, first, tiles, query, stride_kp, stride_vp, k_factor, m, l, acc, STRIDE_K,
                    STRIDE_V, D, BLOCK_D, BLOCK_N, PAGE, CAP, Q_LEN, WINDOW, NUM_SINKS,
                )  # fmt: skip
                o, lse = normalized(m, l, acc)
                if HAS_SCALES:
                    o *= tl.load(v_scale + head)
                if whole:
                    finish(
                        o, lse, o, lse, lse, q_row, q_head, m_valid, 0, out, lse_out, mass_out, weight_out,
                        num_kv_heads * GROUP, D, BLOCK_D, ANCHOR, OPERATOR, HAS_G, WITH_LSE, WITH_MASS,
                    )  # fmt: skip
                else:
                    _store_part(o, lse, parts_o, parts_lse, slot_row, BLOCK_M, BLOCK_R, BLOCK_D)
            if MERGE_HERE and not whole:
                counter = arrivals + row * num_kv_heads + head
                tl.debug_barrier()
                arrived = tl.atomic_add(counter, 1, sem="acq_rel", scope="gpu")
                tl.debug_barrier()
                if arrived == parts - 1:
                    merge_and_finish(
                        first_slot, parts, anchor_parts, first_part, share, parts_o, parts_lse, head, num_kv_heads,
                        row * Q_LEN + offs_r // GROUP, r_head, r_valid, 0, out, lse_out, mass_out, weight_out,
                        num_kv_heads * GROUP, D, BLOCK_D, BLOCK_D, BLOCK_R, BLOCK_R, BLOCK_C, ANCHOR, OPERATOR, HAS_G,
                        WITH_LSE, WITH_MASS,
                    )  # fmt: skip
                    tl.store(counter, 0)  # ready for the next launch
