"""Stores on SQLite and on PostgreSQL with pgvector."""

from collections.abc import Iterator
from pathlib import Path

import pytest

for name in ("numpy", "sqlalchemy", "sqlite_vec"):
    pytest.importorskip(name, reason="needs the extra [memory]; this is the base install")

from fieldprint.memory import MemoryStore  # noqa: E402
from tests.memory.stores import open_store  # noqa: E402


@pytest.fixture(params=["sqlite", "postgresql"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """The URL of an empty database, of each kind."""
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path / 'memory.db'}"
    found: str = request.getfixturevalue("pgvector_url")
    return found


@pytest.fixture
def store(url: str) -> Iterator[MemoryStore]:
    """An empty store on each kind of database."""
    with open_store(url) as opened:
        yield opened
