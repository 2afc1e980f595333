"""Errors of training runs, their documents and their records."""

from whence_server.domain.errors.base import Code, WhenceError


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
            "another text's emergence is being traced, or a generation verified, one at a time; "
            f"try again in {retry_after_s:g} s"
        )
        self.retry_after_s = retry_after_s


class LineageError(WhenceError):
    """A training run's record could not be written, read or verified."""

    code = Code.INTERNAL
    reason = "LINEAGE"
