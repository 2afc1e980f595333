"""Errors of recorders: processes that put their own generations on record."""

from whence_server.domain.errors.base import Code, WhenceError


class RecordersFullError(WhenceError):
    """The recorders of one caller, or of all, hold as much as they may.

    Attributes:
        retry_after_s: seconds after which the recorder may retry.
    """

    code = Code.RESOURCE_EXHAUSTED
    reason = "RECORDERS_FULL"

    def __init__(self, message: str, limit: int, retry_after_s: float) -> None:
        super().__init__(f"{message}; try again in {retry_after_s:.3g} s", limit=str(limit))
        self.retry_after_s = retry_after_s


class VocabulariesFullError(WhenceError):
    """The kept vocabularies of recorded models would take too many bytes."""

    code = Code.RESOURCE_EXHAUSTED
    reason = "VOCABULARIES_FULL"

    def __init__(self, whose: str, num_bytes: int, limit: int) -> None:
        super().__init__(
            f"{whose} vocabularies would take {num_bytes} bytes, and may take {limit}; record with "
            "a tokenizer that is kept already, or remove files from the folder vocabularies of "
            "the data directory while the server is stopped",
            limit=str(limit),
        )
