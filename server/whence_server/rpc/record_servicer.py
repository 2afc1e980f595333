"""RecordService: puts generations of other processes on record."""

import asyncio
import logging
import uuid
from collections.abc import AsyncGenerator
from typing import Any

from opentelemetry.sdk.trace.sampling import Sampler

from whence.v1 import generation_pb2, record_pb2
from whence_server.domain.errors import (
    Code,
    FieldViolation,
    InvalidRequestError,
)
from whence_server.domain.errors.panics import is_panic
from whence_server.domain.generation import Failure
from whence_server.domain.limits import Limits
from whence_server.domain.recorded import Refusal
from whence_server.generation.recording.batches import METHOD
from whence_server.generation.recording.recorders import Recorder, Recorders
from whence_server.journal.journal import Journal
from whence_server.rpc.calls import Call, Method
from whence_server.rpc.record_messages import MAX_NAME_CHARACTERS, convert_model, convert_start
from whence_server.rpc.record_steps import convert_end, convert_round, convert_step

_log = logging.getLogger(__name__)

SERVICE = "whence.v1.RecordService"

# Messages are acknowledged together: each answer waits for a commit.
_ANSWER_S = 0.05
_ANSWER_MESSAGES = 256


class RecordServicer:
    """Servicer that records the batches of recorders."""

    def __init__(
        self, recorders: Recorders, journal: Journal, limits: Limits, sampler: Sampler
    ) -> None:
        self._recorders = recorders
        self._journal = journal
        self._limits = limits
        self._sampler = sampler

    def list_methods(self) -> list[Method[Any]]:
        """Return the service's methods."""
        return [
            Method("RecordGenerations", record_pb2.RecordGenerationsRequest, stream=self.record)
        ]

    async def record(
        self, request: record_pb2.RecordGenerationsRequest, call: Call
    ) -> AsyncGenerator[bytes, None]:
        """Record what a recorder sends; answer with the number up to which it is on record."""
        hello = _require_hello(request)
        owner = call.identity.id
        recorder = self._recorders.connect(
            hello.recorder_id, hello.library, hello.first_number, owner
        )
        num_calls = recorder.num_calls
        yield _make_answer(recorder.last_number)
        call.make_filler = lambda: _make_answer(recorder.last_answer)
        reading = asyncio.ensure_future(_read(call))
        num_unanswered = 0
        try:
            while recorder.num_calls == num_calls:
                await asyncio.wait({reading}, timeout=_ANSWER_S if num_unanswered else None)
                if num_unanswered and (not reading.done() or num_unanswered >= _ANSWER_MESSAGES):
                    yield await self._answer(recorder)
                    num_unanswered = 0
                if not reading.done():
                    continue
                message = reading.result()
                if message is None:
                    break
                ready = await self._take(recorder, message)
                num_unanswered += 1
                if ready is not None:
                    yield ready
                await self._journal.wait_writable()
                reading = asyncio.ensure_future(_read(call))
            if num_unanswered:
                yield await self._answer(recorder)
        finally:
            reading.cancel()
            self._recorders.disconnect(hello.recorder_id, num_calls, owner)

    async def _answer(self, recorder: Recorder) -> bytes:
        number = recorder.last_number
        await self._journal.flush()
        recorder.last_answer = number
        return _make_answer(number, refusals=recorder.take_refusals())

    async def _take(
        self, recorder: Recorder, message: record_pb2.RecordGenerationsRequest
    ) -> bytes | None:
        """Record one message; return an answer that it needs at once.

        Raises:
            InvalidRequestError: the message is out of order, or concerns no batch and is wrong.
        """
        kind = message.WhichOneof("request")
        if kind == "model":
            model = convert_model(message.model)
            if await self._recorders.add_model(recorder, model):
                return _make_answer(recorder.last_answer, ready=model.number)
            return _make_answer(recorder.last_answer, wanted=model.tokenizer_sha256)
        if kind == "tokenizer":
            part = message.tokenizer
            number = await self._recorders.add_part(recorder, part.sha256, part.content)
            return _make_answer(recorder.last_answer, ready=number) if number else None
        if message.number <= recorder.last_number and message.number:
            return None
        if message.number != recorder.last_number + 1:
            raise InvalidRequestError(
                FieldViolation(
                    "number", f"must be {recorder.last_number + 1}, not {message.number}"
                )
            )
        if kind is None or kind == "hello":
            raise InvalidRequestError(
                FieldViolation("request", "must be a model, a tokenizer, or a part of a batch")
            )
        await self.put_on_record(recorder, message, kind)
        recorder.last_number = message.number
        return None

    async def put_on_record(
        self, recorder: Recorder, message: record_pb2.RecordGenerationsRequest, kind: str
    ) -> None:
        """Record a numbered message; refuse its batch if it is wrong.

        Raises:
            InvalidRequestError: it is wrong and belongs to no batch.
        """
        number = getattr(getattr(message, kind), "batch_number", 0)
        try:
            await self._record(recorder, message, kind, number)
        except InvalidRequestError as error:
            if not number:
                raise
            told = error.message
        except BaseException as error:
            if not (number and is_panic(error)):
                raise
            _log.warning("the tokenizer of a recorder fails: a batch is recorded no further")
            told = "the library of the model's tokenizer fails on the batch's tokens"
        else:
            return
        recorder.refuse(number, Failure(Code.INVALID_ARGUMENT, "RECORD_INVALID", told))

    async def _record(
        self,
        recorder: Recorder,
        message: record_pb2.RecordGenerationsRequest,
        kind: str,
        number: int,
    ) -> None:
        match kind:
            case "begun":
                start = convert_start(message.begun, self._limits, self._sampler, METHOD)
                await self._recorders.begin(recorder, start)
            case "step":
                if (batch := recorder.find_batch(number)) is not None:
                    size = batch.model.vocabulary_size
                    batch.record_step(convert_step(message.step, batch.start, size))
            case "round":
                if (batch := recorder.find_batch(number)) is not None:
                    size = batch.model.vocabulary_size
                    batch.record_round(convert_round(message.round, batch.start, size))
            case "ended":
                if (batch := recorder.find_batch(number)) is not None:
                    batch.finish(convert_end(message.ended, batch.start))
                    del recorder.batches[number]
            case "loss":
                recorder.note_loss(message.loss.num_generations)


