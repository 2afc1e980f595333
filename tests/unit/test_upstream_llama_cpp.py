"""llama.cpp's server: what it shows of each token is on record, what it hides is absent."""

from collections.abc import AsyncIterator
from typing import Any

import pytest
from fake_upstream import FakeUpstream, make_events, serving
from upstream_cases import CHAT, ask, collect, get_chunks, get_end, get_prompt

from whence_server.domain import errors
from whence_server.domain.chat import ChatInput
from whence_server.domain.constraints import Constraint, Language
from whence_server.domain.decoding import FinishReason, Strategy
from whence_server.domain.observation import (
    Distribution,
    DrawOrigin,
    Seed,
    Tables,
    TokenIds,
    WeightsOrigin,
)
from whence_server.engines.upstream.adapter import Found
from whence_server.engines.upstream.client import UpstreamClient
from whence_server.engines.upstream.exchange import UpstreamDescription, UpstreamToken
from whence_server.engines.upstream.kinds.llama_cpp import LlamaCppAdapter
from whence_server.engines.upstream.opening import open_upstream

PROPS = {
    "default_generation_settings": {"n_ctx": 2048},
    "model_path": "/models/SmolLM2.gguf",
    "build_info": "b1-abc",
}
MODELS = {"data": [{"id": "SmolLM2.gguf", "owned_by": "llamacpp", "meta": {"n_vocab": 49152}}]}


def entry(token_id: int, text: str, logprob: float, *others: tuple[int, str, float]) -> Any:
    """Return a token as the server sends it, first of its own table unless others are given."""

    def one(number: int, spelled: str, value: float) -> dict[str, Any]:
        return {
            "id": number,
            "token": spelled,
            "bytes": list(spelled.encode()),
            "logprob": value,
        }

    table = others or ((token_id, text, logprob),)
    return one(token_id, text, logprob) | {"top_logprobs": [one(*other) for other in table]}


def piece(content: str, token: Any, num_made: int, index: int = 0) -> dict[str, Any]:
    """Return a piece of a streamed completion."""
    return {
        "index": index,
        "content": content,
        "tokens": [token["id"]],
        "stop": False,
        "tokens_predicted": num_made,
        "tokens_evaluated": 5,
        "completion_probabilities": [token],
    }


def last(num_made: int, index: int = 0, **changed: Any) -> dict[str, Any]:
    """Return the last piece of a streamed completion."""
    return {
        "index": index,
        "content": "",
        "tokens": [],
        "stop": True,
        "model": "SmolLM2.gguf",
        "tokens_predicted": num_made,
        "tokens_evaluated": 5,
        "generation_settings": {"seed": 7},
        "stop_type": "limit",
        "stopping_word": "",
        "timings": {"cache_n": 3},
    } | changed


@pytest.fixture
async def upstream() -> AsyncIterator[FakeUpstream]:
    async with serving() as served:
        served.answer_json("GET", "/props", PROPS)
        served.answer_json("GET", "/v1/models", MODELS)
        served.answer_json("POST", "/tokenize", {"tokens": [504, 7, 8]})
        served.answer_json("POST", "/apply-template", {"prompt": "<user>Name ...<assistant>"})
        yield served


@pytest.fixture
async def client(upstream: FakeUpstream) -> AsyncIterator[UpstreamClient]:
    opened = await open_upstream(f"{upstream.url}/v1")
    await opened.describe()
    yield opened
    await opened.close()


async def test_it_is_found_and_described(upstream: FakeUpstream) -> None:
    client = await open_upstream(upstream.url)
    description = await client.describe()
    await client.close()
    assert (description.kind, description.version) == ("llama.cpp", "b1-abc")
    assert description.model == "SmolLM2.gguf"
    assert description.claimed_files == "/models/SmolLM2.gguf"
    assert description.max_context_length == 2048
    assert description.vocabulary_size == 49152
    assert description.processor_order == ("temperature", "top_k", "top_p", "min_p")


