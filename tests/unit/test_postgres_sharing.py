"""Several journals in one PostgreSQL database: leases, takeovers, and each other's generations."""

import asyncio
import contextlib
import os
import resource
import signal
import subprocess
import sys
import threading
import time
from contextlib import asynccontextmanager
from unittest.mock import AsyncMock

import psycopg
import pytest
from journal_cases import append_steps, collect, create, finish, whole
from journal_records import FIRST, RUNNING, begin, end
from waiting import wait_until

from whence_server.domain.decoding import FinishReason
from whence_server.domain.entries import EntryKind
from whence_server.domain.errors import (
    ConfigurationError,
    GenerationExistsError,
    GenerationNotFoundError,
    GenerationRunningError,
    JournalLostError,
    JournalUnreachableError,
    LeaseLostError,
)
from whence_server.journal.journal import Journal
from whence_server.journal.postgres import store as store_module
from whence_server.journal.postgres.listening import Listener
from whence_server.journal.postgres.store import PostgresStore
from whence_server.journal.postgres.verify import verify_database
from whence_server.journal.rows import ListFilter
from whence_server.journal.sharing.errands import Errands
from whence_server.rpc.watch_positions import read_positions
from whence_server.takeover import Takeovers
from whence_server.telemetry.follower import BatchHandler, DurableCursor, JournalFollower

LEASE_S = 1.0


@pytest.fixture
def url(postgres, tmp_path):
    return postgres.make_journal_url(str(tmp_path))


@asynccontextmanager
async def server(url, directory, lease_s=60.0):
    journal = await Journal.open(directory, open_store=lambda *_: PostgresStore(url, lease_s))
    try:
        yield journal
    finally:
        await journal.close()


@pytest.fixture
async def pair(url, tmp_path):
    async with server(url, tmp_path / "a") as a, server(url, tmp_path / "b") as b:
        yield a, b


# ---- each other's generations ----


async def test_each_server_has_a_log_of_its_own(pair, url):
    a, b = pair
    assert a.id != b.id
    for journal, name in ((a, "in a"), (b, "in b")):
        whole(journal, name)
        await journal.flush()
    for journal in pair:
        assert (await journal.verify()).num_entries == journal.position == 5
        rows, _ = await journal.list(ListFilter(), 10)
        assert {row.generation_id for row in rows} == {"in a", "in b"}
        for name in ("in a", "in b"):
            assert (await journal.get(name)).finish is not None
            assert len(await journal.read(name)) == 5
            assert len(await collect(journal.follow(name, 2))) == 3
        assert [e.position for e in await journal.read_committed(0)] == [1, 2, 3, 4, 5]
    report = verify_database(url)
    assert (report.num_entries, report.num_generations, len(report.heads)) == (10, 2, 2)


async def test_a_running_generation_is_followed_from_another_server(pair):
    a, b = pair
    create(a, "g")
    await a.flush()
    reader = b.follow("g")
    assert [e.payload for e in await anext(reader)] == [b"started"]
    delays = []
    for number in range(20):
        coming = asyncio.ensure_future(anext(reader))
        await asyncio.sleep(0.005)  # it waits by then, mostly
        begun = time.monotonic()
        append_steps(a, "g", b"%d" % number)
        assert [e.payload for e in await coming] == [b"%d" % number]
        delays.append(time.monotonic() - begun)
    finish(a, "g")
    assert [e.kind for e in await collect(reader)] == [EntryKind.FINISHED]
    # The commit takes up to 20 ms. Without notifications, every delay were near half a second.
    assert sorted(delays)[10] < 0.25


async def test_notifications_arrive_over_a_descriptor_above_1023(url, tmp_path):
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, 4_096), hard))
    changes = threading.Semaphore(0)
    with contextlib.ExitStack() as opened:
        async with server(url, tmp_path / "a") as a:
            with (tmp_path / "busy").open("w") as file:
                while (descriptor := os.dup(file.fileno())) < 1_100:
                    opened.callback(os.close, descriptor)
                opened.callback(os.close, descriptor)
            listener = Listener(url, 0, lambda change: changes.release())
            try:
                await asyncio.to_thread(wait_for_listener, url)
                while changes.acquire(blocking=False):
                    pass
                whole(a, "g")
                assert await asyncio.to_thread(changes.acquire, timeout=30)
                assert listener._thread.is_alive()
            finally:
                listener.stop()
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def wait_for_listener(url):
    """Wait until two sessions listen to the last channel: the journal's and another one."""
    listening = (
        "SELECT count(*) FROM pg_stat_activity WHERE query = 'LISTEN whence_errands' "
        "AND state = 'idle' AND application_name = 'whence'"
    )
    with psycopg.connect(url, autocommit=True) as connection:
        deadline = time.monotonic() + 30
        while connection.execute(listening).fetchone() < (2,):
            assert time.monotonic() < deadline
            time.sleep(0.01)


