"""OpenAI's own client gets the same from a real upstream, straight and through whence."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import openai
import pytest
from backend_process import find_free_port
from deploy_files import DEPLOY
from server_process import ServerProcess
from upstream_asking import count_running, read_text, wait_until_idle
from upstream_servers import MODEL, wait_until_healthy

from whence import Client

SAMPLE = DEPLOY / "kubernetes" / "components" / "upstream" / "sample" / "app.py"
QUESTION = [{"role": "user", "content": "What is the capital of France?"}]
EMOJI = [{"role": "user", "content": "Repeat exactly: 🦙🧪 über 東京"}]
# What llama.cpp would else decide by itself: whence sends transformers' order and no other sampler.
SAMPLING = {
    "llama.cpp": {"samplers": ["temperature", "top_k", "top_p", "min_p"], "min_p": 0, "top_k": 0},
    "vllm": {"min_p": 0, "top_k": 0},
}


class Ways:
    """Clients of one upstream: straight, and through whence."""

    def __init__(self, kind: str, url: str, server: ServerProcess) -> None:
        self.kind, self.url, self.server = kind, url, server
        options: dict[str, Any] = {"api_key": "none", "max_retries": 0, "timeout": 240}
        self.straight = openai.OpenAI(base_url=f"{url}/v1", **options)
        self.through = openai.OpenAI(base_url=f"{server.http_url}/v1", **options)


@pytest.fixture(scope="module", params=["llama.cpp", "vllm"])
def ways(
    request: pytest.FixtureRequest, real_model: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Ways]:
    kind: str = request.param
    url: str = request.getfixturevalue(kind.replace(".", "_"))
    flags = ["--upstream", f"{url}/v1", "--http-listen", "127.0.0.1:0"]
    if kind == "vllm":
        # It tells the ids of candidates, and no texts.
        flags += ["--tokenizer", str(real_model)]
    with ServerProcess(None, tmp_path_factory.mktemp("data"), *flags) as server:
        opened = Ways(kind, url, server)
        with opened.straight, opened.through:
            yield opened


def read_chat(client: openai.OpenAI, stream: bool, **settings: Any) -> dict[str, Any]:
    """Ask for a chat; return what a client uses of the answer, streamed or whole."""
    if not stream:
        answer = client.chat.completions.create(model=MODEL, **settings)
        return {
            "texts": {c.index: c.message.content for c in answer.choices},
            "finish": {c.index: c.finish_reason for c in answer.choices},
            "tokens": {c.index: list_tokens(c.logprobs) for c in answer.choices},
            "usage": list_usage(answer.usage),
        }
    texts: dict[int, str] = {}
    finish: dict[int, str | None] = {}
    tokens: dict[int, list[Any]] = {}
    usage = None
    for chunk in client.chat.completions.create(
        model=MODEL, stream=True, stream_options={"include_usage": True}, **settings
    ):
        usage = chunk.usage or usage
        for choice in chunk.choices:
            texts[choice.index] = texts.get(choice.index, "") + (choice.delta.content or "")
            finish[choice.index] = choice.finish_reason or finish.get(choice.index)
            tokens.setdefault(choice.index, []).extend(list_tokens(choice.logprobs))
    return {"texts": texts, "finish": finish, "tokens": tokens, "usage": list_usage(usage)}


def list_tokens(logprobs: Any) -> list[Any]:
    """Return token, logprob and table of each entry of a choice's logprobs."""
    return [
        (entry.token, entry.logprob, [(top.token, top.logprob) for top in entry.top_logprobs])
        for entry in (logprobs.content or () if logprobs else ())
    ]


def list_usage(usage: Any) -> tuple[int, int, int]:
    return usage.prompt_tokens, usage.completion_tokens, usage.total_tokens


def flatten(tokens: list[Any]) -> tuple[list[str], list[float]]:
    """Return the texts and the logprobs of tokens and of their tables."""
    texts, logprobs = [], []
    for token, logprob, table in tokens:
        for text, value in [(token, logprob), *table]:
            texts.append(text)
            logprobs.append(value)
    return texts, logprobs


def check_equal(straight: dict[str, Any], through: dict[str, Any], has_tables: bool) -> None:
    assert through["texts"] == straight["texts"]
    assert through["finish"] == straight["finish"]
    assert through["usage"] == straight["usage"]
    assert through["tokens"].keys() == straight["tokens"].keys()
    for index, told in straight["tokens"].items():
        # Without `top_logprobs` llama.cpp adds the twenty likeliest tokens all the same.
        asked = told if has_tables else [(token, logprob, []) for token, logprob, _ in told]
        texts, logprobs = flatten(asked)
        recorded_texts, recorded_logprobs = flatten(through["tokens"][index])
        assert recorded_texts == texts
        assert recorded_logprobs == pytest.approx(logprobs, abs=1e-4)


@pytest.mark.parametrize("stream", [True, False], ids=["stream", "whole"])
@pytest.mark.parametrize(
    "settings",
    [
        {"messages": QUESTION, "max_tokens": 24, "temperature": 0},
        {"messages": QUESTION, "max_tokens": 8, "temperature": 0, "logprobs": True},
        {
            "messages": QUESTION,
            "max_tokens": 12,
            "temperature": 0,
            "logprobs": True,
            "top_logprobs": 4,
        },
        {"messages": QUESTION, "max_tokens": 64, "temperature": 0, "stop": ["Paris"]},
        {"messages": EMOJI, "max_tokens": 24, "temperature": 0},
        {"messages": QUESTION, "max_tokens": 16, "temperature": 0.8, "seed": 11, "top_p": 0.9},
    ],
    ids=["text", "logprobs", "top-logprobs", "stop", "emoji", "sampled"],
)
def test_a_chat_is_the_same(ways: Ways, stream: bool, settings: dict[str, Any]) -> None:
    own = {"extra_body": SAMPLING[ways.kind]} if settings["temperature"] else {}
    read_chat(ways.straight, False, **settings | {"max_tokens": 1})  # the prompt is cached
    check_equal(
        read_chat(ways.straight, stream, **settings, **own),
        read_chat(ways.through, stream, **settings),
        has_tables="top_logprobs" in settings,
    )


