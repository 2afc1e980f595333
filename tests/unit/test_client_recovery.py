"""Recovery of streams: which ends of a call are waited for, resumed or final."""

import grpc
import pytest
from google.protobuf import any_pb2
from google.rpc import error_details_pb2, status_pb2

from whence.backoff import Backoff, RetryPolicy
from whence.deadline import Deadline
from whence.errors import (
    ERRORS,
    CallCancelledError,
    Code,
    DeadlineExceededError,
    InternalError,
    NotFoundError,
    Origin,
    UnavailableError,
    WhenceError,
)
from whence.recovery import FINAL_PATH_REASONS, Recovery, choose_recovery
from whence.status import convert_error, describe_end

WAIT, RESUME, END = Recovery.WAIT, Recovery.RESUME, Recovery.END

# The recovery after each code: from the server, and from the path.
BY_CODE = {
    Code.CANCELLED: (END, RESUME),
    Code.UNKNOWN: (END, RESUME),
    Code.INVALID_ARGUMENT: (END, END),
    Code.DEADLINE_EXCEEDED: (END, RESUME),
    Code.NOT_FOUND: (END, END),
    Code.ALREADY_EXISTS: (END, END),
    Code.PERMISSION_DENIED: (END, END),
    Code.RESOURCE_EXHAUSTED: (END, RESUME),
    Code.FAILED_PRECONDITION: (END, END),
    Code.ABORTED: (END, RESUME),
    Code.OUT_OF_RANGE: (END, END),
    Code.UNIMPLEMENTED: (END, END),
    Code.INTERNAL: (END, RESUME),
    Code.UNAVAILABLE: (WAIT, RESUME),
    Code.DATA_LOSS: (END, END),
    Code.UNAUTHENTICATED: (END, END),
}


@pytest.mark.parametrize("code", [code for code in Code if code is not Code.OK])
@pytest.mark.parametrize("begun", [False, True])
def test_every_code_of_every_origin_has_its_recovery(code, begun):
    by_server, by_path = BY_CODE[code]

    def choose(origin: Origin, reason: str = "") -> Recovery:
        error = ERRORS[code]("", code=code, origin=origin, reason=reason)
        return choose_recovery(error, begun=begun)

    assert choose(Origin.SERVER, "WHY") is by_server
    assert choose(Origin.PATH) is by_path
    assert choose(Origin.CLIENT) is END
    # The code of a reset stream has no meaning; the reasons below concern the request itself.
    assert choose(Origin.PATH, "STREAM_RESET") is RESUME
    for reason in FINAL_PATH_REASONS:
        assert choose(Origin.PATH, reason) is END


def test_a_generation_that_has_begun_may_be_on_another_server():
    unknown = NotFoundError("", origin=Origin.SERVER, reason="GENERATION_NOT_FOUND")
    deleted = NotFoundError("", origin=Origin.SERVER, reason="GENERATION_DELETED")
    assert choose_recovery(unknown, begun=True) is WAIT
    assert choose_recovery(unknown, begun=False) is END
    assert choose_recovery(deleted, begun=True) is END


class Call(grpc.RpcError):
    """A failed call, as grpcio describes it."""

    def __init__(self, code: grpc.StatusCode, details: str, domain: str | None = None) -> None:
        self._code, self._details, self._domain = code, details, domain

    def code(self) -> grpc.StatusCode:
        return self._code

    def details(self) -> str:
        return self._details

    def trailing_metadata(self) -> tuple[tuple[str, bytes], ...]:
        if self._domain is None:
            return ()
        packed = any_pb2.Any()
        packed.Pack(error_details_pb2.ErrorInfo(domain=self._domain, reason="WHY"))
        status = status_pb2.Status(details=[packed])
        return (("grpc-status-details-bin", status.SerializeToString()),)


