"""Parameters that the API's routes share, as a request of whence's own contract.

The request is made by whence's own client library and then takes the same path as one over gRPC, so
that it has the same checks, limits and digest.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from whence.options import GenerateOptions
from whence.requests import generate_request
from whence_server.domain.errors import FieldViolation, InvalidRequestError
from whence_server.domain.limits import Limits
from whence_server.domain.requests import GenerationRequest
from whence_server.generation.upstream_prepare import renders_chats
from whence_server.http.openai.parameters import Parameters
from whence_server.rpc.conversions import convert_request
from whence_server.rpc.serving import Serving

EXTENSION = "whence"
"""Parameter with whence's own options."""

_MAX_TOP_LOGPROBS = 20
_OWN = frozenset({"messages", "tools", "model", "labels"})
"""Options of whence's client that the API has a parameter for."""
_TAKEN_BY_WHENCE = (
    *("top_k", "min_p", "repetition_penalty"),
    *("min_tokens", "stop_token_ids", "ignore_eos"),
)
"""Parameters that other servers have added to the API, and that mean the same here."""
_PLACE = re.compile(r"(?:messages|tools)[\w.\[\]]*")
"""Place of a fault, with which a message of the client library begins."""
_RENAMED = {"min_tokens": "min_new_tokens"}

FIELD_NAMES: Mapping[str, str] = {
    "chat.messages": "messages",
    "chat.tools_json": "tools",
    "model": "model",
    "labels": "metadata",
    "decoding.max_new_tokens": "max_tokens",
    "decoding.min_new_tokens": "min_tokens",
    "decoding.num_return_sequences": "n",
    "decoding.stop": "stop",
    "decoding.stop_token_ids": "stop_token_ids",
    "decoding.ignore_eos": "ignore_eos",
    "decoding.add_special_tokens": "add_special_tokens",
    "decoding.logit_bias": "logit_bias",
    "decoding.repetition_penalty": "repetition_penalty",
    "decoding.constraint.json_schema": "response_format",
    "decoding.sample.seed": "seed",
    "decoding.sample.temperature": "temperature",
    "decoding.sample.top_p": "top_p",
    "decoding.sample.top_k": "top_k",
    "decoding.sample.min_p": "min_p",
    "trace.num_candidates": "top_logprobs",
}
"""Parameters by the contract's fields, for errors."""


@dataclass(frozen=True, slots=True)
class Wanted:
    """A request as converted, and the form of its answer."""

    request: GenerationRequest
    streams: bool
    includes_usage: bool
    """True if a stream has an event with the numbers of tokens."""
    num_top_logprobs: int | None
    """Likeliest tokens to tell for each token; None if no logprobs are asked for."""


def read_options(parameters: Parameters) -> dict[str, Any]:
    """Take the parameters that all routes have, as options of whence's client."""
    temperature = parameters.take_number("temperature", 0, 2)
    top_p = parameters.take_number("top_p", 0, 1)
    seed = parameters.take_integer("seed")
    options: dict[str, Any] = {"greedy": True}
    # At temperature 0 nothing is drawn: `top_p` and `seed` have no effect.
    if temperature != 0:
        options = {"sample": True, "temperature": temperature, "top_p": top_p, "seed": seed}
    for name in _TAKEN_BY_WHENCE:
        options[_RENAMED.get(name, name)] = parameters.take(name)
    options["logit_bias"] = _read_biases(parameters)
    options["labels"] = _read_labels(parameters)
    # Values that ask for nothing; whence's engine does not offer the others.
    parameters.pass_on("frequency_penalty", 0)
    parameters.pass_on("presence_penalty", 0)
    parameters.pass_on("service_tier", "auto", "default")
    return options


def _read_biases(parameters: Parameters) -> dict[int, float] | None:
    given = parameters.take("logit_bias")
    if not given:
        return None
    biases = {}
    for key, bias in given.items() if isinstance(given, dict) else [(given, None)]:
        is_id = isinstance(key, str) and key.isascii() and key.isdecimal()
        if not is_id or isinstance(bias, bool) or not isinstance(bias, (int, float)):
            parameters.add_fault(
                "logit_bias", 'must be an object of numbers by token id, such as {"42": -100}'
            )
            return None
        biases[int(key)] = bias
    return biases


def _read_labels(parameters: Parameters) -> dict[str, str]:
    labels = dict(parameters.take_mapping("metadata"))
    for name in ("user", "safety_identifier", "prompt_cache_key"):
        value = parameters.take_text(name)
        if value is not None:
            labels[name] = value
    return labels


def read_top_logprobs(parameters: Parameters, name: str, *, wanted: bool) -> int | None:
    """Take the number of likeliest tokens to tell; None if no logprobs are wanted."""
    number = parameters.take_integer(name, 0, _MAX_TOP_LOGPROBS)
    if number is not None and not wanted:
        parameters.add_fault(name, "needs `logprobs`: true")
    return (number or 0) if wanted else None


