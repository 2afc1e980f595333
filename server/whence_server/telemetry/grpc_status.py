"""Names of gRPC status codes, and the codes that count as errors of the server.

Source: OpenTelemetry's semantic conventions for gRPC, span status of SERVER spans. A number that is
no gRPC status code counts as UNKNOWN, as gRPC's own clients take it.
"""

import grpc

_NAMES = {code.value[0]: code.name for code in grpc.StatusCode}
_SERVER_ERRORS = frozenset(
    code.value[0]
    for code in (
        grpc.StatusCode.UNKNOWN,
        grpc.StatusCode.DEADLINE_EXCEEDED,
        grpc.StatusCode.UNIMPLEMENTED,
        grpc.StatusCode.INTERNAL,
        grpc.StatusCode.UNAVAILABLE,
        grpc.StatusCode.DATA_LOSS,
    )
)


def status_name(code: int) -> str | None:
    """Return the status code's name, as in "INVALID_ARGUMENT"; None for a number without one."""
    return _NAMES.get(code)


def is_server_error(code: int) -> bool:
    """Return whether the server is at fault, and not its caller."""
    return code in _SERVER_ERRORS or code not in _NAMES
