"""An upstream as an engine: one task for each generation, whose messages become turns."""

import asyncio
import logging
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import suppress
from dataclasses import replace

from whence_server.domain.engine import (
    Admit,
    EngineState,
    FrontMessage,
    StopGeneration,
    Turn,
)
from whence_server.domain.errors import (
    Code,
    ConfigurationError,
    UpstreamAwayError,
    UpstreamModelError,
    UpstreamUnfinishedError,
    WhenceError,
)
from whence_server.domain.model import FileDigest, ModelInfo
from whence_server.domain.observation import Observation, SecondDistribution, WeightsOrigin
from whence_server.engines.upstream.claimed_files import digest_claimed_files
from whence_server.engines.upstream.exchange import Upstream, UpstreamDescription
from whence_server.engines.upstream.options import UpstreamOptions, describe_model
from whence_server.engines.upstream.requests import choose_computer, make_request
from whence_server.engines.upstream.run import UpstreamRun, join_turns

_log = logging.getLogger(__name__)

_MAX_TURNS = 1_024
_MAX_PINNED = 4_096
"""Turns that wait for the front; more of them hold the upstream back."""
_MOST_JOINED = 16
"""Turns that are recorded at once: about a millisecond of other tasks' time."""
_FIRST_DELAY_S, _LONGEST_DELAY_S = 0.25, 5.0
"""Delay between two questions to an upstream that is away; doubles up to the longest."""
_DOUBTFUL = (UpstreamAwayError, UpstreamModelError, UpstreamUnfinishedError)
"""Failures of an upstream that may have ended, or is another one."""
_PASSING = frozenset({Code.UNAVAILABLE, Code.RESOURCE_EXHAUSTED})
"""Statuses of an upstream that is away, or still loads its model."""