async def _read(call: Call) -> record_pb2.RecordGenerationsRequest | None:
    if call.read_next is None:
        raise RuntimeError("the call has no stream of requests")
    message: record_pb2.RecordGenerationsRequest | None = await call.read_next()
    return message


def _require_hello(request: record_pb2.RecordGenerationsRequest) -> record_pb2.RecorderHello:
    if request.WhichOneof("request") != "hello":
        raise InvalidRequestError(FieldViolation("request", "must be `hello` in the first message"))
    hello = request.hello
    try:
        canonical = str(uuid.UUID(hello.recorder_id))
    except ValueError:
        canonical = ""
    if canonical != hello.recorder_id or not canonical:
        raise InvalidRequestError(
            FieldViolation("hello.recorder_id", "must be a UUID in lower-case canonical form")
        )
    if not 0 < len(hello.library) <= MAX_NAME_CHARACTERS:
        raise InvalidRequestError(
            FieldViolation(
                "hello.library", f"must be a text of at most {MAX_NAME_CHARACTERS} characters"
            )
        )
    return hello


def _make_answer(
    recorded_number: int, *, ready: int = 0, wanted: str = "", refusals: list[Refusal] | None = None
) -> bytes:
    return record_pb2.RecordGenerationsResponse(
        recorded_number=recorded_number,
        ready_model_numbers=[ready] if ready else [],
        wanted_tokenizer=wanted,
        refused=[
            record_pb2.RefusedBatch(
                batch_number=refusal.batch_number,
                failure=generation_pb2.Failure(
                    code=refusal.failure.code.value,
                    reason=refusal.failure.reason,
                    message=refusal.failure.message,
                ),
            )
            for refusal in refusals or ()
        ],
    ).SerializeToString()
