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

_TEXT = "The capital of France is"
_CHAT = ChatInput((ChatMessage("user", "What is the capital of France?"),))
_NUM_CANDIDATES = 2
_AS_IS = Decoding(Strategy.SAMPLE, max_new_tokens=1, seed=1)
_COLDER = replace(_AS_IS, temperature=0.1)
_CUT = replace(_AS_IS, top_p=0.01)

_SAME_NATS = 0.02
"""Most nats by which the arithmetic of two equal requests may differ, in bfloat16 and batches."""
_DIFFERENT_NATS = 0.05

_UNREADABLE = (UpstreamRefusedError, UpstreamMalformedError, UpstreamUnfinishedError)

Table = Mapping[tuple[int | None, str], float]


async def find_distribution(generate: Generate, description: UpstreamDescription) -> Distribution:
    """Return the distribution behind an upstream's logprobs, by asking for six tokens at most.

    Args:
        generate: asks the upstream for a generation.
        description: the upstream.

    Returns:
        NONE if it gives no logprobs, or numbers that are none; UNKNOWN if the experiment does not
        decide.

    Raises:
        UpstreamError: the upstream is away or busy.
    """
    if description.max_candidates < 1:
        return Distribution.NONE
    for prompt in (_TEXT, _CHAT):
        request = UpstreamRequest(
            "", prompt, _AS_IS, min(_NUM_CANDIDATES, description.max_candidates)
        )
        try:
            tables = [
                await _ask(generate, replace(request, decoding=decoding))
                for decoding in (_AS_IS, _COLDER, _CUT)
            ]
        except UpstreamMalformedError as error:
            _log.warning("the upstream's logprobs are not used: %s", error)
            return Distribution.NONE
        except (*_UNREADABLE, InvalidRequestError) as error:
            if await _answers_without(generate, request):
                _log.warning("the upstream gives no logprobs: %s", error)
                return Distribution.NONE
            continue
        return decide(*tables)
    _log.warning("the upstream refuses short requests: the kind of its logprobs stays unknown")
    return Distribution.UNKNOWN


def decide(as_is: Table, colder: Table, cut: Table) -> Distribution:
    """Return the distribution that explains the first token's candidates in three experiments.

    Args:
        as_is: logprobs by token, at temperature 1.
        colder: the same at temperature 0.1.
        cut: the same at temperature 1 with all tokens but the most likely one removed.
    """
    if not (as_is and colder and cut):
        return Distribution.NONE
    if any(sum(map(math.exp, table.values())) > 1.01 for table in (as_is, colder, cut)):
        # A server can be told to give logits in place of logprobs.
        return Distribution.NONE
    by_temperature = _compare(as_is, colder)
    by_cut = _compare(as_is, cut)
    if by_temperature is None or by_cut is None:
        return Distribution.UNKNOWN
    return {
        (False, False): Distribution.RAW,
        (True, False): Distribution.AFTER_TEMPERATURE,
        (True, True): Distribution.PROCESSED,
    }.get((by_temperature, by_cut), Distribution.UNKNOWN)


def _compare(one: Table, other: Table) -> bool | None:
    """Return whether two tables differ by more than arithmetic does; None if it is not clear."""
    if len(one) > len(other):
        # A removed token has no logprob.
        return True
    common = one.keys() & other.keys()
    if not common:
        return None
    difference = max(abs(one[key] - other[key]) for key in common)
    if difference >= _DIFFERENT_NATS:
        return True
    return None if difference > _SAME_NATS else False


async def _ask(generate: Generate, request: UpstreamRequest) -> Table:
    """Return the candidates of the first token; {} if there are none."""
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
    """Return whether the upstream takes the request if it does not ask for logprobs."""
    try:
        await _ask(generate, replace(request, num_candidates=None))
    except (*_UNREADABLE, InvalidRequestError):
        return False
    return True
