"""Requests whose answers are recorded from real upstream servers; see record_upstreams.py."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

MODEL = "SmolLM2-135M-Instruct"
PROMPT = "The capital of France is"
PROMPT_IDS = [504, 3575, 282, 4649, 314]
QUESTION = [{"role": "user", "content": "What is the capital of France?"}]
# The answer has characters of several tokens, so that chunks end in the middle of one.
EMOJI = [{"role": "user", "content": "Repeat exactly: 🦙🧪 über 東京"}]
WEATHER = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "Get the weather of a city.",
        "parameters": {
            "type": "object",
            "properties": {"city": {"type": "string"}},
            "required": ["city"],
        },
    },
}
SCHEMA = {
    "type": "object",
    "properties": {"city": {"type": "string", "maxLength": 20}},
    "required": ["city"],
    "additionalProperties": False,
}


@dataclass(frozen=True)
class Request:
    """One request; without a body it is a GET."""

    path: str
    body: Mapping[str, Any] | None = None

    @property
    def method(self) -> str:
        return "GET" if self.body is None else "POST"

    def describe(self) -> dict[str, Any]:
        return {"method": self.method, "path": self.path, "body": self.body}


def complete(**fields: Any) -> Request:
    """Return a request of OpenAI's completions: greedy, of six tokens, unless `fields` differ."""
    body = {"model": MODEL, "prompt": PROMPT, "max_tokens": 6, "temperature": 0}
    return Request("/v1/completions", body | fields)


def chat(**fields: Any) -> Request:
    """Return a request of OpenAI's chat completions: greedy, of twelve tokens at most."""
    body = {"model": MODEL, "messages": QUESTION, "max_tokens": 12, "temperature": 0}
    return Request("/v1/chat/completions", body | fields)


def complete_natively(**fields: Any) -> Request:
    """Return a request of llama.cpp's own route with each sampler's setting, as it has defaults."""
    body = {
        "prompt": PROMPT_IDS,
        "n_predict": 6,
        "temperature": 0.8,
        "seed": 7,
        "samplers": ["temperature"],
        "top_k": 0,
        "top_p": 1.0,
        "min_p": 0.0,
        "n_probs": 3,
        "return_tokens": True,
    }
    return Request("/completion", body | fields)


STREAM = {"stream": True, "stream_options": {"include_usage": True}}
SAMPLED = {"temperature": 0.8, "seed": 7}
TOOLS = {
    "messages": [{"role": "user", "content": "What is the weather in Paris? Call get_weather."}],
    "tools": [WEATHER],
    "max_tokens": 48,
}

OPENAI = {
    "models": Request("/v1/models"),
    "health": Request("/health"),
    "metrics": Request("/metrics"),
    "completion": complete(logprobs=3),
    "completion-stream": complete(logprobs=3, **STREAM),
    "completion-stream-no-logprobs": complete(**STREAM),
    "completion-stream-zero-logprobs": complete(logprobs=0, **STREAM),
    "completion-stream-sampled": complete(logprobs=3, **SAMPLED, **STREAM),
    "completion-stream-processed": complete(
        logprobs=3, temperature=0.5, seed=7, top_k=3, top_p=0.9, **STREAM
    ),
    "completion-stream-n": complete(logprobs=3, n=2, **SAMPLED, **STREAM),
    "completion-stream-ids": complete(prompt=PROMPT_IDS, logprobs=3, **STREAM),
    "completion-stream-stop": complete(max_tokens=24, stop=["France"], logprobs=1, **STREAM),
    "completion-stop": complete(max_tokens=24, stop=["France"], logprobs=1),
    "completion-echo": complete(echo=True, logprobs=1),
    "completion-logit-bias": complete(logit_bias={"7042": -100}, logprobs=3),
    "chat": chat(logprobs=True, top_logprobs=3),
    "chat-end": chat(max_tokens=64, logprobs=True, top_logprobs=1),
    "chat-stream": chat(logprobs=True, top_logprobs=3, **STREAM),
    "chat-stream-no-logprobs": chat(**STREAM),
    "chat-stream-n": chat(logprobs=True, top_logprobs=2, n=2, **SAMPLED, **STREAM),
    "chat-stream-end": chat(max_tokens=64, **STREAM),
    "chat-stream-stop": chat(max_tokens=64, stop=["Paris"], **STREAM),
    "chat-stream-emoji": chat(
        messages=EMOJI, max_tokens=32, logprobs=True, top_logprobs=2, **STREAM
    ),
    "chat-schema": chat(
        response_format={"type": "json_schema", "json_schema": {"name": "city", "schema": SCHEMA}},
        max_tokens=32,
    ),
    "chat-tools": chat(**TOOLS),
    "chat-tools-stream": chat(**TOOLS, **STREAM),
    "chat-tools-required-stream": chat(**TOOLS, tool_choice="required", **STREAM),
    "chat-tools-logprobs-stream": chat(**TOOLS, logprobs=True, top_logprobs=1, **STREAM),
    "error-path": Request("/v1/nothing", {}),
    "error-model": complete(model="another"),
    "error-type": complete(temperature="hot"),
    "error-range": complete(temperature=-3),
    "error-no-prompt": Request("/v1/completions", {"model": MODEL}),
    "error-long-prompt": complete(prompt="one " * 3000),
    "error-long-prompt-stream": complete(prompt="one " * 3000, **STREAM),
    "error-unknown-id": complete(prompt=[504, 999999]),
}

