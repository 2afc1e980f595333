"""Faults of the path between a client and a server, and what a client makes of each."""

from dataclasses import dataclass

from grpc import StatusCode


@dataclass(frozen=True)
class Reset:
    """RST_STREAM with an error code, after so many messages."""

    code: int
    after: int = 0


@dataclass(frozen=True)
class EndWithoutTrailers:
    """END_STREAM on an empty DATA frame after so many messages, without a status."""

    after: int = 0


@dataclass(frozen=True)
class Status:
    """Trailers with a status that carries no details, after so many messages."""

    code: StatusCode
    message: str = "made by the path"
    after: int = 0


@dataclass(frozen=True)
class PlainHttp:
    """An answer of plain HTTP in place of gRPC's."""

    status: int
    after: int = 0
    """Always 0: nothing comes before an HTTP status."""


@dataclass(frozen=True)
class GoAway:
    """GOAWAY and the end of the connection, after so many messages."""

    code: int = 0
    after: int = 0


Fault = Reset | EndWithoutTrailers | Status | PlainHttp | GoAway

FIRST_CUT, SECOND_CUT = 2, 1
"""Messages after which a fault strikes: in the first answer, and in a resumed one.

However slow the reader is, a generation has three: its start, its steps in one, and its end.
"""

RESUMED_CODES = (
    StatusCode.CANCELLED,
    StatusCode.UNKNOWN,
    StatusCode.DEADLINE_EXCEEDED,
    StatusCode.RESOURCE_EXHAUSTED,
    StatusCode.ABORTED,
    StatusCode.INTERNAL,
    StatusCode.UNAVAILABLE,
)
FINAL_CODES = (
    StatusCode.INVALID_ARGUMENT,
    StatusCode.PERMISSION_DENIED,
    StatusCode.UNIMPLEMENTED,
    StatusCode.UNAUTHENTICATED,
)
NUM_RESET_CODES = 14
"""Error codes of RST_STREAM (RFC 9113, section 7)."""


def list_resumed() -> dict[str, tuple[Fault, ...]]:
    """Return the faults over which a stream loses and repeats nothing, by their names.

    Each strikes four times: before the first message, in mid-stream, at once when the stream
    is resumed, and in a resumed stream.
    """
    after = (0, FIRST_CUT, 0, SECOND_CUT)
    rows: dict[str, tuple[Fault, ...]] = {}
    for code in range(NUM_RESET_CODES):
        rows[f"RST_STREAM {code}"] = tuple(Reset(code, number) for number in after)
    rows["END_STREAM"] = tuple(EndWithoutTrailers(number) for number in after)
    for status in RESUMED_CODES:
        rows[f"status {status.name}"] = tuple(Status(status, after=number) for number in after)
    # An HTTP status takes the place of the whole answer: cuts lead to the calls that resume.
    for http in (408, 500, 502, 503, 504):
        plain = PlainHttp(http)
        rows[f"HTTP {http}"] = (plain, Reset(2, FIRST_CUT), plain, Reset(2, SECOND_CUT), plain)
    rows["GOAWAY"] = tuple(GoAway(after=number) for number in after)
    return rows


def list_final() -> dict[str, tuple[Fault, ...]]:
    """Return the faults that end a generation, by what the client has to say of each."""
    rows: dict[str, tuple[Fault, ...]] = {
        status.name: (Status(status, after=FIRST_CUT),) for status in FINAL_CODES
    }
    for http in (413, 431):
        # gRPC's asyncio sometimes sees the answer's end before its status, and then says nothing
        # of it: the next call learns it.
        rows[str(http)] = (Reset(2, FIRST_CUT), *[PlainHttp(http)] * 3)
    return rows
