"""Retention, holds and space of a journal in PostgreSQL: each server sweeps its own log."""

import asyncio
import os
import time
from contextlib import asynccontextmanager

import psycopg
import pytest
from aged_journal import add, list_kept, name
from journal_cases import append_steps
from journal_records import begin, end
from sealed_journals import make_options
from waiting import wait_for_rows

from whence.v1 import deletion_pb2
from whence_server import takeover as takeover_module
from whence_server.cli import main
from whence_server.domain.entries import EntryKind
from whence_server.domain.errors import GenerationHeldError
from whence_server.domain.journal_url import JournalUrl
from whence_server.domain.retention import LabelPattern, RetentionPolicy
from whence_server.journal.journal import Journal
from whence_server.journal.postgres.log_use import LogUse
from whence_server.journal.postgres.store import PostgresStore
from whence_server.journal.postgres.verify import verify_database
from whence_server.journal.retention import sweeper as sweeper_module
from whence_server.takeover import Takeovers

DAY_S = 86_400
POLICY = RetentionPolicy(180 * DAY_S, holds=(LabelPattern("matter", "*"),), unread_s=7 * DAY_S)


@pytest.fixture
def url(postgres, tmp_path):
    return postgres.make_journal_url(str(tmp_path))


@asynccontextmanager
async def server(url, directory, lease_s=60.0, sealing=None, holds=()):
    journal = await Journal.open(
        directory, open_store=lambda *_: PostgresStore(url, lease_s), sealing=sealing, holds=holds
    )
    try:
        yield journal
    finally:
        await journal.close()


def ask(url, statement):
    with psycopg.connect(url, autocommit=True) as connection:
        return connection.execute(statement).fetchall()


async def fill_two_logs(url, tmp_path, sealing=None, days=0):
    """Write an old, a held and a younger generation to each of two logs: 1 to 3, and 4 to 6.

    Args:
        url: address of the database.
        tmp_path: directory for the servers' directories.
        sealing: keys.
        days: age of the youngest generation of the second log.
    """
    async with (
        server(url, tmp_path / "a", sealing=sealing) as a,
        server(url, tmp_path / "b", sealing=sealing) as b,
    ):
        for journal, number in ((a, 1), (b, 4)):
            add(journal, number, 200)
            add(journal, number + 1, 199, {"matter": "x"})
            add(journal, number + 2, 0 if journal is a else days)
            await journal.flush()


async def test_a_server_sweeps_its_own_log_alone(url, tmp_path):
    await fill_two_logs(url, tmp_path)
    async with server(url, tmp_path / "a") as a, server(url, tmp_path / "b") as b:
        sweepers = [journal.make_sweeper(POLICY) for journal in (a, b)]
        await sweepers[0].sweep()
        assert await list_kept(a, range(1, 7)) == [2, 3, 4, 5, 6]
        assert sweepers[0].stats.num_held == 1
        await sweepers[1].sweep()
        assert await list_kept(a, range(1, 7)) == [2, 3, 5, 6]
        entries = await b.read_committed(0)
        # The removal of what is left is another one.
        deletion, _ = (
            deletion_pb2.Deletion.FromString(entry.payload)
            for entry in entries
            if entry.kind is EntryKind.DELETED
        )
        assert (deletion.generation_id, deletion.rule) == (name(4), "--retain 180d")
    assert verify_database(url).findings == []


async def test_a_hold_binds_who_asks_at_another_server_and_a_log_without_a_server(url, tmp_path):
    await fill_two_logs(url, tmp_path)
    async with server(url, tmp_path / "a", 1.0) as a:
        async with server(url, tmp_path / "b") as b:
            for journal in (a, b):
                journal.make_sweeper(POLICY)
            with pytest.raises(GenerationHeldError, match=r"--hold-label matter=\*"):
                await a.delete(name(5))
        takeovers = Takeovers(a, lambda _: {}, POLICY)
        takeovers.start()
        with pytest.raises(GenerationHeldError, match=r"--hold-label matter=\*"):
            await a.delete(name(5))
        await takeovers.close()
        assert await list_kept(a, [2, 5]) == [2, 5]


@pytest.mark.parametrize("form", ["clear", "sealed"])
async def test_a_hold_binds_an_errand_that_waits_for_the_start_of_its_logs_server(
    url, tmp_path, form
):
    sealing = make_options(tmp_path / "key", JournalUrl(url)) if form == "sealed" else None
    await fill_two_logs(url, tmp_path, sealing)
    async with server(url, tmp_path / "a", sealing=sealing) as a:
        ask_deletion, outcome = a._store.ask_deletion, None
        writers = {await a.sharing.find_other_writer(name(5))}
        number = await asyncio.to_thread(ask_deletion, *writers, name(5), "bob")
        async with server(url, tmp_path / "b", sealing=sealing, holds=POLICY.holds):
            async with asyncio.timeout(60):
                while outcome is None:
                    outcome = await asyncio.to_thread(a._store.read_outcome, number)
        assert outcome == "GENERATION_HELD matter=*"
        assert await list_kept(a, [2, 5]) == [2, 5]


