"""Health as its watchers see it."""

import asyncio
from contextlib import suppress

from grpc_health.v1.health_pb2 import HealthCheckRequest, HealthCheckResponse

from whence_server.rpc.standard import Health

SERVING, NOT_SERVING = HealthCheckResponse.SERVING, HealthCheckResponse.NOT_SERVING
UNKNOWN = HealthCheckResponse.SERVICE_UNKNOWN
TIMEOUT_S = 60.0


class Watcher:
    """A call of Watch whose client reads, or does not."""

    def __init__(self, *, reads: bool = True) -> None:
        self.seen: asyncio.Queue[int] = asyncio.Queue()
        self.has_begun = asyncio.Event()
        self._reads = reads

    async def write(self, answer: HealthCheckResponse) -> None:
        self.has_begun.set()
        if not self._reads:
            # Flow control never lets the message go.
            await asyncio.Event().wait()
        self.seen.put_nowait(answer.status)

    async def expect(self, status: int) -> None:
        assert await asyncio.wait_for(self.seen.get(), TIMEOUT_S) == status


async def end(*tasks: "asyncio.Task[None]") -> None:
    for task in tasks:
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task


async def test_watcher_that_does_not_read_holds_up_nobody() -> None:
    health = Health()
    silent, reader = Watcher(reads=False), Watcher()
    watches = [
        asyncio.create_task(health.Watch(HealthCheckRequest(), context))
        for context in (silent, reader)
    ]
    await silent.has_begun.wait()
    await reader.expect(SERVING)
    for status in (NOT_SERVING, SERVING):
        await asyncio.wait_for(health.set("", status), TIMEOUT_S)
        await reader.expect(status)
    await end(*watches)


async def test_watcher_of_an_unknown_service_sees_it_come_and_no_state_twice() -> None:
    health, watcher = Health(), Watcher()
    watch = asyncio.create_task(health.Watch(HealthCheckRequest(service="late"), watcher))
    await watcher.expect(UNKNOWN)
    for service, status in (("other", SERVING), ("late", SERVING), ("late", NOT_SERVING)):
        await health.set(service, status)
        if service == "late":
            await watcher.expect(status)
    assert watcher.seen.empty()
    await end(watch)
