"""Conversion of keyword arguments to requests.

Only values that protobuf cannot represent, and contradictions, are refused here; the server, which
knows the model, checks everything else.
"""

import uuid
from collections.abc import Mapping, MutableMapping, Sequence
from datetime import datetime
from difflib import get_close_matches
from typing import Any

from google.protobuf.message import Message

from whence.arguments import (
    convert_seconds,
    convert_token_ids,
    encode_json,
    find_choice,
    name_errors,
    require_mapping,
    require_text,
    require_texts,
)
from whence.constraints import encode_schema, refuse_contradicting
from whence.messages import add_message, encode_tools
from whence.options import OPTIONS, FilterOptions, GenerateOptions, Option, Prompt
from whence.v1 import generation_pb2 as pb
from whence.v1 import trace_pb2

DEFAULT_DISCONNECT_GRACE_S = 60.0

_STRATEGIES = {
    "greedy": "greedy",
    "sample": "sampling",
    "beam_search": "beam search",
    "forced": "a forced continuation",
}
"""Values in words, by their fields in the contract."""


def generate_request(prompt: Prompt | None, options: GenerateOptions) -> pb.GenerateRequest:
    """Return the request of a call of `generate`, with a generation id.

    Raises:
        TypeError: an unknown option, a value of the wrong type, or not exactly one of
            `prompt` and `messages`.
        ValueError: a value that the wire cannot carry, or two options that contradict.
    """
    given = {name: value for name, value in options.items() if value is not None}
    refuse_unknown(given, GenerateOptions.__annotations__)
    request = pb.GenerateRequest(
        generation_id=require_text("generation_id", str(given.get("generation_id", uuid.uuid4()))),
        model=require_text("model", given.get("model", "")),
        adapter=require_text("adapter", given.get("adapter", "")),
        upstream_parameters_json=_encode_parameters(given),
    )
    set_input(request, prompt, given)
    asked = make_options_request(given)
    if asked.decoding.ListFields():
        request.decoding.CopyFrom(asked.decoding)
    if asked.trace.ListFields():
        request.trace.CopyFrom(asked.trace)
    set_labels(request.labels, given)
    grace = given.get("disconnect_grace_s", DEFAULT_DISCONNECT_GRACE_S)
    request.disconnect_grace.CopyFrom(convert_seconds("disconnect_grace_s", grace))
    refuse_contradicting(given)
    if "max_duration_s" in given:
        longest = convert_seconds("max_duration_s", given["max_duration_s"])
        request.max_duration.CopyFrom(longest)
    return request


def _encode_parameters(given: Mapping[str, Any]) -> str:
    name = "upstream_parameters"
    return encode_json(name, require_mapping(name, given[name])) if name in given else ""


def make_filter(options: FilterOptions) -> trace_pb2.GenerationFilter:
    """Return the filter of a call of `list` or `watch`.

    Raises:
        TypeError: an unknown option, or a value of the wrong type.
        ValueError: a time without a time zone, or text that the wire cannot carry.
    """
    given = {name: value for name, value in options.items() if value is not None}
    refuse_unknown(given, FilterOptions.__annotations__)
    wanted = trace_pb2.GenerationFilter(
        model=require_text("model", given.get("model", "")),
        trace_id=require_text("trace_id", given.get("trace_id", "")),
        parent_generation_id=require_text("parent", str(given.get("parent", ""))),
    )
    set_labels(wanted.labels, given)
    set_times(wanted, given)
    return wanted


def set_times(message: Any, given: Mapping[str, object]) -> None:
    """Set `start_after` and `start_before` of a filter's message.

    Raises:
        TypeError: a value is no datetime.
        ValueError: a time without a time zone.
    """
    for name in ("start_after", "start_before"):
        time = given.get(name)
        if not isinstance(time, datetime):
            if time is not None:
                raise TypeError(f"{name} must be a datetime, not {type(time).__name__}")
        elif time.tzinfo is None:
            raise ValueError(f"{name}: {time!r} has no time zone; give one, such as datetime.UTC")
        else:
            getattr(message, name).FromDatetime(time)


def refuse_unknown(given: Mapping[str, object], known: Mapping[str, object]) -> None:
    """Refuse options that are not known.

    Raises:
        TypeError: there is one.
    """
    for name in given:
        if name not in known:
            near = get_close_matches(name, known, n=1)
            hint = f"; did you mean {near[0]!r}?" if near else ""
            raise TypeError(f"there is no option {name!r}{hint}")


def set_labels(labels: MutableMapping[str, str], given: Mapping[str, Any]) -> None:
    """Set the labels of a message from options."""
    for key, value in require_mapping("labels", given.get("labels", {})).items():
        labels[require_text("labels", key)] = require_text(f"labels[{key!r}]", value)


