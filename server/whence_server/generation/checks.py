"""Checks of a request's settings; each fault is reported with the path of its field."""

from collections.abc import Iterable, Sequence
from typing import Any

from whence_server.domain import bounds
from whence_server.domain.decoding import (
    DECODING_OPTIONS,
    Decoding,
    DecodingRequest,
    Strategy,
    TraceOptions,
)
from whence_server.domain.errors import FieldViolation, InvalidRequestError
from whence_server.domain.limits import Limits
from whence_server.domain.model import ModelInfo
from whence_server.domain.options import Entries, Option
from whence_server.text.bounds import TextBound


class Faults:
    """Collector of a request's faults."""

    def __init__(self) -> None:
        self.violations: list[FieldViolation] = []

    def expect(self, ok: bool, field: str, description: str) -> None:
        """Add a fault of `field` unless `ok`."""
        if not ok:
            self.violations.append(FieldViolation(field, description))

    def raise_if_any(self) -> None:
        """Raise InvalidRequestError with all faults, if there are any."""
        if self.violations:
            raise InvalidRequestError(*self.violations)


def compute_longest_prompt(model: ModelInfo, limits: Limits) -> int:
    """Return the largest number of tokens that a prompt may have."""
    longest = model.max_context_length - 1
    if limits.max_prompt_tokens:
        longest = min(longest, limits.max_prompt_tokens)
    return longest


def check_text_size(
    text: str, field: str, max_tokens: int, bound: TextBound | None, *, what: str
) -> None:
    """Refuse a text, before it is tokenized, whose bytes cannot fit into `max_tokens` tokens.

    Args:
        text: text to tokenize.
        field: path of the text's field in the request.
        max_tokens: largest number of tokens allowed.
        bound: bytes that a token of the tokenizer can stand for; None allows any text.
        what: subject and verb of the message, e.g. "this server takes".

    Raises:
        InvalidRequestError: the text is too long.
    """
    if bound is None:
        return
    most = max_tokens * bound.max_token_bytes
    # A character has one to four bytes: most texts need not be written out to be measured.
    if len(text) * 4 <= most:
        return
    num_bytes = bound.count_bytes(text)
    if num_bytes > most:
        raise InvalidRequestError(
            FieldViolation(
                field,
                f"has {num_bytes} bytes; {what} at most {max_tokens} tokens, and a "
                f"token stands for at most {bound.max_token_bytes} bytes: {most} in all",
            )
        )


def check_prompt(token_ids: Sequence[int], field: str, model: ModelInfo, limits: Limits) -> None:
    """Refuse a prompt that the model cannot read.

    Raises:
        InvalidRequestError: the prompt is empty, too long, or has ids outside the vocabulary.
    """
    faults = Faults()
    faults.expect(bool(token_ids), field, "must hold at least one token")
    longest = compute_longest_prompt(model, limits)
    faults.expect(
        len(token_ids) <= longest,
        field,
        f"has {len(token_ids)} tokens; this server takes at most {longest}",
    )
    faults.raise_if_any()
    expect_in_vocabulary(faults, field, token_ids, model)
    faults.raise_if_any()


def check_forced(faults: Faults, request: DecodingRequest) -> None:
    """Refuse options that shape a choice where a forced continuation leaves none."""
    for option in DECODING_OPTIONS:
        faults.expect(
            not option.shapes_choice or getattr(request, option.name) in {None, ()},
            option.path,
            "does not go with `forced`: the continuation is given, nothing is chosen",
        )


def check_options(
    faults: Faults,
    options: Iterable[Option],
    values: Decoding | TraceOptions,
    model: ModelInfo,
    limits: Limits,
) -> None:
    """Note values and numbers of entries beyond what the options' declarations allow."""
    for option in options:
        value = getattr(values, option.name)
        fault = option.rule.find_fault(value) if option.rule is not None else ""
        faults.expect(not fault, option.path, fault)
        if option.entries is not None:
            most = option.entries.get_most(limits)
            if len(value) <= most:
                _check_entries(faults, option.path, option.entries, value, model)
            else:
                told = f"has {len(value)} {option.entries.noun}; this server takes at most {most}"
                faults.expect(False, option.path, told)


def _check_entries(
    faults: Faults, field: str, entries: Entries, values: Sequence[Any], model: ModelInfo
) -> None:
    if entries.are_token_ids:
        expect_in_vocabulary(faults, field, values, model)
    if entries.are_distinct:
        _expect_distinct(faults, field, values)


def _expect_distinct(faults: Faults, field: str, values: Sequence[Any]) -> None:
    """Note the first value that came before."""
    first: dict[Any, int] = {}
    for i, value in enumerate(values):
        if first.setdefault(value, i) != i:
            faults.expect(
                False, f"{field}[{i}]", f"is {value}, as is entry {first[value]}: name it once"
            )
            return


def check_lengths(
    faults: Faults, request: DecodingRequest, decoding: Decoding, asked_max: int
) -> None:
    """Check that `max_new_tokens` is at least 1 and `min_new_tokens` does not exceed it."""
    faults.expect(
        request.max_new_tokens is None or request.max_new_tokens > 0,
        "decoding.max_new_tokens",
        "must be at least 1",
    )
    faults.expect(
        decoding.min_new_tokens <= asked_max,
        "decoding.min_new_tokens",
        f"is {decoding.min_new_tokens}, more than max_new_tokens, {asked_max}",
    )


