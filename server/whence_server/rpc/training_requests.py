"""Checks and conversion of requests about training runs, with the field of every fault."""

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
    """Sort key of the last run of a page."""

    start_time_ns: int
    training_run_id: str

    def __str__(self) -> str:
        return f"after:{self.start_time_ns}:{self.training_run_id}"


def read_run_token(token: str) -> RunToken | None:
    """Parse the token of the previous page; None for the first page.

    Raises:
        InvalidRequestError: the token is malformed.
    """
    if not token:
        return None
    match = _RUN_TOKEN.fullmatch(token)
    if match is None:
        raise _make_token_error("ListTrainingRuns")
    return RunToken(int(match[1]), match[2])


def read_step_token(token: str) -> tuple[int, int]:
    """Parse number and attempt of the previous page's last step; 0, 0 for the first page.

    Raises:
        InvalidRequestError: the token is malformed.
    """
    if not token:
        return 0, 0
    match = _STEP_TOKEN.fullmatch(token)
    if match is None:
        raise _make_token_error("ListTrainingSteps")
    return int(match[1]), int(match[2])


def make_step_token(step: training_pb2.TrainingStep) -> str:
    """Return the token of the page after this step."""
    return f"after:{step.step}:{step.attempt}"


def read_step_range(request: training_pb2.ListTrainingStepsRequest) -> StepRange:
    """Return the requested range of steps.

    Raises:
        InvalidRequestError: fields break rules; the error names all of them.
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
    """Refuse a request without a document, or with a malformed digest.

    Raises:
        InvalidRequestError: a field breaks a rule.
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


def find_document_index(
    request: DocumentRequest,
    training_set: TrainingSet,
) -> int:
    """Return the index of the document that `index` or `sha256` names.

    Raises:
        DocumentNotFoundError: the training set has no such document.
    """
    if request.WhichOneof("document") == "sha256":
        return training_set.find_document(request.sha256)
    return request.index


def read_byte_range(
    request: training_pb2.ReadDocumentRequest, document: training_pb2.TrainingDocument
) -> tuple[int, int]:
    """Return the requested range of a document's bytes, relative to its beginning.

    Raises:
        InvalidRequestError: a field breaks a rule.
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
    """Parse the number of items on the previous pages; 0 for the first page.

    Raises:
        InvalidRequestError: GetTrainingRun returned no such token.
    """
    if not token:
        return 0
    match = _ITEM_TOKEN.fullmatch(token)
    if match is None:
        raise _make_token_error("GetTrainingRun")
    return int(match[1])


def make_item_token(num_given: int) -> str:
    """Return the token of the page after a number of items."""
    return f"after:{num_given}"


def _make_token_error(method: str) -> InvalidRequestError:
    return InvalidRequestError(FieldViolation("page_token", f"is no token that {method} returned"))
