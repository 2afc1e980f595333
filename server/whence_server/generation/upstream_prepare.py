"""Preparation of a request for an upstream, which may take token ids, or only text.

With a tokenizer whence encodes the prompt, checks it and, if the upstream takes ids, sends them.
Otherwise text, or a conversation, goes to the upstream as it is.
"""

from dataclasses import replace
from typing import NamedTuple

from whence_server.domain.chat import ChatInput, OutputForms
from whence_server.domain.decoding import Strategy, TokenInput
from whence_server.domain.errors import FieldViolation, InvalidRequestError, NotOfferedError
from whence_server.domain.limits import Limits
from whence_server.domain.model import ModelInfo
from whence_server.domain.requests import GenerationRequest
from whence_server.domain.upstream import UpstreamInfo
from whence_server.generation.adapters import find_adapter
from whence_server.generation.checks import Faults, check_prompt
from whence_server.generation.prepare import (
    Prepared,
    check_size,
    encode_input,
    prepare_request,
)
from whence_server.generation.resolve import resolve_decoding, resolve_trace
from whence_server.text.strict_json import read_json
from whence_server.text.tokenizer import TextEncoder

_UNKNOWN = 2**31 - 1
"""Context length, vocabulary size and cache of an upstream that does not tell them."""


def fit_checks(model: ModelInfo, limits: Limits) -> tuple[ModelInfo, Limits]:
    """Return the model and the limits that requests are checked against.

    For an upstream, a number that it does not tell allows every request, its cache is its own
    matter, and a step has at most as many candidates as it gives.
    """
    upstream = model.upstream
    if upstream is None:
        return model, limits
    checked = replace(
        model,
        max_context_length=model.max_context_length or _UNKNOWN,
        vocabulary_size=model.vocabulary_size or _UNKNOWN,
    )
    most = min(limits.max_candidates, upstream.max_candidates)
    return checked, replace(
        limits,
        max_cache_tokens=limits.max_batch_size * _UNKNOWN,
        max_candidates=most,
        default_candidates=min(limits.default_candidates, most),
    )


def renders_chats(model: ModelInfo) -> bool:
    """Return whether whence renders conversations itself, and reads tool calls of outputs."""
    if model.text.chat_template is None:
        return False
    return model.upstream is None or model.upstream.takes_token_ids


def prepare_for_engine(
    request: GenerationRequest,
    *,
    model: ModelInfo,
    limits: Limits,
    tokenizer: TextEncoder | None,
) -> Prepared:
    """Prepare a request for the engine that serves the model.

    Args:
        request: the request.
        model: the model, as `fit_checks` returns it.
        limits: the limits, as `fit_checks` returns them.
        tokenizer: the model's tokenizer; None for an upstream whose tokenizer is not known.

    Raises:
        InvalidRequestError: the request is invalid for this model and server.
        NotOfferedError: the server does not implement a part of the request.
    """
    upstream = model.upstream
    if upstream is not None:
        return _prepare_for_upstream(request, upstream, model, limits, tokenizer)
    if tokenizer is None:
        raise TypeError("whence's own engine always has a tokenizer")
    return prepare_request(request, model=model, limits=limits, tokenizer=tokenizer)


def _prepare_for_upstream(
    request: GenerationRequest,
    upstream: UpstreamInfo,
    model: ModelInfo,
    limits: Limits,
    tokenizer: TextEncoder | None,
) -> Prepared:
    find_adapter(model, request.adapter)
    limits = _fit_candidates(request, model, upstream, limits)
    _check_offers(request, upstream, limits, model)
    if tokenizer is not None:
        check_size(request, model=model, limits=limits, tokenizer=tokenizer)
    trace, unavailable = resolve_trace(request.trace, model, limits)
    ready, num_prompt_tokens = _read_input(request, upstream, model, limits, tokenizer)
    decoding = resolve_decoding(
        request.decoding,
        num_prompt_tokens=num_prompt_tokens,
        model=model,
        limits=limits,
        tokenizer=tokenizer,
        num_seed_bits=upstream.max_seed.bit_length(),
    )
    asked = request.decoding
    if asked.max_new_tokens is None and asked.fills_context:
        # 0 is not sent: the upstream's own default is what its clients get without whence.
        decoding = replace(decoding, max_new_tokens=0)
    return Prepared(
        ready.prompt,
        ready.token_ids,
        decoding,
        trace,
        unavailable,
        template_name=ready.template_name,
        forms=ready.forms,
        template_digest=ready.template_digest,
        sent=ready.sent,
    )


