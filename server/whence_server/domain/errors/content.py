"""Errors of content that is in the server's memory alone."""

from whence_server.domain.errors.base import Code, WhenceError


class ContentNotReadError(WhenceError):
    """The content of a stream is in memory no longer, and the record does not have it."""

    code = Code.RESOURCE_EXHAUSTED
    reason = "CONTENT_NOT_READ"

    def __init__(self, generation_id: str) -> None:
        super().__init__(
            f"the content of generation {generation_id!r} was not read in time: it was in memory "
            "alone, which is short, and the record keeps less; ResumeGeneration reads the record",
            generation_id=generation_id,
        )


class ContentsFullError(WhenceError):
    """The memory for content that callers have not read is used up.

    Attributes:
        retry_after_s: seconds after which the caller may retry.
    """

    code = Code.RESOURCE_EXHAUSTED
    reason = "CONTENTS_FULL"

    def __init__(self, max_bytes: int, retry_after_s: float) -> None:
        super().__init__(
            f"{max_bytes} bytes of content wait in memory for callers that have not read them; "
            f"try again in {retry_after_s:g} s",
            max_bytes=str(max_bytes),
        )
        self.retry_after_s = retry_after_s
