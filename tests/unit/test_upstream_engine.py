"""Generations over an upstream: their record, their ends, and an upstream that is away."""

import asyncio
import json
from dataclasses import replace
from pathlib import Path

import pytest
from scripted_upstream import (
    END,
    TOLD,
    URL,
    USUAL,
    FakeUpstream,
    away,
    chunk,
    finish,
    request,
    serve,
    token,
)
from tiny_models import byte_level_tokenizer
from waiting import wait_until

from whence.v1 import generation_pb2 as g
from whence.v1 import observation_pb2 as ob
from whence_server.domain.chat import ChatInput, ChatMessage
from whence_server.domain.decoding import FinishReason, Strategy, TokenInput, TraceRequest
from whence_server.domain.engine import EngineState
from whence_server.domain.errors import (
    Code,
    ConfigurationError,
    FieldViolation,
    InvalidRequestError,
    NotOfferedError,
    UpstreamBusyError,
    UpstreamKeyError,
)
from whence_server.domain.model import TextFiles
from whence_server.domain.observation import Distribution, Observation
from whence_server.domain.occurrences import Caller
from whence_server.domain.requests import GenerationRequest
from whence_server.domain.tracing import TraceContext
from whence_server.engines.upstream.engine import UpstreamEngine
from whence_server.engines.upstream.exchange import (
    UpstreamChunk,
    UpstreamEnd,
    UpstreamPrompt,
    UpstreamToken,
)
from whence_server.engines.upstream.options import UpstreamOptions

CHAT = ChatInput((ChatMessage("user", "Hi"),))
TEXT = TextFiles(byte_level_tokenizer().backend_tokenizer.to_str(), None, {})
WITH_TOKENIZER = UpstreamOptions(
    URL, "", "0.1", text=TEXT, tokenizer_digest="ab" * 32, vocabulary_size=400
)


async def test_a_generation_of_an_upstream_is_on_record(tmp_path: Path) -> None:
    service = await serve(tmp_path)
    made = await service.run(request(seed=7))
    started, finished = made.started, made.finished
    assert started.upstream.kind == "vllm"
    assert (started.upstream.url, started.upstream.model) == (URL, "smol")
    assert started.model == "smol"
    assert started.observation.draw == ob.DRAW_ORIGIN_ENGINE
    assert started.observation.weights == ob.WEIGHTS_ORIGIN_CLAIMED
    assert started.effective_decoding.sample.seed == 7
    assert list(started.processor_names) == []
    assert [step.text for step in made.steps] == [" a", " b"]
    assert [step.token_id for step in made.steps] == [5, 6]
    assert [step.token_text for step in made.steps] == [" a", " b"]
    assert made.steps[1].text_begin_byte == 2
    assert made.steps[1].timing.elapsed_ns >= made.steps[0].timing.elapsed_ns > 0
    assert list(made.steps[0].candidates.token_ids) == [5, 99]
    assert list(made.steps[0].candidates.texts) == [" a", "?"]
    assert finished.finish_reason == g.FINISH_REASON_LENGTH
    (result,) = finished.sequences
    assert (result.text, list(result.token_ids)) == (" a b", [5, 6])
    assert result.logprob == pytest.approx(-1.0)
    assert (finished.num_prompt_tokens, finished.num_generated_tokens) == (3, 2)
    assert finished.upstream.fingerprint == "fp_1"
    assert not finished.HasField("num_prefill_chunks")
    sent = service.upstream.requests[0]
    assert (sent.prompt, sent.decoding.seed, sent.num_candidates) == ("Hi", 7, 8)
    assert sent.trace_headers["traceparent"] == f"00-{'0' * 32}-{started.span_id}-01"
    assert sent.trace_headers["tracestate"] == "v=1"
    await service.close()
    assert service.upstream.is_closed


async def test_a_seed_is_drawn_that_the_upstream_takes(tmp_path: Path) -> None:
    service = await serve(tmp_path, max_seed=2**31 - 1)
    made = await service.run(request())
    seed = made.started.effective_decoding.sample.seed
    assert 0 <= seed < 2**31
    assert service.upstream.requests[0].decoding.seed == seed
    await service.close()


