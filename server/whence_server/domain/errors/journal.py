"""Errors of the journal and of what is on record."""

from whence_server.domain.errors.base import Code, WhenceError


class JournalError(WhenceError):
    """The journal could not be opened, written or verified."""

    code = Code.INTERNAL
    reason = "JOURNAL"


class JournalUnwritableError(JournalError):
    """The journal cannot be written at present; the server keeps trying.

    Attributes:
        TEXT: the message, with a place for the detail.
        retry_after_s: seconds after which a caller may retry.
    """

    code = Code.UNAVAILABLE
    reason = "JOURNAL_UNWRITABLE"
    TEXT = (
        "the journal cannot be written at present ({detail}), so that nothing new can be "
        "recorded; the server keeps trying to write"
    )

    def __init__(self, detail: str, retry_after_s: float = 5.0, **metadata: str) -> None:
        super().__init__(self.TEXT.format(detail=detail), **metadata)
        self.detail = detail
        self.retry_after_s = retry_after_s


class JournalFullError(JournalUnwritableError):
    """The disk with the journal is full."""

    code = Code.RESOURCE_EXHAUSTED
    reason = "JOURNAL_FULL"


class JournalUnreachableError(JournalUnwritableError):
    """The database with the journal cannot be reached; the server keeps trying."""

    reason = "JOURNAL_UNREACHABLE"

    TEXT = (
        "the journal's database cannot be reached at present ({detail}), so that nothing can be "
        "recorded or read; the server keeps trying to reach it"
    )


class LeaseLostError(JournalError):
    """Another server has taken over this server's log, because this one gave no sign of life."""

    code = Code.UNAVAILABLE
    reason = "LEASE_LOST"

    def __init__(self) -> None:
        super().__init__(
            "another server has taken over this server's log, because this one was paused or "
            "without its database for longer than its lease; this one ends"
        )


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
            "log as long as another process reads the journal's database, and its key as long as "
            "the disk is full; the server removes both as soon as it can, or at the next start",
            generation_id=generation_id,
        )


class GenerationInOtherLogError(WhenceError):
    """The generation is in a log that this server may not append to."""

    code = Code.FAILED_PRECONDITION
    reason = "GENERATION_IN_OTHER_LOG"

    def __init__(self, generation_id: str) -> None:
        super().__init__(
            f"generation {generation_id!r} is in the log of another server, and its deletion would "
            "be an entry of that log: copy the journal to PostgreSQL with `whence-server migrate`, "
            "and delete the generation there",
            generation_id=generation_id,
        )


class GenerationHeldError(WhenceError):
    """A label of the generation is under a hold, so that nothing deletes it."""

    code = Code.FAILED_PRECONDITION
    reason = "GENERATION_HELD"

    def __init__(self, generation_id: str, hold: str) -> None:
        super().__init__(
            f"generation {generation_id!r} is held: the server was started with --hold-label "
            f"{hold}, and deletes nothing with that label; whoever operates the server lifts the "
            "hold by a start without that setting",
            generation_id=generation_id,
        )
        self.hold = hold


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
