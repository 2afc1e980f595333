"""Difference of a branch from its parent, in words."""

from collections.abc import Iterator
from functools import reduce
from typing import Any, cast

from google.protobuf.json_format import MessageToDict

from whence.summary.quoting import quote_briefly
from whence.v1.generation_pb2 import GenerationStarted

_MAX_VALUE_CHARACTERS = 40


def list_differences(started: GenerationStarted) -> list[str]:
    """Return what a branch has that its parent has not, each in a few words.

    Args:
        started: start of a branch.
    """
    fork = started.fork
    found = []
    num_other = fork.num_forced_steps - fork.step
    if started.effective_decoding.HasField("forced"):
        found += ["another given token"] if fork.HasField("replaced_token_id") else []
    elif num_other:
        found.append("another token" if num_other == 1 else f"{num_other} other tokens")
    if fork.changes_prompt:
        found.append("another prompt")
    return [*found, *_list_settings(started)]


def describe_fork(started: GenerationStarted) -> str:
    """Return a branch's place in its parent, and its differences, in one line."""
    fork = started.fork
    place = f"step {fork.step:,}"
    if fork.sequence_index:
        place += f" of sequence {fork.sequence_index}"
    return f"from {place}: {', '.join(list_differences(started)) or 'nothing differs'}"


def _list_settings(started: GenerationStarted) -> Iterator[str]:
    theirs = _read(started.fork.parent_decoding)
    ours = _read(started.effective_decoding)
    strategies = [
        message.WhichOneof("strategy")
        for message in (started.effective_decoding, started.fork.parent_decoding)
    ]
    if f"decoding.{strategies[0]}" in started.fork.changed_settings:
        yield f"{strategies[0]} instead of {strategies[1]}"
    for path in started.fork.changed_settings:
        holder, *names = path.split(".")
        if holder == "model_digest":
            yield "other files of the model, with the same weights"
            continue
        if holder != "decoding":
            yield f"another {names[-1] if names else holder} of the generation config"
            continue
        if names[0] in strategies and len(names) == 1:
            continue
        yield f"{names[-1]} {_show(theirs, names)} -> {_show(ours, names)}"


def _read(message: Any) -> dict[str, Any]:
    return MessageToDict(
        message, preserving_proto_field_name=True, always_print_fields_with_no_presence=True
    )


def _show(values: dict[str, Any], names: list[str]) -> str:
    value: Any = reduce(lambda found, name: (found or {}).get(name), names, cast("Any", values))
    if value is None or value in ([], {}):
        return "none"
    if isinstance(value, float):
        return f"{value:g}"
    if isinstance(value, dict):
        return "set"
    # JSON has integers of 64 bits as texts.
    if isinstance(value, str) and not value.isdecimal():
        return quote_briefly(value, _MAX_VALUE_CHARACTERS)
    return str(value)
