"""Content of a generation in a bounded number of bytes: long texts are cut at their end."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import orjson

from whence_server.telemetry.spans.content import Message, serialise_messages

_TEXTS = ("content", "response")
"""Keys of a message's parts whose values are texts."""
_CHUNK = 4_096
"""Characters that are measured at once."""


class BoundMessages(NamedTuple):
    """Messages as JSON, whose texts may have been cut."""

    text: str | None
    """None if there are no messages."""
    num_bytes: int
    """Size of the JSON in UTF-8."""
    is_cut: bool = False


def bound_content(
    inputs: Sequence[Message], outputs: Sequence[Message], tools: Sequence[Message], max_bytes: int
) -> tuple[BoundMessages, BoundMessages, BoundMessages]:
    """Serialise the content of a generation so that all of it has a bounded size.

    Definitions of tools get at most half, and end early if they have more. Of what they leave,
    inputs and outputs each get half, and what the other one leaves: their texts are cut to equal
    shares, and the last messages left out if that is not enough.

    Args:
        inputs: messages of the request.
        outputs: messages of the outputs.
        tools: definitions of tools.
        max_bytes: most bytes of all in UTF-8.
    """
    third = _serialise_within(tools, max_bytes // 2)
    max_bytes -= third.num_bytes
    first = _serialise_within(inputs, max_bytes)
    second = _serialise_within(outputs, max(max_bytes // 2, max_bytes - first.num_bytes))
    if first.num_bytes + second.num_bytes > max_bytes:
        first = _serialise_within(inputs, max_bytes - second.num_bytes)
    return first, second, third


def _serialise_within(messages: Sequence[Message], max_bytes: int) -> BoundMessages:
    sizes = [len(text) for message in messages for text in _iterate_texts(message)]
    # A character has at least one byte: texts that are much too long are not serialised.
    if sum(sizes) <= max_bytes:
        whole = _serialise(messages)
        if whole.num_bytes <= max_bytes:
            return whole
    frame = _serialise([_cut_texts(message, 0) for message in messages])
    share = max(0, max_bytes - frame.num_bytes - 1) // max(1, len(sizes))
    kept, num_bytes = [], len("[]")
    for message in messages:
        cut = _cut_texts(message, share)
        num_bytes += _serialise([cut]).num_bytes - 1  # with a comma in place of two brackets
        if num_bytes > max_bytes:
            break
        kept.append(cut)
    return _serialise(kept)._replace(is_cut=True)


def _serialise(messages: Sequence[Message]) -> BoundMessages:
    text = serialise_messages(list(messages))
    return BoundMessages(text, len((text or "").encode()))


def _iterate_texts(message: Message) -> Iterator[str]:
    for part in message.get("parts", ()):
        for key in _TEXTS:
            if isinstance(part.get(key), str):
                yield part[key]


def _cut_texts(message: Message, max_bytes: int) -> Message:
    """Return a message in which each text is cut to its first bytes, up to a bound."""
    if "parts" not in message:
        return message
    return {**message, "parts": [_cut_part(part, max_bytes) for part in message["parts"]]}


def _cut_part(part: Mapping[str, Any], max_bytes: int) -> dict[str, Any]:
    return {
        key: cut_text(value, max_bytes) if key in _TEXTS and isinstance(value, str) else value
        for key, value in part.items()
    }


def cut_text(text: str, max_bytes: int) -> str:
    """Return the longest beginning of a text whose JSON has at most so many bytes in UTF-8.

    The quotes around it do not count.
    """
    end, left = 0, max_bytes
    while end < len(text):
        size = _measure(text[end : end + _CHUNK])
        if size > left:
            break
        end, left = end + _CHUNK, left - size
    else:
        return text
    # The first length that is too long is between these.
    fits, too_long = 0, min(_CHUNK, len(text) - end)
    while too_long - fits > 1:
        middle = (fits + too_long) // 2
        if _measure(text[end : end + middle]) <= left:
            fits = middle
        else:
            too_long = middle
    return text[: end + fits]


def _measure(text: str) -> int:
    return len(orjson.dumps(text)) - 2
