"""Errors of the analysis process, which verifies generations and explains outputs."""

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


class ExplanationBusyError(WhenceError):
    """Too many explanations and verifications run or wait, of this caller or of all."""

    code = Code.RESOURCE_EXHAUSTED
    reason = "EXPLANATION_BUSY"

    def __init__(self, retry_after_s: float) -> None:
        super().__init__(
            "too many explanations and verifications run or wait, one at a time is computed; "
            f"try again in {retry_after_s:g} s"
        )
        self.retry_after_s = retry_after_s


class ExplanationTooLargeError(WhenceError):
    """The explanation needs more work than the server does for one."""

    code = Code.RESOURCE_EXHAUSTED
    reason = "EXPLANATION_TOO_LARGE"


class ExplanationRefusedError(WhenceError):
    """The output cannot be explained with what is on record, and with the weights here."""

    code = Code.FAILED_PRECONDITION

    def __init__(self, reason: str, message: str, **metadata: str) -> None:
        super().__init__(message, **metadata)
        self.reason = reason

    def __reduce__(
        self,
    ) -> tuple[type["ExplanationRefusedError"], tuple[str, str], dict[str, object]]:
        # The error is pickled in the analysis process and raised in the front.
        return type(self), (self.reason, self.message), {"metadata": self.metadata}


class AnalysisFailedError(WhenceError):
    """The analysis process failed."""

    code = Code.INTERNAL
    reason = "ANALYSIS_FAILED"


class AnalysisEndedError(AnalysisFailedError):
    """The analysis process ended before its answer: it was killed, or memory was short."""

    code = Code.UNAVAILABLE
    reason = "ANALYSIS_ENDED"
