"""Start, follow, stop and close the generations of one server."""

import asyncio
import logging
import uuid
from collections.abc import AsyncGenerator
from contextlib import AbstractContextManager, nullcontext, suppress
from functools import partial

from whence_server.domain.chat import ChatInput
from whence_server.domain.decoding import FinishReason
from whence_server.domain.engine import Admit, Engine, Grader, StopGeneration
from whence_server.domain.entries import Entry
from whence_server.domain.errors import (
    DrainingError,
    EngineLostError,
    GenerationExistsError,
    JournalError,
    ModelNotFoundError,
    QueueFullError,
)
from whence_server.domain.generation import Started
from whence_server.domain.limits import Limits
from whence_server.domain.model import ModelInfo
from whence_server.domain.occurrences import (
    Caller,
    CancelledByCall,
    CancelledWithoutReader,
    Happening,
    MaxDurationPassed,
)
from whence_server.domain.requests import GenerationRequest
from whence_server.generation.activity import EngineActivity
from whence_server.generation.arrival import Arrival
from whence_server.generation.content.forms import StoredForms
from whence_server.generation.content.held import HeldContents
from whence_server.generation.grades import OwnGrader
from whence_server.generation.prepare import Prepared, check_size, is_quick
from whence_server.generation.progress import Phase, Progress, describe_progress
from whence_server.generation.quotas import Quotas
from whence_server.generation.readers import Reader, Reading, count_reader
from whence_server.generation.readmission import Readmission
from whence_server.generation.record_failure import Begun, RecordFailure, Recording
from whence_server.generation.running import RunningGeneration
from whence_server.generation.starting import make_index, make_started
from whence_server.generation.texts import Texts
from whence_server.generation.turns import TurnRecorder
from whence_server.generation.upstream_prepare import fit_checks, prepare_for_engine
from whence_server.generation.upstream_running import UpstreamGeneration
from whence_server.journal.journal import Journal
from whence_server.journal.rows import GenerationRow
from whence_server.text.tokenizer import TextTokenizer

_log = logging.getLogger(__name__)

_RETRY_AFTER_S = 1.0
# Seconds within which the call that started a generation has to begin reading it.
_FIRST_READER_S = 5.0


