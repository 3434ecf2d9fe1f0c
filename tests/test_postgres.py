"""The server that other tests rely on: each test has a database of its own, and the server can fail and come back."""

import stat

import pytest

from tests.postgres import PostgresServer

sqlalchemy = pytest.importorskip("sqlalchemy", reason="needs SQLAlchemy; the extra [registry] brings it")


def run(url: str, *statements: str) -> list[tuple[object, ...]]:
    engine = sqlalchemy.create_engine(url, poolclass=sqlalchemy.NullPool)
    with engine.begin() as connection:
        results = [connection.exec_driver_sql(statement) for statement in statements]
        return [tuple(row) for row in results[-1]] if results[-1].returns_rows else []


def test_each_test_has_a_database_of_its_own(postgres_server: PostgresServer, postgres_url: str) -> None:
    run(postgres_url, "create table t (x integer)", "insert into t values (1)")
    other = postgres_server.create_database()
    found = run(other, "select count(*) from pg_tables where tablename = 't'")
    postgres_server.drop_database(other)
    assert found == [(0,)]


def test_the_server_listens_on_no_port_and_only_its_account_reaches_it(
    postgres_server: PostgresServer, postgres_url: str
) -> None:
    assert run(postgres_url, "show listen_addresses") == [("",)]
    assert stat.S_IMODE(postgres_server.folder.stat().st_mode) == 0o700


def test_what_was_committed_is_there_after_a_crash(
    postgres_server: PostgresServer, postgres_url: str
) -> None:
    run(postgres_url, "set synchronous_commit = on", "create table t (x integer)", "insert into t values (7)")
    postgres_server.stop("immediate")
    with pytest.raises(sqlalchemy.exc.OperationalError):
        run(postgres_url, "select 1")
    postgres_server.start()
    assert run(postgres_url, "select x from t") == [(7,)]


def test_the_other_server_has_pgvector(pgvector_url: str) -> None:
    found = run(pgvector_url, "create extension vector", "select '[3,4]'::vector <-> '[0,0]'::vector")
    assert found == [(5.0,)]
