"""TrainingService: reads the records of training runs, and follows those that are under way."""

import asyncio
from collections.abc import AsyncGenerator
from contextlib import aclosing, suppress
from functools import partial
from typing import Any

from whence.v1 import training_pb2
from whence_server.domain.errors import (
    DrainingError,
    FieldViolation,
    InvalidRequestError,
    LineageError,
    ModelNotReadyError,
    TrainingRunNotFoundError,
)
from whence_server.lineage.documents import DocumentFile, document_text
from whence_server.lineage.emergence import EmergenceRequest, EmergenceTracer
from whence_server.lineage.library import RunLibrary
from whence_server.lineage.run import TrainingRun
from whence_server.rpc.calls import Call, Method
from whence_server.rpc.conversions import page_size
from whence_server.rpc.serving import Serving
from whence_server.rpc.training_messages import (
    document_message,
    proof_message,
    run_message,
    steps_page,
    summary_message,
)
from whence_server.rpc.training_requests import (
    RunToken,
    byte_range,
    check_document,
    read_item_token,
    read_run_token,
    read_step_token,
    step_range,
)
from whence_server.rpc.training_watch import watch_start, watched
from whence_server.rpc.watching import until

SERVICE = "whence.v1.TrainingService"

_DEFAULT_PAGE, _LARGEST_PAGE = 50, 1_000
_DEFAULT_STEPS, _LARGEST_STEPS = 500, 5_000
# In one message, well below the 4 MiB that a gRPC client takes by default.
_MAX_TEXT_BYTES = 2 << 20