class Generations:
    """Service that admits requests to the engine, records their results and lets calls follow them.

    All methods are called from one event loop, in which `run` runs as a task.

    Attributes:
        activity: load of the engine.
    """

    def __init__(
        self,
        *,
        engine: Engine,
        journal: Journal,
        model: ModelInfo,
        tokenizer: TextTokenizer | None,
        texts: Texts | None,
        limits: Limits,
        grader: Grader | None = None,
        record_failure: RecordFailure = RecordFailure.CLOSED,
        forms: StoredForms | None = None,
        contents: HeldContents | None = None,
    ) -> None:
        """Create the service.

        Args:
            engine: the engine, which has started.
            journal: the journal.
            model: the model that the engine serves.
            tokenizer: the model's tokenizer; None for an upstream whose tokenizer is not known.
            texts: processes that prepare long texts and chats; None without a tokenizer.
            limits: limits of the server.
            grader: grader of what the engine shows; None for whence's own engine.
            record_failure: policy for requests while the journal cannot be written.
            forms: stored forms of generations whose record holds less than their stream.
            contents: entries of those streams.
        """
        self._engine = engine
        self._journal = journal
        self.recording = Recording(journal, record_failure, forms=forms, contents=contents)
        self._given_limits = limits
        self.set_model(model)
        self._tokenizer = tokenizer
        self._texts = texts
        self._grader = grader or OwnGrader()
        self.activity = EngineActivity()
        self._readmission = Readmission(self._send_admission)
        self._running: dict[str, RunningGeneration] = {}
        self._quotas = Quotas(limits.per_caller, self._running)
        self._turns = TurnRecorder(
            self._running, engine, self._readmission, self._forget, self.recording.contents
        )
        self._starting = self.recording.starting
        self._num_starting = 0
        self._lost: EngineLostError | None = None
        self._draining = False
        self._idle = asyncio.Event()
        self._idle.set()

    def set_model(self, model: ModelInfo) -> None:
        """Serve a model from now on, as its upstream describes it; what runs keeps the former."""
        self._model = model
        self._checked_model, self._limits = fit_checks(model, self._given_limits)

    @property
    def model_name(self) -> str:
        """Name that clients use for the model."""
        return self._model.name

    @property
    def num_running(self) -> int:
        """Generations that have started and not finished."""
        return len(self._running)

    @property
    def num_unrecorded(self) -> int:
        """Generations that have been served without a record."""
        return self.recording.unrecorded.num_begun

    @property
    def num_waiting_sequences(self) -> int:
        """Sequences whose prompt the engine has not read completely."""
        return sum(g.started.decoding.num_rows for g in self._running.values() if g.waiting)

    # ---- starting ----

    async def start(self, request: GenerationRequest, arrival: Arrival) -> str:
        """Admit a request, or join the generation that an equal request began.

        Returns:
            The generation's id.

        Raises:
            InvalidRequestError, ModelNotFoundError, NotOfferedError: the request is wrong.
            GenerationExistsError: its id belongs to another request.
            CallerLimitError: the caller is at a limit.
            QueueFullError, DrainingError, EngineLostError, JournalUnwritableError: the server
                cannot admit requests now.
        """
        generation_id = request.generation_id or str(uuid.uuid4())
        while (other := self._starting.get(generation_id)) is not None:
            await other.wait()
        started = self._starting[generation_id] = asyncio.Event()
        num_sequences = self._count_rows(request)
        self._num_starting += num_sequences
        try:
            if not (request.generation_id and await self._has_begun(request, arrival.caller_id)):
                self._check_admission(request)
                await self._journal.stored.check(arrival.caller_id, self._limits.stored_bytes)
                with self._quotas.start(arrival.caller_id, num_sequences, request):
                    await self._start_new(generation_id, request, arrival)
        finally:
            self._num_starting -= num_sequences
            del self._starting[generation_id]
            started.set()
        return generation_id

    async def _has_begun(self, request: GenerationRequest, caller_id: str) -> bool:
        """Return whether an equal request of the same caller began this generation already."""
        record = await self.look_up(request.generation_id)
        if record is None:
            return False
        if record.index.owner != caller_id:
            # Nothing more is told of another caller's generation.
            raise GenerationExistsError(request.generation_id)
        if record.deleted or not self.recording.forms.matches(record, request):
            raise GenerationExistsError(request.generation_id, deleted=record.deleted)
        return True

    def _check_admission(self, request: GenerationRequest) -> None:
        self._check_running()
        self.recording.check()
        if request.model not in ("", self._model.name):
            raise ModelNotFoundError(request.model, self._model.name)
        waiting = self._num_starting + self.num_waiting_sequences
        # If nothing else waits, a request of any number of sequences is admitted.
        if waiting > max(self._limits.max_queue, self._count_rows(request)):
            raise QueueFullError(self._limits.max_queue, _RETRY_AFTER_S)

    def _check_running(self) -> None:
        if self._draining:
            raise DrainingError
        if self._lost is not None:
            raise self._lost

    def _count_rows(self, request: GenerationRequest) -> int:
        """Return the number of batch rows that the request's own fields ask for.

        The result is limited to the batch size, so that a request that will be refused for asking
        for more does not fill the queue meanwhile.
        """
        decoding = request.decoding
        wanted = max(decoding.num_beams or 1, decoding.num_return_sequences or 1)
        return min(wanted, self._limits.max_batch_size)

    async def _start_new(
        self, generation_id: str, request: GenerationRequest, arrival: Arrival
    ) -> None:
        ready = await self._prepare(request)
        started = make_started(
            generation_id,
            request,
            ready,
            arrival=arrival,
            model=self._model,
            grader=self._grader,
        )
        async with self.recording.forms.prepare(started), self.recording.hold(generation_id):
            self._check_running()
            self._admit(started, request, arrival, ready.sent)

    async def _prepare(self, request: GenerationRequest) -> Prepared:
        """Prepare a request: here if that is quick, else in a text process."""
        model, limits, tokenizer = self._checked_model, self._limits, self._tokenizer
        if tokenizer is None or self._texts is None or is_quick(request):
            return prepare_for_engine(request, model=model, limits=limits, tokenizer=tokenizer)
        check_size(request, model=model, limits=limits, tokenizer=tokenizer)
        return await self._texts.prepare(request)

    def _admit(
        self,
        started: Started,
        request: GenerationRequest,
        arrival: Arrival,
        sent: str | ChatInput | None,
    ) -> None:
        index = make_index(started, self._model.name)
        grace_s = min(request.disconnect_grace_s, self._limits.longest_grace_s)
        begun = self.recording.begin(index, started, grace_s)
        running = self._make_running(begun, grace_s, arrival, sent)
        self._running[running.id] = running
        self._quotas.reserve(running)
        self._idle.clear()
        self._readmission.admit(running)
        if request.max_duration_s is not None:
            self._set_timer(
                running,
                "duration",
                request.max_duration_s,
                FinishReason.TIMEOUT,
                MaxDurationPassed(request.max_duration_s),
            )
        self._await_reader(running, max(running.grace_s, _FIRST_READER_S))

    def _make_running(
        self,
        begun: Begun,
        grace_s: float,
        arrival: Arrival,
        sent: str | ChatInput | None,
    ) -> RunningGeneration:
        arrival_ns = arrival.monotonic_ns
        if self._tokenizer is not None and self._model.upstream is None:
            return RunningGeneration(
                begun.started,
                arrival_ns=arrival_ns,
                grace_s=grace_s,
                journal=begun.record,
                tokenizer=self._tokenizer,
            )
        return UpstreamGeneration(
            begun.started,
            arrival_ns=arrival_ns,
            grace_s=grace_s,
            journal=begun.record,
            tokenizer=self._tokenizer,
            sent=sent,
        )

    def _send_admission(self, admission: Admit) -> None:
        running = self._running.get(admission.generation_id)
        if running is not None:
            running.occurrences.record_admission()
        self._engine.send(admission)

    # ---- following and stopping ----

    async def follow(
        self, generation_id: str, after_offset: int, reader: Reader
    ) -> AsyncGenerator[list[Entry], None]:
        """Yield the generation's entries after `after_offset`, as they are made, until its finish.

        A generation is not abandoned while at least one call follows it. The caller asks for the
        next entries only after it has written the last ones to the connection.

        Raises:
            GenerationNotFoundError: the generation does not exist, or was deleted.
            ContentNotReadError: its content is in memory no longer, and the reader takes no less.
        """
        running, reading = self._running.get(generation_id), Reading(reader, after_offset)
        with nullcontext() if running is None else self._count_reader(running, reading):
            async for entries in self.recording.follow(
                generation_id, after_offset, whole=reader.is_own, takes_record=reader.takes_record
            ):
                yield entries
                reading.last_offset = entries[-1].offset

    async def look_up(self, generation_id: str) -> GenerationRow | None:
        """Return a generation's row, deleted or not; None if the id is unknown."""
        return await self.recording.look_up(generation_id)

    def get_unrecorded_reason(self, generation_id: str) -> str:
        """Return why a running generation is not on record; "" if it is, or has ended."""
        running = self._running.get(generation_id)
        return "" if running is None else running.started.unrecorded_reason

    def get_progress(self, generation_id: str) -> Progress:
        """Return the progress of a generation that a call reads."""
        running = self._running.get(generation_id)
        if running is None:
            return Progress(Phase.RECORDING)
        return describe_progress(
            running, self._running.values(), engine_is_down=self._readmission.is_down
        )

    def _count_reader(
        self, running: RunningGeneration, reading: Reading
    ) -> AbstractContextManager[None]:
        held = self.recording.contents.find(running.id)
        if reading.keeps(held):
            self._cancel_timer(running, "grace")
        leave = partial(self._await_reader, running, running.grace_s)
        return count_reader(running, reading, held, leave)

    def _await_reader(self, running: RunningGeneration, seconds: float) -> None:
        """Cancel the generation if no call reads it within some seconds."""
        happening = CancelledWithoutReader(seconds)
        self._set_timer(running, "grace", seconds, FinishReason.CANCELLED, happening)

    async def cancel(self, generation_id: str, caller: Caller) -> None:
        """Stop a generation at once; do nothing if it has finished.

        Raises:
            GenerationElsewhereError, GenerationNotFoundError: as `require_no_other_runs` does.
        """
        running = self._running.get(generation_id)
        if running is None:
            await self.recording.require_no_other_runs(generation_id)
            return
        self._stop(running, FinishReason.CANCELLED, CancelledByCall(caller))

    def _set_timer(
        self,
        running: RunningGeneration,
        name: str,
        delay_s: float,
        reason: FinishReason,
        happening: Happening,
    ) -> None:
        self._cancel_timer(running, name)
        loop = asyncio.get_running_loop()
        running.timers[name] = loop.call_later(delay_s, self._stop, running, reason, happening)

    def _cancel_timer(self, running: RunningGeneration, name: str) -> None:
        timer = running.timers.pop(name, None)
        if timer is not None:
            timer.cancel()

    def _stop(
        self, running: RunningGeneration, reason: FinishReason, happening: Happening | None = None
    ) -> None:
        if running.done.is_set():
            return
        if happening is not None:
            running.occurrences.record(happening)
        if self._readmission.has_sent(running):
            self._engine.send(StopGeneration(running.id))
        running.finish(reason)
        self._forget(running)

    def _forget(self, running: RunningGeneration) -> None:
        self._running.pop(running.id, None)
        self._quotas.settle(running)
        self._readmission.forget(running)
        if not self._running:
            self.activity.note_idle()
            self._idle.set()

    # ---- the engine's side ----

    async def run(self) -> None:
        """Record the engine's turns, and restart the engine after its deaths.

        Raises:
            EngineLostError: the engine could not be restarted; running generations are finished
                as INTERRUPTED.
            JournalError: the journal cannot be written; running generations end unrecorded.
        """
        try:
            while True:
                try:
                    async for turn in self._engine.read_turns():
                        self.activity.note_turn(turn)
                        await self._turns.record(turn)
                        # Turns that are buffered are read without waiting: let other tasks run.
                        await asyncio.sleep(0)
                        # A full disk or a slow one holds the engine back, not the memory.
                        if not await self.recording.wait_for_room():
                            self._interrupt_recorded()
                except EngineLostError as error:
                    await self._revive(error)
                else:
                    return
        except EngineLostError as error:
            self._lost = error
            raise
        finally:
            for running in list(self._running.values()):
                # If the journal is lost, the next start closes the generation.
                with suppress(JournalError):
                    running.finish(FinishReason.INTERRUPTED)
                self._forget(running)

    def _interrupt_recorded(self) -> None:
        """Interrupt the generations whose entries wait for the journal: memory is full of them."""
        for running in list(self._running.values()):
            if running.is_recorded:
                self._stop(running, FinishReason.INTERRUPTED)

    async def _revive(self, error: EngineLostError) -> None:
        _log.error("%s; %d generations were running", error, len(self._running))
        for running in self._running.values():
            running.occurrences.record_engine_ended(error.message)
        for running in self._readmission.note_death(self._running.values()):
            running.fail(
                "ENGINE_CRASHED",
                "the engine process died while it ran this generation alone; it is not tried again",
            )
            self._forget(running)
        for running in self._running.values():
            running.num_prompt_tokens_read = None
        await self._engine.restart()
        self.activity.note_restart()
        self._readmission.note_restart()

    async def drain(self, grace_s: float) -> None:
        """Admit nothing more, let generations finish within the grace, and interrupt the rest."""
        self._draining = True
        if self._texts is not None:
            await self._texts.close()
        try:
            async with asyncio.timeout(grace_s):
                await self._idle.wait()
        except TimeoutError:
            _log.warning(
                "interrupting %d generations that have not finished within the grace",
                len(self._running),
            )
        for running in list(self._running.values()):
            self._stop(running, FinishReason.INTERRUPTED)
