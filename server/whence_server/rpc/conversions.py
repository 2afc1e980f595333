"""Conversion of requests from protobuf to the domain, with the field of every fault."""

import uuid
from collections.abc import Iterable, Mapping
from dataclasses import replace
from operator import attrgetter
from typing import Any

from google.protobuf import duration_pb2
from google.protobuf.message import Message

from whence.v1 import generation_pb2
from whence_server.domain.decoding import (
    DECODING_OPTIONS,
    TRACE_OPTIONS,
    DecodingRequest,
    Strategy,
    TokenInput,
    TraceRequest,
)
from whence_server.domain.errors import FieldViolation, InvalidRequestError
from whence_server.domain.limits import Limits
from whence_server.domain.options import Kind, Option
from whence_server.domain.requests import GenerationInput, GenerationRequest
from whence_server.rpc.chats import convert_arguments, convert_chat
from whence_server.rpc.constraints import convert_constraint
from whence_server.rpc.counts import check_counts
from whence_server.rpc.request_digest import compute_digests


def convert_request(request: generation_pb2.GenerateRequest, limits: Limits) -> GenerationRequest:
    """Convert a request to the domain's type.

    Entries of bounded fields are counted before they are copied: a message of a few megabytes
    can hold millions of entries.

    Raises:
        InvalidRequestError: fields break rules; the error names all of them.
    """
    check_counts(request, limits)
    violations: list[FieldViolation] = []
    struct = convert_arguments(request.chat, limits, violations)
    converted = GenerationRequest(
        input=_convert_input(request, struct, limits, violations),
        digest="",
        model=request.model,
        decoding=_convert_decoding(request, limits, violations),
        size_bytes=request.ByteSize(),
        trace=TraceRequest(**read_options(TRACE_OPTIONS, request, violations)),
        generation_id=_parse_generation_id(request.generation_id, violations),
        labels=read_labels(request.labels, limits, violations),
        disconnect_grace_s=_read_grace_s(request, limits, violations),
        max_duration_s=_read_duration_s(request, violations),
        adapter=request.adapter,
        upstream_parameters_json=request.upstream_parameters_json,
    )
    if violations:
        raise InvalidRequestError(*violations)
    digests = compute_digests(request, struct)
    return replace(converted, digest=digests.digest, former_digest=digests.former)


def require_generation_id(generation_id: str, field: str = "generation_id") -> str:
    """Return the generation id of a request's field; raise if it is missing or malformed.

    Raises:
        InvalidRequestError: it is empty or not a UUID.
    """
    violations: list[FieldViolation] = []
    if not generation_id:
        violations.append(FieldViolation(field, "must name a generation"))
    _parse_generation_id(generation_id, violations, field)
    if violations:
        raise InvalidRequestError(*violations)
    return generation_id


def _convert_input(
    request: generation_pb2.GenerateRequest,
    struct: str,
    limits: Limits,
    violations: list[FieldViolation],
) -> GenerationInput:
    kind = request.WhichOneof("input")
    if kind == "prompt":
        if not request.prompt:
            violations.append(FieldViolation("prompt", "must not be empty"))
        return request.prompt
    if kind == "tokens":
        return TokenInput(tuple(request.tokens.token_ids))
    if kind == "chat":
        return convert_chat(request.chat, struct, limits, violations)
    violations.append(FieldViolation("input", "one of `prompt`, `chat` or `tokens` must be set"))
    return ""


def _convert_decoding(
    request: generation_pb2.GenerateRequest, limits: Limits, violations: list[FieldViolation]
) -> DecodingRequest:
    decoding = request.decoding
    if decoding.num_return_sequences > limits.max_return_sequences:
        violations.append(
            FieldViolation(
                "decoding.num_return_sequences",
                f"must be from 1 to {limits.max_return_sequences}, "
                f"not {decoding.num_return_sequences}",
            )
        )
    chosen = decoding.WhichOneof("strategy")
    return DecodingRequest(
        strategy=Strategy(chosen) if chosen else None,
        forced=_convert_forced(decoding, violations),
        **read_options(DECODING_OPTIONS, request, violations),
    )


