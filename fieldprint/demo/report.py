"""The demo's report: one HTML file with drawings, no scripts and no outside links."""

from html import escape
from pathlib import Path
from typing import Any

STYLE = """
body{font:16px/1.5 system-ui,sans-serif;max-width:60rem;margin:2rem auto;padding:0 1rem;color:#1d2733;background:#fff}
h1{font-size:1.6rem}h2{font-size:1.15rem;margin-top:2rem}table{border-collapse:collapse;width:100%}
td,th{padding:.3rem .6rem;border-bottom:1px solid #8884;text-align:left;vertical-align:top}svg{max-width:100%;height:auto}
.ok{color:#0a7a3d}.bad{color:#b00020;font-weight:bold}.note{opacity:.75;font-size:.9rem}
@media(prefers-color-scheme:dark){body{color:#e6e9ee;background:#14181d}.ok{color:#5fd08f}.bad{color:#ff7b8a}}
"""


def write_report(path: Path, summary: dict[str, Any]) -> None:
    """Write the report of a demo's summary."""
    generation = summary["generation"]
    parts = [
        "<!doctype html><html lang=en><meta charset=utf-8><title>Fieldprint: demo report</title>",
        "<meta name=viewport content='width=device-width,initial-scale=1'>",
        f"<style>{STYLE}</style><h1>Fieldprint: what the demo did</h1>",
        "<h2>Verdicts</h2>",
        _table(
            ["verdict", ""],
            [[_verdict(ok), name.replace("_", " ")] for name, ok in summary["checks"].items()],
        ),
        "<h2>What the model still knows when the context has run over the window</h2>",
        _bars([(row["condition"], row["right"], row["of"]) for row in summary["recall"]]),
        _table(
            ["condition", "answers"],
            [[escape(row["condition"]), escape(" | ".join(row["answers"]))] for row in summary["recall"]],
        ),
        "<h2>Provisional and committed positions, with faults</h2>",
        _timeline(generation),
        _table(
            ["second", "what"],
            [[f"{seconds:.2f}", what] for seconds, what in sorted(_faults(generation))],
        ),
        "<h2>Anchor mass by layer and head</h2>",
        "<p class=note>Mean share of attention that falls on the anchor, g = 0, over the decode steps of the "
        "undisturbed run. Dark is much.</p>",
        _heatmap(generation["anchor_mass"]),
        "<h2>Answers</h2>",
        *(f"<p>{escape(text)}</p>" for text in generation["answers"]),
    ]
    path.write_text("\n".join(parts) + "\n", encoding="utf-8")


def _verdict(holds: bool) -> str:
    return "<span class=ok>holds</span>" if holds else "<span class=bad>FAILED</span>"


def _table(head: list[str], rows: list[list[str]]) -> str:
    body = "".join("<tr>" + "".join(f"<td>{cell}</td>" for cell in row) + "</tr>" for row in rows)
    return "<table><tr>" + "".join(f"<th>{cell}</th>" for cell in head) + f"</tr>{body}</table>"


def _bars(rows: list[tuple[str, int, int]]) -> str:
    lines = [f"<svg viewBox='0 0 720 {len(rows) * 30}' role=img aria-label='right answers by condition'>"]
    for i, (name, right, of) in enumerate(rows):
        y = i * 30
        lines.append(f"<text x=0 y={y + 19} font-size=13 fill=currentColor>{escape(name)}</text>")
        lines.append(f"<rect x=330 y={y + 6} width={320 * right / of:.1f} height=18 fill=#2b7de9 />")
        lines.append(f"<text x=660 y={y + 19} font-size=13 fill=currentColor>{right} of {of}</text>")
    return "".join([*lines, "</svg>"])


def _faults(generation: dict[str, Any]) -> list[tuple[float, str]]:
    """What was injected and what was found, with its second."""
    return [(f["seconds"], "injected: " + escape(f["what"])) for f in generation["faults"]] + [
        (r["seconds"], f"found: {escape(r['reason'])}; request {r['request']} back to {r['to']}")
        for r in generation["rollbacks"]
    ]


def _timeline(generation: dict[str, Any]) -> str:
    points = generation["timeline"]
    end = max(points[-1]["seconds"], 0.01)
    lines = []
    for request in range(len(points[0]["provisional"])):
        top = max(p["provisional"][request] for p in points)
        low = min(p["provisional"][request] for p in points) - 40

        def place(seconds: float, value: float, low: float = low, top: float = top) -> str:
            return f"{40 + 660 * seconds / end:.1f},{190 - 170 * (max(value, low) - low) / max(top - low, 1):.1f}"

        lines.append(f"<svg viewBox='0 0 720 210' role=img aria-label='timeline of request {request}'>")
        for key, colour in (("provisional", "#e08a1e"), ("committed", "#0a7a3d")):
            path = " ".join(place(p["seconds"], p[key][request]) for p in points)
            lines.append(f"<polyline points='{path}' fill=none stroke={colour} stroke-width=2 />")
        for fault in generation["faults"]:
            x = 40 + 660 * fault["seconds"] / end
            lines.append(f"<line x1={x:.1f} x2={x:.1f} y1=10 y2=190 stroke=#b00020 stroke-dasharray='4 3' />")
        lines.append(
            f"<text x=40 y=206 font-size=12 fill=currentColor>request {request}: provisional (orange), committed "
            f"(green), faults (dashed); {end:.1f} s</text></svg>"
        )
    return "".join(lines)


def _heatmap(masses: list[list[float]]) -> str:
    layers, heads = len(masses), len(masses[0])
    cell, left = 20, 60
    lines = [
        f"<svg viewBox='0 0 {left + layers * cell + 10} {heads * cell + 40}' role=img aria-label='anchor mass'>"
    ]
    for layer, row in enumerate(masses):
        for head, mass in enumerate(row):
            lines.append(
                f"<rect x={left + layer * cell} y={head * cell} width={cell - 1} height={cell - 1} fill=#2b7de9 "
                f"fill-opacity={max(mass, 0.02):.3f}><title>layer {layer}, head {head}: {mass:.3f}</title></rect>"
            )
    lines += [
        f"<text x=0 y={h * cell + 14} font-size=12 fill=currentColor>head {h}</text>" for h in range(heads)
    ]
    lines += [
        f"<text x={left + i * cell} y={heads * cell + 16} font-size=12 fill=currentColor>{i}</text>"
        for i in range(0, layers, 5)
    ]
    lines.append(f"<text x={left} y={heads * cell + 34} font-size=12 fill=currentColor>layer</text></svg>")
    return "".join(lines)