class UpstreamEngine:
    """Engine whose generations run in an upstream.

    Args:
        options: the settings.
        open_upstream: opens the upstream; raises a WhenceError with the code UNAVAILABLE while it
            does not answer.

    Attributes:
        on_change: called with False when the upstream no longer answers, and with True when it
            does again.
        state: state of the engine.
    """

    pid = None

    def __init__(
        self, options: UpstreamOptions, open_upstream: Callable[[], Awaitable[Upstream]]
    ) -> None:
        self._options = options
        self._open = open_upstream
        self.on_change: Callable[[bool], Awaitable[None]] = _ignore
        self.state = EngineState.STARTING
        self._upstream: Upstream | None = None
        self._told: UpstreamDescription | None = None
        self._on_model: Callable[[ModelInfo], None] | None = None
        self._changed: ModelInfo | None = None
        self._is_due = asyncio.Event()
        """Set when the upstream is to be asked at once."""
        self._obstacle = ""
        """Last reason in the log for which the upstream cannot be used."""
        self._files: tuple[FileDigest, ...] = ()
        self._weights_origin = WeightsOrigin.UNKNOWN
        self._turns: asyncio.Queue[Turn | None] = asyncio.Queue(_MAX_TURNS)
        self._pinned: dict[str, object] = {}
        """State of the upstream as each generation was graded that has not begun, by its id."""
        self._running: dict[str, tuple[UpstreamRun, asyncio.Task[None]]] = {}
        self._tasks: set[asyncio.Task[None]] = set()

    async def start(self) -> ModelInfo:
        """Ask the upstream what it serves, again and again until it answers.

        Raises:
            ConfigurationError: it cannot be used with these settings.
        """
        upstream, told = await self._open_patiently()
        if self._options.weights is not None:
            self._files = await asyncio.to_thread(digest_claimed_files, self._options.weights)
        model = describe_model(self._options, told, self._files)
        self._upstream, self._told = upstream, told
        upstream.watch(self._is_due.set)
        self._note_weights(model)
        self.state = EngineState.RUNNING
        self._keep(asyncio.create_task(self._watch(upstream), name="upstream-health"))
        return model

    def watch_model(self, on_model: Callable[[ModelInfo], None]) -> None:
        """Call with the model whenever the upstream describes it anew: now, if it has already."""
        self._on_model = on_model
        if self._changed is not None:
            on_model(self._changed)

    async def _open_patiently(self) -> tuple[Upstream, UpstreamDescription]:
        delay_s, is_said = _FIRST_DELAY_S, False
        while True:
            try:
                return await self._open_once()
            except WhenceError as error:
                if error.code not in _PASSING:
                    raise ConfigurationError(error.message) from error
                if not is_said:
                    _log.warning("%s; it is asked again until it answers", error.message)
                is_said = True
            await asyncio.sleep(delay_s)
            delay_s = min(2 * delay_s, _LONGEST_DELAY_S)

    async def _open_once(self) -> tuple[Upstream, UpstreamDescription]:
        upstream = await self._open()
        try:
            return upstream, await upstream.describe()
        except BaseException:
            await upstream.close()
            raise

    def grade(self, admission: Admit) -> Observation:
        """Return the grades of a generation; see `Grader.grade`."""
        upstream, told = self._require()
        request = make_request(admission, None)
        upstream.check(request)
        # The weights' grade is the model's.
        grades = replace(upstream.grade(request), weights=self._weights_origin)
        if choose_computer(request, grades, told) is not None:
            grades = replace(grades, second_distribution=SecondDistribution.COMPUTED)
        self._pinned[admission.generation_id] = upstream.pin()
        if len(self._pinned) > _MAX_PINNED:
            # It has never begun: its id was taken, or the server was full.
            del self._pinned[next(iter(self._pinned))]
        return grades

    def send(self, message: FrontMessage) -> None:
        """Start a generation, or end one or a sequence of it."""
        generation_id = message.generation_id
        if isinstance(message, Admit):
            self._begin(message)
        elif generation_id in self._running:
            run, task = self._running[generation_id]
            if isinstance(message, StopGeneration):
                task.cancel()
            else:
                run.stop_sequence(message.sequence_index)

    def _begin(self, admission: Admit) -> None:
        upstream, told = self._require()
        request = make_request(admission, None)
        computer = choose_computer(request, upstream.grade(request), told)
        run = UpstreamRun(
            upstream,
            admission,
            make_request(admission, computer),
            # The record has been written since: it names what the upstream was then.
            pinned=self._pinned.pop(admission.generation_id, None) or upstream.pin(),
            computer=computer,
            knows_vocabulary=self._options.text is not None,
            num_retries=self._options.num_retries,
            put=self._turns.put,
            on_failure=self._note_failure,
        )
        task = asyncio.create_task(run.run(), name=f"upstream-{admission.generation_id}")
        self._running[admission.generation_id] = run, task
        task.add_done_callback(lambda _: self._running.pop(admission.generation_id, None))
        self._keep(task)

    def _note_failure(self, error: WhenceError) -> None:
        """Ask the upstream at once after a failure that it may not outlive, or not as it was."""
        if isinstance(error, _DOUBTFUL):
            self._is_due.set()

    async def read_turns(self) -> AsyncIterator[Turn]:
        """Yield every turn until the engine is stopped."""
        while (turn := await self._turns.get()) is not None:
            # Many streams are recorded at once: a turn of its own costs as much as a token.
            yield turn if self._turns.empty() else self._join_waiting(turn)

    def _join_waiting(self, first: Turn) -> Turn:
        """Return a turn with the results of the turns that wait, in their order."""
        turns = [first]
        while not self._turns.empty() and len(turns) < _MOST_JOINED:
            turn = self._turns.get_nowait()
            if turn is None:
                self._turns.put_nowait(None)  # read next, as the end
                break
            turns.append(turn)
        return join_turns(turns)

    async def restart(self) -> None:
        """Do nothing: an upstream has no process of ours that could die."""

    async def stop(self) -> None:
        """Cancel what runs, and close the connections."""
        self.state = EngineState.STOPPED
        for task in tuple(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        if self._upstream is not None:
            await self._upstream.close()
        if self._turns.full():
            self._turns.get_nowait()
        self._turns.put_nowait(None)

    def _require(self) -> tuple[Upstream, UpstreamDescription]:
        if self._upstream is None or self._told is None:
            raise RuntimeError("the upstream has not answered yet: no generation can begin")
        return self._upstream, self._told

    def _keep(self, task: asyncio.Task[None]) -> None:
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _watch(self, upstream: Upstream) -> None:
        """Tell when the upstream no longer answers, when it does again, and as what."""
        while True:
            # Not `wait_for`, which forgets a cancel that comes with the event.
            with suppress(TimeoutError):
                async with asyncio.timeout(self._options.health_interval_s):
                    await self._is_due.wait()
            self._is_due.clear()
            is_up, was_up = await self._check_health(upstream), self.state is EngineState.RUNNING
            if is_up and not (was_up and await self._is_same(upstream)):
                is_up = await self._ask_again(upstream)
            if is_up is was_up:
                continue
            self.state = EngineState.RUNNING if is_up else EngineState.RESTARTING
            said = "answers again" if is_up else "does not answer; generations will fail until then"
            _log.warning("the upstream at %s %s", self._options.url, said)
            await self.on_change(is_up)

    async def _check_health(self, upstream: Upstream) -> bool:
        try:
            return await upstream.check_health()
        except WhenceError as error:
            # For example a key's file that is being replaced. Its generations fail, too.
            self._say_once(f"the upstream cannot be asked: {error.message}")
            return False

    async def _is_same(self, upstream: Upstream) -> bool:
        try:
            return await upstream.is_same()
        except WhenceError as error:
            self._say_once(f"the upstream cannot be asked: {error.message}")
            return True

    async def _ask_again(self, upstream: Upstream) -> bool:
        """Ask an upstream that was started anew what it is; return False if it cannot be used.

        It may give logprobs of another distribution, which the grades have to say. Records name
        what it is now; the model that clients ask for stays the same.
        """
        try:
            told = await upstream.describe()
            model = describe_model(self._options, told, self._files)
        except WhenceError as error:
            self._say_once(f"the upstream answers and cannot be used: {error.message}")
            return False
        if told != self._told:
            _log.warning(
                "the upstream at %s came back as another one: it is %s %s, and serves %s%s",
                self._options.url,
                told.kind,
                told.version or "of an unknown version",
                told.model,
                f" from {told.claimed_files}" if told.claimed_files else "",
            )
            self._changed = model
            self._note_weights(model)
            if self._on_model is not None:
                self._on_model(model)
        self._told, self._obstacle = told, ""
        return True

    def _note_weights(self, model: ModelInfo) -> None:
        self._weights_origin = model.weights_origin
        if model.upstream is not None and model.upstream.weights_difference:
            _log.warning(
                "%s: the digests of its files are on record, and the weights are graded as claimed",
                model.upstream.weights_difference,
            )

    def _say_once(self, obstacle: str) -> None:
        if obstacle != self._obstacle:
            _log.warning("%s", obstacle)
        self._obstacle = obstacle


async def _ignore(_up: bool) -> None:
    pass
