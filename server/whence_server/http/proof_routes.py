"""Routes of what a stranger checks generations with."""

from collections.abc import Iterable, Mapping

from aiohttp import web
from google.protobuf.json_format import MessageToDict

from whence.v1 import proof_pb2
from whence_server.access.gate import OPEN_GATE, Gate
from whence_server.domain.http_routes import KEYS
from whence_server.http.exchange import Exchange, guard
from whence_server.http.openai.errors import OpenAIErrors
from whence_server.http.origins import OWN_PAGES, Origins
from whence_server.http.server import Answer
from whence_server.proof.key_board import KeyBoard
from whence_server.rpc.calls import CallLog


def list_proof_routes(
    keys: KeyBoard | None,
    calls: CallLog,
    gate: Gate = OPEN_GATE,
    origins: Origins = OWN_PAGES,
) -> Mapping[tuple[str, str], Answer]:
    """Return the handlers by request method and path; none if the server does not sign."""
    if keys is None:
        return {}

    async def answer(_exchange: Exchange) -> web.StreamResponse:
        return web.json_response({"keys": spell_keys(await keys.list_keys())})

    handle = origins.protect(answer)
    return {("GET", KEYS): guard(KEYS, handle, OpenAIErrors({}), calls, gate=gate, recorded=False)}


def spell_keys(keys: Iterable[proof_pb2.SigningKey]) -> list[dict[str, object]]:
    """Return signing keys in protobuf's JSON mapping, with false values."""
    return [{"active": False, **MessageToDict(key)} for key in keys]
