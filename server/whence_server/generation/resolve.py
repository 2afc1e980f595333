"""Resolution of a request's settings against the model and the server's limits.

Defaults are filled in here. All faults of a request are raised together, each with the path of
its field.
"""

import secrets
from dataclasses import replace
from typing import TypeVar

from whence_server.domain.decoding import (
    DECODING_OPTIONS,
    TRACE_OPTIONS,
    Configured,
    Decoding,
    DecodingRequest,
    EarlyStopping,
    Strategy,
    TokenInput,
    TraceDetail,
    TraceOptions,
    TraceRequest,
)
from whence_server.domain.limits import Limits
from whence_server.domain.model import ModelInfo
from whence_server.generation.checks import (
    Faults,
    check_beams,
    check_biases,
    check_forced,
    check_lengths,
    check_options,
    check_prefix,
    check_sequences,
    check_stops,
    expect_in_vocabulary,
)
from whence_server.generation.constraints import check_constraint
from whence_server.generation.defaults import (
    check_default_length,
    get_default_max_new_tokens,
    get_default_min_new_tokens,
    resolve_value,
    say_where_from,
    select_configured,
)
from whence_server.text.tokenizer import TextEncoder

T = TypeVar("T")

_EARLY_STOPPING: dict[bool | str, EarlyStopping] = {
    True: EarlyStopping.WHEN_ENOUGH,
    False: EarlyStopping.HEURISTIC,
    "never": EarlyStopping.NEVER,
}
"""Values of EarlyStopping, by transformers' values."""

NUM_PARTS = 2
"""Number of the parts of TRACE_DETAIL_INTERNALS: "sources" and "layers"."""


def resolve_trace(
    request: TraceRequest, model: ModelInfo, limits: Limits
) -> tuple[TraceOptions, dict[str, str]]:
    """Return the granted trace, and the reason for each requested part that is not available.

    Raises:
        InvalidRequestError: more candidates or content than the server gives, or ids that are no
            tokens.
    """
    asked = {option.name: getattr(request, option.name) for option in TRACE_OPTIONS}
    given = {name: value for name, value in asked.items() if value is not None}
    trace = TraceOptions(
        **{"num_candidates": limits.default_candidates, "content": limits.content, **given}
    )
    faults = Faults()
    above = trace.content.find_fault(limits.content)
    faults.expect(not above, "trace.content", above)
    faults.expect(
        trace.num_candidates <= limits.max_candidates,
        "trace.num_candidates",
        f"must be at most {limits.max_candidates}, not {trace.num_candidates}",
    )
    check_options(faults, TRACE_OPTIONS, trace, model, limits)
    faults.raise_if_any()
    granted = trace.detail
    unavailable: dict[str, str] = {}
    if granted is TraceDetail.INTERNALS:
        unavailable |= model.internals.unavailable
        if not trace.num_candidates:
            unavailable.setdefault(
                "layers", "no candidates were asked for, among which a token could have a share"
            )
        if len(unavailable) == NUM_PARTS:
            granted = TraceDetail.DECISIONS
    if granted is TraceDetail.TOKENS:
        trace = replace(trace, num_candidates=0, logprob_token_ids=())
    return replace(trace, detail=granted), unavailable


def get_source_method(trace: TraceOptions, model: ModelInfo) -> str:
    """Return the method that computes sources; "" if none are recorded."""
    return model.internals.source_method if trace.detail is TraceDetail.INTERNALS else ""


