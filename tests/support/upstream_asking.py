"""Answers of a real upstream server that is asked without whence, by its own API."""

import json
import re
import time
import urllib.request
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from upstream_servers import MODEL


@dataclass(frozen=True)
class Settings:
    """Decoding settings that whence's API, llama.cpp's and vLLM's have in common."""

    num_tokens: int = 12
    temperature: float = 0.0
    """0 is greedy."""
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    seed: int = 7
    """0 leaves it to whence."""
    num_candidates: int = 5


@dataclass(frozen=True)
class Told:
    """An answer: one entry of each list for each token."""

    text: str
    token_ids: list[int]
    logprobs: list[float]
    tables: list[dict[int, float]]
    """Logprobs of the likeliest tokens by id."""
    finish: str


def post(url: str, body: dict[str, Any]) -> Any:
    """Return the JSON answer to a JSON request."""
    request = urllib.request.Request(
        url, data=json.dumps(body).encode(), headers={"content-type": "application/json"}
    )
    with urllib.request.urlopen(request, timeout=240) as response:
        return json.load(response)


def read_text(url: str) -> str:
    """Return the text of a page."""
    with urllib.request.urlopen(url, timeout=60) as response:
        return str(response.read().decode())


def ask_llama_cpp(url: str, prompt: list[int], settings: Settings) -> Told:
    """Ask llama.cpp's own route, with transformers' order of samplers in place of its own."""
    samplers = ["temperature", "top_k", "top_p", "min_p"] if settings.temperature else ["top_k"]
    answer = post(
        f"{url}/completion",
        {
            "prompt": prompt,
            "n_predict": settings.num_tokens,
            "samplers": samplers,
            "temperature": settings.temperature,
            "top_k": settings.top_k if settings.temperature else 1,
            "top_p": settings.top_p,
            "min_p": settings.min_p,
            "seed": settings.seed,
            "n_probs": settings.num_candidates,
            "return_tokens": True,
        },
    )
    steps = answer["completion_probabilities"]
    return Told(
        text=answer["content"],
        token_ids=answer["tokens"],
        logprobs=[step["logprob"] for step in steps],
        tables=[{top["id"]: top["logprob"] for top in step["top_logprobs"]} for step in steps],
        finish={"limit": "length", "eos": "stop", "word": "stop"}[answer["stop_type"]],
    )


def ask_vllm(url: str, prompt: list[int], settings: Settings) -> Told:
    """Ask vLLM's completions, with ids in place of texts."""
    answer = post(
        f"{url}/v1/completions",
        {
            "model": MODEL,
            "prompt": prompt,
            "max_tokens": settings.num_tokens,
            "temperature": settings.temperature,
            "top_k": settings.top_k,
            "top_p": settings.top_p,
            "min_p": settings.min_p,
            "seed": settings.seed,
            "logprobs": settings.num_candidates,
            "return_token_ids": True,
            "return_tokens_as_token_ids": True,
        },
    )
    (choice,) = answer["choices"]
    return Told(
        text=choice["text"],
        token_ids=choice["token_ids"],
        logprobs=choice["logprobs"]["token_logprobs"],
        tables=[
            {int(name.removeprefix("token_id:")): logprob for name, logprob in table.items()}
            for table in choice["logprobs"]["top_logprobs"]
        ],
        finish=choice["finish_reason"],
    )


ASK: dict[str, Callable[[str, list[int], Settings], Told]] = {
    "llama.cpp": ask_llama_cpp,
    "vllm": ask_vllm,
}
_RUNNING = {
    "llama.cpp": r"^llamacpp:requests_processing (\S+)$",
    "vllm": r"^vllm:num_requests_running\{[^}]*\} (\S+)$",
}


def count_running(kind: str, url: str) -> int:
    """Return the number of requests that the server works on, by its own metrics."""
    (value,) = re.findall(_RUNNING[kind], read_text(f"{url}/metrics"), re.MULTILINE)
    return int(float(value))


def wait_until_idle(kind: str, url: str, limit_s: float = 15.0) -> None:
    """Wait until the server works on no request.

    The limit is far above the time of one step, after which a server looks for a cancel, and below
    the time that the tests' longest requests would take.

    Raises:
        AssertionError: it still does after `limit_s`.
    """
    began = time.monotonic()
    while count_running(kind, url):
        assert time.monotonic() < began + limit_s, f"{kind} still works after {limit_s} s"
        time.sleep(0.02)
