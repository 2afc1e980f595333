"""The front's handle on the analysis process: started when needed, one question at a time."""

import asyncio
import logging
import sys
from asyncio.subprocess import PIPE, Process
from collections import Counter
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager, suppress
from typing import Any, NamedTuple, NoReturn

from whence_server.analysis.answer import Answer
from whence_server.analysis.question import (
    Asked,
    Done,
    Failed,
    Found,
    Refused,
    split_question,
)
from whence_server.analysis.results import refuse_long_verification
from whence_server.analysis.setup import AnalysisSetup
from whence_server.domain.errors import (
    AnalysisEndedError,
    AnalysisFailedError,
    VerificationBusyError,
    WhenceError,
)
from whence_server.processes import channel

_log = logging.getLogger(__name__)

COMMAND = (sys.executable, "-P", "-m", "whence_server.analysis.process")
MAX_WAITING = 16
"""Questions that run or wait, of all callers."""
MAX_OF_CALLER = 4
"""Questions of one caller that run or wait."""
IDLE_S = 60.0
"""Time for which the process keeps its model after an answer."""
LONGEST_S = 3600.0
"""Time that one answer may take: others wait for it."""
PATIENCE_S = 60.0
"""Time for which a caller may leave its answer unread while it is computed."""
RETRY_AFTER_S = 5.0
_KEPT_STDERR_BYTES = 1 << 14
_GRACE_S = 2.0


class Refusals(NamedTuple):
    """Answers of one kind of question that the host refuses.

    Attributes:
        make_busy: returns the error if too many questions run or wait, by the retry delay in s.
        make_late: returns the last message of an answer that takes too long, by the limit in s;
            or raises.
    """

    make_busy: Callable[[float], WhenceError]
    make_late: Callable[[float], bytes]


VERIFYING = Refusals(VerificationBusyError, refuse_long_verification)


class AnalysisHost:
    """Owner of the analysis process.

    Args:
        setup: returns the model to compute with; None if there is none here.
        command: command line of the process; tests replace it.
        idle_s: time for which an idle process keeps its model.
        longest_s: time that one answer may take.
        patience_s: time for which a caller may leave its answer unread while others wait.
    """

    def __init__(
        self,
        setup: Callable[[], AnalysisSetup | None],
        command: Sequence[str] = COMMAND,
        idle_s: float = IDLE_S,
        longest_s: float = LONGEST_S,
        patience_s: float = PATIENCE_S,
    ) -> None:
        self._setup = setup
        self._command = tuple(command)
        self._idle_s = idle_s
        self._longest_s = longest_s
        self._patience_s = patience_s
        self._turn = asyncio.Lock()
        self._of_callers: Counter[str] = Counter()
        self._process: _Running | None = None
        self._idle: asyncio.TimerHandle | None = None
        self._ending: set[asyncio.Task[None]] = set()
        """Tasks that end a process."""

    @property
    def has_model(self) -> bool:
        """True if there are weights to compute with."""
        return self._setup() is not None

    @property
    def pid(self) -> int | None:
        """Id of the process; None if none runs."""
        return None if self._process is None else self._process.process.pid

    async def ask(
        self,
        make_question: Callable[[], Awaitable[Asked]],
        caller_id: str,
        refusals: Refusals = VERIFYING,
    ) -> AsyncGenerator[bytes, None]:
        """Yield the serialised responses to a question.

        The answer is read as it comes, so that a caller who does not read keeps nobody waiting.
        Closing the generator before its end kills the process.

        Args:
            make_question: makes the question when its turn comes, as it takes memory.
            caller_id: whose questions are counted.
            refusals: answers to questions that are not answered.

        Raises:
            AnalysisEndedError: the process ended before its answer.
            AnalysisFailedError: the process failed, or the caller did not read the answer.
            WhenceError: too many questions run or wait, or the process refuses this one.
        """
        with self._count(caller_id, refusals):
            answer = Answer(self._patience_s)
            filling = asyncio.create_task(self._fill(make_question, answer, refusals))
            try:
                async for message in answer.read():
                    yield message
                await filling
            finally:
                self._ending.add(filling)
                filling.add_done_callback(self._ending.discard)
                filling.cancel()
                await asyncio.wait((filling,))
                # An error that nobody waits for any more is told to nobody.
                if not filling.cancelled():
                    filling.exception()

    async def _fill(
        self,
        make_question: Callable[[], Awaitable[Asked]],
        answer: Answer,
        refusals: Refusals,
    ) -> None:
        """Take a turn, and read the answer of the process."""
        try:
            async with self._turn:
                await self._answer(await make_question(), answer, refusals)
        finally:
            answer.end()

    async def _answer(self, question: Asked, answer: Answer, refusals: Refusals) -> None:
        running = await self._start()
        is_done = False
        try:
            async with asyncio.timeout(self._longest_s):
                await running.ask(question)
                async for message in running.read():
                    await answer.put(message)
                is_done = True
        except _RefusedError as refused:
            is_done = True
            raise refused.error from None
        except TimeoutError:
            answer.add(refusals.make_late(self._longest_s))
        finally:
            if is_done:
                self._idle = asyncio.get_running_loop().call_later(self._idle_s, self._end_idle)
            else:
                self._process = None
                await running.kill()

    @asynccontextmanager
    async def keep_out(self) -> AsyncGenerator[None, None]:
        """Hold the place of the one analysis process for another kind of analysis."""
        async with self._turn:
            await self._end()
            yield

    @property
    def is_busy(self) -> bool:
        """True while a question is answered."""
        return self._turn.locked()

    async def close(self) -> None:
        """End the process; cancel every running `ask` first."""
        async with self._turn:
            await self._end()
        await asyncio.gather(*self._ending, return_exceptions=True)

    @contextmanager
    def _count(self, caller_id: str, refusals: Refusals) -> Iterator[None]:
        if self._of_callers.total() >= MAX_WAITING or self._of_callers[caller_id] >= MAX_OF_CALLER:
            raise refusals.make_busy(RETRY_AFTER_S)
        self._of_callers[caller_id] += 1
        try:
            yield
        finally:
            self._of_callers[caller_id] -= 1
            if not self._of_callers[caller_id]:
                del self._of_callers[caller_id]

    async def _start(self) -> "_Running":
        if self._idle is not None:
            self._idle.cancel()
            self._idle = None
        if self._process is not None and self._process.process.returncode is None:
            return self._process
        setup = self._setup()
        if setup is None:
            raise AnalysisFailedError("this server has no weights to compute with")
        process = await asyncio.create_subprocess_exec(
            *self._command,
            stdin=PIPE,
            stdout=PIPE,
            stderr=PIPE,
            # A Ctrl-C in the terminal is for the front, which ends the process itself.
            start_new_session=True,
        )
        self._process = _Running(process)
        await self._process.send(setup)
        return self._process

    def _end_idle(self) -> None:
        self._idle = None
        if self._turn.locked() or self._process is None:
            return
        # At once: a question that comes before the task runs would be asked of a dying process.
        running, self._process = self._process, None
        task = asyncio.get_running_loop().create_task(running.kill())
        self._ending.add(task)
        task.add_done_callback(self._ending.discard)

    async def _end(self) -> None:
        if self._idle is not None:
            self._idle.cancel()
            self._idle = None
        running, self._process = self._process, None
        if running is not None:
            await running.kill()