async def test_a_completion_has_ids_logprobs_candidates_and_its_end(
    upstream: FakeUpstream, client: UpstreamClient
) -> None:
    paris = entry(7042, " Paris", -0.27, (7042, " Paris", -0.27), (260, " the", -2.5))
    mark = entry(30, ".", -1.5, (28, ",", -0.5), (30, ".", -1.5))
    upstream.answer_stream(
        "/completion",
        make_events(piece(" Paris", paris, 1), piece(".", mark, 2), last(2), done=False),
        piece_bytes=7,
    )
    events = await collect(client, ask())
    assert get_prompt(events).token_ids == (504, 7, 8)
    first, second, end_chunk = get_chunks(events)
    (token,) = first.tokens
    assert (first.text, token.text, token.token_id, token.rank) == (" Paris", " Paris", 7042, 0)
    assert token.raw_bytes == b" Paris"
    assert token.logprob == -0.27
    assert token.candidates is not None
    assert [c.token_id for c in token.candidates] == [7042, 260]
    assert [c.raw_bytes for c in token.candidates] == [b" Paris", b" the"]
    assert second.tokens[0].rank == 1
    assert (end_chunk.text, end_chunk.finish) == ("", FinishReason.LENGTH)
    end = get_end(events)
    assert (end.num_prompt_tokens, end.num_generated_tokens) == (5, 2)
    assert (end.num_cached_prompt_tokens, end.seed, end.model) == (3, 7, "SmolLM2.gguf")
    assert end.has_drafted_tokens is False


async def test_every_sampler_setting_is_sent_in_the_order_of_transformers(
    upstream: FakeUpstream, client: UpstreamClient
) -> None:
    upstream.answer_stream("/completion", make_events(last(0), done=False))
    await collect(
        client,
        ask(
            prompt=(504, 7),
            temperature=0.5,
            top_k=9,
            logit_bias=((3, -1.5),),
            stop=("x",),
            passed_on={"xtc_probability": 0.5},
        ),
    )
    (body,) = upstream.get_bodies("/completion")
    assert body["prompt"] == [504, 7]
    assert body["samplers"][:6] == ["penalties", "dry", "temperature", "top_k", "top_p", "min_p"]
    settings = ("temperature", "top_k", "top_p", "min_p", "typical_p", "repeat_penalty")
    assert [body[name] for name in settings] == [0.5, 9, 1.0, 0.0, 1.0, 1.0]
    assert (body["mirostat"], body["dry_multiplier"], body["repeat_last_n"]) == (0, 0.0, 2048)
    assert (body["seed"], body["n_predict"], body["stop"]) == (7, 8, ["x"])
    assert body["logit_bias"] == {"3": -1.5}
    assert (body["n_probs"], body["post_sampling_probs"]) == (2, False)
    # The caller's own field is sent.
    assert body["xtc_probability"] == 0.5


def test_penalties_look_back_at_the_whole_context_where_its_length_is_not_told() -> None:
    told = UpstreamDescription("llama.cpp", "", "smol", None, 128, True)
    call = LlamaCppAdapter().make_call(ask(), Found(told, Distribution.RAW))
    # 0 would switch the penalties off.
    assert call.body["repeat_last_n"] == -1


async def test_greedy_decoding_is_temperature_0_without_a_seed(
    upstream: FakeUpstream, client: UpstreamClient
) -> None:
    upstream.answer_stream("/completion", make_events(last(0), done=False))
    await collect(client, ask(prompt=(504,), strategy=Strategy.GREEDY))
    (body,) = upstream.get_bodies("/completion")
    assert body["temperature"] == 0.0
    assert "seed" not in body


async def test_tokens_that_are_held_back_are_known_to_be_there(
    upstream: FakeUpstream, client: UpstreamClient
) -> None:
    # The first two tokens of the character are not sent at all.
    upstream.answer_stream(
        "/completion",
        make_events(piece("é!", entry(9, "é!", -1.0), 3), last(3), done=False),
    )
    events = await collect(client, ask())
    tokens = get_chunks(events)[0].tokens
    assert tokens[:2] == (UpstreamToken(""), UpstreamToken(""))
    assert tokens[2].token_id == 9


