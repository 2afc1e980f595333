"""A whence server that follows a script: it breaks streams off, delays and refuses calls."""

# ruff: noqa: N802 -- the methods have the names of the contract

import math
import shutil
import tempfile
import threading
from collections import deque
from collections.abc import Iterator
from concurrent import futures
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NoReturn, Self

import grpc
from google.protobuf import any_pb2
from google.protobuf.message import Message
from google.rpc import error_details_pb2, status_pb2

from whence.v1 import generation_pb2 as pb
from whence.v1 import model_pb2, trace_pb2, training_pb2
from whence.v1.generation_pb2_grpc import (
    GenerationServiceServicer,
    add_GenerationServiceServicer_to_server,
)
from whence.v1.model_pb2_grpc import ModelServiceServicer, add_ModelServiceServicer_to_server
from whence.v1.step_pb2 import Candidates, Draw, ProcessorEffects, Step, StepTiming
from whence.v1.trace_pb2_grpc import TraceServiceServicer, add_TraceServiceServicer_to_server
from whence.v1.training_pb2_grpc import (
    TrainingServiceServicer,
    add_TrainingServiceServicer_to_server,
)

VOCABULARY = (
    b"<s>",
    b"Hello",
    b" world",
    b"!",
    b"\x1b[31m",
    b"\xc3",
    b" caf\xc3\xa9",
    b" \xe4\xb8\xad",
)
TOKEN_IDS = (1, 2, 3, 6, 7)
TEXT = b"".join(VOCABULARY[token_id] for token_id in TOKEN_IDS).decode()
NUM_EVENTS = len(TOKEN_IDS) + 2
CODES = [code for code in grpc.StatusCode if code is not grpc.StatusCode.OK]
RESUMED = [
    grpc.StatusCode.CANCELLED,
    grpc.StatusCode.UNKNOWN,
    grpc.StatusCode.DEADLINE_EXCEEDED,
    grpc.StatusCode.RESOURCE_EXHAUSTED,
    grpc.StatusCode.ABORTED,
    grpc.StatusCode.INTERNAL,
]
"""Statuses, besides UNAVAILABLE, with which proxies end a stream that broke."""


def info(reason: str) -> error_details_pb2.ErrorInfo:
    """Return the detail of a status that tells a reason of whence."""
    return error_details_pb2.ErrorInfo(reason=reason, domain="whence.v1")


@dataclass(frozen=True)
class Break:
    """End of the next stream after `after` messages, with a status or OK."""

    after: int
    code: grpc.StatusCode | None = grpc.StatusCode.UNAVAILABLE
    details: tuple[Message, ...] = ()


@dataclass(frozen=True)
class Hold:
    """Pause of the next stream after `after` messages, until its reader is gone."""

    after: int


@dataclass(frozen=True)
class Pause:
    """Pause of the next stream after `after` messages, until `go` is set."""

    after: int
    go: threading.Event = field(default_factory=threading.Event)


def step(index: int, token_id: int, text: str, *, sequence_index: int = 0, begin: int = 0) -> Step:
    return Step(
        sequence_index=sequence_index,
        index=index,
        token_id=token_id,
        text=text,
        text_begin_byte=begin,
        text_end_byte=begin + len(VOCABULARY[token_id]),
        logprob=math.log(0.5),
        sampling_logprob=math.log(0.75),
        rank=0,
        entropy=1.25,
        candidates=Candidates(
            token_ids=[token_id, 5],
            logprobs=[math.log(0.5), math.log(0.25)],
            sampling_logprobs=[math.log(0.75), -math.inf],
        ),
        processors=ProcessorEffects(num_kept=[4], removed_mass=[0.25], token_logprobs=[-0.5]),
        draw=Draw(noise=0.125, margin=2.0),
        timing=StepTiming(elapsed_ns=1, forward_ns=2, select_ns=3, batch_size=4, context_length=5),
    )


