"""One generation of an upstream: asked for, followed, begun again if it was away, reported."""

import asyncio
import logging
import time
from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from contextlib import aclosing
from typing import Any, cast

from whence_server.domain.engine import (
    Admit,
    Cost,
    GenerationFailed,
    Prefilled,
    PromptReading,
    Turn,
)
from whence_server.domain.errors import (
    UpstreamAwayError,
    UpstreamMalformedError,
    UpstreamUnfinishedError,
    WhenceError,
)
from whence_server.domain.upstream import UpstreamDone
from whence_server.engines.upstream.exchange import (
    Upstream,
    UpstreamChunk,
    UpstreamEnd,
    UpstreamEvent,
    UpstreamPrompt,
    UpstreamRequest,
)
from whence_server.engines.upstream.second import SecondComputer
from whence_server.engines.upstream.translate import Translator

_log = logging.getLogger(__name__)

_MAX_MESSAGE_CHARACTERS = 300
_FIRST_DELAY_S = 0.5
"""Delay before a request is sent again, unless the upstream said one; doubles every time."""


class UpstreamRun:
    """One generation in an upstream.

    Args:
        upstream: the upstream.
        admission: the generation to run.
        request: the request for it.
        pinned: what the upstream was as the generation began; each attempt is held against it.
        computer: computer of the second distribution; None if it is not computed.
        knows_vocabulary: True if ids alone name the tokens.
        num_retries: times that it is begun again, if it got no token.
        put: takes a turn, and waits while the front is behind.
        on_failure: called with the error that ends the generation.

    Attributes:
        translator: translator of its messages.
    """

    def __init__(
        self,
        upstream: Upstream,
        admission: Admit,
        request: UpstreamRequest,
        *,
        pinned: object,
        computer: SecondComputer | None,
        knows_vocabulary: bool,
        num_retries: int,
        put: Callable[[Turn], Awaitable[None]],
        on_failure: Callable[[WhenceError], None] = lambda _: None,
    ) -> None:
        self._upstream = upstream
        self._admission = admission
        self._request = request
        self._pinned = pinned
        self._num_retries = num_retries
        self._put = put
        self._on_failure = on_failure
        self._has_chunk = False
        self._end = UpstreamEnd()
        self._began_ns = 0
        self._is_stopped = False
        self._task: asyncio.Task[None] | None = None
        self.translator = Translator(
            admission.generation_id,
            num_sequences=admission.decoding.num_return_sequences,
            num_candidates=admission.trace.num_candidates,
            knows_vocabulary=knows_vocabulary,
            computer=computer,
        )

    def stop_sequence(self, sequence_index: int) -> None:
        """Pass on no more of a sequence; after the last one the upstream's request ends."""
        # With its last sequence ended, the end is on its way, and a cancel would lose it.
        had_finished = self.translator.has_finished
        self.translator.drop(sequence_index)
        if self.translator.has_finished and not had_finished and self._task is not None:
            self._is_stopped = True
            self._task.cancel()

    async def run(self) -> None:
        """Run the generation to its end or its failure; a cancel ends the upstream's request."""
        self._task = asyncio.current_task()
        try:
            await self._follow_with_retries()
        except WhenceError as error:
            await self._fail(error)
        except Exception as error:  # noqa: BLE001 - any error ends this generation alone
            _log.exception("the answer of an upstream cannot be read")
            told = f"the upstream's answer cannot be read: {type(error).__name__}: {error}"
            await self._fail(UpstreamMalformedError(told[:_MAX_MESSAGE_CHARACTERS]))

    async def _follow_with_retries(self) -> None:
        delay_s = _FIRST_DELAY_S
        for attempt in range(self._num_retries + 1):
            try:
                return await self._follow()
            except UpstreamAwayError as error:
                if self._has_chunk or attempt == self._num_retries:
                    raise
                wait_s = max(delay_s, error.retry_after_s)
                _log.warning("%s; the generation is begun again in %.1f s", error.message, wait_s)
                await asyncio.sleep(wait_s)
                delay_s *= 2
        return None

    async def _follow(self) -> None:
        """Send the request, and pass on the answer until every sequence has ended."""
        generation_id = self._admission.generation_id
        self._began_ns = time.monotonic_ns()
        await self._put(_make_turn(prompts_reading=[PromptReading(generation_id, 0)]))
        try:
            await self._read_answer()
        except asyncio.CancelledError:
            if not self._is_stopped:
                raise
            task = asyncio.current_task()
            if task is not None:
                task.uncancel()
        if not self.translator.has_finished:
            raise UpstreamUnfinishedError(
                "the upstream's answer ended before every sequence had its finish reason"
            )
        report = self.translator.report(self._end, self._admission.prompt_token_ids)
        await self._put(_make_turn(upstream_done=[UpstreamDone(generation_id, report)]))

    async def _read_answer(self) -> None:
        # Closing an asynchronous generator ends the upstream's request at once.
        events = cast(
            "AsyncGenerator[UpstreamEvent, None]",
            self._upstream.generate(self._request, self._pinned),
        )
        async with aclosing(events):
            async for event in events:
                if isinstance(event, UpstreamPrompt):
                    self.translator.note_prompt(event)
                elif isinstance(event, UpstreamEnd):
                    self._end = event
                else:
                    await self._pass_on(event)

    async def _pass_on(self, chunk: UpstreamChunk) -> None:
        piece = self.translator.translate(chunk)
        if piece is None:
            return
        prefilled = []
        if not self._has_chunk:
            self._has_chunk = True
            # What the upstream did before its first chunk is queueing and reading: nobody says
            # where the one ends.
            generation_id = self._admission.generation_id
            prefilled = [Prefilled(generation_id, self._began_ns, piece.ready_ns, 0)]
        await self._put(_make_turn(prefilled=prefilled, upstream_pieces=[piece]))

    async def _fail(self, error: WhenceError) -> None:
        self._on_failure(error)
        failed = GenerationFailed(
            self._admission.generation_id,
            error.reason,
            error.message,
            error.code,
            getattr(error, "retry_after_s", None),
        )
        await self._put(_make_turn(failed=[failed]))


def join_turns(turns: Sequence[Turn]) -> Turn:
    """Return one turn with the results of several, in their order."""
    return Turn(
        turns[-1].cost,
        prompts_reading=[it for turn in turns for it in turn.prompts_reading],
        prefilled=[it for turn in turns for it in turn.prefilled],
        failed=[it for turn in turns for it in turn.failed],
        upstream_pieces=[it for turn in turns for it in turn.upstream_pieces],
        upstream_done=[it for turn in turns for it in turn.upstream_done],
    )


def _make_turn(**results: Any) -> Turn:
    """Return a turn; of an upstream's passes and batches nothing is known."""
    return Turn(Cost(time.monotonic_ns(), 0, 0, 0), **results)
