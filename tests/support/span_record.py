"""The record of a server's spans: its journal, read after the server has ended."""

import math
import struct
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from google.protobuf.internal.enum_type_wrapper import EnumTypeWrapper
from google.protobuf.message import Message
from opentelemetry.proto.trace.v1.trace_pb2 import Span
from span_reading import only_span

from whence.v1 import call_pb2, generation_pb2, observation_pb2, step_pb2
from whence_server.config import ServeConfig
from whence_server.domain.entries import EntryKind
from whence_server.journal.journal import Journal
from whence_server.journal.vocabularies import Vocabularies
from whence_server.observability import make_span_encoder

LOWEST_FLOAT32 = -(2 - 2**-23) * 2.0**127


@dataclass
class Record:
    """Messages of a journal, and the spans that its server makes of them."""

    started: dict[str, generation_pb2.GenerationStarted] = field(default_factory=dict)
    finished: dict[str, generation_pb2.GenerationFinished] = field(default_factory=dict)
    steps: dict[tuple[str, int, int], step_pb2.Step] = field(default_factory=dict)
    """Steps by generation, sequence and index."""
    calls: dict[str, call_pb2.Call] = field(default_factory=dict)
    """Calls by the ids of their SERVER spans."""
    traces: dict[str, dict[str, Span]] = field(default_factory=dict)
    """Spans by their ids, for each trace id."""


async def read_record(data_dir: Path, settings: ServeConfig) -> Record:
    """Read a journal's messages, and make its spans again, as the server with these settings."""
    record = Record()
    journal = await Journal.open(data_dir)
    encoder = make_span_encoder(settings, journal, Vocabularies(data_dir))
    position = 0
    while entries := await journal.read_committed(position):
        for entry in entries:
            if entry.kind is EntryKind.STARTED:
                message = generation_pb2.GenerationStarted.FromString(entry.payload)
                record.started[entry.generation_id] = message
            elif entry.kind is EntryKind.FINISHED:
                ended = generation_pb2.GenerationFinished.FromString(entry.payload)
                record.finished[entry.generation_id] = ended
            elif entry.kind is EntryKind.STEP:
                step = step_pb2.Step.FromString(entry.payload)
                record.steps[entry.generation_id, step.sequence_index, step.index] = step
            elif entry.kind is EntryKind.CALL:
                call = call_pb2.Call.FromString(entry.payload)
                record.calls[call.span_id] = call
            for span in map(only_span, await encoder.encode(entry)):
                trace = record.traces.setdefault(span.trace_id.hex(), {})
                assert span.span_id.hex() not in trace, "two spans have one id"
                trace[span.span_id.hex()] = span
        position = entries[-1].position
    await journal.close()
    return record


Source = str | Callable[[Any], object]
"""A field's path in a message, or a function of the message."""


def read_fields(rows: Mapping[str, Source], message: Message) -> dict[str, object]:
    """Return the attributes that a message has by a table; absent fields have none."""
    read = {
        name: source(message) if callable(source) else _follow(message, source)
        for name, source in rows.items()
    }
    return {name: value for name, value in read.items() if value not in (None, [])}


def _follow(message: Any, path: str) -> object:
    for name in path.split("."):
        known = message.DESCRIPTOR.fields_by_name[name]
        if known.has_presence and not message.HasField(name):
            return None
        message = getattr(message, name)
    return message if isinstance(message, str | int | float | bool) else list(message)


# What a span says, and where the journal has it. An attribute without a row fails the tests.

