"""Streams are read right wherever the network cuts them, and no piece grows without bound."""

import json
import re
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from whence_server.domain.errors import UpstreamMalformedError
from whence_server.engines.upstream.wire.events import (
    Event,
    EventReader,
    JsonLines,
    ServerSentEvents,
)


def read(reader: EventReader, content: bytes, cuts: list[int]) -> list[Event]:
    """Return the events of bytes that arrive in pieces."""
    places = sorted({min(cut, len(content)) for cut in cuts} | {0, len(content)})
    events = []
    for begin, end in pairwise(places):
        events += reader.feed(content[begin:end])
    return events + reader.finish()


def interpret(content: bytes) -> list[bytes]:
    """Return the data of all events, by the algorithm of the standard over the whole text."""
    text = content.decode().removeprefix("\ufeff")
    events, data = [], []
    *lines, _unfinished = re.split("\r\n|\n|\r", text)
    for line in lines:
        if not line:
            if data:
                events.append("\n".join(data).encode())
            data = []
        elif not line.startswith(":"):
            field, _, value = line.partition(":")
            if field == "data":
                data.append(value.removeprefix(" "))
    return events


LINE = st.one_of(
    st.text(st.characters(exclude_characters="\r\n", exclude_categories=["Cs"]), max_size=12).map(
        lambda text: f"data: {text}"
    ),
    st.sampled_from(
        ["", "", ": ping", "data", "data:", "data:x", "event: error", "id: 7", "retry: 1"]
    ),
)
STREAM = st.lists(st.tuples(LINE, st.sampled_from(["\n", "\r\n", "\r"])), max_size=20).map(
    lambda lines: "".join(line + end for line, end in lines)
)


@given(
    stream=STREAM,
    has_mark=st.booleans(),
    cuts=st.lists(st.integers(0, 400), max_size=30),
)
def test_events_are_those_of_the_standard_wherever_they_are_cut(
    stream: str, has_mark: bool, cuts: list[int]
) -> None:
    content = (("\ufeff" if has_mark else "") + stream).encode()
    events = read(ServerSentEvents(1 << 20), content, cuts)
    assert [event.data for event in events] == interpret(content)


def test_an_event_has_its_name() -> None:
    reader = ServerSentEvents(100)
    assert reader.feed(b"event: error\ndata: 1\n\ndata: 2\n\n") == [
        Event(b"1", "error"),
        Event(b"2"),
    ]


def test_a_line_that_ends_with_cr_is_whole_at_once() -> None:
    reader = ServerSentEvents(100)
    assert reader.feed(b"data: 1\r\r") == [Event(b"1")]
    # The LF that may follow belongs to the CR.
    assert reader.feed(b"\n") == []
    assert reader.feed(b"data: 2\r\n\r\n") == [Event(b"2")]


@pytest.mark.parametrize(
    "content",
    [b"data: " + b"x" * 101, b"data: " + b"x" * 60 + b"\ndata: " + b"x" * 60 + b"\n"],
    ids=["one line", "many lines"],
)
@pytest.mark.parametrize("piece_bytes", [1, 7, 1000])
def test_an_event_above_the_limit_is_refused(content: bytes, piece_bytes: int) -> None:
    cuts = list(range(0, len(content), piece_bytes))
    with pytest.raises(UpstreamMalformedError, match="more than 100 bytes"):
        read(ServerSentEvents(100), content, cuts)


def test_an_event_as_large_as_the_limit_is_taken() -> None:
    data = b"x" * 94
    assert ServerSentEvents(100).feed(b"data: " + data + b"\n\n") == [Event(data)]


@given(
    documents=st.lists(st.dictionaries(st.text(max_size=4), st.text(max_size=8), max_size=3)),
    ends_with_line=st.booleans(),
    cuts=st.lists(st.integers(0, 400), max_size=30),
)
def test_json_lines_are_whole_wherever_they_are_cut(
    documents: list[dict[str, str]], ends_with_line: bool, cuts: list[int]
) -> None:
    lines = [json.dumps(document) for document in documents]
    content = ("\n".join(lines) + ("\n" if ends_with_line else "")).encode()
    events = read(JsonLines(1 << 20), content, cuts)
    assert [json.loads(event.data) for event in events] == documents
