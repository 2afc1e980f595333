"""Training runs on record: `client.training_runs`."""

from collections.abc import Iterator

from whence.backoff import Backoff, RetryPolicy
from whence.calls import Calls, Following
from whence.errors import InvalidRequestError
from whence.resume import TrainingRunStream
from whence.training_requests import (
    document_request,
    emergence_request,
    inclusion_proof_request,
    is_too_large,
    read_document_request,
    steps_request,
    watch_request,
)
from whence.v1 import training_pb2 as pb


class TrainingRuns:
    """The training runs that the server knows of.

    Where a run's id is left out, the one that made the server's default model is meant.
    """

    def __init__(self, calls: Calls, policy: RetryPolicy) -> None:
        self._calls = calls
        self._policy = policy

    def list(self, *, page_size: int = 0) -> Iterator[pb.TrainingRunSummary]:
        """Every run, newest first, page after page as they are needed."""
        request = pb.ListTrainingRunsRequest(page_size=page_size)
        pages = self._calls.pages(self._calls.training.ListTrainingRuns, request)
        return (summary for page in pages for summary in page.training_runs)

    def get(self, training_run_id: str = "") -> pb.GetTrainingRunResponse:
        """One run without its steps: how it was set up, what it read, its checkpoints.

        Raises:
            NotFoundError: there is none.
        """
        request = pb.GetTrainingRunRequest(training_run_id=training_run_id)
        pages = self._calls.pages(self._calls.training.GetTrainingRun, request)
        run = pb.GetTrainingRunResponse()
        for page in pages:
            run.MergeFrom(page)
        run.next_page_token = ""
        return run

    def steps(
        self,
        training_run_id: str = "",
        *,
        first_step: int = 0,
        last_step: int = 0,
        stride: int = 1,
        include_superseded: bool = False,
        omit_examples: bool = False,
        page_size: int = 0,
    ) -> Iterator[pb.TrainingStep]:
        """Optimizer steps by number, page after page as they are needed.

        Args:
            training_run_id: whose.
            first_step: 0 is the first on record.
            last_step: 0 is the newest.
            stride: one step in so many, and the last one.
            include_superseded: also those that were made and then discarded by a resume.
            omit_examples: without the ids of the examples.
            page_size: steps a call; 0 takes the server's default.

        Raises:
            ValueError: a number that the wire cannot carry.
            NotFoundError: there is no such run.
        """
        request = steps_request(
            training_run_id,
            first_step=first_step,
            last_step=last_step,
            stride=stride,
            include_superseded=include_superseded,
            omit_examples=omit_examples,
            page_size=page_size,
        )
        pages = self._calls.pages(self._calls.training.ListTrainingSteps, request)
        return (step for page in pages for step in page.steps)

    def watch(
        self, training_run_id: str = "", *, after_position: int | None = None
    ) -> Following[pb.WatchTrainingRunResponse]:
        """A run's events as they are recorded; resumes by itself, and ends with the run.

        Args:
            training_run_id: whose.
            after_position: go on after this entry; 0 gives all. Left out, it begins with what
                is recorded from now on.

        Raises:
            ValueError: a number that the wire cannot carry.
        """
        request = watch_request(training_run_id, after_position)
        return self._calls.follow(TrainingRunStream(request, Backoff(self._policy)))

    def document(
        self,
        training_run_id: str = "",
        *,
        index: int | None = None,
        sha256: str | None = None,
        example_id: int | None = None,
        omit_text: bool = False,
    ) -> pb.GetDocumentResponse:
        """A document of the training set, and its text.

        Args:
            training_run_id: whose.
            index: which, by its place in the training set; or one of the next two.
            sha256: by the digest of its text.
            example_id: the document that this example's first piece was cut from.
            omit_text: leave the text out.

        Raises:
            TypeError: not exactly one document was named.
            NotFoundError: there is no such run or document.
            FailedPreconditionError: its source no longer has the text that was trained on.
        """
        request = document_request(
            training_run_id,
            index=index,
            sha256=sha256,
            example_id=example_id,
            omit_text=omit_text,
        )
        try:
            return self._calls.unary(self._calls.training.GetDocument, request)
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
        reading = self._calls.stream(self._calls.training.ReadDocument, whole, is_timed=False)
        for response in reading:
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
    ) -> Iterator[bytes]:
        """A range of a document's bytes, in pieces as they arrive; for documents of any size.

        Args:
            training_run_id: whose.
            index: which, by its place in the training set; or one of the next two.
            sha256: by the digest of its text.
            example_id: the document that this example's first piece was cut from.
            begin_byte: the first byte, counted from the document's beginning.
            end_byte: the first byte after the range; 0 is the document's end.

        Raises:
            TypeError: not exactly one document was named.
            InvalidRequestError: the document has no such range.
            NotFoundError: there is no such run or document.
            FailedPreconditionError: its source no longer has the text that was trained on.
        """
        request = read_document_request(
            training_run_id,
            index=index,
            sha256=sha256,
            example_id=example_id,
            begin_byte=begin_byte,
            end_byte=end_byte,
        )
        reading = self._calls.stream(self._calls.training.ReadDocument, request, is_timed=False)
        for response in reading:
            if response.text:
                yield response.text

    def inclusion_proof(
        self, training_run_id: str = "", *, index: int | None = None, sha256: str | None = None
    ) -> pb.GetInclusionProofResponse:
        """A proof that a document was in the training set; `whence.verify_inclusion` checks it.

        Raises:
            TypeError: not exactly one document was named.
            NotFoundError: there is no such run or document.
        """
        request = inclusion_proof_request(training_run_id, index=index, sha256=sha256)
        return self._calls.unary(self._calls.training.GetInclusionProof, request)

    def trace_emergence(
        self,
        training_run_id: str = "",
        *,
        prompt: str,
        continuation: str,
        omit_groups: bool = False,
    ) -> Iterator[pb.TraceEmergenceResponse]:
        """How a text's probability grew over the run's checkpoints, as it is computed.

        It has no timeout; closing the iterator ends the computation.

        Args:
            training_run_id: whose.
            prompt: what the continuation follows.
            continuation: the text whose probability is traced.
            omit_groups: leave out what each group of parameters did, which costs most.

        Raises:
            NotFoundError: there is no such run.
            ResourceExhaustedError: another text is being traced; `retry_delay_s` says when to
                come again.
            FailedPreconditionError: the run's checkpoints do not allow it.
        """
        request = emergence_request(training_run_id, prompt, continuation, omit_groups=omit_groups)
        return self._calls.stream(self._calls.training.TraceEmergence, request, is_timed=False)
