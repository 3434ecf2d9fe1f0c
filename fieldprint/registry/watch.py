"""Whether the registry's database has changed, asked at every step of decoding.

SQLite: `PRAGMA data_version`, which moves when another connection commits. PostgreSQL: LISTEN, and `sync` sends NOTIFY in
its transaction. Both cost microseconds and tell nothing of what changed: whoever is told reads it.

Silence is believed only while the connection answers. A file that was replaced, a server that is gone, a connection that
has not answered for `heartbeat` seconds: `poll` raises, and the engine's gate counts its grace (`gate.py`).
"""

import os
from pathlib import Path
from time import monotonic
from typing import Any, Protocol, Self

from fieldprint.database import parse_url, sqlite_module
from fieldprint.errors import FieldprintError
from fieldprint.registry.database import CHANNEL, WHAT

HEARTBEAT = 1.0
ANSWER_MS = 2000  # how long PostgreSQL's server, and the network to it, may take to answer


class WatchLost(FieldprintError):  # noqa: N818 - what happened, not what is wrong
    """The database cannot be asked any more: what it said last must not be relied on."""


class _Ear(Protocol):
    def changed(self) -> bool: ...

    def close(self) -> None: ...


class RegistryWatch:
    """Tells of every commit to the database after it was made. Make it first, read the registry, then poll.

    Args:
        url: as of `RegistryDatabase`.
        heartbeat: seconds after which a silent server is asked whether it is there.

    Raises:
        WatchLost: it cannot be opened.
    """

    def __init__(self, url: str, *, heartbeat: float = HEARTBEAT) -> None:
        where = parse_url(url, WHAT)
        self._lost: str | None = None
        self._ear: _Ear
        try:
            if where.get_backend_name() == "sqlite":
                self._ear = _SqliteEar(Path(where.database or ""))
            else:
                plain = where.set(drivername="postgresql").render_as_string(hide_password=False)
                self._ear = _PostgresEar(plain, heartbeat)
        except Exception as error:
            raise _lost(_words(error)) from error

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the connection."""
        self._ear.close()

    def poll(self) -> bool:
        """Whether something was committed since the last call, or since the watch was made.

        Raises:
            WatchLost: the database did not answer; from then on every call raises, for what was missed is not known. Make
                another watch, and read the registry anew.
        """
        if self._lost is not None:
            raise _lost(self._lost)
        try:
            return self._ear.changed()
        except Exception as error:
            self._lost = _words(error)
            raise _lost(self._lost) from error


def _words(error: Exception) -> str:
    return (str(error) or type(error).__name__).splitlines()[0]


def _lost(why: str) -> WatchLost:
    return WatchLost(
        f"the registry database is not there any more: {why}",
        remedy="Engines go on for the grace of their gates",
    )


class _SqliteEar:
    def __init__(self, path: Path) -> None:
        self._path = path
        self._connection = sqlite_module().connect(
            f"{path.absolute().as_uri()}?mode=ro", uri=True, isolation_level=None, check_same_thread=False
        )
        self._file = self._identity()
        self._version = self._read()

    def _identity(self) -> tuple[int, int]:
        there = os.stat(self._path)
        return there.st_dev, there.st_ino

    def _read(self) -> Any:
        return self._connection.execute("PRAGMA data_version").fetchone()

    def changed(self) -> bool:
        if self._identity() != self._file:
            raise FieldprintError("the file was replaced")
        version, self._version = self._version, self._read()
        return bool(version != self._version)

    def close(self) -> None:
        self._connection.close()


class _PostgresEar:
    def __init__(self, url: str, heartbeat: float) -> None:
        import psycopg

        self._heartbeat = heartbeat
        self._connection = psycopg.connect(
            url,
            autocommit=True,
            connect_timeout=5,
            tcp_user_timeout=ANSWER_MS,
            keepalives_idle=1,
            keepalives_interval=1,
            keepalives_count=2,
            options=f"-c statement_timeout={ANSWER_MS}",
        )
        self._told = False
        self._connection.add_notify_handler(self._hear)
        self._connection.execute(f"LISTEN {CHANNEL}")
        self._heard = monotonic()

    def _hear(self, _: object) -> None:
        self._told = True

    def changed(self) -> bool:
        """`Connection.notifies` waits for the socket even when it is given no time, so this asks libpq itself."""
        if monotonic() - self._heard > self._heartbeat:
            self._connection.execute("SELECT 1")
            self._heard = monotonic()
        for _ in range(2):  # a server that goes says so first; that it is gone is the second thing to read
            self._connection.pgconn.consume_input()
        while self._connection.pgconn.notifies() is not None:
            self._told = True
        told, self._told = self._told, False
        return told

    def close(self) -> None:
        self._connection.close()
