"""OpenAI's API over HTTP, as OpenAI's own client reads it, on a real model."""

import json
import re
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import openai
import pytest
from generation_readers import run_javascript
from pydantic import BaseModel
from server_process import ServerProcess
from transformers import AutoModelForCausalLM, AutoTokenizer

from whence import Client, NotFoundError
from whence.v1.generation_pb2 import FinishReason, GenerationFinished, ResumeGenerationRequest
from whence.v1.generation_pb2_grpc import GenerationServiceStub

QUESTION = [{"role": "user", "content": "What is the capital of France?"}]


@pytest.fixture(scope="module")
def server(real_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    flags = ("--model-name", "smol", "--http-listen", "127.0.0.1:0", "--max-message-bytes", "65536")
    with ServerProcess(real_model, tmp_path_factory.mktemp("data"), *flags) as process:
        yield process


@pytest.fixture(scope="module")
def client(server: ServerProcess) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(
        base_url=f"{server.http_url}/v1", api_key="none", max_retries=0
    ) as connected:
        yield connected


@pytest.fixture(scope="module")
def grpc_client(server: ServerProcess) -> Iterator[Client]:
    with Client(server.target) as connected:
        yield connected


def test_a_chat_says_what_transformers_generates(real_model: Path, client: openai.OpenAI) -> None:
    tokenizer = AutoTokenizer.from_pretrained(real_model)
    model = AutoModelForCausalLM.from_pretrained(real_model)
    inputs = tokenizer.apply_chat_template(
        QUESTION, add_generation_prompt=True, return_tensors="pt", return_dict=True
    )
    ids = model.generate(**inputs, max_new_tokens=8, do_sample=False)
    expected = tokenizer.decode(ids[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True)

    answer = client.chat.completions.create(
        model="smol", messages=QUESTION, max_tokens=8, temperature=0
    )

    assert answer.choices[0].message.content == expected
    assert "Paris" in expected
    assert answer.usage is not None
    assert answer.usage.prompt_tokens == inputs["input_ids"].shape[1]
    assert answer.usage.total_tokens == answer.usage.prompt_tokens + 8
    assert answer.choices[0].finish_reason in {"stop", "length"}


def test_a_streamed_chat_has_the_text_and_logprobs_of_a_whole_one(client: openai.OpenAI) -> None:
    settings = {"model": "smol", "messages": QUESTION, "max_tokens": 12, "seed": 7, "n": 2}
    settings |= {"logprobs": True, "top_logprobs": 3, "temperature": 0.8}
    whole = client.chat.completions.create(**settings)
    chunks = list(
        client.chat.completions.create(
            **settings, stream=True, stream_options={"include_usage": True}
        )
    )

    for choice in whole.choices:
        own = [c.choices[0] for c in chunks if c.choices and c.choices[0].index == choice.index]
        assert "".join(part.delta.content or "" for part in own) == choice.message.content
        assert own[0].delta.role == "assistant"
        assert own[-1].finish_reason == choice.finish_reason
        tokens = [token for part in own if part.logprobs for token in part.logprobs.content]
        assert tokens == choice.logprobs.content
        assert all(len(token.top_logprobs) == 3 for token in tokens)
    assert chunks[-1].usage.completion_tokens == whole.usage.completion_tokens
    assert chunks[-1].usage.prompt_tokens == whole.usage.prompt_tokens
    assert whole.choices[0].message.content != whole.choices[1].message.content


def test_a_generation_over_http_is_on_record_as_one_over_grpc(
    server: ServerProcess, client: openai.OpenAI, grpc_client: Client
) -> None:
    trace_id, parent = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
    raw = client.chat.completions.with_raw_response.create(
        model="smol",
        messages=QUESTION,
        max_tokens=5,
        seed=3,
        user="ann",
        metadata={"team": "red"},
        extra_headers={"traceparent": f"00-{trace_id}-{parent}-01"},
        extra_body={"whence": {"num_candidates": 4, "top_k": 20}},
    )
    answer = raw.parse()

    generation_id = raw.headers["whence-generation-id"]
    assert answer.id == f"chatcmpl-{generation_id}"
    assert raw.headers["traceparent"].split("-")[1] == trace_id
    record = grpc_client.generations.get(generation_id)
    assert record.started.trace_id == trace_id
    assert dict(record.started.labels) == {"user": "ann", "team": "red"}
    assert record.started.effective_decoding.sample.seed == 3
    assert record.started.effective_decoding.sample.top_k == 20
    assert record.finished.sequences[0].text == answer.choices[0].message.content
    tokens = list(grpc_client.generations.steps(generation_id))
    assert [len(token.candidates) for token in tokens] == [4] * 5
    assert read_resumed(server, generation_id) == record.finished


def read_resumed(server: ServerProcess, generation_id: str) -> GenerationFinished:
    """Resume a generation over gRPC; return its finish, once it has ended."""
    request = ResumeGenerationRequest(generation_id=generation_id)
    with grpc.insecure_channel(server.target) as channel:
        *_, last = GenerationServiceStub(channel).ResumeGeneration(request, timeout=60)
    return last.event.finished


def test_completions_continue_text_and_token_ids(
    client: openai.OpenAI, grpc_client: Client
) -> None:
    settings = {"model": "smol", "max_tokens": 6, "temperature": 0, "logprobs": 2}
    by_text = client.completions.create(prompt="The capital of France is", **settings)
    with grpc_client.generate("The capital of France is", max_new_tokens=6, greedy=True) as twin:
        tokens = list(twin)
    prompt_ids = list(twin.started.prompt_token_ids)
    by_ids = client.completions.create(prompt=prompt_ids, **settings)
    streamed = list(
        client.completions.create(prompt="The capital of France is", stream=True, **settings)
    )

    text = "".join(token.text for token in tokens)
    assert text.startswith(" Paris")
    assert by_text.choices[0].text == by_ids.choices[0].text == text
    assert "".join(chunk.choices[0].text for chunk in streamed) == text
    logprobs = by_text.choices[0].logprobs
    assert logprobs.tokens == [token.text for token in tokens]
    assert logprobs.token_logprobs == pytest.approx([token.logprob for token in tokens], rel=1e-6)
    assert logprobs.text_offset[:2] == [0, len(" Paris")]
    assert logprobs.top_logprobs[0][" Paris"] == logprobs.token_logprobs[0]
    offsets = [
        o for c in streamed if c.choices[0].logprobs for o in c.choices[0].logprobs.text_offset
    ]
    assert offsets == logprobs.text_offset


def test_responses_have_the_same_text_whole_and_streamed(client: openai.OpenAI) -> None:
    settings = {"model": "smol", "max_output_tokens": 10, "temperature": 0}
    settings |= {"instructions": "Answer in one word.", "input": "The capital of France?"}
    include = ["message.output_text.logprobs"]
    whole = client.responses.create(**settings, include=include, top_logprobs=2)
    events = list(client.responses.create(**settings, stream=True))

    deltas = [event.delta for event in events if event.type == "response.output_text.delta"]
    assert "".join(deltas) == whole.output_text
    assert [event.sequence_number for event in events] == list(range(len(events)))
    last = events[-1]
    assert last.type == f"response.{whole.status}"
    assert last.response.output_text == whole.output_text
    assert last.response.usage.total_tokens == whole.usage.total_tokens
    assert len(whole.output[0].content[0].logprobs) == whole.usage.output_tokens
    # The client's own accumulation checks the order of the events.
    with client.responses.stream(**settings) as stream:
        stream.until_done()
        assert stream.get_final_response().output_text == whole.output_text


class City(BaseModel):
    """A form of answer, as OpenAI's client takes it."""

    name: str
    population: int
    is_capital: bool


def test_an_answer_has_the_form_that_was_asked_for(client: openai.OpenAI) -> None:
    messages = [{"role": "user", "content": "Tell me about Paris, as JSON."}]
    settings = {"model": "smol", "temperature": 1.0, "extra_body": {"seed": 4}}
    chat = client.chat.completions.parse(messages=messages, response_format=City, **settings)
    response = client.responses.parse(input=messages, text_format=City, **settings)
    free = client.chat.completions.create(
        messages=messages, response_format={"type": "json_object"}, max_tokens=400, **settings
    )

    assert isinstance(chat.choices[0].message.parsed, City)
    assert isinstance(response.output_parsed, City)
    assert free.choices[0].finish_reason == "stop"
    assert isinstance(json.loads(free.choices[0].message.content), dict)


def test_a_grown_chat_tells_how_much_of_it_was_cached(client: openai.OpenAI) -> None:
    long = " ".join(f"Fact {number}: the number {number} follows." for number in range(60))
    messages = [{"role": "user", "content": long}]
    settings = {"model": "smol", "max_tokens": 2, "temperature": 0}
    first = client.chat.completions.create(messages=messages, **settings)
    messages += [
        {"role": "assistant", "content": first.choices[0].message.content},
        {"role": "user", "content": "And then?"},
    ]
    second = client.chat.completions.create(messages=messages, **settings)

    assert first.usage is not None
    assert second.usage is not None
    assert second.usage.prompt_tokens_details is not None
    cached = second.usage.prompt_tokens_details.cached_tokens
    assert cached is not None
    assert first.usage.prompt_tokens / 2 < cached < second.usage.prompt_tokens


def test_models_lists_the_served_one(client: openai.OpenAI) -> None:
    (listed,) = client.models.list().data
    assert listed.id == "smol"
    assert client.models.retrieve("smol").id == "smol"
    with pytest.raises(openai.NotFoundError):
        client.models.retrieve("other")


@pytest.mark.parametrize(
    ("change", "parameter", "told"),
    [
        ({"temperature": 9}, "temperature", "from 0 to 2"),
        ({"max_tokens": 0}, "max_tokens", "from 1"),
        ({"messages": []}, "messages", "at least one message"),
        (
            {"messages": [{"role": "user", "content": [{"type": "image_url"}]}]},
            "messages[0].content[0].type",
            "image_url",
        ),
        ({"frequency_penalty": 0.5}, "frequency_penalty", "not offered"),
        ({"extra_body": {"temperatur": 1}}, "temperatur", "did you mean 'temperature'"),
        ({"extra_body": {"whence": {"colour": 1}}}, None, "colour"),
        ({"logit_bias": {"999999": 1}}, "logit_bias[999999]", "49151"),
        ({"stop": ["a"] * 65}, "stop", "64"),
        ({"top_logprobs": 3}, "top_logprobs", "logprobs"),
        ({"n": 100}, "n", "100"),
        ({"response_format": {"type": "xml"}}, "response_format", "json_schema"),
        (
            {"response_format": {"type": "json_schema", "json_schema": {"schema": {"type": 7}}}},
            "response_format",
            "type",
        ),
    ],
)
def test_a_fault_names_its_parameter(
    client: openai.OpenAI, change: dict[str, object], parameter: str | None, told: str
) -> None:
    settings: dict[str, object] = {"model": "smol", "messages": QUESTION, "max_tokens": 2}
    with pytest.raises(openai.BadRequestError) as caught:
        client.chat.completions.create(**(settings | change))

    error = caught.value
    assert error.type == "invalid_request_error"
    assert error.param == parameter
    assert told in error.message


def test_another_model_is_not_found(client: openai.OpenAI) -> None:
    with pytest.raises(openai.NotFoundError) as caught:
        client.chat.completions.create(model="gpt-7", messages=QUESTION)
    assert caught.value.param == "model"


def ask(
    url: str, body: bytes | None, media_type: str = "application/json"
) -> tuple[int, dict[str, Any]]:
    """Ask as a client that checks nothing: the status, and the document."""
    request = urllib.request.Request(url, body, {"Content-Type": media_type})
    try:
        with urllib.request.urlopen(request, timeout=30) as answer:
            return answer.status, json.load(answer)
    except urllib.error.HTTPError as error:
        return error.code, json.load(error)


@pytest.mark.parametrize(
    ("body", "status", "told"),
    [(b"{", 400, "not JSON"), (b"[]", 400, "JSON object"), (b" " * 70_000, 413, "65536")],
)
def test_a_body_that_is_no_object_is_refused(
    server: ServerProcess, body: bytes, status: int, told: str
) -> None:
    code, answer = ask(f"{server.http_url}/v1/chat/completions", body)
    assert code == status
    assert told in answer["error"]["message"]


def test_a_body_that_a_page_of_any_site_can_send_is_refused(
    server: ServerProcess, grpc_client: Client
) -> None:
    generation_id = "5b0a4a52-7f3a-4d60-8c5f-0d5f3a6c9b11"
    body = {"messages": QUESTION, "max_tokens": 1, "whence": {"generation_id": generation_id}}
    url = f"{server.http_url}/v1/chat/completions"
    code, answer = ask(url, json.dumps(body).encode(), "text/plain")
    assert code == 415
    assert "application/json" in answer["error"]["message"]
    with pytest.raises(NotFoundError):
        grpc_client.generations.get(generation_id)


def test_another_path_is_not_found(server: ServerProcess) -> None:
    code, answer = ask(f"{server.http_url}/v2/chat", None)
    assert code == 404
    assert answer["error"]["code"] == "route_not_found"


def test_a_caller_who_leaves_ends_the_generation(
    server: ServerProcess, client: openai.OpenAI, grpc_client: Client
) -> None:
    stream = client.chat.completions.create(
        model="smol", messages=QUESTION, stream=True, extra_body={"whence": {"ignore_eos": True}}
    )
    first = next(iter(stream))
    generation_id = first.id.removeprefix("chatcmpl-")
    stream.close()

    finished = read_resumed(server, generation_id)
    assert finished.finish_reason == FinishReason.FINISH_REASON_CANCELLED
    occurrences = grpc_client.generations.get(generation_id).occurrences
    left = [it.reader_left for it in occurrences if it.HasField("reader_left")]
    assert left[0].caller.method == "POST /v1/chat/completions"


def test_a_failure_after_the_first_byte_is_raised_by_the_client(
    client: openai.OpenAI, grpc_client: Client
) -> None:
    stream = client.chat.completions.create(
        model="smol", messages=QUESTION, stream=True, extra_body={"whence": {"ignore_eos": True}}
    )
    chunks = iter(stream)
    generation_id = next(chunks).id.removeprefix("chatcmpl-")
    grpc_client.cancel(generation_id)
    with pytest.raises(openai.APIError, match="was cancelled"):
        list(chunks)


def test_openais_client_for_javascript_reads_the_same(server: ServerProcess) -> None:
    program = Path(__file__).parents[1] / "support" / "openai_client.js"
    printed = run_javascript(program.read_text(encoding="utf-8"), f"{server.http_url}/v1")

    read = json.loads(printed)
    (choice,) = read["whole"]["choices"]
    assert read["text"] == choice["message"]["content"]
    assert read["tokens"] == choice["logprobs"]["content"]
    assert read["finishReason"] == choice["finish_reason"]
    assert read["refused"] == {
        "status": 400,
        "param": "temperature",
        "type": "invalid_request_error",
    }


def test_a_chain_of_langchain_runs_over_it(server: ServerProcess, grpc_client: Client) -> None:
    # Here, because every worker imports this file, and these take it three seconds.
    from langchain_core.prompts import ChatPromptTemplate
    from langchain_openai import ChatOpenAI

    model = ChatOpenAI(
        model="smol", base_url=f"{server.http_url}/v1", api_key="none", temperature=0, max_tokens=8
    )
    chain = (
        ChatPromptTemplate.from_messages([("user", "What is the capital of {country}?")]) | model
    )

    whole = chain.invoke({"country": "France"})
    parts = list(chain.stream({"country": "France"}))

    assert "Paris" in whole.content
    assert "".join(part.content for part in parts) == whole.content
    generation_id = whole.response_metadata["id"].removeprefix("chatcmpl-")
    assert grpc_client.generations.get(generation_id).finished.sequences[0].text == whole.content


def test_the_documented_program_runs(
    server: ServerProcess, capsys: pytest.CaptureFixture[str], grpc_client: Client
) -> None:
    page = (Path(__file__).parents[2] / "docs" / "openai.md").read_text(encoding="utf-8")
    (program,) = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    program = program.replace("http://127.0.0.1:8000", server.http_url)
    exec(program.replace("SmolLM2-135M-Instruct", "smol"), {})

    said, generation_id = capsys.readouterr().out.strip().rsplit("\n", 1)
    assert "Paris" in said
    assert grpc_client.generations.get(generation_id).finished.sequences[0].text == said
