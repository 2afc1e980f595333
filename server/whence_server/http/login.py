"""Login of a person with a browser: a token for a cookie, which scripts of a page cannot read."""

from collections.abc import Mapping
from dataclasses import replace
from http import HTTPStatus
from typing import Any

import orjson
from aiohttp import hdrs, web

from whence_server.access.gate import Gate
from whence_server.access.logins import LIFETIME_S
from whence_server.domain.api_routes import LOGIN, LOGOUT
from whence_server.domain.errors import FieldViolation, InvalidRequestError
from whence_server.domain.identity import Identity
from whence_server.http.api.errors import ApiErrors
from whence_server.http.api.forgery import check_unforged
from whence_server.http.bodies import read_json_object
from whence_server.http.credentials import (
    is_secure,
    name_login_cookie,
    read_credentials,
    read_login,
)
from whence_server.http.exchange import Exchange, guard
from whence_server.http.origins import OWN_PAGES, Origins
from whence_server.http.server import Answer
from whence_server.rpc.calls import CallLog

_MAX_BODY_BYTES = 64 << 10
# Larger than a JWT is in practice: each is kept for as long as its login.
_MAX_TOKEN_CHARACTERS = 16 << 10
_HTTPS = "https://"


def list_login_routes(
    calls: CallLog, gate: Gate, origins: Origins = OWN_PAGES
) -> Mapping[tuple[str, str], Answer]:
    """Return the handlers by request method and path."""
    handler = _LoginHandler(gate)
    errors = ApiErrors()
    # Whoever logs in shows nothing yet: the gate is asked by the handler.
    return {
        ("POST", path): guard(path, origins.protect(answer), errors, calls, recorded=False)
        for path, answer in ((LOGIN, handler.log_in), (LOGOUT, handler.log_out))
    }


def describe_caller(identity: Identity) -> dict[str, Any]:
    """Return a caller as the API shows it."""
    return {"id": identity.id, "scopes": sorted(identity.scopes)}


class _LoginHandler:
    def __init__(self, gate: Gate) -> None:
        self._gate = gate

    async def log_in(self, exchange: Exchange) -> web.StreamResponse:
        """Exchange a token for a cookie.

        Raises:
            InvalidRequestError: the body has no token.
            UnauthenticatedError: the token is not known.
        """
        request = exchange.request
        body = await read_json_object(request, _MAX_BODY_BYTES)
        token = body.get("token")
        if not isinstance(token, str) or not token or body.keys() != {"token"}:
            raise InvalidRequestError(FieldViolation("token", "must be a token, and alone"))
        if len(token) > _MAX_TOKEN_CHARACTERS or not token.isprintable() or " " in token:
            raise InvalidRequestError(
                FieldViolation(
                    "token",
                    f"must be a token without spaces, of at most {_MAX_TOKEN_CHARACTERS} "
                    "characters",
                )
            )
        authorization = f"Bearer {token}"
        credentials = replace(read_credentials(request), authorization=authorization)
        admission = await self._gate.admit(f"{request.method} {exchange.route}", credentials)
        response = web.Response(
            body=orjson.dumps({"caller": describe_caller(admission.identity)}),
            content_type="application/json",
            headers={**exchange.make_headers(), hdrs.CACHE_CONTROL: "no-store"},
        )
        if not self._gate.is_open:
            self._gate.logins.end(read_login(request))
            # Behind a proxy that ends TLS, the browser tells that it speaks TLS.
            origin = request.headers.get(hdrs.ORIGIN, "")
            response.set_cookie(
                name_login_cookie(request),
                self._gate.logins.begin(authorization, admission.identity.id),
                max_age=LIFETIME_S,
                path="/",
                secure=is_secure(request) or origin.startswith(_HTTPS),
                httponly=True,
                samesite="Strict",
            )
        return response

    async def log_out(self, exchange: Exchange) -> web.StreamResponse:
        """End the login of the request's cookie, and have the browser forget what it read."""
        request = exchange.request
        check_unforged(request)
        self._gate.logins.end(read_login(request))
        self._gate.check_running()
        response = web.Response(status=HTTPStatus.NO_CONTENT, headers=exchange.make_headers())
        response.headers["Clear-Site-Data"] = '"cache"'
        response.del_cookie(
            name_login_cookie(request),
            path="/",
            secure=is_secure(request),
            httponly=True,
            samesite="Strict",
        )
        return response
