"""Errors of the transparency log."""

from whence_server.domain.errors.base import Code, WhenceError


class NoTransparencyLogError(WhenceError):
    """The server keeps no transparency log."""

    code = Code.UNIMPLEMENTED
    reason = "NO_TRANSPARENCY_LOG"

    def __init__(self) -> None:
        super().__init__(
            "this server keeps no transparency log: it runs with --no-transparency-log"
        )


class StatementNotLoggedError(WhenceError):
    """The transparency log has no entry for a statement."""

    code = Code.NOT_FOUND
    reason = "STATEMENT_NOT_LOGGED"

    def __init__(self, what: str, size: int) -> None:
        super().__init__(
            f"the transparency log has no entry for {what} among its {size}; an entry follows the "
            "end of a signed generation within seconds"
        )


class CheckpointPendingError(WhenceError):
    """An entry is in the transparency log, and no published checkpoint covers it yet.

    Attributes:
        retry_after_s: seconds after which a caller may retry.
    """

    code = Code.UNAVAILABLE
    reason = "CHECKPOINT_PENDING"

    def __init__(self, what: str, retry_after_s: float) -> None:
        super().__init__(
            f"no published checkpoint of the transparency log covers {what} yet; ask again"
        )
        self.retry_after_s = retry_after_s


class TransparencyLogDamagedError(WhenceError):
    """Rows of the transparency log are missing, or contradict each other."""

    code = Code.DATA_LOSS
    reason = "TRANSPARENCY_LOG_DAMAGED"

    def __init__(self, detail: str) -> None:
        super().__init__(
            f"{detail}; stop the server, and run `whence-server verify`, which names the damage"
        )
