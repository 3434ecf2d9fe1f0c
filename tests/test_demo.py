"""The demo, whole: every verdict holds, and what it writes is complete."""

import json
from pathlib import Path

import pytest

torch = pytest.importorskip("torch")

from fieldprint.adapters.transformers import LoadedModel  # noqa: E402
from fieldprint.demo import run_demo  # noqa: E402
from fieldprint.errors import FieldprintError  # noqa: E402


def test_every_verdict_of_the_demo_holds(tmp_path: Path, demo_model: LoadedModel) -> None:
    lines: list[str] = []
    summary = run_demo(tmp_path / "demo-out", demo_model, lines.append)
    assert len(summary["checks"]) >= 10
    assert all(summary["checks"].values()), "\n".join(lines)
    written = json.loads((tmp_path / "demo-out/summary.json").read_text())
    assert written["checks"] == summary["checks"]
    report = (tmp_path / "demo-out/report.html").read_text()
    assert "<svg" in report and "http" not in report
    assert len(list((tmp_path / "demo-out/receipts").iterdir())) == 2


def test_a_folder_that_is_not_of_a_demo_is_kept(tmp_path: Path, demo_model: LoadedModel) -> None:
    (tmp_path / "precious").write_text("data")
    (tmp_path / "summary.json").write_text("{}")
    with pytest.raises(FieldprintError, match="not of a demo"):
        run_demo(tmp_path, demo_model, lambda line: None)
    assert (tmp_path / "precious").exists()
