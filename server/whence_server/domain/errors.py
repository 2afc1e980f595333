"""Errors that the server raises on purpose.

WhenceError                     a code, a machine-readable reason, a message
├── InvalidRequestError         INVALID_ARGUMENT, names each wrong field
├── RequestTooLargeError        RESOURCE_EXHAUSTED: more bytes than --max-message-bytes
├── MethodNotFoundError         UNIMPLEMENTED
├── HealthNotFoundError         NOT_FOUND: health of an unknown service
├── GenerationNotFoundError     NOT_FOUND
├── ModelNotFoundError          NOT_FOUND
├── TrainingRunNotFoundError    NOT_FOUND
├── DocumentNotFoundError       NOT_FOUND
├── DocumentChangedError        FAILED_PRECONDITION
├── EmergenceRefusedError       FAILED_PRECONDITION
├── EmergenceBusyError          RESOURCE_EXHAUSTED, gives a retry delay
├── GenerationExistsError       ALREADY_EXISTS
├── GenerationRunningError      FAILED_PRECONDITION
├── QueueFullError              RESOURCE_EXHAUSTED, gives a retry delay
├── TextQueueFullError          RESOURCE_EXHAUSTED, gives a retry delay
├── TextProcessError            INTERNAL: the text process failed
├── ModelNotReadyError          UNAVAILABLE, gives a retry delay
├── ModelFailedError            FAILED_PRECONDITION: the model cannot be loaded; the server ends
├── NotOfferedError             UNIMPLEMENTED
├── DrainingError               UNAVAILABLE, gives a retry delay
├── EngineLostError             UNAVAILABLE
├── DeadlinePassedError         DEADLINE_EXCEEDED
├── GenerationFailedError       INTERNAL: one generation failed
├── ConfigurationError          the server does not start
├── DeletionPendingError        FAILED_PRECONDITION: deleted, but still on disk
├── RecordDamagedError          DATA_LOSS: a generation's rows have changed since they were written
├── JournalError                INTERNAL
│   ├── JournalUnwritableError  UNAVAILABLE, gives a retry delay
│   │   └── JournalFullError    RESOURCE_EXHAUSTED: the disk is full
│   └── JournalLostError        UNAVAILABLE: the server ends
└── LineageError                INTERNAL: a training run's record
"""

from dataclasses import dataclass
from enum import Enum


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
        return self


class InvalidRequestError(WhenceError):
    """The request is invalid and would fail every time."""

    code = Code.INVALID_ARGUMENT
    reason = "INVALID_REQUEST"

    def __init__(self, *violations: FieldViolation) -> None:
        super().__init__("; ".join(map(str, violations)))
        self.violations = violations

    def without_content(self) -> "InvalidRequestError":
        """Return the error with the descriptions for the record."""
        return InvalidRequestError(
            *(
                v if v.recorded is None else FieldViolation(v.field, v.recorded)
                for v in self.violations
            )
        )

    def __reduce__(self) -> tuple[type["InvalidRequestError"], tuple[FieldViolation, ...]]:
        # The error is pickled in the text process and raised in the front.
        return type(self), self.violations


class RequestTooLargeError(WhenceError):
    """The request has more bytes than the server takes, and would be refused every time."""

    code = Code.RESOURCE_EXHAUSTED
    reason = "REQUEST_TOO_LARGE"

    def __init__(self, num_bytes: int, max_bytes: int) -> None:
        super().__init__(
            f"the request has {num_bytes} bytes; this server takes at most {max_bytes} "
            "(--max-message-bytes)",
            num_bytes=str(num_bytes),
            max_bytes=str(max_bytes),
        )


class MethodNotFoundError(WhenceError):
    """The server has no such method."""

    code = Code.UNIMPLEMENTED
    reason = "METHOD_NOT_FOUND"

    def __init__(self, method: str) -> None:
        super().__init__(
            f"there is no method {method!r}; reflection lists the methods of this server",
            method=method,
        )


class HealthNotFoundError(WhenceError):
    """The server has no health of the named service."""

    code = Code.NOT_FOUND
    reason = "SERVICE_NOT_FOUND"

    def __init__(self, service: str) -> None:
        super().__init__(
            f'unknown service {service!r}; "" names the server as a whole', service=service
        )


