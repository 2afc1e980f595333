"""GET /api/v1/server: offers follow from the methods, and the load from the running parts."""

import asyncio
from types import SimpleNamespace
from typing import Any

import pytest
from aiohttp import ClientSession

from whence_server.domain.api_routes import STATE
from whence_server.http.api.state import list_state_routes
from whence_server.http.openai.routes import make_not_found
from whence_server.http.server import HttpServer
from whence_server.rpc import model_servicer, trace_servicer
from whence_server.rpc.calls import CallLog
from whence_server.rpc.model_servicer import ModelServicer
from whence_server.rpc.serving import Serving
from whence_server.rpc.trace_servicer import TraceServicer
from whence_server.telemetry.lag import Lag
from whence_server.telemetry.live import Consumer, LiveServer
from whence_server.web import list_missing_offers

NOTHING: Any = None


async def ask(live: LiveServer, **options: Any) -> dict[str, Any]:
    """Return the state of a server that only records."""
    serving = Serving("m", NOTHING, has_model=False)
    services = {
        model_servicer.SERVICE: ModelServicer(serving, NOTHING).list_methods(),
        trace_servicer.SERVICE: TraceServicer(NOTHING, asyncio.Event()).list_methods(),
    }
    calls = CallLog(lambda _: None)
    routes = list_state_routes(services, live, calls, **options)
    server = HttpServer(routes, "127.0.0.1", 0, make_not_found(calls), max_connections=8)
    await server.start()
    try:
        async with ClientSession() as session, session.get(server.url + STATE) as answer:
            assert answer.status == 200
            found: dict[str, Any] = await answer.json()
            return found
    finally:
        await server.close()


async def test_a_server_offers_what_it_has_methods_for() -> None:
    live = LiveServer(NOTHING, 0)
    state = await ask(live, trace_url="http://x/{trace_id}")
    assert state["offers"] == ["delete", "search"]
    assert state["models"] == []
    assert state["traceUrl"] == "http://x/{trace_id}"
    assert state["login"] is False
    assert "running" not in state
    assert "exportLagSeconds" not in state
    assert (await ask(live, missing=["search"]))["offers"] == ["delete"]


async def test_the_load_is_that_of_the_running_parts() -> None:
    live = LiveServer(NOTHING, 100)
    activity = SimpleNamespace(batch_size=3, num_cache_tokens=7, tokens_per_second=12.346)
    parts: Any = SimpleNamespace(num_running=4, num_waiting_sequences=5, activity=activity)
    live.show_generations(parts)
    export: Any = object()
    live.consumers = {
        "metrics": Consumer(lambda: Lag(9, 99.0)),
        "spans": Consumer(lambda: Lag(1, 0.5), export),
        "events": Consumer(lambda: Lag(1, 1.5), export),
    }
    state = await ask(live)
    names = ("running", "queued", "batchSize", "tokensPerSecond", "cacheTokens", "maxCacheTokens")
    assert [state[name] for name in names] == [4, 5, 3, 12.35, 7, 100]
    assert state["exportLagSeconds"] == 1.5


@pytest.mark.parametrize(
    ("given", "missing"),
    [
        ({"model": "m"}, []),
        ({"model": "m", "has_search": False}, ["search"]),
        ({"record_only": True}, ["generate", "cancel", "fork", "verify", "explain"]),
        ({"upstream": "http://x/v1"}, ["verify", "explain", "fork"]),
        ({"upstream": "http://x/v1", "upstream_weights": "w"}, ["fork"]),
    ],
)
def test_what_a_server_cannot_do_is_not_offered(given: dict[str, Any], missing: list[str]) -> None:
    has_search = given.get("has_search", True)
    nothing = {"record_only": False, "upstream": "", "upstream_weights": None}
    settings: Any = SimpleNamespace(**nothing | given)
    assert list_missing_offers(settings, has_search=has_search) == missing