STEP_ROWS: dict[str, Source] = {
    "whence.sequence.index": "sequence_index",
    "whence.step.index": "index",
    "whence.step.entropy": "entropy",
    "whence.step.sampling_entropy": "sampling_entropy",
    "whence.step.batch_size": "timing.batch_size",
    "whence.step.context_length": "timing.context_length",
    "whence.step.forward_ns": "timing.forward_ns",
    "whence.step.select_ns": "timing.select_ns",
    "whence.token.id": "token_id",
    "whence.token.text": "text",
    "whence.token.logprob": "logprob",
    "whence.token.sampling_logprob": "sampling_logprob",
    "whence.token.rank": "rank",
    "whence.token.unlikely": lambda step: _is_unlikely(step) or None,
    "whence.draw.noise": "draw.noise",
    "whence.draw.runner_up_token_id": "draw.runner_up_token_id",
    "whence.draw.margin": "draw.margin",
    "whence.candidates.token_ids": "candidates.token_ids",
    "whence.candidates.logprobs": "candidates.logprobs",
    "whence.candidates.sampling_logprobs": lambda step: [
        max(logprob, LOWEST_FLOAT32) for logprob in step.candidates.sampling_logprobs
    ],
    "whence.processors.num_kept": "processors.num_kept",
    "whence.processors.removed_mass": "processors.removed_mass",
    "whence.processors.token_logprobs": "processors.token_logprobs",
    "whence.source.positions": "internals.source_positions",
    "whence.source.shares": "internals.source_shares",
    "whence.source.self_share": "internals.self_share",
    "whence.source.sink_share": "internals.sink_share",
    "whence.layer.shares": "internals.layer_shares",
    "whence.layer.leader_token_ids": lambda step: [
        [*step.candidates.token_ids, step.token_id][leader]
        for leader in step.internals.layer_leaders
    ],
}
GRADES: dict[str, tuple[str, EnumTypeWrapper]] = {
    "token_ids": ("TOKEN_ID_ORIGIN_", observation_pb2.TokenIdOrigin),
    "distribution": ("DISTRIBUTION_KIND_", observation_pb2.DistributionKind),
    "second_distribution": ("SECOND_DISTRIBUTION_", observation_pb2.SecondDistribution),
    "seed": ("SEED_ORIGIN_", observation_pb2.SeedOrigin),
    "draw": ("DRAW_ORIGIN_", observation_pb2.DrawOrigin),
    "tables": ("TABLE_COVERAGE_", observation_pb2.TableCoverage),
    "weights": ("WEIGHTS_ORIGIN_", observation_pb2.WeightsOrigin),
}
"""Fields of `Observation`, each with its enum and the prefix of its names."""


def _read_grade(part: str) -> Source:
    prefix, enum = GRADES[part]
    return lambda it: enum.Name(getattr(it.observation, part)).removeprefix(prefix).lower()


def _read_fork(started: generation_pb2.GenerationStarted, name: str) -> object:
    return getattr(started.fork, name) if started.HasField("fork") else None


