"""A journal in PostgreSQL: what differs from a file, against a real server."""

import asyncio
import dataclasses
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import psycopg
import pytest
from journal_cases import append_steps, collect, create, finish, whole
from journal_records import DELETED, FIRST, RUNNING, SECOND, fill

from whence_server.config.journal import JournalSettings
from whence_server.domain.errors import (
    ConfigurationError,
    JournalLostError,
    JournalUnreachableError,
)
from whence_server.domain.journal_url import parse_journal_url
from whence_server.journal import journal as journal_module
from whence_server.journal.journal import Journal
from whence_server.journal.postgres import store as store_module
from whence_server.journal.postgres.dialect import translate_definition, translate_query
from whence_server.journal.postgres.errors import translate_errors
from whence_server.journal.postgres.store import PostgresStore
from whence_server.journal.postgres.verify import verify_database
from whence_server.journal.rows import ListFilter
from whence_server.journal.schema import MIGRATIONS
from whence_server.journal.sql_reads import READ_AUDIT

PASSWORD = "hunter2-that-nobody-may-see"


@pytest.fixture
def url(postgres, tmp_path):
    return postgres.make_journal_url(str(tmp_path))


def open_journal(url, directory, **options):
    return Journal.open(
        directory, open_store=lambda _path, _durability: PostgresStore(url), **options
    )


@pytest.fixture
async def filled(url, tmp_path, monkeypatch):
    """Gives a database with what `fill` writes."""
    monkeypatch.setattr(journal_module, "SqliteStore", lambda *_: PostgresStore(url))
    await fill(tmp_path)
    return url


def change(url, *statements):
    with psycopg.connect(url, autocommit=True) as connection:
        for statement in statements:
            assert connection.execute(statement).rowcount > 0


def find(url):
    return "\n".join(map(str, verify_database(url).findings))


# ---- the same journal ----


def test_the_tables_are_those_of_sqlite(filled):
    with psycopg.connect(filled) as connection:
        rows = connection.execute(
            "SELECT table_name, column_name FROM information_schema.columns "
            "WHERE table_schema = current_schema()"
        ).fetchall()
        version = connection.execute("SELECT version FROM schema_version").fetchone()
    assert version == (len(MIGRATIONS),)
    columns = {table: {c for t, c in rows if t == table} for table, _ in rows}
    assert columns["entries"] == {
        *("writer", "position", "generation", "offset"),
        *("kind", "payload", "inner_digest", "hash"),
    }
    assert {"writers", "generations", "entries", "labels", "owners", "parents", "cursors"} <= set(
        columns
    )


@pytest.mark.parametrize(
    ("query", "expected"),
    [
        ("SELECT CAST(a.b AS BLOB), c FROM a WHERE d = ?", "SELECT a.b, c FROM a WHERE d = %s"),
        ("SELECT CAST(coalesce(a, '') AS BLOB), x''", "SELECT coalesce(a, ''), ''::bytea"),
        ("a > max(?, 0) LIKE 'x%'", "a > greatest(%s, 0) LIKE 'x%%'"),
        ("FROM a INDEXED BY b CROSS JOIN c", "FROM a JOIN c"),
    ],
)
def test_queries_are_translated(query, expected):
    assert translate_query(query) == expected


def test_definitions_are_translated():
    given = "CREATE TABLE a (b INTEGER, -- TEXT\n c TEXT, d BLOB) STRICT, WITHOUT ROWID;"
    assert " ".join(translate_definition(given).split()) == (
        "CREATE TABLE a (b BIGINT, c BYTEA, d BYTEA);"
    )


def test_an_untouched_journal_verifies(filled):
    report = verify_database(filled)
    assert (report.num_entries, report.num_generations) == (25, 4)
    assert report.findings == []


