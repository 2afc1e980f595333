"""Preparation of chats and long texts in two child processes, which can be killed.

One of the two processes takes short requests only, so that a short chat never waits behind a long
text. The other takes both, and starts when there is work for it. A process that has ended is
replaced at once.
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
"""Seconds after which the process of an abandoned request is killed; a restart takes longer."""
_MAX_ATTEMPTS = 2
_RETRY_AFTER_S = 1.0


class Texts(Protocol):
    """Interface that prepares requests."""

    async def prepare(self, request: GenerationRequest) -> Prepared:
        """Prepare a request; `prepare.prepare_request` documents result and errors."""

    async def close(self) -> None:
        """Raise DrainingError in every `prepare`, running or later."""


@dataclass(eq=False)
class _Job:
    request: GenerationRequest
    done: "asyncio.Future[Prepared]"
    num_attempts: int = 0


@dataclass(eq=False)
class _Lane:
    """One of the two processes, through its restarts.

    Attributes:
        takes_long: True if the process takes long requests too.
        process: None until there is work for it, and while a process is being started.
        starting: True while a process is being started.
        job: the request being prepared.
    """

    takes_long: bool
    process: TextProcess | None = None
    starting: bool = False
    job: _Job | None = None


@dataclass
class TextProcesses:
    """Pool of two text processes that prepare requests.

    All methods are called from one event loop.

    Args:
        model: the model that requests are checked against.
        limits: limits of the server.
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
        """Ids of the processes that run."""
        return [lane.process.pid for lane in self._lanes if lane.process and lane.process.pid]

    def start(self) -> None:
        """Start the process for short requests, in the background."""
        self._begin_start(self._lanes[0])

    def set_model(self, model: ModelInfo, limits: Limits) -> None:
        """Check requests against another model from now on; see the constructor.

        The processes end: their requests, and later ones, are prepared by new processes.
        """
        if (model, limits) == (self.model, self.limits):
            return
        self.model, self.limits = model, limits
        for lane in self._lanes:
            if lane.process is not None:
                lane.process.kill()

    async def prepare(self, request: GenerationRequest) -> Prepared:
        """Prepare a request; see `prepare.prepare_request`.

        If the call is cancelled, the process that prepares the request is killed.

        Raises:
            InvalidRequestError: the request is invalid, or exceeded a time or memory limit.
            TextQueueFullError: too many bytes of requests are waiting.
            TextProcessError: no process can be started, or two ended during the request.
            DrainingError: the server is shutting down.
        """
        if self._closed:
            raise DrainingError
        most = self.limits.max_waiting_text_bytes
        # If nothing else waits, a request of any size is taken.
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
        """Fail all requests with DrainingError, and end both processes."""
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
        """Give waiting requests to idle processes; start a process if there are more."""
        first = self._lanes[0]
        for lane in self._lanes:
            queues = (self._long, self._short) if lane.takes_long else (self._short,)
            queue = next((queue for queue in queues if queue), None)
            if queue is None or self._closed:
                continue
            if lane.process is None:
                # Short requests start the second process only while the first is busy.
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
            lane.process = await self._start_process_retrying()
        except TextProcessError as error:
            _log.exception("a text process cannot be started; waiting requests fail")
            for queue in (self._short, self._long) if lane.takes_long else (self._short,):
                _fail(queue, error)
        finally:
            lane.starting = False
        self._dispatch()

    async def _start_process_retrying(self) -> TextProcess:
        """Start a process, with a second try if the first one ends before it is ready.

        Raises:
            TextProcessError: neither try succeeds.
        """
        try:
            return await self._start_process()
        except TextProcessError as error:
            _log.warning("a text process did not start; trying once more: %s", error)
            return await self._start_process()

    async def _start_process(self) -> TextProcess:
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
        except Exception as error:  # noqa: BLE001 - raised in `prepare`
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
        """Retry a request once: the process may have ended for another reason than the request."""
        if job.done.done():
            return
        _log.warning("a text process ended while it prepared a request: %s", error)
        if job.num_attempts < _MAX_ATTEMPTS:
            self._get_queue(job.request).appendleft(job)
        else:
            _fail(
                [job],
                TextProcessError(
                    f"the text process ended twice while it prepared this request: {error}"
                ),
            )

    def _abandon(self, job: _Job) -> None:
        """Drop a request that is done or cancelled; kill the process that still prepares it."""
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
