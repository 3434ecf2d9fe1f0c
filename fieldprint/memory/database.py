"""The database behind a URL: SQLite with sqlite-vec, or PostgreSQL; one writer at a time, many readers."""

import importlib
import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

from sqlalchemy import Connection, Engine, create_engine, event, text
from sqlalchemy.engine import make_url
from sqlalchemy.exc import ArgumentError, DBAPIError, OperationalError

from fieldprint.errors import FieldprintError

MAPPED_BYTES = 1 << 33  # of a file that are read without a copy
WRITERS_LOCK = 0x6669656C64  # of PostgreSQL's advisory locks


class Database:
    """Connections to one database, whose transactions are `reading` or `writing`."""

    def __init__(self, url: str, *, create: bool) -> None:
        try:
            where = make_url(url if "://" in url else f"sqlite:///{url}")
        except ArgumentError as error:
            raise FieldprintError(f"{url} is neither a file nor the URL of a database") from error
        self.dialect = where.get_backend_name()
        if self.dialect == "sqlite":
            if where.database and not create and not Path(where.database).exists():
                raise FieldprintError(
                    f"there is no memory store at {where.database}", remedy="Add a memory first"
                )
            if where.database and where.database != ":memory:" and create:
                Path(where.database).touch(
                    mode=0o600
                )  # what was told in confidence; its WAL gets the same mode
            self._engine = create_engine(where, module=sqlite_driver())
            event.listen(self._engine, "connect", _prepare_sqlite)
            event.listen(self._engine, "begin", _begin_sqlite)
        elif self.dialect == "postgresql":
            self._engine = create_engine(where.set(drivername="postgresql+psycopg"))
        else:
            raise FieldprintError(f"a memory store is in SQLite or PostgreSQL, not in {self.dialect}")
        self._writer: Engine = self._engine.execution_options(writes=True)

    @contextmanager
    def reading(self) -> Iterator[Connection]:
        """A transaction that sees one state of the database."""
        with self._connect(self._engine) as connection:
            if self.dialect == "postgresql":
                connection = connection.execution_options(isolation_level="REPEATABLE READ")
            with connection.begin():
                yield connection

    @contextmanager
    def writing(self) -> Iterator[Connection]:
        """A transaction that no other writer runs beside."""
        try:
            with self._connect(self._writer) as connection, connection.begin():
                if self.dialect == "postgresql":
                    connection.execute(text("SELECT pg_advisory_xact_lock(:lock)"), {"lock": WRITERS_LOCK})
                yield connection
        except OperationalError as error:
            raise FieldprintError(f"the memory store cannot be written: {error.orig}") from error

    def _connect(self, engine: Engine) -> Connection:
        try:
            return engine.connect()
        except (DBAPIError, engine.dialect.loaded_dbapi.Error) as error:  # the second from `_prepare_sqlite`
            raise FieldprintError(
                f"the memory store cannot be opened: {str(error).splitlines()[0]}"
            ) from error

    def close(self) -> None:
        """Close every connection."""
        self._engine.dispose()


def sqlite_driver() -> ModuleType:
    """A sqlite3 that loads extensions: Python's own where it was built to, or the one of pysqlite3-binary.

    A process opens a store with this one alone. Two SQLite libraries in one process do not see each other's locks: one
    that closes the file deletes the write-ahead log that the other goes on writing to (sqlite.org/howtocorrupt.html, 2.2.1).
    """
    if hasattr(sqlite3.Connection, "enable_load_extension"):
        return sqlite3
    try:
        return importlib.import_module("pysqlite3.dbapi2")
    except ModuleNotFoundError as error:
        raise FieldprintError(
            "this Python's sqlite3 cannot load sqlite-vec",
            remedy="Run: pip install pysqlite3-binary, or use PostgreSQL",
        ) from error


def _prepare_sqlite(connection: Any, _record: object) -> None:
    import sqlite_vec

    connection.isolation_level = None  # transactions begin where SQLAlchemy says, also reading ones
    connection.enable_load_extension(True)
    sqlite_vec.load(connection)
    connection.enable_load_extension(False)
    for setting in (
        "journal_mode = WAL",
        "busy_timeout = 30000",
        "foreign_keys = ON",
        f"mmap_size = {MAPPED_BYTES}",
    ):
        connection.execute(f"PRAGMA {setting}")


def _begin_sqlite(connection: Connection) -> None:
    writes = connection.get_execution_options().get("writes", False)
    connection.exec_driver_sql("BEGIN IMMEDIATE" if writes else "BEGIN")
