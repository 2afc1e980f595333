"""Analysis process: `python -m whence_server.analysis.process`.

Standard input has pickled frames: an `AnalysisSetup`, then questions. Standard output has the
answers' frames: `Found` messages, then `Done`. The end of standard input ends the process at once,
also during a forward pass: the answer is no longer wanted.
"""

import contextlib
import os
import queue
import sys
import threading
from pathlib import Path
from typing import Any, BinaryIO

from whence_server.analysis.question import (
    Answer,
    Asked,
    Done,
    Failed,
    Found,
    Part,
    Question,
    Refused,
    Unverifiable,
    join_question,
)
from whence_server.analysis.setup import AnalysisSetup
from whence_server.config.environment import use_passive_waiting
from whence_server.domain.errors import ConfigurationError, WhenceError
from whence_server.domain.explanations import ExplainQuestion
from whence_server.processes import channel

EXIT_ABANDONED = 3
"""Exit status after the end of standard input."""
_NICENESS = 10
_BADNESS_FILE = Path("/proc/self/oom_score_adj")
_BADNESS = 500
"""Raise of the score by which Linux chooses the process that it ends when memory is short."""


def main() -> int:
    """Answer questions until standard input ends."""
    os.nice(_NICENESS)
    _offer_to_end()
    # Other prints to standard output go to standard error.
    output = os.fdopen(os.dup(1), "wb", buffering=0)
    os.dup2(2, 1)
    # The front alone handles a Ctrl-C in its terminal: it starts this process in its own session.
    messages: queue.SimpleQueue[Any] = queue.SimpleQueue()
    threading.Thread(
        target=_receive, args=(sys.stdin.buffer, messages), name="questions", daemon=True
    ).start()
    setup: AnalysisSetup = messages.get()
    # Threads that wait actively would take the cores on which the server decodes.
    use_passive_waiting()
    # Importing torch takes seconds, and so comes after the thread that watches the front's end.
    from whence_server.analysis.replay.models import Models

    models = Models(setup)
    while True:
        question = _take_question(messages)
        try:
            _answer(models, question, output)
        except Exception as error:
            _send(output, Failed(f"{type(error).__name__}: {error}"))
            raise


def _offer_to_end() -> None:
    """Have the kernel end this process before the engine and the front, if memory is short."""
    # Other systems have no such file; some containers forbid writing it.
    with contextlib.suppress(OSError, ValueError):
        if int(_BADNESS_FILE.read_text()) < _BADNESS:
            _BADNESS_FILE.write_text(str(_BADNESS))


def _take_question(messages: "queue.SimpleQueue[Any]") -> Asked:
    """Return the next question, when its last part has come."""
    parts: list[Part] = []
    while isinstance(message := messages.get(), Part):
        parts.append(message)
    return join_question(parts, message)


def _answer(models: Any, question: Asked, output: BinaryIO) -> None:
    if isinstance(question, ExplainQuestion):
        _explain(models, question, output)
    else:
        _verify(models, question, output)


def _explain(models: Any, question: ExplainQuestion, output: BinaryIO) -> None:
    from whence_server.analysis.explaining import explain

    try:
        explain(models, question, lambda message: _send(output, Found(message)))
    except WhenceError as error:
        _send(output, Refused(error))
    else:
        _send(output, Done())


def _verify(models: Any, question: Question, output: BinaryIO) -> None:
    from whence_server.analysis.replay.verifier import wrap

    try:
        verifier = models.get_verifier(question)
    except ConfigurationError as error:
        _send(output, Found(_refuse(error.message)))
    else:
        for event in verifier.verify(question):
            _send(output, Found(wrap(event).SerializeToString()))
    _send(output, Done())


def _refuse(message: str) -> bytes:
    from whence_server.analysis.results import make_refusal

    return make_refusal(Unverifiable.NO_WEIGHTS, message)


def _send(output: BinaryIO, answer: Answer) -> None:
    output.write(channel.encode(answer))


def _receive(stream: BinaryIO, messages: "queue.SimpleQueue[Any]") -> None:
    """Queue messages from the front; exit the process when the front has closed its end."""
    header = channel.HEADER
    while True:
        prefix = stream.read(header.size)
        if len(prefix) < header.size:
            os._exit(EXIT_ABANDONED)
        (length,) = header.unpack(prefix)
        payload = stream.read(length)
        if len(payload) < length:
            os._exit(EXIT_ABANDONED)
        messages.put(channel.decode(payload))


if __name__ == "__main__":
    sys.exit(main())
