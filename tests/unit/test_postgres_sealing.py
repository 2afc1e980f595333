"""An encrypted journal in PostgreSQL: keys that all servers share, and what its files hold."""

import asyncio
import secrets
import threading
from contextlib import asynccontextmanager, closing

import psycopg
import pytest
from journal_cases import append_steps, collect, create, finish, whole
from journal_records import DELETED, FIRST, RUNNING, SECOND, begin, end, fill, started
from sealed_journals import MASTER, OTHER_MASTER, make_options, open_keys, read_files, write_keys
from waiting import wait_for_rows, wait_until

from whence_server.cli import main
from whence_server.domain.entries import EntryKind
from whence_server.domain.errors import (
    ConfigurationError,
    DeletionPendingError,
    GenerationNotFoundError,
    JournalUnwritableError,
)
from whence_server.domain.journal_url import JournalUrl
from whence_server.domain.key_sources import KeyScheme, KeySource
from whence_server.journal import journal as journal_module
from whence_server.journal.journal import Journal
from whence_server.journal.postgres.keys import PostgresKeys
from whence_server.journal.postgres.store import PostgresStore
from whence_server.journal.postgres.verify import verify_database
from whence_server.journal.rows import ListFilter
from whence_server.journal.sealing.keyring import Keyring
from whence_server.journal.sealing.masters import Masters
from whence_server.journal.sealing.rotation import rotate
from whence_server.takeover import Takeovers


@pytest.fixture
def url(postgres, tmp_path):
    return postgres.make_journal_url(str(tmp_path))


@pytest.fixture
def key_file(tmp_path):
    return write_keys(tmp_path / "master.key", MASTER)


@pytest.fixture
def options(key_file, url):
    """Gives the default of a server: its keys are in the database of its journal."""
    return make_options(key_file, JournalUrl(url))


@asynccontextmanager
async def server(url, directory, sealing, lease_s=60.0):
    journal = await Journal.open(
        directory, open_store=lambda *_: PostgresStore(url, lease_s), sealing=sealing
    )
    try:
        yield journal
    finally:
        await journal.close()


@pytest.fixture
async def pair(url, tmp_path, options):
    async with server(url, tmp_path / "a", options) as a, server(url, tmp_path / "b", options) as b:
        yield a, b


@pytest.fixture
async def filled(url, tmp_path, options, monkeypatch):
    """Gives a database with what `fill` writes, encrypted."""
    monkeypatch.setattr(journal_module, "SqliteStore", lambda *_: PostgresStore(url))
    await fill(tmp_path / "data", options)
    return url


def ask(url, statement, *bindings):
    with psycopg.connect(url, autocommit=True) as connection:
        return connection.execute(statement, bindings).fetchall()


def verify(url, key_file):
    with closing(open_keys(JournalUrl(url), key_file)) as keys:
        return verify_database(url, keys)


def list_keys(url):
    return {name.decode() for (name,) in ask(url, "SELECT generation_id FROM data_keys")}


def open_keyring(url, key_file):
    masters = Masters(KeySource(KeyScheme.FILE, str(key_file)), {})
    return Keyring(PostgresKeys(url, create=True), masters)


# ---- several servers ----


async def test_each_server_reads_what_another_has_encrypted(pair, url):
    a, b = pair
    create(a, "g", b"quokka prompt", labels={"animal": "wombat"}, prompt_preview="quokka")
    append_steps(a, "g", b"quokka step")
    await a.flush()
    following = asyncio.create_task(collect(b.follow("g")))
    finish(a, "g")
    payloads = [entry.payload for entry in await asyncio.wait_for(following, 60)]
    assert payloads == [b"quokka prompt", b"quokka step", b"finished"]
    rows, _ = await b.list(ListFilter(labels={"animal": "wombat"}), 10)
    assert [(row.generation_id, row.index.prompt_preview) for row in rows] == [("g", "quokka")]
    watched = [entry async for _, batch in first(b.follow_logs({})) for entry in batch]
    assert [entry.payload for entry in watched[:2]] == [b"quokka prompt", b"quokka step"]
    whole(b, "h")
    await b.flush()
    assert list_keys(url) == {"g", "h"}