@pytest.mark.parametrize(
    ("statement", "finding"),
    [
        ("UPDATE entries SET payload = 'x' WHERE position = 3", "broken at entry 3"),
        ("UPDATE entries SET hash = hash || '1' WHERE position = 9", "broken at entry 9"),
        ("DELETE FROM entries WHERE position = 25", "missing"),
        ("DELETE FROM entries WHERE position = 4", "missing"),
        (f"UPDATE generations SET model = 'other' WHERE generation_id = '{FIRST}'", "model"),
        (f"UPDATE generations SET text_preview = '' WHERE generation_id = '{SECOND}'", "preview"),
        (f"DELETE FROM generations WHERE generation_id = '{RUNNING}'", "has no row"),
        (f"UPDATE generations SET secret = '1' WHERE generation_id = '{DELETED}'", "secret"),
        ("DELETE FROM labels WHERE name = 'team'", "a missing row"),
        ("INSERT INTO labels VALUES ('a', 'b', 1, 'nobody')", "belongs to no generation"),
        ("UPDATE cursors SET position = 8 WHERE name = 'otlp-spans'", "does not match its seal"),
        ("UPDATE entries SET writer = 7 WHERE position = 25", "unknown writer"),
        ("DELETE FROM writers", "writer 1 is missing"),
        ("UPDATE writers SET writer_id = decode(repeat('00', 16), 'hex')", "broken at entry 1"),
    ],
)
def test_verify_finds_a_change(filled, statement, finding):
    if "position = 25" in statement and statement.startswith("DELETE"):
        # The newest entry can go unnoticed, unless something refers to it.
        change(filled, statement, "UPDATE cursors SET position = 25 WHERE name = 'otlp-spans'")
        finding = "after the newest entry"
    else:
        change(filled, statement)
    assert finding in find(filled)


async def test_texts_may_hold_nul_and_sort_by_their_bytes(url, tmp_path):
    journal = await open_journal(url, tmp_path)
    names = ["a", "B", "ä", "a\0b"]
    for generation_id in names:
        whole(journal, generation_id, labels={"k\0": "\0"}, prompt_preview="\0")
    await journal.flush()
    rows, _ = await journal.list(ListFilter(labels={"k\0": "\0"}), 10)
    expected = sorted(names, key=str.encode, reverse=True)
    assert [row.generation_id for row in rows] == expected
    assert rows[0].index.prompt_preview == "\0"
    await journal.close()


async def test_deletion_leaves_no_content_in_any_table(url, tmp_path):
    journal = await open_journal(url, tmp_path)
    secret = b"a prompt that nobody may find again"
    create(journal, "g", secret, labels={"who": "alice"}, prompt_preview=secret.decode())
    append_steps(journal, "g", secret)
    finish(journal, "g")
    await journal.flush()
    await journal.delete("g")
    assert (await journal.verify()).intact
    await journal.close()
    with psycopg.connect(url) as connection:
        for table in ("entries", "generations", "labels", "owners", "parents"):
            rows = connection.execute(f"SELECT {table}::text FROM {table}").fetchall()
            assert secret.hex() not in str(rows)
            assert b"alice".hex() not in str(rows)


def test_a_page_of_audit_records_reads_no_others(url):
    PostgresStore(url).close()
    query = translate_query(READ_AUDIT)
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute(
            "INSERT INTO entries SELECT 1, n, CASE n % 2 WHEN 0 THEN 0 ELSE 1 END, 0, "
            "CASE n % 2 WHEN 0 THEN 9 ELSE 3 END, '', NULL, '' FROM generate_series(1, 40000) n"
        )
        connection.execute("ANALYZE entries")
        plan = connection.execute(f"EXPLAIN (ANALYZE, FORMAT JSON) {query}", (1, 30_000, 100))
        (((top,),),) = plan.fetchall()
    scan = top["Plan"]["Plans"][0]
    assert (scan["Node Type"], scan["Index Name"]) == ("Index Scan", "entries_audit")
    assert scan["Actual Rows"] == 100


def test_servers_start_whatever_the_databases_default_isolation_is(url):
    strict = url + "%20-cdefault_transaction_isolation%3Drepeatable%5C%20read"
    PostgresStore(strict).close()
    with ThreadPoolExecutor(4) as pool:
        stores = list(pool.map(lambda _: PostgresStore(strict), range(4)))
    assert len({store.writer for store in stores}) == 4
    for store in stores:
        store.close()


def test_a_refused_start_leaves_no_session(url):
    PostgresStore(url).close()
    change(url, "UPDATE schema_version SET version = 99")
    with pytest.raises(ConfigurationError, match="newer"):
        PostgresStore(url)
    sessions = "SELECT count(*) FROM pg_stat_activity WHERE application_name LIKE 'whence%'"
    with psycopg.connect(url, autocommit=True) as connection:
        deadline = time.monotonic() + 30
        while connection.execute(sessions).fetchone() != (0,):
            assert time.monotonic() < deadline
            time.sleep(0.01)


# ---- a database that goes away ----


@pytest.fixture
def interrupted(postgres):
    """Gives the server, which runs again after the test."""
    yield postgres
    postgres.stop("immediate")
    postgres.start()


