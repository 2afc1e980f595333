"""Errors of a generation: of its text, its queue, its model and its engine."""

from whence_server.domain.errors.base import Code, WhenceError


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


class GenerationElsewhereError(WhenceError):
    """Another server that shares the journal runs the generation."""

    code = Code.FAILED_PRECONDITION
    reason = "GENERATION_ELSEWHERE"

    def __init__(self, generation_id: str) -> None:
        super().__init__(
            f"generation {generation_id!r} runs on another server that shares this one's journal: "
            "cancel it there",
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


class ForkRefusedError(WhenceError):
    """The record of a generation lacks what a branch of it needs."""

    code = Code.FAILED_PRECONDITION
    reason = "FORK_REFUSED"

    def __init__(self, generation_id: str, why: str) -> None:
        super().__init__(
            f"generation {generation_id!r} cannot be forked here: {why}",
            generation_id=generation_id,
        )


class GenerationUnsignedError(WhenceError):
    """The generation has no signed statement."""

    code = Code.FAILED_PRECONDITION
    reason = "GENERATION_UNSIGNED"

    def __init__(self, generation_id: str) -> None:
        super().__init__(
            f"generation {generation_id!r} has no signed statement: the server that recorded it "
            "had --signing off, was of an earlier version, or could not sign it",
            generation_id=generation_id,
        )


class BundleTooLargeError(WhenceError):
    """A generation's bundle would be larger than those who check bundles read."""

    code = Code.FAILED_PRECONDITION
    reason = "BUNDLE_TOO_LARGE"

    def __init__(self, generation_id: str, what: str, remedy: str) -> None:
        super().__init__(
            f"the bundle of generation {generation_id!r} has {what}: {remedy}",
            generation_id=generation_id,
        )


class GenerationFailedError(WhenceError):
    """One generation failed; the others go on."""

    code = Code.INTERNAL

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(message)
        self.reason = reason


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


class NoModelError(WhenceError):
    """The server has no model: it only puts generations of other processes on record."""

    code = Code.FAILED_PRECONDITION
    reason = "NO_MODEL"

    def __init__(self) -> None:
        super().__init__(
            "this server has no model: it only puts generations of other processes on record "
            "(--record-only)"
        )


class EngineLostError(WhenceError):
    """The engine process has died."""

    code = Code.UNAVAILABLE
    reason = "ENGINE_LOST"

    def __init__(self, detail: str) -> None:
        super().__init__(f"the engine process ended: {detail}")