def steps(token_ids: tuple[int, ...] = TOKEN_IDS) -> list[Step]:
    begins = [sum(len(VOCABULARY[t]) for t in token_ids[:i]) for i in range(len(token_ids))]
    return [
        step(index, token_id, VOCABULARY[token_id].decode(), begin=begins[index])
        for index, token_id in enumerate(token_ids)
    ]


def journal(
    made: list[Step] | None = None,
    *,
    reason: pb.FinishReason.ValueType = pb.FINISH_REASON_LENGTH,
    failure: pb.Failure | None = None,
) -> list[pb.GenerationEvent]:
    """Return the events of a complete generation, one for each offset."""
    made = steps() if made is None else made
    text = "".join(s.text for s in made if s.sequence_index == 0)
    started = pb.GenerationStarted(
        trace_id="ab" * 16,
        span_id="cd" * 8,
        trace_flags=1,
        model="fake",
        tokenizer_digest="t1",
        processor_names=["temperature"],
    )
    finished = pb.GenerationFinished(
        sequences=[
            pb.SequenceResult(text=text, token_ids=[s.token_id for s in made], finish_reason=reason)
        ],
        num_generated_tokens=len(made),
        finish_reason=reason,
        failure=failure,
    )
    events = [
        pb.GenerationEvent(started=started),
        *(pb.GenerationEvent(steps=pb.StepBatch(steps=[s])) for s in made),
        pb.GenerationEvent(finished=finished),
    ]
    for offset, event in enumerate(events, 1):
        event.first_offset = event.last_offset = offset
    return events


def batched(events: list[pb.GenerationEvent], size: int) -> list[pb.GenerationEvent]:
    """Return the same generation, with its steps in batches of at most `size`."""
    inner = events[1:-1]
    batches = []
    for at in range(0, len(inner), size):
        part = inner[at : at + size]
        batch = pb.GenerationEvent(
            first_offset=part[0].first_offset, last_offset=part[-1].last_offset
        )
        for event in part:
            batch.steps.steps.extend(event.steps.steps)
        batches.append(batch)
    return [events[0], *batches, events[-1]]


@dataclass
class Script:
    """Behaviour of the server, and the calls that it received."""

    events: list[pb.GenerationEvent] = field(default_factory=journal)
    recorded: list[pb.GenerationEvent] | None = None
    """Events that ResumeGeneration has, if a crash lost some; None: all events."""
    turns: deque[Break | Hold | Pause] = field(default_factory=deque)
    """Behaviour of each stream in order; a stream without one runs to its end."""
    calls: list[Any] = field(default_factory=list)
    cancelled: threading.Event = field(default_factory=threading.Event)
    refusals: deque[Break] = field(default_factory=deque)
    """Status of each unary call in order; a call without one succeeds."""
    metadata: list[dict[str, Any]] = field(default_factory=list)
    num_held: int = 0
    """Number of streams that came to a Hold."""
    num_ended: int = 0
    """Number of streams whose call has ended."""

    def requests(self, kind: type[Message]) -> list[Any]:
        return [call for call in self.calls if isinstance(call, kind)]

    def play(self, messages: list[Any], context: grpc.ServicerContext) -> Iterator[Any]:
        if not context.add_callback(self.note_end):
            self.note_end()
        turn = self.turns.popleft() if self.turns else None
        for count, message in enumerate([*messages, None]):
            if turn is not None and count == turn.after:
                if isinstance(turn, Break):
                    return self.end(turn, context)
                if isinstance(turn, Pause):
                    turn.go.wait(20)
                    if message is not None:
                        yield message
                    continue
                self.num_held += 1
                gone = threading.Event()
                if context.add_callback(gone.set):
                    gone.wait(20)
                return None
            if message is not None:
                yield message
        return None

    def note_end(self) -> None:
        self.num_ended += 1

    def end(self, turn: Break, context: grpc.ServicerContext) -> None:
        if turn.code is not None:
            abort(context, turn.code, turn.details)

    def unary(self, request: Message, context: grpc.ServicerContext) -> None:
        self.calls.append(request)
        self.metadata.append(dict(context.invocation_metadata()))
        if self.refusals:
            self.end(self.refusals.popleft(), context)