async def test_several_tokens_of_one_message_are_steps_that_say_so(tmp_path: Path) -> None:
    script = [chunk(token(" a", 5), token(" b", 6), token(" c", 7)), finish(), END]
    service = await serve(tmp_path, [script])
    made = await service.run(request())
    assert [step.text for step in made.steps] == [" a", " b", " c"]
    assert [step.num_chunk_tokens for step in made.steps] == [3, 3, 3]
    assert [step.index for step in made.steps] == [0, 1, 2]
    await service.close()


async def test_tokens_without_tables_have_absent_fields(tmp_path: Path) -> None:
    script = [chunk(token(" a", 5), UpstreamToken(" b", 6)), finish(), END]
    service = await serve(tmp_path, [script])
    made = await service.run(request())
    drafted = made.steps[1]
    assert not drafted.HasField("logprob")
    assert not drafted.HasField("candidates")
    assert not drafted.HasField("rank")
    # A sum of the first token's alone would pass for the sequence's.
    assert not made.finished.sequences[0].HasField("logprob")
    await service.close()


async def test_pieces_of_text_alone_are_steps(tmp_path: Path) -> None:
    script = [UpstreamChunk(0, "Hel"), UpstreamChunk(0, "lo", (), FinishReason.STOP), UpstreamEnd()]
    service = await serve(tmp_path, [script])
    made = await service.run(request())
    assert [step.text for step in made.steps] == ["Hel", "lo"]
    assert not made.steps[0].HasField("token_id")
    assert made.steps[0].token_text == ""
    (result,) = made.finished.sequences
    assert (result.text, list(result.token_ids)) == ("Hello", [])
    assert not result.HasField("logprob")
    assert made.finished.num_generated_tokens == 2
    await service.close()


async def test_sequences_of_one_request_are_recorded_beside_each_other(tmp_path: Path) -> None:
    script = [
        chunk(token("x", 5), sequence=1),
        chunk(token("y", 6), sequence=0),
        finish(0, FinishReason.END_OF_SEQUENCE),
        chunk(token("z", 7), sequence=1),
        finish(1, FinishReason.STOP, stop="END"),
        END,
    ]
    service = await serve(tmp_path, [script])
    made = await service.run(request(num_return_sequences=2))
    first, second = made.finished.sequences
    assert (first.text, first.finish_reason) == ("y", g.FINISH_REASON_END_OF_SEQUENCE)
    assert (second.text, second.stop) == ("xz", "END")
    await service.close()


# ---- what is sent ----


async def test_with_a_tokenizer_token_ids_are_sent_and_counted(tmp_path: Path) -> None:
    service = await serve(tmp_path, options=WITH_TOKENIZER)
    made = await service.run(request("Hi there"))
    ids = list(made.started.prompt_token_ids)
    expected = byte_level_tokenizer().encode("Hi there")
    assert ids == expected
    assert service.upstream.requests[0].prompt == tuple(expected)
    assert made.started.prompt == "Hi there"
    assert made.finished.num_prompt_tokens == len(expected)
    # Ids of a known vocabulary need no texts.
    assert made.steps[0].token_text == ""
    assert list(made.steps[0].candidates.texts) == []
    with pytest.raises(InvalidRequestError, match="takes at most 99"):
        await service.start(request("Hi there " * 200))
    await service.close()


async def test_an_upstream_that_takes_no_ids_is_sent_text(tmp_path: Path) -> None:
    service = await serve(tmp_path, options=WITH_TOKENIZER, takes_token_ids=False)
    made = await service.run(request("Hi there"))
    assert service.upstream.requests[0].prompt == "Hi there"
    assert list(made.started.prompt_token_ids) == []
    with pytest.raises(InvalidRequestError, match="give `prompt` or `chat`"):
        await service.start(request(TokenInput((1, 2))))
    await service.close()


async def test_a_conversation_goes_to_the_upstreams_own_template(tmp_path: Path) -> None:
    script = [UpstreamPrompt("<user>Hi", (8, 9)), *USUAL]
    service = await serve(tmp_path, [script])
    made = await service.run(request(CHAT))
    assert service.upstream.requests[0].prompt == CHAT
    assert made.started.operation == "chat"
    assert made.started.chat.input.messages[0].content == "Hi"
    assert made.finished.upstream.prompt == "<user>Hi"
    assert list(made.finished.upstream.prompt_token_ids) == [8, 9]
    await service.close()


