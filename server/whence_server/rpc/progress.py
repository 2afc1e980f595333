"""Messages that break the silence of a generation's stream."""

from collections.abc import Callable

from whence.v1 import generation_pb2
from whence_server.generation.progress import Progress


class ProgressTeller:
    """Maker of one stream's progress messages.

    Args:
        find: returns the generation's progress.
        last_offset: offset after which the stream begins.

    Attributes:
        last_offset: last offset that the stream has sent. Progress repeats it, so that a reader
            who resumes after any message loses and repeats nothing.
    """

    def __init__(self, find: Callable[[], Progress], last_offset: int = 0) -> None:
        self._find = find
        self.last_offset = last_offset

    def make_message(self) -> bytes:
        """Return a serialised GenerateResponse, whose form ResumeGenerationResponse shares."""
        return generation_pb2.GenerateResponse(
            event=generation_pb2.GenerationEvent(
                first_offset=self.last_offset,
                last_offset=self.last_offset,
                progress=make_progress_message(self._find()),
            )
        ).SerializeToString()


def make_progress_message(progress: Progress) -> generation_pb2.GenerationProgress:
    """Convert a generation's progress to its message."""
    return generation_pb2.GenerationProgress(
        phase=generation_pb2.GenerationPhase.ValueType(progress.phase.value),
        num_generations_ahead=progress.num_generations_ahead,
        num_prompt_tokens=progress.num_prompt_tokens,
        num_prompt_tokens_read=progress.num_prompt_tokens_read,
        num_generated_tokens=progress.num_generated_tokens,
    )