def abort(
    context: grpc.ServicerContext, code: grpc.StatusCode, details: tuple[Message, ...] = ()
) -> NoReturn:
    status = status_pb2.Status(code=code.value[0], message=f"scripted {code.name}")
    for detail in details:
        packed = any_pb2.Any()
        packed.Pack(detail)
        status.details.append(packed)
    context.set_trailing_metadata((("grpc-status-details-bin", status.SerializeToString()),))
    context.abort(code, status.message)


class FakeGeneration(GenerationServiceServicer):
    def __init__(self, script: Script) -> None:
        self._script = script

    def _copy_events(
        self, recorded: list[pb.GenerationEvent], generation_id: str
    ) -> list[pb.GenerationEvent]:
        events = []
        for event in recorded:
            copy = pb.GenerationEvent()
            copy.CopyFrom(event)
            if copy.HasField("started"):
                copy.started.generation_id = generation_id
            events.append(copy)
        return events

    def Generate(self, request: Any, context: Any) -> Iterator[pb.GenerateResponse]:
        self._script.calls.append(request)
        self._script.metadata.append(dict(context.invocation_metadata()))
        events = self._copy_events(self._script.events, request.generation_id)
        yield from self._script.play([pb.GenerateResponse(event=e) for e in events], context)

    def ResumeGeneration(self, request: Any, context: Any) -> Iterator[Any]:
        self._script.calls.append(request)
        self._script.metadata.append(dict(context.invocation_metadata()))
        recorded = self._script.recorded or self._script.events
        events = [
            e
            for e in self._copy_events(recorded, request.generation_id)
            if e.last_offset > request.after_offset or e.HasField("finished")
        ]
        responses = [pb.ResumeGenerationResponse(event=e) for e in events]
        yield from self._script.play(responses, context)

    def CancelGeneration(self, request: Any, context: Any) -> pb.CancelGenerationResponse:
        self._script.unary(request, context)
        self._script.cancelled.set()
        return pb.CancelGenerationResponse()


class FakeTrace(TraceServiceServicer):
    def __init__(self, script: Script) -> None:
        self._script = script

    def GetGeneration(self, request: Any, context: Any) -> trace_pb2.GetGenerationResponse:
        self._script.unary(request, context)
        return trace_pb2.GetGenerationResponse(
            summary=trace_pb2.GenerationSummary(generation_id=request.generation_id, model="fake"),
            started=self._script.events[0].started,
            finished=self._script.events[-1].finished,
        )

    def ListGenerations(self, request: Any, context: Any) -> trace_pb2.ListGenerationsResponse:
        copy = trace_pb2.ListGenerationsRequest()
        copy.CopyFrom(request)
        self._script.unary(copy, context)
        page = int(request.page_token or 0)
        return trace_pb2.ListGenerationsResponse(
            generations=[
                trace_pb2.GenerationSummary(generation_id=f"g{page}{i}", text_preview="\x1b[2J")
                for i in range(2)
            ],
            next_page_token=str(page + 1) if page < 2 else "",
        )

    def ListSteps(self, request: Any, context: Any) -> trace_pb2.ListStepsResponse:
        self._script.unary(request, context)
        page = int(request.page_token or 0)
        kind = "prompt_steps" if request.prompt else "steps"
        made = [step for e in self._script.events for step in getattr(e, kind).steps]
        return trace_pb2.ListStepsResponse(
            steps=made[page : page + 2],
            next_page_token=str(page + 2) if page + 2 < len(made) else "",
        )

    def WatchGenerations(self, request: Any, context: Any) -> Iterator[Any]:
        self._script.calls.append(request)
        self._script.metadata.append(dict(context.invocation_metadata()))
        after = int(request.after_position or 0)
        responses = [
            trace_pb2.WatchGenerationsResponse(
                generation_id="g", position=str(e.last_offset), event=e
            )
            for e in self._script.events
            if e.last_offset > after
        ]
        yield from self._script.play(responses, context)

    def DeleteGeneration(self, request: Any, context: Any) -> trace_pb2.DeleteGenerationResponse:
        self._script.unary(request, context)
        return trace_pb2.DeleteGenerationResponse()


