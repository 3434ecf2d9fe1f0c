"""Results as files: benchmarks/results/NAME.json with device, versions, commit, command and rows."""

import json
import platform
import subprocess
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent


def write_results(
    name: str,
    rows: list[dict[str, Any]],
    *,
    device: str,
    command: str,
    packages: Sequence[str],
    path: Path | None = None,
) -> Path:
    """The file that was written.

    Args:
        name: of the file.
        rows: each with `cell`, `metric`, `unit`, `ours`, `peers` and `ratio`.
        device: in words.
        command: that made the rows.
        packages: whose versions are recorded.
        path: of the file, if it shall lie elsewhere.
    """
    git = ["git", "rev-parse", "--verify", "HEAD"]
    commit = subprocess.run(git, cwd=ROOT, capture_output=True, text=True, check=False)  # noqa: S603
    result = {
        "device": device,
        "versions": {"python": platform.python_version()} | {p: version(p) for p in packages},
        "commit": commit.stdout.strip() if commit.returncode == 0 else "unknown",
        "command": command,
        "rows": rows,
    }
    path = path or ROOT / "benchmarks" / "results" / f"{name}.json"
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(result, indent=1) + "\n")
    return path
