"""Data of a generation for the page's program (page.js)."""

import codecs
from collections.abc import Iterable, Sequence
from typing import Any

from google.protobuf.json_format import MessageToDict
from google.protobuf.message import Message

from whence.content import explain_policy
from whence.generation import FinishReason
from whence.internals import find_leader_id
from whence.page.numbers import round_number, round_numbers
from whence.page.told import ToldTokens
from whence.summary import describe_fork, describe_upstream, find_signer, summarise_grades
from whence.v1.generation_pb2 import GenerationFinished, GenerationStarted, SequenceResult
from whence.v1.step_pb2 import Step
from whence.vocabulary import Vocabulary

_NUMBERS = ("logprob", "sampling_logprob", "entropy", "sampling_entropy")
_INTEGERS = ("token_id", "rank")


def make_page_record(
    started: GenerationStarted,
    finished: GenerationFinished | None,
    steps: Iterable[Step],
    prompt_steps: Iterable[Step],
    vocabulary: Vocabulary | None,
) -> dict[str, Any]:
    """Return the record as JSON values; absent values are left out, null is minus infinity.

    Numbers are rounded to five digits.
    """
    sequences: dict[int, list[Step]] = {}
    for step in steps:
        sequences.setdefault(step.sequence_index, []).append(step)
    prompted = list(prompt_steps)
    told = ToldTokens()
    num_prompt_tokens = started.num_prompt_tokens or len(started.prompt_token_ids)
    if not num_prompt_tokens and finished is not None:
        num_prompt_tokens = finished.num_prompt_tokens
    shown = [
        _describe_sequence(index, made, finished, told) for index, made in sorted(sequences.items())
    ]
    used = _collect_used_ids(
        started, (*prompted, *(step for made in sequences.values() for step in made))
    )
    return {
        "generation": _describe_generation(started, finished),
        "prompt": {
            "text": started.prompt,
            "num_tokens": num_prompt_tokens,
            "token_ids": list(started.prompt_token_ids),
            "texts": _list_texts(started.prompt_token_ids, vocabulary),
            "steps": [_describe_step(step, told) for step in prompted],
        },
        "sequences": shown,
        "text": shown[0]["text"] if shown else "",
        "vocabulary": _list_names(used, vocabulary) | told.names,
    }


def _describe_generation(
    started: GenerationStarted, finished: GenerationFinished | None
) -> dict[str, Any]:
    facts: dict[str, Any] = {
        "id": started.generation_id,
        "trace_id": started.trace_id,
        "model": started.model,
        "start_time": started.start_time.ToJsonString() if started.HasField("start_time") else "",
        "strategy": started.effective_decoding.WhichOneof("strategy") or "",
        "decoding": _describe_message(started.effective_decoding),
        "trace": _describe_message(started.effective_trace),
        "processor_names": list(started.processor_names),
        "source_method": started.source_method,
        "unavailable": dict(sorted(started.unavailable.items())),
        "labels": dict(sorted(started.labels.items())),
        "digests": {
            "model": started.model_digest,
            "weights": started.environment.weights_digest,
            "adapter": started.adapter.digest,
            "adapter's weights": started.adapter.weights_digest,
            "tokenizer": started.tokenizer_digest,
            "request": started.request_digest,
        },
        "environment": _describe_message(started.environment),
        "grades": summarise_grades(started),
    }
    if finished is not None and (key_id := find_signer(finished)):
        facts["signed"] = f"by key {key_id}"
    if kept := explain_policy(started):
        facts["content_kept"] = kept
    if started.HasField("upstream"):
        facts["upstream"] = describe_upstream(started.upstream)
    if started.HasField("fork"):
        facts["branch"] = {"of": started.fork.parent_generation_id, "is": describe_fork(started)}
        facts["num_forced_steps"] = started.fork.num_forced_steps
        facts["first_draw_sequence"] = started.fork.first_draw_sequence
    if started.HasField("adapter"):
        facts["adapter"] = _describe_message(started.adapter)
    if started.constraint_engine:
        facts["constraint_engine"] = started.constraint_engine
    if started.HasField("configured_decoding"):
        facts["configured_decoding"] = _describe_message(started.configured_decoding)
    if finished is not None:
        facts["finish_reason"] = FinishReason.from_wire(finished.finish_reason)
        facts["finished"] = {
            "queue_ns": finished.queue_ns,
            "prefill_ns": finished.prefill_ns,
            "decode_ns": finished.decode_ns,
        }
        if finished.HasField("failure"):
            facts["failure"] = f"{finished.failure.message} ({finished.failure.reason})"
    return facts


def _describe_sequence(
    sequence_index: int,
    steps: list[Step],
    finished: GenerationFinished | None,
    told: ToldTokens,
) -> dict[str, Any]:
    sequence: dict[str, Any] = {
        "index": sequence_index,
        "text": "".join(step.text for step in steps),
        "steps": [_describe_step(step, told) for step in steps],
    }
    for result in () if finished is None else finished.sequences:
        if result.sequence_index == sequence_index:
            sequence["finish_reason"] = FinishReason.from_wire(result.finish_reason)
            sequence["stop"] = result.stop
            if result.HasField("constraint_complete"):
                sequence["constraint_complete"] = result.constraint_complete
            sequence |= _describe_parts(result, steps)
    return sequence


