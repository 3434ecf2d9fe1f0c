"""The kernels of PagedFieldprintAttention for decode on a GPU, in Triton. docs/kernel.md has the drawings and the reasons.

Work is cut into units. A unit is one tile of BLOCK_N keys of one sequence, anchor tiles first; under `INVARIANT` it is
a split at absolute positions, of a size that follows from the sequence's own length. All units of a step lie on one line, KV head by KV head, sequence by
sequence; program i takes the units [i * per, (i + 1) * per) of it, so every program reads the same amount. What it
has of a (sequence, KV head) that it shares with others it writes as a partial result; the program that arrives last
merges them, in the order of the line.
"""

import triton
import triton.language as tl

from fieldprint.attention.merge_kernel import PLAN_HEADER, finish, merge_and_finish

# A sequence longer than these has splits of twice and four times the size, if batch-invariant.
MEDIUM = tl.constexpr(8192)
LONG = tl.constexpr(65536)
LOG2_E = tl.constexpr(1.4426950408889634)


@triton.jit
def _unit_of(length, UNIT: tl.constexpr):
    """Tiles of a unit of the context. A split grows with its own sequence: fewer parts to merge, the same bits in any batch."""
    unit = UNIT
    if UNIT > 1:
        unit = UNIT * tl.where(length > MEDIUM, tl.where(length > LONG, 4, 2), 1)
    return unit


