"""BLAKE3 in Triton: one lane hashes one chunk of 1,024 bytes where it lies, and pairs of nodes meet level by level.

A message is `outer` x `inner` runs of contiguous bytes, which is what a page of any layout comes to. Chaining values are
stored as eight planes of words, plane w holding word w of every node, so that neighbouring lanes touch neighbouring words.

Source: BLAKE3 specification, sections 2.1 (tree), 2.2 (compression), 2.3 (modes).
"""

import triton
import triton.language as tl

CHUNK_START = tl.constexpr(1)
CHUNK_END = tl.constexpr(2)
PARENT = tl.constexpr(4)
ROOT = tl.constexpr(8)
IV0 = tl.constexpr(0x6A09E667)
IV1 = tl.constexpr(0xBB67AE85)
IV2 = tl.constexpr(0x3C6EF372)
IV3 = tl.constexpr(0xA54FF53A)
SCALARS = ["k0", "k1", "k2", "k3", "k4", "k5", "k6", "k7", "flags", "one"]


@triton.jit
def _rotate(x, BY: tl.constexpr):
    return (x >> BY) | (x << (32 - BY))


@triton.jit
def _mix(a, b, c, d, x, y, one):
    """G of section 2.2; `one` is explained at `chunk_kernel`."""
    a = b * one + (a * one + x)
    d = _rotate(d ^ a, 16)
    c = c * one + d
    b = _rotate(b ^ c, 12)
    a = b * one + (a * one + y)
    d = _rotate(d ^ a, 8)
    c = c * one + d
    b = _rotate(b ^ c, 7)
    return a, b, c, d


@triton.jit
def _round(s, m, one):
    """One round: the columns, then the diagonals."""
    s0, s4, s8, s12 = _mix(s[0], s[4], s[8], s[12], m[0], m[1], one)
    s1, s5, s9, s13 = _mix(s[1], s[5], s[9], s[13], m[2], m[3], one)
    s2, s6, s10, s14 = _mix(s[2], s[6], s[10], s[14], m[4], m[5], one)
    s3, s7, s11, s15 = _mix(s[3], s[7], s[11], s[15], m[6], m[7], one)
    s0, s5, s10, s15 = _mix(s0, s5, s10, s15, m[8], m[9], one)
    s1, s6, s11, s12 = _mix(s1, s6, s11, s12, m[10], m[11], one)
    s2, s7, s8, s13 = _mix(s2, s7, s8, s13, m[12], m[13], one)
    s3, s4, s9, s14 = _mix(s3, s4, s9, s14, m[14], m[15], one)
    return (s0, s1, s2, s3, s4, s5, s6, s7, s8, s9, s10, s11, s12, s13, s14, s15)


@triton.jit
def _permuted(m):
    return (
        m[2], m[6], m[3], m[10], m[7], m[0], m[4], m[13], m[1], m[11], m[12], m[5], m[9], m[14], m[15], m[8]
    )  # fmt: skip


@triton.jit
def _compress(cv, m, low, high, length, flags, one):
    """The chaining value after a block: `cv` and `m` are words by lane, counter and flags too."""
    like = cv[0]
    zero = like ^ like
    s = (
        cv[0], cv[1], cv[2], cv[3], cv[4], cv[5], cv[6], cv[7],
        zero + IV0, zero + IV1, zero + IV2, zero + IV3, zero + low, zero + high, zero + length, zero + flags,
    )  # fmt: skip
    s = _round(s, m, one)
    for _ in tl.static_range(6):
        m = _permuted(m)
        s = _round(s, m, one)
    return (
        s[0] ^ s[8], s[1] ^ s[9], s[2] ^ s[10], s[3] ^ s[11],
        s[4] ^ s[12], s[5] ^ s[13], s[6] ^ s[14], s[7] ^ s[15],
    )  # fmt: skip


@triton.jit
def _aligned_words(words, at, mask, LANES: tl.constexpr):
    """The 16 words of each lane's block, in loads of 16 bytes."""
    m = ()
    for i in tl.static_range(0, 16, 4):
        quad = tl.load(words + (at + i)[:, None] + tl.arange(0, 4)[None, :], mask=mask[:, None], other=0)
        m = m + _four(quad.to(tl.uint32, bitcast=True), LANES)
    return m


@triton.jit
def _bytewise_words(
    data, start, at, length, inner, outer_stride, inner_stride, mask, RUN: tl.constexpr, LANES: tl.constexpr
):
    """The 16 words of each lane's block, byte by byte, zero behind the message's end."""
    m = ()
    offs = tl.arange(0, 16)[None, :]
    for i in tl.static_range(0, 64, 16):
        position = at[:, None] + i + offs
        place = start[:, None] + _address(position, inner, outer_stride, inner_stride, RUN)
        byte = tl.load(data + place, mask=mask[:, None] & (position < length), other=0)
        shifted = byte.to(tl.uint32) << ((offs % 4) * 8).to(tl.uint32)
        m = m + _four(tl.sum(tl.reshape(shifted, (LANES, 4, 4)), 2), LANES)
    return m


