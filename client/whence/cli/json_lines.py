"""Objects that `--json` prints, one on each line."""

import json
import math
from collections.abc import Iterator
from typing import Any

from google.protobuf.json_format import MessageToDict
from google.protobuf.message import Message

from whence.content import describe_policy
from whence.generation import GeneratedSequence, GenerationState
from whence.internals import Internals, Layer, Source
from whence.outputs import ToolCall
from whence.summary import list_grades, shorten_float32
from whence.tokens import Candidate, Token
from whence.v1.generation_pb2 import BeamContinuation, BeamRound, GenerationEvent

FIELDS = """\
--json prints one object on each line; "event" names its kind. Absent values are left out, logprobs
are in nats, null is minus infinity (a processor removed the token). A candidate's, source's
or leader's text names bytes that are no character by themselves: "<0xF0 0x9F>".
  started       generation_id, trace_id, span_id, model, model_digest, tokenizer_digest,
                prompt_token_ids, processor_names, decoding, trace, source_method,
                observation: {token_ids, distribution, second_distribution, seed, draw, tables,
                weights}: how each part of the record was obtained,
                upstream: {kind, version, url, model, claimed_files}, upstream_parameters_json,
                constraint_engine: with a constraint,
                content: what the record keeps of texts and ids, if not all: "tokens", "none",
                unrecorded_reason: why the server has it not on record,
                unavailable: {part of the trace: why the model cannot give it},
                adapter: {name, peft_type, digest, base, base_model_digest, weights_digest},
                training_run: {training_run_id, trace_id, span_id, step, record_head}
  prompt_token  as token, with --trace-prompt
  token         sequence_index, index, token_id, text, text_begin_byte, text_end_byte,
                logprob, sampling_logprob, rank, entropy, sampling_entropy,
                candidates: [{token_id, text, logprob, sampling_logprob}],
                requested_logprobs: as candidates, with --logprob-token-ids,
                processors: [{name, num_kept, removed_mass, token_logprob}],
                draw: {noise, runner_up_token_id, margin},
                timing: {elapsed_ns, forward_ns, select_ns, batch_size, context_length},
                token_text, num_chunk_tokens, reasoning_text: of an upstream's token,
                internals: {sources: [{position, token_id, text, share}], self_share,
                sink_share, layers: [{index, share, leader_token_id, leader_text}]},
                with --internals
  beam_round    index, continuations: [{parent, token_id, logprob, score, kept, finished}],
                timing
  finished      generation_id, finish_reason, num_prompt_tokens, num_cached_prompt_tokens,
                num_generated_tokens,
                num_unrecorded_tokens: tokens above that the server lost when it died,
                queue_ns, prefill_ns, decode_ns, failure: {code, reason, message},
                upstream: {model, fingerprint, num_prompt_tokens, num_generated_tokens,
                num_cached_prompt_tokens, seed, has_drafted_tokens, prompt, prompt_token_ids},
                sequences: [{sequence_index, text, token_ids, finish_reason, stop,
                logprob, score, constraint_complete, reasoning,
                tool_calls: [{id, name, arguments_json, text_begin_byte, text_end_byte}]}]
"""


def format_json(value: dict[str, Any]) -> str:
    """Return an object as one line of ASCII JSON, which is safe for every terminal."""
    return json.dumps(value, allow_nan=False, separators=(",", ":"))


def describe_message(message: Message) -> dict[str, Any]:
    """Convert a message by protobuf's JSON mapping, with the field names of the contract."""
    as_dict: dict[str, Any] = MessageToDict(message, preserving_proto_field_name=True)
    return as_dict


def describe_whole_message(message: Message) -> dict[str, Any]:
    """Convert a message by protobuf's JSON mapping, with zero, false and empty fields.

    Absent fields with presence are left out.
    """
    try:
        options: dict[str, Any] = {"always_print_fields_with_no_presence": True}
        return MessageToDict(message, preserving_proto_field_name=True, **options)
    except TypeError:  # before protobuf 5.26 the option had another name
        options = {"including_default_value_fields": True}
        return MessageToDict(message, preserving_proto_field_name=True, **options)


