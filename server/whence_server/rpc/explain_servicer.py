"""ExplainService: says what in the context caused an output."""

import asyncio
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing
from dataclasses import asdict, replace
from typing import Any, NoReturn

from whence.v1 import explain_pb2
from whence_server.analysis.host import AnalysisHost, Refusals
from whence_server.domain.errors import (
    DrainingError,
    ExplanationBusyError,
    ExplanationRefusedError,
    ExplanationTooLargeError,
    FieldViolation,
    InvalidRequestError,
    ScopeMissingError,
)
from whence_server.domain.explanations import ExplainQuestion
from whence_server.domain.identity import Scope
from whence_server.journal.journal import Journal
from whence_server.rpc.calls import Call, Method
from whence_server.rpc.conversions import require_generation_id
from whence_server.rpc.explain_record import RecordedOutput, read_output
from whence_server.rpc.explain_recording import Redact, keep, record_explanation
from whence_server.rpc.explain_requests import Way, read_given, read_way
from whence_server.rpc.visibility import require_access, sees_content
from whence_server.rpc.watching import stop_at_close

SERVICE = "whence.v1.ExplainService"


def _refuse_late(longest_s: float) -> NoReturn:
    raise ExplanationTooLargeError(
        f"the explanation takes more than {longest_s:.0f} s, the most for one: ask for larger "
        "segments, or another method"
    )


_REFUSALS = Refusals(ExplanationBusyError, _refuse_late)


class ExplainServicer:
    """Servicer that explains outputs with the weights of this server.

    Args:
        journal: the records.
        host: the analysis process.
        closing: set when the server closes.
        count_running: returns the number of generations that need the cores.
        redact: returns a text as it is stored.
    """

    def __init__(
        self,
        journal: Journal,
        host: AnalysisHost,
        closing: asyncio.Event,
        count_running: Callable[[], int] = lambda: 0,
        redact: Redact = keep,
    ) -> None:
        self._journal = journal
        self._host = host
        self._closing = closing
        self._count_running = count_running
        self._redact = redact

    def list_methods(self) -> list[Method[Any]]:
        """Return the service's methods."""
        return [Method("Explain", explain_pb2.ExplainRequest, stream=self.explain)]

    async def explain(
        self, request: explain_pb2.ExplainRequest, call: Call
    ) -> AsyncGenerator[bytes, None]:
        """Stream progress and scores; the last message is the explanation."""
        source = request.WhichOneof("source")
        if source is None:
            raise InvalidRequestError(
                FieldViolation("source", "one of `recorded` or `given` must be set")
            )
        way = read_way(request)
        call.make_filler = explain_pb2.ExplainResponse().SerializeToString
        output: RecordedOutput | None = None
        if source == "recorded":
            output = await self._read_output(request.recorded, call)
        question = _make_question(request, output, way)
        if not self._host.has_model:
            raise _refuse_without_weights(question)
        if self._host.is_busy:
            yield _WAITING

        async def give() -> ExplainQuestion:
            return replace(question, uses_all_cores=not self._count_running())

        asked = self._host.ask(give, call.identity.id or call.caller.address, _REFUSALS)
        is_done = False
        async with aclosing(stop_at_close(asked, self._closing)) as messages:
            async for message in messages:
                is_done = is_result(message)
                if output is not None and is_done:
                    yield await self._record(message, output, call)
                else:
                    yield message
        # A caller that has the result has all that it asked for.
        if self._closing.is_set() and not is_done:
            raise DrainingError

    async def _read_output(self, recorded: explain_pb2.RecordedSpan, call: Call) -> RecordedOutput:
        generation_id = require_generation_id(recorded.generation_id)
        if not sees_content(call.identity):
            raise ScopeMissingError([Scope.READ_CONTENT])
        await require_access(self._journal, generation_id, call.identity, Scope.READ_ALL)
        call.generation_id = generation_id
        await self._journal.get(generation_id)
        return await read_output(self._journal, recorded)

    async def _record(self, message: bytes, output: RecordedOutput, call: Call) -> bytes:
        """Record a result; return the message with the reason if it is not recorded."""
        response = explain_pb2.ExplainResponse.FromString(message)
        reason = await record_explanation(
            self._journal, output, response.result, call.caller, self._redact
        )
        response.result.unrecorded_reason = reason
        return response.SerializeToString()


def is_result(message: bytes) -> bool:
    """Return whether a serialised ExplainResponse is the last one."""
    return message.startswith(_RESULT_TAG)


def _make_question(
    request: explain_pb2.ExplainRequest, output: RecordedOutput | None, way: Way
) -> ExplainQuestion:
    if output is None:
        prompt, text = read_given(request.given)
        return ExplainQuestion(prompt=prompt, output=text, begin=0, **asdict(way))
    return ExplainQuestion(
        prompt=output.prompt,
        output=output.output,
        begin=request.recorded.begin_step,
        contents=output.contents,
        weights=output.weights,
        sequence_index=request.recorded.sequence_index,
        **asdict(way),
    )


def _refuse_without_weights(question: ExplainQuestion) -> ExplanationRefusedError:
    wanted = "" if question.weights is None else question.weights.digest
    named = f"; the record names {wanted}" if wanted else ""
    return ExplanationRefusedError(
        "NO_WEIGHTS",
        f"this server has no weights to explain with{named}: serve them with --model, or name "
        "those of its upstream with --upstream-weights",
        weights_digest=wanted,
    )


# Field 3 with a length: a message has one event, and nothing else.
_RESULT_TAG = b"\x1a"
_WAITING = explain_pb2.ExplainResponse(
    progress=explain_pb2.ExplainProgress(phase=explain_pb2.EXPLAIN_PHASE_WAITING)
).SerializeToString()