def check_prefix(faults: Faults, decoding: Decoding, model: ModelInfo) -> None:
    """Check the tokens that are given before the first one is chosen, as a branch has them."""
    given = decoding.forced_token_ids
    if not given:
        return
    faults.expect(
        decoding.strategy is not Strategy.BEAM_SEARCH,
        "decoding.beam_search",
        f"cannot go on after {len(given)} given tokens: ask for `greedy` or `sample`, or for step "
        "0 without other tokens",
    )
    faults.expect(
        len(given) < decoding.max_new_tokens,
        "decoding.max_new_tokens",
        f"is {decoding.max_new_tokens}, with the given tokens, which are {len(given)}: it must be "
        "larger, so that a token is chosen",
    )
    expect_in_vocabulary(faults, "instead.tokens", given, model)


def check_stops(faults: Faults, decoding: Decoding, limits: Limits) -> None:
    """Note stop strings that are empty or too long."""
    for i, stop in enumerate(decoding.stop[: limits.max_stop_strings]):
        faults.expect(bool(stop), f"decoding.stop[{i}]", "must not be empty")
        faults.expect(
            len(stop) <= limits.max_stop_characters,
            f"decoding.stop[{i}]",
            f"has {len(stop)} characters; at most {limits.max_stop_characters} are taken",
        )


def check_biases(faults: Faults, decoding: Decoding, model: ModelInfo, limits: Limits) -> None:
    """Note biases that are out of bounds, or of tokens that do not exist."""
    for token_id, bias in decoding.logit_bias[: limits.max_logit_biases]:
        field = f"decoding.logit_bias[{token_id}]"
        faults.expect(
            bounds.is_within(bias, -bounds.MAX_LOGIT_BIAS, bounds.MAX_LOGIT_BIAS),
            field,
            f"must be finite and from -{bounds.MAX_LOGIT_BIAS:g} to {bounds.MAX_LOGIT_BIAS:g}, "
            f"not {bias:g}; -100 all but forbids",
        )
        faults.expect(
            token_id < model.vocabulary_size,
            field,
            f"is no token: ids go up to {model.vocabulary_size - 1}",
        )


def check_beams(
    faults: Faults, request: DecodingRequest, decoding: Decoding, limits: Limits
) -> None:
    """Check the number of beams, the length penalty, and that there are no stop strings."""
    field = "decoding.beam_search.num_beams"
    num_beams = decoding.num_beams
    if request.num_beams is None and num_beams == 1:
        faults.expect(
            False, field, "must be set, as the model's generation config has no num_beams"
        )
    else:
        faults.expect(
            2 <= num_beams <= limits.max_batch_size,
            field,
            f"must be from 2 to {limits.max_batch_size}, not {num_beams}; for one ask for `greedy`",
        )
    faults.expect(
        decoding.num_return_sequences <= max(num_beams, 1),
        "decoding.num_return_sequences",
        f"is {decoding.num_return_sequences}, more than num_beams, {num_beams}",
    )
    penalty, highest = decoding.length_penalty, bounds.MAX_LENGTH_PENALTY
    field = "decoding.beam_search.length_penalty"
    if not bounds.is_within(penalty, -highest, highest):
        faults.expect(False, field, f"must be from -{highest:g} to {highest:g}, not {penalty:g}")
    else:
        faults.expect(
            bounds.is_length_power_held(decoding.max_new_tokens, penalty),
            field,
            f"is {penalty:g}: max_new_tokens, {decoding.max_new_tokens}, to that power must be "
            f"from {1 / bounds.MAX_LENGTH_POWER:g} to {bounds.MAX_LENGTH_POWER:g}, so that scores "
            "stay within float32",
        )
    faults.expect(
        not decoding.stop,
        "decoding.stop",
        "does not go with `beam_search`, which does not look at text; use stop_token_ids",
    )


def check_sequences(
    faults: Faults, decoding: Decoding, num_prompt_tokens: int, limits: Limits
) -> None:
    """Check that the strategy can return several sequences, and that they fit into the cache."""
    n, num_rows = decoding.num_return_sequences, decoding.num_rows
    needed = num_rows * (num_prompt_tokens + decoding.max_new_tokens)
    rows = "beams" if decoding.strategy is Strategy.BEAM_SEARCH else "sequences"
    faults.expect(
        needed <= limits.max_cache_tokens,
        "decoding.max_new_tokens",
        f"{num_rows} {rows} of {num_prompt_tokens} prompt and {decoding.max_new_tokens} new "
        f"tokens need a cache of {needed} tokens; this server's holds {limits.max_cache_tokens}",
    )
    faults.expect(
        1 <= n <= limits.max_return_sequences,
        "decoding.num_return_sequences",
        f"must be from 1 to {limits.max_return_sequences}, not {n}",
    )
    faults.expect(
        n <= 1 or decoding.strategy in {Strategy.SAMPLE, Strategy.BEAM_SEARCH},
        "decoding.num_return_sequences",
        f"is {n}, but {decoding.strategy.value} decoding gives one sequence; ask for `sample` "
        "or `beam_search`",
    )


def expect_in_vocabulary(
    faults: Faults, field: str, token_ids: Sequence[int], model: ModelInfo
) -> None:
    """Add a fault for the first id outside the model's vocabulary."""
    outside = next(
        (i for i, token_id in enumerate(token_ids) if token_id >= model.vocabulary_size), None
    )
    if outside is not None:
        faults.expect(
            False,
            f"{field}[{outside}]",
            f"is {token_ids[outside]}; ids go up to {model.vocabulary_size - 1}",
        )