def resolve_decoding(
    request: DecodingRequest,
    *,
    num_prompt_tokens: int,
    model: ModelInfo,
    limits: Limits,
    tokenizer: TextEncoder | None,
    num_seed_bits: int = 64,
) -> Decoding:
    """Return the settings as applied.

    Unset fields take the values of the model's generation config, a missing seed is drawn at
    random, and `max_new_tokens` is limited to the room left in the context. Without a tokenizer
    `bad_words` stay text, and a forced text is a fault.

    Raises:
        InvalidRequestError: settings are out of range or exclude each other; names all of them.
    """
    defaults = model.defaults
    strategy = request.strategy or _choose_default_strategy(model)
    room = model.max_context_length - num_prompt_tokens
    faults = Faults()
    forced = (
        _encode_forced(faults, request, room, model, tokenizer)
        if strategy is Strategy.FORCED
        else request.forced_prefix
    )
    max_new_tokens = request.max_new_tokens
    if max_new_tokens is None:
        max_new_tokens = get_default_max_new_tokens(request, defaults, num_prompt_tokens, limits)
    choosing = strategy is not Strategy.FORCED
    if not choosing:
        max_new_tokens = len(forced)
    values = {
        option.name: resolve_value(option, request, defaults, strategy)
        for option in DECODING_OPTIONS
    }
    values |= {
        "max_new_tokens": min(max_new_tokens, room),
        "min_new_tokens": _use_default(
            request.min_new_tokens,
            min(get_default_min_new_tokens(defaults, num_prompt_tokens), max_new_tokens)
            if choosing
            else 0,
        ),
        "ignore_eos": _use_default(request.ignore_eos, not choosing),
        "logit_bias": tuple(sorted(request.logit_bias)),
        "seed": _use_default(request.seed, secrets.randbits(num_seed_bits))
        if strategy is Strategy.SAMPLE
        else 0,
        "early_stopping": _use_default(
            request.early_stopping, _EARLY_STOPPING[defaults.early_stopping]
        ),
    }
    decoding = Decoding(
        strategy=strategy,
        **values,
        eos_token_ids=defaults.eos_token_ids,
        bad_word_ids=_encode_bad_words(faults, request, limits, tokenizer)
        or (defaults.bad_word_ids if choosing and not request.bad_words else ()),
        forced_token_ids=forced,
        first_draw_sequence=request.first_draw_sequence,
        configured=select_configured(
            request, defaults, num_prompt_tokens, sampling=strategy is Strategy.SAMPLE
        )
        if choosing
        else Configured(),
    )
    if choosing:
        check_default_length(faults, request, defaults, num_prompt_tokens)
        check_lengths(faults, request, decoding, max_new_tokens)
        check_prefix(faults, decoding, model)
    else:
        check_forced(faults, request)
    check_options(faults, DECODING_OPTIONS, decoding, model, limits)
    check_stops(faults, decoding, limits)
    check_biases(faults, decoding, model, limits)
    check_constraint(faults, decoding, model, limits)
    if strategy is Strategy.BEAM_SEARCH:
        check_beams(faults, request, decoding, limits)
    check_sequences(faults, decoding, num_prompt_tokens, limits)
    say_where_from(faults, request)
    faults.raise_if_any()
    return decoding


def _choose_default_strategy(model: ModelInfo) -> Strategy:
    if model.defaults.num_beams > 1:
        return Strategy.BEAM_SEARCH
    return Strategy.SAMPLE if model.defaults.do_sample else Strategy.GREEDY


def _encode_forced(
    faults: Faults,
    request: DecodingRequest,
    room: int,
    model: ModelInfo,
    tokenizer: TextEncoder | None,
) -> tuple[int, ...]:
    forced = request.forced
    if isinstance(forced, TokenInput):
        ids, field = forced.token_ids, "decoding.forced.tokens"
    elif tokenizer is None:
        faults.expect(
            False, "decoding.forced.text", "needs the server's --tokenizer; give `tokens` instead"
        )
        return ()
    else:
        ids = tuple(tokenizer.encode(forced or "", add_special_tokens=False))
        field = "decoding.forced.text"
    faults.expect(bool(ids), field, "must hold at least one token")
    faults.expect(
        len(ids) <= room,
        field,
        f"has {len(ids)} tokens; the context has room for {room} after the prompt",
    )
    if ids:
        expect_in_vocabulary(faults, field, ids, model)
    return ids


def _encode_bad_words(
    faults: Faults, request: DecodingRequest, limits: Limits, tokenizer: TextEncoder | None
) -> tuple[tuple[int, ...], ...]:
    words = request.bad_words[: limits.max_bad_words]
    most = limits.max_bad_word_characters
    for i, word in enumerate(words):
        field = f"decoding.bad_words[{i}]"
        faults.expect(bool(word), field, "must not be empty")
        faults.expect(
            len(word) <= most, field, f"has {len(word)} characters; at most {most} are taken"
        )
    if tokenizer is None:
        return ()
    taken = (word for word in words if 0 < len(word) <= most)
    encoded = (tuple(tokenizer.encode(word, add_special_tokens=False)) for word in taken)
    return tuple(ids for ids in encoded if ids)


def _use_default(value: T | None, default: T) -> T:
    return default if value is None else value