def describe_event(event: GenerationEvent, generation: GenerationState) -> Iterator[dict[str, Any]]:
    """Yield the objects of the newest event of `generation`."""
    match event.WhichOneof("event"):
        case "started":
            yield _describe_started(generation)
        case "prompt_steps":
            for token in generation.prompt_tokens[-len(event.prompt_steps.steps) :]:
                yield {"event": "prompt_token", **describe_token(token)}
        case "steps":
            for token in generation.tokens_of(event):
                yield {"event": "token", **describe_token(token)}
        case "beam_round":
            yield _describe_beam_round(event.beam_round)
        case "finished":
            yield _describe_finished(generation)


def describe_token(token: Token) -> dict[str, Any]:
    """Return a token's fields, as `FIELDS` lists them."""
    return _drop_absent(
        {
            "sequence_index": token.sequence_index,
            "index": token.index,
            "token_id": token.token_id,
            "text": token.text,
            "text_begin_byte": token.text_bytes.start,
            "text_end_byte": token.text_bytes.stop,
            "logprob": _shorten_number(token.logprob),
            "sampling_logprob": _shorten_number(token.sampling_logprob),
            "rank": token.rank,
            "entropy": _shorten_number(token.entropy),
            "sampling_entropy": _shorten_number(token.sampling_entropy),
            "candidates": [_describe_candidate(candidate) for candidate in token.candidates]
            or None,
            "requested_logprobs": [_describe_candidate(one) for one in token.requested_logprobs]
            or None,
            "processors": [_describe_numbers(effect) for effect in token.processors] or None,
            "draw": token.draw and _drop_absent(_describe_numbers(token.draw)),
            "timing": token.timing and token.timing._asdict(),
            "token_text": token.step.token_text or None,
            "num_chunk_tokens": token.num_chunk_tokens,
            "reasoning_text": token.reasoning_text or None,
            "internals": token.internals and _describe_internals(token.internals),
        }
    )


def _describe_internals(internals: Internals) -> dict[str, Any]:
    return _drop_absent(
        {
            "sources": [_describe_source(source) for source in internals.sources] or None,
            "self_share": _shorten_number(internals.self_share),
            "sink_share": _shorten_number(internals.sink_share),
            "layers": [_describe_layer(layer) for layer in internals.layers] or None,
        }
    )


def _describe_source(source: Source) -> dict[str, Any]:
    fields: dict[str, Any] = {"position": source.position}
    if source.token_id is not None:
        fields |= {"token_id": source.token_id, "text": source.text}
    return {**fields, "share": _shorten_number(source.share)}


def _describe_layer(layer: Layer) -> dict[str, Any]:
    fields: dict[str, Any] = {"index": layer.index, "share": _shorten_number(layer.share)}
    if layer.leader_token_id is not None:
        fields |= {"leader_token_id": layer.leader_token_id, "leader_text": layer.leader_text}
    return fields


def _describe_beam_round(beam_round: BeamRound) -> dict[str, Any]:
    # Protobuf's mapping would leave out fields that are 0 or false, the first parent among them.
    timing = beam_round.timing
    return _drop_absent(
        {
            "event": "beam_round",
            "index": beam_round.index,
            "continuations": [_describe_continuation(one) for one in beam_round.continuations],
            "timing": (
                {
                    "elapsed_ns": timing.elapsed_ns,
                    "forward_ns": timing.forward_ns,
                    "select_ns": timing.select_ns,
                    "batch_size": timing.batch_size,
                    "context_length": timing.context_length,
                }
                if beam_round.HasField("timing")
                else None
            ),
        }
    )


def _describe_continuation(continuation: BeamContinuation) -> dict[str, Any]:
    fields: dict[str, Any] = {"parent": continuation.parent}
    if continuation.HasField("token_id"):
        fields["token_id"] = continuation.token_id
    return {
        **fields,
        "logprob": _shorten_number(continuation.logprob),
        "score": _shorten_number(continuation.score),
        "kept": continuation.kept,
        "finished": continuation.finished,
    }


