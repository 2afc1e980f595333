"""Events that come together are written together, and a slow reader holds their maker up."""

import asyncio
from typing import Any

import pytest

from whence_server.http.api.bundling import BundlingWriter


class Answer:
    """Answer whose writes wait until they are let through."""

    def __init__(self) -> None:
        self.written: list[bytes] = []
        self.may_write = asyncio.Event()
        self.error: Exception | None = None

    async def write(self, data: bytes) -> None:
        await self.may_write.wait()
        if self.error is not None:
            raise self.error
        self.written.append(data)


async def test_events_without_a_pause_are_one_write() -> None:
    answer: Any = Answer()
    answer.may_write.set()
    async with BundlingWriter(answer) as writer:
        for number in range(5):
            await writer.write(b"%d" % number)
    assert answer.written == [b"01234"]


async def test_a_slow_reader_holds_the_maker_up() -> None:
    answer: Any = Answer()
    num_made = 0

    async def make() -> None:
        nonlocal num_made
        async with BundlingWriter(answer) as writer:
            for _ in range(1_000):
                await writer.write(b"x" * 1_024)
                num_made += 1

    making = asyncio.create_task(make())
    for _ in range(100):
        await asyncio.sleep(0)
    assert num_made < 200
    answer.may_write.set()
    async with asyncio.timeout(60):
        await making
    assert sum(map(len, answer.written)) == 1_000 * 1_024


async def test_a_reader_that_goes_ends_the_writing() -> None:
    answer: Any = Answer()
    answer.may_write.set()
    answer.error = ConnectionResetError()

    async def make() -> None:
        async with BundlingWriter(answer) as writer:
            await writer.write(b"lost")
            await asyncio.sleep(0)
            await asyncio.sleep(0)
            await writer.write(b"never")

    with pytest.raises(ConnectionResetError):
        await make()


async def test_a_cancelled_maker_writes_nothing_more() -> None:
    answer: Any = Answer()

    async def make() -> None:
        async with BundlingWriter(answer) as writer:
            await writer.write(b"x")
            await asyncio.Event().wait()

    making = asyncio.create_task(make())
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    making.cancel()
    with pytest.raises(asyncio.CancelledError):
        await making
    answer.may_write.set()
    await asyncio.sleep(0)
    assert answer.written == []