async def first(generator):
    """Yield the first thing of a generator."""
    async for thing in generator:
        yield thing
        return


async def test_a_deletion_by_any_server_destroys_the_key_and_the_others_forget_it(pair, url):
    a, b = pair
    whole(a, "g")
    whole(a, "kept")
    await a.flush()
    assert len(await b.read("g")) == 5
    await b.delete("g")
    assert list_keys(url) == {"kept"}
    for journal in pair:
        with pytest.raises(GenerationNotFoundError, match="deleted"):
            await journal.read("g")
        journal.forms.forget_older(0.0)
        assert journal.forms.find("g") is None
        assert len(await journal.read("kept")) == 5
    (entry,) = [e for e in await a.read_committed(0) if e.kind is EntryKind.DELETED]
    assert entry.generation_id == "g"


async def test_another_server_finishes_the_encrypted_log_of_a_dead_one(
    url, tmp_path, options, key_file
):
    async with server(url, tmp_path / "b", options, 1.0) as b:
        a = await Journal.open(
            tmp_path / "a", open_store=lambda *_: PostgresStore(url, 1.0), sealing=options
        )
        begin(a, RUNNING, 1)
        await a.flush()
        for task in a.sharing._tasks:
            task.cancel()
        takeovers = Takeovers(b, lambda _: {})
        takeovers.start()
        entries = await asyncio.wait_for(collect(b.follow(RUNNING)), 60)
        assert entries[0].payload == started(RUNNING, 1).SerializeToString()
        assert entries[-1].kind is EntryKind.FINISHED
        free = "SELECT count(*) FROM leases WHERE holder IS NULL"
        await wait_for_rows(url, free, [(1,)])
        # The keys outlive the log that was given back.
        assert len(await b.read(RUNNING)) == 5
        await takeovers.close()
        await a.close()
    assert verify(url, key_file).findings == []


async def test_a_server_without_the_keys_neither_starts_nor_takes_a_log_over(
    url, tmp_path, options, caplog
):
    async with server(url, tmp_path / "clear", None, 1.0) as clear:
        async with server(url, tmp_path / "a", options) as a:
            create(a, "g")
            await a.flush()
        with pytest.raises(ConfigurationError, match="give their master key with --journal-key"):
            await Journal.open(tmp_path / "b", open_store=lambda *_: PostgresStore(url))
        takeovers = Takeovers(clear, lambda _: {})
        takeovers.start()
        await wait_until(lambda: "start this one with their --journal-key" in caplog.text)
        await takeovers.close()
    async with server(url, tmp_path / "a", options) as a, server(url, tmp_path / "b", options) as b:
        assert a.list_unfinished() + b.list_unfinished() == ["g"]


async def test_keys_of_another_journal_are_refused(filled, postgres, tmp_path, options):
    other = postgres.make_journal_url("another journal")
    with pytest.raises(ConfigurationError, match="has the keys of journal"):
        await Journal.open(
            tmp_path / "b", open_store=lambda *_: PostgresStore(other), sealing=options
        )
    place = JournalUrl(postgres.make_journal_url("keys that are new"))
    with pytest.raises(ConfigurationError, match="is new, and the journal has encrypted"):
        await Journal.open(
            tmp_path / "b",
            open_store=lambda *_: PostgresStore(filled),
            sealing=make_options(tmp_path / "master.key", place),
        )


def test_a_key_that_a_paused_server_stores_late_takes_no_others_place(url, key_file):
    PostgresStore(url).close()
    paused, other = open_keyring(url, key_file), open_keyring(url, key_file)
    paused.begin("g")
    named = other.begin("g")
    other.save(["g"])
    paused.save(["g"])
    reader = open_keyring(url, key_file)
    reader.read_key_id = lambda _: other.find("g").key_id
    assert reader.find("g").secret == other.find("g").secret
    assert named is not None
    assert len(ask(url, "SELECT 1 FROM data_keys")) == 2
    for keys in (paused, other, reader):
        keys.close()


# ---- files ----


