"""Routes of OpenAI's API."""

from collections.abc import Mapping

from aiohttp import web

from whence_server.access.gate import OPEN_GATE, Gate
from whence_server.domain.errors import RouteNotFoundError
from whence_server.domain.http_routes import CHAT_COMPLETIONS, COMPLETIONS, RESPONSES
from whence_server.http.exchange import Exchange, guard
from whence_server.http.openai.chat import ChatCompletions
from whence_server.http.openai.completions import Completions
from whence_server.http.openai.errors import OpenAIErrors
from whence_server.http.openai.models import Models
from whence_server.http.openai.requests import FIELD_NAMES
from whence_server.http.openai.responses import Responses
from whence_server.http.openai.running import Front
from whence_server.http.origins import OWN_PAGES, Origins
from whence_server.http.server import Answer
from whence_server.rpc.calls import CallLog

_RESPONSES_NAMES = {
    **FIELD_NAMES,
    "chat.messages": "input",
    "decoding.constraint.json_schema": "text.format",
    "decoding.max_new_tokens": "max_output_tokens",
}


def list_routes(
    front: Front, calls: CallLog, gate: Gate = OPEN_GATE, origins: Origins = OWN_PAGES
) -> Mapping[tuple[str, str], Answer]:
    """Return the handlers by request method and path."""
    errors = OpenAIErrors(FIELD_NAMES)
    models = Models(front.serving)
    answers = {
        CHAT_COMPLETIONS: (ChatCompletions(front).answer, errors),
        COMPLETIONS: (Completions(front).answer, errors),
        RESPONSES: (Responses(front).answer, OpenAIErrors(_RESPONSES_NAMES)),
    }
    routes = {
        ("POST", path): guard(path, origins.protect(answer), renderer, calls, gate=gate)
        for path, (answer, renderer) in answers.items()
    }
    for path, handle in (("/v1/models", models.list), ("/v1/models/{model:.+}", models.get)):
        protected = origins.protect(handle)
        routes["GET", path] = guard(path, protected, errors, calls, gate=gate, recorded=False)
    # A browser asks beforehand without credentials.
    preflight = origins.protect(origins.answer_preflight)
    for _, path in list(routes):
        routes["OPTIONS", path] = guard(path, preflight, errors, calls, recorded=False)
    return routes


def make_not_found(calls: CallLog, origins: Origins = OWN_PAGES) -> Answer:
    """Return the handler of every other path."""

    async def refuse(exchange: Exchange) -> web.StreamResponse:
        raise RouteNotFoundError(exchange.request.method, exchange.request.path)

    return guard("", origins.protect(refuse), OpenAIErrors({}), calls, recorded=False)
