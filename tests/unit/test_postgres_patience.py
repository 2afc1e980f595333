"""Streams and watches of another server's generation wait while the database is away."""

import asyncio
import math
import subprocess
from contextlib import asynccontextmanager, suppress

import pytest
from journal_cases import append_steps, collect, create, finish

from whence_server.domain.errors import JournalUnreachableError
from whence_server.journal.journal import Journal
from whence_server.journal.postgres.store import PostgresStore
from whence_server.rpc.watch_positions import read_positions


@asynccontextmanager
async def open_journal(url, directory, patience_s, read_patience_s):
    journal = await Journal.open(
        directory,
        patience_s=patience_s,
        read_patience_s=read_patience_s,
        open_store=lambda *_: PostgresStore(url, 60.0),
    )
    try:
        yield journal
    finally:
        await journal.close()


@pytest.fixture
async def pair(request, postgres, tmp_path):
    """Two servers' journals; the database runs again after the test."""
    url, patience = postgres.make_journal_url(str(tmp_path)), request.param
    async with (
        open_journal(url, tmp_path / "a", *patience) as a,
        open_journal(url, tmp_path / "b", *patience) as b,
    ):
        yield a, b
        with suppress(subprocess.CalledProcessError):  # it is stopped already
            await asyncio.to_thread(postgres.stop, "immediate")
        await asyncio.to_thread(postgres.start)


@pytest.mark.parametrize("pair", [(3_600.0, None)], indirect=True)
async def test_a_stream_and_a_watch_wait_and_go_on(postgres, pair):
    a, b = pair
    create(a, "g")
    await a.flush()
    stream, watch = b.follow("g"), b.follow_logs((await read_positions("", b)).reached)
    assert [entry.offset for entry in await anext(stream)] == [1]
    reading = asyncio.ensure_future(collect(stream))
    watching = asyncio.ensure_future(anext(watch))
    await asyncio.to_thread(postgres.stop, "immediate")
    append_steps(a, "g", b"meanwhile")
    finish(a, "g")
    with pytest.raises(JournalUnreachableError):  # who looks up gets the error at once
        await b.get("g")
    assert not reading.done()
    assert not watching.done()
    await asyncio.to_thread(postgres.start)
    assert [entry.offset for entry in await reading] == [2, 3]
    log_id, entries = await watching
    assert (log_id, entries[0].generation_id) == (a.id, "g")
    await watch.aclose()


# The second pair is that of `--record-failure open`, whose engine waits for nothing.
@pytest.mark.parametrize("pair", [(0.5, None), (math.inf, 0.5)], indirect=True)
async def test_a_stream_and_a_watch_end_after_the_patience(postgres, pair):
    a, b = pair
    create(a, "g")
    await a.flush()
    stream, watch = b.follow("g"), b.follow_logs((await read_positions("", b)).reached)
    await anext(stream)
    readings = [asyncio.ensure_future(collect(stream)), asyncio.ensure_future(anext(watch))]
    await asyncio.to_thread(postgres.stop, "immediate")
    for reading in readings:
        with pytest.raises(JournalUnreachableError):
            await reading
