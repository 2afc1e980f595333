"""`whence generations show ID --step N`: the complete record of one token."""

import math
from collections.abc import Iterator, Sequence

from whence.cli.internals import format_internals
from whence.cli.render import (
    CANDIDATE_COLUMNS,
    fit_columns,
    fit_name,
    format_heading,
    format_percent,
    format_row,
)
from whence.summary import escape, name_by_id, quote
from whence.tokens import Candidate, Token

_INDENT = " " * 9
_NAME_COLUMNS = CANDIDATE_COLUMNS + 10


def format_step(
    token: Token, *, color: bool, prompt: bool = False, num_columns: int | None = None
) -> Iterator[str]:
    """Yield the lines of a step's record.

    Args:
        token: token of the step.
        color: True to show probabilities and shares as colours too.
        prompt: True for a token of the prompt, which has no internals.
        num_columns: maximum width of the step's row; None for no maximum.
    """
    yield format_heading(prompt=prompt)
    yield format_row(token, color=color, prompt=prompt, num_columns=num_columns)
    yield f"{_INDENT}{token.summary}"
    yield from _format_candidates(token.candidates, "candidate")
    yield from _format_candidates(token.requested_logprobs, "requested")
    yield from _format_processors(token)
    yield from _format_draw(token)
    if not prompt:
        yield from format_internals(token, color=color, whole=True)
    yield from _format_timing(token)


def _format_candidates(candidates: Sequence[Candidate], heading: str) -> Iterator[str]:
    if not candidates:
        return
    yield f"{_INDENT}{fit_columns(heading, _NAME_COLUMNS)}  {'model':>7}  {'chosen from':>11}"
    for candidate in candidates:
        text = fit_name(candidate.text, _NAME_COLUMNS, candidate.token_id)
        removed = candidate.sampling_logprob == -math.inf
        chosen_from = "removed" if removed else format_percent(candidate.sampling_probability)
        row = f"{_INDENT}{text}  {format_percent(candidate.probability):>7}  {chosen_from:>11}"
        yield row.rstrip()


def _format_processors(token: Token) -> Iterator[str]:
    if not token.processors:
        return
    heads = f"{'kept':>7}  {'removed':>7}  {'token':>7}"
    yield f"{_INDENT}{fit_columns('processor', _NAME_COLUMNS)}  {heads}"
    for effect in token.processors:
        name = fit_columns(escape(effect.name), _NAME_COLUMNS)
        after = format_percent(math.exp(effect.token_logprob))
        row = f"{effect.num_kept:>7,}  {format_percent(effect.removed_mass):>7}  {after:>7}"
        yield f"{_INDENT}{name}  {row}"


def _format_draw(token: Token) -> Iterator[str]:
    draw = token.draw
    if draw is None:
        return
    yield f"{_INDENT}drawn with noise {draw.noise:g}"
    if draw.margin is not None and draw.runner_up_token_id is not None:
        text = token.text_of(draw.runner_up_token_id)
        runner_up = quote(text) if text else name_by_id(draw.runner_up_token_id)
        yield f"{_INDENT}{draw.margin:.3f} nats less likely, and it had been {runner_up}"


def _format_timing(token: Token) -> Iterator[str]:
    timing = token.timing
    if timing is None:
        return
    if not timing.batch_size:
        several = "" if token.num_chunk_tokens is None else f", {token.num_chunk_tokens} at once"
        yield f"{_INDENT}arrived after {timing.elapsed_ns / 1e6:,.1f} ms{several}"
        return
    yield (
        f"{_INDENT}ready after {timing.elapsed_ns / 1e6:,.1f} ms: "
        f"forward {timing.forward_ns / 1e6:,.1f} ms, choice {timing.select_ns / 1e6:,.1f} ms, "
        f"batch of {timing.batch_size}, context of {timing.context_length:,}"
    )
