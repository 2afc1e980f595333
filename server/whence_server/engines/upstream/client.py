"""One upstream, of any kind: the shared client over the adapter of its kind."""

import asyncio
import logging
import re
from collections.abc import AsyncGenerator, Callable, Mapping
from contextlib import aclosing
from dataclasses import replace
from typing import cast

from whence_server.domain.errors import UpstreamError, UpstreamModelError
from whence_server.domain.observation import Distribution, Observation
from whence_server.engines.upstream.adapter import Adapter, Answer, Found
from whence_server.engines.upstream.exchange import (
    UpstreamDescription,
    UpstreamEnd,
    UpstreamEvent,
    UpstreamPrompt,
    UpstreamRequest,
)
from whence_server.engines.upstream.identity import Identity, IdentityWatch
from whence_server.engines.upstream.passed_on import check_contradictions
from whence_server.engines.upstream.probe import find_distribution
from whence_server.engines.upstream.wire.connection import Connection
from whence_server.engines.upstream.wire.events import Event

_log = logging.getLogger(__name__)

_TRACE_HEADERS = frozenset({"traceparent", "tracestate"})
_HEADER_VALUE = re.compile(r"[\x21-\x7e][\x20-\x7e]{0,1023}")
_HEALTH_S = 5.0
_FIRST_S, _LAST_S = 0.25, 1.0
"""Seconds that the first and the last chunk may wait for the upstream to say what it is.

A server that works on as many requests as it can at once answers no question meanwhile.
"""
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
        # Of its own: a question must not open the connections of generations.
        self._questions = connection.make_twin()
        self._identity = IdentityWatch(self._ask_identity, connection.name)
        connection.on_open = self._identity.note_opened

    async def describe(self) -> UpstreamDescription:
        """Ask the upstream what it is, and find which distribution its logprobs are of.

        Raises:
            UpstreamError: it does not answer, or not as this kind.
        """
        num_opened = self._identity.num_opened
        identity = await self._ask_identity()
        description = identity.description
        distribution = self._adapter.profile.distribution
        if distribution is None:
            probed = Found(description, Distribution.UNKNOWN)
            distribution, max_candidates = await find_distribution(
                lambda request: self._generate(request, probed, confirms=False), description
            )
            most_in_text = min(max_candidates, description.count_candidates(is_chat=False))
            description = replace(
                description, max_candidates=max_candidates, max_text_candidates=most_in_text
            )
        self._found = Found(description, distribution)
        # Asked again, the upstream has to serve the model that records name.
        self._model = description.model
        self._identity.settle(identity, num_opened)
        _log.info(
            "the upstream at %s is %s %s and serves %s; its logprobs are %s",
            self._connection.address,
            self._adapter.profile.title,
            description.version or "of an unknown version",
            description.model,
            _spell(distribution),
        )
        return description

    def check(self, request: UpstreamRequest) -> None:
        """Refuse options that the upstream cannot apply.

        Raises:
            InvalidRequestError: names the option and the upstream.
            NotOfferedError: the upstream does not offer the strategy.
            UpstreamModelError: the upstream was started anew, as another one.
        """
        profile, found = self._adapter.profile, self._get_found()
        self._identity.require()
        profile.check(request, found.description.max_candidates)
        # Tools, schemas and arguments of a template are parsed here for the first time.
        own = self._adapter.make_call(replace(request, passed_on={}), found).body
        check_contradictions(request.passed_on, own, profile.neutral_fields.keys(), profile.title)
        self._adapter.make_call(request, found)

    def grade(self, request: UpstreamRequest) -> Observation:
        """Return the grades of the generation that the request asks for."""
        return self._adapter.grade(request, self._get_found())

    def pin(self) -> object:
        """Return what the upstream is now, for `generate`."""
        return self._get_found()

    def generate(
        self, request: UpstreamRequest, pinned: object
    ) -> AsyncGenerator[UpstreamEvent, None]:
        """Yield the parts of the answer as they arrive; closing the iterator cancels the request.

        Args:
            request: the generation.
            pinned: what `pin` returned when the generation began, which its record names.

        Raises:
            UpstreamError: the upstream is away, refuses, or answers what nobody can read.
            UpstreamModelError: it is no longer what was pinned.
        """
        found = cast("Found", pinned)
        self._check_found(found)
        return self._generate(request, found, confirms=True)

    async def check_health(self) -> bool:
        """Return whether the upstream can answer now."""
        return await self._connection.check(self._adapter.health_route, _HEALTH_S)

    def watch(self, on_doubt: Callable[[], None]) -> None:
        """Call when the upstream has to be described anew, as it seems to be another one."""
        self._identity.on_doubt = on_doubt

    async def is_same(self) -> bool:
        """Return whether the upstream is what `describe` told last, as far as it says."""
        return await self._identity.is_same()

    async def close(self) -> None:
        """Close the connections; requests that run are cancelled."""
        await self._identity.close()
        await self._questions.close()
        await self._connection.close()

    def _check_found(self, found: Found) -> None:
        """Fail a generation whose record names what the upstream was before it was started anew.

        Raises:
            UpstreamModelError: it was described anew meanwhile, and is another one.
        """
        now = self._get_found()
        if now != found:
            raise UpstreamModelError(
                f"{self._connection.name} is another one than when the generation began, since it "
                f"was started anew: it was {_name(found)}, and is {_name(now)}; repeat the request"
            )

    async def _ask_identity(self) -> Identity:
        description = await self._adapter.describe(self._questions, self._model)
        return Identity(description, await self._adapter.ask_process(self._questions))

    def _get_found(self) -> Found:
        if self._found is None:
            raise RuntimeError("describe() must be called first")
        return self._found

    async def _generate(
        self, request: UpstreamRequest, found: Found, *, confirms: bool
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
                    if confirms and (asking is not None or isinstance(part, UpstreamEnd)):
                        # No token is told of a model that the record does not name.
                        is_first = asking is not None
                        await self._identity.confirm(_FIRST_S if is_first else _LAST_S)
                        if not is_first:
                            await self._identity.wait_settled(_LAST_S)
                        self._check_found(found)
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


def _name(found: Found) -> str:
    told = found.description
    parts = [told.kind, told.version, f"with {told.model}"]
    if told.claimed_files:
        parts.append(f"from {told.claimed_files}")
    return f"{' '.join(filter(None, parts))} and {_spell(found.distribution)} logprobs"


def _spell(distribution: Distribution) -> str:
    return distribution.name.lower().replace("_", " ")


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