async def test_no_file_of_the_database_has_content(postgres, pair, url, tmp_path):
    a, b = pair
    prompt, step, label = content = [secrets.token_hex(8) for _ in range(3)]

    def find():
        files = postgres.read_files()
        return [word for word in content if word.encode() in files], MASTER in files

    def write(journal):
        create(journal, "g", prompt.encode(), labels={"of": label}, prompt_preview=prompt)
        append_steps(journal, "g", step.encode())
        finish(journal, "g")

    write(a)
    await a.flush()
    ask(url, "SELECT pg_switch_wal()")
    assert find() == ([], False)
    await b.delete("g")
    assert find() == ([], False)
    # In clear they are found, so that the search can fail.
    plain = postgres.make_journal_url(f"in clear {tmp_path}")
    async with server(plain, tmp_path / "clear", None) as journal:
        write(journal)
        await journal.flush()
        assert find() == (content, False)


async def test_statistics_sample_neither_keys_nor_content(filled):
    for table in ("data_keys", "facts", "entries", "generations"):
        ask_nothing(filled, f"ANALYZE {table}")
    rows = ask(filled, "SELECT attname FROM pg_stats WHERE schemaname = current_schema()")
    sampled = {name for (name,) in rows}
    assert {"key_id", "position", "model"} <= sampled
    assert not sampled & {"wrapped", "value", "payload", "secret", "prompt_preview", "text_preview"}


def ask_nothing(url, statement):
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute(statement)


# ---- deletions that were interrupted ----


async def test_a_key_that_could_not_be_destroyed_is_destroyed_at_a_takeover_or_a_start(
    url, tmp_path, options, key_file, monkeypatch
):
    def fail(_self, _ids):
        raise JournalUnwritableError("the database is away")

    async with server(url, tmp_path / "a", options) as a:
        whole(a, "g")
        whole(a, "in progress")
        await a.flush()
        with monkeypatch.context() as patch:
            patch.setattr(PostgresKeys, "destroy", fail)
            with pytest.raises(DeletionPendingError):
                await a.delete("g")
            ask_nothing(url, "UPDATE data_keys SET doomed = 1")
            report = verify(url, key_file)
            assert "its key is still there" in "\n".join(map(str, report.findings))
        # Another server that starts destroys it, and leaves what is not deleted on record.
        async with server(url, tmp_path / "b", options) as b:
            assert list_keys(url) == {"in progress"}
            assert len(await b.read("in progress")) == 5


# ---- rotation ----


async def test_servers_follow_a_rotation(pair, url, key_file, capsys):
    a, b = pair
    for journal, name, number in ((a, FIRST, 1), (b, SECOND, 2)):
        begin(journal, name, number)
        end(journal, name, number)
        await journal.flush()
    write_keys(key_file, OTHER_MASTER, MASTER)
    arguments = ["--journal-key", str(key_file), "--journal", url]
    assert await asyncio.to_thread(main, ["key", "rotate", *arguments]) == 0
    assert "2 keys were rewrapped" in capsys.readouterr().out
    for journal, name, number in ((a, DELETED, 3), (b, RUNNING, 4)):
        begin(journal, name, number)
        await journal.flush()
    write_keys(key_file, OTHER_MASTER)
    assert await asyncio.to_thread(main, ["key", "list", *arguments]) == 0
    (line,) = capsys.readouterr().out.splitlines()
    assert "4 keys of generations" in line
    assert verify(url, key_file).findings == []


def test_a_rotation_waits_for_a_key_that_is_being_stored(url, key_file):
    PostgresStore(url).close()
    write_keys(key_file, OTHER_MASTER, MASTER)
    old = write_keys(key_file.with_name("old.key"), MASTER)
    keys = open_keyring(url, old)
    keys.begin("g")
    inserted, rotated = threading.Event(), threading.Event()
    insert = keys._insert

    def insert_slowly(given, rows):
        done = insert(given, rows)
        inserted.set()
        # The rotation would end meanwhile, and not see this key.
        rotated.wait(1.0)
        return done

    keys._insert = insert_slowly
    saving = threading.Thread(target=keys.save, args=(["g"],))
    saving.start()
    assert inserted.wait(60)
    masters = Masters(KeySource(KeyScheme.FILE, str(key_file)), {})
    database = PostgresKeys(url)
    assert rotate(database, masters) == 1
    rotated.set()
    saving.join()
    assert database.count_by_master() == {masters.newest.id: 1}
    database.close()
    keys.close()


