"""GET /v1/models."""

import time

import orjson
from aiohttp import web

from whence_server.http.exchange import Exchange
from whence_server.rpc.serving import Serving


class Models:
    """Handler of the list of models, and of one model by its name."""

    def __init__(self, serving: Serving) -> None:
        self._serving = serving
        self._created = int(time.time())

    async def list(self, exchange: Exchange) -> web.StreamResponse:
        """List the served model, once it is loaded."""
        served = [] if self._serving.model is None else [self._describe()]
        return self._answer(exchange, {"object": "list", "data": served})

    async def get(self, exchange: Exchange) -> web.StreamResponse:
        """Describe one model.

        Raises:
            ModelNotFoundError: another model is served.
            ModelNotReadyError: the model is loading.
        """
        self._serving.check_model(exchange.request.match_info["model"])
        self._serving.get_generations()
        return self._answer(exchange, self._describe())

    def _describe(self) -> dict[str, object]:
        model = self._serving.model
        return {
            "id": self._serving.model_name,
            "object": "model",
            "created": self._created,
            "owned_by": "whence",
            # Names that other servers have added to the API.
            "max_model_len": None if model is None else model.max_context_length,
            "whence": None
            if model is None
            else {"model_digest": model.model_digest, "weights_digest": model.weights_digest},
        }

    def _answer(self, exchange: Exchange, document: dict[str, object]) -> web.StreamResponse:
        return web.Response(
            body=orjson.dumps(document),
            content_type="application/json",
            headers=exchange.make_headers(),
        )