async def test_nothing_is_lost_while_the_database_is_away(interrupted, url, tmp_path):
    journal = await open_journal(url, tmp_path, patience_s=3_600.0)
    whole(journal, "before")
    create(journal, "running")
    await journal.flush()
    reader = journal.follow("running")
    assert [e.payload for e in await anext(reader)] == [b"started"]
    interrupted.stop("immediate")
    append_steps(journal, "running", *(b"%d" % i for i in range(50)))
    seen = [e.payload for e in await anext(reader)]  # streams go on
    while journal.trouble is None:
        await journal.trouble_changed.wait()
    assert isinstance(journal.trouble, JournalUnreachableError)
    assert journal.lost is None
    with pytest.raises(JournalUnreachableError, match="cannot be reached"):
        create(journal, "refused")
    with pytest.raises(JournalUnreachableError, match="cannot be reached"):
        await journal.get("before")
    interrupted.start()
    assert await journal.wait_writable()
    finish(journal, "running")
    await journal.flush()
    assert journal.trouble is None
    rest = [entry.payload for entry in await collect(reader)]
    assert seen + rest == [*(b"%d" % i for i in range(50)), b"finished"]
    assert (await journal.get("before")).finish is not None
    assert (await journal.verify()).num_entries == journal.position == 57
    await journal.close()
    assert "broken" not in find(url)


async def test_an_idle_server_notices_that_the_database_is_away(interrupted, url, tmp_path):
    journal = await Journal.open(tmp_path, open_store=lambda *_: PostgresStore(url, 1.0))
    interrupted.stop()
    while journal.trouble is None:
        await journal.trouble_changed.wait()
    assert isinstance(journal.trouble, JournalUnreachableError)
    interrupted.start()
    while journal.trouble is not None:
        await journal.trouble_changed.wait()
    whole(journal, "g")
    await journal.close()
    assert "broken" not in find(url)


async def test_a_commit_whose_answer_was_lost_is_not_repeated(url, tmp_path, monkeypatch):
    journal = await open_journal(url, tmp_path)
    store = journal._store
    commit, broken = PostgresStore.write, threading.Event()

    def lose_the_answer(self, batch):
        commit(self, batch)
        if not broken.is_set():
            broken.set()
            # As the store is before it learns that the transaction was committed.
            self._last, self._in_doubt = (0, store_module.hash_genesis(self.writer_id)), True
            self._connection.close()
            with translate_errors():
                raise psycopg.OperationalError("server closed the connection unexpectedly")

    monkeypatch.setattr(PostgresStore, "write", lose_the_answer)
    whole(journal, "g")
    await asyncio.to_thread(broken.wait)
    await journal.wait_committed(4)
    whole(journal, "h")
    await journal.flush()
    assert (await journal.verify()).num_entries == 10
    assert store is journal._store
    await journal.close()


async def test_a_database_that_lost_entries_ends_the_journal(url, tmp_path):
    journal = await open_journal(url, tmp_path)
    whole(journal, "g")
    await journal.flush()
    journal._store._connection.close()
    change(url, "DELETE FROM entries WHERE position > 3")  # as an asynchronous standby
    whole(journal, "h")
    with pytest.raises(JournalLostError, match="ends at entry 3"):
        await journal.flush()
    await journal.close()


# ---- passwords ----


@pytest.mark.parametrize(
    "bad",
    [
        f"postgresql://whence:{PASSWORD}@127.0.0.1:1/postgres?connect_timeout=2",
        f"postgresql://whence:{PASSWORD}@127.0.0.1:{{port}}/no-such-database",
        f"postgresql://whence:{PASSWORD}@[::1/postgres",
        f"postgresql://whence:{PASSWORD}@127.0.0.1/postgres?no_such_option=1",
    ],
)
def test_no_error_repeats_the_password(postgres, bad):
    with pytest.raises(ConfigurationError) as caught:
        PostgresStore(bad.format(port=postgres.port))
    error = caught.value
    while error is not None:
        assert PASSWORD not in str(error)
        error = error.__cause__


@pytest.mark.parametrize("character", "@/?#")
def test_a_password_with_an_unescaped_character_is_refused(character):
    with pytest.raises(ValueError, match="%2F") as caught:
        parse_journal_url(f"postgresql://whence:pass{character}word@db.example/whence")
    assert "word@" not in str(caught.value)
    parse_journal_url("postgresql://whence:pass%2Fword@a:1,b:2/whence?sslmode=require")


def test_no_representation_has_the_password():
    url = parse_journal_url(f"postgresql://whence:{PASSWORD}@db.example/whence")
    settings = JournalSettings(journal=url)
    for text in (repr(url), str(url), repr(settings), str(dataclasses.asdict(settings))):
        assert PASSWORD not in text
    assert str(url) == "db.example/whence"