async def test_an_entry_between_two_looks_of_a_follower_is_no_gap(pair, monkeypatch):
    a, b = pair
    create(a, "g")
    await a.flush()
    loop, missed = asyncio.get_running_loop(), []
    read = b._store.read

    async def append_two():
        append_steps(a, "g", b"a", b"b")
        await a.flush()

    def read_and_wait(*args, **options):
        found = read(*args, **options)
        if not found and not missed:
            missed.append(True)
            asyncio.run_coroutine_threadsafe(append_two(), loop).result(30)
        return found

    monkeypatch.setattr(b._store, "read", read_and_wait)
    reader = b.follow("g")
    entries = await anext(reader)
    entries += await asyncio.wait_for(anext(reader), 30)
    assert missed
    assert [entry.offset for entry in entries] == [1, 2, 3]
    await reader.aclose()


async def test_a_running_generation_is_followed_without_notifications(pair, monkeypatch):
    a, b = pair
    create(a, "g")
    await a.flush()
    await b.sharing._elsewhere.close()
    reading = asyncio.ensure_future(collect(b.follow("g")))
    finish(a, "g")
    assert [e.offset for e in await reading] == [1, 2]


async def test_a_watch_sees_the_generations_of_all_servers(pair, url, tmp_path):
    a, b = pair
    whole(a, "before")
    await a.flush()
    positions = await read_positions("", b)
    watch = b.follow_logs(positions.reached)
    for journal, name in ((a, "in a"), (b, "in b")):
        whole(journal, name)
        log_id, entries = await anext(watch)
        while entries[-1].kind is not EntryKind.FINISHED:
            assert log_id == journal.id
            log_id, entries = await anext(watch)
        assert (log_id, entries[-1].generation_id) == (journal.id, name)
    token = positions.make_token()
    await watch.aclose()
    # From the token on, through the other server, and with a log that began later.
    async with server(url, tmp_path / "c") as c:
        whole(c, "in c")
        await c.flush()
        positions = await read_positions(token, a)
        watch, seen = a.follow_logs(positions.reached), set()
        while len(seen) < 3:
            _, entries = await anext(watch)
            seen |= {entry.generation_id for entry in entries}
        assert seen == {"in a", "in b", "in c"}
        await watch.aclose()


async def test_an_id_is_used_once_by_all_servers(pair):
    a, b = pair
    async with a.sharing.hold("g"):
        with pytest.raises(GenerationExistsError):
            async with b.sharing.hold("g"):
                pass
        with pytest.raises(GenerationExistsError):
            async with a.sharing.hold("g"):
                pass
        create(a, "g")
    for journal in pair:
        with pytest.raises(GenerationExistsError):
            async with journal.sharing.hold("g"):
                pass
    await a.flush()
    with pytest.raises(GenerationExistsError):
        create(b, "g")


async def test_an_id_that_was_not_used_is_free_for_another_server(pair):
    a, b = pair
    async with a.sharing.hold("g"):
        pass
    async with b.sharing.hold("g"):
        create(b, "g")
    await b.flush()
    assert (await a.get("g")).generation_id == "g"


async def test_a_taken_id_survives_a_crash_of_the_database(postgres, pair):
    a, b = pair
    for number in range(3):
        a._store.take_id(f"g{number}")
        try:
            postgres.stop("immediate")
        finally:
            postgres.start()
        with pytest.raises(GenerationExistsError):
            b._store.take_id(f"g{number}")


async def test_an_old_id_is_kept_until_its_generation_is_on_record(pair, url):
    a, b = pair
    for generation_id in ("on record", "pending", "of nobody", "forgotten"):
        a._store.take_id(generation_id)
    whole(a, "on record")
    await a.flush()
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute("UPDATE taken_ids SET taken_at = taken_at - interval '2 hours'")
        connection.execute(
            "UPDATE taken_ids SET taken_at = taken_at - interval '1 day' "
            "WHERE generation_id = 'forgotten'"
        )
        connection.execute("UPDATE taken_ids SET holder = 'x' WHERE generation_id = 'of nobody'")
        await b._log.writer.run(b._store.renew)
        kept = connection.execute("SELECT generation_id FROM taken_ids").fetchall()
    assert kept == [(b"pending",)]


async def test_an_id_of_a_dead_server_is_free_once_its_log_is_taken_over(url, tmp_path):
    async with server(url, tmp_path / "b", LEASE_S) as b:
        async with server(url, tmp_path / "a") as a:
            a._store.take_id("g")
        with pytest.raises(GenerationExistsError):
            b._store.take_id("g")
        taken = await wait_for_takeover(b)
        b._store.take_id("g")
        with pytest.raises(GenerationExistsError):
            taken._store.take_id("g")
        await taken.close()


