"""GET /v1/models."""

import time

import orjson
from aiohttp import web

from whence_server.domain.model import NamedAdapter
from whence_server.http.exchange import Exchange
from whence_server.rpc.serving import Serving


class Models:
    """Handler of the list of models, and of one model by its name."""

    def __init__(self, serving: Serving) -> None:
        self._serving = serving
        self._created = int(time.time())

    async def list(self, exchange: Exchange) -> web.StreamResponse:
        """List the served model and its adapters, once they are loaded."""
        model = self._serving.model
        served = [] if model is None else [self._describe()]
        adapters = () if model is None else model.adapters
        served += [self._describe_adapter(adapter) for adapter in adapters]
        return self._answer(exchange, {"object": "list", "data": served})

    async def get(self, exchange: Exchange) -> web.StreamResponse:
        """Describe one model.

        Raises:
            ModelNotFoundError: another model is served.
            ModelNotReadyError: the model is loading.
        """
        self._serving.get_generations()
        name = exchange.request.match_info["model"]
        adapters = () if self._serving.model is None else self._serving.model.adapters
        for adapter in adapters:
            if adapter.name == name:
                return self._answer(exchange, self._describe_adapter(adapter))
        self._serving.check_model(name)
        return self._answer(exchange, self._describe())

    def _describe(self) -> dict[str, object]:
        model = self._serving.model
        return {
            "id": self._serving.model_name,
            "object": "model",
            "created": self._created,
            "owned_by": "whence",
            # Names that other servers have added to the API.
            "max_model_len": None if model is None else model.max_context_length or None,
            "whence": None
            if model is None
            else {"model_digest": model.model_digest, "weights_digest": model.weights_digest},
        }

    def _describe_adapter(self, adapter: NamedAdapter) -> dict[str, object]:
        return {
            "id": adapter.name,
            "object": "model",
            "created": self._created,
            "owned_by": "whence",
            "parent": self._serving.model_name,
            "whence": {"digest": adapter.identity.digest, "weights_digest": adapter.weights_digest},
        }

    def _answer(self, exchange: Exchange, document: dict[str, object]) -> web.StreamResponse:
        return web.Response(
            body=orjson.dumps(document),
            content_type="application/json",
            headers=exchange.make_headers(),
        )
