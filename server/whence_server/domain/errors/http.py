"""Errors of requests over HTTP: their route, their type, the page that they were sent for."""

from whence_server.domain.errors.base import Code, WhenceError


class RouteNotFoundError(WhenceError):
    """The HTTP server has no such route."""

    code = Code.NOT_FOUND
    reason = "ROUTE_NOT_FOUND"

    def __init__(self, method: str, path: str) -> None:
        super().__init__(f"there is no route {method} {path}", method=method, path=path)


class MediaTypeError(WhenceError):
    """The body's type is not the one that the server reads."""

    code = Code.INVALID_ARGUMENT
    reason = "UNSUPPORTED_MEDIA_TYPE"

    def __init__(self, media_type: str) -> None:
        told = f"has the type {media_type!r}" if media_type else "has no type"
        super().__init__(
            f"the body {told}; send the header Content-Type: application/json",
            media_type=media_type,
        )


class OriginRefusedError(WhenceError):
    """A browser sent the request for a page of an origin that is not allowed."""

    code = Code.PERMISSION_DENIED
    reason = "ORIGIN_NOT_ALLOWED"

    def __init__(self, origin: str) -> None:
        super().__init__(
            f"the request comes from a page of another origin{f', {origin}' if origin else ''}; "
            "--http-allow-origin allows an origin",
            origin=origin,
        )


class HostRefusedError(WhenceError):
    """The request was sent to a name that is not known to be this machine's."""

    code = Code.PERMISSION_DENIED
    reason = "HOST_NOT_ALLOWED"

    def __init__(self, host: str) -> None:
        super().__init__(
            f"the Host header names {host!r}; a server on loopback answers to localhost and to "
            "addresses, and to the hosts of the origins in --http-allow-origin",
            host=host,
        )


class ForgeryRefusedError(WhenceError):
    """The request changes something, and a page of another site could have made it."""

    code = Code.PERMISSION_DENIED
    reason = "REQUEST_HEADER_MISSING"

    def __init__(self) -> None:
        super().__init__(
            "the request changes something and lacks what no page of another site can send: send "
            "the header X-Whence-Request: 1, or a body with Content-Type: application/json"
        )
