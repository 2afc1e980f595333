"""Settings of a branch: its parent's, and what its request sets in their place."""

import struct
from collections.abc import Iterator
from operator import attrgetter

from google.protobuf.descriptor import FieldDescriptor

from whence.v1 import generation_pb2 as pb
from whence_server.domain.content import ContentPolicy
from whence_server.domain.decoding import (
    DECODING_OPTIONS,
    DecodingRequest,
    GenerationDefaults,
    Strategy,
)
from whence_server.domain.errors import FieldViolation, InvalidRequestError
from whence_server.generation.defaults import resolve_value

_FIELDS = pb.Decoding.DESCRIPTOR.fields_by_name
_KEPT_OF_FORCED = ("stop", "stop_token_ids", "ignore_eos", "add_special_tokens")
"""Settings that a forced continuation has too."""


def merge_decoding(
    parent: pb.Decoding, request: pb.ForkGenerationRequest, defaults: GenerationDefaults
) -> pb.Decoding:
    """Return the settings that a branch asks for.

    Args:
        parent: the parent's effective settings.
        request: the request of the branch.
        defaults: the model's generation config.

    Raises:
        InvalidRequestError: the request asks for a forced continuation, or resets what is no field.
    """
    if violations := list(_find_faults(request)):
        raise InvalidRequestError(*violations)
    merged = _copy_parent(parent)
    for name in request.reset_decoding:
        merged.ClearField(name)  # type: ignore[arg-type]  # checked above
    asked = request.decoding
    for field, _ in asked.ListFields():
        if field.is_repeated or field.name == "constraint":
            merged.ClearField(field.name)  # type: ignore[arg-type]  # one of its fields
    merged.MergeFrom(asked)
    if not merged.HasField("beam_search") and not asked.HasField("num_return_sequences"):
        # One sequence goes on; the parent's others have draws of their own.
        merged.num_return_sequences = 1
    _leave_defaults(merged, asked, defaults)
    return merged


def merge_trace(
    started: pb.GenerationStarted, asked: pb.TraceOptions, most: ContentPolicy
) -> pb.TraceOptions:
    """Return the trace options that a branch asks for.

    Args:
        started: start of the parent.
        asked: options of the request.
        most: the server's content policy.

    Raises:
        InvalidRequestError: the branch would keep more of the parent's content than the parent.
    """
    # Higher policies keep less; records from before them have none, and everything.
    if asked.content and asked.content < started.content:
        kept = ContentPolicy(started.content).spelling
        raise InvalidRequestError(
            FieldViolation(
                "trace.content",
                f"asks for more than the parent's record keeps ('{kept}'), whose content a branch "
                "has: leave it unset, or ask for less",
            )
        )
    merged = pb.TraceOptions()
    merged.CopyFrom(started.effective_trace)
    # A branch keeps no more than its parent, and no more than the server does today.
    if started.content <= most.value:
        merged.ClearField("content")
    else:
        merged.content = started.content
    if asked.logprob_token_ids:
        merged.ClearField("logprob_token_ids")
    merged.MergeFrom(asked)
    return merged


def _find_faults(request: pb.ForkGenerationRequest) -> Iterator[FieldViolation]:
    if request.decoding.HasField("forced"):
        yield FieldViolation(
            "decoding.forced", "cannot be asked for in a branch: give the tokens as `instead`"
        )
    for place, name in enumerate(request.reset_decoding[: len(_FIELDS)]):
        if name not in _FIELDS or name == "forced":
            yield FieldViolation(
                f"reset_decoding[{place}]", "is no field of Decoding that could be reset"
            )
    if len(request.reset_decoding) > len(_FIELDS):
        yield FieldViolation(
            "reset_decoding",
            f"has {len(request.reset_decoding)} names; Decoding has {len(_FIELDS)} fields",
        )


def _copy_parent(parent: pb.Decoding) -> pb.Decoding:
    merged = pb.Decoding()
    merged.CopyFrom(parent)
    if parent.HasField("forced"):
        for name in {*_FIELDS} - {*_KEPT_OF_FORCED, "forced"}:
            merged.ClearField(name)  # type: ignore[arg-type]  # one of its fields
        merged.forced.Clear()
        merged.forced.SetInParent()
    return merged


def _leave_defaults(merged: pb.Decoding, asked: pb.Decoding, defaults: GenerationDefaults) -> None:
    """Clear numbers that are the model's defaults.

    The record rounds them to float32, so that the branch would have others than the parent.
    """
    strategy = merged.WhichOneof("strategy")
    if strategy is None:
        return
    whole, own = pb.GenerateRequest(decoding=merged), pb.GenerateRequest(decoding=asked)
    for option in DECODING_OPTIONS:
        if option.strategy_name not in {"", strategy}:
            continue
        holder, given = attrgetter(option.message)(whole), attrgetter(option.message)(own)
        if holder.DESCRIPTOR.fields_by_name[option.name].type != FieldDescriptor.TYPE_FLOAT:
            continue
        if not holder.HasField(option.name) or given.HasField(option.name):
            continue
        default = resolve_value(option, DecodingRequest(), defaults, Strategy(strategy))
        if getattr(holder, option.name) == _round(default):
            holder.ClearField(option.name)
    merged.CopyFrom(whole.decoding)


def _round(value: float) -> float:
    rounded: float = struct.unpack("<f", struct.pack("<f", value))[0]
    return rounded
