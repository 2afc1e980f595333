"""The base of the errors that the server raises on purpose, and their status codes."""

from dataclasses import dataclass
from enum import Enum

from whence_server.domain.errors.quoting import may_quote_content


class Code(Enum):
    """Status codes, with the numbers of google.rpc.Code."""

    CANCELLED = 1
    UNKNOWN = 2
    INVALID_ARGUMENT = 3
    DEADLINE_EXCEEDED = 4
    NOT_FOUND = 5
    ALREADY_EXISTS = 6
    PERMISSION_DENIED = 7
    RESOURCE_EXHAUSTED = 8
    FAILED_PRECONDITION = 9
    UNIMPLEMENTED = 12
    INTERNAL = 13
    UNAVAILABLE = 14
    DATA_LOSS = 15
    UNAUTHENTICATED = 16


@dataclass(frozen=True, slots=True)
class FieldViolation:
    """A wrong field: its path in the request, and the rule that it breaks."""

    field: str
    description: str
    recorded: str | None = None
    """Description for the record, if `description` quotes a prompt, a message or an argument."""

    def __str__(self) -> str:
        return f"{self.field}: {self.description}" if self.field else self.description


class WhenceError(Exception):
    """Base of all errors that the server raises on purpose.

    Attributes:
        code: status of the call that raises the error.
        reason: UPPER_SNAKE_CASE, for programs.
        metadata: ids and limits, for programs.
    """

    code = Code.INTERNAL
    reason = "INTERNAL"

    def __init__(self, message: str, **metadata: str) -> None:
        super().__init__(message)
        self.message = message
        self.metadata = metadata

    def without_content(self) -> "WhenceError":
        """Return the error for the record, in which nothing quotes the caller's content."""
        if not may_quote_content(self.reason):
            return self
        told = WhenceError("")
        told.code, told.reason = self.code, self.reason
        return told
