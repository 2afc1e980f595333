"""Check of a conversation: its template gives the prompt's text, at the time of the request."""

import time
from collections.abc import Iterator
from contextlib import suppress
from datetime import UTC, datetime, timedelta

from whence.v1 import verification_pb2 as pb
from whence_server.analysis.question import Question
from whence_server.analysis.replay.checks import make_check
from whence_server.domain.errors import WhenceError
from whence_server.text.chat_environment import at_time, was_time_read
from whence_server.text.template_arguments import read_arguments, read_tools
from whence_server.text.tokenizer import TextTokenizer

_ZONES = [timedelta(minutes=15 * quarters) for quarters in range(-12 * 4, 14 * 4 + 1)]
"""Distances of the local times of the Earth from UTC."""


_LONGEST_S = 5.0
"""Time after which no further zone is tried."""


def check_chat(question: Question, tokenizer: TextTokenizer) -> pb.VerificationCheck:
    """Return the check of the prompt's text.

    A template may print the time, in the time zone of the server: all zones are tried.
    """
    subject = pb.VERIFICATION_SUBJECT_CHAT
    reads_time = False
    started = time.monotonic()
    try:
        for local in _list_times(question):
            with at_time(local):
                rendered = _render(question, tokenizer)
                reads_time = was_time_read()
            if rendered == question.prompt:
                return make_check(subject, same=True)
            if not reads_time or time.monotonic() - started > _LONGEST_S:
                break
    except (WhenceError, ValueError) as error:
        return make_check(subject, same=False, message=f"the template refuses it: {error}")
    if reads_time:
        what = "the template prints the time, and gives another text than the prompt on record"
        return make_check(subject, same=None, message=what)
    what = "the template gives another text than the prompt on record"
    return make_check(subject, same=False, message=what)


def _list_times(question: Question) -> Iterator[datetime]:
    """Yield the local times that the request may have had, most likely first."""
    started = datetime.fromtimestamp(question.start_time_ns / 1e9, UTC).replace(tzinfo=None)
    with suppress(OverflowError, OSError):
        yield datetime.fromtimestamp(question.start_time_ns / 1e9)  # noqa: DTZ006 - local, as templates expect
    for zone in sorted(_ZONES, key=abs):
        with suppress(OverflowError):
            yield started + zone


def _render(question: Question, tokenizer: TextTokenizer) -> str:
    if question.chat is None:
        raise ValueError("the generation has no conversation")
    given = question.chat.input
    return tokenizer.render_chat(
        given.messages,
        read_arguments(given.template_arguments_json),
        given.template_name,
        read_tools(given.tools_json),
    ).text
