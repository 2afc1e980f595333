"""Messages of TrainingService."""

from itertools import islice

from google.protobuf import timestamp_pb2

from whence.v1 import training_pb2
from whence_server.domain.paths import format_path
from whence_server.lineage.lookup import read_events_at
from whence_server.lineage.run import TrainingRun
from whence_server.lineage.steps import StepRange
from whence_server.rpc.training_requests import (
    find_document_index,
    make_item_token,
    make_step_token,
)

# Well below the 4 MiB that a gRPC client accepts by default.
_MAX_PAGE_BYTES = 2 << 20


def make_summary_message(run: TrainingRun) -> training_pb2.TrainingRunSummary:
    """Return the summary of a run."""
    started, dataset, newest = run.started, run.training_set.dataset, run.read_newest_step()
    last_time = timestamp_pb2.Timestamp()
    last_time.FromNanoseconds(run.last_time_ns)
    summary = training_pb2.TrainingRunSummary(
        training_run_id=run.id,
        name=started.name,
        state=run.state,
        start_time=started.start_time,
        last_time=last_time,
        num_planned_steps=started.num_planned_steps,
        num_attempts=len(run.attempts),
        num_superseded_steps=run.steps.num_superseded,
        architecture=started.architecture,
        num_parameters=started.num_parameters,
        record_path=format_path(run.path),
        num_entries=run.num_entries,
        head=run.head,
    )
    if newest is not None:
        summary.step = newest.step
        summary.loss = newest.loss
        summary.num_tokens_seen = newest.num_tokens_seen
    if dataset is not None:
        summary.num_documents = dataset.num_documents
        summary.num_examples = dataset.num_examples
        summary.merkle_root = dataset.merkle_root
    return summary


_LISTED = ("attempts", "endings", "checkpoints", "evaluations", "gaps")
"""Repeated fields of a run besides its steps: names of attributes and of message fields."""


def make_run_message(
    run: TrainingRun, summary: training_pb2.TrainingRunSummary, after: int
) -> training_pb2.GetTrainingRunResponse:
    """Return one page of a run without its steps, after the first `after` items."""
    response = training_pb2.GetTrainingRunResponse(summary=summary)
    if not after:
        response.started.CopyFrom(run.started)
        if run.training_set.dataset is not None:
            response.dataset.CopyFrom(run.training_set.dataset)
    items = [(name, item) for name in _LISTED for item in getattr(run, name)]
    num_bytes = response.ByteSize()
    for number, (name, item) in enumerate(items[after:], after):
        num_bytes += item.ByteSize()
        if num_bytes > _MAX_PAGE_BYTES and number > after:
            response.next_page_token = make_item_token(number)
            break
        getattr(response, name).append(item)
    return response


def make_steps_page(
    run: TrainingRun,
    wanted: StepRange,
    after: tuple[int, int],
    limit: int,
    *,
    omit_examples: bool,
) -> training_pb2.ListTrainingStepsResponse:
    """Return a page of the steps in a range, at most `limit` and as many as fit a message."""
    refs = list(islice(run.steps.select(wanted, after), limit + 1))
    response = training_pb2.ListTrainingStepsResponse()
    num_bytes = 0
    for event in read_events_at(run.path, (ref.place for ref in refs[:limit])):
        if omit_examples:
            for rank in event.step.ranks:
                rank.ClearField("example_ids")
        num_bytes += event.step.ByteSize()
        if num_bytes > _MAX_PAGE_BYTES and response.steps:
            break
        response.steps.append(event.step)
    if len(response.steps) < len(refs):
        response.next_page_token = make_step_token(response.steps[-1])
    return response


def make_document_message(
    run: TrainingRun,
    request: training_pb2.GetDocumentRequest | training_pb2.ReadDocumentRequest,
) -> training_pb2.GetDocumentResponse:
    """Return a document without its text; with the pieces of the requested example, if any."""
    training_set = run.training_set
    if request.WhichOneof("document") != "example_id":
        index = find_document_index(request, training_set)
        return training_pb2.GetDocumentResponse(
            index=index, document=training_set.read_document(index)
        )
    pieces = training_set.read_pieces(request.example_id)
    index = pieces[0].document_index
    return training_pb2.GetDocumentResponse(
        index=index,
        document=training_set.read_document(index),
        pieces=[
            training_pb2.ByteRange(begin_byte=piece.begin_byte, end_byte=piece.end_byte)
            for piece in pieces
            if piece.document_index == index
        ],
        example_pieces=[training_pb2.ExamplePiece(**piece._asdict()) for piece in pieces],
    )


def make_proof_message(
    run: TrainingRun, request: training_pb2.GetInclusionProofRequest
) -> training_pb2.GetInclusionProofResponse:
    """Return the inclusion proof of a document."""
    training_set = run.training_set
    index = find_document_index(request, training_set)
    audit_path = training_set.compute_audit_path(index)
    dataset = training_set.dataset
    return training_pb2.GetInclusionProofResponse(
        leaf_index=index,
        tree_size=len(training_set.documents),
        leaf_data=training_set.documents.get_digest(index),
        audit_path=audit_path,
        root=b"" if dataset is None else bytes.fromhex(dataset.merkle_root),
    )
