"""GET /api/v1/server: the server's load, its models, and what it offers to the caller."""

from collections.abc import Collection, Mapping
from importlib.metadata import version
from typing import Any

import orjson
from aiohttp import web
from google.protobuf import json_format

from whence.v1 import model_pb2
from whence_server.access.gate import OPEN_GATE, Gate
from whence_server.access.scope_table import TABLE
from whence_server.domain.api_routes import API_ROUTES, STATE
from whence_server.http.api.answering import answer_read, keep
from whence_server.http.api.errors import ApiErrors
from whence_server.http.api.routes import Services, make_call
from whence_server.http.exchange import Exchange, guard
from whence_server.http.login import describe_caller
from whence_server.http.origins import OWN_PAGES, Origins
from whence_server.http.server import Answer
from whence_server.rpc import model_servicer
from whence_server.rpc.calls import CallLog, Method
from whence_server.telemetry.live import LiveServer


def list_state_routes(
    services: Services,
    live: LiveServer,
    calls: CallLog,
    gate: Gate = OPEN_GATE,
    origins: Origins = OWN_PAGES,
    *,
    trace_url: str = "",
    missing: Collection[str] = (),
) -> Mapping[tuple[str, str], Answer]:
    """Return the handler by request method and path.

    Args:
        services: the server's methods.
        live: the running server.
        calls: recording of requests.
        gate: admits callers.
        origins: rule for requests of browsers.
        trace_url: URL of the tracing backend's page of a trace; "" if it is not known.
        missing: offers that the server does not make, although it has their RPCs.
    """
    handler = _StateHandler(services, live, gate, trace_url, missing)
    handle = origins.protect(handler.answer)
    answer = guard(STATE, handle, ApiErrors(), calls, gate=gate, recorded=False, takes_login=True)
    return {("GET", STATE): answer}


class _StateHandler:
    def __init__(
        self,
        services: Services,
        live: LiveServer,
        gate: Gate,
        trace_url: str,
        missing: Collection[str],
    ) -> None:
        self._missing = frozenset(missing) | {""}
        self._live = live
        self._gate = gate
        self._trace_url = trace_url
        self._rpcs = {f"{name}/{it.name}" for name, listed in services.items() for it in listed}
        self._models: Method[Any] = next(
            it for it in services[model_servicer.SERVICE] if it.name == "ListModels"
        )

    async def answer(self, exchange: Exchange) -> web.StreamResponse:
        """Describe the server as the caller may use it."""
        if self._models.unary is None:
            raise RuntimeError("ListModels is unary")
        raw = await self._models.unary(model_pb2.ListModelsRequest(), make_call(exchange))
        listed = json_format.MessageToDict(model_pb2.ListModelsResponse.FromString(raw))
        document = orjson.dumps(
            {
                "version": version("whence"),
                "models": listed.get("models", []),
                "offers": self._list_offers(exchange),
                "caller": describe_caller(exchange.identity),
                "login": not self._gate.is_open,
                "traceUrl": self._trace_url,
                **self._describe_load(),
            }
        )
        return await answer_read(exchange, document, keep)

    def _list_offers(self, exchange: Exchange) -> list[str]:
        """Return the names of what the server has and the caller may do."""
        scopes = exchange.identity.scopes
        rules = {route.offer: TABLE[route.name] for route in API_ROUTES if route.rpc in self._rpcs}
        return sorted(
            offer
            for offer, rule in rules.items()
            if offer not in self._missing and (not rule.scopes or scopes.intersection(rule.scopes))
        )

    def _describe_load(self) -> dict[str, Any]:
        live = self._live
        found: dict[str, Any] = {"serving": live.is_serving, "draining": live.is_draining}
        if live.engine is not None:
            found["engineState"] = str(live.engine.state)
        if (generations := live.generations) is not None:
            activity = generations.activity
            found |= {
                "running": generations.num_running,
                "queued": generations.num_waiting_sequences,
                "batchSize": activity.batch_size,
                "tokensPerSecond": round(activity.tokens_per_second, 2),
                "cacheTokens": activity.num_cache_tokens,
                "maxCacheTokens": live.max_cache_tokens,
            }
        if (lag_s := live.export_lag_s) is not None:
            found["exportLagSeconds"] = round(lag_s, 3)
        return found