def _fit_candidates(
    request: GenerationRequest, model: ModelInfo, upstream: UpstreamInfo, limits: Limits
) -> Limits:
    """Return the limits with the candidates that the upstream gives for this kind of input."""
    if isinstance(request.input, ChatInput) and not renders_chats(model):
        return limits
    most = min(limits.max_candidates, upstream.max_text_candidates)
    return replace(
        limits, max_candidates=most, default_candidates=min(limits.default_candidates, most)
    )


def _check_offers(
    request: GenerationRequest, upstream: UpstreamInfo, limits: Limits, model: ModelInfo
) -> None:
    """Refuse parts of a request that no upstream offers; the adapter of its kind refuses others."""
    decoding, trace = request.decoding, request.trace
    if decoding.strategy is Strategy.BEAM_SEARCH:
        raise NotOfferedError(
            f"decoding.beam_search is not offered by {upstream}; choose `sample` or `greedy`"
        )
    faults = Faults()
    if (trace.num_candidates or 0) > limits.max_candidates:
        faults.expect(
            False,
            "trace.num_candidates",
            f"must be at most {limits.max_candidates}, not {trace.num_candidates}: {upstream} "
            "gives no more",
        )
    faults.expect(
        not trace.prompt,
        "trace.prompt",
        f"is not offered by {upstream}, which does not show the prompt's logprobs in a stream",
    )
    faults.expect(
        not trace.logprob_token_ids,
        "trace.logprob_token_ids",
        f"is not offered by {upstream}; ask for candidates with num_candidates",
    )
    num_bytes = len(request.upstream_parameters_json.encode("utf-8", "surrogatepass"))
    faults.expect(
        num_bytes <= limits.max_upstream_parameters_bytes,
        "upstream_parameters_json",
        f"has {num_bytes} bytes; this server takes at most {limits.max_upstream_parameters_bytes}",
    )
    if isinstance(request.input, str) and not model.text.tokenizer_json:
        faults.expect(
            decoding.add_special_tokens is not False,
            "decoding.add_special_tokens",
            "needs the server's --tokenizer: without it the upstream tokenizes",
        )
    faults.raise_if_any()
    if request.upstream_parameters_json:
        _check_parameters(request.upstream_parameters_json)


def _check_parameters(text: str) -> None:
    """Refuse fields for the upstream that are not one JSON object."""
    field = "upstream_parameters_json"
    if not isinstance(read_json(text, field), dict):
        raise InvalidRequestError(FieldViolation(field, "must be the text of one JSON object"))


def _read_input(
    request: GenerationRequest,
    upstream: UpstreamInfo,
    model: ModelInfo,
    limits: Limits,
    tokenizer: TextEncoder | None,
) -> tuple["_Input", int]:
    """Return what the upstream is sent, and the number of its tokens; 0 if that is not known."""
    given = request.input
    if isinstance(given, TokenInput):
        if not upstream.takes_token_ids:
            raise InvalidRequestError(
                FieldViolation("tokens", f"is not taken by {upstream}; give `prompt` or `chat`")
            )
        if tokenizer is None:
            check_prompt(given.token_ids, "tokens.token_ids", model, limits)
            return _Input("", list(given.token_ids)), len(given.token_ids)
    if isinstance(given, ChatInput) and (tokenizer is None or not renders_chats(model)):
        _check_chat(given, upstream)
        return _Input("", [], forms=OutputForms(), sent=given), 0
    if tokenizer is None:
        return _Input(str(given), [], sent=str(given)), 0
    rendered, token_ids = encode_input(request, model, limits, tokenizer)
    if isinstance(rendered, str):
        if upstream.takes_token_ids:
            return _Input(rendered, token_ids), len(token_ids)
        return _Input(rendered, [], sent=rendered), len(token_ids)
    text, name, forms, digest = rendered
    return _Input(text, token_ids, name, forms, digest), len(token_ids)


def _check_chat(chat: ChatInput, upstream: UpstreamInfo) -> None:
    if chat.template_name:
        raise InvalidRequestError(
            FieldViolation(
                "chat.template_name",
                f"needs the server's --tokenizer with chat templates: {upstream} renders "
                "conversations with its own template",
            )
        )


class _Input(NamedTuple):
    """Input of an upstream; see `Prepared`."""

    prompt: str
    token_ids: list[int]
    template_name: str = ""
    forms: OutputForms | None = None
    template_digest: str = ""
    sent: str | ChatInput | None = None
