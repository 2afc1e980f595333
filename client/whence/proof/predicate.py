"""Predicate of a statement about a generation, as its entries on record imply it.

The server makes statements by these functions. Who checks a bundle applies them to the entries that
the bundle shows, and compares.
"""

import hashlib
import json
from functools import cache, lru_cache
from typing import Any

from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.message import Message

from whence.proof.leaves import commit_to_ids, commit_to_text
from whence.proof.times import spell_time
from whence.v1 import generation_pb2, observation_pb2

STATEMENT_TYPE = "https://in-toto.io/Statement/v1"
PREDICATE_TYPE = "urn:whence:generation:1"
TREE = "rfc9162-sha256"

_64_BITS = frozenset({FieldDescriptor.CPPTYPE_UINT64, FieldDescriptor.CPPTYPE_INT64})
_SAMPLING = "exponential race; Philox4x32-10 of (seed; token id, index, sequence)"


def describe_start(
    started: generation_pb2.GenerationStarted, prompt_key: bytes, ids_commitment: str = ""
) -> dict[str, Any]:
    """Return the parts of a predicate that a generation's start implies.

    Args:
        started: the start, as it is on record.
        prompt_key: key of the commitments to the prompt.
        ids_commitment: commitment to the prompt's ids, if it has been computed.
    """
    found: dict[str, Any] = {
        "generationId": started.generation_id,
        "model": _describe_model(started),
        "environment": _describe_environment(started.environment.SerializeToString()),
        "prompt": _describe_prompt(started, prompt_key, ids_commitment),
        "decoding": _describe_decoding(started),
        "contentPolicy": _list_policies().get(started.content, str(started.content)),
        "startTime": spell_time(started.start_time.ToNanoseconds()),
    }
    if started.effective_decoding.sample.HasField("seed"):
        found["rng"] = _SAMPLING
    if started.HasField("training_run"):
        run = started.training_run
        found["trainingRun"] = {
            "id": run.training_run_id,
            "step": str(run.step),
            "recordHead": run.record_head,
        }
    if started.HasField("observation") and (
        started.HasField("upstream") or started.HasField("recorded")
    ):
        found["grades"] = _describe_grades(started.observation)
    if started.HasField("upstream"):
        upstream = started.upstream
        found["upstream"] = _leave_out_empty(
            kind=upstream.kind, version=upstream.version, model=upstream.model
        )
    if started.HasField("recorded"):
        found["recordedBy"] = started.recorded.library
    if started.HasField("fork"):
        found["fork"] = _describe_fork(started.fork)
    if started.owner:
        found["caller"] = started.owner
    return found


def describe_finish(finished: generation_pb2.GenerationFinished) -> dict[str, Any]:
    """Return the parts of a predicate that a generation's end implies."""
    reasons = _list_finish_reasons()
    return {
        "endTime": spell_time(finished.end_time.ToNanoseconds()),
        "results": {
            "finishReason": reasons.get(finished.finish_reason, str(finished.finish_reason)),
            "numPromptTokens": finished.num_prompt_tokens,
            "numGeneratedTokens": finished.num_generated_tokens,
            "sequences": [
                reasons.get(result.finish_reason, str(result.finish_reason))
                for result in finished.sequences
            ],
        },
    }


def _describe_decoding(started: generation_pb2.GenerationStarted) -> dict[str, Any]:
    """Return the settings that are numbers, and the names of those that are content."""
    decoding = started.effective_decoding
    found, content = _list_numbers(decoding)
    strategy = decoding.WhichOneof("strategy")
    if strategy is not None:
        content.remove(strategy)
        numbers, texts = _list_numbers(getattr(decoding, strategy))
        found |= {"strategy": strategy, **numbers}
        content += texts
    if content:
        found["inRecordOnly"] = sorted(content)
    if started.HasField("configured_decoding"):
        numbers, others = _list_numbers(started.configured_decoding)
        found["configured"] = numbers | ({"inRecordOnly": sorted(others)} if others else {})
    if started.processor_names:
        found["processors"] = list(started.processor_names)
    return found


def _list_numbers(message: Message) -> tuple[dict[str, Any], list[str]]:
    """Return a message's own numbers by name, and the names of set fields of other kinds."""
    numbers: dict[str, Any] = {}
    others: list[str] = []
    for field, value in message.ListFields():
        name, is_long = _name_field(field)
        if not isinstance(value, int | float):
            others.append(name)
        elif is_long:
            # JSON's numbers are doubles for many readers: a seed may have 64 bits.
            numbers[name] = str(value)
        else:
            numbers[name] = value
    return numbers, others


# Properties of a descriptor are looked up each time, and descriptors live as long as the process.
@lru_cache(maxsize=512)
def _name_field(field: FieldDescriptor) -> tuple[str, bool]:
    """Return a field's name, and whether it is a number of 64 bits."""
    return field.name, field.cpp_type in _64_BITS


def _describe_model(started: generation_pb2.GenerationStarted) -> dict[str, Any]:
    found = _leave_out_empty(
        name=started.model,
        digest=started.model_digest,
        weightsDigest=started.environment.weights_digest,
        tokenizerDigest=started.tokenizer_digest,
        chatTemplateDigest=started.chat.template_digest,
    )
    if started.HasField("adapter"):
        found["adapter"] = _leave_out_empty(
            name=started.adapter.name,
            digest=started.adapter.digest,
            weightsDigest=started.adapter.weights_digest,
        )
    return found


@cache
def _list_finish_reasons() -> dict[int, str]:
    return _list_names(generation_pb2.FinishReason.DESCRIPTOR)


@cache
def _list_policies() -> dict[int, str]:
    return _list_names(generation_pb2.ContentPolicy.DESCRIPTOR)


@lru_cache(maxsize=8)
def _describe_environment(serialised: bytes) -> dict[str, Any]:
    environment = generation_pb2.Environment.FromString(serialised)
    found = {
        field.name: value
        for field, value in environment.ListFields()
        if isinstance(value, str | int | float)
    }
    spelled = json.dumps(found, sort_keys=True, separators=(",", ":")).encode()
    return {**found, "digest": hashlib.sha256(spelled).hexdigest()}


def _describe_prompt(
    started: generation_pb2.GenerationStarted, prompt_key: bytes, ids_commitment: str
) -> dict[str, Any]:
    ids = started.prompt_token_ids
    found: dict[str, Any] = {"numTokens": started.num_prompt_tokens}
    if started.prompt:
        found["textCommitment"] = commit_to_text(prompt_key, started.prompt)
    if ids:
        found["idsCommitment"] = ids_commitment or commit_to_ids(prompt_key, ids)
    if started.redactions:
        found["redacted"] = True
    return found


def _describe_fork(fork: generation_pb2.Fork) -> dict[str, Any]:
    return {
        "parent": fork.parent_generation_id,
        "sequence": fork.sequence_index,
        "step": fork.step,
        "numForcedSteps": fork.num_forced_steps,
        "firstDrawSequence": fork.first_draw_sequence,
        "changesPrompt": fork.changes_prompt,
        "changedSettings": list(fork.changed_settings),
    }


def _describe_grades(observation: observation_pb2.Observation) -> dict[str, str]:
    return {
        field.name: field.enum_type.values_by_number[value].name
        if value in field.enum_type.values_by_number
        else str(value)
        for field, value in observation.ListFields()
        if field.enum_type is not None
    }


def _list_names(descriptor: Any) -> dict[int, str]:
    return {value.number: value.name for value in descriptor.values}


def _leave_out_empty(**fields: str) -> dict[str, Any]:
    return {name: value for name, value in fields.items() if value}
