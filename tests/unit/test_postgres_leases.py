"""Leases of logs in one PostgreSQL database: kept, given back and lost."""

import asyncio
import signal
import subprocess
import sys
import time

import psycopg
import pytest
from journal_cases import append_steps, create, finish, whole
from journal_records import RUNNING
from shared_journals import LEASE_S, server, wait_for_takeover
from waiting import wait_until

from whence_server.domain.entries import EntryKind
from whence_server.domain.errors import (
    JournalLostError,
    LeaseLostError,
)
from whence_server.journal.journal import Journal
from whence_server.journal.postgres import store as store_module
from whence_server.journal.postgres.store import PostgresStore


@pytest.fixture
def url(postgres, tmp_path):
    return postgres.make_journal_url(str(tmp_path))


async def test_a_stopped_server_leaves_its_log_to_the_next(url, tmp_path):
    async with server(url, tmp_path / "a") as a:
        whole(a, "g")
        first = a.id
    async with server(url, tmp_path / "b") as b:
        assert (b.id, b.position) == (first, 5)


async def test_a_start_takes_no_log_whose_server_may_live(url, tmp_path):
    async with server(url, tmp_path / "a", LEASE_S) as a:
        a.sharing._tasks[0].cancel()  # as if the database were away for it
        with psycopg.connect(url, autocommit=True) as connection:
            expired = "SELECT count(*) FROM leases WHERE expires_at < clock_timestamp()"
            await wait_until(lambda: connection.execute(expired).fetchone() == (1,))
        async with server(url, tmp_path / "b", LEASE_S) as b:
            assert b.id != a.id
        whole(a, "g")
        await a.flush()


async def test_a_server_whose_lease_has_just_expired_keeps_its_log(url, tmp_path):
    async with (
        server(url, tmp_path / "a", LEASE_S) as a,
        server(url, tmp_path / "b", LEASE_S) as b,
    ):
        a.sharing._tasks[0].cancel()  # as if the database were away for it
        with psycopg.connect(url, autocommit=True) as connection:
            expired = "SELECT count(*) FROM leases WHERE expires_at < clock_timestamp()"
            await wait_until(lambda: connection.execute(expired).fetchone() == (1,))
        assert await b.take_over() is None
        whole(a, "g")
        await a.flush()
        assert await b.take_over() is None


async def test_a_living_server_keeps_its_log_beyond_the_lease(url, tmp_path):
    async with (
        server(url, tmp_path / "a", LEASE_S) as a,
        server(url, tmp_path / "b", LEASE_S) as b,
    ):
        create(a, "g")
        await a.flush()
        end = time.monotonic() + 2.5 * LEASE_S
        while time.monotonic() < end:
            assert await b.take_over() is None
            await asyncio.sleep(0.1)
        finish(a, "g")
        await a.flush()


async def test_a_server_without_its_lease_writes_nothing_more(url, tmp_path):
    async with server(url, tmp_path / "b", LEASE_S) as b:
        a = await Journal.open(tmp_path / "a", open_store=lambda *_: PostgresStore(url, LEASE_S))
        create(a, "g")
        await a.flush()
        a.sharing._tasks[0].cancel()  # as if it were paused
        taken = await wait_for_takeover(b)
        append_steps(a, "g", b"too late")
        with pytest.raises(JournalLostError) as caught:
            await a.flush()
        assert isinstance(caught.value.__cause__.__cause__, LeaseLostError)
        await a.close()
        assert taken.position == 1
        assert taken.list_unfinished() == ["g"]
        finish(taken, "g")
        await taken.flush()
        assert [e.payload for e in await b.read("g")] == [b"started", b"finished"]
        await taken.close()


async def test_a_long_transaction_of_a_living_server_is_not_ended(url, tmp_path):
    async with (
        server(url, tmp_path / "a", LEASE_S) as a,
        server(url, tmp_path / "b", LEASE_S) as b,
    ):

        def work():
            store = a._store
            with store._connection as connection:
                store.lease.lock(connection)
                # As a deletion of many entries, or a commit that waits for a standby.
                connection.execute("SELECT pg_sleep(4)")
                store.lease.renew(connection)

        working = asyncio.ensure_future(a._log.writer.run(work))
        while not working.done():
            assert await b.take_over() is None
            await asyncio.sleep(0.1)
        await working
        whole(a, "g")
        await a.flush()


async def test_a_session_that_cannot_be_ended_blocks_no_takeover(
    url, tmp_path, monkeypatch, caplog
):
    async with server(url, tmp_path / "b") as b:
        async with server(url, tmp_path / "a") as a:
            whole(a, "g")
        refused = "DO $$ BEGIN RAISE insufficient_privilege; END $$"
        monkeypatch.setattr(
            store_module, "end_stale_sessions", lambda session, *_: session.execute(refused)
        )
        taken = await b.take_over()
        assert taken.id != b.id
        await taken.close()
    assert "the session of a paused server cannot be ended" in caplog.text


PAUSED = """
import asyncio, pathlib, sys
sys.path[:0] = sys.argv[3:]
from journal_cases import append_steps, create
from journal_records import RUNNING, begin
from whence_server.domain.errors import JournalUnwritableError
from whence_server.journal.journal import Journal
from whence_server.journal.postgres.store import PostgresStore

async def main():
    open_store = lambda *_: PostgresStore(sys.argv[1], 1.0)
    journal = await Journal.open(pathlib.Path(sys.argv[2]), open_store=open_store)
    begin(journal, RUNNING, 1)
    while True:
        append_steps(journal, RUNNING, b"")
        try:
            await journal.flush()
        except JournalUnwritableError:  # its session was ended in the middle of a transaction
            await journal.wait_writable()
        print(journal.committed_position, flush=True)

asyncio.run(main())
"""


async def test_a_process_that_was_paused_beyond_its_lease_writes_nothing_more(url, tmp_path):
    arguments = [sys.executable, "-c", PAUSED, url, str(tmp_path / "a"), *sys.path]
    process = await asyncio.create_subprocess_exec(
        *arguments, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    try:
        for _ in range(10):
            assert await process.stdout.readline()
        async with server(url, tmp_path / "b", LEASE_S) as b:
            # Wherever it is: between two transactions, or in the middle of one.
            process.send_signal(signal.SIGSTOP)
            taken = await wait_for_takeover(b)
            position = taken.position
            finish(taken, RUNNING)
            await taken.flush()
            process.send_signal(signal.SIGCONT)
            _, errors = await asyncio.wait_for(process.communicate(), 60)
            assert b"another server has taken over" in errors
            assert process.returncode == 1
            entries = await b.read(RUNNING)
            assert entries[-1].kind is EntryKind.FINISHED
            assert entries[-1].position == position + 1 == taken.position
            assert (await taken.verify()).intact
            await taken.close()
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