# A server that loads its model answers 503 ("error-loading", recorded by hand).
LLAMA_CPP = {
    "props": Request("/props"),
    "slots": Request("/slots"),
    "tokenize": Request("/tokenize", {"content": PROMPT, "with_pieces": True}),
    "apply-template": Request("/apply-template", {"messages": QUESTION}),
    "native": complete_natively(),
    "native-stream": complete_natively(stream=True),
    "native-stream-greedy": complete_natively(
        stream=True, temperature=0.0, samplers=["top_k"], top_k=1
    ),
    "native-stream-text": complete_natively(stream=True, prompt=PROMPT),
    "native-stream-processed": complete_natively(
        stream=True, samplers=["temperature", "top_k", "top_p"], top_k=5, top_p=0.9
    ),
    "native-stream-processed-probs": complete_natively(
        stream=True,
        samplers=["temperature", "top_k", "top_p"],
        top_k=5,
        top_p=0.9,
        post_sampling_probs=True,
    ),
    "native-stream-no-probs": complete_natively(stream=True, n_probs=0),
    "native-stream-one-prob": complete_natively(stream=True, n_probs=1),
    "native-stream-n": complete_natively(stream=True, n_cmpl=2),
    "native-n": complete_natively(n_cmpl=2),
    "native-stream-stop": complete_natively(
        stream=True, samplers=["top_k"], top_k=1, n_predict=24, stop=["France"]
    ),
    "native-stream-default-samplers": Request(
        "/completion", {"prompt": PROMPT_IDS, "n_predict": 4, "stream": True, "n_probs": 3}
    ),
    "native-stream-logit-bias": complete_natively(stream=True, logit_bias=[[7042, False]]),
    "native-stream-grammar": complete_natively(
        stream=True, grammar='root ::= " Paris" | " London"'
    ),
    "native-error-long-prompt": complete_natively(prompt=[504] * 3000),
    "native-error-long-prompt-stream": complete_natively(prompt=[504] * 3000, stream=True),
    "native-error-unknown-id": complete_natively(prompt=[504, 999999]),
    "native-error-type": complete_natively(temperature="hot"),
    "native-error-sampler": complete_natively(samplers=["nothing"]),
    "native-error-grammar": complete_natively(grammar="root ::= ("),
}

IDS = {"return_token_ids": True, "return_tokens_as_token_ids": True}

VLLM = {
    "error-many-logprobs": chat(logprobs=True, top_logprobs=1000),
    "version": Request("/version"),
    "server-info": Request("/server_info"),
    "tokenize": Request("/tokenize", {"model": MODEL, "prompt": PROMPT}),
    "tokenize-chat": Request("/tokenize", {"model": MODEL, "messages": QUESTION}),
    "ids-completion": complete(logprobs=3, **IDS),
    "ids-completion-stream": complete(logprobs=3, **IDS, **STREAM),
    "ids-completion-stream-n": complete(logprobs=3, n=2, **SAMPLED, **IDS, **STREAM),
    "ids-completion-stream-no-logprobs": complete(return_token_ids=True, **STREAM),
    "ids-completion-stream-stop": complete(
        max_tokens=24, stop=["France"], logprobs=1, **IDS, **STREAM
    ),
    "ids-completion-stream-stop-id": complete(
        max_tokens=24, stop_token_ids=[28], logprobs=1, **IDS, **STREAM
    ),
    "ids-chat-stream": chat(
        logprobs=True, top_logprobs=3, return_prompt_text=True, **IDS, **STREAM
    ),
    "ids-chat-stream-emoji": chat(
        messages=EMOJI, max_tokens=32, logprobs=True, top_logprobs=2, **IDS, **STREAM
    ),
    "ids-completion-stream-processed": complete(
        logprobs=3, temperature=0.5, seed=7, top_k=3, top_p=0.9, min_p=0.01, **IDS, **STREAM
    ),
    "prompt-logprobs": complete(prompt_logprobs=2, max_tokens=1),
    "named-logprobs": complete(logprobs=1, logprob_token_ids=[7042, 504], **IDS, **STREAM),
    "error-prompt-logprobs-stream": complete(prompt_logprobs=2, **STREAM),
    "error-beam": complete(use_beam_search=True, n=2, **STREAM),
}

REQUESTS = {"llama.cpp": OPENAI | LLAMA_CPP, "vllm": OPENAI | VLLM}
