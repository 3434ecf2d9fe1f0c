"""The drawings of the documentation; `python docs/figures/draw.py` writes them beside itself.

Needs the standard library alone. Same input, same bytes: `tests/test_figures.py` compares the files with `drawings()`.
"""

import itertools
import json
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from html import escape
from itertools import groupby, pairwise
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).parent
RESULTS = FOLDER.parent.parent / "benchmarks" / "results" / "attention_gpu.json"
LOG_RESULTS = RESULTS.with_name("log.json")
MEMORY_RESULTS = RESULTS.with_name("memory.json")
REGISTRY_RESULTS = RESULTS.with_name("registry.json")
TIMELINE = RESULTS.with_name("timeline.json")
INK, GREY, LINE, PAPER, BAND = "#1f2933", "#5c6773", "#7b8794", "#ffffff", "#f1f4f7"
ANCHOR, PART, DONE, OURS, PEER = "#ffc46b", "#d9c8f0", "#bfe3c6", "#0b5cad", "#c2410c"
CONTEXT = ("#b9d8f2", "#8fbce6")  # of every other sequence

# The cell that the drawing of the memories has numbers for; what the kernel chose for it, and its constants (tested).
BATCH, LENGTH, NUM_Q_HEADS, NUM_KV_HEADS, HEAD_DIM = 8, 4096, 32, 8, 128
NUM_ANCHOR, PAGE_SIZE, BYTES = 128, 16, 2
BLOCK_N, STAGES, PROGRAMS_PER_SM, MERGE_WIDTH, MIN_TILES = 16, 3, 8, 8, 4
LIGHT, LOOKAHEAD, SEPARATE_FROM, PLAN_ROW, PLAN_RECORD = 4, 4, 8, 4, 12
MULTIPROCESSORS = 132

# The drawn batches: tiles of each context, and ranges; all with DRAWN_ANCHOR tiles and DRAWN_HEADS KV heads.
FEW, MANY, DRAWN_ANCHOR, DRAWN_HEADS = ((32, 16), 16), ((8, 1, 6, 1, 5), 4), 8, 2


@dataclass
class Sheet:
    """An SVG in the making: shapes on a background of its own, so that it reads the same on light and dark pages."""

    width: int
    height: int
    title: str
    parts: list[str] = field(default_factory=list)

    def text(
        self,
        x: float,
        y: float,
        text: str,
        *,
        size: int = 13,
        at: str = "middle",
        bold: bool = False,
        ink: str = INK,
    ) -> None:
        """A line of text whose middle is at height y; `at` says which point of it is at x."""
        weight = ' font-weight="bold"' if bold else ""
        self.parts.append(
            f'<text x="{x:g}" y="{y + size * 0.36:.1f}" font-size="{size}" text-anchor="{at}" fill="{ink}"{weight}>'
            f"{escape(text)}</text>"
        )

    def box(
        self, x: float, y: float, width: float, height: float, lines: str = "", *, fill: str = PAPER, size: int = 13,
        stroke: str = LINE, dashed: bool = False, bold: bool = False,
    ) -> None:  # fmt: skip
        """A box with lines of text in its middle, of which the first may be bold."""
        dash = ' stroke-dasharray="4 3"' if dashed else ""
        self.parts.append(
            f'<rect x="{x:g}" y="{y:g}" width="{width:g}" height="{height:g}" rx="{min(3, width / 8):g}" fill="{fill}" stroke="{stroke}"{dash}/>'
        )
        texts = lines.split("\n") if lines else []
        for index, text in enumerate(texts):
            middle = y + height / 2 + (index - (len(texts) - 1) / 2) * (size + 5)
            self.text(x + width / 2, middle, text, size=size, bold=bold and index == 0)

    def arrow(self, *points: tuple[float, float], dashed: bool = False) -> None:
        """Straight pieces through the points, with a head at the last."""
        path = " ".join(f"{x:g},{y:g}" for x, y in points)
        dash = ' stroke-dasharray="4 3"' if dashed else ""
        self.parts.append(
            f'<polyline points="{path}" fill="none" stroke="{INK}" stroke-width="1.3" marker-end="url(#head)"{dash}/>'
        )

    def line(self, x: float, y: float, to_x: float, to_y: float, ink: str = LINE, width: float = 1) -> None:
        """A line."""
        self.parts.append(
            f'<line x1="{x:g}" y1="{y:g}" x2="{to_x:g}" y2="{to_y:g}" stroke="{ink}" stroke-width="{width:g}"/>'
        )

    def mark(self, x: float, y: float, number: int) -> None:
        """A number in a disc."""
        self.parts.append(f'<circle cx="{x:g}" cy="{y:g}" r="9.5" fill="{INK}"/>')
        self.text(x, y, str(number), size=12, bold=True, ink=PAPER)

    def svg(self) -> str:
        """The whole file."""
        head = (
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {self.width} {self.height}" width="{self.width}" '
            f'height="{self.height}" role="img" font-family="Helvetica, Arial, \'DejaVu Sans\', sans-serif">'
        )
        marker = (
            '<defs><marker id="head" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="7" markerHeight="7" orient="auto">'
            f'<path d="M0 0.5 L8 4 L0 7.5 z" fill="{INK}"/></marker></defs>'
        )
        back = f'<rect width="{self.width}" height="{self.height}" rx="6" fill="{PAPER}"/>'
        title = f"<title>{escape(self.title)}</title>"
        return "\n".join([head, title, marker, back, *self.parts, "</svg>", ""])


