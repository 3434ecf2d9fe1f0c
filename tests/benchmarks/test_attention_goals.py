"""What the benchmark of the decode kernel says about its goals."""

from typing import Any

import pytest

from benchmarks.attention_goals import Row, goals, kv_bytes

FLOOR, MIXTURE = "floor 0.1 with mass", "mixture 0.1 with mass"
GOOD: dict[tuple[str, str], dict[str, Any]] = {
    ("32/8 d128 B1 L4k", "concat"): {"ours": 14, "peers": {"peer": 21.5}, "ratio": 1.53},
    ("32/8 d128 B8 L4k", "concat"): {"ours": 59, "peers": {"peer": 67}, "ratio": 1.13},
    ("32/8 d128 B64 L4k", "concat"): {"ours": 370, "peers": {"peer": 374, "pure read (roof)": 360}, "ratio": 1.01},
    ("32/8 d128 lognormal B32", "concat"): {"ours": 350, "peers": {"peer": 425}, "ratio": 1.21},
    ("32/8 d128 B8 L4k", FLOOR): {"ours": 60, "peers": {"two": 72, "ours, concat": 59}, "ratio": 1.2},
    ("32/8 d128 B8 L4k", MIXTURE): {"ours": 60, "peers": {"two": 72, "ours, concat": 59}, "ratio": 1.2},
    ("32/8 d128 B64 L4k", FLOOR): {"ours": 372, "peers": {"two": 390, "ours, concat": 370}, "ratio": 1.05},
    ("32/8 d128 B8 L4k A128", "anchor"): {"ours": 60, "peers": {"ours, no anchor": 59}, "ratio": 0.98},
    ("32/8 d128 B1 L32k", "batch invariant"): {"ours": 67, "peers": {"ours, default": 68}, "ratio": 4.3},
    ("32/8 d128 B8 L4k", "batch invariant"): {"ours": 62, "peers": {"ours, default": 59}, "ratio": 1.1},
    ("32/8 d128 B8 L32k", "fp8 K/V"): {"ours": 200, "peers": {"ours, bf16": 370}, "ratio": 1.85},
    ("32/8 d128 B8 L4k", "fp8 K/V"): {"ours": 45, "peers": {"ours, bf16": 59}, "ratio": 1.3},
}  # fmt: skip


def rows(spoilt: dict[tuple[str, str], dict[str, Any]] | None = None) -> list[Row]:
    found = {key: row | (spoilt or {}).get(key, {}) for key, row in GOOD.items()}
    return [
        {"cell": cell, "metric": f"time, {metric}", "unit": "us"} | row
        for (cell, metric), row in found.items()
    ]


def test_size_of_a_cell() -> None:
    assert kv_bytes("32/8 d128 B8 L4k") == 2 * 8 * 4096 * 8 * 128 * 2
    assert kv_bytes("9/3 d64 B1 L128k A8") == 2 * 131072 * 3 * 64 * 2
    assert kv_bytes("32/8 d128 one 128k, 31 of 1k") == 0


def test_nothing_measured() -> None:
    assert len(goals([])) == 9
    assert {goal.met for goal in goals([])} == {None}
    assert str(goals([])[1]) == "?   K/V of 32 to 256 MB: beside the best peer, worst: not measured"


def test_all_reached() -> None:
    found = goals(rows())
    assert all(goal.met for goal in found), [str(goal) for goal in found]
    assert str(found[1]) == "yes K/V of 32 to 256 MB: beside the best peer, worst 1.130 (goal >= 1.12)"


@pytest.mark.parametrize(
    ("key", "change", "missed"),
    [
        (("32/8 d128 B64 L4k", "concat"), {"ratio": 0.98}, {"K/V of 256 MB and more"}),
        (("32/8 d128 B64 L4k", "concat"), {"ours": 372}, {"K/V of 256 MB and more"}),
        (("32/8 d128 B8 L4k", "concat"), {"ratio": 1.11}, {"K/V of 32 to 256 MB"}),
        (("32/8 d128 B1 L4k", "concat"), {"ratio": 1.49}, {"batch 1, 4k"}),
        (("32/8 d128 lognormal B32", "concat"), {"ratio": 1.1}, {"ragged batches"}),
        (("32/8 d128 B64 L4k", "concat"), {"ratio": 0.96}, {"K/V of 256 MB and more", "the whole matrix"}),
        (("32/8 d128 B8 L4k", MIXTURE), {"ratio": 1.1}, {"floor and mixture, with mass"}),
        (("32/8 d128 B64 L4k", FLOOR), {"ours": 378}, {"floor and mixture, with mass"}),
        (("32/8 d128 B8 L4k A128", "anchor"), {"ours": 60.6}, {"anchor of 128 tokens"}),
        (("32/8 d128 B1 L32k", "batch invariant"), {"ratio": 3.9}, {"batch invariant"}),
        (("32/8 d128 B8 L4k", "batch invariant"), {"ours": 80}, {"batch invariant"}),
        (("32/8 d128 B8 L32k", "fp8 K/V"), {"ratio": 1.69}, {"fp8 K/V, 256 MB and more"}),
    ],
)
def test_one_missed(key: tuple[str, str], change: dict[str, Any], missed: set[str]) -> None:
    assert {goal.name for goal in goals(rows({key: change})) if not goal.met} == missed


def test_without_peers_only_what_was_measured_is_judged() -> None:
    alone = {"ratio": None, "peers": {"pure read (roof)": 360}}
    (large, *others) = goals(rows({("32/8 d128 B64 L4k", "concat"): alone}))
    assert large.met is None
    assert str(large).endswith("not measured; share of the roof 0.973 (goal >= 0.97)")
    assert all(goal.met for goal in others)