@triton.jit
def _four(quad, LANES: tl.constexpr):
    """The columns of [LANES, 4]."""
    even, odd = tl.split(tl.reshape(quad, (LANES, 2, 2)))
    w0, w2 = tl.split(even)
    w1, w3 = tl.split(odd)
    return w0, w1, w2, w3


@triton.jit
def _address(position, inner, outer_stride, inner_stride, RUN: tl.constexpr):
    """Where a position of a message lies, from the message's first: runs of RUN, `inner` of them to an outer step.

    A position fits 32 bits; a place does not, where layers lie gigabytes apart.
    """
    run = position // RUN
    outer, step = (run // inner).to(tl.int64), (run % inner).to(tl.int64)
    return outer * outer_stride + step * inner_stride + position % RUN


@triton.jit
def _key_words(k0, k1, k2, k3, k4, k5, k6, k7, zero):
    return (
        zero + k0.to(tl.uint32, bitcast=True), zero + k1.to(tl.uint32, bitcast=True),
        zero + k2.to(tl.uint32, bitcast=True), zero + k3.to(tl.uint32, bitcast=True),
        zero + k4.to(tl.uint32, bitcast=True), zero + k5.to(tl.uint32, bitcast=True),
        zero + k6.to(tl.uint32, bitcast=True), zero + k7.to(tl.uint32, bitcast=True),
    )  # fmt: skip


@triton.jit
def _load(planes, at, total, mask):
    words = ()
    for w in tl.static_range(8):
        words = words + (tl.load(planes + w * total + at, mask=mask, other=0).to(tl.uint32, bitcast=True),)
    return words


@triton.jit
def _store(cv, planes, at, total, mask):
    for w in tl.static_range(8):
        tl.store(planes + w * total + at, cv[w].to(tl.int32, bitcast=True), mask=mask)


@triton.jit
def _chosen(condition, ours, theirs):
    chosen = ()
    for w in tl.static_range(8):
        chosen = chosen + (tl.where(condition, ours[w], theirs[w]),)
    return chosen


@triton.jit
def _index(indices, message, last_index, mask, HAS_INDICES: tl.constexpr):
    """Which page each message is, and whether there is such a page."""
    index = message
    if HAS_INDICES:
        index = tl.load(indices + message, mask=mask, other=0).to(tl.int64)
    return index, mask & (index >= 0) & (index <= last_index)


@triton.jit
def _leave(cv, digests, expected, mismatch, message, mask, there, HAS_EXPECTED: tl.constexpr):
    """Store the digests of whole messages, and set the bit of each that is not the expected one.

    A message that is not there gets a digest of ones, and its bit is set whatever was expected.
    """
    differs = ~there
    for w in tl.static_range(8):
        word = tl.where(there, cv[w].to(tl.int32, bitcast=True), -1)
        tl.store(digests + message * 8 + w, word, mask=mask)
        if HAS_EXPECTED:
            want = tl.load(expected + message * 8 + w, mask=mask, other=0)
            differs = differs | (want != word)
    if HAS_EXPECTED:
        bit = (tl.full(message.shape, 1, tl.int32)) << (message % 32).to(tl.int32)
        tl.atomic_or(mismatch + message // 32, bit, mask=mask & differs)


@triton.jit(do_not_specialize=[*SCALARS, "num_messages", "num_chunks", "last_index", "length"])
def chunk_kernel(
    data, indices, first_chunks, nodes, digests, expected, mismatch,
    num_messages, num_chunks, last_index, length, message_stride, inner, outer_stride, inner_stride,
    k0, k1, k2, k3, k4, k5, k6, k7, flags, one,
    ONE_CHUNK: tl.constexpr, RUN: tl.constexpr, ALIGNED: tl.constexpr, WHOLE: tl.constexpr,
    HAS_INDICES: tl.constexpr, HAS_FIRST: tl.constexpr, IS_ROOT: tl.constexpr, HAS_EXPECTED: tl.constexpr,
    LANES: tl.constexpr,
):  # fmt: skip
    """Chaining values of all chunks of all messages into `nodes`; where a message is one chunk, its digest.

    Strides and RUN count words where ALIGNED, else bytes. WHOLE: every chunk has 1,024 bytes. A message whose index is
    not within 0..last_index is read nowhere and left as `_leave` says.

    `one` is 1, and the compiler does not know it. An addition of two operands that is written a * one + b stays a
    multiply-add (IMAD), which runs on a pipe beside the one of XOR (LOP3), rotation (SHF) and three-operand addition
    (IADD3). In the SASS for sm_90 (Triton 3.7) the loop over blocks has 230 IMAD and 116 IMAD.IADD beside 235 LOP3 and
    228 SHF; without the multiplication 112 IADD3 come to the latter, whose pipe bounds the kernel.
    """
    one = one.to(tl.uint32)
    lane = tl.program_id(0).to(tl.int64) * LANES + tl.arange(0, LANES)
    mask = lane < num_messages.to(tl.int64) * num_chunks
    message = lane // num_chunks
    chunk = (lane % num_chunks).to(tl.int32)
    index, there = _index(indices, message, last_index, mask, HAS_INDICES)
    start = index * message_stride
    counter = chunk.to(tl.int64)
    if HAS_FIRST:
        counter += tl.load(first_chunks + message, mask=mask, other=0)
    low, high = counter.to(tl.uint32), (counter >> 32).to(tl.uint32)
    cv = _key_words(k0, k1, k2, k3, k4, k5, k6, k7, low ^ low)
    END: tl.constexpr = CHUNK_END | ROOT if IS_ROOT else CHUNK_END
    for block in range(16):
        edge = flags.to(tl.uint32) | tl.where(block == 0, CHUNK_START, 0).to(tl.uint32)
        here = length - chunk * 1024 - block * 64  # bytes from this block to the message's end
        if ALIGNED:
            at = start + _address(chunk * 256 + block * 16, inner, outer_stride, inner_stride, RUN)
            m = _aligned_words(data, at, there & (here > 0), LANES)
        else:
            at = chunk * 1024 + block * 64
            m = _bytewise_words(data, start, at, length, inner, outer_stride, inner_stride, there, RUN, LANES)
        if WHOLE:
            edge |= tl.where(block == 15, END, 0).to(tl.uint32)
            cv = _compress(cv, m, low, high, 64, edge, one)
        else:
            edges = edge | tl.where((here <= 64) | (block == 15), END, 0).to(tl.uint32)
            filled = tl.minimum(tl.maximum(here, 0), 64).to(tl.uint32)
            # The message of no bytes is one empty block.
            cv = _chosen((here > 0) | (block == 0), _compress(cv, m, low, high, filled, edges, one), cv)
    if ONE_CHUNK:
        _leave(cv, digests, expected, mismatch, message, mask, there, HAS_EXPECTED)
    else:
        _store(cv, nodes, lane, num_messages.to(tl.int64) * num_chunks, mask)


@triton.jit(do_not_specialize=[*SCALARS, "num_messages", "num_nodes", "last_index", "levels", "share"])
def merge_kernel(
    nodes, merged, indices, digests, expected, mismatch, num_messages, num_nodes, last_index, levels, share,
    k0, k1, k2, k3, k4, k5, k6, k7, flags, one,
    ONE_GROUP: tl.constexpr, HAS_INDICES: tl.constexpr, IS_ROOT: tl.constexpr, HAS_EXPECTED: tl.constexpr,
    LANES: tl.constexpr,
):  # fmt: skip
    """2^levels neighbouring nodes of a message become one, in pairs, an odd one carried up: BLAKE3's left-full tree.

    A program takes `share` such groups. `nodes` has room twice, levels alternate between the halves, and what a level wrote
    only the same program reads. Where a message is one group, its digest is left, else the group's node goes to `merged`.
    """
    one = one.to(tl.uint32)
    groups = (num_nodes + (1 << levels) - 1) >> levels
    total = num_messages.to(tl.int64) * num_nodes
    num_groups = num_messages.to(tl.int64) * groups
    edge = flags.to(tl.uint32) | PARENT
    for level in range(levels):
        last = levels - level - 1  # a group has 2^last pairs on this level
        source = nodes + (level % 2) * 8 * total
        for at in range(0, share << last, LANES):
            lane = at + tl.arange(0, LANES)
            group = tl.program_id(0).to(tl.int64) * share + (lane >> last)
            pair = 2 * (lane & ((1 << last) - 1))
            message, part = group // groups, group % groups
            whole = tl.minimum(
                num_nodes - (part << levels), 1 << levels
            )  # the group's nodes on the first level
            width = (whole + (1 << level) - 1) >> level
            mask = (lane < share << last) & (group < num_groups) & (pair < width)
            first = message * num_nodes + (part << levels)
            left = _load(source, first + pair, total, mask)
            right = _load(source, first + pair + 1, total, mask & (pair + 1 < width))
            zero = left[0] ^ left[0]
            edges = zero + edge
            if IS_ROOT and ONE_GROUP:
                edges = tl.where(width == 2, edges | ROOT, edges)
            key = _key_words(k0, k1, k2, k3, k4, k5, k6, k7, zero)
            node = _chosen(pair + 1 < width, _compress(key, left + right, 0, 0, 64, edges, one), left)
            if last > 0:
                _store(node, nodes + (1 - level % 2) * 8 * total, first + pair // 2, total, mask)
            elif ONE_GROUP:
                _, there = _index(indices, message, last_index, mask, HAS_INDICES)
                _leave(node, digests, expected, mismatch, message, mask, there, HAS_EXPECTED)
            else:
                _store(node, merged, group, num_groups, mask)
        tl.debug_barrier()