def set_input(request: pb.GenerateRequest, prompt: Prompt | None, given: dict[str, Any]) -> None:
    """Set the prompt or the conversation of a request.

    Raises:
        TypeError: not exactly one of them is given.
        ValueError: the wire cannot carry it, or an option of a conversation is given without one.
    """
    messages = given.get("messages")
    if prompt is not None and messages is not None:
        raise TypeError("`prompt` and `messages` contradict: give one of them")
    for option in ("tools", "continue_final_message", "template_arguments", "template_name"):
        if option in given and messages is None:
            raise ValueError(f"`{option}` is for a chat template: give `messages` with it")
    if messages is not None:
        _set_chat(request.chat, messages, given)
    elif isinstance(prompt, str):
        request.prompt = require_text("prompt", prompt)
    elif prompt is not None:
        request.tokens.CopyFrom(convert_token_ids("prompt", prompt))
    else:
        raise TypeError("there is nothing to continue: give `prompt` or `messages`")


def _set_chat(chat: pb.ChatInput, messages: Sequence[Any], given: dict[str, Any]) -> None:
    chat.SetInParent()
    for index, message in enumerate(messages):
        add_message(chat, message, f"messages[{index}]")
    if "tools" in given:
        chat.tools_json = encode_tools(given["tools"])
    chat.template_name = require_text("template_name", given.get("template_name", ""))
    arguments = _join_arguments(given)
    if arguments:
        chat.template_arguments_json = encode_json("template_arguments", arguments)


def _join_arguments(given: dict[str, Any]) -> Mapping[str, Any]:
    """Return the template's arguments, among them those that are options of their own."""
    arguments = require_mapping("template_arguments", given.get("template_arguments", {}))
    name = "continue_final_message"
    if name not in given:
        return arguments
    if name in arguments:
        raise ValueError(f"`{name}` is an option and a template argument: give one of them")
    return {**arguments, name: given[name]}


def make_options_request(given: dict[str, Any]) -> pb.GenerateRequest:
    """Return a request with `decoding` and `trace` alone."""
    asked = pb.GenerateRequest()
    strategy = _choose_strategy(given)
    for name, option in OPTIONS.items():
        if name in given and _find_strategy(option) in {"", strategy}:
            *parents, field = option.path.split(".")
            message: Message = asked
            for parent in parents:
                message = getattr(message, parent)
            _set(message, field, name, option, given[name])
    return asked


def _find_strategy(option: Option) -> str:
    """Return the strategy that an option asks for, "" for none."""
    name = option.path.split(".")[1]
    return name if name in _STRATEGIES else ""


def _choose_strategy(given: dict[str, Any]) -> str:
    asked = [
        (strategy, name)
        for name, option in OPTIONS.items()
        # `greedy=False` asks for nothing; a temperature of 0 does.
        if (strategy := _find_strategy(option)) and given.get(name, False) is not False
    ]
    for strategy, name in asked[1:]:
        first_strategy, first_name = asked[0]
        if strategy != first_strategy:
            raise ValueError(
                f"`{first_name}` asks for {_STRATEGIES[first_strategy]} and `{name}` for "
                f"{_STRATEGIES[strategy]}: give one of them"
            )
    return asked[0][0] if asked else ""


def _set(message: Message, field: str, name: str, option: Option, value: Any) -> None:
    match option.kind:
        case "strategy":
            getattr(message, field).SetInParent()
        case "continuation":
            _set_forced(getattr(message, field), value)
        case "texts":
            getattr(message, field).extend(require_texts(name, value))
        case "token_ids":
            with name_errors(name):
                getattr(message, field).extend(value)
        case "biases":
            biases = getattr(message, field)
            with name_errors(name):
                for token_id, bias in require_mapping(name, value).items():
                    biases[token_id] = bias
        case "choice":
            setattr(message, field, find_choice(name, value, _list_choices(message, field)))
        case "json_schema":
            setattr(message, field, encode_schema(name, value))
        case "text":
            setattr(message, field, require_text(name, value))
        case "scalar":
            with name_errors(name):
                setattr(message, field, value)


def _set_forced(forced: pb.Forced, continuation: Prompt) -> None:
    if isinstance(continuation, str):
        forced.text = require_text("forced", continuation)
    else:
        forced.tokens.CopyFrom(convert_token_ids("forced", continuation))


def _list_choices(message: Message, field: str) -> dict[str, int]:
    """Return an enum's values by their names without the prefix, but for the unspecified one."""
    enum: Any = message.DESCRIPTOR.fields_by_name[field].enum_type
    unspecified, *values = enum.values
    prefix = unspecified.name.removesuffix("UNSPECIFIED")
    return {value.name.removeprefix(prefix).lower(): value.number for value in values}
