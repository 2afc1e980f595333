"""Copies of journals between SQLite and PostgreSQL: whole, verified, or not there."""

import asyncio
from pathlib import Path

import apsw
import psycopg
import pytest
from journal_cases import collect, whole
from journal_records import FIRST, SECOND, begin, change, end, fill

from whence_server.cli import main
from whence_server.domain.entries import EntryKind
from whence_server.domain.errors import ConfigurationError, GenerationInOtherLogError
from whence_server.journal.journal import Journal
from whence_server.journal.moving.tables import list_tables
from whence_server.journal.postgres.connection import PostgresConnection
from whence_server.journal.postgres.copies import open_database
from whence_server.journal.postgres.store import PostgresStore
from whence_server.journal.rebuild import rebuild_journal
from whence_server.journal.verify import verify_journal
from whence_server.journal.vocabularies import Vocabularies
from whence_server.takeover import Takeovers


@pytest.fixture
def url(postgres, tmp_path):
    return postgres.make_journal_url(str(tmp_path))


@pytest.fixture
async def source(tmp_path):
    directory = tmp_path / "source"
    await fill(directory)
    Vocabularies(directory).keep("ab" * 32, [b"a", b"b"], 0)
    return directory


def read(place: Path | str) -> dict[str, list[tuple[object, ...]]]:
    """Return every row of every table."""
    if isinstance(place, Path):
        connection = apsw.Connection(str(place / "journal.db"))
    else:
        connection = PostgresConnection(place)
    found = {t.name: connection.execute(t.make_select()).fetchall() for t in list_tables()}
    connection.close()
    return found


def run(command, source, target):
    return main([command, "--from", str(source), "--to", str(target)])


def test_migration_there_and_back_keeps_every_row(source, url, tmp_path, capsys):
    before = read(source)
    assert run("migrate", source, url) == 0
    assert read(url) == before
    assert main(["verify", "--journal", url]) == 0
    assert run("migrate", url, tmp_path / "back") == 0
    assert read(tmp_path / "back") == before
    heads = {line.rpartition(" ")[2] for line in capsys.readouterr().out.splitlines()}
    assert len(heads) == 1
    assert verify_journal(tmp_path / "back").findings == []
    assert len(before["entries"]) == 25


async def test_one_server_closes_what_was_running_in_all_logs_of_a_backup(postgres, url, tmp_path):
    logs = []
    for number, generation_id in enumerate((FIRST, SECOND), 1):
        folder = tmp_path / f"server {number}"
        logs.append(await Journal.open(folder, open_store=lambda *_: PostgresStore(url)))
        begin(logs[-1], generation_id, number)
        await logs[-1].flush()
    assert await asyncio.to_thread(run, "backup", url, tmp_path / "backup") == 0
    for journal in logs:
        await journal.close()
    new = postgres.make_journal_url(str(tmp_path / "new"))
    assert await asyncio.to_thread(run, "restore", tmp_path / "backup", new) == 0
    journal = await Journal.open(tmp_path / "one", open_store=lambda *_: PostgresStore(new, 1.0))
    assert journal.list_unfinished() == [FIRST]
    takeovers = Takeovers(journal, lambda _: {})
    takeovers.start()
    entries = await asyncio.wait_for(collect(journal.follow(SECOND)), 60)
    assert entries[-1].kind is EntryKind.FINISHED
    await takeovers.close()
    await journal.close()


async def test_a_server_goes_on_with_a_migrated_journal(source, url, tmp_path):
    assert await asyncio.to_thread(run, "migrate", source, url) == 0
    old = verify_journal(source)
    journal = await Journal.open(tmp_path / "data", open_store=lambda *_: PostgresStore(url))
    assert journal.position == old.num_entries
    assert journal.list_unfinished() == ["00000000-0000-4000-8000-000000000004"]
    assert await journal.read_cursor("otlp-spans") == 7
    whole(journal, "new")
    await journal.flush()
    assert (await journal.verify()).intact
    await journal.close()


@pytest.fixture
async def filled_url(source, url):
    assert await asyncio.to_thread(run, "migrate", source, url) == 0
    return url


def test_no_server_starts_or_writes_while_a_journal_is_migrated(filled_url):
    with open_database(filled_url, exclusive=True) as source:
        (entries,) = [table for table in list_tables() if table.name == "entries"]
        assert len(list(source.read(entries))) == 25
        with pytest.raises(ConfigurationError, match="cannot be used"):
            PostgresStore(filled_url)
        with psycopg.connect(filled_url) as other:
            other.execute("SET lock_timeout = '100ms'")
            with pytest.raises(psycopg.errors.LockNotAvailable):
                other.execute("SELECT holder FROM leases FOR UPDATE")
    PostgresStore(filled_url).close()


@pytest.mark.parametrize("left", ["clock_timestamp() + interval '1 hour'", "'2020-01-01'"])
def test_a_journal_that_a_server_uses_or_left_is_not_migrated(filled_url, tmp_path, left):
    PostgresStore(filled_url).close()
    with psycopg.connect(filled_url) as other:
        other.execute(f"UPDATE leases SET expires_at = {left}")
    assert run("migrate", filled_url, tmp_path / "moved") == 2
    assert not (tmp_path / "moved").exists()
    assert run("backup", filled_url, tmp_path / "backup") == 0


