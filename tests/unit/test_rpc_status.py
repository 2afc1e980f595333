"""The status table: every error that the server raises on purpose has its row."""

import inspect

import grpc
import pytest
from google.rpc import error_details_pb2

from whence_server.domain import errors
from whence_server.rpc.status import DOMAIN, GRPC_CODES, error_status

EXAMPLES: dict[type[errors.WhenceError], tuple[errors.WhenceError, grpc.StatusCode]] = {
    type(error): (error, code)
    for error, code in [
        (errors.WhenceError("a bug"), grpc.StatusCode.INTERNAL),
        (
            errors.InvalidRequestError(
                errors.FieldViolation("prompt", "must not be empty"),
                errors.FieldViolation("decoding.sample.top_p", "must be in (0, 1]"),
            ),
            grpc.StatusCode.INVALID_ARGUMENT,
        ),
        (errors.GenerationNotFoundError("g"), grpc.StatusCode.NOT_FOUND),
        (errors.ModelNotFoundError("a", "b"), grpc.StatusCode.NOT_FOUND),
        (errors.TrainingRunNotFoundError("r"), grpc.StatusCode.NOT_FOUND),
        (errors.DocumentNotFoundError("no such document"), grpc.StatusCode.NOT_FOUND),
        (errors.DocumentChangedError("it changed"), grpc.StatusCode.FAILED_PRECONDITION),
        (
            errors.EmergenceRefusedError("CHECKPOINTS_MISSING", "there are none"),
            grpc.StatusCode.FAILED_PRECONDITION,
        ),
        (errors.EmergenceBusyError(2.5), grpc.StatusCode.RESOURCE_EXHAUSTED),
        (errors.LineageError("broken"), grpc.StatusCode.INTERNAL),
        (errors.GenerationExistsError("g"), grpc.StatusCode.ALREADY_EXISTS),
        (errors.QueueFullError(8, 1.5), grpc.StatusCode.RESOURCE_EXHAUSTED),
        (errors.TextQueueFullError(8, 1.5), grpc.StatusCode.RESOURCE_EXHAUSTED),
        (errors.TextProcessError("it ended"), grpc.StatusCode.INTERNAL),
        (errors.ModelNotReadyError(), grpc.StatusCode.FAILED_PRECONDITION),
        (errors.GenerationRunningError("g"), grpc.StatusCode.FAILED_PRECONDITION),
        (errors.NotOfferedError("later"), grpc.StatusCode.UNIMPLEMENTED),
        (errors.DrainingError(), grpc.StatusCode.UNAVAILABLE),
        (errors.EngineLostError("gone"), grpc.StatusCode.UNAVAILABLE),
        (errors.DeadlinePassedError(), grpc.StatusCode.DEADLINE_EXCEEDED),
        (errors.GenerationFailedError("BROKEN", "it broke"), grpc.StatusCode.INTERNAL),
        (errors.ConfigurationError("wrong"), grpc.StatusCode.FAILED_PRECONDITION),
        (errors.JournalError("full"), grpc.StatusCode.INTERNAL),
    ]
}
ALL = [
    cls
    for _, cls in inspect.getmembers(errors, inspect.isclass)
    if issubclass(cls, errors.WhenceError)
]


@pytest.mark.parametrize("cls", ALL)
def test_every_error_has_its_code_and_says_its_reason(cls: type[errors.WhenceError]) -> None:
    error, code = EXAMPLES[cls]
    status = error_status(error)
    assert GRPC_CODES[error.code] is code
    assert status.code == code.value[0]
    assert status.message == error.message
    info = error_details_pb2.ErrorInfo()
    assert status.details[0].Unpack(info)
    assert (info.reason, info.domain) == (error.reason, DOMAIN)
    assert info.reason == info.reason.upper()


def test_every_code_of_the_domain_is_the_wires() -> None:
    assert {code.name: code.value for code in errors.Code} == {
        code.name: GRPC_CODES[code].value[0] for code in errors.Code
    }
    assert all(code.name == GRPC_CODES[code].name for code in errors.Code)


def test_the_tree_in_the_docstring_names_every_error() -> None:
    assert errors.__doc__ is not None
    missing = [cls.__name__ for cls in ALL if cls.__name__ not in errors.__doc__]
    assert missing == []


def test_invalid_requests_name_every_field() -> None:
    error, _ = EXAMPLES[errors.InvalidRequestError]
    bad_request = error_details_pb2.BadRequest()
    assert error_status(error).details[1].Unpack(bad_request)
    assert [v.field for v in bad_request.field_violations] == ["prompt", "decoding.sample.top_p"]


def test_a_full_queue_says_when_to_come_again() -> None:
    error, _ = EXAMPLES[errors.QueueFullError]
    retry = error_details_pb2.RetryInfo()
    assert error_status(error).details[1].Unpack(retry)
    assert retry.retry_delay.ToMilliseconds() == 1500
