"""Logs that servers on a shared database left behind: they are finished by another server."""

import asyncio
import logging
import time
from collections.abc import Callable, Collection, Coroutine, Mapping
from contextlib import suppress
from typing import Protocol

from whence_server.domain.errors import JournalError, JournalUnwritableError, WhenceError
from whence_server.domain.retention import RetentionPolicy
from whence_server.generation.recovery import close_interrupted
from whence_server.journal.journal import Journal
from whence_server.journal.retention.sweeper import Sweeper

_log = logging.getLogger(__name__)


class Follower(Protocol):
    """Task that reads a log of the journal to its end."""

    def start(self) -> None:
        """Start in the running event loop."""

    async def flush(self, timeout_s: float) -> bool:
        """Wait until all that is committed was read; return False if the time ran out."""
        ...

    async def close(self) -> None:
        """Stop."""


MakeFollowers = Callable[[Journal], Mapping[str, Follower]]
_LOOKS_PER_LEASE = 2
_NO_POLICY = RetentionPolicy()
_FLUSH_S = 5.0
# Later than the other servers of a deployment start: each takes an idle log.
_FIRST_SWEEP_S, _SWEEP_S = 600.0, 3_600.0


class Takeovers:
    """Task that takes over the logs of servers that died or stopped.

    The generations and calls that such a server left open are closed, its exports go on from its
    cursors, and its log is then free for the next server that starts. Once an hour, logs that no
    server holds are taken too, so that retention deletes in them what is due.

    Args:
        journal: this server's journal.
        make_followers: makes the exports of a journal, by the names of their cursors.
        policy: retention and holds.
        sweeper: retention of this server's journal; None without.
    """

    def __init__(
        self,
        journal: Journal,
        make_followers: MakeFollowers,
        policy: RetentionPolicy = _NO_POLICY,
        sweeper: Sweeper | None = None,
    ) -> None:
        self._journal = journal
        self._make_followers = make_followers
        self._policy = policy
        self._sweeper = sweeper
        self._sweep_at_s = time.monotonic() + _FIRST_SWEEP_S
        self._sweep: asyncio.Task[None] | None = None
        self._stopping = asyncio.Event()
        self._finishing: set[asyncio.Task[None]] = set()
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Start in the running event loop; without a shared database, do nothing."""
        if (lease_s := self._journal.sharing.lease_s) is not None:
            self._task = asyncio.create_task(self._run(lease_s), name="takeovers")

    async def close(self) -> None:
        """Stop; logs that are not finished wait for another server."""
        self._stopping.set()
        if self._task is not None:
            await self._task
        await asyncio.gather(*self._finishing, return_exceptions=True)

    async def _run(self, lease_s: float) -> None:
        while not self._stopping.is_set():
            try:
                while (taken := await self._journal.take_over()) is not None:
                    _log.warning("took over log %s, which its server left", taken.id.hex())
                    self._begin(self._finish(taken), "takeover")
                self._sweep_if_due()
            except JournalUnwritableError as error:
                _log.debug("no log can be taken over at present: %s", error)
            except WhenceError as error:
                # The next look may find another log, or this one mended.
                _log.error("a log cannot be taken over: %s", error)
            with suppress(TimeoutError):
                async with asyncio.timeout(lease_s / _LOOKS_PER_LEASE):
                    await self._stopping.wait()

    def _sweep_if_due(self) -> None:
        """Begin a sweep, unless the one before still runs: it may wait for a collector."""
        is_running = self._sweep is not None and not self._sweep.done()
        if self._policy.deletes and not is_running and time.monotonic() >= self._sweep_at_s:
            self._sweep_at_s = time.monotonic() + _SWEEP_S
            self._sweep = self._begin(self._sweep_idle(), "idle-sweep")

    async def _sweep_idle(self) -> None:
        """Take the logs that no server holds, one after the other: each needs connections."""
        try:
            writers = await self._journal.sharing.list_idle_logs()
        except WhenceError as error:
            _log.error("the logs that no server holds cannot be listed: %s", error)
            return
        for writer in writers:
            if self._stopping.is_set():
                return
            try:
                taken = await self._journal.take_idle(writer)
            except WhenceError as error:
                _log.error("a log that no server holds cannot be swept: %s", error)
                continue
            if taken is not None:
                await self._finish(taken)

    def _begin(self, work: Coroutine[None, None, None], name: str) -> asyncio.Task[None]:
        task = asyncio.create_task(work, name=name)
        self._finishing.add(task)
        task.add_done_callback(self._finishing.discard)
        return task

    async def _finish(self, journal: Journal) -> None:
        """Finish a log until the server stops, and close it in any case."""
        work = asyncio.create_task(self._work(journal))
        stop = asyncio.create_task(self._stopping.wait())
        await asyncio.wait({work, stop}, return_when=asyncio.FIRST_COMPLETED)
        for task in (work, stop):
            task.cancel()
        outcome, _ = await asyncio.gather(work, stop, return_exceptions=True)
        if isinstance(outcome, Exception):
            _log.error("log %s is not finished", journal.id.hex(), exc_info=outcome)
        try:
            await journal.close()
        except JournalError as error:
            _log.error("log %s: %s", journal.id.hex(), error)

    async def _work(self, journal: Journal) -> None:
        """Close what is open in a log, export it to its end, and give it back."""
        try:
            await self._export(journal)
            # Whoever writes after the log is given back, a cursor for example, has lost the lease.
            await journal.flush()
            await journal.sharing.give_back()
            _log.info("log %s is finished", journal.id.hex())
        except JournalError as error:
            _log.error("log %s is not finished: %s", journal.id.hex(), error)

    async def _export(self, journal: Journal) -> None:
        """Close what is open in a log, do its errands, and export it to its end."""
        followers = self._make_followers(journal)
        clock = None if self._sweeper is None else self._sweeper.clock
        sweeper = journal.make_sweeper(self._policy, followers, clock)
        try:
            for follower in followers.values():
                follower.start()
            await close_interrupted(journal)
            await journal.sharing.do_errands()
            await _flush(followers.values())
            if sweeper is not None:
                await sweeper.sweep()
                await _flush(followers.values())
        finally:
            for follower in followers.values():
                await follower.close()


async def _flush(followers: Collection[Follower]) -> None:
    for follower in followers:
        while not await follower.flush(_FLUSH_S):
            pass  # The collector may be away for longer.