async def test_an_id_that_a_cancelled_call_took_is_given_back(pair, monkeypatch):
    a, b = pair
    take_id, begun, go_on = PostgresStore.take_id, threading.Event(), threading.Event()

    def wait_and_take(self, generation_id):
        begun.set()
        assert go_on.wait(30)
        take_id(self, generation_id)

    async def start():
        async with a.sharing.hold("g"):
            pass

    monkeypatch.setattr(PostgresStore, "take_id", wait_and_take)
    starting = asyncio.create_task(start())
    await asyncio.to_thread(begun.wait)
    starting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await starting
    go_on.set()
    await wait_until(lambda: "g" in a._store._unused_ids)
    await a._log.writer.run(a._store.renew)
    b._store.take_id("g")


async def test_an_id_is_given_back_once_the_database_is_there_again(pair, monkeypatch):
    a, b = pair

    def lose(self, *_args, **_kwargs):
        raise JournalUnreachableError("it is away")

    async with a.sharing.hold("g", "h"):
        monkeypatch.setattr(PostgresStore, "_get_session", lose)
    monkeypatch.undo()
    with pytest.raises(GenerationExistsError):
        b._store.take_id("g")
    a._store.take_id("h")  # It is in use again.
    await a._log.writer.run(a._store.renew)
    b._store.take_id("g")
    with pytest.raises(GenerationExistsError):
        b._store.take_id("h")


async def test_a_generation_is_deleted_through_another_server(pair, url):
    a, b = pair
    whole(a, "g")
    await a.flush()
    await b.delete("g", "carol")
    for journal in pair:
        with pytest.raises(GenerationNotFoundError, match="deleted"):
            await journal.get("g")
        with pytest.raises(GenerationNotFoundError):
            await journal.delete("g")
    assert (await a.read_committed(5))[0].kind is EntryKind.DELETED
    assert b.position == 0
    assert "broken" not in str(verify_database(url).findings)
    with psycopg.connect(url) as connection:
        assert connection.execute("SELECT count(*) FROM errands").fetchone() == (0,)


async def test_a_generation_that_runs_elsewhere_is_not_deleted(pair):
    a, b = pair
    create(a, "g")
    await a.flush()
    with pytest.raises(GenerationRunningError):
        await b.delete("g")
    finish(a, "g")
    await a.flush()
    await b.delete("g")


async def test_a_server_that_lost_its_log_answers_no_errand(pair):
    a, b = pair
    whole(a, "g")
    await a.flush()
    for task in a.sharing._tasks:
        task.cancel()
    number = b._store.ask_deletion(a._store.writer, "g", "")
    failing = AsyncMock(side_effect=JournalLostError("another server has the log"))
    errands = Errands(a._store, a._readers, a.sharing._elsewhere, failing)
    with pytest.raises(JournalLostError):
        await errands.do_all()
    failing.assert_awaited_once_with("g", "")
    assert b._store.read_outcome(number) is None


# ---- leases ----


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


async def wait_for_takeover(journal):
    while True:
        if (taken := await journal.take_over()) is not None:
            return taken
        await asyncio.sleep(0.05)


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


# ---- takeovers ----


class Collector(BatchHandler):
    """Exporter that keeps what it is given."""

    def __init__(self):
        self.entries = []

    async def handle(self, batch):
        self.entries += batch.entries

    def note_progress(self):
        pass

    def note_failure(self, error):
        raise error

    async def close(self):
        pass


async def test_servers_keep_their_logs_over_an_outage_of_the_database(postgres, url, tmp_path):
    async with (
        server(url, tmp_path / "a", LEASE_S) as a,
        server(url, tmp_path / "b", LEASE_S) as b,
    ):
        ids = a.id, b.id
        create(a, "g")
        await a.flush()
        takeovers = [Takeovers(journal, lambda _: {}) for journal in (a, b)]
        for one in takeovers:
            one.start()
        try:
            postgres.stop("immediate")
            await asyncio.sleep(2.5 * LEASE_S)  # every lease expires
        finally:
            postgres.start()
        with psycopg.connect(url) as connection:
            (start,) = connection.execute("SELECT clock_timestamp()").fetchone()
            renewed = "SELECT count(*) FROM leases WHERE expires_at > %s + interval '3 seconds'"
        with psycopg.connect(url, autocommit=True) as connection:
            await wait_until(lambda: connection.execute(renewed, (start,)).fetchone() == (2,))
        finish(a, "g")
        whole(b, "h")
        for journal in (a, b):
            await journal.flush()
        for one in takeovers:
            await one.close()
        assert (a.id, b.id) == ids
        assert a.position == 2
    assert len(verify_database(url).heads) == 2


