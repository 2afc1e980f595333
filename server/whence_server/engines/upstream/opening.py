"""Opening of an upstream: its kind, found by asking, and the client for it."""

import asyncio
import logging
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from whence_server.domain.errors import (
    ConfigurationError,
    UpstreamAwayError,
    UpstreamBusyError,
    UpstreamError,
    UpstreamKeyError,
)
from whence_server.engines.upstream.adapter import Adapter
from whence_server.engines.upstream.client import UpstreamClient
from whence_server.engines.upstream.kinds.llama_cpp import LlamaCppAdapter
from whence_server.engines.upstream.kinds.ollama import OllamaAdapter
from whence_server.engines.upstream.kinds.openai import OpenAIAdapter
from whence_server.engines.upstream.kinds.sglang import SglangAdapter
from whence_server.engines.upstream.kinds.vllm import VllmAdapter
from whence_server.engines.upstream.wire.address import parse_address
from whence_server.engines.upstream.wire.api_key import ApiKey
from whence_server.engines.upstream.wire.connection import Connection, WireLimits

_log = logging.getLogger(__name__)

_ASK_S = 5.0


class _Sign(NamedTuple):
    """Route by which a kind is recognised."""

    route: str
    is_sign: Callable[[Mapping[str, Any]], bool]


ADAPTERS: Mapping[str, Callable[[], Adapter]] = {
    "vllm": VllmAdapter,
    "llama.cpp": LlamaCppAdapter,
    "sglang": SglangAdapter,
    "ollama": OllamaAdapter,
    "openai": OpenAIAdapter,
}
"""Maker of each kind's adapter."""

_SIGNS: Mapping[str, _Sign] = {
    "llama.cpp": _Sign("/props", lambda answer: "default_generation_settings" in answer),
    "sglang": _Sign("/get_model_info", lambda answer: "model_path" in answer),
    "vllm": _Sign("/version", lambda answer: isinstance(answer.get("version"), str)),
    "ollama": _Sign("/api/version", lambda answer: isinstance(answer.get("version"), str)),
    "openai": _Sign("/v1/models", lambda answer: isinstance(answer.get("data"), list)),
}
"""Signs in their order: the first that is there names the kind."""


async def open_upstream(
    url: str,
    *,
    kind: str = "",
    model: str = "",
    api_key_file: Path | None = None,
    limits: WireLimits | None = None,
) -> UpstreamClient:
    """Return the client of an upstream, whose `describe` has to be called next.

    Args:
        url: its address, with "/v1" at the end or without.
        kind: a key of `ADAPTERS`; "" finds it by asking.
        model: name of the model to ask for; "" for the only one, or the first.
        api_key_file: file with the API key; None for none.
        limits: limits on the answers; None for the defaults.

    Raises:
        ConfigurationError: the address, the kind or the file of the key is wrong.
        UpstreamError: the upstream does not answer, or as none of the kinds.
    """
    if kind and kind not in ADAPTERS:
        raise ConfigurationError(
            f"there is no kind of upstream {kind!r}; there are {', '.join(sorted(ADAPTERS))}"
        )
    connection = Connection(parse_address(url), ApiKey(api_key_file), limits or WireLimits())
    try:
        if not kind:
            kind = await find_kind(connection)
            _log.info("the upstream at %s is of kind %s, found by asking", connection.address, kind)
        return UpstreamClient(ADAPTERS[kind](), connection, model)
    except BaseException:
        await connection.close()
        raise


async def find_kind(connection: Connection) -> str:
    """Return the kind of an upstream, by the routes that it has.

    Raises:
        UpstreamError: it does not answer, or as none of the kinds.
    """
    answers = await asyncio.gather(
        *(connection.get_object(sign.route, _ASK_S) for sign in _SIGNS.values()),
        return_exceptions=True,
    )
    for (kind, sign), answer in zip(_SIGNS.items(), answers, strict=True):
        if isinstance(answer, dict) and sign.is_sign(answer):
            return kind
    for wanted in (UpstreamAwayError, UpstreamBusyError, UpstreamKeyError):
        for answer in answers:
            if isinstance(answer, wanted):
                raise answer
    for answer in answers:
        if isinstance(answer, BaseException) and not isinstance(answer, UpstreamError):
            raise answer
    routes = ", ".join(sign.route for sign in _SIGNS.values())
    raise UpstreamError(
        f"{connection.name} answers as none of the kinds {', '.join(_SIGNS)}: none of {routes} has "
        "the answer of one; name its kind (--upstream-kind)"
    )