S = grpc.StatusCode
# Descriptions that grpcio 1.62 and 1.85 gave of the answers of an HTTP/2 peer.
DESCRIPTIONS = [
    (S.UNKNOWN, "Received http2 header with status: 408", Origin.PATH, "HTTP_408", RESUME),
    (S.UNKNOWN, "Received http2 header with status: 413", Origin.PATH, "HTTP_413", END),
    (S.UNKNOWN, "Received http2 header with status: 431", Origin.PATH, "HTTP_431", END),
    (S.INTERNAL, "Received http2 header with status: 400", Origin.PATH, "HTTP_400", END),
    (S.UNKNOWN, "Received http2 header with status: 500", Origin.PATH, "HTTP_500", RESUME),
    (S.UNAVAILABLE, "Received http2 header with status: 502", Origin.PATH, "HTTP_502", RESUME),
    (S.UNAVAILABLE, "Received http2 header with status: 429", Origin.PATH, "HTTP_429", RESUME),
    (S.UNAUTHENTICATED, "Received http2 header with status: 401", Origin.PATH, "HTTP_401", END),
    (S.PERMISSION_DENIED, "Received http2 header with status: 403", Origin.PATH, "HTTP_403", END),
    (S.UNIMPLEMENTED, "Received http2 header with status: 404", Origin.PATH, "HTTP_404", END),
    (S.INTERNAL, "Received RST_STREAM with error code 2", Origin.PATH, "STREAM_RESET", RESUME),
    (
        S.PERMISSION_DENIED,
        "Stream removed (RST_STREAM (Received RST_STREAM with error code 12))",
        Origin.PATH,
        "STREAM_RESET",
        RESUME,
    ),
    (S.UNKNOWN, "Stream removed", Origin.PATH, "", RESUME),
    (
        S.UNKNOWN,
        "Stream removed (Data frame with END_STREAM flag received)",
        Origin.PATH,
        "",
        RESUME,
    ),
    (S.UNKNOWN, "No status received", Origin.PATH, "", RESUME),
    (S.UNAVAILABLE, "failed to connect to all addresses", Origin.PATH, "", RESUME),
    (
        S.RESOURCE_EXHAUSTED,
        "Stream removed (CLIENT: Received message larger than max (300 vs. 200))",
        Origin.PATH,
        "MESSAGE_TOO_LARGE",
        END,
    ),
    (
        S.RESOURCE_EXHAUSTED,
        "SERVER: Received message larger than max (5000000 vs. 4194304)",
        Origin.PATH,
        "MESSAGE_TOO_LARGE",
        END,
    ),
    (
        S.RESOURCE_EXHAUSTED,
        "received metadata size exceeds soft limit (12135 vs. 8192);  :status:42B",
        Origin.PATH,
        "METADATA_TOO_LARGE",
        END,
    ),
    (
        S.INTERNAL,
        "Exception deserializing response!",
        Origin.CLIENT,
        "RESPONSE_UNREADABLE",
        END,
    ),
    (
        S.INTERNAL,
        "Decompression failed due to zlib error",
        Origin.CLIENT,
        "RESPONSE_UNREADABLE",
        END,
    ),
    (
        S.INTERNAL,
        "Unexpected error decompressing data for algorithm gzip",
        Origin.CLIENT,
        "RESPONSE_UNREADABLE",
        END,
    ),
    (S.CANCELLED, "Channel closed!", Origin.CLIENT, "", END),
    (S.CANCELLED, "Locally cancelled by application!", Origin.CLIENT, "", END),
]


@pytest.mark.parametrize(("code", "description", "origin", "reason", "recovery"), DESCRIPTIONS)
def test_ends_that_the_server_did_not_send(code, description, origin, reason, recovery):
    error = convert_error(Call(code, description))
    assert (error.origin, error.reason) == (origin, reason)
    assert describe_end(description)[:2] == (origin, reason)
    assert error.code == code.value[0]
    assert choose_recovery(error, begun=True) is recovery


def test_only_the_domain_of_whence_makes_a_status_that_of_the_server():
    for domain, origin in (
        ("whence.v1", Origin.SERVER),
        ("envoy.example", Origin.PATH),
        (None, Origin.PATH),
    ):
        error = convert_error(Call(S.INTERNAL, "", domain))
        assert error.origin is origin
    reset = "Received RST_STREAM with error code 8"
    assert convert_error(Call(S.INTERNAL, reset, "whence.v1")).reason == "WHY"


def test_nobody_cancelled_a_call_that_a_proxy_reset():
    reset = convert_error(Call(S.CANCELLED, "Received RST_STREAM with error code 8"))
    assert (type(reset), reset.code) == (InternalError, Code.CANCELLED)
    closed = convert_error(Call(S.CANCELLED, "Channel closed!"))
    assert type(closed) is CallCancelledError


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.mark.parametrize("code", [code for code, row in BY_CODE.items() if row[1] is RESUME])
def test_patience_ends_with_unavailable_whatever_the_path_said(code):
    clock = Clock()
    backoff = Backoff(RetryPolicy(), clock=clock)
    error = ERRORS[code]("words", code=code, origin=Origin.PATH)
    backoff.choose_delay_s(error)
    clock.now += 5
    with pytest.raises(UnavailableError, match="words") as raised:
        backoff.choose_delay_s(error)
    assert raised.value.code is Code.UNAVAILABLE
    if code is not Code.UNAVAILABLE:
        assert raised.value.reason == "STREAM_BROKEN"
        assert f"within 5 s; the last one ended with {code.name}" in raised.value.message


def test_patience_for_a_generation_on_another_server_ends_with_not_found():
    clock = Clock()
    backoff = Backoff(RetryPolicy(), clock=clock)
    backoff.restart()
    error: WhenceError = NotFoundError("gone", origin=Origin.SERVER, reason="GENERATION_NOT_FOUND")
    backoff.choose_delay_s(error)
    clock.now += 29.9
    backoff.choose_delay_s(error)
    clock.now += 0.1
    with pytest.raises(NotFoundError, match="gone"):
        backoff.choose_delay_s(error)


def test_a_deadline_ends_the_stream_only_when_it_has_passed():
    clock = Clock()
    deadline = Deadline(10.0, clock=clock)
    error = DeadlineExceededError("", origin=Origin.PATH)
    deadline.check(error)
    assert deadline.limit(20.0) == 10.0
    clock.now += 10
    deadline.check(UnavailableError("", origin=Origin.PATH))
    with pytest.raises(DeadlineExceededError):
        deadline.check(error)
    assert error.origin is Origin.CLIENT
    endless = Deadline(None, clock=clock)
    endless.check(DeadlineExceededError("", origin=Origin.PATH))
    assert (endless.left_s, endless.limit(20.0)) == (None, 20.0)