async def test_tokens_that_are_never_shown_are_counted_at_the_end(
    upstream: FakeUpstream, client: UpstreamClient
) -> None:
    upstream.answer_stream(
        "/completion",
        make_events(piece("a", entry(9, "a", -1.0), 1), last(3), done=False),
    )
    *_, chunk = get_chunks(await collect(client, ask()))
    assert (chunk.text, chunk.tokens) == ("", (UpstreamToken(""), UpstreamToken("")))


async def test_a_drafted_token_has_an_id_and_no_logprob(
    upstream: FakeUpstream, client: UpstreamClient
) -> None:
    drafted = piece(" a", entry(9, " a", 0.0), 1)
    del drafted["completion_probabilities"]
    upstream.answer_stream(
        "/completion", make_events(drafted, last(1, timings={"draft_n": 4}), done=False)
    )
    events = await collect(client, ask())
    assert get_chunks(events)[0].tokens == (UpstreamToken(" a", 9),)
    assert get_end(events).has_drafted_tokens is True


async def test_a_probability_of_zero_is_no_logprob(
    upstream: FakeUpstream, client: UpstreamClient
) -> None:
    floor = -3.4028234663852886e38
    token = entry(9, " a", floor, (3, " b", -0.1), (9, " a", floor))
    upstream.answer_stream("/completion", make_events(piece(" a", token, 1), last(1), done=False))
    (token_read,) = get_chunks(await collect(client, ask()))[0].tokens
    assert token_read.logprob is None
    assert token_read.candidates is not None
    assert [c.token_id for c in token_read.candidates] == [3]


async def test_half_a_character_is_shown_as_such(
    upstream: FakeUpstream, client: UpstreamClient
) -> None:
    token = entry(9, "x", -0.5)
    half = {"id": 7, "token": "", "bytes": [0xF0, 0x9F], "logprob": -1.0}
    token["top_logprobs"].append(half)
    upstream.answer_stream("/completion", make_events(piece("x", token, 1), last(1), done=False))
    (read,) = get_chunks(await collect(client, ask()))[0].tokens
    assert read.candidates is not None
    assert (read.candidates[1].text, read.candidates[1].raw_bytes) == ("\ufffd", b"\xf0\x9f")


@pytest.mark.parametrize(
    ("kind", "word", "finish"),
    [
        ("eos", "", FinishReason.END_OF_SEQUENCE),
        ("word", "END", FinishReason.STOP),
        ("limit", "", FinishReason.LENGTH),
    ],
)
async def test_the_reason_of_the_end_is_told(
    upstream: FakeUpstream, client: UpstreamClient, kind: str, word: str, finish: FinishReason
) -> None:
    upstream.answer_stream(
        "/completion", make_events(last(0, stop_type=kind, stopping_word=word), done=False)
    )
    (chunk,) = get_chunks(await collect(client, ask()))
    assert (chunk.finish, chunk.stop) == (finish, word)


async def test_several_sequences_are_kept_apart_and_counted_together(
    upstream: FakeUpstream, client: UpstreamClient
) -> None:
    upstream.answer_stream(
        "/completion",
        make_events(
            piece(" a", entry(1, " a", -1.0), 1),
            piece(" b", entry(2, " b", -1.0), 1, index=1),
            last(1, index=1, generation_settings={"seed": 8}),
            last(1),
            done=False,
        ),
    )
    events = await collect(client, ask(num_return_sequences=2))
    assert [chunk.text for chunk in get_chunks(events, 0)] == [" a", ""]
    assert [chunk.text for chunk in get_chunks(events, 1)] == [" b", ""]
    end = get_end(events)
    assert (end.num_generated_tokens, end.seed) == (2, 7)


