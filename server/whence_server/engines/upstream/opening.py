"""Opening of an upstream: its kind, found by asking, and the client for it."""

import asyncio
import logging
from collections.abc import Callable, Mapping
from dataclasses import replace
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


_MODELS = "/v1/models"


class _Sign(NamedTuple):
    """Answers by which a kind is recognised, by their routes."""

    routes: tuple[str, ...]
    is_sign: Callable[..., bool]
    """Says whether the answers, in the order of their routes, are those of the kind."""


def _has_version(answer: Mapping[str, Any]) -> bool:
    return isinstance(answer.get("version"), str)


def _is_list_of_vllm(models: Mapping[str, Any]) -> bool:
    """Return whether vLLM owns the models that are listed."""
    listed = models.get("data")
    return isinstance(listed, list) and any(
        isinstance(model, dict) and model.get("owned_by") == "vllm" for model in listed
    )


ADAPTERS: Mapping[str, Callable[[], Adapter]] = {
    "vllm": VllmAdapter,
    "llama.cpp": LlamaCppAdapter,
    "sglang": SglangAdapter,
    "ollama": OllamaAdapter,
    "openai": OpenAIAdapter,
}
"""Maker of each kind's adapter."""

_SIGNS: Mapping[str, _Sign] = {
    "llama.cpp": _Sign(("/props",), lambda props: "default_generation_settings" in props),
    "sglang": _Sign(("/get_model_info",), lambda info: "model_path" in info),
    # Many servers have a route /version.
    "vllm": _Sign(
        ("/version", _MODELS),
        lambda version, models: _has_version(version) and _is_list_of_vllm(models),
    ),
    "ollama": _Sign(("/api/version",), _has_version),
    "openai": _Sign((_MODELS,), lambda models: isinstance(models.get("data"), list)),
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
        if kind in {"", "openai"} and not connection.address.is_given_with_version:
            await _find_base(connection)
        if not kind:
            kind = await find_kind(connection)
            _log.info("the upstream at %s is of kind %s, found by asking", connection.address, kind)
        return UpstreamClient(ADAPTERS[kind](), connection, model)
    except BaseException:
        await connection.close()
        raise


async def _find_base(connection: Connection) -> None:
    """Find where the API's routes are: below "/v1", as most servers have them, or at the URL.

    Raises:
        UpstreamAwayError: the upstream does not answer.
    """
    address = connection.address
    for has_version in (True, False):
        connection.address = replace(address, has_version=has_version)
        if await _lists_models(connection):
            _log.info(
                "the upstream's API is at %s: the URL was given without /v1",
                connection.address.join(_MODELS).parent,
            )
            return
    # It may be of a kind with routes of its own.
    connection.address = address


async def _lists_models(connection: Connection) -> bool:
    try:
        answer = await connection.get_object(_MODELS, _ASK_S)
    except UpstreamAwayError:
        raise
    except UpstreamError:
        return False
    return isinstance(answer.get("data"), list)


async def find_kind(connection: Connection) -> str:
    """Return the kind of an upstream, by the routes that it has.

    Raises:
        UpstreamError: it does not answer, or as none of the kinds.
    """
    routes = list(dict.fromkeys(route for sign in _SIGNS.values() for route in sign.routes))
    answers = dict(
        zip(
            routes,
            await asyncio.gather(
                *(connection.get_object(route, _ASK_S) for route in routes),
                return_exceptions=True,
            ),
            strict=True,
        )
    )
    for kind, sign in _SIGNS.items():
        told = [answers[route] for route in sign.routes]
        if all(isinstance(answer, dict) for answer in told) and sign.is_sign(*told):
            return kind
    for wanted in (UpstreamAwayError, UpstreamBusyError, UpstreamKeyError):
        for answer in answers.values():
            if isinstance(answer, wanted):
                raise answer
    for answer in answers.values():
        if isinstance(answer, BaseException) and not isinstance(answer, UpstreamError):
            raise answer
    also = ""
    if not connection.address.is_given_with_version:
        bare = replace(connection.address, has_version=False).join(_MODELS)
        also = f", and neither has {bare}: the URL was given without /v1, so both were asked"
    raise UpstreamError(
        f"{connection.name} answers as none of the kinds {', '.join(_SIGNS)}: none of "
        f"{', '.join(routes)} has the answer of one{also}; give the URL of its API "
        "(--upstream), or name its kind (--upstream-kind)"
    )
