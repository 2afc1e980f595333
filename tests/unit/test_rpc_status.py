"""Statuses of all errors that the server raises on purpose."""

import base64
import inspect
import urllib.parse
from typing import TypeAlias

import grpc
import pytest
from google.rpc import error_details_pb2, status_pb2
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from whence_server.domain import errors
from whence_server.rpc.status import DETAILS_KEY, DOMAIN, GRPC_CODES, abort, make_status

Trailing: TypeAlias = tuple[tuple[str, bytes], ...]

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
        (errors.RequestTooLargeError(9, 8), grpc.StatusCode.RESOURCE_EXHAUSTED),
        (
            errors.CallerLimitError("4 generations", "--caller-max-generations", 4, 1.0),
            grpc.StatusCode.RESOURCE_EXHAUSTED,
        ),
        (errors.ProviderAwayError(), grpc.StatusCode.UNAVAILABLE),
        (errors.PublicCallsError("this address has", 4), grpc.StatusCode.RESOURCE_EXHAUSTED),
        (errors.StoredBytesError(9, 8, ["a", "b"]), grpc.StatusCode.RESOURCE_EXHAUSTED),
        (errors.UnauthenticatedError(), grpc.StatusCode.UNAUTHENTICATED),
        (errors.ScopeMissingError(["read"]), grpc.StatusCode.PERMISSION_DENIED),
        (errors.MethodNotFoundError("/s/Nothing"), grpc.StatusCode.UNIMPLEMENTED),
        (errors.RouteNotFoundError("GET", "/v9"), grpc.StatusCode.NOT_FOUND),
        (errors.MediaTypeError("text/plain"), grpc.StatusCode.INVALID_ARGUMENT),
        (errors.OriginRefusedError("https://x"), grpc.StatusCode.PERMISSION_DENIED),
        (errors.HostRefusedError("x"), grpc.StatusCode.PERMISSION_DENIED),
        (errors.ForgeryRefusedError(), grpc.StatusCode.PERMISSION_DENIED),
        (errors.HealthNotFoundError("s"), grpc.StatusCode.NOT_FOUND),
        (errors.GenerationNotFoundError("g"), grpc.StatusCode.NOT_FOUND),
        (errors.NoTransparencyLogError(), grpc.StatusCode.UNIMPLEMENTED),
        (errors.StatementNotLoggedError("a statement", 3), grpc.StatusCode.NOT_FOUND),
        (errors.CheckpointPendingError("entry 3", 1.0), grpc.StatusCode.UNAVAILABLE),
        (errors.TransparencyLogDamagedError("no entry 3"), grpc.StatusCode.DATA_LOSS),
        (errors.ModelNotFoundError("a", "b"), grpc.StatusCode.NOT_FOUND),
        (errors.TrainingRunNotFoundError("r"), grpc.StatusCode.NOT_FOUND),
        (errors.DocumentNotFoundError("no such document"), grpc.StatusCode.NOT_FOUND),
        (errors.DocumentChangedError("it changed"), grpc.StatusCode.FAILED_PRECONDITION),
        (
            errors.EmergenceRefusedError("CHECKPOINTS_MISSING", "there are none"),
            grpc.StatusCode.FAILED_PRECONDITION,
        ),
        (errors.EmergenceBusyError(2.5), grpc.StatusCode.RESOURCE_EXHAUSTED),
        (errors.VerificationBusyError(2.5), grpc.StatusCode.RESOURCE_EXHAUSTED),
        (errors.ExplanationBusyError(2.5), grpc.StatusCode.RESOURCE_EXHAUSTED),
        (errors.ExplanationTooLargeError("too much"), grpc.StatusCode.RESOURCE_EXHAUSTED),
        (
            errors.ExplanationRefusedError("NO_WEIGHTS", "there are none"),
            grpc.StatusCode.FAILED_PRECONDITION,
        ),
        (errors.AnalysisFailedError("it failed"), grpc.StatusCode.INTERNAL),
        (errors.AnalysisEndedError("it ended"), grpc.StatusCode.UNAVAILABLE),
        (errors.LineageError("broken"), grpc.StatusCode.INTERNAL),
        (errors.UpstreamError("it failed"), grpc.StatusCode.UNAVAILABLE),
        (errors.UpstreamAwayError("it is away", 2.5), grpc.StatusCode.UNAVAILABLE),
        (errors.UpstreamMalformedError("no JSON"), grpc.StatusCode.UNAVAILABLE),
        (errors.UpstreamUnfinishedError("it ended"), grpc.StatusCode.UNAVAILABLE),
        (errors.UpstreamBusyError("it is busy", 2.5), grpc.StatusCode.RESOURCE_EXHAUSTED),
        (errors.UpstreamRefusedError("too long"), grpc.StatusCode.INVALID_ARGUMENT),
        (errors.UpstreamKeyError("no key"), grpc.StatusCode.FAILED_PRECONDITION),
        (errors.UpstreamModelError("another"), grpc.StatusCode.FAILED_PRECONDITION),
        (errors.GenerationExistsError("g"), grpc.StatusCode.ALREADY_EXISTS),
        (errors.ContentNotReadError("g"), grpc.StatusCode.RESOURCE_EXHAUSTED),
        (errors.ContentsFullError(8, 1.5), grpc.StatusCode.RESOURCE_EXHAUSTED),
        (errors.QueueFullError(8, 1.5), grpc.StatusCode.RESOURCE_EXHAUSTED),
        (errors.TextQueueFullError(8, 1.5), grpc.StatusCode.RESOURCE_EXHAUSTED),
        (errors.TextProcessError("it ended"), grpc.StatusCode.INTERNAL),
        (errors.ModelNotReadyError(), grpc.StatusCode.UNAVAILABLE),
        (errors.ModelFailedError("no weights"), grpc.StatusCode.FAILED_PRECONDITION),
        (errors.NoModelError(), grpc.StatusCode.FAILED_PRECONDITION),
        (errors.GenerationElsewhereError("g"), grpc.StatusCode.FAILED_PRECONDITION),
        (errors.GenerationInOtherLogError("g"), grpc.StatusCode.FAILED_PRECONDITION),
        (errors.GenerationRunningError("g"), grpc.StatusCode.FAILED_PRECONDITION),
        (errors.GenerationUnsignedError("g"), grpc.StatusCode.FAILED_PRECONDITION),
        (errors.ForkRefusedError("g", "no ids"), grpc.StatusCode.FAILED_PRECONDITION),
        (errors.BundleTooLargeError("g", "9", "hide"), grpc.StatusCode.FAILED_PRECONDITION),
        (errors.NotOfferedError("later"), grpc.StatusCode.UNIMPLEMENTED),
        (errors.DrainingError(), grpc.StatusCode.UNAVAILABLE),
        (errors.EngineLostError("gone"), grpc.StatusCode.UNAVAILABLE),
        (errors.DeadlinePassedError(), grpc.StatusCode.DEADLINE_EXCEEDED),
        (errors.GenerationFailedError("BROKEN", "it broke"), grpc.StatusCode.INTERNAL),
        (errors.ConfigurationError("wrong"), grpc.StatusCode.FAILED_PRECONDITION),
        (errors.JournalError("full"), grpc.StatusCode.INTERNAL),
        (errors.JournalUnwritableError("disk I/O error"), grpc.StatusCode.UNAVAILABLE),
        (errors.JournalFullError("the disk is full"), grpc.StatusCode.RESOURCE_EXHAUSTED),
        (errors.JournalUnreachableError("it is away"), grpc.StatusCode.UNAVAILABLE),
        (errors.LeaseLostError(), grpc.StatusCode.UNAVAILABLE),
        (errors.JournalLostError("a bug"), grpc.StatusCode.UNAVAILABLE),
        (errors.DeletionPendingError("g"), grpc.StatusCode.FAILED_PRECONDITION),
        (errors.GenerationHeldError("g", "matter=*"), grpc.StatusCode.FAILED_PRECONDITION),
        (errors.RecordDamagedError("g", "no start"), grpc.StatusCode.DATA_LOSS),
        (errors.RecordersFullError("too many", 4, 1.0), grpc.StatusCode.RESOURCE_EXHAUSTED),
        (errors.VocabulariesFullError("all", 9, 8), grpc.StatusCode.RESOURCE_EXHAUSTED),
    ]
}
ALL = [
    cls
    for _, cls in inspect.getmembers(errors, inspect.isclass)
    if issubclass(cls, errors.WhenceError)
]


