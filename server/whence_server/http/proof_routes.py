"""Routes of what a stranger checks generations with."""

import base64
from collections.abc import Mapping

from aiohttp import web

from whence_server.access.gate import OPEN_GATE, Gate
from whence_server.domain.http_routes import KEYS
from whence_server.http.exchange import Exchange, guard
from whence_server.http.openai.errors import OpenAIErrors
from whence_server.http.origins import OWN_PAGES, Origins
from whence_server.http.server import Answer
from whence_server.proof.signing_keys import SigningKeys
from whence_server.rpc.calls import CallLog


def list_proof_routes(
    keys: SigningKeys | None,
    calls: CallLog,
    gate: Gate = OPEN_GATE,
    origins: Origins = OWN_PAGES,
) -> Mapping[tuple[str, str], Answer]:
    """Return the handlers by request method and path; none if the server does not sign."""
    if keys is None:
        return {}

    async def answer(_exchange: Exchange) -> web.StreamResponse:
        return web.json_response({"keys": describe_keys(keys)})

    handle = origins.protect(answer)
    return {("GET", KEYS): guard(KEYS, handle, OpenAIErrors({}), calls, gate=gate, recorded=False)}


def describe_keys(keys: SigningKeys) -> list[dict[str, object]]:
    """Return the signing keys, oldest first, as whence.v1.SigningKey in protobuf's JSON mapping."""
    listed = keys.list_keys()
    return [
        {
            "keyId": entry.key.key_id,
            "publicKeyPem": entry.key.pem,
            "entry": base64.b64encode(data).decode(),
            "active": number == len(listed),
        }
        for number, (data, entry) in enumerate(listed, 1)
    ]
