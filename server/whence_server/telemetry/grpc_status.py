"""Names of gRPC status codes, and the codes that count as errors of the server.

Source: OpenTelemetry's semantic conventions for gRPC, span status of SERVER spans. A number that is
no gRPC status code counts as UNKNOWN, as in gRPC's own clients.
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


def get_status_name(code: int) -> str | None:
    """Return a status code's name, e.g. "INVALID_ARGUMENT"; None for an unknown number."""
    return _NAMES.get(code)


def is_server_error(code: int) -> bool:
    """Return whether a status code means an error of the server, and not of its caller."""
    return code in _SERVER_ERRORS or code not in _NAMES
