"""Short events of what runs now, in one stream that all open pages of a caller share.

A page that followed every step as the contract has it would cost the server as much as a client
does. This stream has texts and probabilities alone, twice a second, and is read once for all pages:
fifty pages cost little more than one.
"""

import asyncio
import logging
from collections.abc import AsyncGenerator, Callable, Mapping
from contextlib import aclosing, suppress
from typing import Any

import orjson
from aiohttp import web

from whence.v1 import generation_pb2, trace_pb2
from whence_server.access.audit import AuditTrail
from whence_server.access.gate import OPEN_GATE, Gate
from whence_server.domain.api_routes import PULSE
from whence_server.domain.errors import WhenceError
from whence_server.domain.identity import Identity
from whence_server.http.api.errors import ApiErrors
from whence_server.http.api.routes import Services, make_call
from whence_server.http.exchange import Exchange, guard
from whence_server.http.origins import OWN_PAGES, Origins
from whence_server.http.server import Answer
from whence_server.http.streams import COMMENT, make_event, open_stream
from whence_server.rpc import trace_servicer
from whence_server.rpc.auditing import note_call
from whence_server.rpc.calls import CallLog, Method

_log = logging.getLogger(__name__)

_INTERVAL_S = 0.5
# Of a reader that is slower than this, the stream ends: it comes back, and reads the record.
_MOST_WAITING = 20
_PREVIEW_CHARACTERS = 200

Messages = AsyncGenerator[bytes, None]


def list_pulse_routes(
    services: Services,
    calls: CallLog,
    gate: Gate = OPEN_GATE,
    origins: Origins = OWN_PAGES,
    *,
    interval_s: float = 0.0,
) -> Mapping[tuple[str, str], Answer]:
    """Return the handler by request method and path.

    Args:
        services: the server's methods.
        calls: recording of requests.
        gate: admits callers.
        origins: rule for requests of browsers.
        interval_s: seconds of silence after which a comment is written; 0 for never.
    """
    listed = services[trace_servicer.SERVICE]
    watch = next(method for method in listed if method.name == "WatchGenerations")
    handle = origins.protect(_Pulse(watch, gate.trail, interval_s).answer)
    answer = guard(PULSE, handle, ApiErrors(), calls, gate=gate, recorded=False, takes_login=True)
    return {("GET", PULSE): answer}


class _Pulse:
    def __init__(self, watch: Method[Any], trail: AuditTrail, silence_s: float) -> None:
        self._watch = watch
        self._trail = trail
        self._silence_s = silence_s or None
        self._feeds: dict[Identity, _Feed] = {}

    async def answer(self, exchange: Exchange) -> web.StreamResponse:
        """Send what happens to the generations that the caller may see."""
        # A page may be open for days: it is noted before it shows anything.
        exchange.call = make_call(exchange)
        note_call(self._trail, exchange.call, None, 0)
        feed = self._feeds.get(exchange.identity) or self._open_feed(exchange)
        reader = feed.join()
        try:
            response = await open_stream(exchange)
            await response.write(COMMENT)
            while True:
                event = COMMENT
                with suppress(TimeoutError):
                    async with asyncio.timeout(self._silence_s):
                        event = await reader.get()
                if not event:
                    break
                await response.write(event)
        finally:
            feed.leave(reader)
        await response.write_eof()
        return response

    def _open_feed(self, exchange: Exchange) -> "_Feed":
        if self._watch.stream is None:
            raise RuntimeError("WatchGenerations streams")
        messages = self._watch.stream(trace_pb2.WatchGenerationsRequest(), make_call(exchange))
        feed = _Feed(messages, self._forget)
        self._feeds[exchange.identity] = feed
        return feed

    def _forget(self, feed: "_Feed") -> None:
        self._feeds = {identity: it for identity, it in self._feeds.items() if it is not feed}


class _Feed:
    """One reading of the watch, and its readers; it ends with the last of them.

    Args:
        messages: the watch; closed at the end.
        on_end: called once no reader can join any more.
    """

    def __init__(self, messages: Messages, on_end: Callable[["_Feed"], None]) -> None:
        self._messages = messages
        self._on_end = on_end
        self._readers: set[asyncio.Queue[bytes]] = set()
        self._changes: dict[str, dict[str, Any]] = {}
        self._task = asyncio.create_task(self._run(), name="page-pulse")
        self._task.add_done_callback(_log_failure)

    def join(self) -> asyncio.Queue[bytes]:
        """Return the events of a new reader; an empty one is the last."""
        reader: asyncio.Queue[bytes] = asyncio.Queue()
        self._readers.add(reader)
        return reader

    def leave(self, reader: asyncio.Queue[bytes]) -> None:
        """Forget a reader."""
        self._readers.discard(reader)
        if not self._readers:
            self._on_end(self)
            self._task.cancel()

    async def _run(self) -> None:
        try:
            # A failure of one ends the other: nothing is gathered that nobody sends.
            async with asyncio.TaskGroup() as group:
                sending = group.create_task(self._send())
                # The server drains, for one: the readers come back.
                with suppress(WhenceError):
                    await self._gather()
                sending.cancel()
        finally:
            self._on_end(self)
            for reader in self._readers:
                reader.put_nowait(b"")

    async def _gather(self) -> None:
        async with aclosing(self._messages):
            async for raw in self._messages:
                note_changes(self._changes, trace_pb2.WatchGenerationsResponse.FromString(raw))

    async def _send(self) -> None:
        while True:
            await asyncio.sleep(_INTERVAL_S)
            if not self._changes:
                continue
            event = make_event(orjson.dumps({"generations": list(self._changes.values())}))
            self._changes.clear()
            for reader in self._readers:
                if reader.qsize() < _MOST_WAITING:
                    reader.put_nowait(event)
                elif reader.qsize() == _MOST_WAITING:
                    reader.put_nowait(b"")


def _log_failure(task: asyncio.Task[None]) -> None:
    if not task.cancelled() and (error := task.exception()) is not None:
        _log.error("the stream of running generations failed", exc_info=error)


def note_changes(
    changes: dict[str, dict[str, Any]], message: trace_pb2.WatchGenerationsResponse
) -> None:
    """Add what a message says to the changes of its generation.

    They are `started`, the summary; `steps`, each as sequence, index, text and logprob or null; and
    `finished`, the reason.
    """
    kind = message.event.WhichOneof("event")
    if kind not in {"started", "steps", "finished"}:
        return
    generation_id = message.generation_id
    change = changes.setdefault(generation_id, {"generationId": generation_id})
    if kind == "started":
        change["started"] = _describe_start(message.event.started)
    elif kind == "finished":
        reason = message.event.finished.finish_reason
        named = generation_pb2.FinishReason.DESCRIPTOR.values_by_number.get(reason)
        # A later version may have written it.
        change["finished"] = named.name if named else str(reason)
    else:
        change.setdefault("steps", []).extend(
            [
                step.sequence_index,
                step.index,
                step.text,
                round(step.logprob, 4) if step.HasField("logprob") else None,
            ]
            for step in message.event.steps.steps
        )


def _describe_start(started: generation_pb2.GenerationStarted) -> dict[str, Any]:
    return {
        "generationId": started.generation_id,
        "model": started.model,
        "startTime": started.start_time.ToJsonString(),
        "promptPreview": started.prompt[:_PREVIEW_CHARACTERS],
    }
