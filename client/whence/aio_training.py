"""Recorded training runs, for the asynchronous client: `client.training_runs`."""

from collections.abc import AsyncIterator

from whence.aio_calls import AsyncCalls
from whence.aio_following import AsyncFollowing
from whence.backoff import Backoff, RetryPolicy
from whence.errors import InvalidRequestError
from whence.once import make_document_stream, make_emergence_stream, make_pieces_stream
from whence.resume import TrainingRunStream
from whence.training_requests import (
    is_too_large,
    make_document_request,
    make_emergence_request,
    make_inclusion_proof_request,
    make_steps_request,
    read_document_request,
    watch_request,
)
from whence.v1 import training_pb2 as pb


class AsyncTrainingRuns:
    """Training runs that the server knows.

    The default of every `training_run_id` is the run that made the server's default model.
    """

    def __init__(self, calls: AsyncCalls, policy: RetryPolicy) -> None:
        self._calls = calls
        self._policy = policy

    async def list(self, *, page_size: int = 0) -> AsyncIterator[pb.TrainingRunSummary]:
        """Yield every run, newest first; pages are fetched when needed."""
        request = pb.ListTrainingRunsRequest(page_size=page_size)
        pages = self._calls.list_pages(self._calls.training.ListTrainingRuns, request)
        async for page in pages:
            for summary in page.training_runs:
                yield summary

    async def get(self, training_run_id: str = "") -> pb.GetTrainingRunResponse:
        """Return one run without its steps: settings, training set, checkpoints.

        Raises:
            NotFoundError: there is no such run.
        """
        request = pb.GetTrainingRunRequest(training_run_id=training_run_id)
        pages = self._calls.list_pages(self._calls.training.GetTrainingRun, request)
        run = pb.GetTrainingRunResponse()
        async for page in pages:
            run.MergeFrom(page)
        run.next_page_token = ""
        return run

    async def steps(
        self,
        training_run_id: str = "",
        *,
        first_step: int = 0,
        last_step: int = 0,
        stride: int = 1,
        include_superseded: bool = False,
        omit_examples: bool = False,
        page_size: int = 0,
    ) -> AsyncIterator[pb.TrainingStep]:
        """Yield optimizer steps by number; pages are fetched when needed.

        Args:
            training_run_id: id of the run.
            first_step: number of the first step; 0 for the first recorded one.
            last_step: number of the last step; 0 for the newest one.
            stride: interval between yielded steps; the last step is always yielded.
            include_superseded: also yield steps that a resumed run discarded.
            omit_examples: leave out the ids of the examples.
            page_size: number of steps in a call; 0 for the server's default.

        Raises:
            ValueError: a number that the wire cannot carry.
            NotFoundError: there is no such run.
        """
        request = make_steps_request(
            training_run_id,
            first_step=first_step,
            last_step=last_step,
            stride=stride,
            include_superseded=include_superseded,
            omit_examples=omit_examples,
            page_size=page_size,
        )
        pages = self._calls.list_pages(self._calls.training.ListTrainingSteps, request)
        async for page in pages:
            for step in page.steps:
                yield step

    def watch(
        self, training_run_id: str = "", *, after_position: int | None = None
    ) -> AsyncFollowing[pb.WatchTrainingRunResponse]:
        """Follow a run's events as they are recorded, until the run ends; resumes if it breaks.

        Args:
            training_run_id: id of the run.
            after_position: position after which to continue; 0 for all events, None to skip all
                past ones.

        Raises:
            ValueError: a number that the wire cannot carry.
        """
        request = watch_request(training_run_id, after_position)
        return self._calls.follow(TrainingRunStream(request, Backoff(self._policy)))

    async def document(
        self,
        training_run_id: str = "",
        *,
        index: int | None = None,
        sha256: str | None = None,
        example_id: int | None = None,
        omit_text: bool = False,
    ) -> pb.GetDocumentResponse:
        """Return a document of the training set, with its text.

        Args:
            training_run_id: id of the run.
            index: index of the document in the training set; or give one of the next two.
            sha256: digest of the document's text.
            example_id: id of an example, whose first piece is from the document.
            omit_text: leave the text out.

        Raises:
            TypeError: not exactly one document was named.
            NotFoundError: there is no such run or document.
            FailedPreconditionError: the document's source has changed since the training.
        """
        request = make_document_request(
            training_run_id,
            index=index,
            sha256=sha256,
            example_id=example_id,
            omit_text=omit_text,
        )
        try:
            return await self._calls.call_unary(self._calls.training.GetDocument, request)
        except InvalidRequestError as error:
            if not is_too_large(error):
                raise
        found = pb.GetDocumentResponse()
        pieces: list[bytes] = []
        whole = read_document_request(
            training_run_id,
            index=index,
            sha256=sha256,
            example_id=example_id,
            begin_byte=0,
            end_byte=0,
        )
        async with self._calls.follow(make_document_stream(whole, self._policy)) as reading:
            async for response in reading:
                if response.HasField("found"):
                    found = response.found
                pieces.append(response.text)
        found.text = b"".join(pieces)
        return found

    def read_document(
        self,
        training_run_id: str = "",
        *,
        index: int | None = None,
        sha256: str | None = None,
        example_id: int | None = None,
        begin_byte: int = 0,
        end_byte: int = 0,
    ) -> AsyncFollowing[bytes]:
        """Read a range of a document's bytes, in pieces; for documents of any size.

        Args:
            training_run_id: id of the run.
            index: index of the document in the training set; or give one of the next two.
            sha256: digest of the document's text.
            example_id: id of an example, whose first piece is from the document.
            begin_byte: first byte of the range, relative to the document's beginning.
            end_byte: first byte after the range; 0 for the document's end.

        Raises:
            TypeError: not exactly one document was named.
            InvalidRequestError: the document has no such range.
            NotFoundError: there is no such run or document.
            FailedPreconditionError: the document's source has changed since the training.
        """
        request = read_document_request(
            training_run_id,
            index=index,
            sha256=sha256,
            example_id=example_id,
            begin_byte=begin_byte,
            end_byte=end_byte,
        )
        return self._calls.follow(make_pieces_stream(request, self._policy))

    async def inclusion_proof(
        self, training_run_id: str = "", *, index: int | None = None, sha256: str | None = None
    ) -> pb.GetInclusionProofResponse:
        """Return a proof that a document is in the training set, for `whence.verify_inclusion`.

        Raises:
            TypeError: not exactly one document was named.
            NotFoundError: there is no such run or document.
        """
        request = make_inclusion_proof_request(training_run_id, index=index, sha256=sha256)
        return await self._calls.call_unary(self._calls.training.GetInclusionProof, request)

    def trace_emergence(
        self,
        training_run_id: str = "",
        *,
        prompt: str,
        continuation: str,
        omit_groups: bool = False,
    ) -> AsyncFollowing[pb.TraceEmergenceResponse]:
        """Stream a text's probability at the run's checkpoints, as it is computed.

        The call has no timeout; `aclose`, or the end of the with-block, ends the computation.

        Args:
            training_run_id: id of the run.
            prompt: text before the continuation.
            continuation: text whose probability is computed.
            omit_groups: leave out the contributions of parameter groups, which take most time.

        Raises:
            NotFoundError: there is no such run.
            ResourceExhaustedError: another text is being traced; retry after `retry_delay_s`.
            FailedPreconditionError: the run has too few usable checkpoints.
        """
        request = make_emergence_request(
            training_run_id, prompt, continuation, omit_groups=omit_groups
        )
        return self._calls.follow(make_emergence_stream(request, self._policy))
