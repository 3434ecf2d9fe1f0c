"""The documents: links resolve, every command and every public name is described."""

import os
import re
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import typer.main

import fieldprint
from fieldprint.cli import app

ROOT = Path(__file__).parent.parent
DOCUMENTS = [
    ROOT / "README.md",
    ROOT / "CONTRIBUTING.md",
    ROOT / "CHANGELOG.md",
    ROOT / "proofs/README.md",
    *sorted((ROOT / "docs").rglob("*.md")),
]


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_links_resolve(path: Path) -> None:
    for target in re.findall(r"\]\(([^)#]+)(?:#[^)]*)?\)", path.read_text()):
        assert target.startswith("https://") or (path.parent / target).exists(), target


def test_every_law_of_the_ledger_names_tests_that_exist() -> None:
    text = (ROOT / "docs/ledger.md").read_text()
    named = re.findall(r"`(tests/[\w/]+\.py)::(\w+)`", text)
    assert len(named) > 20
    for path, name in named:
        assert re.search(rf"^(def {name}\(|{name} = )", (ROOT / path).read_text(), re.MULTILINE), name
    for law in re.split(r"^### ", text, flags=re.MULTILINE)[1:]:
        assert "::" in law, law[:40]


def test_every_attack_of_the_threat_model_names_what_stops_it_and_a_test_that_exists() -> None:
    text = (ROOT / "docs/threat-model.md").read_text()
    rows = re.findall(r"^\|(.+)\|(.+)\|(.+)\|$", text.split("## Attacks")[1].split("\n\n")[1], re.MULTILINE)[
        2:
    ]
    assert len(rows) >= 20
    for attack, stops, shown in rows:
        paths = re.findall(r"`(.+?)`", shown)
        assert stops.strip() and paths, attack
        assert all((ROOT / path).is_file() for path in paths), attack
    families = {path.relative_to(ROOT).as_posix() for path in (ROOT / "tests/redteam/cases").glob("*.json")}
    assert families <= set(re.findall(r"`(tests/redteam/cases/\w+\.json)`", text))
    for path in re.findall(r"`((?:tests|fieldprint|docs)/[\w/.-]+\.\w+)`", text):
        assert (ROOT / path).is_file(), path


def commands() -> list[str]:
    root = typer.main.get_command(app)
    names = []
    for name, command in root.commands.items():  # type: ignore[attr-defined]
        names += [f"{name} {sub}" for sub in command.commands] if hasattr(command, "commands") else [name]
    return names


@pytest.mark.parametrize("command", commands())
def test_every_command_is_documented(command: str) -> None:
    assert f"`fieldprint {command}" in (ROOT / "docs/commands.md").read_text()


@pytest.mark.parametrize("name", fieldprint.__all__)
def test_every_public_name_is_documented(name: str) -> None:
    assert f"`{name}`" in (ROOT / "docs/api.md").read_text()


@pytest.mark.parametrize(
    ("page", "says"), [("docs/api.md", ["Falcon", "owner"]), ("docs/effects.md", ["final: 1.", "final: 3."])]
)
def test_the_example_of_the_page_runs(
    page: str,
    says: list[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    pytest.importorskip("torch")
    (source,) = re.findall(r"```python\n(.*?)```", (ROOT / page).read_text(), re.DOTALL)
    monkeypatch.chdir(tmp_path)
    exec(compile(source, page, "exec"), {})
    said = capsys.readouterr().out
    assert all(word in said for word in says), said


def test_the_witness_recipe_of_the_commands_page_runs(tmp_path: Path, model_folder: Path) -> None:
    text = (ROOT / "docs/commands.md").read_text()
    (recipe,) = re.findall(r"<!-- witness recipe -->\n```text\n(.*?)```", text, re.DOTALL)
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = str(free.getsockname()[1])
    script = tmp_path / "bin/fieldprint"
    script.parent.mkdir()
    script.write_text(f'#!/bin/sh\nexec {sys.executable} -W ignore -m fieldprint.cli "$@"\n')
    script.chmod(0o755)
    run = subprocess.run(
        [
            "bash",
            "-e",
            "-m",
            "-c",
            recipe.replace("7380", port).replace("generate ", "generate --max-new-tokens 8 "),
        ],
        cwd=tmp_path,
        env={**os.environ, "PATH": f"{script.parent}:{os.environ['PATH']}"},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert run.returncode == 0 and "cosigned by witness.example/north" in run.stdout, run.stderr
    assert "warning: the checkpoint" not in run.stderr


def test_the_readme_begins_with_the_two_commands() -> None:
    lines = [line.strip() for line in (ROOT / "README.md").read_text().splitlines() if line.strip()]
    assert lines[1].startswith("make demo") and lines[2].startswith("make test")
    assert "@DEMO@" not in (ROOT / "README.md").read_text()
