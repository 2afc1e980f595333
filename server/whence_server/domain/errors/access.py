"""Errors of callers that may not do what they ask; they say nothing about what exists."""

from collections.abc import Iterable

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


class ScopeMissingError(WhenceError):
    """The caller has none of the scopes that the method needs."""

    code = Code.PERMISSION_DENIED
    reason = "SCOPE_MISSING"

    def __init__(self, scopes: Iterable[str]) -> None:
        needed = " or ".join(scopes)
        super().__init__(f"the caller has not the scope that this needs: {needed}", scopes=needed)
