"""Errors of the JSON API."""

from typing import Any

import orjson
from aiohttp import web

from whence_server.domain.errors import InvalidRequestError, WhenceError
from whence_server.http.streams import make_event
from whence_server.rpc.status import make_status

FAILURE, END = "failure", "end"
"""Names of the last event of a stream, after an error and without one."""
_RETRYABLE_CODE = "UNAVAILABLE"


class ApiErrors:
    """Writer of errors: gRPC's code, the reason and the message, and details for programs."""

    def render(self, error: WhenceError, status: int) -> bytes:
        """Return the body of an answer."""
        del status
        return orjson.dumps(_make_document(error))

    async def write_to_stream(self, stream: web.StreamResponse, error: WhenceError) -> None:
        """Write the error as the last event; a final one tells the reader not to come back."""
        document = orjson.dumps(_make_document(error))
        position = "" if error.code.name == _RETRYABLE_CODE else END
        await stream.write(make_event(document, FAILURE, position))


def _make_document(error: WhenceError) -> dict[str, Any]:
    told: dict[str, Any] = {
        "code": error.code.name,
        "reason": error.reason,
        "message": make_status(error).message,
    }
    if error.metadata:
        told["metadata"] = dict(error.metadata)
    if isinstance(error, InvalidRequestError):
        told["fields"] = [
            {"field": violation.field, "description": violation.description}
            for violation in error.violations
        ]
    retry_after_s = getattr(error, "retry_after_s", None)
    if retry_after_s is not None:
        told["retryAfterSeconds"] = retry_after_s
    return {"error": told}