class GenerationNotFoundError(WhenceError):
    """The generation does not exist, or its content was deleted."""

    code = Code.NOT_FOUND
    reason = "GENERATION_NOT_FOUND"

    def __init__(self, generation_id: str, *, deleted: bool = False) -> None:
        what = (
            "was deleted"
            if deleted
            else "is not on record at this server; each server has its own record, so if several "
            "servers share this address, another one may have it"
        )
        super().__init__(f"generation {generation_id!r} {what}", generation_id=generation_id)
        if deleted:
            self.reason = "GENERATION_DELETED"


class ModelNotFoundError(WhenceError):
    """The request names a model that this server does not serve."""

    code = Code.NOT_FOUND
    reason = "MODEL_NOT_FOUND"

    def __init__(self, model: str, served: str) -> None:
        super().__init__(
            f"model {model!r} is not served here; leave `model` empty or ask for {served!r}",
            model=model,
            served=served,
        )


class TrainingRunNotFoundError(WhenceError):
    """The server has no record of the training run."""

    code = Code.NOT_FOUND
    reason = "TRAINING_RUN_NOT_FOUND"

    def __init__(self, training_run_id: str) -> None:
        what = (
            f"this server has no record of training run {training_run_id!r}"
            if training_run_id
            else "this server has no record of the training run of its model"
        )
        super().__init__(
            f"{what}; pass the directory with the record to --training-runs",
            training_run_id=training_run_id,
        )


class DocumentNotFoundError(WhenceError):
    """The training set lacks the document or example, or its text is not in the record."""

    code = Code.NOT_FOUND
    reason = "DOCUMENT_NOT_FOUND"


class DocumentChangedError(WhenceError):
    """A document's source has changed since the model was trained on it."""

    code = Code.FAILED_PRECONDITION
    reason = "DOCUMENT_CHANGED"


class EmergenceRefusedError(WhenceError):
    """The emergence of a text cannot be traced over the training run's checkpoints."""

    code = Code.FAILED_PRECONDITION

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(message)
        self.reason = reason


class EmergenceBusyError(WhenceError):
    """The emergence of another text is being traced; each trace loads whole models into memory."""

    code = Code.RESOURCE_EXHAUSTED
    reason = "EMERGENCE_BUSY"

    def __init__(self, retry_after_s: float) -> None:
        super().__init__(
            "another text's emergence is being traced, one at a time; "
            f"try again in {retry_after_s:g} s"
        )
        self.retry_after_s = retry_after_s


class GenerationExistsError(WhenceError):
    """The generation id belongs to a different request, or to a deleted generation."""

    code = Code.ALREADY_EXISTS
    reason = "GENERATION_EXISTS"

    def __init__(self, generation_id: str, *, deleted: bool = False) -> None:
        what = (
            "was used by a generation that has been deleted"
            if deleted
            else "belongs to a generation with a different request"
        )
        super().__init__(
            f"generation_id {generation_id!r} {what}; choose a new UUID",
            generation_id=generation_id,
        )


class GenerationRunningError(WhenceError):
    """The generation is still running, and the call needs a finished one."""

    code = Code.FAILED_PRECONDITION
    reason = "GENERATION_RUNNING"

    def __init__(self, generation_id: str) -> None:
        super().__init__(
            f"generation {generation_id!r} is still running; cancel it first",
            generation_id=generation_id,
        )


class QueueFullError(WhenceError):
    """Too many sequences wait for the engine."""

    code = Code.RESOURCE_EXHAUSTED
    reason = "QUEUE_FULL"

    def __init__(self, max_queue: int, retry_after_s: float) -> None:
        super().__init__(
            f"{max_queue} sequences are waiting already (--max-queue); "
            f"try again in {retry_after_s:g} s",
            max_queue=str(max_queue),
        )
        self.retry_after_s = retry_after_s


class TextQueueFullError(WhenceError):
    """Too many bytes of requests wait for the text process."""

    code = Code.RESOURCE_EXHAUSTED
    reason = "TEXT_QUEUE_FULL"

    def __init__(self, max_bytes: int, retry_after_s: float) -> None:
        super().__init__(
            f"the queue of long requests for the text process is full: it holds {max_bytes} bytes "
            f"at most; try again in {retry_after_s:g} s",
            max_bytes=str(max_bytes),
        )
        self.retry_after_s = retry_after_s


class TextProcessError(WhenceError):
    """The process that renders chat templates and tokenizes has failed."""

    reason = "TEXT_PROCESS_FAILED"