STARTED_ROWS: dict[str, Source] = {
    **{f"whence.observation.{part}": _read_grade(part) for part in GRADES},
    "gen_ai.operation.name": "operation",
    "gen_ai.provider.name": lambda _: "whence",
    "gen_ai.output.type": lambda it: (
        "json" if it.effective_decoding.constraint.HasField("json_schema") else "text"
    ),
    "gen_ai.request.model": "model",
    "gen_ai.request.stream": lambda _: True,
    "gen_ai.request.max_tokens": "effective_decoding.max_new_tokens",
    "gen_ai.request.choice.count": lambda it: _above_one(it.effective_decoding),
    "gen_ai.request.stop_sequences": "effective_decoding.stop",
    "gen_ai.request.temperature": "effective_decoding.sample.temperature",
    "gen_ai.request.top_k": "effective_decoding.sample.top_k",
    "gen_ai.request.top_p": "effective_decoding.sample.top_p",
    "gen_ai.request.seed": "effective_decoding.sample.seed",
    "gen_ai.response.id": "generation_id",
    "gen_ai.response.model": "model",
    "whence.generation.id": "generation_id",
    "whence.request.digest": "request_digest",
    "whence.model.digest": "model_digest",
    "whence.tokenizer.digest": "tokenizer_digest",
    "whence.weights.digest": "environment.weights_digest",
    "whence.adapter.name": lambda it: it.adapter.name or None,
    "whence.adapter.digest": lambda it: it.adapter.digest or None,
    "whence.adapter.weights_digest": lambda it: it.adapter.weights_digest or None,
    "whence.fork.parent.generation_id": lambda it: it.fork.parent_generation_id or None,
    "whence.fork.parent.trace_id": lambda it: it.fork.parent_trace_id or None,
    "whence.fork.sequence_index": lambda it: _read_fork(it, "sequence_index"),
    "whence.fork.step": lambda it: _read_fork(it, "step"),
    "whence.fork.num_forced_steps": lambda it: _read_fork(it, "num_forced_steps"),
    "whence.fork.changes_prompt": lambda it: _read_fork(it, "changes_prompt"),
    "whence.fork.changed_settings": "fork.changed_settings",
    "whence.decoding.strategy": lambda it: it.effective_decoding.WhichOneof("strategy"),
    "whence.decoding.seed": lambda it: (
        str(it.effective_decoding.sample.seed) if it.effective_decoding.HasField("sample") else None
    ),
    "whence.processors.names": "processor_names",
    "whence.constraint.language": (
        lambda it: it.effective_decoding.constraint.WhichOneof("language")
    ),
    "whence.constraint.engine": lambda it: it.constraint_engine or None,
    "whence.source.method": lambda it: it.source_method or None,
    "whence.label.tenant": lambda it: it.labels.get("tenant"),
}
FINISHED_ROWS: dict[str, Source] = {
    "gen_ai.usage.input_tokens": "num_prompt_tokens",
    "gen_ai.usage.cache_read.input_tokens": "num_cached_prompt_tokens",
    "gen_ai.usage.output_tokens": "num_generated_tokens",
    "whence.generation.queue_ns": "queue_ns",
    "whence.generation.prefill_ns": "prefill_ns",
    "whence.generation.decode_ns": "decode_ns",
    "whence.generation.finish_reason": lambda it: (
        generation_pb2.FinishReason.Name(it.finish_reason).removeprefix("FINISH_REASON_").lower()
    ),
    "gen_ai.response.finish_reasons": lambda it: [
        CONVENTIONAL_REASONS[sequence.finish_reason] for sequence in it.sequences
    ],
    "error.type": "failure.reason",
}
CALL_ROWS: dict[str, Source] = {
    "rpc.system.name": lambda _: "grpc",
    "rpc.method": "method",
    "server.address": "server_address",
    "server.port": "server_port",
    "whence.generation.id": lambda call: call.generation_id or None,
    "whence.error.reason": lambda call: call.error.reason or None,
    "whence.error.field": lambda call: call.error.field or None,
    "whence.error.message": lambda call: call.error.message or None,
}
UNLIKELY_BELOW = 0.01
"""Default of --unlikely-below."""


def count_unlikely(steps: Iterable[step_pb2.Step]) -> dict[str, object]:
    """Return the attributes of a generation that are counted over its steps."""
    listed = list(steps)
    least = min(listed, key=lambda step: (step.logprob, step.sequence_index, step.index))
    num_unlikely = sum(map(_is_unlikely, listed))
    flag: dict[str, object] = {"whence.generation.unlikely": True} if num_unlikely else {}
    return flag | {
        "whence.generation.num_unlikely": num_unlikely,
        "whence.generation.least_likely_sequence": least.sequence_index,
        "whence.generation.least_likely_index": least.index,
        "whence.generation.least_likely_probability": math.exp(least.logprob),
    }


def _is_unlikely(step: step_pb2.Step) -> bool:
    return math.exp(step.logprob) < UNLIKELY_BELOW


CONVENTIONAL_REASONS = {
    generation_pb2.FINISH_REASON_LENGTH: "length",
    generation_pb2.FINISH_REASON_FAILED: "error",
    generation_pb2.FINISH_REASON_CANCELLED: "cancelled",
}


def assert_recorded(tags: Mapping[str, object], recorded: Mapping[str, object]) -> None:
    """Assert that a span has these attributes and no others; doubles are equal as float32."""
    assert tags.keys() == recorded.keys()
    for name, value in recorded.items():
        assert _as_recorded(tags[name], value) == _as_recorded(value, value), name


def _as_recorded(value: Any, like: object) -> object:
    """Return a value in the form of a record's, whose floating-point numbers have 32 bits."""
    if isinstance(like, list):
        return [_as_recorded(item, like[0]) for item in value]
    # A whole number has no fraction in JSON.
    return struct.pack("f", value) if isinstance(like, float) else value


def _above_one(decoding: generation_pb2.Decoding) -> int | None:
    return decoding.num_return_sequences if decoding.num_return_sequences > 1 else None
