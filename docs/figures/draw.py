"""The drawings of docs/kernel.md and docs/ledger.md; `python docs/figures/draw.py` writes them beside itself.

Needs the standard library alone. Same input, same bytes: `tests/test_figures.py` compares the files with `drawings()`.
"""

import itertools
import json
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from html import escape
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).parent
RESULTS = FOLDER.parent.parent / "benchmarks" / "results" / "attention_gpu.json"
LOG_RESULTS = RESULTS.with_name("log.json")
INK, GREY, LINE, PAPER, BAND = "#1f2933", "#5c6773", "#7b8794", "#ffffff", "#f1f4f7"
ANCHOR, PART, DONE, OURS, PEER = "#ffc46b", "#d9c8f0", "#bfe3c6", "#0b5cad", "#c2410c"
CONTEXT = ("#b9d8f2", "#8fbce6", "#d6e8c4")  # of sequence 0, 1, 2

# The cell that the drawing of the memories has numbers for; `config_for` chose the second line (tested).
BATCH, LENGTH, NUM_Q_HEADS, NUM_KV_HEADS, HEAD_DIM, NUM_ANCHOR, PAGE_SIZE, BYTES = (
    8,
    4096,
    32,
    8,
    128,
    128,
    16,
    2,
)
BLOCK_N, STAGES, PROGRAMS_PER_SM = 16, 4, 8
MULTIPROCESSORS = 132


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
            f'<rect x="{x:g}" y="{y:g}" width="{width:g}" height="{height:g}" rx="3" fill="{fill}" stroke="{stroke}"{dash}/>'
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
class Segment:
    """What a program has of one sequence and KV head; `slot` is None where it has all of it."""

    program: int
    head: int
    sequence: int
    first: int  # units, on the line of all
    stop: int
    slot: int | None


