"""One upstream, of any kind: the shared client over the adapter of its kind."""

import asyncio
import logging
import re
from collections.abc import AsyncGenerator, Mapping
from contextlib import aclosing
from dataclasses import replace

from whence_server.domain.errors import UpstreamError
from whence_server.domain.observation import Distribution, Observation
from whence_server.engines.upstream.adapter import Adapter, Answer, Found
from whence_server.engines.upstream.exchange import (
    UpstreamDescription,
    UpstreamEvent,
    UpstreamPrompt,
    UpstreamRequest,
)
from whence_server.engines.upstream.passed_on import check_contradictions
from whence_server.engines.upstream.probe import find_distribution
from whence_server.engines.upstream.wire.connection import Connection
from whence_server.engines.upstream.wire.events import Event

_log = logging.getLogger(__name__)

_TRACE_HEADERS = frozenset({"traceparent", "tracestate"})
_HEADER_VALUE = re.compile(r"[\x21-\x7e][\x20-\x7e]{0,1023}")
_HEALTH_S = 5.0
_PROMPT_S = 1.0
"""Seconds that the first chunk may wait for the prompt's ids."""


class UpstreamClient:
    """An upstream, as `exchange.Upstream` declares it.

    Args:
        adapter: adapter of its kind.
        connection: connections to it.
        model: name of the model to ask for; "" for the only one, or the first.
    """

    def __init__(self, adapter: Adapter, connection: Connection, model: str) -> None:
        self._adapter = adapter
        self._connection = connection
        self._model = model
        self._found: Found | None = None

    async def describe(self) -> UpstreamDescription:
        """Ask the upstream what it is, and find which distribution its logprobs are of.

        Raises:
            UpstreamError: it does not answer, or not as this kind.
        """
        description = await self._adapter.describe(self._connection, self._model)
        distribution = self._adapter.profile.distribution
        if distribution is None:
            probed = Found(description, Distribution.UNKNOWN)
            distribution, max_candidates = await find_distribution(
                lambda request: self._generate(request, probed), description
            )
            most_in_text = min(max_candidates, description.count_candidates(is_chat=False))
            description = replace(
                description, max_candidates=max_candidates, max_text_candidates=most_in_text
            )
        self._found = Found(description, distribution)
        # Asked again, the upstream has to serve the model that records name.
        self._model = description.model
        _log.info(
            "the upstream at %s is %s %s and serves %s; its logprobs are %s",
            self._connection.address,
            self._adapter.profile.title,
            description.version or "of an unknown version",
            description.model,
            distribution.name.lower().replace("_", " "),
        )
        return description

    def check(self, request: UpstreamRequest) -> None:
        """Refuse options that the upstream cannot apply.

        Raises:
            InvalidRequestError: names the option and the upstream.
            NotOfferedError: the upstream does not offer the strategy.
        """
        profile, found = self._adapter.profile, self._get_found()
        profile.check(request, found.description.max_candidates)
        # Tools, schemas and arguments of a template are parsed here for the first time.
        own = self._adapter.make_call(replace(request, passed_on={}), found).body
        check_contradictions(request.passed_on, own, profile.neutral_fields.keys(), profile.title)
        self._adapter.make_call(request, found)

    def grade(self, request: UpstreamRequest) -> Observation:
        """Return the grades of the generation that the request asks for."""
        return self._adapter.grade(request, self._get_found())

    def generate(self, request: UpstreamRequest) -> AsyncGenerator[UpstreamEvent, None]:
        """Yield the parts of the answer as they arrive; closing the iterator cancels the request.

        Raises:
            UpstreamError: the upstream is away, refuses, or answers what nobody can read.
        """
        return self._generate(request, self._get_found())

    async def check_health(self) -> bool:
        """Return whether the upstream can answer now."""
        return await self._connection.check(self._adapter.health_route, _HEALTH_S)

    async def close(self) -> None:
        """Close the connections; requests that run are cancelled."""
        await self._connection.close()

    def _get_found(self) -> Found:
        if self._found is None:
            raise RuntimeError("describe() must be called first")
        return self._found

    async def _generate(
        self, request: UpstreamRequest, found: Found
    ) -> AsyncGenerator[UpstreamEvent, None]:
        call = self._adapter.make_call(request, found)
        answer = self._adapter.make_answer(request, found, self._connection.name)
        stream = self._connection.stream(
            call.route, call.body, _make_headers(request), call.make_event_reader
        )
        asking: asyncio.Task[UpstreamPrompt | None] | None
        asking = asyncio.create_task(self._ask_prompt(request))
        try:
            async with aclosing(_read_parts(stream, answer)) as parts:
                async for part in parts:
                    if asking is not None:
                        prompt = await _await_prompt(asking)
                        asking = None
                        if prompt is not None:
                            yield prompt
                    yield part
        finally:
            if asking is not None:
                asking.cancel()

    async def _ask_prompt(self, request: UpstreamRequest) -> UpstreamPrompt | None:
        try:
            return await self._adapter.ask_prompt(self._connection, request)
        except UpstreamError as error:
            # The generation itself shows whether the upstream is away.
            _log.warning("the prompt's token ids are not on record: %s", error)
            return None


async def _read_parts(
    stream: AsyncGenerator[Event, None], answer: Answer
) -> AsyncGenerator[UpstreamEvent, None]:
    async with aclosing(stream):
        async for event in stream:
            for part in answer.read(event):
                yield part
    for part in answer.finish():
        yield part


async def _await_prompt(asking: "asyncio.Task[UpstreamPrompt | None]") -> UpstreamPrompt | None:
    done, _ = await asyncio.wait({asking}, timeout=_PROMPT_S)
    if done:
        return asking.result()
    asking.cancel()
    return None


def _make_headers(request: UpstreamRequest) -> Mapping[str, str]:
    headers = {
        name: value
        for name, value in request.trace_headers.items()
        if name in _TRACE_HEADERS and _HEADER_VALUE.fullmatch(value)
    }
    if _HEADER_VALUE.fullmatch(request.generation_id):
        headers["X-Request-Id"] = request.generation_id
    return headers
