"""docs/theory.md states nothing without a check: each result names tests that exist, and theorems that Coq has."""

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent.parent
PAGE = ROOT / "docs/theory.md"
PROOFS = ROOT / "proofs"
PARTS = ("**Hypotheses.**", "**Claim.**", "**Proof.**", "**Not said.**", "**Tests.**")


def results(text: str) -> dict[str, str]:
    """The results by their heading, without what follows the last one."""
    sections = re.split(r"^(##+) (.+)$", text, flags=re.MULTILINE)
    return {
        title: body
        for level, title, body in zip(sections[1::3], sections[2::3], sections[3::3], strict=True)
        if level == "###"
    }


def names_in(path: Path) -> set[str]:
    return {node.name for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.FunctionDef)}


def faults(title: str, body: str) -> list[str]:
    """What a result lacks: a part, a check, or a test or theorem that exists."""
    found = [f"no {part}" for part in PARTS if part not in body]
    tests = re.findall(r"`(tests/[\w/]+\.py)::(\w+)`", body)
    theorems = re.findall(r"`([A-Z]\w+)\.(\w+)`", body)
    if not tests and not theorems:
        found.append("neither a test nor a theorem")
    for path, name in tests:
        if not name.startswith("test_") or not (ROOT / path).is_file() or name not in names_in(ROOT / path):
            found.append(f"no {path}::{name}")
    if PROOFS.is_dir():
        for file, name in theorems:
            source = PROOFS / f"{file}.v"
            if not source.is_file() or not re.search(rf"^Theorem {name}\b", source.read_text(), re.MULTILINE):
                found.append(f"no theorem {file}.{name}")
    return [f"{title}: {fault}" for fault in found]


RESULTS = results(PAGE.read_text())


def test_the_results_are_numbered_from_one() -> None:
    assert [re.findall(r"^R(\d+)\. ", title) for title in RESULTS] == [
        [str(i)] for i in range(1, len(RESULTS) + 1)
    ]
    assert len(RESULTS) >= 22


@pytest.mark.parametrize("title", RESULTS, ids=lambda title: title.partition(".")[0])
def test_every_result_names_a_check_that_exists(title: str) -> None:
    assert faults(title, RESULTS[title]) == []


@pytest.mark.parametrize(
    ("change", "fault"),
    [
        (("test_the_bound_is_reached", "test_the_bound_is_beaten"), "test_the_bound_is_beaten"),
        (("tests/theory/test_mass.py", "tests/theory/test_masses.py"), "test_masses.py"),
        (("**Not said.**", ""), "**Not said.**"),
        (("**Proof.**", ""), "**Proof.**"),
        (("`", ""), "neither a test nor a theorem"),
    ],
    ids=["another test", "another file", "no limits", "no proof", "no names"],
)
def test_a_result_that_lacks_something_is_found(change: tuple[str, str], fault: str) -> None:
    (title,) = (title for title in RESULTS if title.startswith("R2."))
    assert any(fault in found for found in faults(title, RESULTS[title].replace(*change)))


@pytest.mark.skipif(not PROOFS.is_dir(), reason="the folder proofs/ is not there")
def test_a_theorem_that_coq_does_not_have_is_found() -> None:
    (title,) = (title for title in RESULTS if title.startswith("R2."))
    body = RESULTS[title].replace("`Mass.anchor_mass`", "`Mass.anchor_masses`")
    assert faults(title, body) == [f"{title}: no theorem Mass.anchor_masses"]


def test_every_function_of_the_theory_is_named_on_the_page() -> None:
    text = PAGE.read_text()
    public = {
        node.name
        for path in (ROOT / "fieldprint/theory").glob("*.py")
        for node in ast.parse(path.read_text()).body
        if isinstance(node, ast.FunctionDef) and not node.name.startswith("_")
    }
    assert len(public) > 30
    assert {name for name in public - {"code"} if f"`{name}`" not in text} == set()


def test_every_result_that_a_docstring_points_to_is_there() -> None:
    numbers = {title.partition(".")[0] for title in RESULTS}
    for path in (ROOT / "fieldprint/theory").glob("*.py"):
        pointed = set(re.findall(r"\bR\d+\b", path.read_text()))
        assert pointed <= numbers, path.name
        assert pointed or path.name == "__init__.py"


def test_the_page_names_every_file_of_tests() -> None:
    text = PAGE.read_text()
    for path in Path(__file__).parent.glob("test_*.py"):
        assert path.relative_to(ROOT).as_posix() in text, path.name
