"""Streams wait while the database is away, and only so long."""

import asyncio
from types import SimpleNamespace

import pytest
from waiting import wait_until

from whence_server.domain.errors import JournalLostError, JournalUnreachableError
from whence_server.journal.patience import Patience


class Database:
    """Reads that fail while it is away.

    Attributes:
        most_at_once: largest number of reads that ran at the same time.
    """

    def __init__(self) -> None:
        self.is_away = True
        self.num_reads = 0
        self.most_at_once = 0
        self._running = 0

    async def read(self) -> str:
        self.num_reads += 1
        self._running += 1
        self.most_at_once = max(self.most_at_once, self._running)
        await asyncio.sleep(0)
        self._running -= 1
        if self.is_away:
            raise JournalUnreachableError("it is away")
        return "read"


def make_patience(patience_s=3_600.0, check=lambda: None):
    return Patience(SimpleNamespace(check=check), patience_s)


async def test_a_read_waits_for_the_database():
    patience, database = make_patience(), Database()
    reading = asyncio.ensure_future(patience.read(database.read))
    await wait_until(lambda: database.num_reads > 1)
    assert not reading.done()
    database.is_away = False
    assert await reading == "read"


async def test_one_stream_asks_and_the_others_wait_for_it():
    patience, database = make_patience(), Database()
    readings = [asyncio.ensure_future(patience.read(database.read)) for _ in range(20)]
    await wait_until(lambda: database.num_reads >= 20)
    database.most_at_once = 0
    await wait_until(lambda: database.num_reads >= 23)
    assert database.most_at_once == 1
    database.is_away = False
    assert await asyncio.gather(*readings) == ["read"] * 20


@pytest.mark.parametrize("patience_s", [0.0, 0.3])
async def test_a_read_ends_with_the_databases_error_after_the_patience(patience_s):
    patience, database = make_patience(patience_s), Database()
    outcomes = await asyncio.gather(
        *(patience.read(database.read) for _ in range(5)), return_exceptions=True
    )
    assert [type(outcome) for outcome in outcomes] == [JournalUnreachableError] * 5


async def test_a_reader_that_leaves_holds_nobody_up():
    patience, database = make_patience(), Database()
    first = asyncio.ensure_future(patience.read(database.read))
    await wait_until(lambda: database.num_reads > 1)
    first.cancel()
    with pytest.raises(asyncio.CancelledError):
        await first
    database.is_away = False
    assert await patience.read(database.read) == "read"


async def test_nobody_waits_for_a_journal_that_is_lost():
    def check():
        if is_lost:
            raise JournalLostError("it is lost")

    is_lost = False
    patience, database = make_patience(check=check), Database()
    reading = asyncio.ensure_future(patience.read(database.read))
    await wait_until(lambda: database.num_reads > 1)
    is_lost = True
    with pytest.raises(JournalLostError):
        await reading


async def test_nobody_asks_beside_the_stream_that_asks():
    patience, database = make_patience(), Database()
    first = asyncio.ensure_future(patience.read(database.read))
    await wait_until(lambda: database.num_reads > 1)
    database.most_at_once = 0
    asked = database.num_reads
    # Streams that look for the first time too.
    readings = [asyncio.ensure_future(patience.read(database.read)) for _ in range(20)]
    await wait_until(lambda: database.num_reads >= asked + 3)
    assert database.most_at_once == 1
    assert database.num_reads < asked + 10
    database.is_away = False
    assert await asyncio.gather(first, *readings) == ["read"] * 21


async def test_streams_read_at_once_when_the_database_is_back():
    patience, database = make_patience(), Database()
    readings = [asyncio.ensure_future(patience.read(database.read)) for _ in range(10)]
    await wait_until(lambda: database.num_reads > 10)
    waiting = asyncio.Event()

    async def read():
        waiting.set()
        await asyncio.Event().wait()

    database.is_away = False
    await asyncio.gather(*readings)
    # A read that takes long holds no other up.
    long = asyncio.ensure_future(patience.read(read))
    await waiting.wait()
    assert await patience.read(database.read) == "read"
    long.cancel()


async def test_a_database_without_patience_is_asked_each_time():
    patience, database = make_patience(0.0), Database()
    with pytest.raises(JournalUnreachableError):
        await patience.read(database.read)
    database.is_away = False
    assert await patience.read(database.read) == "read"
