"""Experiment that finds which distribution an upstream's logprobs are of.

No answer says it, and it is a setting of the upstream. The same prompt is asked for its first token
three times: as it is, at another temperature, and with all tokens but the most likely one removed.
Raw logprobs stay the same, logprobs after temperature change with it, and processed ones change in
both.
"""

import logging
import math
from collections.abc import AsyncGenerator, Callable, Mapping
from contextlib import aclosing
from dataclasses import replace
from typing import NamedTuple

from whence_server.domain.chat import ChatInput, ChatMessage
from whence_server.domain.decoding import Decoding, Strategy
from whence_server.domain.errors import (
    InvalidRequestError,
    UpstreamMalformedError,
    UpstreamRefusedError,
    UpstreamUnfinishedError,
)
from whence_server.domain.observation import Distribution
from whence_server.engines.upstream.exchange import (
    UpstreamChunk,
    UpstreamDescription,
    UpstreamEvent,
    UpstreamRequest,
)

_log = logging.getLogger(__name__)

Generate = Callable[[UpstreamRequest], AsyncGenerator[UpstreamEvent, None]]

_CHAT = ChatInput((ChatMessage("user", "What is the capital of France?"),))
_TEXT = "The capital of France is"
_NUM_COMPARED = 2
_AS_IS = Decoding(Strategy.SAMPLE, max_new_tokens=1, seed=1)
_COLDER = replace(_AS_IS, temperature=0.1)
_CUT = replace(_AS_IS, top_p=0.01)

_SAME_NATS = 0.02
"""Most nats by which the arithmetic of two equal requests may differ, in bfloat16 and batches."""
_DIFFERENT_NATS = 0.05

_REFUSALS = (UpstreamRefusedError, UpstreamUnfinishedError, InvalidRequestError)

Table = Mapping[tuple[int | None, str], float]


class Finding(NamedTuple):
    """Logprobs of an upstream, as an experiment found them."""

    distribution: Distribution
    """NONE if it gives no logprobs, or numbers that are none; UNKNOWN if the experiment does not
    decide."""
    max_candidates: int
    """Most candidates that it gives."""


async def find_distribution(generate: Generate, description: UpstreamDescription) -> Finding:
    """Find the distribution behind an upstream's logprobs, by asking for a few tokens.

    Args:
        generate: asks the upstream for a generation.
        description: the upstream.

    Raises:
        UpstreamError: the upstream is away or busy.
    """
    for prompt in (_CHAT, _TEXT):
        for num_candidates in _list_numbers(description.max_candidates):
            request = UpstreamRequest("", prompt, _AS_IS, num_candidates)
            try:
                as_is = await _ask(generate, request)
                colder = await _ask(generate, replace(request, decoding=_COLDER))
                cut = await _ask(generate, replace(request, decoding=_CUT))
            except UpstreamMalformedError as error:
                _log.warning("the upstream's logprobs are not used: %s", error)
                return Finding(Distribution.NONE, 0)
            except _REFUSALS as error:
                # It may give fewer candidates, or take only texts.
                _log.debug("the upstream refuses %d candidates: %s", num_candidates, error)
                continue
            return Finding(decide(as_is, colder, cut), num_candidates)
    for prompt in (_CHAT, _TEXT):
        if await _answers_without(generate, UpstreamRequest("", prompt, _AS_IS, None)):
            _log.warning("the upstream gives no logprobs")
            return Finding(Distribution.NONE, 0)
    _log.warning("the upstream refuses short requests: the kind of its logprobs stays unknown")
    return Finding(Distribution.UNKNOWN, description.max_candidates)


def _list_numbers(most: int) -> list[int]:
    """Return the numbers of candidates to try: a server may have a smaller limit than its kind."""
    return [most, *(number for number in (10, 5, 2) if number < most)]


def decide(as_is: Table, colder: Table, cut: Table) -> Distribution:
    """Return the distribution that explains the first token's candidates in three experiments.

    Args:
        as_is: logprobs by token, at temperature 1.
        colder: the same at temperature 0.1.
        cut: the same at temperature 1 with all tokens but the most likely one removed.
    """
    if not (as_is and colder and cut):
        return Distribution.NONE
    compared = dict(list(as_is.items())[:_NUM_COMPARED])
    if any(sum(map(math.exp, table.values())) > 1.01 for table in (as_is, colder, cut)):
        # A server can be told to give logits in place of logprobs.
        return Distribution.NONE
    by_temperature = _compare(compared, colder)
    by_cut = _compare(compared, cut)
    if by_temperature is None or by_cut is None:
        return Distribution.UNKNOWN
    return {
        (False, False): Distribution.RAW,
        (True, False): Distribution.AFTER_TEMPERATURE,
        (True, True): Distribution.PROCESSED,
    }.get((by_temperature, by_cut), Distribution.UNKNOWN)


def _compare(one: Table, other: Table) -> bool | None:
    """Return whether two tables differ by more than arithmetic does; None if it is not clear."""
    if not one.keys() <= other.keys():
        # A removed token has no logprob.
        return True
    difference = max(abs(one[key] - other[key]) for key in one)
    if difference >= _DIFFERENT_NATS:
        return True
    return None if difference > _SAME_NATS else False


async def _ask(generate: Generate, request: UpstreamRequest) -> Table:
    """Return the candidates of the first token, most likely first; {} if there are none."""
    table: dict[tuple[int | None, str], float] = {}
    async with aclosing(generate(request)) as events:
        async for event in events:
            if table or not isinstance(event, UpstreamChunk) or not event.tokens:
                continue
            table = {
                (candidate.token_id, candidate.text): candidate.logprob
                for candidate in event.tokens[0].candidates or ()
            }
    return table


async def _answers_without(generate: Generate, request: UpstreamRequest) -> bool:
    """Return whether the upstream takes a request that asks for no logprobs."""
    try:
        await _ask(generate, request)
    except (*_REFUSALS, UpstreamMalformedError):
        return False
    return True