class TrainingServicer:
    """Answers from records alone: it works whether or not a model is loaded.

    Args:
        library: the runs that are known.
        serving: says which run made the served model.
        tracer: computes a text's emergence.
        closing: set when the server closes.
    """

    def __init__(
        self,
        library: RunLibrary,
        serving: Serving,
        tracer: EmergenceTracer,
        closing: asyncio.Event,
    ) -> None:
        self._library = library
        self._serving = serving
        self._tracer = tracer
        self._closing = closing

    def methods(self) -> list[Method[Any]]:
        """The service's table."""
        pb = training_pb2
        return [
            Method("ListTrainingRuns", pb.ListTrainingRunsRequest, unary=self.list_training_runs),
            Method("GetTrainingRun", pb.GetTrainingRunRequest, unary=self.get_training_run),
            Method(
                "ListTrainingSteps", pb.ListTrainingStepsRequest, unary=self.list_training_steps
            ),
            Method("WatchTrainingRun", pb.WatchTrainingRunRequest, stream=self.watch_training_run),
            Method("GetDocument", pb.GetDocumentRequest, unary=self.get_document),
            Method(
                "GetInclusionProof", pb.GetInclusionProofRequest, unary=self.get_inclusion_proof
            ),
            Method("ReadDocument", pb.ReadDocumentRequest, stream=self.read_document),
            Method("TraceEmergence", pb.TraceEmergenceRequest, stream=self.trace_emergence),
        ]

    async def list_training_runs(
        self, request: training_pb2.ListTrainingRunsRequest, call: Call
    ) -> bytes:
        """A page of summaries, newest first."""
        del call
        limit = page_size(request.page_size, _DEFAULT_PAGE, _LARGEST_PAGE)
        after = read_run_token(request.page_token)

        def page(runs: list[TrainingRun]) -> training_pb2.ListTrainingRunsResponse:
            rest = [run for run in runs if after is None or _comes_after(run, after)]
            response = training_pb2.ListTrainingRunsResponse(
                next_page_token=str(_token(rest[limit - 1])) if len(rest) > limit else ""
            )
            for run in rest[:limit]:
                # A record that was replaced since it was looked at is named at the next look.
                with suppress(LineageError):
                    response.training_runs.append(self._summary(run))
            return response

        return (await self._library.runs(page)).SerializeToString()

    async def get_training_run(
        self, request: training_pb2.GetTrainingRunRequest, call: Call
    ) -> bytes:
        """One run without its steps."""
        del call
        after = read_item_token(request.page_token)

        def whole(run: TrainingRun) -> training_pb2.GetTrainingRunResponse:
            return run_message(run, self._summary(run), after)

        run_id = self._run_id(request.training_run_id)
        return (await self._library.run(run_id, whole)).SerializeToString()

    async def list_training_steps(
        self, request: training_pb2.ListTrainingStepsRequest, call: Call
    ) -> bytes:
        """A page of steps, by number."""
        del call
        wanted = step_range(request)
        limit = page_size(request.page_size, _DEFAULT_STEPS, _LARGEST_STEPS)
        after = read_step_token(request.page_token)
        response = await self._library.run(
            self._run_id(request.training_run_id),
            lambda run: steps_page(run, wanted, after, limit, omit_examples=request.omit_examples),
        )
        return response.SerializeToString()

    async def watch_training_run(
        self, request: training_pb2.WatchTrainingRunRequest, call: Call
    ) -> AsyncGenerator[bytes, None]:
        """Events as they are recorded, until the run has ended."""
        del call
        after = request.after_position if request.HasField("after_position") else None
        start = await self._library.run(
            self._run_id(request.training_run_id), lambda run: watch_start(run, after)
        )
        async with aclosing(until(watched(start), self._closing)) as messages:
            async for message in messages:
                yield message
        if self._closing.is_set():
            # A clean end would say that the run has ended.
            raise DrainingError

    async def get_document(self, request: training_pb2.GetDocumentRequest, call: Call) -> bytes:
        """A document, and its text as long as its source has it."""
        del call
        check_document(request)
        response = await self._library.run(
            self._run_id(request.training_run_id), lambda run: document_message(run, request)
        )
        if not request.omit_text:
            document = response.document
            size = document.end_byte - document.begin_byte
            if size > _MAX_TEXT_BYTES:
                raise InvalidRequestError(
                    FieldViolation(
                        "omit_text",
                        f"the document has {size} bytes, more than the {_MAX_TEXT_BYTES} that are "
                        "sent in a message: leave its text out, and read it with ReadDocument",
                    )
                )
            response.text = await asyncio.to_thread(document_text, document)
        return response.SerializeToString()

    async def read_document(
        self, request: training_pb2.ReadDocumentRequest, call: Call
    ) -> AsyncGenerator[bytes, None]:
        """A range of a document's bytes, in pieces, once all of it has its recorded digest."""
        del call
        check_document(request)
        found = await self._library.run(
            self._run_id(request.training_run_id), lambda run: document_message(run, request)
        )
        begin, end = byte_range(request, found.document)
        async with aclosing(until(_pieces(found, begin, end), self._closing)) as messages:
            async for message in messages:
                yield message
        if self._closing.is_set():
            raise DrainingError

    async def get_inclusion_proof(
        self, request: training_pb2.GetInclusionProofRequest, call: Call
    ) -> bytes:
        """A document's way up to the Merkle root."""
        del call
        check_document(request)
        run_id = self._run_id(request.training_run_id)
        return (
            await self._library.run(run_id, partial(proof_message, request=request))
        ).SerializeToString()

    async def trace_emergence(
        self, request: training_pb2.TraceEmergenceRequest, call: Call
    ) -> AsyncGenerator[bytes, None]:
        """The probability of a text over the run's checkpoints, as it is computed."""
        del call
        if not request.continuation:
            raise InvalidRequestError(FieldViolation("continuation", "must not be empty"))
        record = await self._library.run(
            self._run_id(request.training_run_id), lambda run: run.path
        )
        asked = EmergenceRequest(record, request.prompt, request.continuation, request.omit_groups)
        async with aclosing(until(self._tracer.trace(asked), self._closing)) as messages:
            async for message in messages:
                yield message
        if self._closing.is_set():
            raise DrainingError

    def _run_id(self, asked: str) -> str:
        """The id that is meant: none is that of the run that made the served model."""
        if asked:
            return asked
        model = self._serving.model
        if model is None:
            raise ModelNotReadyError
        if model.training_run is None:
            raise TrainingRunNotFoundError("")
        return model.training_run.training_run_id

    def _summary(self, run: TrainingRun) -> training_pb2.TrainingRunSummary:
        model = self._serving.model
        made_it = (
            model is not None
            and model.training_run is not None
            and model.training_run.training_run_id == run.id
        )
        summary = summary_message(run)
        if model is not None and made_it:
            summary.served_models.append(model.name)
        return summary


async def _pieces(
    found: training_pb2.GetDocumentResponse, begin: int, end: int
) -> AsyncGenerator[bytes, None]:
    """Serialised ReadDocumentResponse messages; the disk is waited for in a thread."""
    file = await asyncio.to_thread(DocumentFile, found.document)
    try:
        while await asyncio.to_thread(file.digest_next):
            pass
        yield training_pb2.ReadDocumentResponse(found=found, begin_byte=begin).SerializeToString()
        slices = file.slices(begin, end)
        while piece := await asyncio.to_thread(next, slices, b""):
            response = training_pb2.ReadDocumentResponse(begin_byte=begin, text=piece)
            yield response.SerializeToString()
            begin += len(piece)
    finally:
        file.close()


def _token(run: TrainingRun) -> RunToken:
    return RunToken(run.started.start_time.ToNanoseconds(), run.id)


def _comes_after(run: TrainingRun, token: RunToken) -> bool:
    begun = run.started.start_time.ToNanoseconds()
    return (-begun, run.id) > (-token.start_time_ns, token.training_run_id)
