"""Record what an engine's turns say, each in the generation that it concerns."""

import logging
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager

from whence_server import logs
from whence_server.domain.engine import Engine, StopGeneration, StopSequence, Turn
from whence_server.domain.errors import GenerationFailedError, WhenceError
from whence_server.generation.content.held import HeldContents
from whence_server.generation.content.holding import Holding
from whence_server.generation.readmission import Readmission
from whence_server.generation.running import RunningGeneration
from whence_server.generation.slices import record_in_slices
from whence_server.generation.upstream_running import UpstreamGeneration

_log = logging.getLogger(__name__)


class TurnRecorder:
    """Recorder of turns: steps, prompts, beam searches and failures of running generations."""

    def __init__(
        self,
        running: Mapping[str, RunningGeneration],
        engine: Engine,
        readmission: Readmission,
        forget: Callable[[RunningGeneration], None],
        contents: HeldContents,
    ) -> None:
        """Create a recorder.

        Args:
            running: the running generations by id; turns of others are passed over.
            engine: told to stop a sequence at its stop string, and a generation that failed.
            readmission: told which generations have taken a step.
            forget: called with each generation that a turn has ended.
            contents: entries of streams whose records hold less.
        """
        self._running = running
        self._engine = engine
        self._readmission = readmission
        self._forget = forget
        self._holding = Holding(running, engine, readmission, contents, forget)

    async def record(self, turn: Turn) -> None:
        """Record a turn; end the generations that it completes or that cannot be recorded.

        Raises:
            WhenceError: the journal failed.
        """
        await self._record_prompts(turn)
        self._record_steps(turn)
        await self._record_searches(turn)
        self._holding.stop_full()

    def _record_steps(self, turn: Turn) -> None:
        for reading in turn.prompts_reading:
            running = self._running.get(reading.generation_id)
            if running is not None:
                running.num_prompt_tokens_read = reading.num_tokens
        for prefilled in turn.prefilled:
            running = self._running.get(prefilled.generation_id)
            if running is not None:
                with self._isolate(running):
                    running.record_prefill(prefilled)
        for made in turn.steps:
            running = self._running.get(made.generation_id)
            if running is None or self._holding.is_stopped(running):
                continue
            with self._isolate(running):
                if running.record_step(made, turn):
                    self._engine.send(StopSequence(made.generation_id, made.sequence_index))
                self._readmission.note_step(running)
                if running.complete:
                    running.finish()
                    self._forget(running)
        if turn.upstream_pieces or turn.upstream_done:
            self._record_upstream(turn)
        for failed in turn.failed:
            running = self._running.get(failed.generation_id)
            if running is not None:
                running.fail(failed.reason, failed.message, failed.code, failed.retry_after_s)
                self._forget(running)
        self._record_rounds(turn)

    def _record_upstream(self, turn: Turn) -> None:
        """Record an upstream's messages, each in its generation."""
        for piece in turn.upstream_pieces:
            running = self._running.get(piece.generation_id)
            if isinstance(running, UpstreamGeneration):
                with self._isolate(running):
                    if running.record_piece(piece):
                        stopped = StopSequence(piece.generation_id, piece.sequence_index)
                        self._engine.send(stopped)
                    self._readmission.note_step(running)
        for done in turn.upstream_done:
            running = self._running.get(done.generation_id)
            if isinstance(running, UpstreamGeneration):
                with self._isolate(running):
                    running.record_report(done.report)
                    running.finish()
                    self._forget(running)

    def _record_rounds(self, turn: Turn) -> None:
        for made in turn.beam_rounds:
            running = self._running.get(made.generation_id)
            if running is None:
                continue
            with self._isolate(running):
                if running.record_round(made, turn.cost):
                    self._readmission.note_step(running)

    async def _record_prompts(self, turn: Turn) -> None:
        """Record the steps of prompts, a slice at a time."""
        for scored in turn.prompt_scored:
            running = self._running.get(scored.generation_id)
            if running is not None:
                with self._isolate(running):
                    await record_in_slices(running, running.record_prompt(scored))

    async def _record_searches(self, turn: Turn) -> None:
        """Record the sequences that finished beam searches return, a slice at a time."""
        for won in turn.beam_steps:
            running = self._running.get(won.generation_id)
            if running is not None:
                with self._isolate(running):
                    await record_in_slices(running, running.record_search(won))
        for search in turn.beam_searches:
            running = self._running.get(search.generation_id)
            if running is not None:
                with self._isolate(running):
                    running.finish()
                    self._forget(running)

    @contextmanager
    def _isolate(self, running: RunningGeneration) -> Iterator[None]:
        """Fail the generation if it cannot be recorded, and let the others go on.

        Raises:
            WhenceError: the journal failed, and not this generation alone.
        """
        try:
            yield
        except GenerationFailedError as error:
            self._fail(running, error.reason, error.message)
        except WhenceError:
            raise
        except Exception as error:  # noqa: BLE001 - any error ends this generation alone
            _log.exception(
                "a generation cannot be recorded", extra={logs.GENERATION_ID: running.id}
            )
            self._fail(
                running,
                "RECORDING_FAILED",
                f"the generation cannot be recorded: {type(error).__name__}",
            )

    def _fail(self, running: RunningGeneration, reason: str, message: str) -> None:
        self._engine.send(StopGeneration(running.id))
        running.fail(reason, message)
        self._forget(running)