async def test_another_server_closes_and_exports_the_log_of_a_dead_one(url, tmp_path):
    async with server(url, tmp_path / "b", LEASE_S) as b:
        a = await Journal.open(tmp_path / "a", open_store=lambda *_: PostgresStore(url, LEASE_S))
        begin(a, RUNNING, 1)
        await a.flush()
        a.advance("otlp-spans", 2)
        await a.flush()
        dead, collector = a.id, Collector()
        for task in a.sharing._tasks:
            task.cancel()

        def make_followers(journal):
            assert journal.id == dead
            cursor = DurableCursor(journal, "otlp-spans")
            return {"otlp-spans": JournalFollower(journal, collector, cursor)}

        takeovers = Takeovers(b, make_followers)
        takeovers.start()
        row = await b.get(RUNNING)
        entries = await asyncio.wait_for(collect(b.follow(RUNNING)), 60)
        assert row.finish is None
        assert [e.kind for e in entries] == [
            *(EntryKind.STARTED, EntryKind.STEP, EntryKind.STEP, EntryKind.STEP),
            EntryKind.FINISHED,
        ]
        assert (await b.get(RUNNING)).finish.finish_reason is FinishReason.INTERRUPTED
        with psycopg.connect(url, autocommit=True) as connection:
            free = "SELECT count(*) FROM leases WHERE holder IS NULL"
            await wait_until(lambda: connection.execute(free).fetchone() == (1,))
        # From the dead server's cursor to the end: the FINISHED entry and the call.
        assert [e.position for e in collector.entries] == [3, 4, 5, 6]
        await takeovers.close()
        a.record_call("", b"too late")
        with pytest.raises(JournalLostError):
            await a.flush()
        await a.close()
        # It is the next server's log.
        async with server(url, tmp_path / "c") as c:
            assert (c.id, c.position) == (dead, 6)
            assert await c.read_cursor("otlp-spans") == 6
    assert verify_database(url).findings == []


async def test_a_log_that_cannot_be_taken_over_does_not_end_takeovers(
    url, tmp_path, monkeypatch, caplog
):
    async with server(url, tmp_path / "b", LEASE_S) as b:
        async with server(url, tmp_path / "a") as a:
            create(a, "g")
            await a.flush()
        load_state, tries = PostgresStore.load_state, []

        def fail_once(self):
            tries.append(self.writer)
            if len(tries) == 1:
                raise ConfigurationError("the journal is damaged")
            return load_state(self)

        monkeypatch.setattr(PostgresStore, "load_state", fail_once)
        takeovers = Takeovers(b, lambda _: {})
        takeovers.start()
        with psycopg.connect(url, autocommit=True) as connection:
            free = "SELECT count(*) FROM leases WHERE holder IS NULL"
            await wait_until(lambda: connection.execute(free).fetchone() == (1,))
        await takeovers.close()
        assert len(tries) == 2
    assert "a log cannot be taken over: the journal is damaged" in caplog.text


async def test_what_ends_the_work_on_a_log_is_logged(url, tmp_path, caplog):
    async with server(url, tmp_path / "b", LEASE_S) as b:
        async with server(url, tmp_path / "a") as a:
            whole(a, "g")

        def fail(_journal):
            raise RuntimeError("a bug of an export")

        takeovers = Takeovers(b, fail)
        takeovers.start()
        await wait_until(lambda: "a bug of an export" in caplog.text)
        await takeovers.close()


async def test_a_log_is_given_back_after_its_exports_have_ended(url, tmp_path, caplog):
    closed = asyncio.Event()

    class SlowCollector(Collector):
        async def close(self):
            await asyncio.sleep(LEASE_S)  # longer than a lease goes without a renewal
            closed.set()

    async with server(url, tmp_path / "b", LEASE_S) as b:
        async with server(url, tmp_path / "a") as a:
            whole(a, "g")

        def make_followers(journal):
            cursor = DurableCursor(journal, "otlp-spans")
            return {"otlp-spans": JournalFollower(journal, SlowCollector(), cursor)}

        takeovers = Takeovers(b, make_followers)
        takeovers.start()
        async with asyncio.timeout(30):
            await closed.wait()
        with psycopg.connect(url, autocommit=True) as connection:
            free = "SELECT count(*) FROM leases WHERE holder IS NULL"
            await wait_until(lambda: connection.execute(free).fetchone() == (1,))
        await takeovers.close()
    assert "can no longer be written" not in caplog.text


async def test_a_generation_in_a_log_without_a_server_is_deleted(url, tmp_path):
    async with server(url, tmp_path / "b", LEASE_S) as b:
        async with server(url, tmp_path / "a") as a:
            begin(a, FIRST, 1)
            end(a, FIRST, 1)
            assert a.id != b.id
        takeovers = Takeovers(b, lambda _: {})
        takeovers.start()
        await b.delete(FIRST)
        with pytest.raises(GenerationNotFoundError, match="deleted"):
            await b.get(FIRST)
        await takeovers.close()