@pytest.fixture
async def two_logs(url, tmp_path):
    """Gives a directory with the logs of two servers: FIRST is in log 1, SECOND in log 2."""
    logs = []
    for number, generation_id in enumerate((FIRST, SECOND), 1):
        # Both are open at the same time, so that the second takes a log of its own.
        folder = tmp_path / f"server {number}"
        logs.append(await Journal.open(folder, open_store=lambda *_: PostgresStore(url)))
        begin(logs[-1], generation_id, number, owner=("alice", "bob")[number - 1])
        end(logs[-1], generation_id, number)
    for journal in logs:
        await journal.close()
    directory = tmp_path / "two"
    assert await asyncio.to_thread(run, "migrate", url, directory) == 0
    return directory


async def test_a_generation_in_another_servers_log_of_a_directory_is_not_deleted(two_logs):
    journal = await Journal.open(two_logs)
    with pytest.raises(GenerationInOtherLogError, match="in the log of another server"):
        await journal.delete(SECOND)
    assert len(await journal.read(SECOND)) == 5
    await journal.delete(FIRST)
    await journal.close()
    assert verify_journal(two_logs).findings == []


def test_a_rebuild_keeps_the_owners_in_all_logs_of_a_directory(two_logs):
    owners = read(two_logs)["owners"]
    assert {row[0] for row in owners} == {b"alice", b"bob"}
    change(two_logs, "UPDATE generations SET model = 'other' WHERE writer = 1")
    assert rebuild_journal(two_logs) == 1
    assert read(two_logs)["owners"] == owners
    assert verify_journal(two_logs).findings == []


async def test_a_backup_is_one_state_of_a_journal_in_use(tmp_path, each_store, request):
    place = tmp_path / "data"
    journal = await Journal.open(place)
    if each_store == "postgres":
        server = request.getfixturevalue("postgres")
        place = server.make_journal_url(str(place / "journal.db"))
    stop = asyncio.Event()

    async def write():
        number = 0
        while not stop.is_set():
            number += 1
            generation_id = f"00000000-0000-4000-8000-{number:012x}"
            begin(journal, generation_id, number % 1_000)
            await journal.flush()
            end(journal, generation_id, number % 1_000)

    writing = asyncio.create_task(write())
    await journal.wait_committed(20)
    assert await asyncio.to_thread(run, "backup", place, tmp_path / "backup") == 0
    stop.set()
    await writing
    await journal.flush()
    report = verify_journal(tmp_path / "backup")
    assert report.findings == []
    assert 20 <= report.num_entries < journal.position
    # A migration of a journal in use would miss what comes after it.
    assert await asyncio.to_thread(run, "migrate", place, tmp_path / "moved") == 2
    await journal.close()


def test_a_backup_of_a_directory_has_its_vocabularies(source, tmp_path):
    for command, name in (("backup", "backup"), ("restore", "restored")):
        place = source if command == "backup" else tmp_path / "backup"
        assert run(command, place, tmp_path / name) == 0
    assert (tmp_path / "restored" / "vocabularies" / ("ab" * 32)).is_file()


def test_a_copy_is_for_its_owner_alone(source, tmp_path):
    target = tmp_path / "open to all"
    target.mkdir(mode=0o755)
    assert run("backup", source, target) == 0
    assert (target / "journal.db").stat().st_mode & 0o777 == 0o600


def test_a_damaged_backup_is_not_restored(source, url, tmp_path, capsys):
    assert run("backup", source, tmp_path / "backup") == 0
    change(tmp_path / "backup", "UPDATE entries SET payload = x'00' WHERE position = 9")
    for target in (url, tmp_path / "restored"):
        assert run("restore", tmp_path / "backup", target) == 1
    assert "broken at entry 9" in capsys.readouterr().err
    assert not (tmp_path / "restored").exists()
    assert run("migrate", tmp_path / "backup", url) == 1
    with psycopg.connect(url) as connection:
        assert connection.execute("SELECT count(*) FROM entries").fetchone() == (0,)


def test_a_copy_never_replaces_a_journal(source, url, tmp_path, capsys):
    assert run("backup", source, tmp_path / "backup") == 0
    assert run("migrate", source, url) == 0
    for target in (url, tmp_path / "backup"):
        assert run("restore", tmp_path / "backup", target) == 2
    errors = capsys.readouterr().err
    assert "holds a journal with entries already" in errors
    assert "holds a journal already" in errors


@pytest.mark.parametrize("name", ["journal.db-wal", "journal.db-shm", "journal.db-journal"])
def test_a_copy_is_not_laid_beside_what_a_crashed_server_left(source, tmp_path, capsys, name):
    target = tmp_path / "target"
    target.mkdir()
    (target / name).write_bytes(b"pages of another database")
    assert run("backup", source, target) == 2
    assert f"in the file {name}" in capsys.readouterr().err
    assert [path.name for path in target.iterdir()] == [name]
    (target / name).unlink()
    (target / "journal.db").touch()  # as a server with its journal in PostgreSQL leaves it
    assert run("backup", source, target) == 0
    assert read(target) == read(source)


@pytest.mark.parametrize("command", ["migrate", "backup", "restore"])
def test_an_unusable_place_is_named_without_its_password(command, tmp_path, capsys):
    secret = "postgresql://whence:hunter2@127.0.0.1:1/x?connect_timeout=2"
    (tmp_path / "empty").mkdir()
    for source, target in ((secret, tmp_path / "a"), (tmp_path / "empty", tmp_path / "b")):
        assert run(command, source, target) == 2
    assert "hunter2" not in capsys.readouterr().err
