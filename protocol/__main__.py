"""Check the verification protocol with Spin: the model holds, and each changed model is refuted.

    python -m protocol [--only NAME] [--story] [--json FILE] [--cache FOLDER]

Exit code 0: every invariant holds in every state of every world, and every mutant violates the invariant that it is
aimed at. 1: not so, or Spin cannot be had. Debian's package is unpacked into the cache where spin is not installed.
"""

import argparse
import json
import sys
import time
from pathlib import Path

from rich.console import Console
from rich.table import Table

from protocol.check import MUTANTS, PROOFS, Search, SpinError, Verdict, run_all, tools

ROOT = Path(__file__).parents[1]


def name_of(search: Search) -> str:
    """What `--only` and the table call it."""
    change = " ".join(change.removeprefix("-D").removeprefix("MUTANT_") for change in search.changes)
    return change or f"{search.claim}, {search.world}"


def show(verdicts: list[Verdict], *, story: bool) -> None:
    """The table, and counterexamples of what should hold, or all of them."""
    console = Console(width=150)
    table = Table(title="The verification protocol under Spin")
    for column in ("model", "claim", "world", "what", "Spin says", "states", "s", "verdict"):
        table.add_column(column, justify="right" if column in ("states", "s") else "left")
    for verdict in verdicts:
        search = verdict.search
        model = name_of(search) if search.changes else "as it is"
        cells = (model, search.claim, search.world, search.what, verdict.said, f"{verdict.states:,}")
        table.add_row(*cells, f"{verdict.seconds:.1f}", "ok" if verdict.ok else "FAILED")
    console.print(table)
    for verdict in verdicts:
        if verdict.story and (story or not verdict.ok):
            console.print(f"\n{name_of(verdict.search)}: how {verdict.search.claim} is violated")
            console.print("\n".join(f"  {line}" for line in verdict.story), highlight=False, markup=False)


def main() -> int:
    """The exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    names = [name_of(search) for search in (*PROOFS, *MUTANTS)]
    parser.add_argument(
        "--only", choices=names, metavar="NAME", help="this search alone: " + ", ".join(names)
    )
    parser.add_argument("--story", action="store_true", help="print how each mutant fails, step by step")
    parser.add_argument("--json", type=Path, help="also write the verdicts here")
    parser.add_argument("--cache", type=Path, default=ROOT / ".venv-protocol", help="where spin is unpacked")
    options = parser.parse_args()
    searches = [s for s in (*PROOFS, *MUTANTS) if options.only in (None, name_of(s))]
    started = time.perf_counter()

    def done(verdict: Verdict) -> None:
        sys.stderr.write(f"{name_of(verdict.search)}: {verdict.said} after {verdict.seconds:.1f} s\n")

    try:
        verdicts = run_all(searches, *tools(options.cache.resolve()), done)
    except SpinError as error:
        sys.stderr.write(f"error: {error}\n")
        return 1
    show(verdicts, story=options.story)
    sys.stderr.write(f"{len(verdicts)} searches in {time.perf_counter() - started:.0f} s\n")
    if options.json is not None:
        rows = [
            {
                "name": name_of(verdict.search), "claim": verdict.search.claim, "world": verdict.search.world,
                "must_hold": verdict.search.holds, "ok": verdict.ok, "said": verdict.said,
                "states": verdict.states, "depth": verdict.depth, "seconds": round(verdict.seconds, 1),
                "story": verdict.story,
            }
            for verdict in verdicts
        ]  # fmt: skip
        options.json.write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")
    return 0 if all(verdict.ok for verdict in verdicts) else 1


if __name__ == "__main__":
    sys.exit(main())
