"""Each layer imports only from the layers below it, also for types; one place makes a VerifiedAnchor."""

import ast
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parent.parent / "fieldprint"
LAYERS = (
    ("errors",),
    ("blake3", "note", "attention", "quantize", "database", "theory"),
    ("anchor", "kvcache", "tlog"),
    ("commit", "registry"),
    ("memory",),
    ("verify", "decoder", "audit"),
    ("promote",),
    ("generate",),
    ("pipeline",),
    ("recompute",),
    ("adapters",),
    ("demo",),
    ("cli", "dashboard"),
    ("__init__", "__main__"),
)
RANK = {name: rank for rank, names in enumerate(LAYERS) for name in names}
SOURCES = sorted(PACKAGE.rglob("*.py"))


def layer_of(path: Path) -> str:
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def imported_layers(tree: ast.AST) -> Iterator[str]:
    """The layer behind every import of our own package, wherever it stands: in a function, for types only."""
    for node in ast.walk(tree):
        modules: list[str] = []
        if isinstance(node, ast.Import):
            modules = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"line {node.lineno}: relative import"
            modules = [f"{node.module}.{alias.name}" for alias in node.names]
        for module in modules:
            package, _, rest = module.partition(".")
            if package == "fieldprint":
                yield rest.partition(".")[0] or "__init__"


def refused(here: str, source: str) -> list[str]:
    return [
        there for there in imported_layers(ast.parse(source)) if there != here and RANK[there] >= RANK[here]
    ]


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: path.relative_to(PACKAGE).as_posix())
def test_imports_only_lower_layers(path: Path) -> None:
    assert layer_of(path) in RANK, f"{layer_of(path)} has no row in LAYERS"
    assert refused(layer_of(path), path.read_text()) == []


@pytest.mark.parametrize(
    ("here", "source"),
    [
        ("kvcache", "from fieldprint.generate import Engine"),
        ("kvcache", "from fieldprint import tlog"),
        ("note", "import fieldprint.blake3"),
        ("attention", "def f():\n    from fieldprint.kvcache.pool import PagePool"),
        ("tlog", "if TYPE_CHECKING:\n    from fieldprint.commit.leaf import Commitment"),
        ("verify", "import fieldprint"),
    ],
)
def test_the_rule_refuses(here: str, source: str) -> None:
    assert refused(here, source)


def test_only_verify_makes_a_verified_anchor() -> None:
    makers = {
        path.relative_to(PACKAGE).as_posix()
        for path in SOURCES
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Call) and ast.unparse(node.func).rpartition(".")[2] == "VerifiedAnchor"
    }
    assert makers == {"verify.py"}


EXCUSED = {
    "cli/anchor.py:anchor_sign": "seventeen options with their help, then one call each of what makes and what signs",
    "cli/generate.py:generate": "fifteen options with their help, then one call of the pipeline",
    "cli/serve_vllm.py:serve": "thirteen options with their help, then one call each of what checks, and of the server",
    "cli/serve.py:log_serve": "fourteen options with their help, then one call of the server",
    "attention/decode_kernel.py:decode_kernel": "one launch; Triton has no closures, and parts would take thirty arguments",
    "attention/plan_kernel.py:plan_kernel": "three ways to cut, in one launch; each is a few lines of arithmetic",
    "attention/launch.py:paged_decode": "the arguments of one operator and of its two launches, by name",
    "attention/decode.py:plan_decode": "fourteen arguments that go through to the plan",
    "demo/story.py:_generate_with_faults": "one scene of the story, told from top to bottom",
}


def test_no_file_is_longer_than_500_lines() -> None:
    long = {path.name: lines for path in SOURCES if (lines := len(path.read_text().splitlines())) > 500}
    assert set(long) <= set(EXCUSED), long


def code_length(function: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    """Lines from `def` to the end, the docstring not counted."""
    length = (function.end_lineno or function.lineno) - function.lineno + 1
    first = function.body[0]
    if ast.get_docstring(function) is not None:
        length -= (first.end_lineno or first.lineno) - first.lineno + 1
    return length


def test_no_function_is_longer_than_60_lines() -> None:
    long = {
        f"{path.relative_to(PACKAGE)}:{node.name}": code_length(node)
        for path in SOURCES
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and code_length(node) > 60
    }
    assert set(long) <= set(EXCUSED), long


def test_no_two_public_classes_of_a_layer_have_one_name() -> None:
    found = Counter(
        (layer_of(path), node.name)
        for path in SOURCES
        for node in ast.parse(path.read_text()).body
        if isinstance(node, ast.ClassDef) and not node.name.startswith("_")
    )
    assert [name for name, number in found.items() if number > 1] == []


def test_no_file_has_a_name_that_says_nothing() -> None:
    empty = {"utils", "helpers", "common", "manager", "handler", "base"}
    assert [path for path in SOURCES if empty & set(path.stem.split("_"))] == []