@triton.jit
def _context_units(
    length,
    Q_LEN: tl.constexpr,
    WINDOW: tl.constexpr,
    NUM_SINKS: tl.constexpr,
    BLOCK_N: tl.constexpr,
    unit,
):
    """(first tile of the window, tiles of sinks before it, units): what of a sequence its queries see.

    Units of the window lie at multiples of `unit` tiles, those of the sinks from 0 on.
    """
    tiles = (length + BLOCK_N - 1) // BLOCK_N
    if WINDOW > 0:
        oldest = tl.maximum(length - Q_LEN - WINDOW + 1, 0)
        first = oldest // BLOCK_N
        sinks = tl.minimum((tl.minimum(oldest, NUM_SINKS) + BLOCK_N - 1) // BLOCK_N, first)
    else:
        first = tiles * 0
        sinks = tiles * 0
    units = (tiles + unit - 1) // unit - first // unit + (sinks + unit - 1) // unit
    return first, sinks, tl.maximum(units, 1)


@triton.jit(do_not_specialize=["batch", "num_kv_heads", "num_programs", "min_units", "anchor_units"])
def plan_kernel(
    seq_lens,
    plan,
    batch,
    num_kv_heads,
    num_programs,
    min_units,
    anchor_units,
    Q_LEN: tl.constexpr,
    WINDOW: tl.constexpr,
    NUM_SINKS: tl.constexpr,
    BLOCK_N: tl.constexpr,
    UNIT: tl.constexpr,
    BLOCK_B: tl.constexpr,
):
    """Write the plan of a step: units a program, units of one KV head, and their prefix sums by sequence."""
    rows = tl.arange(0, BLOCK_B)
    length = tl.load(seq_lens + rows, mask=rows < batch, other=0)
    _, _, units = _context_units(length, Q_LEN, WINDOW, NUM_SINKS, BLOCK_N, _unit_of(length, UNIT))
    units = tl.where(rows < batch, units + anchor_units, 0)
    ends = tl.cumsum(units, 0)
    total = tl.sum(units, 0)
    per = tl.maximum((total * num_kv_heads + num_programs - 1) // num_programs, min_units)
    tl.store(plan, per)
    tl.store(plan + 1, total)
    tl.store(plan + PLAN_HEADER + rows, ends, mask=rows < batch)
    tl.store(plan + PLAN_HEADER + batch + rows, length, mask=rows < batch)


@triton.jit
def _softmax_step(s, v, m, l, acc, MASKED: tl.constexpr):
    """Take scores `s` (base 2) and values `v` into the running maximum, sum and output."""
    top = tl.maximum(m, tl.max(s, 1))
    if MASKED:
        base = tl.where(top == float("-inf"), 0.0, top)  # a row that has seen no key yet
    else:
        base = top
    p = tl.exp2(s - base[:, None])
    shrink = tl.exp2(m - base)
    l = l * shrink + tl.sum(p, 1)
    acc = tl.dot(p.to(v.dtype), v, acc * shrink[:, None], input_precision="ieee")
    return top, l, acc


@triton.jit
def _cap(s, CAP: tl.constexpr):
    """CAP * tanh(s / CAP) for base-2 scores, or `s` itself."""
    if CAP > 0:
        x = s * (2.0 / CAP)  # in base 2 already: exp2(2 x log2(e)) = exp(2 x)
        s = CAP * LOG2_E * (1.0 - 2.0 / (tl.exp2(tl.minimum(x, 126.0)) + 1.0))
    return s


@triton.jit
def _anchor_tiles(
    q, k, v, lo, hi, num_tokens, stride_t, scale, m, l, acc,
    D: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_N: tl.constexpr, CAP: tl.constexpr,
):  # fmt: skip
    """The anchor's tiles [lo, hi): every query sees every key."""
    offs_n = tl.arange(0, BLOCK_N)
    offs_d = tl.arange(0, BLOCK_D)
    for tile in tl.range(lo, hi, num_stages=1):
        token = tile * BLOCK_N + offs_n
        there = token < num_tokens
        where = token[:, None] * stride_t + offs_d[None, :]
        mask = there[:, None] & (offs_d < D)[None, :]
        keys = tl.load(k + where, mask=mask, other=0.0, eviction_policy="evict_last")
        s = _cap(tl.dot(q, tl.trans(keys), input_precision="ieee") * scale, CAP)
        s = tl.where(there[None, :], s, float("-inf"))
        values = tl.load(v + where, mask=mask, other=0.0, eviction_policy="evict_last")
        m, l, acc = _softmax_step(s, values, m, l, acc, False)
    return m, l, acc


@triton.jit
def _pages_of(table, tile, BLOCK_N: tl.constexpr, PAGE: tl.constexpr):
    """The page of each key of a tile, or the one page of all of them."""
    if PAGE >= BLOCK_N:
        page = tl.load(table + tile * BLOCK_N // PAGE)
    elif PAGE * 8 >= BLOCK_N:  # few pages: one load each, for all threads
        offs_n = tl.arange(0, BLOCK_N)
        first = table + tile * (BLOCK_N // PAGE)
        page = tl.load(first) + tl.zeros([BLOCK_N], tl.int32)
        for i in tl.static_range(1, BLOCK_N // PAGE):
            page = tl.where(offs_n >= i * PAGE, tl.load(first + i), page)
    else:
        page = tl.load(table + (tile * BLOCK_N + tl.arange(0, BLOCK_N)) // PAGE)
    return page


@triton.jit
def _whole_tiles(
    q, k, v, table, lo, hi, stride_kp, stride_kt, stride_vp, stride_vt, scale, m, l, acc,
    D: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_N: tl.constexpr, PAGE: tl.constexpr, CAP: tl.constexpr,
    STAGES: tl.constexpr,
):  # fmt: skip
    """The context's tiles [lo, hi), of which every query sees every key."""
    offs_n = tl.arange(0, BLOCK_N)
    offs_d = tl.arange(0, BLOCK_D)
    for tile in tl.range(lo, hi, num_stages=STAGES):
        page = _pages_of(table, tile, BLOCK_N, PAGE).to(tl.int64)
        inside = (tile * BLOCK_N + offs_n) % PAGE
        at_k = (page * stride_kp + inside * stride_kt)[:, None] + offs_d[None, :]
        at_v = (page * stride_vp + inside * stride_vt)[:, None] + offs_d[None, :]
        if BLOCK_D == D:
            keys = tl.load(k + at_k, eviction_policy="evict_first")
            values = tl.load(v + at_v, eviction_policy="evict_first")
        else:
            keys = tl.load(k + at_k, mask=(offs_d < D)[None, :], other=0.0, eviction_policy="evict_first")
            values = tl.load(v + at_v, mask=(offs_d < D)[None, :], other=0.0, eviction_policy="evict_first")
        s = _cap(tl.dot(q, tl.trans(keys.to(q.dtype)), input_precision="ieee") * scale, CAP)
        m, l, acc = _softmax_step(s, values.to(q.dtype), m, l, acc, False)
    return m, l, acc


@triton.jit
def _edge_tiles(
    q, k, v, table, lo, hi, length, stride_kp, stride_kt, stride_vp, stride_vt, scale, row_end, m, l, acc,
    D: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_N: tl.constexpr, PAGE: tl.constexpr, CAP: tl.constexpr,
    Q_LEN: tl.constexpr, WINDOW: tl.constexpr, NUM_SINKS: tl.constexpr,
):  # fmt: skip
    """The context's tiles [lo, hi), with masks; `row_end` is the position behind the last key that each row of q sees.

    Only what some query sees is read: pages behind the end or before the window may be anything.
    """
    offs_n = tl.arange(0, BLOCK_N)
    offs_d = tl.arange(0, BLOCK_D)
    for tile in tl.range(lo, hi, num_stages=1):
        position = tile * BLOCK_N + offs_n
        seen = position < length
        if WINDOW > 0:
            seen &= (position > length - Q_LEN - WINDOW) | (position < NUM_SINKS)
        page = tl.load(table + position // PAGE, mask=seen, other=0).to(tl.int64)
        inside = position % PAGE
        mask = seen[:, None] & (offs_d < D)[None, :]
        keys = tl.load(
            k + (page * stride_kp + inside * stride_kt)[:, None] + offs_d[None, :], mask=mask, other=0.0
        )
        values = tl.load(
            v + (page * stride_vp + inside * stride_vt)[:, None] + offs_d[None, :], mask=mask, other=0.0
        )
        s = _cap(tl.dot(q, tl.trans(keys.to(q.dtype)), input_precision="ieee") * scale, CAP)
        visible = position[None, :] < row_end[:, None]
        if WINDOW > 0:
            visible &= (position[None, :] >= row_end[:, None] - WINDOW) | (position < NUM_SINKS)[None, :]
        s = tl.where(visible, s, float("-inf"))
        m, l, acc = _softmax_step(s, values.to(q.dtype), m, l, acc, True)
    return m, l, acc


@triton.jit(do_not_specialize=["batch", "num_kv_heads", "num_anchor", "stride_table"])
def decode_kernel(
    q, q_anchor, k_pages, v_pages, table, plan, anchor_k, anchor_v, g, k_scale, v_scale,
    out, lse_out, mass_out, weight_out, parts_o, parts_lse, arrivals,
    batch, num_kv_heads, num_anchor, scale,
    stride_table, stride_kp, stride_kt, stride_kh, stride_vp, stride_vt, stride_vh, stride_ah, stride_at,
    GROUP: tl.constexpr, Q_LEN: tl.constexpr, D: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_M: tl.constexpr,
    BLOCK_R: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_B: tl.constexpr, BLOCK_C: tl.constexpr, PAGE: tl.constexpr,
    ANCHOR: tl.constexpr, OPERATOR: tl.constexpr, HAS_G: tl.constexpr, HAS_Q_ANCHOR: tl.constexpr,
    HAS_SCALES: tl.constexpr, FP8: tl.constexpr, WITH_LSE: tl.constexpr, WITH_MASS: tl.constexpr, CAP: tl.constexpr,
    WINDOW: tl.constexpr, NUM_SINKS: tl.constexpr, INVARIANT: tl.constexpr, UNIT: tl.constexpr, STAGES: tl.constexpr,
    MERGE_HERE: tl.constexpr, EARLY: tl.constexpr,
):  # fmt: skip
    """ANCHOR: 0 none, 1 folded into the context's softmax (concat), 2 apart. OPERATOR: 0 floor, 1 mixture."""
    program = tl.program_id(0)
    per = tl.load(plan)
    units = tl.load(plan + 1)  # of one KV head
    offs_b = tl.arange(0, BLOCK_B)
    ends = tl.load(plan + PLAN_HEADER + offs_b, mask=offs_b < batch, other=2147483647)
    x = program * per
    stop = tl.minimum(x + per, units * num_kv_heads)
    head = x // units
    row = tl.sum((ends <= x - head * units).to(tl.int32), 0)

    offs_m = tl.arange(0, BLOCK_M)
    offs_r = tl.arange(0, BLOCK_R)
    offs_d = tl.arange(0, BLOCK_D)
    m_valid = offs_m < Q_LEN * GROUP
    r_valid = offs_r < Q_LEN * GROUP
    anchor_tiles = (num_anchor + BLOCK_N - 1) // BLOCK_N
    if ANCHOR == 0:
        anchor_tiles = 0
    anchor_units = (anchor_tiles + UNIT - 1) // UNIT
    SLOT_ROWS: tl.constexpr = 2 * BLOCK_R if ANCHOR == 2 else BLOCK_R

    if EARLY:
        tl.extra.cuda.gdc_launch_dependents()
    while x < stop:
        before = tl.load(
            plan + PLAN_HEADER - 1 + row, mask=row > 0, other=0
        )  # where the sequence's units begin
        count = tl.load(plan + PLAN_HEADER + row) - before
        begin = head * units + before  # on the line of all units
        lo = x - begin
        hi = tl.minimum(stop - begin, count)
        if INVARIANT:
            hi = lo + 1
        length = tl.load(plan + PLAN_HEADER + batch + row)
        unit = _unit_of(length, UNIT)
        first, sinks, _ = _context_units(length, Q_LEN, WINDOW, NUM_SINKS, BLOCK_N, unit)

        q_row = row * Q_LEN + offs_m // GROUP
        q_head = head * GROUP + offs_m % GROUP
        q_at = (q_row * (num_kv_heads * GROUP) + q_head)[:, None] * D + offs_d[None, :]
        q_mask = m_valid[:, None] & (offs_d < D)[None, :]
        queries = tl.load(q + q_at, mask=q_mask, other=0.0)
        row_end = length - Q_LEN + offs_m // GROUP + 1
        m = tl.full([BLOCK_M], float("-inf"), tl.float32)
        l = tl.zeros([BLOCK_M], tl.float32)
        acc = tl.zeros([BLOCK_M, BLOCK_D], tl.float32)

        # The anchor's share of this segment
        if ANCHOR > 0:
            a_lo = tl.minimum(lo * UNIT, anchor_tiles)
            a_hi = tl.minimum(hi * UNIT, anchor_tiles)
            if HAS_Q_ANCHOR:
                q_a = tl.load(q_anchor + q_at, mask=q_mask, other=0.0)
            else:
                q_a = queries
            m, l, acc = _anchor_tiles(
                q_a, anchor_k + head * stride_ah, anchor_v + head * stride_ah, a_lo, a_hi, num_anchor, stride_at,
                scale * LOG2_E, m, l, acc, D, BLOCK_D, BLOCK_N, CAP,
            )  # fmt: skip
        if ANCHOR == 2:
            m_a, l_a, acc_a = m, l, acc
            m = tl.full([BLOCK_M], float("-inf"), tl.float32)
            l = tl.zeros([BLOCK_M], tl.float32)
            acc = tl.zeros([BLOCK_M, BLOCK_D], tl.float32)

        # The context's share: sinks, then the window's edge, then whole tiles, then the end
        k_head = k_pages + head * stride_kh
        v_head = v_pages + head * stride_vh
        pages = table + row * stride_table
        k_factor = scale * LOG2_E
        if HAS_SCALES:
            k_factor *= tl.load(k_scale + head)
        queries_c = queries.to(tl.float16) if FP8 else queries
        u_lo = tl.maximum(lo - anchor_units, 0)
        u_hi = tl.maximum(hi - anchor_units, 0)
        all_tiles = tl.maximum((length + BLOCK_N - 1) // BLOCK_N, 1)
        sink_units = (sinks + unit - 1) // unit
        if WINDOW > 0:
            s_lo = tl.minimum(u_lo * unit, sinks)
            s_hi = tl.minimum(u_hi * unit, sinks)
            m, l, acc = _edge_tiles(
                queries_c, k_head, v_head, pages, s_lo, s_hi, length, stride_kp, stride_kt, stride_vp, stride_vt,
                k_factor, row_end, m, l, acc, D, BLOCK_D, BLOCK_N, PAGE, CAP, Q_LEN, WINDOW, NUM_SINKS,
            )  # fmt: skip
            plain_lo = (tl.maximum(length - WINDOW, 0) + BLOCK_N - 1) // BLOCK_N
        else:
            plain_lo = 0
        base = first // unit - sink_units
        c_lo = tl.maximum((tl.maximum(u_lo, sink_units) + base) * unit, first)
        c_hi = tl.minimum((u_hi + base) * unit, all_tiles)
        c_hi = tl.where(u_hi > sink_units, tl.maximum(c_hi, c_lo), c_lo)
        plain_hi = (length - Q_LEN + 1) // BLOCK_N
        p_lo = tl.minimum(tl.maximum(c_lo, plain_lo), c_hi)
        p_hi = tl.maximum(p_lo, tl.minimum(c_hi, plain_hi))
        if WINDOW > 0:
            m, l, acc = _edge_tiles(
                queries_c, k_head, v_head, pages, c_lo, p_lo, length, stride_kp, stride_kt, stride_vp, stride_vt,
                k_factor, row_end, m, l, acc, D, BLOCK_D, BLOCK_N, PAGE, CAP, Q_LEN, WINDOW, NUM_SINKS,
            )  # fmt: skip
        m, l, acc = _whole_tiles(
            queries_c, k_head, v_head, pages, p_lo, p_hi, stride_kp, stride_kt, stride_vp, stride_vt, k_factor,
            m, l, acc, D, BLOCK_D, BLOCK_N, PAGE, CAP, STAGES,
        )  # fmt: skip
        m, l, acc = _edge_tiles(
            queries_c, k_head, v_head, pages, p_hi, c_hi, length, stride_kp, stride_kt, stride_vp, stride_vt,
            k_factor, row_end, m, l, acc, D, BLOCK_D, BLOCK_N, PAGE, CAP, Q_LEN, WINDOW, NUM_SINKS,
        )  # fmt: skip

        o_c = acc / tl.where(l > 0, l, 1.0)[:, None]
        if HAS_SCALES:
            o_c *= tl.load(v_scale + head)
        lse_c = tl.where(l > 0, m + tl.log2(tl.where(l > 0, l, 1.0)), float("-inf"))
        if ANCHOR == 2:
            o_a = acc_a / tl.where(l_a > 0, l_a, 1.0)[:, None]
            lse_a = tl.where(l_a > 0, m_a + tl.log2(tl.where(l_a > 0, l_a, 1.0)), float("-inf"))
        else:
            o_a, lse_a = o_c, lse_c

        if hi - lo == count:
            finish(
                o_c, lse_c, o_a, lse_a, g, q_row, q_head, m_valid, out, lse_out, mass_out, weight_out,
                num_kv_heads * GROUP, D, BLOCK_D, ANCHOR, OPERATOR, HAS_G, WITH_LSE, WITH_MASS,
            )  # fmt: skip
        else:
            # Slots: one a unit if invariant; else two a program, for the segment it begins with and the one it ends with.
            if INVARIANT:
                slot = begin + lo
                parts = count
            else:
                slot = 2 * program + (x > program * per).to(tl.int32)
                parts = (begin + count - 1) // per - begin // per + 1
            at = slot * SLOT_ROWS + offs_m
            part_mask = (offs_m < BLOCK_R)[:, None] & (offs_d < BLOCK_D)[None, :]
            tl.store(parts_lse + at, lse_c, mask=offs_m < BLOCK_R)
            tl.store(parts_o + at.to(tl.int64)[:, None] * BLOCK_D + offs_d[None, :], o_c, mask=part_mask)
            if ANCHOR == 2:
                at += BLOCK_R
                a_mask = (offs_m < BLOCK_R) & (lo < anchor_units)
                tl.store(parts_lse + at, lse_a, mask=a_mask)
                tl.store(
                    parts_o + at.to(tl.int64)[:, None] * BLOCK_D + offs_d[None, :], o_a, mask=a_mask[:, None]
                )
            if MERGE_HERE:
                counter = arrivals + head * batch + row
                tl.debug_barrier()
                arrived = tl.atomic_add(counter, 1, sem="acq_rel", scope="gpu")
                tl.debug_barrier()
                if arrived == parts - 1:
                    merge_and_finish(
                        parts_o, parts_lse, begin, per, parts, anchor_units, g,
                        row * Q_LEN + offs_r // GROUP, head * GROUP + offs_r % GROUP, r_valid,
                        out, lse_out, mass_out, weight_out, num_kv_heads * GROUP,
                        D, BLOCK_D, BLOCK_R, SLOT_ROWS, BLOCK_R, BLOCK_C, INVARIANT, ANCHOR, OPERATOR, HAS_G,
                        WITH_LSE, WITH_MASS,
                    )  # fmt: skip
                    tl.store(counter, 0)  # ready for the next launch
        x = begin + hi
        if hi == count:
            row += 1
            if row == batch:
                row = 0
                head += 1