def read_stream(parameters: Parameters, *, offers_usage: bool = True) -> tuple[bool, bool]:
    """Take whether the answer is a stream, and whether the stream has the numbers of tokens.

    Args:
        parameters: the request's parameters.
        offers_usage: whether the route has a parameter for the second; else it is always so.
    """
    streams = parameters.take_flag("stream")
    options = parameters.take_object("stream_options")
    includes_usage = options.take_flag("include_usage") if offers_usage else True
    options.expect("include_obfuscation", False)
    options.refuse_unknown()
    return streams, includes_usage


def read_tools(parameters: Parameters) -> list[Any] | None:
    """Take the tools that the model may call; None if it may call none."""
    tools = parameters.take_list("tools")
    choice = parameters.peek("tool_choice")
    is_known = choice in {None, "auto", "none"} if isinstance(choice, str) else choice is None
    if is_known:
        parameters.take("tool_choice")
    elif parameters.passes_on_tools:
        parameters.pass_on("tool_choice")
    else:
        parameters.take("tool_choice")
        parameters.add_fault("tool_choice", 'is not offered, but for "auto" or "none"')
    if not tools:
        parameters.expect("parallel_tool_calls", True, False)
    elif parameters.passes_on_tools:
        parameters.pass_on("parallel_tool_calls")
    else:
        # Only a grammar could forbid a second call.
        parameters.expect("parallel_tool_calls", True)
    return tools if tools and choice != "none" else None


def read_parameters(body: Mapping[str, Any], serving: Serving) -> Parameters:
    """Return the parameters of a body; those that whence does not know are for an upstream."""
    model = serving.model
    if model is None or model.upstream is None:
        return Parameters(body)
    return Parameters(body, passes_on=True, passes_on_tools=not renders_chats(model))


def read_model(parameters: Parameters, serving: Serving) -> dict[str, str | None]:
    """Take the model; the name of an adapter means the served model with that adapter."""
    name = parameters.take_text("model")
    adapters = () if serving.model is None else serving.model.adapters
    if any(name == adapter.name for adapter in adapters):
        return {"model": serving.model_name, "adapter": name}
    return {"model": name}


def read_schema(parameters: Parameters, name: str, wanted: Any) -> Any:
    """Return the JSON Schema that a format of the output asks for; None if it asks for none.

    Args:
        parameters: the request's parameters, for faults.
        name: the format's parameter.
        wanted: the format.
    """
    kind = wanted.get("type") if isinstance(wanted, dict) else None
    if wanted is None or kind == "text":
        return None
    if kind == "json_object":
        return {"type": "object"}
    # Chats have the schema in an object of its own, responses beside the type.
    holder = wanted.get("json_schema", wanted) if isinstance(wanted, dict) else None
    schema = holder.get("schema") if isinstance(holder, dict) else None
    if kind == "json_schema" and isinstance(schema, dict):
        return schema
    parameters.add_fault(
        name,
        'must be {"type": "text"}, {"type": "json_object"}, or of the type "json_schema" with a '
        "schema",
    )
    return None


def make_request(
    parameters: Parameters,
    source: str | list[int] | None,
    options: Mapping[str, Any],
    limits: Limits,
    num_top_logprobs: int | None,
) -> GenerationRequest:
    """Make the request, as one over gRPC; every parameter has been taken.

    Raises:
        InvalidRequestError: parameters are unknown, out of range or contradict.
    """
    own = parameters.take(EXTENSION)
    if own is not None and not isinstance(own, dict):
        parameters.add_fault(EXTENSION, "must be an object of whence's own options")
        own = None
    extended = _extend(parameters, options, own or {})
    parameters.refuse_unknown()
    parameters.raise_faults()
    if num_top_logprobs and extended.get("num_candidates") is None:
        extended["num_candidates"] = max(num_top_logprobs, limits.default_candidates)
    extended.setdefault("disconnect_grace_s", 0)
    if parameters.passed_on:
        given = dict(extended.get("upstream_parameters") or {})
        extended["upstream_parameters"] = {**given, **parameters.passed_on}
    asked: GenerateOptions = extended  # type: ignore[assignment]
    try:
        request = generate_request(source, asked)
    except (TypeError, ValueError) as error:
        place = _PLACE.match(str(error))
        field = place[0] if place else ""
        raise InvalidRequestError(FieldViolation(field, str(error))) from None
    converted = convert_request(request, limits)
    return replace(converted, decoding=replace(converted.decoding, fills_context=True))


def _extend(
    parameters: Parameters, options: Mapping[str, Any], own: Mapping[str, Any]
) -> dict[str, Any]:
    """Add whence's own options to those that the API's parameters ask for."""
    given = {name: value for name, value in options.items() if value is not None}
    if own.keys() & {"forced", "num_beams", "greedy"}:
        # Another strategy replaces the default one.
        given.pop("sample", None)
    for name in own:
        if name in _OWN:
            parameters.add_fault(f"{EXTENSION}.{name}", "is a parameter of the API itself")
        elif name in given:
            parameters.add_fault(f"{EXTENSION}.{name}", f"is given by the parameter {name!r} too")
    return {**given, **own}
