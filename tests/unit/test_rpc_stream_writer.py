"""The writer of a stream breaks silences, and only those, and writes one message at a time."""

import asyncio

from waiting import wait_until

from whence_server.rpc.stream_writer import StreamWriter

INTERVAL_S = 0.05


class Peer:
    """Peer that takes messages when it is told to, and notes when each came."""

    def __init__(self) -> None:
        self.messages: list[bytes] = []
        self.times: list[float] = []
        self.reads = asyncio.Event()
        self.reads.set()
        self.num_writing = 0
        self.most_writing = 0

    async def write(self, message: bytes) -> None:
        self.num_writing += 1
        self.most_writing = max(self.most_writing, self.num_writing)
        await self.reads.wait()
        self.num_writing -= 1
        self.messages.append(message)
        self.times.append(asyncio.get_running_loop().time())


async def test_silence_is_broken_once_in_every_interval() -> None:
    peer = Peer()
    fillers = iter(range(100))
    with StreamWriter(peer.write, lambda: b"%d" % next(fillers), INTERVAL_S) as writer:
        begin = asyncio.get_running_loop().time()
        await writer.write(b"first")
        await wait_until(lambda: len(peer.messages) == 4)
    assert peer.messages == [b"first", b"0", b"1", b"2"]
    assert all(
        after - before >= INTERVAL_S * 0.99
        for before, after in zip([begin, *peer.times[1:]], peer.times[1:], strict=False)
    )


async def test_messages_postpone_the_filler() -> None:
    peer = Peer()
    with StreamWriter(peer.write, lambda: b"filler", INTERVAL_S) as writer:
        for _ in range(10):
            await writer.write(b"message")
            await asyncio.sleep(INTERVAL_S / 4)
        num_fillers = peer.messages.count(b"filler")
        # On a machine that stands still, a pause may have been a silence.
        num_pauses = sum(
            after - before >= INTERVAL_S
            for before, after in zip(peer.times, peer.times[1:], strict=False)
        )
        assert num_fillers <= num_pauses
        await wait_until(lambda: b"filler" in peer.messages)


async def test_stream_without_a_filler_or_an_interval_stays_silent() -> None:
    peer = Peer()
    silent = StreamWriter(peer.write, lambda: None, INTERVAL_S)
    unset = StreamWriter(peer.write, lambda: b"filler", 0)
    breaking = Peer()
    witness = StreamWriter(breaking.write, lambda: b"filler", INTERVAL_S)
    with silent, unset, witness:
        await wait_until(lambda: len(breaking.messages) == 3)
    assert peer.messages == []


async def test_message_waits_for_a_filler_that_is_being_written() -> None:
    peer = Peer()
    peer.reads.clear()
    with StreamWriter(peer.write, lambda: b"filler", INTERVAL_S) as writer:
        await wait_until(lambda: peer.num_writing == 1)
        writing = asyncio.create_task(writer.write(b"message"))
        await asyncio.sleep(0)
        peer.reads.set()
        await writing
    assert peer.messages == [b"filler", b"message"]
    assert peer.most_writing == 1


async def test_filler_is_not_written_while_a_message_waits_for_a_slow_reader() -> None:
    peer, made = Peer(), []
    peer.reads.clear()
    breaking = Peer()
    with (
        StreamWriter(peer.write, lambda: made.append(1) or b"filler", INTERVAL_S) as writer,
        StreamWriter(breaking.write, lambda: b"filler", INTERVAL_S),
    ):
        writing = asyncio.create_task(writer.write(b"message"))
        await wait_until(lambda: len(breaking.messages) == 3)
        assert made == []
        peer.reads.set()
        await writing
    assert peer.messages == [b"message"]


async def test_failed_filler_leaves_the_stream_to_its_next_message() -> None:
    failures = 0

    async def write(message: bytes) -> None:
        nonlocal failures
        if message == b"filler":
            failures += 1
            raise ConnectionError("the peer is gone")

    with StreamWriter(write, lambda: b"filler", INTERVAL_S) as writer:
        await wait_until(lambda: failures == 2)
        await writer.write(b"message")


async def test_end_of_the_stream_ends_a_filler_that_nobody_reads() -> None:
    peer = Peer()
    peer.reads.clear()
    with StreamWriter(peer.write, lambda: b"filler", INTERVAL_S):
        await wait_until(lambda: peer.num_writing == 1)
    await asyncio.sleep(0)
    peer.reads.set()
    await asyncio.sleep(0)
    assert peer.messages == []