class _RefusedError(Exception):
    """Refusal of a question by a process that goes on."""

    def __init__(self, error: WhenceError) -> None:
        super().__init__(error.message)
        self.error = error


class _Running:
    """A running process, and the end of what it writes to standard error."""

    def __init__(self, process: Process) -> None:
        self.process = process
        self._errors = asyncio.create_task(_read_end_of_stderr(process))

    async def send(self, message: Any) -> None:
        """Send a message."""
        assert self.process.stdin is not None  # noqa: S101 - a pipe was asked for
        self.process.stdin.write(channel.encode(message))
        # The process may have ended: reading its answer says so.
        with suppress(ConnectionError):
            await self.process.stdin.drain()

    async def ask(self, question: Asked) -> None:
        """Send a question in parts, so that the event loop never waits for a large one."""
        for part in split_question(question):
            await self.send(part)

    async def read(self) -> AsyncGenerator[bytes, None]:
        """Yield the messages of one answer.

        Raises:
            _RefusedError: the question cannot be answered.
            AnalysisEndedError: the process has ended.
            AnalysisFailedError: the process has failed.
        """
        assert self.process.stdout is not None  # noqa: S101 - a pipe was asked for
        stdout, header = self.process.stdout, channel.HEADER
        while True:
            try:
                (length,) = header.unpack(await stdout.readexactly(header.size))
                answer = channel.decode(await stdout.readexactly(length))
            except asyncio.IncompleteReadError:
                await self._fail("it ended before its answer", AnalysisEndedError)
            match answer:
                case Found(message):
                    yield message
                case Done():
                    return
                case Refused(error):
                    raise _RefusedError(error)
                case Failed(message):
                    await self._fail(message)

    async def _fail(
        self, what: str, kind: type[AnalysisFailedError] = AnalysisFailedError
    ) -> NoReturn:
        status = await self.process.wait()
        told = (await self._errors).decode("utf-8", "replace").strip()
        _log.error("the analysis process failed with status %s: %s\n%s", status, what, told)
        raise kind(f"the analysis process failed: {what}")

    async def kill(self) -> None:
        """End the process, and wait for its end, also if the caller is cancelled."""
        if self.process.stdin is not None:
            self.process.stdin.close()
        ending = asyncio.ensure_future(self._end())
        cancelled: asyncio.CancelledError | None = None
        while not ending.done():
            try:
                await asyncio.wait((ending,))
            except asyncio.CancelledError as error:
                cancelled = error
        ending.result()
        if cancelled is not None:
            raise cancelled

    async def _end(self) -> None:
        # The end of a process is noticed only when all that it wrote has been read.
        rest = asyncio.create_task(self._drop_rest())
        try:
            await asyncio.wait_for(self.process.wait(), _GRACE_S)
        except TimeoutError:
            self.process.kill()
            await self.process.wait()
        await asyncio.gather(self._errors, rest, return_exceptions=True)

    async def _drop_rest(self) -> None:
        assert self.process.stdout is not None  # noqa: S101 - a pipe was asked for
        while await self.process.stdout.read(1 << 16):
            pass


async def _read_end_of_stderr(process: Process) -> bytes:
    """Read all of standard error, so that the process never blocks, and return its last bytes."""
    assert process.stderr is not None  # noqa: S101 - a pipe was asked for
    kept = b""
    while chunk := await process.stderr.read(1 << 16):
        kept = (kept + chunk)[-_KEPT_STDERR_BYTES:]
    return kept
