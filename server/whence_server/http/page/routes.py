"""Routes of the page: one document at every address of it, and the files that it loads.

They hold nothing of the record, so that they need no credentials: a browser that follows a link
from another site has none to show yet, and the form for a token is part of them.
"""

from collections.abc import Mapping
from http import HTTPStatus

from aiohttp import hdrs, web

from whence_server.domain.errors import RouteNotFoundError
from whence_server.http.api.errors import ApiErrors
from whence_server.http.exchange import Exchange, guard
from whence_server.http.origins import OWN_PAGES, Origins
from whence_server.http.page.files import PageFile, load_document, load_files
from whence_server.http.security_headers import PAGE_POLICY, POLICY
from whence_server.http.server import Answer
from whence_server.rpc.calls import CallLog

ADDRESSES = (
    "/",
    "/generations",
    "/generations/{id}",
    "/traces/{id}",
    "/training",
    "/training/{id}",
    "/training/steps/{id}/{step}",
    "/compare",
    "/ask",
)
"""Addresses that a person opens."""
FILES = "/page/{name}"

_HEADERS = {
    POLICY: PAGE_POLICY,
    # A browser keeps the file, and asks each time if it is still the same.
    hdrs.CACHE_CONTROL: "no-cache",
    hdrs.VARY: hdrs.ACCEPT_ENCODING,
}


def list_page_routes(
    calls: CallLog, origins: Origins = OWN_PAGES
) -> Mapping[tuple[str, str], Answer]:
    """Return the handlers by request method and path."""
    errors = ApiErrors()
    document = origins.protect(_answer_document, is_page=True)
    routes = {
        ("GET", address): guard(address, document, errors, calls, recorded=False)
        for address in ADDRESSES
    }
    routes["GET", FILES] = guard(
        FILES, origins.protect(_answer_file), errors, calls, recorded=False
    )
    return routes


async def _answer_document(exchange: Exchange) -> web.StreamResponse:
    return _answer(exchange.request, load_document())


async def _answer_file(exchange: Exchange) -> web.StreamResponse:
    request = exchange.request
    file = load_files().get(request.match_info["name"])
    if file is None:
        raise RouteNotFoundError(request.method, request.path)
    return _answer(request, file)


def _answer(request: web.Request, file: PageFile) -> web.StreamResponse:
    headers = {**_HEADERS, hdrs.ETAG: file.tag}
    if file.tag in request.headers.get(hdrs.IF_NONE_MATCH, ""):
        return web.Response(status=HTTPStatus.NOT_MODIFIED, headers=headers)
    body = file.content
    if "gzip" in request.headers.get(hdrs.ACCEPT_ENCODING, ""):
        body = file.compressed
        headers[hdrs.CONTENT_ENCODING] = "gzip"
    return web.Response(body=body, content_type=file.media_type, charset="utf-8", headers=headers)
