"""The public list of names is short, complete, lazy and described."""

import ast
import inspect
from pathlib import Path

import pytest

import fieldprint

SOURCE = Path(fieldprint.__file__)


@pytest.mark.parametrize("name", fieldprint.__all__)
def test_name_comes_from_the_module_that_init_says(name: str) -> None:
    value = getattr(fieldprint, name)
    home = f"fieldprint.{fieldprint._HOME[name]}"
    assert value.__name__ == name
    assert value.__module__ == home or value.__module__.startswith(home + ".")


@pytest.mark.parametrize("name", fieldprint.__all__)
def test_name_has_a_docstring_whose_first_line_is_a_sentence(name: str) -> None:
    value = getattr(fieldprint, name)
    doc = value.__dict__.get("__doc__") if inspect.isclass(value) else value.__doc__
    assert doc, f"{name} has no docstring"
    first = doc.strip().partition("\n\n")[0]
    assert not first.startswith(f"{name}("), f"{name} has the docstring that dataclass made up"
    assert first[0].isupper() or first[0] == "`"


def test_all_homes_and_types_name_the_same() -> None:
    names = set(fieldprint.__all__)
    tree = ast.parse(SOURCE.read_text())
    typed = {
        (alias.name, node.module)
        for block in tree.body
        if isinstance(block, ast.If) and ast.unparse(block.test) == "TYPE_CHECKING"
        for node in block.body
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    }
    assert set(fieldprint._HOME) == names
    assert typed == {(name, f"fieldprint.{home}") for name, home in fieldprint._HOME.items()}
    assert list(fieldprint.__all__) == sorted(names)


def test_dir_lists_every_public_name_once() -> None:
    listed = dir(fieldprint)
    assert set(fieldprint.__all__) <= set(listed)
    assert len(listed) == len(set(listed))


def test_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="has no attribute 'Anchor'"):
        fieldprint.__getattr__("Anchor")
