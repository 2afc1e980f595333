"""Keyword arguments become requests.

Only what the wire cannot carry is refused here, and what contradicts itself; everything else
is the server's to judge, which knows the model.
"""

import uuid
from collections.abc import Mapping, MutableMapping, Sequence
from datetime import datetime
from difflib import get_close_matches
from typing import Any, cast

from google.protobuf.message import Message

from whence.arguments import (
    choice,
    duration,
    json_object,
    mapping,
    naming,
    text,
    texts,
    token_input,
)
from whence.options import FilterOptions, GenerateOptions, Prompt
from whence.v1 import generation_pb2 as pb
from whence.v1 import trace_pb2

DEFAULT_DISCONNECT_GRACE_S = 30.0

_SAMPLE_FIELDS = (
    "temperature",
    "top_k",
    "top_p",
    "min_p",
    "typical_p",
    "epsilon_cutoff",
    "eta_cutoff",
    "seed",
)
_BEAM_FIELDS = ("num_beams", "length_penalty")
_STRATEGIES = {
    "greedy": ("greedy",),
    "sampling": ("sample", *_SAMPLE_FIELDS),
    "beam search": (*_BEAM_FIELDS, "early_stopping"),
    "a forced continuation": ("forced",),
}
_DECODING_FIELDS = {
    "max_new_tokens": "max_new_tokens",
    "min_new_tokens": "min_new_tokens",
    "ignore_eos": "ignore_eos",
    "n": "num_return_sequences",
    "repetition_penalty": "repetition_penalty",
    "no_repeat_ngram_size": "no_repeat_ngram_size",
    "add_special_tokens": "add_special_tokens",
}
_EARLY_STOPPING = {
    "when_enough": pb.EARLY_STOPPING_WHEN_ENOUGH,
    "never": pb.EARLY_STOPPING_NEVER,
    "heuristic": pb.EARLY_STOPPING_HEURISTIC,
}
_DETAIL = {
    "tokens": pb.TRACE_DETAIL_TOKENS,
    "decisions": pb.TRACE_DETAIL_DECISIONS,
    "internals": pb.TRACE_DETAIL_INTERNALS,
}


def generate_request(prompt: Prompt | None, options: GenerateOptions) -> pb.GenerateRequest:
    """The request that a call of `generate` stands for, its generation id always set.

    Raises:
        TypeError: an unknown option, a value of the wrong type, or not exactly one of
            `prompt` and `messages`.
        ValueError: a value that the wire cannot carry, or two options that contradict.
    """
    given = {name: value for name, value in options.items() if value is not None}
    _refuse_unknown(given, GenerateOptions.__annotations__)
    request = pb.GenerateRequest(
        generation_id=text("generation_id", str(given.get("generation_id", uuid.uuid4()))),
        model=text("model", given.get("model", "")),
    )
    _set_input(request, prompt, given)
    decoding, trace = _decoding(given), _trace(given)
    if decoding.ListFields():
        request.decoding.CopyFrom(decoding)
    if trace.ListFields():
        request.trace.CopyFrom(trace)
    _set_labels(request.labels, given)
    grace = given.get("disconnect_grace_s", DEFAULT_DISCONNECT_GRACE_S)
    request.disconnect_grace.CopyFrom(duration("disconnect_grace_s", grace))
    if "max_duration_s" in given:
        longest = duration("max_duration_s", given["max_duration_s"])
        request.max_duration.CopyFrom(longest)
    return request


def generation_filter(options: FilterOptions) -> trace_pb2.GenerationFilter:
    """The filter that these arguments of `list` and `watch` stand for.

    Raises:
        TypeError: an unknown option, or a value of the wrong type.
        ValueError: a time without a time zone, or text that the wire cannot carry.
    """
    given = {name: value for name, value in options.items() if value is not None}
    _refuse_unknown(given, FilterOptions.__annotations__)
    wanted = trace_pb2.GenerationFilter(
        model=text("model", given.get("model", "")),
        trace_id=text("trace_id", given.get("trace_id", "")),
    )
    _set_labels(wanted.labels, given)
    for name in ("start_after", "start_before"):
        time = given.get(name)
        if not isinstance(time, datetime):
            if time is not None:
                raise TypeError(f"{name} must be a datetime, not {type(time).__name__}")
        elif time.tzinfo is None:
            raise ValueError(f"{name}: {time!r} has no time zone; give one, such as datetime.UTC")
        else:
            getattr(wanted, name).FromDatetime(time)
    return wanted


def _refuse_unknown(given: Mapping[str, object], known: Mapping[str, object]) -> None:
    for name in given:
        if name not in known:
            near = get_close_matches(name, known, n=1)
            hint = f"; did you mean {near[0]!r}?" if near else ""
            raise TypeError(f"there is no option {name!r}{hint}")


