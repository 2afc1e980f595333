"""Errors of any call: its fields, its size, its time, what the server offers."""

from whence_server.domain.errors.base import Code, FieldViolation, WhenceError


class InvalidRequestError(WhenceError):
    """The request is invalid and would fail every time."""

    code = Code.INVALID_ARGUMENT
    reason = "INVALID_REQUEST"

    def __init__(self, *violations: FieldViolation) -> None:
        super().__init__("; ".join(map(str, violations)))
        self.violations = violations

    def without_content(self) -> "InvalidRequestError":
        """Return the error with the descriptions for the record."""
        return InvalidRequestError(
            *(
                v if v.recorded is None else FieldViolation(v.field, v.recorded)
                for v in self.violations
            )
        )

    def __reduce__(self) -> tuple[type["InvalidRequestError"], tuple[FieldViolation, ...]]:
        # The error is pickled in the text process and raised in the front.
        return type(self), self.violations


class RequestTooLargeError(WhenceError):
    """The request has more bytes than the server takes, and would be refused every time."""

    code = Code.RESOURCE_EXHAUSTED
    reason = "REQUEST_TOO_LARGE"

    def __init__(self, num_bytes: int, max_bytes: int) -> None:
        super().__init__(
            f"the request has {num_bytes} bytes; this server takes at most {max_bytes} "
            "(--max-message-bytes)",
            num_bytes=str(num_bytes),
            max_bytes=str(max_bytes),
        )


class MethodNotFoundError(WhenceError):
    """The server has no such method."""

    code = Code.UNIMPLEMENTED
    reason = "METHOD_NOT_FOUND"

    def __init__(self, method: str) -> None:
        super().__init__(
            f"there is no method {method!r}; reflection lists the methods of this server",
            method=method,
        )


class HealthNotFoundError(WhenceError):
    """The server has no health of the named service."""

    code = Code.NOT_FOUND
    reason = "SERVICE_NOT_FOUND"

    def __init__(self, service: str) -> None:
        super().__init__(
            f'unknown service {service!r}; "" names the server as a whole', service=service
        )


class NotOfferedError(WhenceError):
    """The server does not implement a part of the contract that the request uses."""

    code = Code.UNIMPLEMENTED
    reason = "NOT_OFFERED"


class DrainingError(WhenceError):
    """The server is shutting down and admits no new requests.

    Attributes:
        retry_after_s: seconds after which a caller may retry, with the server's successor.
    """

    code = Code.UNAVAILABLE
    reason = "DRAINING"

    def __init__(self, retry_after_s: float = 1.0) -> None:
        super().__init__("the server is shutting down; try another instance")
        self.retry_after_s = retry_after_s


class DeadlinePassedError(WhenceError):
    """The call's deadline had passed when the call arrived."""

    code = Code.DEADLINE_EXCEEDED
    reason = "DEADLINE_PASSED"

    def __init__(self) -> None:
        super().__init__("the call's deadline had passed when it arrived")


class ConfigurationError(WhenceError):
    """The server cannot start with a setting, a model or a data directory."""

    code = Code.FAILED_PRECONDITION
    reason = "CONFIGURATION"
