"""Several journals in one PostgreSQL database: each other's generations, ids and deletions."""

import asyncio
import contextlib
import os
import resource
import threading
import time
from unittest.mock import AsyncMock

import psycopg
import pytest
from journal_cases import append_steps, collect, create, finish, whole
from shared_journals import LEASE_S, server, wait_for_takeover
from waiting import wait_until

from whence_server.domain.entries import EntryKind
from whence_server.domain.errors import (
    GenerationExistsError,
    GenerationNotFoundError,
    GenerationRunningError,
    JournalLostError,
    JournalUnreachableError,
)
from whence_server.journal.postgres.listening import Listener
from whence_server.journal.postgres.store import PostgresStore
from whence_server.journal.postgres.verify import verify_database
from whence_server.journal.rows import ListFilter
from whence_server.journal.sharing.errands import Errands
from whence_server.rpc.watch_positions import read_positions


@pytest.fixture
def url(postgres, tmp_path):
    return postgres.make_journal_url(str(tmp_path))


@pytest.fixture
async def pair(url, tmp_path):
    async with server(url, tmp_path / "a") as a, server(url, tmp_path / "b") as b:
        yield a, b


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