def read_options(
    options: Iterable[Option],
    request: Message,
    violations: list[FieldViolation],
) -> dict[str, Any]:
    """Return the values of options by their names; None, or empty, where they are unset.

    Args:
        options: the options to read.
        request: a message with the fields `decoding` or `trace`, in which the options are.
        violations: receives the faults.
    """
    values = {}
    for option in options:
        try:
            values[option.name] = _read_value(option, attrgetter(option.message)(request))
        except ValueError:
            kind = type(option.neutral).__name__
            violations.append(FieldViolation(option.path, f"is no {kind} value"))
        except InvalidRequestError as error:
            violations += error.violations
    return values


def _read_value(option: Option, message: Message) -> Any:
    """Return an option's value in the domain.

    Raises:
        ValueError: its number is none of the enum's.
        InvalidRequestError: its message lacks a part.
    """
    value = getattr(message, option.name)
    match option.kind:
        case Kind.LIST:
            return tuple(value)
        case Kind.MAP:
            return tuple(value.items())
        case Kind.CHOICE:
            return type(option.neutral)(value) if value else None
        case Kind.CONSTRAINT:
            return convert_constraint(value) if message.HasField(option.name) else None
    has_presence = message.DESCRIPTOR.fields_by_name[option.name].has_presence
    return value if not has_presence or message.HasField(option.name) else None


def _convert_forced(
    decoding: generation_pb2.Decoding, violations: list[FieldViolation]
) -> str | TokenInput | None:
    if decoding.WhichOneof("strategy") != "forced":
        return None
    kind = decoding.forced.WhichOneof("continuation")
    if kind == "text":
        return decoding.forced.text
    if kind == "tokens":
        return TokenInput(tuple(decoding.forced.tokens.token_ids))
    violations.append(
        FieldViolation("decoding.forced.continuation", "one of `text` or `tokens` must be set")
    )
    return None


def _parse_generation_id(
    generation_id: str, violations: list[FieldViolation], field: str = "generation_id"
) -> str:
    if not generation_id:
        return ""
    try:
        canonical = str(uuid.UUID(generation_id))
    except ValueError:
        canonical = None
    if canonical != generation_id:
        violations.append(
            FieldViolation(
                field,
                "must be a UUID in lower-case canonical form, such as "
                "'6f1c2f0e-1d2b-4c57-9a41-0c3f5f7f9d10'",
            )
        )
    return generation_id


def read_labels(
    given: Mapping[str, str], limits: Limits, violations: list[FieldViolation]
) -> dict[str, str]:
    """Return the labels of a request; their number is checked elsewhere."""
    labels = dict(given)
    for key, value in labels.items():
        if not key:
            violations.append(FieldViolation("labels", "a label's key must not be empty"))
        elif max(len(key), len(value)) > limits.max_label_characters:
            violations.append(
                FieldViolation(
                    f"labels[{key[:64]}]",
                    f"key and value may have at most {limits.max_label_characters} characters",
                )
            )
    return labels


def _read_grace_s(
    request: generation_pb2.GenerateRequest, limits: Limits, violations: list[FieldViolation]
) -> float:
    if not request.HasField("disconnect_grace"):
        # Only a caller who knows the id can come back to the generation.
        return limits.default_disconnect_grace_s if request.generation_id else 0.0
    grace_s = _convert_to_seconds(request.disconnect_grace)
    if not 0 <= grace_s <= limits.max_disconnect_grace_s:
        violations.append(
            FieldViolation(
                "disconnect_grace",
                f"must be from 0 to {limits.max_disconnect_grace_s} s, not {grace_s:g} s",
            )
        )
    return grace_s


def _read_duration_s(
    request: generation_pb2.GenerateRequest, violations: list[FieldViolation]
) -> float | None:
    if not request.HasField("max_duration"):
        return None
    duration_s = _convert_to_seconds(request.max_duration)
    if duration_s <= 0:
        violations.append(
            FieldViolation("max_duration", f"must be more than 0 s, not {duration_s:g} s")
        )
    return duration_s


def _convert_to_seconds(duration: duration_pb2.Duration) -> float:
    return duration.seconds + duration.nanos / 1e9


def choose_page_size(asked: int, default: int, largest: int) -> int:
    """Return the page size to use, within bounds.

    Raises:
        InvalidRequestError: it is negative.
    """
    if asked < 0:
        raise InvalidRequestError(FieldViolation("page_size", f"must not be negative: {asked}"))
    return min(asked or default, largest)