async def test_a_tokenizer_with_a_template_renders_conversations(tmp_path: Path) -> None:
    template = "{% for m in messages %}<{{ m.role }}>{{ m.content }}{% endfor %}"
    text = TextFiles(TEXT.tokenizer_json, template, {})
    options = UpstreamOptions(URL, "", "0.1", text=text, vocabulary_size=400)
    service = await serve(tmp_path, options=options)
    made = await service.run(request(CHAT))
    assert made.started.prompt == "<user>Hi"
    expected = byte_level_tokenizer().encode("<user>Hi", add_special_tokens=False)
    assert service.upstream.requests[0].prompt == tuple(expected)
    await service.close()


async def test_tool_calls_that_the_upstream_separates_are_on_record(tmp_path: Path) -> None:
    script = [
        UpstreamChunk(0, "", reasoning="Let me "),
        UpstreamChunk(0, "", reasoning="see."),
        UpstreamChunk(0, "Sure."),
        UpstreamChunk(0, "", tool_calls_json=_pieces("c1", "weather", '{"ci')),
        UpstreamChunk(0, "", tool_calls_json=_pieces(None, None, 'ty":"Rome"}')),
        finish(0, FinishReason.END_OF_SEQUENCE),
        END,
    ]
    service = await serve(tmp_path, [script])
    made = await service.run(request(CHAT))
    (result,) = made.finished.sequences
    (call,) = result.tool_calls
    assert (call.call.id, call.call.name) == ("c1", "weather")
    assert json.loads(call.call.arguments_json) == {"city": "Rome"}
    assert (call.text_begin_byte, call.text_end_byte) == (5, 5)
    assert result.reasoning.text == "Let me see."
    assert result.text == "Sure."
    await service.close()


def _pieces(call_id: str | None, name: str | None, arguments: str) -> str:
    function = {"name": name, "arguments": arguments}
    return json.dumps([{"index": 0, "id": call_id, "function": function}])


async def test_fields_that_whence_does_not_know_are_passed_on_and_on_record(tmp_path: Path) -> None:
    service = await serve(tmp_path)
    wanted = GenerationRequest("Hi", "d", upstream_parameters_json='{"dry_multiplier": 0.5}')
    made = await service.run(wanted)
    assert service.upstream.requests[0].passed_on == {"dry_multiplier": 0.5}
    assert made.started.upstream_parameters_json == '{"dry_multiplier": 0.5}'
    with pytest.raises(InvalidRequestError, match="one JSON object"):
        await service.start(GenerationRequest("Hi", "d", upstream_parameters_json="[1]"))
    await service.close()


# ---- what is refused ----


async def test_what_no_upstream_offers_is_refused_by_name(tmp_path: Path) -> None:
    service = await serve(tmp_path)
    with pytest.raises(NotOfferedError, match=r"beam_search is not offered by .*vllm at http"):
        await service.start(request(strategy=Strategy.BEAM_SEARCH, num_beams=2))
    for name, value in (
        ("prompt", True),
        ("logprob_token_ids", (1,)),
        ("num_candidates", 21),
    ):
        wanted = GenerationRequest("Hi", "d", trace=_trace(name, value))
        with pytest.raises(InvalidRequestError, match=rf"trace\.{name}: .*vllm"):
            await service.start(wanted)
    service.upstream.refusal = InvalidRequestError(
        FieldViolation("decoding.no_repeat_ngram_size", "is not offered by vllm")
    )
    with pytest.raises(InvalidRequestError, match="no_repeat_ngram_size"):
        await service.start(request())
    assert service.upstream.requests == []
    await service.close()


def _trace(name: str, value: object) -> TraceRequest:
    return TraceRequest(**{name: value})


async def test_completions_may_have_fewer_candidates_than_chats(tmp_path: Path) -> None:
    service = await serve(tmp_path, max_text_candidates=5)
    made = await service.run(request("Hi"))
    assert made.started.effective_trace.num_candidates == 5
    made = await service.run(request(CHAT))
    assert made.started.effective_trace.num_candidates == 8
    with pytest.raises(InvalidRequestError, match=r"must be at most 5, not 6: .*vllm"):
        await service.start(GenerationRequest("Hi", "d", trace=_trace("num_candidates", 6)))
    await service.close()


