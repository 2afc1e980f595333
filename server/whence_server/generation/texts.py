"""Requests' texts, prepared where they stop nobody: in two processes that can be killed.

Chat templates and long texts go there. One of the two processes takes short requests alone, so
that a usual chat never waits behind a long text; the other takes both, and starts when there is
work for it. A process that has ended is replaced at once.
"""

import asyncio
import logging
from collections import deque
from collections.abc import Coroutine
from dataclasses import dataclass, field
from typing import Protocol

from whence_server.domain.errors import DrainingError, TextProcessError, TextQueueFullError
from whence_server.domain.limits import Limits
from whence_server.domain.model import ModelInfo
from whence_server.domain.requests import GenerationRequest
from whence_server.generation.prepare import SHORT_BYTES, Prepared
from whence_server.generation.text_process import ProcessEndedError, TextProcess
from whence_server.generation.text_worker import Setup

_log = logging.getLogger(__name__)

ABANDONED_GRACE_S = 0.25
"""How long a request may go on that nobody waits for any more: a new process takes longer."""
_MAX_ATTEMPTS = 2
_RETRY_AFTER_S = 1.0


class Texts(Protocol):
    """Whatever prepares requests."""

    async def prepare(self, request: GenerationRequest) -> Prepared:
        """See `prepare.prepare_request`, which also says what it raises."""

    async def close(self) -> None:
        """End what is being prepared with DrainingError, and prepares nothing more."""


@dataclass(eq=False)
class _Job:
    request: GenerationRequest
    done: "asyncio.Future[Prepared]"
    num_attempts: int = 0


@dataclass(eq=False)
class _Lane:
    """A place for one process.

    Attributes:
        takes_long: whether it takes long requests too.
        process: None until there is work for it, and while another one is being started.
        starting: a process is on its way.
        job: the request that it is at.
    """

    takes_long: bool
    process: TextProcess | None = None
    starting: bool = False
    job: _Job | None = None


@dataclass
class TextProcesses:
    """Prepares requests in text processes.

    All methods are called from one event loop.

    Args:
        model: the model that requests are held against.
        limits: of the server.
    """

    model: ModelInfo
    limits: Limits
    _lanes: list[_Lane] = field(default_factory=lambda: [_Lane(False), _Lane(True)])
    _short: deque[_Job] = field(default_factory=deque)
    _long: deque[_Job] = field(default_factory=deque)
    _num_bytes: int = 0
    _tasks: set["asyncio.Task[None]"] = field(default_factory=set)
    _closed: bool = False

    @property
    def pids(self) -> list[int]:
        """The ids of the processes that there are."""
        return [lane.process.pid for lane in self._lanes if lane.process and lane.process.pid]

    def start(self) -> None:
        """Start the process for short requests, in the background."""
        self._begin_start(self._lanes[0])

    async def prepare(self, request: GenerationRequest) -> Prepared:
        """Prepare a request; see `prepare.prepare_request`.

        Where nobody waits for the answer any more, the process that is at it is killed.

        Raises:
            InvalidRequestError: also where a limit of time or memory was passed.
            TextQueueFullError: too much is waiting.
            TextProcessError: no process can do it.
            DrainingError: the server is on its way out.
        """
        if self._closed:
            raise DrainingError
        most = self.limits.max_waiting_text_bytes
        # One that finds nobody before it is never too large.
        if self._num_bytes and self._num_bytes + request.size_bytes > most:
            raise TextQueueFullError(most, _RETRY_AFTER_S)
        job = _Job(request, asyncio.get_running_loop().create_future())
        self._num_bytes += request.size_bytes
        try:
            self._get_queue(request).append(job)
            self._dispatch()
            return await job.done
        finally:
            self._num_bytes -= request.size_bytes
            self._abandon(job)

    async def close(self) -> None:
        """End what is being prepared with DrainingError, and every process."""
        self._closed = True
        for queue in (self._short, self._long):
            _fail(queue, DrainingError())
        for lane in self._lanes:
            if lane.job is not None:
                _fail([lane.job], DrainingError())
        for task in tuple(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        for lane in self._lanes:
            if lane.process is not None:
                lane.process.kill()
                await lane.process.stop()
                lane.process = None

    def _get_queue(self, request: GenerationRequest) -> deque[_Job]:
        return self._long if request.size_bytes > SHORT_BYTES else self._short

    def _dispatch(self) -> None:
        """Return work to idle processes, and starts one where there is more."""
        first = self._lanes[0]
        for lane in self._lanes:
            queues = (self._long, self._short) if lane.takes_long else (self._short,)
            queue = next((queue for queue in queues if queue), None)
            if queue is None or self._closed:
                continue
            if lane.process is None:
                # For short requests alone, another process only where the first is at work.
                if lane is first or first.job is not None or queue is self._long:
                    self._begin_start(lane)
            elif lane.job is None:
                lane.job = queue.popleft()
                self._run(self._work(lane, lane.process, lane.job))

    def _begin_start(self, lane: _Lane) -> None:
        if not lane.starting and not self._closed:
            lane.starting = True
            self._run(self._start(lane))

    def _run(self, work: Coroutine[object, object, None]) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _start(self, lane: _Lane) -> None:
        try:
            lane.process = await self._started()
        except TextProcessError as error:
            _log.exception("no text process can be started")
            for queue in (self._short, self._long) if lane.takes_long else (self._short,):
                _fail(queue, error)
        finally:
            lane.starting = False
        self._dispatch()

    async def _started(self) -> TextProcess:
        """Start a process, and another one where the first ends before it is ready.

        Raises:
            TextProcessError: neither starts.
        """
        try:
            return await self._one_started()
        except TextProcessError as error:
            _log.warning("a text process did not start, and another is tried: %s", error)
            return await self._one_started()

    async def _one_started(self) -> TextProcess:
        process = TextProcess(Setup(self.model, self.limits))
        try:
            await process.start()
        except BaseException:
            await process.stop()
            raise
        return process

    async def _work(self, lane: _Lane, process: TextProcess, job: _Job) -> None:
        job.num_attempts += 1
        try:
            prepared = await process.prepare(job.request)
        except ProcessEndedError as error:
            self._try_again(job, error)
        except Exception as error:  # noqa: BLE001 - whoever waits for it raises it
            _fail([job], error)
        else:
            if not job.done.done():
                job.done.set_result(prepared)
        lane.job = None
        if process.has_ended:
            lane.process = None
            self._begin_start(lane)
        self._dispatch()

    def _try_again(self, job: _Job, error: ProcessEndedError) -> None:
        """The process may have ended before it saw the request: memory ran out elsewhere, say."""
        if job.done.done():
            return
        _log.warning("a text process ended: %s", error)
        if job.num_attempts < _MAX_ATTEMPTS:
            self._get_queue(job.request).appendleft(job)
        else:
            _fail([job], TextProcessError(f"the text process ended twice of a request: {error}"))

    def _abandon(self, job: _Job) -> None:
        """Forget a request whose caller has gone."""
        job.done.cancel()
        queue = self._get_queue(job.request)
        if job in queue:
            queue.remove(job)
        for lane in self._lanes:
            if lane.job is job and lane.process is not None:
                loop = asyncio.get_running_loop()
                loop.call_later(ABANDONED_GRACE_S, _kill_at, lane, job, lane.process)


def _kill_at(lane: _Lane, job: _Job, process: TextProcess) -> None:
    if lane.job is job:
        process.kill()


def _fail(jobs: deque[_Job] | list[_Job], error: Exception) -> None:
    while jobs:
        job = jobs.pop()
        if not job.done.done():
            job.done.set_exception(error)