class FakeTraining(TrainingServiceServicer):
    def __init__(self, script: Script) -> None:
        self._script = script

    def WatchTrainingRun(self, request: Any, context: Any) -> Iterator[Any]:
        copy = training_pb2.WatchTrainingRunRequest()
        copy.CopyFrom(request)
        self._script.calls.append(copy)
        responses = [
            training_pb2.WatchTrainingRunResponse(
                last_position=position,
                events=[training_pb2.TrainingEvent(step=training_pb2.TrainingStep(step=position))],
            )
            for position in range(request.after_position + 1, len(self._script.events) + 1)
        ]
        yield from self._script.play(responses, context)

    def TraceEmergence(self, request: Any, context: Any) -> Iterator[Any]:
        self._script.calls.append(request)
        responses = [
            training_pb2.TraceEmergenceResponse(point=training_pb2.EmergencePoint(step=step))
            for step in range(1, len(self._script.events) + 1)
        ]
        yield from self._script.play(responses, context)

    def ReadDocument(self, request: Any, context: Any) -> Iterator[Any]:
        self._script.calls.append(request)
        responses = [
            training_pb2.ReadDocumentResponse(text=bytes([number]))
            for number in range(1, len(self._script.events) + 1)
        ]
        yield from self._script.play(responses, context)


class FakeModel(ModelServiceServicer):
    def __init__(self, script: Script) -> None:
        self._script = script
        self._model = model_pb2.Model(
            model="fake", tokenizer_digest="t1", state=model_pb2.MODEL_STATE_READY
        )

    def ListModels(self, request: Any, context: Any) -> model_pb2.ListModelsResponse:
        self._script.unary(request, context)
        return model_pb2.ListModelsResponse(models=[self._model])

    def GetModel(self, request: Any, context: Any) -> model_pb2.GetModelResponse:
        self._script.unary(request, context)
        return model_pb2.GetModelResponse(model=self._model)

    def GetVocabulary(self, request: Any, context: Any) -> Iterator[Any]:
        self._script.unary(request, context)
        parts = [
            model_pb2.GetVocabularyResponse(
                first_token_id=first, tokens=VOCABULARY[first : first + 3]
            )
            for first in range(0, len(VOCABULARY), 3)
        ]
        yield from self._script.play(parts, context)


class FakeServer:
    """Fake server on a Unix socket; a context manager.

    Args:
        options: gRPC's options of the server.
        address: address to listen on, with port 0 for a free one; default: a Unix socket.
    """

    def __init__(self, *options: tuple[str, int], address: str | None = None) -> None:
        self.script = Script()
        self._options = options
        # A socket's path may have 107 bytes: the test's own directory is too deep.
        self._directory = Path(tempfile.mkdtemp(prefix="whence-"))
        self.target = address or f"unix:{self._directory / 'socket'}"
        self._server = self._make_server()

    def _make_server(self) -> grpc.Server:
        server = grpc.server(futures.ThreadPoolExecutor(max_workers=8), options=self._options)
        add_GenerationServiceServicer_to_server(FakeGeneration(self.script), server)
        add_TraceServiceServicer_to_server(FakeTrace(self.script), server)
        add_ModelServiceServicer_to_server(FakeModel(self.script), server)
        add_TrainingServiceServicer_to_server(FakeTraining(self.script), server)
        port = server.add_insecure_port(self.target)
        if self.target.endswith(":0"):
            self.target = f"{self.target.removesuffix(':0')}:{port}"
        return server

    def restart(self) -> None:
        """Stop the server with all of its connections, and start it again."""
        self._server.stop(None).wait()
        self._server = self._make_server()
        self._server.start()

    def __enter__(self) -> Self:
        self._server.start()
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._server.stop(None).wait()
        shutil.rmtree(self._directory)