# ---- ends ----


async def test_an_upstream_that_is_away_fails_what_runs_and_keeps_what_came(
    tmp_path: Path,
) -> None:
    service = await serve(tmp_path, [[chunk(token(" a", 5)), away()]])
    made = await service.run(request())
    failure = made.finished.failure
    assert made.finished.finish_reason == g.FINISH_REASON_FAILED
    assert (failure.code, failure.reason) == (Code.UNAVAILABLE.value, "UPSTREAM_AWAY")
    assert made.finished.sequences[0].text == " a"
    assert len(service.upstream.requests) == 1
    await service.close()


async def test_a_generation_without_a_token_is_begun_again(tmp_path: Path) -> None:
    options = UpstreamOptions(URL, "", "0.1", num_retries=1)
    service = await serve(tmp_path, [[away()], USUAL], options=options)
    upstream = service.upstream
    running = asyncio.create_task(service.run(request()))
    await wait_until(lambda: bool(upstream.requests))
    upstream.told = replace(TOLD, version="0.33.0")
    made = await running
    assert made.finished.sequences[0].text == " a b"
    first, second = upstream.requests
    assert first == second
    assert upstream.pinned == [TOLD, TOLD], "the record names what it was at the first time"
    await service.close()


async def test_a_generation_with_a_token_is_not_begun_again(tmp_path: Path) -> None:
    options = UpstreamOptions(URL, "", "0.1", num_retries=3)
    service = await serve(tmp_path, [[chunk(token(" a", 5)), away()], USUAL], options=options)
    made = await service.run(request())
    assert made.finished.failure.reason == "UPSTREAM_AWAY"
    assert len(service.upstream.requests) == 1
    await service.close()


async def test_a_busy_upstreams_delay_reaches_the_caller(tmp_path: Path) -> None:
    service = await serve(tmp_path, [[UpstreamBusyError("it is full", 2.5)]])
    failure = (await service.run(request())).finished.failure
    assert failure.code == Code.RESOURCE_EXHAUSTED.value
    assert failure.retry_delay.ToTimedelta().total_seconds() == 2.5
    await service.close()


@pytest.mark.parametrize(
    ("script", "reason"),
    [
        ([chunk(token(" a", 5)), END], "UPSTREAM_UNFINISHED"),
        ([UpstreamChunk(0, "", tool_calls_json="{}")], "UPSTREAM_MALFORMED"),
        ([KeyError("choices")], "UPSTREAM_MALFORMED"),
    ],
)
async def test_an_answer_that_cannot_be_read_fails_that_generation_alone(
    tmp_path: Path, script: list[object], reason: str
) -> None:
    service = await serve(tmp_path, [script, USUAL])
    broken = await service.run(request())
    assert broken.finished.failure.reason == reason
    assert broken.finished.failure.code == Code.UNAVAILABLE.value
    assert (await service.run(request())).finished.sequences[0].text == " a b"
    await service.close()


async def test_a_stop_string_that_the_upstream_passes_over_ends_the_request(tmp_path: Path) -> None:
    never = asyncio.Event()
    script = [chunk(token("one", 5)), chunk(token(" STOP two", 6)), never]
    service = await serve(tmp_path, [script])
    made = await service.run(request(stop=(" STOP",)))
    (result,) = made.finished.sequences
    assert (result.text, result.stop) == ("one", " STOP")
    assert made.finished.finish_reason == g.FINISH_REASON_STOP
    await wait_until(lambda: service.upstream.num_open == 0)
    await service.close()


async def test_the_held_beginning_of_a_stop_string_is_part_of_the_text(tmp_path: Path) -> None:
    script = [chunk(token("one ST", 5)), finish(), END]
    service = await serve(tmp_path, [script])
    made = await service.run(request(stop=("STOP",)))
    assert made.finished.sequences[0].text == "one ST"
    assert "".join(step.text for step in made.steps) == "one ST"
    await service.close()


