"""Bounds on the numbers of entries in a request, checked before any entry is read.

A message of 4 MB can hold a million stop strings. Reading each of them would block the event loop
for seconds.
"""

from collections.abc import Iterator
from operator import attrgetter

from whence.v1 import generation_pb2
from whence_server.domain.decoding import DECODING_OPTIONS, TRACE_OPTIONS
from whence_server.domain.errors import FieldViolation, InvalidRequestError
from whence_server.domain.limits import Limits


def check_counts(request: generation_pb2.GenerateRequest, limits: Limits) -> None:
    """Refuse a request with more entries in a field than its bound.

    Raises:
        InvalidRequestError: fields have too many entries; the error names all of them.
    """
    forced = request.decoding.forced.tokens.token_ids
    messages = request.chat.messages[: limits.max_messages]
    parts = sum(len(message.content_parts) for message in messages)
    calls = sum(len(message.tool_calls) for message in messages)
    counted = (
        ("chat.messages", len(request.chat.messages), limits.max_messages, "messages"),
        ("chat.messages.content_parts", parts, limits.max_content_parts, "parts"),
        ("chat.messages.tool_calls", calls, limits.max_tool_calls, "tool calls"),
        ("labels", len(request.labels), limits.max_labels, "labels"),
        # A server whose cache holds no more can run no longer one, whatever its model.
        ("tokens.token_ids", len(request.tokens.token_ids), limits.max_cache_tokens, "tokens"),
        ("decoding.forced.tokens.token_ids", len(forced), limits.max_cache_tokens, "tokens"),
        *_count_options(request, limits),
    )
    violations = [
        FieldViolation(field, f"has {number} {what}; this server takes at most {most}")
        for field, number, most, what in counted
        if number > most
    ]
    if violations:
        raise InvalidRequestError(*violations)


def _count_options(
    request: generation_pb2.GenerateRequest, limits: Limits
) -> Iterator[tuple[str, int, int, str]]:
    for option in (*DECODING_OPTIONS, *TRACE_OPTIONS):
        if option.entries is not None:
            number = len(attrgetter(option.path)(request))
            yield option.path, number, option.entries.get_most(limits), option.entries.noun