async def test_a_new_replica_with_a_wrong_clock_deletes_nothing_of_the_others(
    url, tmp_path, monkeypatch
):
    await fill_two_logs(url, tmp_path, days=100)
    monkeypatch.setattr(takeover_module, "_FIRST_SWEEP_S", 0.0)
    async with server(url, tmp_path / "a") as a, server(url, tmp_path / "b") as b:
        async with server(url, tmp_path / "c") as c:
            for journal in (a, b):
                await journal.sharing.give_back()
            sweeper = c.make_sweeper(POLICY)
            sweeper._wall = lambda: time.time_ns() + 365 * DAY_S * 10**9
            await sweeper.sweep()
            takeovers = Takeovers(c, lambda _: {}, POLICY, sweeper)
            await takeovers._sweep_idle()
            # Two are older than 180 days by the right clock too, and one of them is held.
            assert await list_kept(c, range(1, 7)) == [2, 3, 5, 6]


@pytest.mark.parametrize("form", ["clear", "sealed"])
async def test_logs_that_no_server_holds_are_swept_too(url, tmp_path, monkeypatch, form):
    sealing = make_options(tmp_path / "key", JournalUrl(url)) if form == "sealed" else None
    # By the youngest generation of the second log, none is old: this server's own clock counts.
    await fill_two_logs(url, tmp_path, sealing, days=100)
    async with server(url, tmp_path / "a", sealing=sealing) as a:
        async with server(url, tmp_path / "b", sealing=sealing) as b:
            await b.sharing.give_back()
        free = "SELECT count(*) FROM leases WHERE holder IS NULL"
        assert ask(url, free) == [(1,)]
        sweeper = a.make_sweeper(POLICY)
        await sweeper.sweep()
        assert await list_kept(a, range(1, 7)) == [2, 3, 4, 5, 6]
        monkeypatch.setattr(takeover_module, "_FIRST_SWEEP_S", 0.0)
        takeovers = Takeovers(a, lambda _: {}, POLICY, sweeper)
        takeovers.start()
        deleted = f"SELECT deleted FROM generations WHERE generation_id = '{name(4)}'"
        await wait_for_rows(url, deleted, [(1,)])
        await wait_for_rows(url, free, [(1,)])
        await takeovers.close()
        assert await list_kept(a, range(1, 7)) == [2, 3, 5, 6]
    assert verify_database(url).findings == []


async def test_the_size_of_a_log_is_counted_once_and_stays_right(url, tmp_path, monkeypatch):
    monkeypatch.setattr(sweeper_module, "_LEAST_REMOVED", 1)
    async with server(url, tmp_path / "a") as a, server(url, tmp_path / "b") as b:
        for number in range(1, 6):
            add(a, number, 300 - number, num_steps=20, step_bytes=300)
        add(a, 6, 0)
        add(b, 7, 0, step_bytes=10_000)
        for journal in (a, b):
            await journal.flush()
        before = a._store.measure_use()
        assert 20 * 5 * 500 < before < 20 * 5 * 700
        add(a, 8, 0, num_steps=50)
        await a.flush()
        assert a._store.measure_use() == count(a) > before
        await a.delete(name(3))
        assert a._store.measure_use() == count(a)
        await a.make_sweeper(POLICY).sweep()  # deletes, and removes the remains
        assert (await asyncio.to_thread(a._store.read_origin)) is not None
        assert a._store.measure_use() == count(a) < before


def count(journal):
    """Return the size as a new count gives it."""
    return LogUse(journal._store.writer).measure(journal._store._read)


async def test_the_plan_names_each_log_and_needs_keys_for_labels(url, tmp_path, capsys):
    sealing = make_options(tmp_path / "key", JournalUrl(url))
    await fill_two_logs(url, tmp_path, sealing)
    plan = ["retention", "--dry-run", "--journal", url, "--retain", "180d"]
    assert await asyncio.to_thread(main, plan) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line for line in lines if line.startswith("log ")] == [lines[0], lines[3]]
    assert lines[2].startswith("  --retain 180d: would delete 2 generations with ")
    plan += ["--hold-label", "matter=*"]
    assert await asyncio.to_thread(main, plan) == 2
    assert "give their master key with --journal-key" in capsys.readouterr().err
    plan += ["--journal-key", str(tmp_path / "key")]
    assert await asyncio.to_thread(main, plan) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[2].startswith("  --retain 180d: would delete 1 generation with ")
    assert lines[3] == "  held by --hold-label: 1 generation"


async def test_compact_gives_space_back(url, tmp_path, capsys):
    async with server(url, tmp_path / "a") as a:
        for number in range(1, 21):
            begin(a, name(number), number)
            append_steps(a, name(number), *(os.urandom(2_000) for _ in range(50)))
            end(a, name(number), number)
        await a.flush()
        for number in range(1, 20):
            await a.delete(name(number))
        compact = ["compact", "--journal", url]
        assert await asyncio.to_thread(main, compact) == 0
    size = "SELECT pg_total_relation_size('entries')"
    ((before,),) = ask(url, size)
    assert before > 20 * 50 * 2_000
    assert await asyncio.to_thread(main, [*compact, "--full"]) == 0
    said = capsys.readouterr().out
    assert said.count(" before, ") == 2
    assert said.count("no keys are in this database: if --journal-keys names another one") == 2
    ((after,),) = ask(url, size)
    assert after < before / 2
    assert ask(url, "SELECT count(*) FROM generations WHERE deleted = 0") == [(1,)]
    assert verify_database(url).findings == []