def _set_labels(labels: MutableMapping[str, str], given: Mapping[str, Any]) -> None:
    for key, value in mapping("labels", given.get("labels", {})).items():
        labels[text("labels", key)] = text(f"labels[{key!r}]", value)


def _set_input(request: pb.GenerateRequest, prompt: Prompt | None, given: dict[str, Any]) -> None:
    messages = given.get("messages")
    if prompt is not None and messages is not None:
        raise TypeError("`prompt` and `messages` contradict: give one of them")
    for option in ("template_arguments", "template_name"):
        if option in given and messages is None:
            raise ValueError(f"`{option}` is for a chat template: give `messages` with it")
    if messages is not None:
        _set_chat(request.chat, messages, given)
    elif isinstance(prompt, str):
        request.prompt = text("prompt", prompt)
    elif prompt is not None:
        request.tokens.CopyFrom(token_input("prompt", prompt))
    else:
        raise TypeError("there is nothing to continue: give `prompt` or `messages`")


def _set_chat(chat: pb.ChatInput, messages: Sequence[Any], given: dict[str, Any]) -> None:
    chat.SetInParent()
    for index, message in enumerate(messages):
        where = f"messages[{index}]"
        if not isinstance(message, Mapping) or set(message) != {"role", "content"}:
            raise ValueError(f'{where} is {message!r}, not {{"role": ..., "content": ...}}')
        chat.messages.add(
            role=text(f"{where}.role", message["role"]),
            content=text(f"{where}.content", message["content"]),
        )
    chat.template_name = text("template_name", given.get("template_name", ""))
    arguments = mapping("template_arguments", given.get("template_arguments", {}))
    if arguments:
        chat.template_arguments_json = json_object("template_arguments", arguments)


def _decoding(given: dict[str, Any]) -> pb.Decoding:
    decoding = pb.Decoding()
    _set_strategy(decoding, given)
    for option, field in _DECODING_FIELDS.items():
        _assign(decoding, field, option, given)
    decoding.stop.extend(texts("stop", given.get("stop", ())))
    decoding.bad_words.extend(texts("bad_words", given.get("bad_words", ())))
    with naming("stop_token_ids"):
        decoding.stop_token_ids.extend(given.get("stop_token_ids", ()))
    with naming("logit_bias"):
        for token_id, bias in mapping("logit_bias", given.get("logit_bias", {})).items():
            decoding.logit_bias[token_id] = bias
    return decoding


def _set_strategy(decoding: pb.Decoding, given: dict[str, Any]) -> None:
    asked = [
        (strategy, option)
        for strategy, options in _STRATEGIES.items()
        for option in options
        # `greedy=False` asks for nothing; a temperature of 0 does.
        if given.get(option, False) is not False
    ]
    for strategy, option in asked[1:]:
        first_strategy, first_option = asked[0]
        if strategy != first_strategy:
            raise ValueError(
                f"`{first_option}` asks for {first_strategy} and `{option}` for {strategy}: "
                "give one of them"
            )
    if not asked:
        return
    match asked[0][0]:
        case "greedy":
            decoding.greedy.SetInParent()
        case "sampling":
            decoding.sample.SetInParent()
            for option in _SAMPLE_FIELDS:
                _assign(decoding.sample, option, option, given)
        case "beam search":
            decoding.beam_search.SetInParent()
            for option in _BEAM_FIELDS:
                _assign(decoding.beam_search, option, option, given)
            if "early_stopping" in given:
                stopping = choice("early_stopping", given["early_stopping"], _EARLY_STOPPING)
                decoding.beam_search.early_stopping = cast("pb.EarlyStopping.ValueType", stopping)
        case _:
            _set_forced(decoding.forced, given["forced"])


def _set_forced(forced: pb.Forced, continuation: Prompt) -> None:
    if isinstance(continuation, str):
        forced.text = text("forced", continuation)
    else:
        forced.tokens.CopyFrom(token_input("forced", continuation))


def _trace(given: dict[str, Any]) -> pb.TraceOptions:
    trace = pb.TraceOptions()
    if "detail" in given:
        detail = choice("detail", given["detail"], _DETAIL)
        trace.detail = cast("pb.TraceDetail.ValueType", detail)
    _assign(trace, "num_candidates", "num_candidates", given)
    _assign(trace, "prompt", "trace_prompt", given)
    return trace


def _assign(message: Message, field: str, option: str, given: Mapping[str, object]) -> None:
    if option in given:
        with naming(option):
            setattr(message, field, given[option])
