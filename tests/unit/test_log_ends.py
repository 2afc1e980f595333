"""Look-ups of the ends of all logs: shared, never older than the question, and ended at the end."""

import asyncio
import gc
from types import SimpleNamespace

import pytest

from whence_server.domain.errors import JournalError, JournalUnreachableError
from whence_server.journal.patience import Patience
from whence_server.journal.readers import Readers
from whence_server.journal.sharing.log_ends import LogEnds
from whence_server.journal.sharing.logs import follow_logs
from whence_server.journal.store import LogEnd


class Look:
    """Look-up that answers when it is told to."""

    def __init__(self):
        self.answers = []
        self.begun = asyncio.Queue()

    async def __call__(self):
        answer = asyncio.get_running_loop().create_future()
        self.answers.append(answer)
        self.begun.put_nowait(None)
        return await answer


async def test_all_who_ask_during_a_look_up_share_the_next_one():
    look = Look()
    ends = LogEnds(look)
    first = asyncio.create_task(ends.read())
    await look.begun.get()
    later = [asyncio.create_task(ends.read()) for _ in range(100)]
    await asyncio.sleep(0)
    # What the first look-up finds may be older than these questions.
    look.answers[0].set_result([LogEnd(1, b"a", 1)])
    assert await first == [LogEnd(1, b"a", 1)]
    await look.begun.get()
    assert not any(task.done() for task in later)
    look.answers[1].set_result([LogEnd(1, b"a", 2)])
    assert await asyncio.gather(*later) == [[LogEnd(1, b"a", 2)]] * 100
    assert len(look.answers) == 2


async def test_who_gives_up_ends_nobody_elses_look_up():
    look = Look()
    ends = LogEnds(look)
    one, other = asyncio.create_task(ends.read()), asyncio.create_task(ends.read())
    await look.begun.get()
    one.cancel()
    look.answers[0].set_result([])
    assert await other == []
    with pytest.raises(asyncio.CancelledError):
        await one


async def test_a_database_that_is_away_is_told_to_everybody_and_asked_again():
    look = Look()
    ends = LogEnds(look)
    asking = [asyncio.create_task(ends.read()) for _ in range(2)]
    await look.begun.get()
    look.answers[0].set_exception(JournalUnreachableError("away"))
    for task in asking:
        with pytest.raises(JournalUnreachableError):
            await task
    again = asyncio.create_task(ends.read())
    await look.begun.get()
    look.answers[1].set_result([])
    assert await again == []


async def test_the_end_leaves_no_look_up_behind():
    look = Look()
    ends = LogEnds(look)
    asking = [asyncio.create_task(ends.read())]
    await look.begun.get()
    asking.append(asyncio.create_task(ends.read()))
    await asyncio.sleep(0)
    await ends.close()
    outcomes = await asyncio.gather(*asking, return_exceptions=True)
    assert [type(outcome) for outcome in outcomes] == [asyncio.CancelledError] * 2
    gc.collect()  # A task that nobody awaited would be reported here.
    assert len(look.answers) == 1


async def test_a_watch_ends_with_words_when_a_log_is_shorter_than_it_was():
    async def read_ends():
        return [LogEnd(1, bytes(16), 7)]

    def read_log(_writer, _after, *, limit, max_bytes):
        return []  # A standby that lacks the newest entries has become the primary.

    readers = Readers()
    batches = follow_logs(
        SimpleNamespace(read_log=read_log),
        SimpleNamespace(read=read_ends),
        readers,
        Patience(SimpleNamespace(check=lambda: None), 60.0),
        asyncio.Event().wait,
        reached={bytes(16): 5},
        max_batch_bytes=1,
    )
    with pytest.raises(JournalError, match="ended at entry 7 and ends before it now"):
        await anext(batches)
    await readers.close()