def _describe_parts(result: SequenceResult, steps: list[Step]) -> dict[str, Any]:
    """Return tool calls with their first steps, and the number of steps of reasoning."""
    parts: dict[str, Any] = {}
    if result.tool_calls:
        parts["tool_calls"] = [
            {
                "id": parsed.call.id,
                "name": parsed.call.name,
                "arguments": parsed.call.arguments_json,
                "step": _find_step(steps, parsed.text_begin_byte),
            }
            for parsed in result.tool_calls
        ]
    if result.HasField("reasoning"):
        place = range(result.reasoning.text_begin_byte, result.reasoning.text_end_byte)
        parts["num_reasoning_steps"] = sum(
            step.text_begin_byte in place or bool(step.reasoning_text) for step in steps
        )
    return parts


def _find_step(steps: list[Step], byte: int) -> int | None:
    """Return the index of the step whose text holds a byte of the output; None for none."""
    for step in steps:
        if step.text_begin_byte <= byte < step.text_end_byte:
            return step.index
    return None


def _describe_step(step: Step, told: ToldTokens) -> dict[str, Any]:
    shown: dict[str, Any] = {"index": step.index, "text": step.text}
    there = {field.name: value for field, value in step.ListFields()}
    shown |= {name: there[name] for name in _INTEGERS if name in there}
    shown |= {name: round_number(there[name]) for name in _NUMBERS if name in there}
    if step.HasField("candidates"):
        shown["candidates"] = {
            "token_ids": list(step.candidates.token_ids),
            "logprobs": round_numbers(step.candidates.logprobs),
            "sampling_logprobs": round_numbers(step.candidates.sampling_logprobs),
        }
    if step.HasField("requested_logprobs"):
        shown["requested"] = {
            "logprobs": round_numbers(step.requested_logprobs.logprobs),
            "sampling_logprobs": round_numbers(step.requested_logprobs.sampling_logprobs),
        }
    if step.HasField("processors"):
        shown["processors"] = {
            "num_kept": list(step.processors.num_kept),
            "removed_mass": round_numbers(step.processors.removed_mass),
            "token_logprobs": round_numbers(step.processors.token_logprobs),
        }
    if step.HasField("draw"):
        shown["draw"] = _describe_draw(step)
    if step.HasField("timing"):
        timing = step.timing
        shown["timing"] = {
            "elapsed_ns": timing.elapsed_ns,
            "forward_ns": timing.forward_ns,
            "select_ns": timing.select_ns,
            "batch_size": timing.batch_size,
            "context_length": timing.context_length,
        }
    if step.HasField("internals"):
        shown |= _describe_internals(step)
    if step.token_text or step.candidates.texts:
        shown |= told.describe(step)
    return shown


def _describe_draw(step: Step) -> dict[str, Any]:
    draw: dict[str, Any] = {"noise": round_number(step.draw.noise)}
    if step.draw.HasField("runner_up_token_id"):
        draw["runner_up_token_id"] = step.draw.runner_up_token_id
    if step.draw.HasField("margin"):
        draw["margin"] = round_number(step.draw.margin)
    return draw


def _describe_internals(step: Step) -> dict[str, Any]:
    internals = step.internals
    shown: dict[str, Any] = {}
    if internals.source_positions or internals.HasField("self_share"):
        shown["sources"] = {
            "positions": list(internals.source_positions),
            "shares": round_numbers(internals.source_shares),
        }
        if internals.HasField("self_share"):
            shown["sources"]["self_share"] = round_number(internals.self_share)
        if internals.HasField("sink_share"):
            shown["sources"]["sink_share"] = round_number(internals.sink_share)
    if internals.layer_shares:
        shown["layers"] = {
            "shares": round_numbers(internals.layer_shares),
            "leaders": [find_leader_id(step, leader) for leader in internals.layer_leaders],
        }
    return shown


def _collect_used_ids(started: GenerationStarted, steps: Sequence[Step]) -> set[int]:
    used = {*started.prompt_token_ids, *started.effective_trace.logprob_token_ids}
    for step in steps:
        used.update(step.candidates.token_ids)
        if step.HasField("token_id"):
            used.add(step.token_id)
        if step.draw.HasField("runner_up_token_id"):
            used.add(step.draw.runner_up_token_id)
    return used


def _list_names(used: set[int], vocabulary: Vocabulary | None) -> dict[str, str]:
    if vocabulary is None:
        return {}
    return {str(token_id): vocabulary.text_of(token_id) for token_id in sorted(used)}


def _list_texts(token_ids: Iterable[int], vocabulary: Vocabulary | None) -> list[str]:
    """Return each token's text; a character belongs to the token that completes it."""
    if vocabulary is None:
        return []
    decoder = codecs.getincrementaldecoder("utf-8")("replace")
    return [decoder.decode(vocabulary.bytes_of(token_id)) for token_id in token_ids]


def _describe_message(message: Message) -> dict[str, Any]:
    as_dict: dict[str, Any] = MessageToDict(message, preserving_proto_field_name=True)
    return as_dict
