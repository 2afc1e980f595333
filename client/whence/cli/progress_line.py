"""Line below the cursor that shows, on a terminal, why a generation is quiet."""

import os
import shutil
import sys
from collections.abc import Iterator
from typing import TextIO

from whence.cli.render import fit_columns
from whence.client import Generation
from whence.summary import count
from whence.v1.generation_pb2 import GenerationEvent, GenerationPhase, GenerationProgress

# Controls of ECMA-48 and of the VT100. INDEX moves down in the same column, and scrolls at the
# bottom, where the row below does not exist yet.
_SAVE, _RESTORE, _INDEX, _UP, _ERASE = "\x1b7", "\x1b8", "\x1bD", "\x1b[A", "\r\x1b[2K"


def read_events(generation: Generation, *, quiet: bool) -> Iterator[GenerationEvent]:
    """Yield a generation's events; show its progress meanwhile, if standard error is a terminal.

    Args:
        generation: the generation.
        quiet: True shows no progress.
    """
    stream = sys.stderr
    if quiet or not stream.isatty() or os.environ.get("TERM") == "dumb":
        yield from generation.events()
        return
    line = ProgressLine(stream)
    try:
        for event in generation.events(progress=True):
            if event.HasField("progress"):
                line.show(describe_progress(event.progress))
            else:
                line.clear()
                yield event
    finally:
        line.clear()


class ProgressLine:
    """Line below the cursor, which stays where it is: in the midst of a text, for example."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self._shown = False

    def show(self, text: str) -> None:
        """Show a text, truncated to the width of the terminal."""
        fitted = fit_columns(text, shutil.get_terminal_size().columns - 1).rstrip()
        self._draw(fitted)
        self._shown = True

    def clear(self) -> None:
        """Erase the line, if it is shown."""
        if self._shown:
            self._draw("")
            self._shown = False

    def _draw(self, text: str) -> None:
        # Both may be the same terminal.
        sys.stdout.flush()
        self._stream.write(f"{_INDEX}{_UP}{_SAVE}{_INDEX}{_ERASE}{text}{_RESTORE}")
        self._stream.flush()


def describe_progress(progress: GenerationProgress) -> str:
    """Return the progress as words on one line."""
    so_far = f"{count(progress.num_generated_tokens, 'token')} so far"
    match progress.phase:
        case GenerationPhase.GENERATION_PHASE_PREPARING:
            return "preparing the request"
        case GenerationPhase.GENERATION_PHASE_QUEUED:
            return f"queued, {count(progress.num_generations_ahead, 'generation')} ahead"
        case GenerationPhase.GENERATION_PHASE_READING_PROMPT:
            num_read, num_tokens = progress.num_prompt_tokens_read, progress.num_prompt_tokens
            return f"reading the prompt, {num_read:,} of {num_tokens:,} tokens"
        case GenerationPhase.GENERATION_PHASE_ENGINE_RESTARTING:
            return f"the engine is restarting, {so_far}"
        case GenerationPhase.GENERATION_PHASE_RECORDING:
            return "writing the end to disk"
        case _:  # generating, or a phase of a later version
            return f"generating, {so_far}"
