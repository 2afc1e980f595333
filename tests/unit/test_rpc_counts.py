"""Requests with too many entries in a field are refused before the entries are read."""

import pytest

from whence.v1 import generation_pb2 as g
from whence_server.domain.errors import InvalidRequestError
from whence_server.domain.limits import Limits
from whence_server.rpc.counts import check_counts

LIMITS = Limits(max_cache_tokens=1_000)
D = g.Decoding
MUCH = 200_000
REQUESTS = {
    "chat.messages": g.GenerateRequest(
        chat=g.ChatInput(messages=[g.ChatMessage(role="user")] * 4_097)
    ),
    "chat.messages.content_parts": g.GenerateRequest(
        chat=g.ChatInput(
            messages=[g.ChatMessage(role="u", content_parts=[g.ContentPart(text="a")] * 4_097)] * 4
        )
    ),
    "chat.messages.tool_calls": g.GenerateRequest(
        chat=g.ChatInput(
            messages=[g.ChatMessage(role="u", tool_calls=[g.ToolCall(name="f")] * 2_049)] * 2
        )
    ),
    "labels": g.GenerateRequest(labels={str(i): "v" for i in range(33)}),
    "decoding.stop": g.GenerateRequest(decoding=D(stop=["s"] * MUCH)),
    "trace.logprob_token_ids": g.GenerateRequest(
        trace=g.TraceOptions(logprob_token_ids=range(129))
    ),
    "decoding.stop_token_ids": g.GenerateRequest(decoding=D(stop_token_ids=[1] * MUCH)),
    "decoding.logit_bias": g.GenerateRequest(decoding=D(logit_bias=dict.fromkeys(range(1_025), 1))),
    "decoding.bad_words": g.GenerateRequest(decoding=D(bad_words=["w"] * MUCH)),
    "tokens.token_ids": g.GenerateRequest(tokens=g.TokenInput(token_ids=[1] * 1_001)),
    "decoding.forced.tokens.token_ids": g.GenerateRequest(
        decoding=D(forced=g.Forced(tokens=g.TokenInput(token_ids=[1] * 1_001)))
    ),
}


@pytest.mark.parametrize("field", REQUESTS)
def test_too_many_entries_are_refused_with_number_and_bound(field: str) -> None:
    with pytest.raises(InvalidRequestError, match="this server takes at most") as caught:
        check_counts(REQUESTS[field], LIMITS)
    assert [violation.field for violation in caught.value.violations] == [field]


def test_maximum_numbers_of_entries_pass() -> None:
    check_counts(
        g.GenerateRequest(
            chat=g.ChatInput(messages=[g.ChatMessage(role="user")] * 4_096),
            labels={str(i): "v" for i in range(32)},
            decoding=D(
                stop=["s"] * 64,
                stop_token_ids=[1] * 64,
                bad_words=["w"] * 1_024,
                logit_bias=dict.fromkeys(range(1_024), 1),
            ),
            trace=g.TraceOptions(logprob_token_ids=range(128)),
        ),
        LIMITS,
    )
