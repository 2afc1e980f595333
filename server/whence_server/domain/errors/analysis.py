"""Errors of the analysis process, which verifies generations."""

from whence_server.domain.errors.base import Code, WhenceError


class VerificationBusyError(WhenceError):
    """Too many verifications run or wait, of this caller or of all."""

    code = Code.RESOURCE_EXHAUSTED
    reason = "VERIFICATION_BUSY"

    def __init__(self, retry_after_s: float) -> None:
        super().__init__(
            "too many verifications run or wait, one at a time is computed; "
            f"try again in {retry_after_s:g} s"
        )
        self.retry_after_s = retry_after_s


class AnalysisFailedError(WhenceError):
    """The analysis process failed."""

    code = Code.INTERNAL
    reason = "ANALYSIS_FAILED"
