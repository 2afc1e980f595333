"""Grades that are the same for all kinds of upstreams."""

from whence_server.domain.decoding import Strategy
from whence_server.domain.observation import (
    Distribution,
    DrawOrigin,
    Observation,
    SecondDistribution,
    Seed,
    Tables,
    TokenIds,
    WeightsOrigin,
)
from whence_server.engines.upstream.adapter import Found
from whence_server.engines.upstream.exchange import UpstreamRequest


def grade_request(
    request: UpstreamRequest,
    found: Found,
    token_ids: TokenIds,
    *,
    has_logprobs: bool | None = None,
    tables: Tables = Tables.EVERY_STEP,
    is_masked: bool = False,
) -> Observation:
    """Return the grades of a generation.

    Args:
        request: the generation as it is asked for.
        found: facts about the upstream.
        token_ids: origin of the token ids.
        has_logprobs: whether its steps have logprobs; None if they have where they are asked for.
        tables: completeness of the logprobs, if there are any.
        is_masked: True if a constraint may have removed tokens before the upstream computed its
            logprobs.
    """
    if has_logprobs is None:
        has_logprobs = request.num_candidates is not None
    distribution = found.distribution if has_logprobs else Distribution.NONE
    if is_masked and distribution in {Distribution.RAW, Distribution.AFTER_TEMPERATURE}:
        # Neither a distribution of all tokens nor the one drawn from.
        distribution = Distribution.UNKNOWN
    is_drawn = request.decoding.strategy is Strategy.SAMPLE
    return Observation(
        token_ids=token_ids,
        distribution=distribution,
        second_distribution=SecondDistribution.NONE,
        seed=Seed.OURS if is_drawn else Seed.NONE,
        draw=DrawOrigin.ENGINE if is_drawn else DrawOrigin.NONE,
        tables=Tables.NONE if distribution is Distribution.NONE else tables,
        weights=(
            WeightsOrigin.CLAIMED if found.description.claimed_files else WeightsOrigin.UNKNOWN
        ),
    )
