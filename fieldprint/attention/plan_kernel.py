"""The plan of a decode step, made on the device: which part of which sequence each program has. docs/kernel.md draws it.

A sequence is a line of tiles of BLOCK_N keys: the anchor's, then those of its context that some query sees. It is cut
into parts, the same for every KV head, so that the programs of neighbouring heads read neighbouring bytes.

    plan, int32:  batch rows    of PLAN_ROW:    first slot, parts, parts that touch the anchor, first part that touches the context
                  records       of PLAN_RECORD: row, first tile, end, slot, next record or -1, length, the pages of the
                                                first LOOKAHEAD tiles of its context; row -1: nothing to do
"""

import triton
import triton.language as tl

PLAN_ROW = tl.constexpr(4)
PLAN_RECORD = tl.constexpr(12)
LOOKAHEAD = tl.constexpr(4)  # pages that a record holds, and that the kernel is ahead of its tiles
# So many tiles of the anchor take as long as one of a page: all sequences and steps share them, and L2 has them.
LIGHT = tl.constexpr(4)
# A sequence longer than these has splits of twice and LONG_GROWTH times the size, if batch-invariant.
MEDIUM = tl.constexpr(8192)
LONG = tl.constexpr(65536)
LONG_GROWTH = tl.constexpr(8)


