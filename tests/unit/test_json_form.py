"""The API's JSON is protobuf's own mapping: `json_format` reads it, and writes the same."""

import json
import math
import random
import struct
from collections.abc import Callable
from typing import Any

import pytest
from google.protobuf import json_format
from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.message import Message

from whence.v1 import generation_pb2, step_pb2, trace_pb2, training_pb2, verification_pb2
from whence_server.http.api.json_form import write_message

TYPES = (
    generation_pb2.GenerateRequest,
    generation_pb2.ResumeGenerationResponse,
    trace_pb2.GetGenerationResponse,
    trace_pb2.SearchGenerationsResponse,
    trace_pb2.ListStepsResponse,
    training_pb2.GetTrainingRunResponse,
    training_pb2.GetInclusionProofResponse,
    verification_pb2.VerifyGenerationResponse,
)
MOST_DEPTH = 5


def fill(message: Any, draw: random.Random, depth: int = 0) -> None:
    """Set random fields of a message to random values."""
    name = message.DESCRIPTOR.full_name
    if name.startswith("google.protobuf."):
        if name.endswith(("Timestamp", "Duration")):
            message.seconds = draw.randrange(1_000_000_000)
            message.nanos = draw.choice((0, 5_000_000, 123_456_789))
        return
    for field in message.DESCRIPTOR.fields:
        if draw.random() < 0.3 or (field.message_type and depth == MOST_DEPTH):
            continue
        if field.message_type and field.message_type.GetOptions().map_entry:
            fill_map(getattr(message, field.name), field, draw)
        elif field.is_repeated:
            values = getattr(message, field.name)
            for _ in range(draw.randrange(3)):
                if field.message_type:
                    fill(values.add(), draw, depth + 1)
                else:
                    values.append(draw_value(field, draw))
        elif field.message_type:
            getattr(message, field.name).SetInParent()
            fill(getattr(message, field.name), draw, depth + 1)
        else:
            setattr(message, field.name, draw_value(field, draw))


def fill_map(values: Any, field: FieldDescriptor, draw: random.Random) -> None:
    assert field.message_type is not None
    kinds = field.message_type.fields_by_name
    if kinds["value"].message_type is None:
        for _ in range(2):
            values[draw_value(kinds["key"], draw)] = draw_value(kinds["value"], draw)


def draw_value(field: FieldDescriptor, draw: random.Random) -> Any:
    if field.enum_type is not None:
        # 4711 is of a newer writer.
        return draw.choice([*field.enum_type.values_by_number, 4_711])
    if field.type == FieldDescriptor.TYPE_BYTES:
        return draw.randbytes(draw.randrange(5))
    return DRAWN[field.cpp_type](draw)


def draw_float(draw: random.Random) -> float:
    (drawn,) = struct.unpack("f", struct.pack("I", draw.randrange(1 << 31)))
    return float("-inf") if math.isnan(drawn) else drawn


TEXTS = ("", "é\u2028\x00", "<script>", "\U0001f600\u202e", '"\\\n')
DRAWN: dict[int, Callable[[random.Random], Any]] = {
    FieldDescriptor.CPPTYPE_BOOL: lambda draw: draw.random() < 0.5,
    FieldDescriptor.CPPTYPE_FLOAT: draw_float,
    FieldDescriptor.CPPTYPE_DOUBLE: lambda draw: draw.choice((0.1, 1e300, 1 / 3, float("inf"))),
    FieldDescriptor.CPPTYPE_STRING: lambda draw: draw.choice(TEXTS),
    FieldDescriptor.CPPTYPE_INT32: lambda draw: draw.randrange(-(2**31), 2**31),
    FieldDescriptor.CPPTYPE_INT64: lambda draw: draw.randrange(-(2**63), 2**63),
    FieldDescriptor.CPPTYPE_UINT32: lambda draw: draw.randrange(2**32),
    FieldDescriptor.CPPTYPE_UINT64: lambda draw: draw.randrange(2**64),
}


@pytest.mark.parametrize("kind", TYPES, ids=lambda kind: kind.__name__)
def test_json_format_reads_what_is_written_and_writes_the_same(kind: type[Message]) -> None:
    num_bytes = 0
    for seed in range(60):
        message = kind()
        fill(message, random.Random(seed))
        written = write_message(message)
        num_bytes += len(written)
        assert json_format.Parse(written, kind()) == message
        assert json.loads(written) == json_format.MessageToDict(message)
    assert num_bytes > 1_000


def test_numbers_that_are_none_are_words() -> None:
    nan, inf = float("nan"), float("inf")
    step = step_pb2.Step(logprob=nan, entropy=inf)
    step.candidates.logprobs.extend([nan, -inf, 0.1])
    written = json.loads(write_message(step))
    assert (written["logprob"], written["entropy"]) == ("NaN", "Infinity")
    assert written["candidates"]["logprobs"] == ["NaN", "-Infinity", 0.1]


def test_the_word_null_in_a_text_is_a_text() -> None:
    step = step_pb2.Step(text="null", logprob=-0.1)
    step.candidates.logprobs.extend([-0.1, -0.2])
    assert json.loads(write_message(step)) == json_format.MessageToDict(step)