def cut(units: Sequence[int], heads: int, programs: int) -> tuple[int, list[Segment]]:
    """(units a program, segments): how the kernel cuts the line of units, `units` by sequence."""
    per = math.ceil(sum(units) * heads / programs)
    segments, begin = [], 0
    for head in range(heads):
        for sequence, count in enumerate(units):
            for program in range(begin // per, (begin + count - 1) // per + 1):
                first, stop = max(begin, program * per), min(begin + count, (program + 1) * per)
                whole = stop - first == count
                slot = None if whole else 2 * program + int(first > program * per)
                segments.append(Segment(program, head, sequence, first, stop, slot))
            begin += count
    return per, segments


def draw_units() -> str:
    """The line of units, cut into programs, with slots and merge."""
    tiles, anchor, heads, programs, size, left = (6, 1, 3), 2, 2, 5, 26, 34
    units = [count + anchor for count in tiles]
    per, segments = cut(units, heads, programs)
    total = sum(units) * heads
    sheet = Sheet(900, 392, "The line of units of a ragged batch, cut into programs, with slots and merge")
    begin = 0
    for head in range(heads):
        sheet.text(left + (head + 0.5) * sum(units) * size, 20, f"KV head {head}", bold=True)
        for sequence, count in enumerate(units):
            x = left + begin * size
            sheet.text(x + count * size / 2, 44, f"seq {sequence}", size=12)
            sheet.line(x + 3, 56, x + count * size - 3, 56, CONTEXT[sequence], 4)
            for unit in range(count):
                fill = ANCHOR if unit < anchor else CONTEXT[sequence]
                sheet.box(x + unit * size, 64, size, size, "A" if unit < anchor else "c", fill=fill)
            begin += count
    used = {segment.slot for segment in segments}
    ends = [(left + i * per * size, left + min(total, (i + 1) * per) * size) for i in range(programs)]
    for program, (x, end) in enumerate(ends):
        sheet.box(x + 2, 98, end - x - 4, 24, f"program {program}", fill=BAND, size=12)
        for slot, at in ((2 * program, x + 25), (2 * program + 1, end - 25)):
            text, fill = ("O, lse", PART) if slot in used else ("unused", PAPER)
            sheet.box(
                at - 23, 182, 46, 40, f"slot {slot}\n{text}", fill=fill, dashed=slot not in used, size=11
            )
    _draw_outputs(sheet, segments, ends, [left + (s.first + s.stop) / 2 * size for s in segments])
    at = left
    for letter, fill, meaning, width in (
        ("A", ANCHOR, "tile of the anchor", 158),
        ("c", CONTEXT[0], "tile of the sequence's own pages", 246),
        ("", PART, "partial result", 124),
        ("", DONE, "output: merged in the order of the line", 0),
    ):
        sheet.box(at, 356, 18, 18, letter, fill=fill, size=12)
        sheet.text(at + 25, 365, meaning, at="start", size=12)
        at += width
    return sheet.svg()


def _draw_outputs(
    sheet: Sheet, segments: Sequence[Segment], ends: Sequence[tuple[float, float]], middles: Sequence[float]
) -> None:
    """Each segment's way into its slot or straight to its output, and the merges; `middles` is where segments are."""
    found: dict[tuple[int, int], list[tuple[float, int | None]]] = {}
    for segment, middle in zip(segments, middles, strict=True):
        x, end = ends[segment.program]
        place = (x + end) / 2 if segment.slot is None else end - 25 if segment.slot % 2 else x + 25
        sheet.arrow((middle, 124), (place, 290 if segment.slot is None else 180))
        found.setdefault((segment.head, segment.sequence), []).append((place, segment.slot))
    for (head, sequence), parts in found.items():
        out = sum(place for place, _ in parts) / len(parts)
        slots = [str(slot) for _, slot in parts if slot is not None]
        for place, slot in parts:
            if slot is not None:
                sheet.arrow((place, 224), (out, 290))
        how = "slots " + ", ".join(slots) if slots else "at once"
        sheet.box(out - 43, 292, 86, 40, f"head {head}, seq {sequence}\n{how}", fill=DONE, size=11)


def amount(count: float) -> str:
    """Bytes for people."""
    for unit, size in (("MB", 10**6), ("kB", 10**3)):
        if count >= size:
            return f"{count / size:.3g} {unit}"
    return f"{count:.0f} B"


def draw_memory() -> str:
    """What lies in which memory, and what moves when."""
    group, token = NUM_Q_HEADS // NUM_KV_HEADS, 2 * HEAD_DIM * BYTES  # K and V of one token and KV head
    tiles = -(-NUM_ANCHOR // BLOCK_N) + -(-LENGTH // BLOCK_N)
    programs = MULTIPROCESSORS * PROGRAMS_PER_SM
    per, segments = cut([tiles] * BATCH, NUM_KV_HEADS, programs)
    parts = sum(segment.slot is not None for segment in segments)
    rows, part = group * HEAD_DIM * BYTES, 4 * group * (HEAD_DIM + 1)
    queries, tile = amount(BATCH * NUM_KV_HEADS * rows), amount(BLOCK_N * token)
    sheet = Sheet(900, 664, "What lies in HBM, L2, shared memory and registers, and what moves when")
    for y, height, name, more in (
        (14, 74, "HBM", "80 GB"),
        (126, 74, "L2", "50 MB"),
        (238, 74, "shared", "memory"),
        (350, 88, "registers", f"{programs} programs"),
    ):
        sheet.box(10, y, 880, height, fill=BAND, stroke=BAND)
        sheet.text(20, y + 24, name, at="start", bold=True)
        sheet.text(20, y + 44, more, at="start", size=11, ink=GREY)
    for x, y, width, fill, lines in (
        (120, 24, 170, CONTEXT[0], f"K/V pages\n{amount(BATCH * LENGTH * NUM_KV_HEADS * token)}"),
        (306, 24, 88, PAPER, f"page table\n{amount(4 * BATCH * LENGTH / PAGE_SIZE)}"),
        (410, 24, 120, ANCHOR, f"anchor K/V\n{amount(NUM_ANCHOR * NUM_KV_HEADS * token)}"),
        (546, 24, 70, PAPER, f"q\n{queries}"),
        (806, 24, 76, DONE, f"out\n{queries}"),
        (120, 136, 170, CONTEXT[0], "pass through\nevict_first"),
        (410, 136, 120, ANCHOR, "anchor stays\nevict_last"),
        (632, 136, 66, PAPER, f"plan\n{amount(4 * (2 + 2 * BATCH))}"),
        (714, 136, 86, PART, f"{parts} parts\n{amount(parts * part)}"),
        (120, 248, 170, CONTEXT[0], f"{STAGES} stages, each K and V\nof {BLOCK_N} keys: {tile}"),
    ):
        sheet.box(x, y, width, 54, lines, fill=fill, size=12)
    sheet.box(120, 360, 496, 68, "S = q K',  P = exp2(S - max),  O = O shrink + P V\n"
              f"q: 16 rows, {group} of them used;  max and sum;  O: 16 x {HEAD_DIM} float32, {amount(64 * HEAD_DIM)}",
              size=12)  # fmt: skip
    sheet.box(714, 360, 168, 68, "merge: parts of one\nsequence and KV head", fill=DONE, size=12)
    _draw_moves(sheet)
    for index, step in enumerate((
        f"once a step, for all layers: where each sequence's units end, {per} units a program",
        f"where a program comes to a sequence and KV head: the queries of its {group} heads, {amount(rows)}",
        f"its share of the anchor, at most {amount(NUM_ANCHOR * token)}: from HBM once, from then on out of L2",
        "a page's number, a stage before its tile",
        f"each tile once, {tile}, cp.async; a program reads {per} tiles, {amount(per * BLOCK_N * token)}",
        f"where a program leaves a sequence that it shares with others: O and lse, {amount(part)}",
        "in the program that arrives last: the parts of a sequence and KV head, in the order of the line",
        f"once: {amount(rows)} for each sequence and KV head (and lse, a, w in float32 if asked for)",
    )):  # fmt: skip
        sheet.mark(30, 462 + 24 * index, index + 1)
        sheet.text(48, 462 + 24 * index, step, at="start", size=12)
    sheet.text(890, 652, f"Batch {BATCH}, context {LENGTH}, {NUM_Q_HEADS}/{NUM_KV_HEADS} heads, head_dim {HEAD_DIM}, "
               f"bf16, A = {NUM_ANCHOR}, pages of {PAGE_SIZE}, concat, one H100", at="end", size=11, ink=GREY)  # fmt: skip
    return sheet.svg()


def _draw_moves(sheet: Sheet) -> None:
    """The arrows of `draw_memory`, each with the number of its line below, or 0."""
    for number, height, points in (
        (0, 0, ((205, 80), (205, 134))),
        (0, 0, ((205, 304), (205, 358))),
        (0, 0, ((470, 80), (470, 134))),
        (1, 275, ((665, 192), (665, 394), (618, 394))),
        (2, 219, ((581, 80), (581, 358))),
        (3, 275, ((470, 192), (470, 358))),
        (4, 219, ((350, 80), (350, 358))),
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
        (167, "concat (no g): the same"),
        (182, "running softmax goes on from"),
        (197, "the anchor; one set of parts"),
    ):
        sheet.text(172, y, text, at="start", size=11, ink=GREY)
    for y, text in (
        (294, "a, w and the lse of both together are written if asked for."),
        (312, "Without context w = 1."),
        (330, "A part is what one program found of a sequence and KV head;"),
        (348, "where it found all, there is nothing to merge."),
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
        left, top, width, height = 70 + number % 2 * 440, 46 + number // 2 * 220, 350, 130
        high = 1.15 * max([*points.values(), *((math.log2(max(points)),) if unit == "hashes" else ())])
        first, last = math.log10(min(points)), math.log10(max(points))

        def x(
            size: int, left: int = left, width: int = width, first: float = first, last: float = last
        ) -> float:
            return round(left + width * (math.log10(size) - first) / max(last - first, 1), 1)

        def y(value: float, top: int = top, height: int = height, high: float = high) -> float:
            return round(top + height * (1 - value / high), 1)

        sheet.text(left, top - 20, f"{title}, {unit}", at="start", bold=True, size=12)
        sheet.line(left, y(0), left + width, y(0))
        if unit == "hashes":
            sheet.line(
                x(min(points)), y(math.log2(min(points))), x(max(points)), y(math.log2(max(points))), GREY
            )
        sizes = sorted(points)
        for here, there in itertools.pairwise(sizes):
            sheet.line(x(here), y(points[here]), x(there), y(points[there]), OURS, 1.6)
        for size in sizes:
            _dot(sheet, x(size), y(points[size]), ours=True)
            sheet.text(
                x(size),
                y(points[size]) - 14,
                f"{points[size]:,.0f}" if points[size] >= 10 else f"{points[size]:.2f}",
                size=11,
            )
            sheet.text(x(size), y(0) + 16, f"{size:,}", size=11)
        sheet.text(left + width, y(0) + 34, "entries in the log", at="end", size=11)
    return sheet.svg()


def drawings() -> dict[str, str]:
    """The text of every drawing by its file's name."""
    return {
        "units.svg": draw_units(),
        "memory.svg": draw_memory(),
        "step.svg": draw_step(),
        "benchmark.svg": draw_benchmark(json.loads(RESULTS.read_text())),
        "growth.svg": draw_growth(json.loads(LOG_RESULTS.read_text())),
    }


def main() -> None:
    """Write the drawings."""
    for name, text in drawings().items():
        (FOLDER / name).write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