def read_completion(client: openai.OpenAI, stream: bool, **settings: Any) -> dict[str, Any]:
    """Ask for a completion; return what a client uses of the answer."""
    if not stream:
        parts = [client.completions.create(model=MODEL, **settings)]
    else:
        options = {"stream": True, "stream_options": {"include_usage": True}}
        parts = list(client.completions.create(model=MODEL, **options, **settings))
    told: dict[str, Any] = {"text": "", "finish": None, "usage": None, "tokens": [], "logprobs": []}
    for part in parts:
        if part.usage:
            told["usage"] = list_usage(part.usage)
        for choice in part.choices:
            told["text"] += choice.text
            told["finish"] = choice.finish_reason or told["finish"]
            told["logprobs"] += list_logprobs(choice.logprobs)
    return told


def list_logprobs(logprobs: Any) -> list[float]:
    """Return the chosen tokens' logprobs, in the form of either of OpenAI's two APIs.

    llama.cpp answers completions in the form of chats.
    """
    if not logprobs:
        return []
    if logprobs.token_logprobs is not None:
        return list(logprobs.token_logprobs)
    return [entry["logprob"] for entry in logprobs.model_extra["content"]]


@pytest.mark.parametrize("stream", [True, False], ids=["stream", "whole"])
def test_a_completion_is_the_same(ways: Ways, stream: bool) -> None:
    settings = {"prompt": "The capital of France is", "max_tokens": 12, "temperature": 0}
    settings |= {"logprobs": 3}
    read_completion(ways.straight, False, **settings)
    straight = read_completion(ways.straight, stream, **settings)
    through = read_completion(ways.through, stream, **settings)
    assert through["logprobs"] == pytest.approx(straight["logprobs"], abs=1e-4)
    assert len(through["logprobs"]) == 12
    for name in ("text", "finish", "usage"):
        assert through[name] == straight[name]


def test_the_generation_of_an_answer_is_on_record_with_its_trace(ways: Ways) -> None:
    trace_id, parent = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
    raw = ways.through.chat.completions.with_raw_response.create(
        model=MODEL,
        messages=QUESTION,
        max_tokens=8,
        temperature=0,
        user="ann",
        extra_headers={"traceparent": f"00-{trace_id}-{parent}-01"},
    )
    answer = raw.parse()
    with Client(ways.server.target) as client:
        record = client.generations.get(raw.headers["whence-generation-id"])
    assert record.started.trace_id == trace_id
    assert record.started.upstream.kind == ways.kind
    assert dict(record.started.labels) == {"user": "ann"}
    assert record.finished.sequences[0].text == answer.choices[0].message.content


def test_a_parameter_of_the_upstream_alone_is_passed_on_and_on_record(ways: Ways) -> None:
    field, value = {
        "llama.cpp": ("dry_multiplier", 0.5),
        "vllm": ("spaces_between_special_tokens", True),
    }[ways.kind]
    raw = ways.through.completions.with_raw_response.create(
        model=MODEL, prompt="a b a b a", max_tokens=4, temperature=0, extra_body={field: value}
    )
    with Client(ways.server.target) as client:
        record = client.generations.get(raw.headers["whence-generation-id"])
    assert json.loads(record.started.upstream_parameters_json) == {field: value}


def test_a_client_that_goes_away_ends_the_upstreams_request(ways: Ways) -> None:
    with ways.through.completions.create(
        model=MODEL,
        prompt="The capital of France is",
        max_tokens=1_500,
        stream=True,
        extra_body={"whence": {"ignore_eos": True}},
    ) as stream:
        next(iter(stream))
        assert count_running(ways.kind, ways.url) == 1
    wait_until_idle(ways.kind, ways.url)


def test_an_upstreams_refusal_has_openais_form(ways: Ways) -> None:
    with pytest.raises(openai.BadRequestError) as refused:
        ways.through.completions.create(
            model=MODEL, prompt="one " * 3_000, max_tokens=1, temperature=0
        )
    assert "3001 tokens" in str(refused.value)
    # With --tokenizer, whence counts them before it asks.
    told = f"the upstream at {ways.url} refused the request"
    assert (told in str(refused.value)) is (ways.kind == "llama.cpp")
    with pytest.raises(openai.NotFoundError):
        ways.through.completions.create(model="another", prompt="a")


def test_the_sample_application_of_the_deployment_asks_through_whence(ways: Ways) -> None:
    port = find_free_port()
    environment = {"OPENAI_BASE_URL": f"{ways.server.http_url}/v1", "MODEL_NAME": MODEL}
    with subprocess.Popen(
        [sys.executable, str(SAMPLE)], env=os.environ | environment | {"PORT": str(port)}
    ) as application:
        try:
            wait_until_healthy(f"http://127.0.0.1:{port}/healthz", 60)
            text = read_text(f"http://127.0.0.1:{port}/ask?question=Where+is+Paris")
        finally:
            application.terminate()
    answer, _, trailer = text.rstrip().rpartition("\n[generation ")
    with Client(ways.server.target) as client:
        record = client.generations.get(trailer.removesuffix("]"))
    assert record.finished.sequences[0].text == answer
    assert application.returncode == 0


def test_models_are_listed(ways: Ways) -> None:
    assert [model.id for model in ways.through.models.list()] == [MODEL]
