"""Errors of an upstream: the server of another engine that computes the tokens."""

from whence_server.domain.errors.base import Code, WhenceError


class UpstreamError(WhenceError):
    """The upstream failed, or answered what nobody can read."""

    code = Code.UNAVAILABLE
    reason = "UPSTREAM_FAILED"


class UpstreamAwayError(UpstreamError):
    """The upstream does not answer, or its connection broke.

    Attributes:
        retry_after_s: seconds after which a caller may retry.
    """

    reason = "UPSTREAM_AWAY"

    def __init__(self, message: str, retry_after_s: float = 1.0, **metadata: str) -> None:
        super().__init__(message, **metadata)
        self.retry_after_s = retry_after_s


class UpstreamMalformedError(UpstreamError):
    """The upstream's answer breaks its own format, or has more bytes than whence takes."""

    reason = "UPSTREAM_MALFORMED"


class UpstreamUnfinishedError(UpstreamError):
    """The upstream's answer ended before its last part."""

    reason = "UPSTREAM_UNFINISHED"


class UpstreamBusyError(UpstreamError):
    """The upstream takes no more requests at present.

    Attributes:
        retry_after_s: seconds after which a caller may retry, as the upstream says.
    """

    code = Code.RESOURCE_EXHAUSTED
    reason = "UPSTREAM_BUSY"

    def __init__(self, message: str, retry_after_s: float, **metadata: str) -> None:
        super().__init__(message, **metadata)
        self.retry_after_s = retry_after_s


class UpstreamRefusedError(UpstreamError):
    """The upstream refused the request, and would refuse it every time."""

    code = Code.INVALID_ARGUMENT
    reason = "UPSTREAM_REFUSED"


class UpstreamKeyError(UpstreamError):
    """The upstream does not accept the API key."""

    code = Code.FAILED_PRECONDITION
    reason = "UPSTREAM_KEY"


class UpstreamModelError(UpstreamError):
    """The upstream serves or used another model than the one asked for."""

    code = Code.FAILED_PRECONDITION
    reason = "UPSTREAM_MODEL"
