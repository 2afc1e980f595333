"""Grades that all kinds of upstreams share."""

import pytest
from upstream_cases import ask

from whence_server.domain.observation import Distribution, Tables, TokenIds
from whence_server.engines.upstream.adapter import Found
from whence_server.engines.upstream.exchange import UpstreamDescription
from whence_server.engines.upstream.grades import grade_request


@pytest.mark.parametrize(
    ("found", "graded"),
    [
        (Distribution.RAW, Distribution.UNKNOWN),
        # It would say that no token was removed.
        (Distribution.AFTER_TEMPERATURE, Distribution.UNKNOWN),
        (Distribution.PROCESSED, Distribution.PROCESSED),
        (Distribution.NONE, Distribution.NONE),
    ],
)
def test_a_mask_takes_the_meaning_from_distributions_of_all_tokens(
    found: Distribution, graded: Distribution
) -> None:
    told = UpstreamDescription("sglang", "0.5", "smol", 2048, 20, takes_token_ids=True)
    facts = Found(told, found)
    assert grade_request(ask(), facts, TokenIds.SAMPLED).distribution is found
    grades = grade_request(ask(), facts, TokenIds.SAMPLED, is_masked=True)
    assert grades.distribution is graded
    assert (grades.tables is Tables.NONE) is (graded is Distribution.NONE)