@pytest.mark.parametrize("cls", ALL)
def test_every_error_has_its_code_and_reason(cls: type[errors.WhenceError]) -> None:
    error, code = EXAMPLES[cls]
    status = make_status(error)
    assert GRPC_CODES[error.code] is code
    assert status.code == code.value[0]
    assert status.message == error.message
    info = error_details_pb2.ErrorInfo()
    assert status.details[0].Unpack(info)
    assert (info.reason, info.domain) == (error.reason, DOMAIN)
    assert info.reason == info.reason.upper()


def test_every_code_of_the_domain_equals_grpcs() -> None:
    assert {code.name: code.value for code in errors.Code} == {
        code.name: GRPC_CODES[code].value[0] for code in errors.Code
    }
    assert all(code.name == GRPC_CODES[code].name for code in errors.Code)


def test_docstring_tree_names_every_error() -> None:
    assert errors.__doc__ is not None
    missing = [cls.__name__ for cls in ALL if cls.__name__ not in errors.__doc__]
    assert missing == []


def test_invalid_requests_name_every_field() -> None:
    error, _ = EXAMPLES[errors.InvalidRequestError]
    bad_request = error_details_pb2.BadRequest()
    assert make_status(error).details[1].Unpack(bad_request)
    assert [v.field for v in bad_request.field_violations] == ["prompt", "decoding.sample.top_p"]


