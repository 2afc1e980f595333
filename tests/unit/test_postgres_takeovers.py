"""Logs that a server takes over from one that died or stopped, in one PostgreSQL database."""

import asyncio

import psycopg
import pytest
from journal_cases import collect, create, finish, whole
from journal_records import FIRST, RUNNING, begin, end
from shared_journals import LEASE_S, server
from waiting import wait_until

from whence_server.domain.decoding import FinishReason
from whence_server.domain.entries import EntryKind
from whence_server.domain.errors import (
    ConfigurationError,
    GenerationNotFoundError,
    JournalLostError,
)
from whence_server.journal.journal import Journal
from whence_server.journal.postgres.store import PostgresStore
from whence_server.journal.postgres.verify import verify_database
from whence_server.takeover import Takeovers
from whence_server.telemetry.follower import BatchHandler, DurableCursor, JournalFollower


@pytest.fixture
def url(postgres, tmp_path):
    return postgres.make_journal_url(str(tmp_path))


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


def fail_for(monkeypatch, *writers):
    """Let the logs of some writers be damaged."""
    load_state = PostgresStore.load_state

    def load(self):
        if self.writer in writers:
            raise ConfigurationError(f"the journal of writer {self.writer} is damaged")
        return load_state(self)

    monkeypatch.setattr(PostgresStore, "load_state", load)


async def test_a_damaged_log_does_not_keep_others_from_being_taken_over(
    url, tmp_path, monkeypatch, caplog
):
    async with server(url, tmp_path / "a", LEASE_S) as a:
        async with server(url, tmp_path / "b") as b, server(url, tmp_path / "c") as c:
            for journal, generation in ((b, "g"), (c, "h")):
                whole(journal, generation)
                await journal.flush()
            first, second = b._store.writer, c._store.writer
        assert first < second
        fail_for(monkeypatch, first)
        takeovers = Takeovers(a, lambda _: {})
        takeovers.start()
        with psycopg.connect(url, autocommit=True) as connection:
            free = "SELECT writer FROM leases WHERE holder IS NULL"
            await wait_until(lambda: connection.execute(free).fetchall() == [(second,)])
        await takeovers.close()
    assert f"log number {first} cannot be taken over" in caplog.text


async def test_a_server_starts_beside_a_damaged_log(url, tmp_path, monkeypatch, caplog):
    async with server(url, tmp_path / "a") as a, server(url, tmp_path / "b") as b:
        writers = [journal._store.writer for journal in (a, b)]
    fail_for(monkeypatch, writers[0])
    async with server(url, tmp_path / "c") as c:
        assert c._store.writer == writers[1]
        whole(c, "g")
        async with server(url, tmp_path / "d") as d:
            assert d._store.writer > writers[1]
    assert f"log number {writers[0]}: the journal of writer" in caplog.text


async def test_a_server_does_not_make_logs_without_an_end(url, tmp_path, monkeypatch):
    fail_for(monkeypatch, *range(1, 100))
    with pytest.raises(ConfigurationError, match="is damaged"):
        async with server(url, tmp_path / "a"):
            pass
    with psycopg.connect(url) as connection:
        ((number,),) = connection.execute("SELECT count(*) FROM writers").fetchall()
    assert number < 20
