"""Record of the error that a call ended with, without the caller's content."""

from whence_server.domain.errors import Code, WhenceError
from whence_server.domain.generation import CallError
from whence_server.rpc.status import make_status

MAX_MESSAGE_CHARACTERS = 300
"""Length of the message on record, in characters."""


def make_call_error(error: BaseException) -> CallError:
    """Return an error as the record of its call has it.

    Of an error inside the server only its type is recorded: its message may hold paths or secrets.
    """
    if not isinstance(error, WhenceError) or error.code is Code.INTERNAL:
        return CallError(exception_type=_name_type(type(error)))
    told = error.without_content()
    fields = [violation.field for violation in getattr(told, "violations", ())]
    return CallError(
        reason=error.reason,
        field=next(filter(None, fields), ""),
        message=make_status(told).message[:MAX_MESSAGE_CHARACTERS],
    )


def _name_type(kind: type[BaseException]) -> str:
    """Return an exception's name as OpenTelemetry writes it: built-in ones without a module."""
    module = kind.__module__
    return kind.__qualname__ if module == "builtins" else f"{module}.{kind.__qualname__}"