@pytest.mark.parametrize("error", [errors.ModelNotReadyError(2.5), errors.DrainingError(2.5)])
def test_unavailable_server_has_retry_info(error: errors.WhenceError) -> None:
    retry = error_details_pb2.RetryInfo()
    assert make_status(error).details[1].Unpack(retry)
    assert retry.retry_delay.ToMilliseconds() == 2500


def test_full_queue_has_retry_info() -> None:
    error, _ = EXAMPLES[errors.QueueFullError]
    retry = error_details_pb2.RetryInfo()
    assert make_status(error).details[1].Unpack(retry)
    assert retry.retry_delay.ToMilliseconds() == 1500


def test_unwritable_journal_has_retry_info() -> None:
    error, _ = EXAMPLES[errors.JournalFullError]
    retry = error_details_pb2.RetryInfo()
    assert make_status(error).details[1].Unpack(retry)
    assert retry.retry_delay.ToMilliseconds() == 5000


class Context:
    """Context that keeps the arguments of an abort."""

    async def abort(self, code: grpc.StatusCode, message: str, trailing: Trailing) -> None:
        self.aborted = (code, message, trailing)


TEXT = st.text(max_size=50) | st.sampled_from(["x" * 100_000, "ü" * 5_000, "%" * 5_000, "\ud800"])
VIOLATIONS = st.lists(st.builds(errors.FieldViolation, TEXT, TEXT), max_size=2_000)


@settings(deadline=None, suppress_health_check=list(HealthCheck))
@given(
    error=VIOLATIONS.map(lambda found: errors.InvalidRequestError(*found))
    | st.builds(errors.GenerationNotFoundError, TEXT)
    | st.builds(errors.ModelNotFoundError, TEXT, TEXT)
    | st.builds(errors.JournalError, TEXT)
)
async def test_every_error_fits_into_the_headers_that_proxies_pass_on(
    error: errors.WhenceError,
) -> None:
    """Message and details, as they are encoded on the wire, have less than 2 KB together."""
    context = Context()
    with pytest.raises(AssertionError, match="abort returned"):
        await abort(context, error)  # type: ignore[arg-type]  # what abort uses of one
    code, message, ((_, details),) = context.aborted
    assert code is GRPC_CODES[error.code]
    assert status_pb2.Status.FromString(details).code == code.value[0]
    headers = {
        "grpc-message": urllib.parse.quote(message, safe=" !\"#$&'()*+,/:;<=>?@[\\]^`{|}"),
        DETAILS_KEY: base64.b64encode(details).decode(),
    }
    assert sum(len(name) + len(value) for name, value in headers.items()) < 2_048


def test_status_names_the_first_violations_and_counts_all() -> None:
    violations = [errors.FieldViolation(f"labels[{i}]", "is too long") for i in range(600)]
    status = make_status(errors.InvalidRequestError(*violations))
    info, bad_request = error_details_pb2.ErrorInfo(), error_details_pb2.BadRequest()
    assert status.details[0].Unpack(info)
    assert status.details[1].Unpack(bad_request)
    named = [violation.field for violation in bad_request.field_violations]
    assert named == [violation.field for violation in violations[: len(named)]]
    assert len(named) >= 15
    assert info.metadata["num_violations"] == "600"
    assert status.message.startswith("labels[0]: is too long; labels[1]: is too long; ")
    num_named = status.message.count("is too long")
    assert 10 < num_named <= len(named)
    assert status.message.endswith(f"; and {600 - num_named} more")


def test_names_are_cut_at_a_hundred_characters() -> None:
    error = errors.InvalidRequestError(errors.FieldViolation("ü" * 101, "is too long"))
    bad_request = error_details_pb2.BadRequest()
    assert make_status(error).details[1].Unpack(bad_request)
    (violation,) = bad_request.field_violations
    assert violation.field == "ü" * 97 + "..."
    assert violation.description == "is too long"