class ModelNotReadyError(WhenceError):
    """The model is still being loaded.

    Attributes:
        retry_after_s: seconds after which a caller may retry.
    """

    code = Code.UNAVAILABLE
    reason = "MODEL_LOADING"

    def __init__(self, retry_after_s: float = 1.0) -> None:
        super().__init__(
            "the model is still loading; try again, or wait for it with `whence model wait` or "
            "Client.wait_ready"
        )
        self.retry_after_s = retry_after_s


class ModelFailedError(WhenceError):
    """The model could not be loaded, and the server is about to end."""

    code = Code.FAILED_PRECONDITION
    reason = "MODEL_FAILED"

    def __init__(self, detail: str) -> None:
        super().__init__(f"the model could not be loaded: {detail}")
        self.detail = detail


class NotOfferedError(WhenceError):
    """The server does not implement a part of the contract that the request uses."""

    code = Code.UNIMPLEMENTED
    reason = "NOT_OFFERED"


class DrainingError(WhenceError):
    """The server is shutting down and admits no new requests.

    Attributes:
        retry_after_s: seconds after which a caller may retry, with the server's successor.
    """

    code = Code.UNAVAILABLE
    reason = "DRAINING"

    def __init__(self, retry_after_s: float = 1.0) -> None:
        super().__init__("the server is shutting down; try another instance")
        self.retry_after_s = retry_after_s


class EngineLostError(WhenceError):
    """The engine process has died."""

    code = Code.UNAVAILABLE
    reason = "ENGINE_LOST"

    def __init__(self, detail: str) -> None:
        super().__init__(f"the engine process ended: {detail}")


class DeadlinePassedError(WhenceError):
    """The call's deadline had passed when the call arrived."""

    code = Code.DEADLINE_EXCEEDED
    reason = "DEADLINE_PASSED"

    def __init__(self) -> None:
        super().__init__("the call's deadline had passed when it arrived")


class GenerationFailedError(WhenceError):
    """One generation failed; the others go on."""

    code = Code.INTERNAL

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(message)
        self.reason = reason


class ConfigurationError(WhenceError):
    """The server cannot start with a setting, a model or a data directory."""

    code = Code.FAILED_PRECONDITION
    reason = "CONFIGURATION"


class JournalError(WhenceError):
    """The journal could not be opened, written or verified."""

    code = Code.INTERNAL
    reason = "JOURNAL"


class JournalUnwritableError(JournalError):
    """The journal cannot be written at present; the server keeps trying.

    Attributes:
        retry_after_s: seconds after which a caller may retry.
    """

    code = Code.UNAVAILABLE
    reason = "JOURNAL_UNWRITABLE"

    def __init__(self, detail: str, retry_after_s: float = 5.0, **metadata: str) -> None:
        super().__init__(
            f"the journal cannot be written at present ({detail}), so the server admits no new "
            "requests; it keeps trying to write",
            **metadata,
        )
        self.detail = detail
        self.retry_after_s = retry_after_s


class JournalFullError(JournalUnwritableError):
    """The disk with the journal is full."""

    code = Code.RESOURCE_EXHAUSTED
    reason = "JOURNAL_FULL"


class JournalLostError(JournalError):
    """The journal cannot be written, and the server ends, because a retry would not help."""

    code = Code.UNAVAILABLE
    reason = "JOURNAL_LOST"


class DeletionPendingError(WhenceError):
    """A generation is deleted, but the write-ahead log still has its content."""

    code = Code.FAILED_PRECONDITION
    reason = "CONTENT_STILL_IN_LOG"

    def __init__(self, generation_id: str) -> None:
        super().__init__(
            f"generation {generation_id!r} was deleted, but its content stays in the write-ahead "
            "log as long as another process reads the journal's database; the server removes it "
            "when that process lets go, or at the next start",
            generation_id=generation_id,
        )


class RecordDamagedError(WhenceError):
    """A generation's rows in the journal have changed since they were written."""

    code = Code.DATA_LOSS
    reason = "RECORD_DAMAGED"

    def __init__(self, generation_id: str, detail: str) -> None:
        super().__init__(
            (f"the record of generation {generation_id!r}" if generation_id else "the journal")
            + f" is damaged: {detail}; `whence-server verify` names all differences",
            generation_id=generation_id,
        )
        self.detail = detail


class LineageError(WhenceError):
    """A training run's record could not be written, read or verified."""

    code = Code.INTERNAL
    reason = "LINEAGE"
