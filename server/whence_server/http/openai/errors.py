"""Errors in the form that OpenAI's clients know."""

from collections.abc import Mapping
from http import HTTPStatus
from typing import Any

import orjson
from aiohttp import web

from whence_server.domain.errors import InvalidRequestError, ModelNotFoundError, WhenceError
from whence_server.http.statuses import get_http_status
from whence_server.http.streams import make_event
from whence_server.rpc.status import make_status

_TYPES: Mapping[int, str] = {
    HTTPStatus.UNAUTHORIZED: "authentication_error",
    HTTPStatus.FORBIDDEN: "permission_error",
    HTTPStatus.TOO_MANY_REQUESTS: "rate_limit_error",
}
_CODES: Mapping[int, str] = {HTTPStatus.TOO_MANY_REQUESTS: "rate_limit_exceeded"}


def make_error(error: WhenceError, status: int, names: Mapping[str, str]) -> dict[str, Any]:
    """Return an error as OpenAI's API words it.

    Args:
        error: the error.
        status: its HTTP status.
        names: parameters of the API by the contract's fields, for the fields at fault.
    """
    renamed = _rename(error, names)
    parameter = None
    if isinstance(renamed, InvalidRequestError):
        fields = (violation.field for violation in renamed.violations)
        parameter = next(filter(None, fields), None)
    kind = "server_error" if status >= 500 else "invalid_request_error"
    code: str | None = error.reason.lower()
    if isinstance(error, ModelNotFoundError):
        parameter = "model"
    elif isinstance(error, InvalidRequestError):
        code = None
    return {
        "error": {
            "message": make_status(renamed).message,
            "type": _TYPES.get(status, kind),
            "param": parameter,
            "code": _CODES.get(status, code),
        }
    }


def _rename(error: WhenceError, names: Mapping[str, str]) -> WhenceError:
    if not isinstance(error, InvalidRequestError):
        return error
    return InvalidRequestError(
        *(
            type(violation)(_find_name(violation.field, names), violation.description)
            for violation in error.violations
        )
    )


def _find_name(field: str, names: Mapping[str, str]) -> str:
    """Return the parameter for a field of the contract; "stop[2]" keeps its index."""
    whole = field.rstrip()
    for end in range(len(whole), 0, -1):
        name = names.get(whole[:end])
        if name is not None and (end == len(whole) or whole[end] in "[."):
            return name + whole[end:]
    return whole


class OpenAIErrors:
    """Writer of errors for one of the API's routes.

    Args:
        names: parameters by the contract's fields.
    """

    def __init__(self, names: Mapping[str, str]) -> None:
        self._names = names

    def render(self, error: WhenceError, status: int) -> bytes:
        """Return the body of an answer."""
        return orjson.dumps(make_error(error, status, self._names))

    async def write_to_stream(self, stream: web.StreamResponse, error: WhenceError) -> None:
        """Write the error as an event; OpenAI's clients raise it."""
        await stream.write(make_event(self.render(error, get_http_status(error))))