def chat_piece(delta: dict[str, Any], token: Any = None, num_made: int = 0, **more: Any) -> Any:
    choice: dict[str, Any] = {"index": 0, "delta": delta, "finish_reason": None} | more
    if token is not None:
        choice["logprobs"] = {"content": [token]}
    document = {"choices": [choice], "model": "SmolLM2.gguf", "system_fingerprint": "b1-abc"}
    return document | ({"timings": {"predicted_n": num_made}} if num_made else {})


USAGE = {
    "choices": [],
    "model": "SmolLM2.gguf",
    "timings": {"predicted_n": 4, "cache_n": 2},
    "usage": {
        "prompt_tokens": 9,
        "completion_tokens": 4,
        "prompt_tokens_details": {"cached_tokens": 2},
    },
}


async def test_a_chat_has_the_templates_text_ids_and_hidden_tokens(
    upstream: FakeUpstream, client: UpstreamClient
) -> None:
    upstream.answer_stream(
        "/v1/chat/completions",
        make_events(
            chat_piece({"role": "assistant", "content": None}),
            chat_piece({"content": "Par"}, entry(5, "Par", -0.5), 1),
            # One token in between was held back by the server's own parser.
            chat_piece({"content": "is."}, entry(6, "is.", -0.6), 3),
            chat_piece({}, finish_reason="stop"),
            USAGE,
        ),
    )
    events = await collect(client, ask(CHAT))
    prompt = get_prompt(events)
    assert (prompt.text, prompt.token_ids) == ("<user>Name ...<assistant>", (504, 7, 8))
    assert upstream.get_bodies("/tokenize")[0]["content"] == "<user>Name ...<assistant>"
    first, second, third = get_chunks(events)
    assert [token.token_id for token in first.tokens + second.tokens] == [5, None, 6]
    # The token that ended the sequence is not shown: only the number of all tokens tells of it.
    assert (third.finish, third.tokens) == (FinishReason.END_OF_SEQUENCE, (UpstreamToken(""),))
    end = get_end(events)
    assert (end.num_prompt_tokens, end.num_generated_tokens) == (9, 4)
    assert (end.num_cached_prompt_tokens, end.fingerprint) == (2, "b1-abc")


async def test_a_chat_of_hidden_tokens_has_its_prompt_first(
    upstream: FakeUpstream, client: UpstreamClient
) -> None:
    upstream.answer_stream(
        "/v1/chat/completions", make_events(chat_piece({}, finish_reason="length"), USAGE)
    )
    events = await collect(client, ask(CHAT))
    assert get_prompt(events).token_ids == (504, 7, 8)
    (chunk,) = get_chunks(events)
    assert len(chunk.tokens) == 4


async def test_sequences_of_a_chat_end_with_their_own_hidden_tokens(
    upstream: FakeUpstream, client: UpstreamClient
) -> None:
    def of(index: int, piece_of_chat: Any) -> Any:
        piece_of_chat["choices"][0]["index"] = index
        return piece_of_chat

    upstream.answer_stream(
        "/v1/chat/completions",
        make_events(
            of(1, chat_piece({"content": "A"}, entry(5, "A", -0.5), 1)),
            of(0, chat_piece({"content": "B"}, entry(6, "B", -0.5), 1)),
            of(1, chat_piece({}, finish_reason="stop")),
            USAGE | {"timings": {"predicted_n": 2}},
            of(0, chat_piece({}, finish_reason="length")),
            USAGE | {"timings": {"predicted_n": 1}},
        ),
    )
    events = await collect(client, ask(CHAT, num_return_sequences=2))
    assert [len(chunk.tokens) for chunk in get_chunks(events, 0)] == [1, 0]
    assert [len(chunk.tokens) for chunk in get_chunks(events, 1)] == [1, 1]
    assert get_end(events).num_generated_tokens == 8


