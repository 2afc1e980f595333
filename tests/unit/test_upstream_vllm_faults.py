"""vLLM's server: requests that it cannot serve, and answers that cannot be read."""

from collections.abc import AsyncIterator
from typing import Any

import pytest
from fake_upstream import FakeUpstream, make_events
from fake_vllm import END, RAW, completion, serving_vllm
from upstream_cases import CHAT, ask, collect

from whence_server.domain import errors
from whence_server.domain.chat import ChatInput
from whence_server.domain.constraints import Constraint, Language
from whence_server.domain.observation import Distribution, SecondDistribution, TokenIds
from whence_server.engines.upstream.client import UpstreamClient
from whence_server.engines.upstream.opening import open_upstream


@pytest.fixture
async def upstream() -> AsyncIterator[FakeUpstream]:
    async with serving_vllm() as served:
        yield served


@pytest.fixture
async def client(upstream: FakeUpstream) -> AsyncIterator[UpstreamClient]:
    opened = await open_upstream(f"{upstream.url}/v1")
    await opened.describe()
    upstream.asked.clear()
    upstream.headers.clear()
    yield opened
    await opened.close()


async def test_a_constraint_takes_the_meaning_from_raw(client: UpstreamClient) -> None:
    free = client.grade(ask())
    assert (free.token_ids, free.distribution) == (TokenIds.SAMPLED, Distribution.RAW)
    assert free.second_distribution is SecondDistribution.NONE
    for masked in (
        ask(constraint=Constraint(Language.REGEX, "a+")),
        ask(passed_on={"structured_outputs": {"choice": ["a"]}}),
        ask(CHAT, passed_on={"tool_choice": "required"}),
    ):
        assert client.grade(masked).distribution is Distribution.UNKNOWN
    assert client.grade(ask(passed_on={"tool_choice": "auto"})).distribution is Distribution.RAW


@pytest.mark.parametrize(
    ("settings", "path"),
    [
        ({"typical_p": 0.5}, "decoding.sample.typical_p"),
        ({"no_repeat_ngram_size": 2}, "decoding.no_repeat_ngram_size"),
        ({"logit_bias": ((3, 101.0),)}, "decoding.logit_bias"),
        ({"seed": 2**63}, "decoding.sample.seed"),
        # vLLM would take 0.01 in its place.
        ({"temperature": 0.009}, "decoding.sample.temperature"),
        ({"constraint": Constraint(Language.GRAMMAR, "a")}, "decoding.constraint.grammar"),
        ({"passed_on": {"echo": True}}, "echo"),
        # whence ends the text before a stop string, which it searches itself.
        ({"passed_on": {"include_stop_str_in_output": True}}, "include_stop_str_in_output"),
        ({"passed_on": {"seed": 99}}, "seed"),
        ({"passed_on": {"stream_options": {}}}, "stream_options"),
        ({"num_candidates": 21}, "trace.num_candidates"),
        ({"prompt": ChatInput(CHAT.messages, template_name="x")}, "chat.template_name"),
        ({"prompt": ChatInput(CHAT.messages, tools_json="{")}, "chat.tools_json"),
        ({"prompt": ChatInput(CHAT.messages, tools_json="{}")}, "chat.tools_json"),
    ],
)
def test_an_option_that_it_cannot_apply_is_refused_by_name(
    client: UpstreamClient, settings: dict[str, Any], path: str
) -> None:
    with pytest.raises(errors.InvalidRequestError) as caught:
        client.check(ask(**settings))
    assert [violation.field for violation in caught.value.violations] == [path]


@pytest.mark.parametrize(
    ("chunk", "words"),
    [
        (completion("x", [5, 6], [RAW, RAW]) | {"choices": "x"}, "`choices`"),
        ({"model": "smol", "choices": [{"index": 1, "text": "x"}]}, "index 1"),
        ({"model": "smol", "choices": [{"index": 0, "text": 3}]}, r"`choices\[0\]\.text`"),
        (completion("x", [5], [{"token_id:5": 0.5}]), "not above 0"),
        (completion("x", [5], [RAW], token_ids=[5, 6]), "2 token ids and logprobs of 1"),
        (completion("x", [5], [RAW], token_ids=[-5]), "a token id"),
        ({"model": "smol", "choices": [[]]}, r"`choices\[0\]`"),
    ],
)
async def test_a_chunk_that_breaks_the_form_is_named_with_its_place(
    upstream: FakeUpstream, client: UpstreamClient, chunk: Any, words: str
) -> None:
    upstream.answer_stream("/v1/completions", make_events(chunk))
    with pytest.raises(errors.UpstreamMalformedError, match=words):
        await collect(client, ask())


async def test_an_event_that_is_no_json_is_named(
    upstream: FakeUpstream, client: UpstreamClient
) -> None:
    upstream.answer_stream("/v1/completions", b"data: {oops\n\n")
    with pytest.raises(errors.UpstreamMalformedError, match=r"event is not JSON .*oops"):
        await collect(client, ask())


async def test_an_answer_without_a_finish_reason_is_unfinished(
    upstream: FakeUpstream, client: UpstreamClient
) -> None:
    upstream.answer_stream("/v1/completions", make_events(completion("x", [5], [RAW])))
    with pytest.raises(errors.UpstreamUnfinishedError, match="1 of 1 sequences"):
        await collect(client, ask())


async def test_an_answer_of_another_model_is_refused(
    upstream: FakeUpstream, client: UpstreamClient
) -> None:
    upstream.answer_stream("/v1/completions", make_events(END | {"model": "other"}))
    with pytest.raises(errors.UpstreamModelError, match="'other', not with 'smol'"):
        await collect(client, ask())


async def test_an_error_in_the_middle_comes_after_what_was_sent(
    upstream: FakeUpstream, client: UpstreamClient
) -> None:
    upstream.answer_stream(
        "/v1/completions",
        make_events(
            completion("x", [5], [RAW]), {"error": {"message": "EngineDeadError", "code": 500}}
        ),
    )
    events = client.generate(ask(), client.pin())
    assert (await anext(events)).text == "x"  # type: ignore[union-attr]
    with pytest.raises(errors.UpstreamError, match="in the middle of its answer: EngineDeadError"):
        await anext(events)


async def test_a_generation_is_not_begun_with_another_than_its_record_names(
    upstream: FakeUpstream, client: UpstreamClient
) -> None:
    pinned = client.pin()
    upstream.answer_json("GET", "/version", {"version": "0.33.0"})
    await client.describe()
    upstream.asked.clear()
    with pytest.raises(errors.UpstreamModelError, match=r"it was vllm 0\.32\.0 .*is vllm 0\.33\.0"):
        client.generate(ask(), pinned)
    assert not upstream.asked


async def test_a_model_that_is_not_served_is_named(upstream: FakeUpstream) -> None:
    client = await open_upstream(upstream.url, model="large")
    with pytest.raises(errors.UpstreamModelError, match="'large'; it serves 'smol'"):
        await client.describe()
    await client.close()
