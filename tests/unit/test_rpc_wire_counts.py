"""Maps that take long to parse are refused before the message is parsed."""

import pytest
from google.protobuf.message import Message

from whence.v1 import generation_pb2 as g
from whence.v1 import trace_pb2 as t
from whence_server.domain.errors import InvalidRequestError
from whence_server.rpc.wire_counts import check_wire

LABELS = {f"{i:06}": "" for i in range(20_000)}


def _arguments(num_keys: int) -> g.GenerateRequest:
    request = g.GenerateRequest()
    request.chat.template_arguments.update({f"key {i:06}": 1 for i in range(num_keys)})
    return request


TOO_FULL: dict[str, tuple[Message, str]] = {
    "labels": (g.GenerateRequest(labels=LABELS), "labels"),
    "chat arguments": (_arguments(60_000), "chat.template_arguments"),
    "chat messages": (
        g.GenerateRequest(chat=g.ChatInput(messages=[g.ChatMessage(role="user")] * 20_000)),
        "chat.messages",
    ),
    "listing": (
        t.ListGenerationsRequest(filter=t.GenerationFilter(labels=LABELS)),
        "filter.labels",
    ),
    "watching": (
        t.WatchGenerationsRequest(filter=t.GenerationFilter(labels=LABELS)),
        "filter.labels",
    ),
}


@pytest.mark.parametrize("case", TOO_FULL)
def test_oversized_maps_are_refused_with_their_field(case: str) -> None:
    message, field = TOO_FULL[case]
    with pytest.raises(InvalidRequestError) as caught:
        check_wire(message.SerializeToString(), message.DESCRIPTOR)
    assert [violation.field for violation in caught.value.violations] == [field]


def test_repeated_template_arguments_are_counted_together() -> None:
    pieces = _arguments(30_000).SerializeToString() * 2
    check_wire(_arguments(30_000).SerializeToString(), g.GenerateRequest.DESCRIPTOR)
    with pytest.raises(InvalidRequestError, match="bytes; at most"):
        check_wire(pieces, g.GenerateRequest.DESCRIPTOR)


def test_unknown_fields_are_counted() -> None:
    with pytest.raises(InvalidRequestError, match="more than 10000 entries"):
        check_wire(b"\xf8\x06\x00" * 30_000, g.GenerateRequest.DESCRIPTOR)


def test_large_request_within_the_bounds_passes() -> None:
    request = g.GenerateRequest(
        chat=g.ChatInput(messages=[g.ChatMessage(role="user", content="c" * 900)] * 4_096),
        labels={f"{i}": "v" * 256 for i in range(32)},
    )
    check_wire(request.SerializeToString(), request.DESCRIPTOR)
    check_wire(g.GenerateRequest(prompt="p" * 4_000_000).SerializeToString(), request.DESCRIPTOR)


def test_malformed_bytes_are_left_to_the_parser() -> None:
    for raw in (b"\xff" * 100_000, b"\x42\xff\xff\xff\x7f" + b"x" * 100_000, b"\x43" * 9_000):
        check_wire(raw.ljust(70_000, b"\x80"), g.GenerateRequest.DESCRIPTOR)