async def test_a_cancel_ends_the_upstreams_request(tmp_path: Path) -> None:
    never = asyncio.Event()
    service = await serve(tmp_path, [[chunk(token(" a", 5)), never]])
    generation_id = await service.start(request())
    await wait_until(lambda: service.upstream.num_open == 1)
    caller = Caller("m", TraceContext("a" * 32, "1" * 16), "127.0.0.1", 1)
    await service.generations.cancel(generation_id, caller)
    await wait_until(lambda: service.upstream.num_open == 0)
    made = await service.read(generation_id)
    assert made.finished.finish_reason == g.FINISH_REASON_CANCELLED
    await service.close()


async def test_a_hundred_generations_run_at_once(tmp_path: Path) -> None:
    go = asyncio.Event()
    service = await serve(tmp_path, [[chunk(token(" a", 5)), go, *USUAL]])
    ids = [await service.start(request()) for _ in range(100)]
    reading = [asyncio.create_task(service.read(generation_id)) for generation_id in ids]
    await wait_until(lambda: service.upstream.num_open == 100)
    go.set()
    for made in await asyncio.gather(*reading):
        assert made.finished.sequences[0].text == " a a b"
    await service.close()


# ---- start and health ----


async def test_an_upstream_that_is_down_is_asked_again_and_said_once(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("whence_server.engines.upstream.engine._FIRST_DELAY_S", 0.001)
    loading = UpstreamBusyError("it loads its model", 1.0)
    answers: list[Exception | FakeUpstream] = [away(), away(), loading, FakeUpstream([USUAL])]

    async def open_upstream() -> FakeUpstream:
        answer = answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return answer

    engine = UpstreamEngine(UpstreamOptions(URL, "served", "0.1"), open_upstream)
    assert engine.state is EngineState.STARTING
    model = await engine.start()
    assert engine.state is EngineState.RUNNING
    assert (model.name, model.max_context_length) == ("served", 100)
    said = [record for record in caplog.records if "does not answer" in record.getMessage()]
    assert len(said) == 1
    await engine.stop()


async def test_a_wrong_key_ends_the_start() -> None:
    async def open_upstream() -> FakeUpstream:
        raise UpstreamKeyError("the key is refused")

    engine = UpstreamEngine(UpstreamOptions(URL, "", "0.1"), open_upstream)
    with pytest.raises(ConfigurationError, match="the key is refused"):
        await engine.start()


async def test_a_tokenizer_of_another_model_ends_the_start() -> None:
    async def open_upstream() -> FakeUpstream:
        return FakeUpstream([USUAL], told=replace(TOLD, vocabulary_size=100))

    engine = UpstreamEngine(WITH_TOKENIZER, open_upstream)
    with pytest.raises(ConfigurationError, match=r"has 400 tokens.* has 100"):
        await engine.start()


async def test_prompt_ids_that_are_not_those_sent_are_on_record(tmp_path: Path) -> None:
    async def tell(*token_ids: int) -> list[int]:
        script = [UpstreamPrompt(None, token_ids), *USUAL]
        service = await serve(tmp_path / str(len(token_ids)), [script])
        made = await service.run(request(TokenInput((5, 6, 7))))
        await service.close()
        return list(made.finished.upstream.prompt_token_ids)

    assert await tell(5, 6, 7) == []
    # For example an upstream that cuts its prompts, or puts a token before them.
    assert await tell(6, 7) == [6, 7]


# ---- both distributions ----


async def test_the_processed_distribution_is_computed_and_graded(tmp_path: Path) -> None:
    service = await serve(tmp_path)
    made = await service.run(request(temperature=0.5, top_k=1))
    assert made.started.observation.second_distribution == ob.SECOND_DISTRIBUTION_COMPUTED
    # The one token that is kept is certain; the other is removed.
    assert made.steps[0].sampling_logprob == 0.0
    assert list(made.steps[0].candidates.sampling_logprobs) == [0.0, -float("inf")]
    await service.close()


async def test_logprobs_of_an_unknown_distribution_have_no_second(tmp_path: Path) -> None:
    service = await serve(tmp_path)
    service.upstream.grades = Observation(distribution=Distribution.UNKNOWN)
    made = await service.run(request(temperature=0.5, top_k=1))
    assert not made.steps[0].HasField("sampling_logprob")
    assert list(made.steps[0].candidates.sampling_logprobs) == []
    await service.close()