def _describe_candidate(candidate: Candidate) -> dict[str, Any]:
    fields: dict[str, Any] = {} if candidate.token_id is None else {"token_id": candidate.token_id}
    fields |= {
        "text": candidate.text,
        "logprob": _shorten_number(candidate.logprob),
    }
    if candidate.sampling_logprob is not None:
        fields["sampling_logprob"] = _shorten_number(candidate.sampling_logprob)
    return fields


def _describe_started(generation: GenerationState) -> dict[str, Any]:
    started = generation.started
    if started is None:
        return {}
    fields = {
        "event": "started",
        "generation_id": started.generation_id,
        "trace_id": started.trace_id,
        "span_id": started.span_id,
        "model": started.model,
        "model_digest": started.model_digest,
        "tokenizer_digest": started.tokenizer_digest,
        "prompt_token_ids": list(started.prompt_token_ids),
        "processor_names": list(started.processor_names),
        "decoding": describe_message(started.effective_decoding),
        "trace": describe_message(started.effective_trace),
        "source_method": started.source_method,
        "unavailable": dict(sorted(started.unavailable.items())),
    }
    if content := describe_policy(started):
        fields["content"] = content
    if started.unrecorded_reason:
        fields["unrecorded_reason"] = started.unrecorded_reason
    if started.constraint_engine:
        fields["constraint_engine"] = started.constraint_engine
    if started.HasField("configured_decoding"):
        fields["configured_decoding"] = describe_message(started.configured_decoding)
    if started.HasField("observation"):
        fields["observation"] = list_grades(started.observation)
    if started.HasField("upstream"):
        fields["upstream"] = describe_message(started.upstream)
    if started.upstream_parameters_json:
        fields["upstream_parameters_json"] = started.upstream_parameters_json
    if started.HasField("adapter"):
        fields["adapter"] = describe_whole_message(started.adapter)
    if started.HasField("training_run"):
        fields["training_run"] = describe_whole_message(started.training_run)
    return fields


def _describe_finished(generation: GenerationState) -> dict[str, Any]:
    finished = generation.finished
    if finished is None:
        return {}
    return _drop_absent(
        {
            "event": "finished",
            "generation_id": generation.id,
            "finish_reason": generation.finish_reason,
            "num_prompt_tokens": finished.num_prompt_tokens,
            "num_cached_prompt_tokens": finished.num_cached_prompt_tokens
            if finished.HasField("num_cached_prompt_tokens")
            else None,
            "num_generated_tokens": finished.num_generated_tokens,
            "num_unrecorded_tokens": generation.num_unrecorded_tokens or None,
            "queue_ns": finished.queue_ns,
            "prefill_ns": finished.prefill_ns,
            "decode_ns": finished.decode_ns,
            "failure": describe_message(finished.failure) if finished.HasField("failure") else None,
            "upstream": describe_message(finished.upstream)
            if finished.HasField("upstream")
            else None,
            "sequences": [_describe_sequence(sequence) for sequence in generation.sequences],
        }
    )


def _describe_sequence(sequence: GeneratedSequence) -> dict[str, Any]:
    return _drop_absent(
        {
            "sequence_index": sequence.sequence_index,
            "text": sequence.text,
            "token_ids": list(sequence.token_ids),
            "finish_reason": sequence.finish_reason,
            "stop": sequence.stop,
            "logprob": _shorten_number(sequence.logprob),
            "score": _shorten_number(sequence.score),
            "constraint_complete": sequence.constraint_complete,
            "reasoning": sequence.reasoning,
            "tool_calls": [_describe_call(call) for call in sequence.tool_calls] or None,
        }
    )


def _describe_call(call: ToolCall) -> dict[str, Any]:
    return {
        "id": call.id,
        "name": call.name,
        "arguments_json": call.arguments_json,
        "text_begin_byte": call.text_bytes.start,
        "text_end_byte": call.text_bytes.stop,
    }


def _drop_absent(fields: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in fields.items() if value is not None}


def _describe_numbers(record: Any) -> dict[str, Any]:
    return {
        name: _shorten_number(value) if isinstance(value, float) else value
        for name, value in record._asdict().items()
    }


def _shorten_number(value: float | None) -> float | None:
    """Return the fewest digits of a float32; None for values that JSON has no number for."""
    return shorten_float32(value) if value is not None and math.isfinite(value) else None
