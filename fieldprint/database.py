"""The database behind a URL: SQLite or PostgreSQL; one writer at a time, many readers."""

import importlib
import sqlite3
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

from sqlalchemy import URL, Connection, Engine, Row, Select, create_engine, event, text
from sqlalchemy.engine import make_url
from sqlalchemy.exc import ArgumentError, DBAPIError

from fieldprint.errors import FieldprintError

MAPPED_BYTES = 1 << 33  # of a file that are read without a copy


def parse_url(url: str, what: str) -> URL:
    """SQLAlchemy's URL of a file or of a database; `what` it is for.

    Raises:
        FieldprintError: it is neither, or of another database than SQLite and PostgreSQL.
    """
    try:
        where = make_url(url if "://" in url else f"sqlite:///{url}")
    except (ArgumentError, ValueError) as error:  # the second of a port that is no number
        raise FieldprintError(
            f"the place of the {what} is neither a file nor the URL of a database"  # it may hold a password
        ) from error
    if where.get_backend_name() == "postgresql":
        return where.set(drivername="postgresql+psycopg")
    if where.get_backend_name() != "sqlite":
        raise FieldprintError(f"the {what} is in SQLite or PostgreSQL, not in {where.get_backend_name()}")
    return where


def sqlite_module() -> ModuleType:
    """The one SQLite library that this process opens files with: Python's own if it loads extensions, else pysqlite3's if
    that is installed, else Python's own.

    Two SQLite libraries in one process do not see each other's locks: one that closes the file deletes the write-ahead
    log that the other goes on writing to (sqlite.org/howtocorrupt.html, 2.2.1).
    """
    if hasattr(sqlite3.Connection, "enable_load_extension"):
        return sqlite3
    try:
        return importlib.import_module("pysqlite3.dbapi2")
    except ModuleNotFoundError:
        return sqlite3


class Database:
    """Connections to one database, whose transactions are `reading` or `writing`.

    Args:
        url: of PostgreSQL, or a file of SQLite.
        what: it is for, in words.
        lock: the advisory lock that PostgreSQL's writers take.
        create: make the file if it is not there.
        remedy: what makes it, said where it is not there.
        prepare: called with each new connection to SQLite.

    Raises:
        FieldprintError: there is no such file.
    """

    def __init__(
        self,
        url: str,
        what: str,
        *,
        lock: int,
        create: bool,
        remedy: str,
        prepare: Callable[[Any], None] | None = None,
    ) -> None:
        where = parse_url(url, what)
        self.dialect = where.get_backend_name()
        self.what = what
        self._lock = lock
        if self.dialect == "sqlite":
            if where.database and not create and not Path(where.database).exists():
                raise FieldprintError(f"there is no {what} at {where.database}", remedy=remedy)
            if where.database and where.database != ":memory:" and create:
                Path(where.database).touch(mode=0o600)  # nobody else's business; its WAL gets the same mode
            self._engine = create_engine(where, module=sqlite_module())

            def prepare_sqlite(connection: Any, _record: object) -> None:
                connection.isolation_level = (
                    None  # transactions begin where SQLAlchemy says, also reading ones
                )
                if prepare is not None:
                    prepare(connection)
                _set_sqlite(connection)

            event.listen(self._engine, "connect", prepare_sqlite)
            event.listen(self._engine, "begin", _begin_sqlite)
        else:
            self._engine = create_engine(where)
        self._writer: Engine = self._engine.execution_options(writes=True)
        if self.dialect == "postgresql":
            self._reader: Engine = self._engine.execution_options(isolation_level="REPEATABLE READ")
            self._asker: Engine = self._engine.execution_options(isolation_level="AUTOCOMMIT")
        else:
            self._reader = self._engine
            self._asker = self._engine.execution_options(asks=True)

    def ask(self, question: Select[Any], values: Mapping[str, Any]) -> Sequence[Row[Any]]:
        """The rows of one statement, which by itself sees one state of the database: no transaction is begun around it.

        Raises:
            FieldprintError: as `reading`.
        """
        try:
            with self._connect(self._asker) as connection:
                return connection.execute(question, values).all()
        except DBAPIError as error:
            raise FieldprintError(f"the {self.what} cannot be read: {_first_line(error.orig)}") from error

    @contextmanager
    def reading(self) -> Iterator[Connection]:
        """A transaction that sees one state of the database.

        Raises:
            FieldprintError: it cannot be opened, went away, or its file is damaged.
        """
        try:
            with self._connect(self._reader) as connection, connection.begin():
                yield connection
        except DBAPIError as error:
            raise FieldprintError(f"the {self.what} cannot be read: {_first_line(error.orig)}") from error

    @contextmanager
    def writing(self) -> Iterator[Connection]:
        """A transaction that no other writer runs beside.

        Raises:
            FieldprintError: it cannot be opened or written, or it refuses a row.
        """
        try:
            with self._connect(self._writer) as connection, connection.begin():
                if self.dialect == "postgresql":
                    connection.execute(text("SELECT pg_advisory_xact_lock(:lock)"), {"lock": self._lock})
                yield connection
        except DBAPIError as error:
            raise FieldprintError(f"the {self.what} cannot be written: {_first_line(error.orig)}") from error

    def _connect(self, engine: Engine) -> Connection:
        try:
            return engine.connect()
        except (DBAPIError, engine.dialect.loaded_dbapi.Error) as error:  # the second from `prepare`
            raise FieldprintError(
                f"the {self.what} cannot be opened: {str(error).splitlines()[0]}"
            ) from error

    def close(self) -> None:
        """Close every connection."""
        self._engine.dispose()


def _first_line(error: BaseException | None) -> str:
    return (str(error) or type(error).__name__).splitlines()[0]


def _set_sqlite(connection: Any) -> None:
    for setting in (
        "journal_mode = WAL",
        "busy_timeout = 30000",
        "foreign_keys = ON",
        f"mmap_size = {MAPPED_BYTES}",
    ):
        connection.execute(f"PRAGMA {setting}")


def _begin_sqlite(connection: Connection) -> None:
    options = connection.get_execution_options()
    if not options.get("asks", False):
        connection.exec_driver_sql("BEGIN IMMEDIATE" if options.get("writes", False) else "BEGIN")