# ---- the commands ----


async def test_an_encrypted_journal_moves_there_and_back_with_its_keys(
    postgres, url, tmp_path, key_file, capsys
):
    data_dir, back = tmp_path / "data", tmp_path / "back"
    await fill(data_dir, make_options(key_file))
    keys = postgres.make_journal_url(f"keys of {tmp_path}")
    moves = [
        ("migrate", data_dir, url, data_dir / "keys.db", keys),
        ("migrate", url, back, keys, back / "keys.db"),
    ]
    for command, source, target, old, new in moves:
        run = [command, "--from", str(source), "--to", str(target)]
        assert await asyncio.to_thread(main, run) == 0
        assert "its keys are not copied" in capsys.readouterr().out
        run = ["key", "copy", "--from", str(old), "--to", str(new)]
        assert await asyncio.to_thread(main, run) == 0
        assert "3 keys of generations were copied" in capsys.readouterr().out
    verify = ["verify", "--journal", url, "--journal-key", str(key_file), "--journal-keys", keys]
    assert await asyncio.to_thread(main, verify) == 0
    assert "note" not in capsys.readouterr().out
    sealing = make_options(key_file, JournalUrl(keys))
    async with server(url, tmp_path / "server", sealing) as journal:
        assert (await journal.read(FIRST))[0].payload == started(FIRST, 1).SerializeToString()
        end(journal, RUNNING, 4)
    journal = await Journal.open(back, sealing=make_options(key_file))
    assert (await journal.read(SECOND))[0].payload == started(SECOND, 2).SerializeToString()
    await journal.close()
    assert b"prompt " not in read_files(back)


async def test_rows_are_rebuilt_when_no_server_uses_the_database(filled, tmp_path, options, capsys):
    verify = ["verify", "--journal", filled, "--rebuild"]
    ask_nothing(filled, f"UPDATE generations SET model = 'x' WHERE generation_id = '{FIRST}'")
    async with server(filled, tmp_path / "a", options):
        assert await asyncio.to_thread(main, verify) == 2
        assert "is using database" in capsys.readouterr().err
    assert await asyncio.to_thread(main, verify) == 0
    assert "1 rows were rebuilt from the entries" in capsys.readouterr().out


async def test_prune_destroys_keys_that_a_copy_brought_back(filled, tmp_path, options, capsys):
    copied = ask(filled, "SELECT * FROM data_keys WHERE generation_id = %s", FIRST.encode())[0]
    async with server(filled, tmp_path / "a", options) as a:
        await a.delete(FIRST)
        for row in (copied, (b"unknown", *copied[1:]), (SECOND.encode(), b"late", *copied[2:])):
            with psycopg.connect(filled, autocommit=True) as connection:
                connection.execute("INSERT INTO data_keys VALUES (%s, %s, %s, %s, %s)", row)
        prune = ["key", "prune", "--journal", filled]
        assert await asyncio.to_thread(main, prune) == 0
        lines = capsys.readouterr().out.splitlines()
        assert lines[0].startswith("2 keys")
        assert lines[1].startswith("1 keys of generations without a trace in the journal are left")
        assert len(await a.read(SECOND)) == 5
        assert await asyncio.to_thread(main, [*prune, "--unknown"]) == 2
    assert list_keys(filled) == {SECOND, RUNNING, "unknown"}
    assert await asyncio.to_thread(main, [*prune, "--unknown"]) == 0
    assert list_keys(filled) == {SECOND, RUNNING}
    assert DELETED not in list_keys(filled)


async def test_keys_beside_a_journal_in_a_directory_may_be_in_postgresql(tmp_path, url, options):
    journal = await Journal.open(tmp_path / "data", sealing=options)
    whole(journal, "g")
    await journal.close()
    assert list_keys(url) == {"g"}
    journal = await Journal.open(tmp_path / "data", sealing=options)
    assert len(await journal.read("g")) == 5
    await journal.close()
    assert not (tmp_path / "data" / "keys.db").exists()
