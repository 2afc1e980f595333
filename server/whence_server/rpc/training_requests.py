"""What requests about training runs ask for: well-formed or refused, every fault by its field."""

import re
from typing import NamedTuple, TypeAlias

from whence.v1 import training_pb2
from whence_server.domain.errors import FieldViolation, InvalidRequestError
from whence_server.lineage.steps import StepRange
from whence_server.lineage.training_set import TrainingSet

_STEP_TOKEN = re.compile(r"after:([0-9]{1,18}):([0-9]{1,9})")
_RUN_TOKEN = re.compile(r"after:([0-9]{1,19}):(.+)", re.DOTALL)
_ITEM_TOKEN = re.compile(r"after:([0-9]{1,18})")
_SHA256 = re.compile(r"[0-9a-f]{64}")
_LARGEST_STEP = (1 << 63) - 1


DocumentRequest: TypeAlias = (
    training_pb2.GetDocumentRequest
    | training_pb2.ReadDocumentRequest
    | training_pb2.GetInclusionProofRequest
)


class RunToken(NamedTuple):
    """The last run of a page, by what runs are sorted by."""

    start_time_ns: int
    training_run_id: str

    def __str__(self) -> str:
        return f"after:{self.start_time_ns}:{self.training_run_id}"


def read_run_token(token: str) -> RunToken | None:
    """The token of the page before; None for the first page.

    Raises:
        InvalidRequestError: it is none.
    """
    if not token:
        return None
    match = _RUN_TOKEN.fullmatch(token)
    if match is None:
        raise _not_returned("ListTrainingRuns")
    return RunToken(int(match[1]), match[2])


def read_step_token(token: str) -> tuple[int, int]:
    """Number and attempt of the last step of the page before.

    Raises:
        InvalidRequestError: it is none.
    """
    if not token:
        return 0, 0
    match = _STEP_TOKEN.fullmatch(token)
    if match is None:
        raise _not_returned("ListTrainingSteps")
    return int(match[1]), int(match[2])


def step_token(step: training_pb2.TrainingStep) -> str:
    """Where the page after this step begins."""
    return f"after:{step.step}:{step.attempt}"


def step_range(request: training_pb2.ListTrainingStepsRequest) -> StepRange:
    """Which steps are asked for.

    Raises:
        InvalidRequestError: with every field at fault.
    """
    violations = [
        FieldViolation(field, f"must be at most {_LARGEST_STEP}")
        for field in ("first_step", "last_step", "stride")
        if getattr(request, field) > _LARGEST_STEP
    ]
    if request.last_step and request.last_step < request.first_step:
        violations.append(
            FieldViolation(
                "last_step",
                f"must not be below first_step, which is {request.first_step}; "
                f"it is {request.last_step}",
            )
        )
    if violations:
        raise InvalidRequestError(*violations)
    return StepRange(
        request.first_step, request.last_step, request.stride, request.include_superseded
    )


def check_document(
    request: DocumentRequest,
) -> None:
    """Refuse a request that names no document, or none that there can be.

    Raises:
        InvalidRequestError: with the field at fault.
    """
    kind = request.WhichOneof("document")
    if kind is None:
        names = [
            f"`{field.name}`" for field in request.DESCRIPTOR.oneofs_by_name["document"].fields
        ]
        raise InvalidRequestError(
            FieldViolation("document", f"one of {', '.join(names)} must be set")
        )
    if kind == "sha256" and not _SHA256.fullmatch(request.sha256):
        raise InvalidRequestError(
            FieldViolation("sha256", "must be a SHA-256 as 64 lower-case hex digits")
        )


def document_index(
    request: DocumentRequest,
    training_set: TrainingSet,
) -> int:
    """Index of the document that is asked for by `index` or `sha256`.

    Raises:
        DocumentNotFoundError: the training set has no such document.
    """
    if request.WhichOneof("document") == "sha256":
        return training_set.find(request.sha256)
    return request.index


def byte_range(
    request: training_pb2.ReadDocumentRequest, document: training_pb2.TrainingDocument
) -> tuple[int, int]:
    """The bytes of a document that are asked for, counted from its beginning.

    Raises:
        InvalidRequestError: with the field at fault.
    """
    size = document.end_byte - document.begin_byte
    begin, end = request.begin_byte, request.end_byte or size
    if begin > size:
        problem = f"is {begin}; the document has {size} bytes"
        raise InvalidRequestError(FieldViolation("begin_byte", problem))
    if end < begin:
        problem = f"must not be below begin_byte, which is {begin}; it is {end}"
        raise InvalidRequestError(FieldViolation("end_byte", problem))
    return begin, min(end, size)


def read_item_token(token: str) -> int:
    """How much of a run was given by the pages before; 0 for the first page.

    Raises:
        InvalidRequestError: GetTrainingRun returned no such token.
    """
    if not token:
        return 0
    match = _ITEM_TOKEN.fullmatch(token)
    if match is None:
        raise _not_returned("GetTrainingRun")
    return int(match[1])


def item_token(num_given: int) -> str:
    """The page that goes on after so much of a run."""
    return f"after:{num_given}"


def _not_returned(method: str) -> InvalidRequestError:
    return InvalidRequestError(FieldViolation("page_token", f"is not one that {method} returned"))