async def test_a_chat_with_tools_is_asked_for_no_logprobs_which_the_server_refuses(
    upstream: FakeUpstream, client: UpstreamClient
) -> None:
    calls = [{"index": 0, "id": "c1", "function": {"name": "f", "arguments": "{}"}}]
    upstream.answer_stream(
        "/v1/chat/completions",
        make_events(
            chat_piece({"reasoning_content": "hm"}),
            chat_piece({"tool_calls": calls}),
            chat_piece({}, finish_reason="tool_calls"),
            USAGE,
        ),
    )
    chat = ChatInput(CHAT.messages, tools_json='[{"type": "function"}]')
    events = await collect(client, ask(chat))
    (body,) = upstream.get_bodies("/v1/chat/completions")
    assert "logprobs" not in body
    assert body["tools"] == [{"type": "function"}]
    reasoning, tool_call, finish = get_chunks(events)
    assert reasoning.reasoning == "hm"
    assert tool_call.tool_calls_json == (
        '[{"index":0,"id":"c1","function":{"name":"f","arguments":"{}"}}]'
    )
    assert (finish.finish, finish.tokens) == (FinishReason.END_OF_SEQUENCE, ())
    grades = client.grade(ask(chat))
    assert (grades.token_ids, grades.distribution) == (TokenIds.NONE, Distribution.NONE)


async def test_grades_say_what_is_seen(client: UpstreamClient) -> None:
    grades = client.grade(ask())
    assert (grades.token_ids, grades.distribution) == (TokenIds.SAMPLED, Distribution.RAW)
    assert (grades.seed, grades.draw) == (Seed.OURS, DrawOrigin.ENGINE)
    assert (grades.tables, grades.weights) == (Tables.SOME_STEPS, WeightsOrigin.CLAIMED)
    greedy = client.grade(ask(strategy=Strategy.GREEDY, num_candidates=None))
    assert (greedy.seed, greedy.draw) == (Seed.NONE, DrawOrigin.NONE)
    assert (greedy.distribution, greedy.tables) == (Distribution.NONE, Tables.NONE)


@pytest.mark.parametrize(
    ("settings", "path"),
    [
        ({"min_new_tokens": 3}, "decoding.min_new_tokens"),
        ({"stop_token_ids": (3,)}, "decoding.stop_token_ids"),
        ({"no_repeat_ngram_size": 2}, "decoding.no_repeat_ngram_size"),
        ({"bad_words": ("x",)}, "decoding.bad_words"),
        ({"eta_cutoff": 0.1}, "decoding.sample.eta_cutoff"),
        ({"seed": 2**31}, "decoding.sample.seed"),
        ({"add_special_tokens": False}, "decoding.add_special_tokens"),
        ({"constraint": Constraint(Language.REGEX, "a+")}, "decoding.constraint.regex"),
        ({"passed_on": {"post_sampling_probs": True}}, "post_sampling_probs"),
        ({"passed_on": {"temperature": 9}}, "temperature"),
        ({"passed_on": {"repeat_penalty": 1.5}}, "repeat_penalty"),
        ({"num_candidates": 129}, "trace.num_candidates"),
    ],
)
def test_an_option_that_it_cannot_apply_is_refused_by_name(
    client: UpstreamClient, settings: dict[str, Any], path: str
) -> None:
    with pytest.raises(errors.InvalidRequestError, match=r"llama\.cpp") as caught:
        client.check(ask(**settings))
    assert [violation.field for violation in caught.value.violations] == [path]


def test_other_strategies_are_not_offered(client: UpstreamClient) -> None:
    with pytest.raises(errors.NotOfferedError, match="beam_search"):
        client.check(ask(strategy=Strategy.BEAM_SEARCH))


async def test_a_prompt_that_cannot_be_tokenized_does_not_stop_the_generation(
    upstream: FakeUpstream, client: UpstreamClient
) -> None:
    upstream.answer_json("POST", "/tokenize", {"error": {"message": "no"}}, 500)
    upstream.answer_stream("/completion", make_events(last(0), done=False))
    events = await collect(client, ask())
    assert len(get_chunks(events)) == 1
