"""Install other people's clients, let them verify our log, and print what each accepted and refused.

    python -m tests.interop [--cache FOLDER] [--allow-missing] [--only NAME] [--json FILE]

Exit code 0: every client accepted our log and refused every change that is aimed at a check it performs. 1: one did not,
or could not be installed (with --allow-missing the latter is only said).
"""

import argparse
import json
import sys
import time
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from tests.interop.cases import CHANGES, write_cases
from tests.interop.clients import CLIENTS, Client, InstallError, run, versions

ROOT = Path(__file__).parents[2]
AIMED = {change.name: change.check for change in CHANGES}


def examine(client: Client, cache: Path, cases: list[Path]) -> dict[str, Any]:
    """One row of the table."""
    folder = cache / client.name.replace("/", "-").replace("@", "")
    folder.mkdir(parents=True, exist_ok=True)
    row: dict[str, Any] = {"client": client.name, "version": "", "checks": sorted(client.checks)}
    started = time.perf_counter()
    try:
        command = client.install(client, folder)
        verdicts = run(command, folder, cases)
    except InstallError as error:
        return {**row, "missing": str(error), "ok": False}
    aimed = [v for v in verdicts[1:] if AIMED[v.case] in client.checks]
    wrong = [v.case for v in aimed if v.accepted]
    return {
        **row,
        "version": versions(client, folder),
        "accepted": verdicts[0].accepted,
        "refused": len(aimed) - len(wrong),
        "changes": len(aimed),
        "ok": verdicts[0].accepted and not wrong,
        "wrong": wrong if verdicts[0].accepted else [f"our log refused: {verdicts[0].why}"],
        "seconds": round(time.perf_counter() - started, 1),
    }


def show(rows: list[dict[str, Any]]) -> None:
    table = Table(title="Other people's clients on our log")
    for column in ("client", "version", "checks", "our log", "changed refused", "verdict"):
        table.add_column(column)
    for row in rows:
        if "missing" in row:
            cells = ("", ", ".join(row["checks"]), "", "", f"FAILED: not installed: {row['missing']}")
        else:
            cells = (
                row["version"],
                ", ".join(row["checks"]),
                "accepted" if row["accepted"] else "REFUSED",
                f"{row['refused']} of {row['changes']}",
                "ok" if row["ok"] else "FAILED: " + "; ".join(row["wrong"]),
            )
        table.add_row(row["client"], *cells)
    Console(width=150).print(table)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--cache", type=Path, default=ROOT / ".venv-interop", help="where clients are kept")
    parser.add_argument(
        "--allow-missing", action="store_true", help="a client that cannot be installed is no failure"
    )
    parser.add_argument("--only", choices=[client.name for client in CLIENTS], help="this client alone")
    parser.add_argument("--json", type=Path, help="also write the rows here")
    options = parser.parse_args()
    cache = options.cache.resolve()
    cases = write_cases(cache / "cases")
    rows = []
    for client in CLIENTS:
        if options.only in (None, client.name):
            sys.stderr.write(f"{client.name} ...\n")
            rows.append(examine(client, cache, cases))
    show(rows)
    if options.json is not None:
        options.json.write_text(json.dumps(rows, indent=1) + "\n")
    bad = [row for row in rows if not row["ok"] and not (options.allow_missing and "missing" in row)]
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
