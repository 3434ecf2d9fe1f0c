"""Stores on SQLite and on PostgreSQL with pgvector. Without the extra [memory] nothing of this folder is collected."""

from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from fieldprint.memory import MemoryStore

if not all(find_spec(name) for name in ("numpy", "sqlalchemy", "sqlite_vec", "wordllama")):
    collect_ignore_glob = ["test_*.py"]


@pytest.fixture(params=["sqlite", "postgresql"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """The URL of an empty database, of each kind."""
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path / 'memory.db'}"
    found: str = request.getfixturevalue("pgvector_url")
    return found


@pytest.fixture
def store(url: str) -> "Iterator[MemoryStore]":
    """An empty store on each kind of database."""
    from tests.memory.stores import open_store

    with open_store(url) as opened:
        yield opened
