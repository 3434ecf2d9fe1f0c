"""The goals that the decode kernel is held to, and what the rows of a run reach."""

import math
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

MB = 10**6
Row = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Figure:
    """One number of a goal: `value` (None: not measured) must be at least `limit`, or at most if `ceiling`."""

    text: str
    value: float | None
    limit: float
    ceiling: bool = False

    @property
    def met(self) -> bool | None:
        """Whether it is reached; None if it was not measured."""
        if self.value is None:
            return None
        return self.value <= self.limit if self.ceiling else self.value >= self.limit

    def __str__(self) -> str:
        if self.value is None:
            return f"{self.text}: not measured"
        return f"{self.text} {self.value:.3f} (goal {'<=' if self.ceiling else '>='} {self.limit:g})"


@dataclass(frozen=True, slots=True)
class Goal:
    """A line of the table of goals."""

    name: str
    figures: tuple[Figure, ...]

    @property
    def met(self) -> bool | None:
        """Whether all of it is reached; None if nothing speaks against it and something was not measured."""
        found = {figure.met for figure in self.figures}
        return False if False in found else None if None in found else True

    def __str__(self) -> str:
        verdict = {True: "yes", False: "NO", None: "?"}[self.met]
        return f"{verdict:<4}{self.name}: {'; '.join(map(str, self.figures))}"


def kv_bytes(cell: str) -> int:
    """Bytes of bf16 K/V of a uniform cell, by its name; 0 for any other."""
    found = re.match(r"\d+/(\d+) d(\d+) B(\d+) L(\d+)k\b", cell)
    return 4 * 1024 * math.prod(map(int, found.groups())) if found else 0


def goals(rows: Iterable[Row]) -> list[Goal]:
    """What the rows of one run reach of each goal, in the order of the table."""
    table: dict[str, list[Row]] = {}
    for row in rows:
        table.setdefault(row["metric"].removeprefix("time, "), []).append(row)
    concat = table.get("concat", [])
    large = [row for row in concat if kv_bytes(row["cell"]) >= 256 * MB]
    middle = [row for row in concat if 32 * MB <= kv_bytes(row["cell"]) < 256 * MB]
    first = [row for row in concat if row["cell"].endswith(" B1 L4k")]
    ragged = [row for row in concat if not kv_bytes(row["cell"])]
    injected = table.get("floor 0.1 with mass", []) + table.get("mixture 0.1 with mass", [])
    small = [row for row in injected if 0 < kv_bytes(row["cell"]) <= 135 * MB]
    anchors = [row for row in table.get("anchor", []) if row["cell"].endswith(" A128")]
    invariant = table.get("batch invariant", [])
    single = [row for row in invariant if re.search(r" B1 L(32|128)k$", row["cell"])]
    eight = [row for row in table.get("fp8 K/V", []) if kv_bytes(row["cell"]) >= 256 * MB]
    return [
        Goal("K/V of 256 MB and more", (_beside_best(large, 0.99), _worst("share of the roof", large, _of_roof, 0.97))),
        Goal("K/V of 32 to 256 MB", (_beside_best(middle, 1.12),)),
        Goal("batch 1, 4k", (_beside_best(first, 1.5),)),
        Goal("ragged batches", (_beside_best(ragged, 1.2),)),
        Goal("the whole matrix", (Figure("geometric mean", _mean(concat, _ratio), 1.1), _beside_best(concat, 0.97))),
        Goal("floor and mixture, with mass", (
            _worst("to 134 MB beside two calls and a lerp, worst", small, _ratio, 1.15),
            _worst("over concat, worst", injected, _over("ours, concat"), 1.02, ceiling=True),
        )),
        Goal("anchor of 128 tokens", (
            _worst("time added over max(1.5 us, 1.5 %), worst", anchors, _anchor_share, 1.0, ceiling=True),
        )),
        Goal("batch invariant", (
            _worst("beside one split at batch 1 from 32k on, worst", single, _ratio, 4.0),
            Figure("over our default, mean", _mean(invariant, _over("ours, default")), 1.08, ceiling=True),
        )),
        Goal("fp8 K/V, 256 MB and more", (_worst("beside our bf16, worst", eight, _ratio, 1.7),)),
    ]  # fmt: skip


def _values(rows: Sequence[Row], of: Callable[[Row], float | None]) -> list[float]:
    return [value for row in rows if (value := of(row)) is not None]


def _worst(
    text: str, rows: Sequence[Row], of: Callable[[Row], float | None], limit: float, *, ceiling: bool = False
) -> Figure:
    values = _values(rows, of)
    return Figure(text, (max if ceiling else min)(values) if values else None, limit, ceiling)


def _mean(rows: Sequence[Row], of: Callable[[Row], float | None]) -> float | None:
    values = _values(rows, of)
    return math.exp(sum(map(math.log, values)) / len(values)) if values else None


def _beside_best(rows: Sequence[Row], limit: float) -> Figure:
    return _worst("beside the best peer, worst", rows, _ratio, limit)


def _ratio(row: Row) -> float | None:
    value: float | None = row["ratio"]
    return value


def _over(peer: str) -> Callable[[Row], float | None]:
    """Our time as a multiple of that peer's, where it was measured."""
    return lambda row: row["ours"] / row["peers"][peer] if peer in row["peers"] else None


def _of_roof(row: Row) -> float | None:
    return float(row["peers"]["pure read (roof)"] / row["ours"])


def _anchor_share(row: Row) -> float | None:
    bare = float(row["peers"]["ours, no anchor"])
    return float(row["ours"] - bare) / max(1.5, 0.015 * bare)
