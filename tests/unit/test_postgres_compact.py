"""`whence-server compact` on PostgreSQL, and the planner's samples of content."""

import asyncio
from contextlib import asynccontextmanager

import psycopg
import pytest
from journal_cases import whole
from journal_records import fill
from sealed_journals import MASTER, make_options, write_keys
from waiting import wait_for_rows

from whence_server.cli import main
from whence_server.domain.journal_url import JournalUrl
from whence_server.journal import journal as journal_module
from whence_server.journal.journal import Journal
from whence_server.journal.postgres import retention as retention_module
from whence_server.journal.postgres.store import PostgresStore


@pytest.fixture
def url(postgres, tmp_path):
    return postgres.make_journal_url(str(tmp_path))


@pytest.fixture
def options(url, tmp_path):
    """Gives the default of a server: its keys are in the database of its journal."""
    return make_options(write_keys(tmp_path / "master.key", MASTER), JournalUrl(url))


@asynccontextmanager
async def server(url, directory, sealing=None):
    journal = await Journal.open(
        directory, open_store=lambda *_: PostgresStore(url, 60.0), sealing=sealing
    )
    try:
        yield journal
    finally:
        await journal.close()


@pytest.fixture
async def sealed(url, tmp_path, options):
    """Gives the journal of a server that encrypts."""
    async with server(url, tmp_path / "a", options) as journal:
        yield journal


def ask(url, statement):
    with psycopg.connect(url, autocommit=True) as connection:
        return connection.execute(statement).fetchall()


def ask_nothing(url, statement):
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute(statement)


async def test_compact_removes_destroyed_keys_from_the_tables_files(postgres, sealed, url, capsys):
    a = sealed
    for number in range(20):
        whole(a, f"g {number}", 1)
    await a.flush()
    wrapped = dict(ask(url, "SELECT convert_from(generation_id, 'UTF8'), wrapped FROM data_keys"))
    await a.delete("g 7")
    ask_nothing(url, "CHECKPOINT")
    assert wrapped["g 7"][12:28] in postgres.read_files("base")
    assert await asyncio.to_thread(main, ["compact", "--journal", url]) == 0
    ask_nothing(url, "CHECKPOINT")
    files = postgres.read_files("base")
    assert wrapped["g 7"][12:28] not in files
    assert wrapped["g 8"][12:28] in files
    assert " before, " in capsys.readouterr().out
    assert await asyncio.to_thread(main, ["compact", "--journal", url, "--full"]) == 2
    assert "is using database" in capsys.readouterr().err


async def test_compact_holds_no_server_up_behind_a_long_transaction(
    sealed, url, capsys, monkeypatch
):
    a = sealed
    whole(a, "g 1")
    await a.flush()
    monkeypatch.setattr(retention_module, "_LONGEST_WAIT_S", 600.0)
    with psycopg.connect(url) as backup:
        backup.execute("SELECT count(*) FROM data_keys")
        compacting = asyncio.create_task(asyncio.to_thread(main, ["compact", "--journal", url]))
        waits = (
            "SELECT count(*) FROM pg_locks WHERE NOT granted AND relation = 'data_keys'::regclass"
        )
        await wait_for_rows(url, waits, [(1,)])
        whole(a, "g 2")
        await asyncio.wait_for(a.flush(), 60)
        assert not compacting.done()
    assert await asyncio.wait_for(compacting, 90) == 0
    assert "the tables of keys are written anew" in capsys.readouterr().out


async def test_compact_says_who_keeps_the_tables_of_keys_in_use(sealed, url, capsys, monkeypatch):
    a = sealed
    whole(a, "g")
    await a.flush()
    monkeypatch.setattr(retention_module, "_LONGEST_WAIT_S", 0.0)
    with psycopg.connect(url, application_name="a backup") as backup:
        backup.execute("SELECT count(*) FROM data_keys")
        pid = backup.info.backend_pid
        assert await asyncio.to_thread(main, ["compact", "--journal", url]) == 2
    assert f"while other sessions use it: {pid} (a backup)" in capsys.readouterr().err


async def test_samples_of_earlier_versions_go_at_the_next_start(
    url, tmp_path, options, monkeypatch
):
    monkeypatch.setattr(journal_module, "SqliteStore", lambda *_: PostgresStore(url))
    await fill(tmp_path / "data", options)
    columns = {"entries": "payload", "generations": "prompt_preview"}
    for table, column in columns.items():
        ask_nothing(url, f"ALTER TABLE {table} ALTER COLUMN {column} SET STATISTICS -1")
        ask_nothing(url, f"ANALYZE {table}")
    sampled = """
        SELECT attname::text FROM pg_stats WHERE schemaname = current_schema()
        AND attname IN ('payload', 'prompt_preview') ORDER BY attname
    """
    assert ask(url, sampled) == [("payload",), ("prompt_preview",)]
    async with server(url, tmp_path / "next", options):
        assert ask(url, sampled) == []
    for table in columns:
        ask_nothing(url, f"ANALYZE {table}")
    assert ask(url, sampled) == []


async def test_compact_refuses_tables_of_another_role(url, tmp_path, capsys):
    async with server(url, tmp_path / "a"):
        pass
    schema = url.rpartition("%3D")[2]
    role = f"guest_{schema}"
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute(f"CREATE ROLE {role} LOGIN")
        connection.execute(f"GRANT USAGE ON SCHEMA {schema} TO {role}")
        rights = "SELECT, INSERT, UPDATE, DELETE ON ALL TABLES IN SCHEMA"
        connection.execute(f"GRANT {rights} {schema} TO {role}")
    try:
        guest = url.replace("whence@", f"{role}@")
        assert await asyncio.to_thread(main, ["compact", "--journal", guest]) == 2
    finally:
        with psycopg.connect(url, autocommit=True) as connection:
            connection.execute(f"DROP OWNED BY {role}")
            connection.execute(f"DROP ROLE {role}")
    captured = capsys.readouterr()
    assert captured.out == ""
    assert "the database is not compacted: " in captured.err
    assert '"cursors"' in captured.err
    assert "as the owner of the journal's tables" in captured.err
