"""TrainingService: records of training runs, finished or running."""

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
    TrainingRunNotFoundError,
)
from whence_server.lineage.documents import DocumentFile, read_document_text
from whence_server.lineage.emergence import EmergenceRequest, EmergenceTracer
from whence_server.lineage.library import RunLibrary
from whence_server.lineage.run import TrainingRun
from whence_server.rpc.calls import Call, Method
from whence_server.rpc.conversions import choose_page_size
from whence_server.rpc.serving import Serving
from whence_server.rpc.training_messages import (
    make_document_message,
    make_proof_message,
    make_run_message,
    make_steps_page,
    make_summary_message,
)
from whence_server.rpc.training_requests import (
    RunToken,
    check_document,
    read_byte_range,
    read_item_token,
    read_run_token,
    read_step_range,
    read_step_token,
)
from whence_server.rpc.training_watch import start_watch, watch_run
from whence_server.rpc.watching import stop_at_close

SERVICE = "whence.v1.TrainingService"

_DEFAULT_PAGE, _LARGEST_PAGE = 50, 1_000
_DEFAULT_STEPS, _LARGEST_STEPS = 500, 5_000
# Well below the 4 MiB that a gRPC client accepts by default.
_MAX_TEXT_BYTES = 2 << 20


class TrainingServicer:
    """Servicer that reads training records alone and needs no model.

    Args:
        library: the known runs.
        serving: the served model, whose run is the default.
        tracer: computes the emergence of texts.
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

    def list_methods(self) -> list[Method[Any]]:
        """Return the service's methods."""
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
        """Return a page of summaries, newest first."""
        del call
        limit = choose_page_size(request.page_size, _DEFAULT_PAGE, _LARGEST_PAGE)
        after = read_run_token(request.page_token)

        def make_page(runs: list[TrainingRun]) -> training_pb2.ListTrainingRunsResponse:
            rest = [run for run in runs if after is None or _comes_after(run, after)]
            response = training_pb2.ListTrainingRunsResponse(
                next_page_token=str(_make_token(rest[limit - 1])) if len(rest) > limit else ""
            )
            for run in rest[:limit]:
                # The library reports a record that has just been replaced at its next scan.
                with suppress(LineageError):
                    response.training_runs.append(self._make_summary(run))
            return response

        return (await self._library.query_all(make_page)).SerializeToString()

    async def get_training_run(
        self, request: training_pb2.GetTrainingRunRequest, call: Call
    ) -> bytes:
        """Return one run without its steps."""
        del call
        after = read_item_token(request.page_token)

        def make_response(run: TrainingRun) -> training_pb2.GetTrainingRunResponse:
            return make_run_message(run, self._make_summary(run), after)

        run_id = self._resolve_run_id(request.training_run_id)
        return (await self._library.query(run_id, make_response)).SerializeToString()

    async def list_training_steps(
        self, request: training_pb2.ListTrainingStepsRequest, call: Call
    ) -> bytes:
        """Return a page of steps, by number."""
        del call
        wanted = read_step_range(request)
        limit = choose_page_size(request.page_size, _DEFAULT_STEPS, _LARGEST_STEPS)
        after = read_step_token(request.page_token)
        response = await self._library.query(
            self._resolve_run_id(request.training_run_id),
            lambda run: make_steps_page(
                run, wanted, after, limit, omit_examples=request.omit_examples
            ),
        )
        return response.SerializeToString()

    async def watch_training_run(
        self, request: training_pb2.WatchTrainingRunRequest, call: Call
    ) -> AsyncGenerator[bytes, None]:
        """Stream events as they are recorded, until the run has ended."""
        after = request.after_position if request.HasField("after_position") else None
        start = await self._library.query(
            self._resolve_run_id(request.training_run_id), lambda run: start_watch(run, after)
        )
        filler = training_pb2.WatchTrainingRunResponse(last_position=start.after_position)
        call.make_filler = filler.SerializeToString
        async with aclosing(stop_at_close(watch_run(start), self._closing)) as responses:
            async for response in responses:
                yield response.SerializeToString()
                filler.last_position = response.last_position
        if self._closing.is_set():
            # Ending with OK would mean that the run has ended.
            raise DrainingError

    async def get_document(self, request: training_pb2.GetDocumentRequest, call: Call) -> bytes:
        """Return a document with its text, if its source is unchanged."""
        del call
        check_document(request)
        response = await self._library.query(
            self._resolve_run_id(request.training_run_id),
            lambda run: make_document_message(run, request),
        )
        if not request.omit_text:
            document = response.document
            size = document.end_byte - document.begin_byte
            if size > _MAX_TEXT_BYTES:
                raise InvalidRequestError(
                    FieldViolation(
                        "omit_text",
                        f"must be set: the document has {size} bytes, more than the "
                        f"{_MAX_TEXT_BYTES} of one message; read it with ReadDocument",
                    )
                )
            response.text = await asyncio.to_thread(read_document_text, document)
        return response.SerializeToString()

    async def read_document(
        self, request: training_pb2.ReadDocumentRequest, call: Call
    ) -> AsyncGenerator[bytes, None]:
        """Stream a range of a document's bytes after its digest was verified."""
        call.make_filler = training_pb2.ReadDocumentResponse().SerializeToString
        check_document(request)
        found = await self._library.query(
            self._resolve_run_id(request.training_run_id),
            lambda run: make_document_message(run, request),
        )
        begin, end = read_byte_range(request, found.document)
        async with aclosing(
            stop_at_close(_read_pieces(found, begin, end), self._closing)
        ) as messages:
            async for message in messages:
                yield message
        if self._closing.is_set():
            raise DrainingError

    async def get_inclusion_proof(
        self, request: training_pb2.GetInclusionProofRequest, call: Call
    ) -> bytes:
        """Return the inclusion proof of a document."""
        del call
        check_document(request)
        run_id = self._resolve_run_id(request.training_run_id)
        return (
            await self._library.query(run_id, partial(make_proof_message, request=request))
        ).SerializeToString()

    async def trace_emergence(
        self, request: training_pb2.TraceEmergenceRequest, call: Call
    ) -> AsyncGenerator[bytes, None]:
        """Stream the probability of a text at the run's checkpoints, as it is computed."""
        call.make_filler = training_pb2.TraceEmergenceResponse().SerializeToString
        if not request.continuation:
            raise InvalidRequestError(FieldViolation("continuation", "must not be empty"))
        record = await self._library.query(
            self._resolve_run_id(request.training_run_id), lambda run: run.path
        )
        asked = EmergenceRequest(record, request.prompt, request.continuation, request.omit_groups)
        async with aclosing(stop_at_close(self._tracer.trace(asked), self._closing)) as messages:
            async for message in messages:
                yield message
        if self._closing.is_set():
            raise DrainingError

    def _resolve_run_id(self, asked: str) -> str:
        """Return the requested run's id; "" requests the run that made the served model."""
        if asked:
            return asked
        model = self._serving.model
        if model is None:
            raise self._serving.make_missing_error()
        if model.training_run is None:
            raise TrainingRunNotFoundError("")
        return model.training_run.training_run_id

    def _make_summary(self, run: TrainingRun) -> training_pb2.TrainingRunSummary:
        model = self._serving.model
        made_it = (
            model is not None
            and model.training_run is not None
            and model.training_run.training_run_id == run.id
        )
        summary = make_summary_message(run)
        if model is not None and made_it:
            summary.served_models.append(model.name)
        return summary


async def _read_pieces(
    found: training_pb2.GetDocumentResponse, begin: int, end: int
) -> AsyncGenerator[bytes, None]:
    """Yield serialised ReadDocumentResponse messages; read the disk in a thread."""
    file = await asyncio.to_thread(DocumentFile, found.document)
    try:
        while await asyncio.to_thread(file.digest_slices):
            pass
        yield training_pb2.ReadDocumentResponse(found=found, begin_byte=begin).SerializeToString()
        slices = file.read_slices(begin, end)
        while piece := await asyncio.to_thread(next, slices, b""):
            response = training_pb2.ReadDocumentResponse(begin_byte=begin, text=piece)
            yield response.SerializeToString()
            begin += len(piece)
    finally:
        file.close()


def _make_token(run: TrainingRun) -> RunToken:
    return RunToken(run.started.start_time.ToNanoseconds(), run.id)


def _comes_after(run: TrainingRun, token: RunToken) -> bool:
    begun = run.started.start_time.ToNanoseconds()
    return (-begun, run.id) > (-token.start_time_ns, token.training_run_id)