@triton.jit
def context_span(
    length, Q_LEN: tl.constexpr, WINDOW: tl.constexpr, NUM_SINKS: tl.constexpr, BLOCK_N: tl.constexpr
):
    """(sinks, first, tiles): what some query of a sequence sees lies in its tiles [0, sinks) and [first, tiles)."""
    tiles = (length + BLOCK_N - 1) // BLOCK_N
    if WINDOW > 0:
        oldest = tl.maximum(length - Q_LEN - WINDOW + 1, 0)
        first = oldest // BLOCK_N
        sinks = tl.minimum((tl.minimum(oldest, NUM_SINKS) + BLOCK_N - 1) // BLOCK_N, first)
    else:
        first = tiles * 0
        sinks = tiles * 0
    return sinks, first, tiles


@triton.jit
def _split_of(length, SPLIT: tl.constexpr):
    """Tiles of a split of the context. It grows with its own sequence: fewer parts to merge, the same bits in any batch."""
    return SPLIT * tl.where(length > MEDIUM, tl.where(length > LONG, LONG_GROWTH, 2), 1)


@triton.jit
def _splits(length, sinks, first, tiles, SPLIT: tl.constexpr):
    """(tiles of a split, splits of the sinks, splits of the window); splits of the window lie at multiples of their size."""
    split = _split_of(length, SPLIT)
    return split, (sinks + split - 1) // split, (tiles + split - 1) // split - first // split


@triton.jit
def _tile_at(weight, anchor_tiles):
    """The first tile behind `weight`, where LIGHT tiles of the anchor weigh as much as one of the context."""
    of_anchor = (anchor_tiles + LIGHT - 1) // LIGHT
    return tl.where(weight < of_anchor, weight * LIGHT, anchor_tiles + weight - of_anchor)


@triton.jit
def _parts_of(size, anchor_tiles, context, SEPARATE: tl.constexpr):
    """(parts of the anchor alone, other parts) of a sequence in parts of `size` tiles."""
    if SEPARATE:
        wide = tl.maximum(size, LIGHT)
        alone = context * 0 + (anchor_tiles + wide - 1) // wide
        others = (context + size - 1) // size
    else:
        alone = context * 0
        others = (context + (anchor_tiles + LIGHT - 1) // LIGHT + size - 1) // size
    return alone, tl.where(alone > 0, others, tl.maximum(others, 1))


@triton.jit
def _fitting_size(anchor_tiles, context, there, num_ranges, min_tiles, SEPARATE: tl.constexpr):
    """The smallest part, in tiles, with which all sequences together have at most `num_ranges` parts."""
    low = min_tiles
    high = tl.maximum(tl.max(context, 0) + anchor_tiles, min_tiles)
    while low < high:
        middle = (low + high) // 2
        alone, others = _parts_of(middle, anchor_tiles, context, SEPARATE)
        if tl.sum(tl.where(there, alone + others, 0), 0) <= num_ranges:
            high = middle
        else:
            low = middle + 1
    return low


@triton.jit(
    do_not_specialize=["batch", "num_ranges", "num_records", "min_tiles", "anchor_tiles", "stride_table"]
)
def plan_kernel(
    seq_lens, page_table, plan, batch, num_ranges, num_records, min_tiles, anchor_tiles, stride_table,
    Q_LEN: tl.constexpr, WINDOW: tl.constexpr, NUM_SINKS: tl.constexpr, BLOCK_N: tl.constexpr, PAGE: tl.constexpr,
    SPLIT: tl.constexpr, ALIGNED: tl.constexpr, SEPARATE: tl.constexpr, BLOCK_B: tl.constexpr, BLOCK_I: tl.constexpr,
):  # fmt: skip
    """Write the rows and BLOCK_I of the records. Three ways to cut:

    SPLIT > 0: at absolute positions, a record a split; what a sequence gets follows from its own length.
    ALIGNED: every sequence begins with a program of its own, in equal parts, as small as fit into `num_ranges`; the
    anchor is in parts of its own if SEPARATE.
    Else: one line of all sequences, range i has [i * per, (i + 1) * per) of it; where a range goes on into the next
    sequence, that sequence's own record (num_ranges + row) follows.
    """
    rows = tl.arange(0, BLOCK_B)
    there = rows < batch
    length = tl.load(seq_lens + rows, mask=there, other=0)
    sinks, first, tiles = context_span(length, Q_LEN, WINDOW, NUM_SINKS, BLOCK_N)
    anchor_weight = (anchor_tiles + LIGHT - 1) // LIGHT
    counts = anchor_weight + sinks + tiles - first
    size = min_tiles
    if SPLIT > 0:
        anchor_splits = (anchor_tiles + SPLIT - 1) // SPLIT
        _, sink_splits, window_splits = _splits(length, sinks, first, tiles, SPLIT)
        parts = tl.maximum(anchor_splits + sink_splits + window_splits, 1)
        weights = parts
        first_part = parts * 0 + anchor_splits
        anchor_parts = first_part
    elif ALIGNED:
        size = _fitting_size(anchor_tiles, counts - anchor_weight, there, num_ranges, min_tiles, SEPARATE)
        alone, others = _parts_of(size, anchor_tiles, counts - anchor_weight, SEPARATE)
        parts = alone + others
        weights = parts
        if SEPARATE:
            first_part = alone
            anchor_parts = alone
        else:  # part i has [i * counts // parts, (i + 1) * counts // parts) of the weights
            safe = tl.maximum(counts, 1)
            first_part = ((anchor_weight + 1) * parts + safe - 1) // safe - 1
            anchor_parts = (anchor_weight * parts + safe - 1) // safe
    else:
        weights = tl.maximum(counts, 1)
        size = tl.maximum((tl.sum(tl.where(there, weights, 0), 0) + num_ranges - 1) // num_ranges, min_tiles)
    weights = tl.where(there, weights, 0)
    ends = tl.cumsum(weights, 0)
    total = tl.sum(weights, 0)
    first_slot = ends - weights
    if SPLIT == 0 and not ALIGNED:
        begin = first_slot
        leader = begin // size
        parts = (ends - 1) // size - leader + 1
        first_slot = leader + rows
        first_part = (begin + anchor_weight) // size - leader
        anchor_parts = tl.where(anchor_tiles > 0, (begin + anchor_weight - 1) // size - leader + 1, 0)
    mine = there & (tl.program_id(0) == 0)
    tl.store(plan + rows * PLAN_ROW, first_slot, mask=mine)
    tl.store(plan + rows * PLAN_ROW + 1, parts, mask=mine)
    tl.store(plan + rows * PLAN_ROW + 2, anchor_parts, mask=mine)
    tl.store(plan + rows * PLAN_ROW + 3, tl.where(counts > anchor_weight, first_part, parts), mask=mine)

    record = tl.program_id(0) * BLOCK_I + tl.arange(0, BLOCK_I)
    point = record  # on the line of all weights
    if SPLIT == 0 and not ALIGNED:
        own = record >= num_ranges  # the record with which a sequence begins inside a range
        point = tl.where(own, -1, record * size)
    over = ends[None, :] <= point[:, None]
    row = tl.sum(over.to(tl.int32), 1)
    before = tl.sum(tl.where(over, weights[None, :], 0), 1)
    if SPLIT == 0 and not ALIGNED:
        row = tl.where(own, record - num_ranges, row)
        before = tl.where(own, tl.sum(tl.where(rows[None, :] < row[:, None], weights[None, :], 0), 1), before)
        point = tl.where(own, before, point)
    alive = (point < total) & (row < batch)
    row = tl.where(alive, row, 0)
    length = tl.load(seq_lens + row)
    sinks, first, tiles = context_span(length, Q_LEN, WINDOW, NUM_SINKS, BLOCK_N)
    count = anchor_weight + sinks + tiles - first
    part = point - before
    slot = record
    following = record * 0 - 1
    if SPLIT > 0:
        split, sink_splits, _ = _splits(length, sinks, first, tiles, SPLIT)
        sink = part - anchor_splits
        step = sink - sink_splits + first // split
        in_context = anchor_tiles + sinks - first
        lo = tl.where(
            sink < sink_splits, anchor_tiles + sink * split, in_context + tl.maximum(step * split, first)
        )
        hi = tl.where(
            sink < sink_splits,
            anchor_tiles + tl.minimum((sink + 1) * split, sinks),
            in_context + tl.minimum((step + 1) * split, tiles),
        )
        lo = tl.where(sink < 0, part * SPLIT, lo)
        hi = tl.where(sink < 0, tl.minimum((part + 1) * SPLIT, anchor_tiles), hi)
        hi = tl.maximum(lo, hi)
        following = tl.where(record + num_ranges < total, record + num_ranges, -1)
    elif ALIGNED:
        alone, others = _parts_of(size, anchor_tiles, count - anchor_weight, SEPARATE)
        if SEPARATE:
            context = count - anchor_weight
            step = part - alone
            some = tl.maximum(others, 1)
            lo = anchor_tiles + step * context // some
            hi = anchor_tiles + (step + 1) * context // some
            lo = tl.where(step < 0, part * anchor_tiles // tl.maximum(alone, 1), lo)
            hi = tl.where(step < 0, (part + 1) * anchor_tiles // tl.maximum(alone, 1), hi)
        else:
            lo = _tile_at(part * count // others, anchor_tiles)
            hi = _tile_at((part + 1) * count // others, anchor_tiles)
    else:
        index = point // size
        stop = tl.minimum((index + 1) * size, total)
        end = before + tl.maximum(count, 1)
        lo = _tile_at(part, anchor_tiles)
        hi = _tile_at(tl.minimum(stop - before, count), anchor_tiles)
        slot = index + row
        following = tl.where(stop > end, num_ranges + row + 1, -1)
    at = plan + batch * PLAN_ROW + record * PLAN_RECORD
    written = record < num_records
    tl.store(at, tl.where(alive, row, -1), mask=written)
    tl.store(at + 1, lo, mask=written)
    tl.store(at + 2, hi, mask=written)
    tl.store(at + 3, slot, mask=written)
    tl.store(at + 4, tl.where(alive, following, -1), mask=written)
    tl.store(at + 5, length, mask=written)
    if PAGE >= BLOCK_N:
        for ahead in tl.static_range(LOOKAHEAD):
            place = place_of(tl.maximum(lo - anchor_tiles, 0) + ahead, sinks, first, tiles, WINDOW)
            page = tl.load(
                page_table + row.to(tl.int64) * stride_table + place * BLOCK_N // PAGE,
                mask=written & alive,
                other=0,
            )
            tl.store(at + 6 + ahead, page, mask=written)


@triton.jit
def place_of(tile, sinks, first, tiles, WINDOW: tl.constexpr):
    """Where in its sequence a tile of the context that queries see lies, in tiles; the nearest one where it is none."""
    place = tile
    if WINDOW > 0:
        place = tile + tl.where(sinks > tile, 0, first - sinks)
    return tl.maximum(tl.minimum(place, tiles - 1), 0)
