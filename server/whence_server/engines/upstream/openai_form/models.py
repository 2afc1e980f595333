"""Models that an upstream lists at /v1/models."""

from typing import Any

from whence_server.domain.errors import UpstreamMalformedError, UpstreamModelError
from whence_server.engines.upstream.wire.connection import Connection
from whence_server.engines.upstream.wire.documents import get_objects, get_text, quote

_MAX_SHOWN = 8


async def list_models(connection: Connection) -> list[dict[str, Any]]:
    """Return the served models.

    Raises:
        UpstreamError: the upstream does not list them.
    """
    document = await connection.get_object("/v1/models")
    models = [model for model in get_objects(document, "data", "") if get_text(model, "id", "")]
    if not models:
        raise UpstreamMalformedError(f"{connection.name} lists no model at /v1/models")
    return models


def choose_model(models: list[dict[str, Any]], wanted: str, name: str) -> dict[str, Any]:
    """Return the model with a name; without a name the first, which upstreams serve by default.

    Raises:
        UpstreamModelError: the upstream does not serve it.
    """
    if not wanted:
        return models[0]
    for model in models:
        if model["id"] == wanted:
            return model
    served = ", ".join(repr(quote(model["id"])) for model in models[:_MAX_SHOWN])
    more = f" and {len(models) - _MAX_SHOWN} more" if len(models) > _MAX_SHOWN else ""
    raise UpstreamModelError(
        f"{name} does not serve the model {quote(wanted)!r}; it serves {served}{more} "
        "(--upstream-model)"
    )