@dataclass(frozen=True, slots=True)
class Piece:
    """A record of the plan: tiles [first, stop) of a sequence, of the anchor's and then the context's."""

    record: int
    row: int
    first: int
    stop: int
    slot: int


def cut(contexts: Sequence[int], anchor: int, ranges: int, min_tiles: int = 1) -> list[list[Piece]]:
    """What each range has, as `plan_kernel` cuts it (tested): `contexts` are the tiles of each sequence's context."""
    if 2 * len(contexts) > ranges:
        return _cut_line(contexts, anchor, ranges, min_tiles)
    pieces = _cut_aligned(contexts, anchor, ranges, min_tiles)
    return [[piece] for piece in pieces] + [[]] * (ranges - len(pieces))


def _cut_aligned(contexts: Sequence[int], anchor: int, ranges: int, min_tiles: int) -> list[Piece]:
    """Equal parts of each sequence, as small as fit; from SEPARATE_FROM ranges a sequence on the anchor has its own."""
    separate = SEPARATE_FROM * len(contexts) <= ranges

    def parts_of(context: int, size: int) -> tuple[int, int]:
        if separate:
            alone, others = math.ceil(anchor / max(size, LIGHT)), math.ceil(context / size)
        else:
            alone, others = 0, math.ceil((math.ceil(anchor / LIGHT) + context) / size)
        return alone, others if alone else max(others, 1)

    size = min_tiles
    while sum(sum(parts_of(context, size)) for context in contexts) > ranges:
        size += 1
    pieces: list[Piece] = []
    for row, context in enumerate(contexts):
        alone, others = parts_of(context, size)
        bounds = [part * anchor // alone for part in range(alone)]
        if separate:
            bounds += [anchor + part * context // max(others, 1) for part in range(others + 1)]
        else:
            weight = math.ceil(anchor / LIGHT) + context
            bounds += [_tile_at(part * weight // others, anchor) for part in range(others + 1)]
        for first, stop in pairwise(bounds):
            pieces.append(Piece(len(pieces), row, first, stop, len(pieces)))
    return pieces


def _cut_line(contexts: Sequence[int], anchor: int, ranges: int, min_tiles: int) -> list[list[Piece]]:
    """Equal ranges of the line of all sequences; a sequence that begins inside a range has a record of its own."""
    weights = [math.ceil(anchor / LIGHT) + context for context in contexts]
    line = [(row, step) for row, weight in enumerate(weights) for step in range(max(weight, 1))]
    per = max(math.ceil(len(line) / ranges), min_tiles)
    found: list[list[Piece]] = []
    for index in range(ranges):
        pieces: list[Piece] = []
        for row, steps in groupby(line[index * per : (index + 1) * per], lambda place: place[0]):
            passed = [step for _, step in steps]
            first = _tile_at(passed[0], anchor)
            stop = _tile_at(min(passed[-1] + 1, weights[row]), anchor)
            pieces.append(Piece(ranges + row if pieces else index, row, first, stop, index + row))
        found.append(pieces)
    return found


def _tile_at(weight: int, anchor: int) -> int:
    """The first tile behind `weight`, where LIGHT tiles of the anchor weigh as much as one of the context."""
    of_anchor = math.ceil(anchor / LIGHT)
    return weight * LIGHT if weight < of_anchor else anchor + weight - of_anchor


def draw_units() -> str:
    """Two batches, cut into programs, with records, slots and merge: few sequences and many."""
    sheet = Sheet(900, 604, "How a batch is cut into programs: few sequences, and many")
    for y, title, more, (contexts, ranges), widths in (
        (
            20,
            f"Few sequences, from {SEPARATE_FROM} ranges a sequence on: equal parts, the anchor's apart",
            "With fewer ranges, from 2 a sequence on, the anchor's tiles are in the first parts of each sequence.",
            FEW,
            (12.25, 12.25),
        ),
        (
            278,
            "Many sequences, fewer than 2 ranges a sequence: equal ranges of one line",
            f"{LIGHT} tiles of the anchor, which are in L2, count as one of the context. Slot = range + sequence.",
            MANY,
            (24.0 / LIGHT, 24.0),
        ),
    ):
        note = f"{len(contexts)} sequences, {DRAWN_HEADS} KV heads, {ranges} ranges. {more}"
        sheet.text(16, y, title, at="start", bold=True)
        sheet.text(16, y + 21, note, at="start", size=12, ink=GREY)
        _draw_cut(sheet, y + 50, contexts, ranges, widths)
    at = 16
    for fill, meaning, width in (
        (ANCHOR, "tile of the anchor", 150),
        (CONTEXT[0], "tile of the sequence's own pages", 236),
        (PART, "partial result, one for each KV head", 262),
        (DONE, "output, one for each KV head", 0),
    ):
        sheet.box(at, 528, 18, 18, fill=fill)
        sheet.text(at + 25, 537, meaning, at="start", size=12)
        at += width
    for y, text in (
        (568, "The programs of a record have a KV head each and read neighbouring bytes. Record to record: where a range goes on."),
        (588, "The slots of a sequence and KV head are merged in their order: by the program that arrives last, or in a launch of its own."),
    ):  # fmt: skip
        sheet.text(16, y, text, at="start", size=12, ink=GREY)
    return sheet.svg()


def _draw_cut(
    sheet: Sheet, y: float, contexts: Sequence[int], ranges: int, widths: tuple[float, float]
) -> None:
    """Tiles, programs, records, slots and outputs, one below the other; `widths` of a tile of the anchor and another."""
    anchor, left, gap = DRAWN_ANCHOR, 96, 6
    starts = [left + row * (gap + anchor * widths[0]) + sum(contexts[:row]) * widths[1] for row in range(len(contexts))]  # fmt: skip

    def at(row: int, tile: int) -> float:
        return starts[row] + min(tile, anchor) * widths[0] + max(tile - anchor, 0) * widths[1]

    for name, middle in (("tiles", 31), ("programs", 59), ("record", 87), ("slot", 115), ("output", 154)):
        sheet.text(16, y + middle, name, at="start", size=12)
    for row, context in enumerate(contexts):
        color, end = CONTEXT[row % len(CONTEXT)], at(row, anchor + context)
        sheet.text((starts[row] + end) / 2, y, f"seq {row}", size=12)
        sheet.line(starts[row], y + 13, end, y + 13, color, 4)
        for tile in range(anchor + context):
            fill = ANCHOR if tile < anchor else color
            sheet.box(at(row, tile), y + 20, widths[tile >= anchor], 22, fill=fill)
    slots: list[list[int]] = [[] for _ in contexts]
    for index, pieces in enumerate(cut(contexts, anchor, ranges)):
        x, end = at(pieces[0].row, pieces[0].first), at(pieces[-1].row, pieces[-1].stop)
        programs = ", ".join(str(index * DRAWN_HEADS + head) for head in range(DRAWN_HEADS))
        sheet.box(x + 1.5, y + 48, end - x - 3, 22, programs, fill=BAND, size=11)
        for piece in pieces:
            x, end = at(piece.row, piece.first), at(piece.row, piece.stop)
            inset = 1.5 if len(pieces) == 1 else 9
            sheet.box(x + inset, y + 76, end - x - 2 * inset, 22, str(piece.record), size=12)
            if piece != pieces[-1]:
                sheet.arrow((end - inset, y + 87), (end + gap + inset - 1, y + 87))
            whole = piece.stop - piece.first == anchor + contexts[piece.row]
            if not whole:
                slots[piece.row].append(piece.slot)
                sheet.box(x + 1.5, y + 104, end - x - 3, 22, str(piece.slot), fill=PART, size=12)
            sheet.arrow(((x + end) / 2, y + (99 if whole else 127)), ((x + end) / 2, y + 141))
    for row, context in enumerate(contexts):
        mine = slots[row]
        how = f"slots {mine[0]} {'and' if len(mine) == 2 else 'to'} {mine[-1]} merged" if mine else "at once"
        sheet.box(starts[row], y + 142, at(row, anchor + context) - starts[row], 24, how, fill=DONE, size=12)


def amount(count: float) -> str:
    """Bytes for people."""
    for unit, size in (("MB", 10**6), ("kB", 10**3)):
        if count >= size:
            return f"{count / size:.3g} {unit}"
    return f"{count:.0f} B"


def draw_memory() -> str:
    """What lies in which memory, and what moves when."""
    group, token = NUM_Q_HEADS // NUM_KV_HEADS, 2 * HEAD_DIM * BYTES  # K and V of one token and KV head
    anchor, programs = -(-NUM_ANCHOR // BLOCK_N), MULTIPROCESSORS * PROGRAMS_PER_SM
    ranges = programs // NUM_KV_HEADS
    pieces = [
        piece for found in cut([-(-LENGTH // BLOCK_N)] * BATCH, anchor, ranges, MIN_TILES) for piece in found
    ]
    of_anchor = {piece.stop - piece.first for piece in pieces if piece.first < anchor}
    of_context = {piece.stop - piece.first for piece in pieces if piece.first >= anchor}
    parts = len(pieces) * NUM_KV_HEADS
    rows, part = group * HEAD_DIM * BYTES, 4 * group * (HEAD_DIM + 1)
    queries, tile = amount(BATCH * NUM_KV_HEADS * rows), amount(BLOCK_N * token)
    sheet = Sheet(900, 664, "What lies in HBM, L2, shared memory and registers, and what moves when")
    for y, height, name, more in (
        (14, 74, "HBM", "80 GB"),
        (126, 74, "L2", "50 MB"),
        (238, 74, "shared", "memory"),
        (350, 88, "registers", f"{parts} programs"),
    ):
        sheet.box(10, y, 880, height, fill=BAND, stroke=BAND)
        sheet.text(20, y + 24, name, at="start", bold=True)
        sheet.text(20, y + 44, more, at="start", size=11, ink=GREY)
    for x, y, width, fill, lines in (
        (120, 24, 170, CONTEXT[0], f"K/V pages\n{amount(BATCH * LENGTH * NUM_KV_HEADS * token)}"),
        (306, 24, 120, ANCHOR, f"anchor K/V\n{amount(NUM_ANCHOR * NUM_KV_HEADS * token)}"),
        (442, 24, 88, PAPER, f"page table\n{amount(4 * BATCH * LENGTH / PAGE_SIZE)}"),
        (546, 24, 70, PAPER, f"q\n{queries}"),
        (806, 24, 76, DONE, f"out\n{queries}"),
        (120, 136, 170, CONTEXT[0], "pass through\nevict_first"),
        (306, 136, 120, ANCHOR, "anchor stays\nevict_last"),
        (632, 136, 66, PAPER, f"plan\n{amount(4 * (PLAN_ROW * BATCH + PLAN_RECORD * ranges))}"),
        (714, 136, 86, PART, f"{parts} parts\n{amount(parts * part)}"),
        (
            120,
            248,
            306,
            PAPER,
            f"{STAGES - 1} tiles in flight to each program,\neach K and V of {BLOCK_N} keys: {tile}",
        ),
    ):
        sheet.box(x, y, width, 54, lines, fill=fill, size=12)
    sheet.box(120, 360, 496, 68, "S = q K',  P = exp2(S - max),  O = O shrink + P V\n"
              f"q: 16 rows, {group} of them used;  max and sum;  O: 16 x {HEAD_DIM} float32, {amount(64 * HEAD_DIM)}",
              size=12)  # fmt: skip
    sheet.box(714, 360, 168, 68, "merge: parts of one\nsequence and KV head", fill=DONE, size=12)
    _draw_moves(sheet)
    for index, step in enumerate((
        f"cut once a step, for all layers; a program's {4 * PLAN_RECORD} bytes of it: tiles, slot, the pages of its first "
        f"{LOOKAHEAD} tiles",
        f"the queries of the program's KV head: {group} heads, {amount(rows)}",
        f"the anchor, in programs of its own: {_either(of_anchor)} tiles, {amount(max(of_anchor) * BLOCK_N * token)}; "
        "from HBM once, then out of L2 for every sequence",
        f"the pages of later tiles: a number each, {LOOKAHEAD} tiles ahead",
        f"each tile once, {tile}, cp.async; a program reads {_either(of_context)} tiles, at most "
        f"{amount(max(of_context) * BLOCK_N * token)}",
        f"where a program has a part of its sequence: O and lse, {amount(part)}",
        f"in the program that arrives last: the parts of a sequence and KV head in their order, {MERGE_WIDTH} at once",
        f"once: {amount(rows)} for each sequence and KV head (and lse, a, w in float32 if asked for)",
    )):  # fmt: skip
        sheet.mark(30, 462 + 24 * index, index + 1)
        sheet.text(48, 462 + 24 * index, step, at="start", size=12)
    sheet.text(890, 652, f"Batch {BATCH}, context {LENGTH}, {NUM_Q_HEADS}/{NUM_KV_HEADS} heads, head_dim {HEAD_DIM}, "
               f"bf16, A = {NUM_ANCHOR}, pages of {PAGE_SIZE}, concat, one H100: {programs} programs are launched, "
               f"{parts} have a record", at="end", size=11, ink=GREY)  # fmt: skip
    return sheet.svg()


def _either(counts: Iterable[int]) -> str:
    return " or ".join(map(str, sorted(counts)))


def _draw_moves(sheet: Sheet) -> None:
    """The arrows of `draw_memory`, each with the number of its line below, or 0."""
    for number, height, points in (
        (0, 0, ((205, 80), (205, 134))),
        (0, 0, ((366, 80), (366, 134))),
        (0, 0, ((273, 304), (273, 358))),
        (1, 275, ((665, 192), (665, 394), (618, 394))),
        (2, 219, ((581, 80), (581, 358))),
        (3, 219, ((366, 192), (366, 246))),
        (4, 219, ((486, 80), (486, 358))),
        (5, 219, ((205, 192), (205, 246))),
        (6, 275, ((545, 358), (545, 331), (735, 331), (735, 192))),
        (7, 275, ((775, 192), (775, 358))),
        (8, 219, ((844, 358), (844, 80))),
    ):
        sheet.arrow(*points)
        if number:
            sheet.mark(points[-1][0] if number == 6 else points[0][0], height, number)


def draw_step() -> str:
    """The data path of one query through context, anchor and operator."""
    sheet = Sheet(900, 368, "One decode step: context and anchor, the merge, the injection operator")
    for x, y, width, height, fill, lines in (
        (16, 80, 84, 52, PAPER, "q\nnew token"),
        (16, 232, 84, 52, PAPER, "q_anchor,\nelse q"),
        (136, 16, 184, 34, CONTEXT[0], "its own pages of K, V"),
        (136, 80, 184, 52, CONTEXT[0], "tiles of the context\ncausal, window, sinks"),
        (136, 232, 184, 52, ANCHOR, "tiles of the anchor\nno mask, no window"),
        (136, 314, 184, 34, ANCHOR, "pinned K, V of the anchor"),
        (356, 80, 90, 52, PART, "parts\nO_c, lse_c"),
        (356, 232, 90, 52, PART, "parts\nO_a, lse_a"),
        (482, 80, 90, 52, DONE, "merge\nO_c, lse_c"),
        (482, 232, 90, 52, DONE, "merge\nO_a, lse_a"),
        (437, 156, 180, 52, PAPER, "natural mass\na = sigmoid(lse_a - lse_c)"),
        (641, 146, 128, 72, PAPER, "floor: w = max(g, a)\nmixture: w = g\ng by query head"),
        (795, 146, 92, 72, DONE, "out\n(1 - w) O_c\n+ w O_a"),
    ):
        sheet.box(x, y, width, height, lines, fill=fill, size=12)
    for y in (106, 258):
        sheet.arrow((100, y), (134, y))
        sheet.arrow((320, y), (354, y))
        sheet.arrow((446, y), (480, y))
    for points in (
        ((228, 50), (228, 78)),
        ((228, 314), (228, 286)),
        ((527, 132), (527, 154)),
        ((527, 232), (527, 210)),
        ((617, 182), (639, 182)),
        ((769, 182), (793, 182)),
        ((572, 106), (841, 106), (841, 144)),
        ((572, 258), (841, 258), (841, 220)),
    ):
        sheet.arrow(*points)
    sheet.arrow((160, 232), (160, 134), dashed=True)
    for y, text in (
        (167, "concat without masses, q_anchor"),
        (182, "and scales: one softmax over"),
        (197, "both, one set of parts"),
    ):
        sheet.text(172, y, text, at="start", size=11, ink=GREY)
    for y, text in (
        (294, "a, w and the lse of both together are written if asked for."),
        (312, "Without context w = 1."),
        (330, "A part is what one program found of a sequence and KV head;"),
        (348, "with one softmax, a program that found all writes the output."),
    ):
        sheet.text(482, y + 6, text, at="start", size=11, ink=GREY)
    return sheet.svg()


ROOF = "pure read (roof)"
SHORT = {"flash-attention 3": "FlashAttention-3", "flashinfer 0.7.2": "FlashInfer", "vllm triton": "vLLM"}


def draw_benchmark(result: dict[str, Any]) -> str:
    """Concat in every cell: the share of the pure read's speed that ours and the best peer reach."""
    rows = [row for row in result["rows"] if row["metric"] == "time, concat" and len(row["peers"]) > 1]
    points = [(row, *_shares(row)) for row in rows]
    low = math.floor(10 * min(min(mine, rival) for _, mine, rival, _ in points)) / 10
    high = max(1.0, math.ceil(20 * max(max(mine, rival) for _, mine, rival, _ in points)) / 20)
    shapes = list(dict.fromkeys(" ".join(row["cell"].split()[:2]) for row in rows))
    left, right, step, top = 150, 680, 17, 74
    height = top + step * len(rows) + 30 * len(shapes) + 50
    sheet = Sheet(900, height, "Ours and the best peer in every cell, as a share of the pure read's speed")

    def x(share: float) -> float:
        return round(left + (right - left) * (share - low) / (high - low), 1)

    sheet.text(16, 22, "Speed as a share of a pure read of the same K/V (100 % is the roof); concat, A = 128, bf16, cold L2",
               at="start", bold=True, size=12)  # fmt: skip
    _dot(sheet, 26, 46, ours=True)
    sheet.text(38, 46, "Fieldprint", at="start", size=12)
    _dot(sheet, 126, 46, ours=False)
    sheet.text(138, 46, f"best of {_listed(sorted(_rivals(rows)))}", at="start", size=12)
    sheet.text(884, 46, "our speed", at="end", size=12)
    ticks = [tick / 100 for tick in range(round(100 * low), round(100 * high) + 1, 10)]
    for tick in ticks:
        sheet.line(
            x(tick), top, x(tick), height - 40, LINE if tick == 1 else "#dde2e7", 1.5 if tick == 1 else 1
        )
        sheet.text(x(tick), height - 28, f"{100 * tick:.0f} %", size=11)
    y = float(top)
    for shape in shapes:
        sheet.text(16, y + 15, f"{shape}", at="start", bold=True, size=12)
        y += 30
        for row, mine, rival, name in points:
            if not row["cell"].startswith(f"{shape} "):
                continue
            sheet.text(left - 10, y, _cell(row["cell"].removeprefix(shape)), at="end", size=11)
            sheet.line(x(mine), y, x(rival), y, LINE, 1.5)
            _dot(sheet, x(rival), y, ours=False)
            _dot(sheet, x(mine), y, ours=True)
            sheet.text(884, y, f"{mine / rival:.2f} x {name}", at="end", size=11)
            y += step
    sheet.text(16, height - 10, f"{result['device']}, torch {result['versions']['torch']}, triton "
               f"{result['versions']['triton']}, commit {result['commit'][:10]}", at="start", size=10, ink=GREY)  # fmt: skip
    return sheet.svg()


def _rivals(rows: Iterable[dict[str, Any]]) -> set[str]:
    return {SHORT.get(peer, peer) for row in rows for peer in row["peers"] if peer != ROOF}


def _listed(names: Sequence[str]) -> str:
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"


def _shares(row: dict[str, Any]) -> tuple[float, float, str]:
    """(ours, best peer's, the best peer's name)."""
    peers = {peer: time for peer, time in row["peers"].items() if peer != ROOF}
    best = min(peers, key=lambda peer: peers[peer])
    roof = row["peers"][ROOF]
    return roof / row["ours"], roof / peers[best], SHORT.get(best, best)


def _cell(name: str) -> str:
    """A cell's name without its shape, spelled out."""
    words = name.split()
    if len(words) == 2 and words[0][0] == "B" and words[1][0] == "L":
        return f"batch {words[0][1:]}, {words[1][1:]}"
    return name.strip()


def _dot(sheet: Sheet, x: float, y: float, *, ours: bool) -> None:
    """Ours is a full disc, a peer an open diamond."""
    if ours:
        sheet.parts.append(f'<circle cx="{x:g}" cy="{y:g}" r="4" fill="{OURS}"/>')
    else:
        sheet.parts.append(
            f'<path d="M{x - 5:g} {y:g} L{x:g} {y - 5:g} L{x + 5:g} {y:g} L{x:g} {y + 5:g} z" fill="{PAPER}" '
            f'stroke="{PEER}" stroke-width="1.6"/>'
        )


GROWTH = (  # metric, title, unit
    ("durable appends", "Durable appends, one batch of 256 after the other", "entries/s"),
    ("inclusion proof made, nothing cached", "Inclusion proof made, nothing cached", "ms"),
    ("entries read and checked", "Entries read and checked (audit)", "entries/s"),
    ("inclusion proof, longest of the sample", "Inclusion proof, longest; grey: log2 n", "hashes"),
)


def draw_growth(result: dict[str, Any]) -> str:
    """Four panels over the size of the log, each from zero up."""
    sheet = Sheet(900, 460, "Cost of the log as it grows from ten thousand to ten million entries")
    for number, (metric, title, unit) in enumerate(GROWTH):
        points = {
            int(row["cell"].split()[0]): float(row["ours"])
            for row in result["rows"]
            if row["metric"] == metric
        }
        grey = {size: math.log2(size) for size in (min(points), max(points))} if unit == "hashes" else {}
        _draw_panel(sheet, number, f"{title}, {unit}", points, grey, "entries in the log")
    return sheet.svg()


def _draw_panel(
    sheet: Sheet, number: int, title: str, points: dict[int, float], grey: dict[int, float], below: str
) -> None:
    """One of four panels over sizes, from zero up, with a grey line for comparison between two sizes."""
    left, top, width, height = 70 + number % 2 * 440, 46 + number // 2 * 220, 350, 130
    high = 1.15 * max([*points.values(), *grey.values()])
    first, last = math.log10(min(points)), math.log10(max(points))

    def x(size: int) -> float:
        return round(left + width * (math.log10(size) - first) / max(last - first, 1), 1)

    def y(value: float) -> float:
        return round(top + height * (1 - value / high), 1)

    sheet.text(left, top - 20, title, at="start", bold=True, size=12)
    sheet.line(left, y(0), left + width, y(0))
    if grey:
        sheet.line(x(min(grey)), y(grey[min(grey)]), x(max(grey)), y(grey[max(grey)]), GREY)
    sizes = sorted(points)
    for here, there in itertools.pairwise(sizes):
        sheet.line(x(here), y(points[here]), x(there), y(points[there]), OURS, 1.6)
    for size in sizes:
        _dot(sheet, x(size), y(points[size]), ours=True)
        shown = f"{points[size]:,.0f}" if points[size] >= 10 else f"{points[size]:.2f}"
        sheet.text(x(size), y(points[size]) - 14, shown, size=11)
        sheet.text(x(size), y(0) + 16, f"{size:,}", size=11)
    sheet.text(left + width, y(0) + 34, below, at="end", size=11)


REGISTERED = (  # metric, title, goal
    ("verify, p50", "Verify, median, ms; grey: the goal", 1.0),
    ("look-up by digest, p50", "Look-up by digest, median, ms; grey: the goal", 1.0),
    ("sync, one process", "Sync, one process, events a second", None),
    ("rebuild, 2 processes", "Rebuild, two processes, events a second; grey: the goal", 20_000.0),
)


def draw_registry(result: dict[str, Any]) -> str:
    """Four panels over the number of anchors in SQLite, each from zero up."""
    sheet = Sheet(
        900, 460, "Cost of the registry in SQLite as it grows from a thousand to a hundred thousand anchors"
    )
    for number, (metric, title, goal) in enumerate(REGISTERED):
        points = {
            int(row["cell"].split()[0]): float(row["ours"])
            for row in result["rows"]
            if row["metric"] == metric and row["cell"].endswith(" anchors, SQLite")
        }
        grey = {} if goal is None else dict.fromkeys((min(points), max(points)), goal)
        _draw_panel(sheet, number, title, points, grey, "registered anchors")
    return sheet.svg()


REMEMBERED = (  # metric, what the row's cell ends with, title
    ("search, p99", ", all allowed", "Search, all allowed, p99, ms; grey: the goal"),
    (
        "search, p99",
        ", one in a hundred allowed",
        "Search, one in a hundred allowed, p99, ms; grey: the goal",
    ),
    ("recall@10", ", all allowed", "Recall@10 against the exact search"),
    ("size of the database", " memories", "Size of the database, bytes a memory"),
)
GOAL = 50  # ms


def draw_memories(result: dict[str, Any]) -> str:
    """Four panels over the number of memories, each from zero up."""
    sheet = Sheet(900, 460, "Cost of finding a memory as the store grows from a thousand to a million")
    for number, (metric, ending, title) in enumerate(REMEMBERED):
        points = {
            int(row["cell"].split()[0]): float(row["ours"])
            for row in result["rows"]
            if row["metric"] == metric and row["cell"].endswith(ending)
        }
        grey = dict.fromkeys((min(points), max(points)), float(GOAL)) if metric == "search, p99" else {}
        _draw_panel(sheet, number, title, points, grey, "memories in the store")
    return sheet.svg()


KINDS = {  # of intervals in a timeline, and their colours
    "attention and weights": OURS,
    "hashing on the device": "#7a4fb5",
    "copy to the host": "#b7791f",
    "hashing on the host": PEER,
}
DESIGNS = {"ours": "Fieldprint", "v2.5": "v2.5, synchronous"}
CLOSER = 20  # the second panel has this part of the first one's time
PANELS = 450  # the height of both


def draw_timeline(result: dict[str, Any]) -> str:
    """Of each cell: two decode steps of both designs on one scale, and their beginning from nearer."""
    rows = [row for row in result["rows"] if "intervals" in row]
    sheet = Sheet(
        900, 46 + PANELS * len(rows) + 30, "When the device computes, and when it waits for the host"
    )
    for number, row in enumerate(rows):
        y = 46.0 + PANELS * number
        whole = max(row["ours"], row["peers"]["v2.5"])
        sheet.text(
            16,
            y - 24,
            f"{row['cell']}: two decode steps, and their first twentieth from nearer",
            at="start",
            bold=True,
        )
        for until in (whole, whole / CLOSER):
            y = _draw_spans(sheet, y, row, until)
    sheet.text(16, sheet.height - 26, "Kernels and copies that are less than 20 us apart are drawn as one; times under the profiler.",
               at="start", size=11, ink=GREY)  # fmt: skip
    sheet.text(16, sheet.height - 10, f"{result['device']}, torch {result['versions']['torch']}, commit "
               f"{result['commit'][:10]}", at="start", size=10, ink=GREY)  # fmt: skip
    return sheet.svg()


def _draw_spans(sheet: Sheet, y: float, row: dict[str, Any], until: float) -> float:
    """The first `until` microseconds of both designs, a line for each kind; the height behind them."""
    left, right, step = 170, 884, 17
    scale = (right - left) / until
    for design, name in DESIGNS.items():
        taken = row["ours"] if design == "ours" else row["peers"][design]
        spans = row["intervals"][design]
        length = min(taken, until)
        busy = sum(max(0.0, min(stop, length) - start) for start, stop in spans["attention and weights"])
        sheet.text(16, y + 4, name, at="start", bold=True, size=12)
        sheet.text(left, y + 4, f"{length / 1e3:.3g} ms, of which the model runs for {100 * busy / length:.0f} %",
                   at="start", size=11, ink=GREY)  # fmt: skip
        y += 4
        for kind, ink in KINDS.items():
            y += step
            sheet.text(16, y, kind, at="start", size=11)
            sheet.line(left, y, round(left + length * scale, 1), y, "#dde2e7")
            shown = [(start, min(stop, length)) for start, stop in spans[kind] if start < length]
            for x, end in _pixels(shown, scale):
                sheet.parts.append(
                    f'<rect x="{left + x:g}" y="{y - 6:g}" width="{end - x:g}" height="12" fill="{ink}"/>'
                )
        y += step + 6
    tick = _tick(until)
    for index in range(math.floor(until / tick) + 1):
        x = round(left + index * tick * scale, 1)
        sheet.line(x, y - 8, x, y - 4)
        sheet.text(x, y + 4, f"{index * tick / 1e3:g}", size=11)
    sheet.text(16, y + 4, "ms", at="start", size=11)
    return y + 31


def _pixels(spans: Sequence[Sequence[float]], scale: float) -> list[tuple[float, float]]:
    """Where bars begin and end, each at least half a pixel wide; what would touch is one bar."""
    bars: list[tuple[float, float]] = []
    for start, stop in spans:
        x = round(start * scale, 1)
        end = max(round(stop * scale, 1), x + 0.5)
        if bars and x <= bars[-1][1]:
            bars[-1] = (bars[-1][0], max(end, bars[-1][1]))
        else:
            bars.append((x, end))
    return bars


def _tick(length: float) -> float:
    """1, 2 or 5 times a power of ten, so that at most ten of them fit."""
    power = 10.0 ** math.floor(math.log10(length / 10))
    return next(factor * power for factor in (1, 2, 5, 10) if length / (factor * power) <= 10)


def draw_protocol() -> str:
    """The states of a token, of a job and of a request, and what moves them."""
    sheet = Sheet(900, 500, "States of the verification protocol: a token, a job, a request")
    for y, height, name in ((14, 132, "token"), (158, 186, "job"), (356, 132, "request")):
        sheet.box(10, y, 880, height, fill=BAND, stroke=BAND)
        sheet.text(20, y + 18, name, at="start", bold=True)
    for x, y, width, fill, lines in (
        (150, 48, 120, PART, "provisional"),
        (430, 48, 120, DONE, "committed"),
        (710, 48, 150, DONE, "released by\nthe effects gate"),
        (150, 106, 120, PAPER, "rolled back"),
        (30, 200, 110, PAPER, "submitted"),
        (220, 200, 110, PAPER, "hashed"),
        (410, 200, 110, PAPER, "appending"),
        (600, 200, 110, PAPER, "answered"),
        (780, 200, 90, DONE, "done"),
        (315, 290, 110, ANCHOR, "dead"),
        (540, 290, 110, ANCHOR, "hung"),
        (30, 398, 100, PAPER, "prefill"),
        (220, 398, 120, PART, "decoding"),
        (220, 448, 120, PAPER, "waits at the cap"),
        (480, 398, 120, PAPER, "ended"),
        (740, 398, 120, DONE, "finished"),
        (480, 448, 120, PAPER, "going back"),
    ):
        sheet.box(x, y, width, 34, lines, fill=fill, size=12)
    for *points, label, x, y in (
        ((270, 65), (428, 65), "a clean pass, followed log", 349, 55),
        ((550, 65), (708, 65), "Committed covers it", 629, 55),
        ((210, 82), (210, 104), "damage, log, worker", 280, 94),
        ((140, 217), (218, 217), "device", 179, 207),
        ((330, 217), (408, 217), "worker", 369, 207),
        ((520, 217), (598, 217), "log", 559, 207),
        ((710, 217), (778, 217), "follower", 744, 207),
        ((275, 234), (275, 307), (313, 307), "killed", 250, 270),
        ((465, 234), (465, 307), (538, 307), "no answer", 432, 270),
        ((595, 290), (655, 236), "late", 606, 258),
        ((650, 307), (825, 307), (825, 236), "timeout: a new worker", 738, 297),
        ((370, 324), (370, 334), (850, 334), (850, 236), "a new worker", 735, 326),
        ((130, 415), (218, 415), "", 0, 0),
        ((340, 415), (478, 415), "stop, length", 409, 405),
        ((600, 415), (738, 415), "last page committed", 669, 405),
        ((265, 432), (265, 446), "", 0, 0),
        ((295, 448), (295, 434), "", 0, 0),
        ((540, 432), (540, 446), "", 0, 0),
        ((480, 465), (400, 465), (400, 425), (342, 425), "repair first", 440, 455),
    ):
        sheet.arrow(*points)
        if label:
            sheet.text(x, y, label, size=11, ink=GREY)
    for y, text in (
        (378, "waits behind the prefix's own check"),
        (438, "from any state but finished"),
    ):
        sheet.text(150 if y < 400 else 615, y + (0 if y < 400 else 27), text, at="start", size=11, ink=GREY)
    sheet.text(290, 124, "the same tokens come again: provisional", at="start", size=11, ink=GREY)
    return sheet.svg()


def drawings() -> dict[str, str]:
    """The text of every drawing by its file's name; the timeline's only where one was measured."""
    measured = {"timeline.svg": draw_timeline(json.loads(TIMELINE.read_text()))} if TIMELINE.exists() else {}
    return measured | {
        "units.svg": draw_units(),
        "memory.svg": draw_memory(),
        "step.svg": draw_step(),
        "protocol.svg": draw_protocol(),
        "benchmark.svg": draw_benchmark(json.loads(RESULTS.read_text())),
        "growth.svg": draw_growth(json.loads(LOG_RESULTS.read_text())),
        "registry.svg": draw_registry(json.loads(REGISTRY_RESULTS.read_text())),
        "memories.svg": draw_memories(json.loads(MEMORY_RESULTS.read_text())),
    }


def main() -> None:
    """Write the drawings."""
    for name, text in drawings().items():
        (FOLDER / name).write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
