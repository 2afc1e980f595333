"""Server that stands for another engine's: it answers what a test gives it, over real sockets."""

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from aiohttp import web

DATA = Path(__file__).parents[1] / "data" / "upstreams"

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


@dataclass
class FakeUpstream:
    """A server whose routes a test sets; what it was asked is kept.

    Attributes:
        routes: handlers by method and path.
        asked: method, path and JSON body of each request.
        headers: headers of each request, by names in lower case.
        num_cancelled: streams whose reader went away.
    """

    routes: dict[tuple[str, str], Handler] = field(default_factory=dict)
    asked: list[tuple[str, str, Any]] = field(default_factory=list)
    headers: list[dict[str, str]] = field(default_factory=list)
    num_cancelled: int = 0
    url: str = ""

    def answer(self, method: str, path: str, handler: Handler) -> None:
        """Set the answer of a route."""
        self.routes[method, path] = handler

    def answer_json(self, method: str, path: str, document: Any, status: int = 200) -> None:
        """Set a route's answer to a JSON document."""

        async def handle(_request: web.Request) -> web.Response:
            return web.json_response(document, status=status)

        self.answer(method, path, handle)

    def answer_stream(
        self,
        path: str,
        body: bytes,
        content_type: str = "text/event-stream",
        piece_bytes: int | None = None,
    ) -> None:
        """Set the answer of a POST to a stream, sent in pieces of so many bytes."""

        async def handle(request: web.Request) -> web.StreamResponse:
            async with streaming(request, content_type) as response:
                size = piece_bytes or max(len(body), 1)
                for begin in range(0, len(body), size):
                    await response.write(body[begin : begin + size])
            return response

        self.answer("POST", path, handle)

    def get_bodies(self, path: str) -> list[Any]:
        """Return the bodies of the requests of a path."""
        return [body for _, asked, body in self.asked if asked == path]

    async def handle(self, request: web.Request) -> web.StreamResponse:
        """Answer one request."""
        content = await request.read()
        body = json.loads(content) if content else None
        self.asked.append((request.method, request.path, body))
        self.headers.append({name.lower(): value for name, value in request.headers.items()})
        handler = self.routes.get((request.method, request.path))
        if handler is None:
            return web.json_response({"error": {"message": "Not Found"}}, status=404)
        try:
            return await handler(request)
        except (asyncio.CancelledError, ConnectionResetError):
            self.num_cancelled += 1
            raise


@asynccontextmanager
async def serving() -> AsyncIterator[FakeUpstream]:
    """Serve on a free port of loopback."""
    upstream = FakeUpstream()
    app = web.Application()
    app.router.add_route("*", "/{path:.*}", upstream.handle)
    runner = web.AppRunner(app, handler_cancellation=True, shutdown_timeout=0.1)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    upstream.url = f"http://127.0.0.1:{runner.addresses[0][1]}"
    try:
        yield upstream
    finally:
        await runner.cleanup()


@asynccontextmanager
async def streaming(
    request: web.Request, content_type: str = "text/event-stream"
) -> AsyncIterator[web.StreamResponse]:
    """Send a stream's headers; end it in the end."""
    response = web.StreamResponse(headers={"Content-Type": content_type})
    await response.prepare(request)
    yield response
    await response.write_eof()


def make_events(*documents: Any, done: bool = True) -> bytes:
    """Return server-sent events with JSON documents."""
    data = [json.dumps(document, ensure_ascii=False) for document in documents]
    if done:
        data.append("[DONE]")
    return "".join(f"data: {text}\n\n" for text in data).encode()


@dataclass(frozen=True)
class RecordedAnswer:
    """Answer of a real server, or one written from its documentation; see `origin`."""

    name: str
    version: str
    origin: str
    request: dict[str, Any]
    status: int
    content_type: str
    body: bytes


def read_answers(kind: str) -> list[RecordedAnswer]:
    """Return the recorded answers of a kind of upstream."""
    answers = []
    for path in sorted((DATA / kind).glob("*.json")):
        document = json.loads(path.read_text(encoding="utf-8"))
        headers = {name.lower(): value for name, value in document["headers"].items()}
        answers.append(
            RecordedAnswer(
                path.stem,
                document["version"],
                document["origin"],
                document["request"],
                document["status"],
                headers["content-type"],
                document["body"].encode(),
            )
        )
    return answers


def replay(upstream: FakeUpstream, answer: RecordedAnswer, piece_bytes: int | None = None) -> None:
    """Set the route of a recorded answer to it."""

    async def handle(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse(
            status=answer.status, headers={"Content-Type": answer.content_type}
        )
        await response.prepare(request)
        size = piece_bytes or max(len(answer.body), 1)
        for begin in range(0, len(answer.body), size):
            await response.write(answer.body[begin : begin + size])
        await response.write_eof()
        return response

    upstream.answer(answer.request["method"], answer.request["path"], handle)
