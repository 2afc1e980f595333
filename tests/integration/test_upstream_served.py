"""A server over an upstream, through the upstream's absence, return and end."""

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import grpc
import pytest
from aiohttp import web
from backend_process import find_free_port
from grpc_health.v1 import health_pb2, health_pb2_grpc
from server_process import ServerProcess
from waiting import wait_until

from whence import AsyncClient
from whence.errors import GenerationFailedError
from whence.v1.model_pb2 import MODEL_STATE_LOADING

KEY = "sk-a-secret-of-this-test"


class Upstream:
    """A plain OpenAI-compatible server, which tells text and logprobs."""

    def __init__(self) -> None:
        self.port = find_free_port()
        self.num_open = 0
        self.keys: set[str | None] = set()
        self.bodies: list[dict] = []

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        app = web.Application()
        app.router.add_get("/v1/models", self._list_models)
        app.router.add_post("/v1/completions", self._complete)
        runner = web.AppRunner(app, handler_cancellation=True, shutdown_timeout=0.1)
        await runner.setup()
        site = web.TCPSite(runner, "127.0.0.1", self.port, reuse_address=True)
        await site.start()
        try:
            yield
        finally:
            await runner.cleanup()

    async def _list_models(self, request: web.Request) -> web.Response:
        self.keys.add(request.headers.get("Authorization"))
        return web.json_response({"object": "list", "data": [{"id": "smol", "object": "model"}]})

    async def _complete(self, request: web.Request) -> web.StreamResponse:
        self.bodies.append(await request.json())
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        await response.prepare(request)
        self.num_open += 1
        try:
            await self._stream(response, endless="forever" in self.bodies[-1]["prompt"])
        finally:
            self.num_open -= 1
        return response

    async def _stream(self, response: web.StreamResponse, *, endless: bool) -> None:
        async def send(document: object) -> None:
            await response.write(f"data: {json.dumps(document)}\n\n".encode())

        await send(_make_chunk(" Pa", -0.5))
        await send(_make_chunk("ris", -0.25))
        while endless:
            await send(_make_chunk(".", -0.5))
            await asyncio.sleep(0.02)
        await send(_make_chunk("", None, "length"))
        usage = {"prompt_tokens": 5, "completion_tokens": 2, "total_tokens": 7}
        await send({"model": "smol", "choices": [], "usage": usage})
        await response.write(b"data: [DONE]\n\n")


def _make_chunk(text: str, logprob: float | None, finish: str | None = None) -> dict:
    table = {
        "tokens": [text],
        "token_logprobs": [logprob],
        "top_logprobs": [{text: logprob, "?": -3.0}],
        "text_offset": [0],
    }
    choice = {
        "index": 0,
        "text": text,
        "logprobs": None if logprob is None else table,
        "finish_reason": finish,
    }
    return {"id": "cmpl-1", "object": "text_completion", "model": "smol", "choices": [choice]}


async def wait_for_health(channel: grpc.aio.Channel, wanted: str) -> None:
    """Follow the server's health until it has a status."""
    request = health_pb2.HealthCheckRequest()
    async with asyncio.timeout(30):
        async for answer in health_pb2_grpc.HealthStub(channel).Watch(request):
            if health_pb2.HealthCheckResponse.ServingStatus.Name(answer.status) == wanted:
                return


async def run(client: AsyncClient, prompt: str) -> None:
    async with client.generate(prompt, max_new_tokens=2) as generation:
        async for _ in generation:
            pass


@pytest.mark.timeout(180)
async def test_an_upstream_is_served_while_it_is_there(tmp_path: Path) -> None:
    upstream, key = Upstream(), tmp_path / "key"
    key.write_text(KEY)
    server = ServerProcess(
        None,
        tmp_path / "data",
        *("--upstream", f"http://127.0.0.1:{upstream.port}/v1", "--upstream-kind", "openai"),
        *("--upstream-api-key-file", str(key)),
    )
    try:
        async with AsyncClient(server.target) as client:
            channel = grpc.aio.insecure_channel(server.target)
            # Down at start: the port is open, and nothing is served.
            await wait_until(lambda: any("asked again" in line for line in server.log))
            (model,) = await client.models()
            assert model.state == MODEL_STATE_LOADING
            async with upstream.running():
                model = await client.wait_ready(60)
                assert (model.model, model.upstream.kind) == ("smol", "openai")
                assert upstream.keys == {f"Bearer {KEY}"}
                generation = client.generate(
                    "The capital of France is", max_new_tokens=2, temperature=0.5, seed=3
                )
                async with generation:
                    tokens = [token async for token in generation]
                assert [token.text for token in tokens] == [" Pa", "ris"]
                assert tokens[0].probability == pytest.approx(0.6065, abs=1e-4)
                assert generation.finished.num_prompt_tokens == 5
                assert upstream.bodies[-1]["seed"] == 3
                # A cancel reaches the upstream, which would go on for minutes.
                async with client.generate("Go on forever", max_new_tokens=9_000) as generation:
                    await anext(aiter(generation))
                    assert upstream.num_open == 1
                    await client.cancel(generation.id)
                    await wait_until(lambda: upstream.num_open == 0)
                await wait_for_health(channel, "SERVING")
            # Away later.
            await wait_for_health(channel, "NOT_SERVING")
            with pytest.raises(GenerationFailedError, match="upstream"):
                await run(client, "Hi")
            async with upstream.running():
                await wait_for_health(channel, "SERVING")
            await channel.close()
        assert server.terminate() == 0
    finally:
        if server.process.poll() is None:
            server.kill()
    assert not any(KEY in line for line in server.log)
    for path in (tmp_path / "data").rglob("*"):
        assert path.is_dir() or KEY.encode() not in path.read_bytes()
