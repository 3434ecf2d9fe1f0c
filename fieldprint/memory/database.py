"""The database of a memory store: SQLite with sqlite-vec, or PostgreSQL."""

from typing import Any

from fieldprint.database import Database, parse_url, sqlite_module
from fieldprint.errors import FieldprintError

WRITERS_LOCK = 0x6669656C64  # of PostgreSQL's advisory locks
WHAT = "memory store"


def open_database(url: str, *, create: bool) -> Database:
    """The database behind the URL, whose connections to SQLite have sqlite-vec.

    Raises:
        FieldprintError: it is not there, or no SQLite here loads extensions.
    """
    sqlite = parse_url(url, WHAT).get_backend_name() == "sqlite"
    if sqlite and not hasattr(sqlite_module().Connection, "enable_load_extension"):
        raise FieldprintError(
            "this Python's sqlite3 cannot load sqlite-vec",
            remedy="Run: pip install pysqlite3-binary, or use PostgreSQL",
        )
    return Database(
        url,
        WHAT,
        lock=WRITERS_LOCK,
        create=create,
        remedy="Add a memory first",
        prepare=_load_extension if sqlite else None,
    )


def _load_extension(connection: Any) -> None:
    import sqlite_vec

    connection.enable_load_extension(True)
    sqlite_vec.load(connection)
    connection.enable_load_extension(False)
