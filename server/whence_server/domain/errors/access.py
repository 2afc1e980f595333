"""Errors of callers that may not do what they ask; they say nothing about what exists."""

from collections.abc import Iterable, Sequence

from whence_server.domain.errors.base import Code, WhenceError


class UnauthenticatedError(WhenceError):
    """The caller has no token or certificate that the server accepts."""

    code = Code.UNAUTHENTICATED
    reason = "UNAUTHENTICATED"

    def __init__(self) -> None:
        # One message for every cause: it must not help in guessing.
        super().__init__(
            "the caller is not authenticated; send a valid token as `authorization: Bearer TOKEN`, "
            "or connect with a certificate that the server knows"
        )


class ProviderAwayError(WhenceError):
    """The keys of the identity provider have not been fetched since the server started.

    Attributes:
        retry_after_s: seconds after which the caller may retry.
    """

    code = Code.UNAVAILABLE
    reason = "PROVIDER_AWAY"
    retry_after_s = 5.0

    def __init__(self) -> None:
        super().__init__(
            "the server cannot verify JWTs, because it has not reached the identity provider yet; "
            f"try again in {self.retry_after_s:g} s"
        )


class CallerLimitError(WhenceError):
    """The caller is at one of the limits that each caller has.

    Attributes:
        retry_after_s: seconds after which the caller may retry.
    """

    code = Code.RESOURCE_EXHAUSTED
    reason = "CALLER_LIMIT"

    def __init__(self, what: str, flag: str, limit: int, retry_after_s: float) -> None:
        super().__init__(
            f"this caller has {what}, and {limit} is the limit of each caller ({flag}); try again "
            f"in {retry_after_s:.3g} s",
            limit=str(limit),
            flag=flag,
        )
        self.retry_after_s = retry_after_s


class PublicCallsError(WhenceError):
    """Too many calls without credentials run, such as watches of the health.

    Attributes:
        retry_after_s: seconds after which the caller may retry.
    """

    code = Code.RESOURCE_EXHAUSTED
    reason = "PUBLIC_CALLS"
    retry_after_s = 1.0

    def __init__(self, who: str, limit: int) -> None:
        super().__init__(
            f"{who} {limit} running calls without credentials, which is the most; call with a "
            f"token, or try again in {self.retry_after_s:.3g} s",
            limit=str(limit),
        )


class StoredBytesError(WhenceError):
    """The caller has as much on record as each caller may have; only deletions help."""

    code = Code.RESOURCE_EXHAUSTED
    reason = "CALLER_STORED_BYTES"

    def __init__(self, num_bytes: int, limit: int, oldest: Sequence[str]) -> None:
        ids = ", ".join(oldest)
        super().__init__(
            f"this caller has {num_bytes} bytes on record, and {limit} is the limit of each caller "
            f"(--caller-max-stored-bytes); delete generations first, the oldest are {ids}",
            limit=str(limit),
            num_bytes=str(num_bytes),
        )


class ScopeMissingError(WhenceError):
    """The caller has none of the scopes that the method needs."""

    code = Code.PERMISSION_DENIED
    reason = "SCOPE_MISSING"

    def __init__(self, scopes: Iterable[str]) -> None:
        needed = " or ".join(scopes)
        super().__init__(f"the caller has not the scope that this needs: {needed}", scopes=needed)
