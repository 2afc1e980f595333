"""Composition of the web server: OpenAI's API, the JSON API, the page, login, keys and the log."""

from typing import NamedTuple

from whence_server.admission import Access
from whence_server.config import ServeConfig
from whence_server.domain.addresses import is_loopback, parse_host_port
from whence_server.domain.limits import Limits
from whence_server.http.api.routes import Services, list_api_routes
from whence_server.http.api.state import list_state_routes
from whence_server.http.login import list_login_routes
from whence_server.http.openai.routes import list_routes, make_not_found
from whence_server.http.openai.running import Front
from whence_server.http.origins import Origins
from whence_server.http.page.pulse import list_pulse_routes
from whence_server.http.page.routes import list_page_routes
from whence_server.http.proof_routes import list_proof_routes
from whence_server.http.server import HttpServer
from whence_server.journal.search.search import Search
from whence_server.rpc.calls import CallLog
from whence_server.rpc.serving import Serving
from whence_server.telemetry.live import LiveServer
from whence_server.transparency import Transparency


class WebParts(NamedTuple):
    """Parts of the server that the web server shows."""

    settings: ServeConfig
    access: Access
    serving: Serving
    services: Services
    live: LiveServer
    limits: Limits
    calls: CallLog
    transparency: Transparency
    search: Search | None


def make_http_server(parts: WebParts, max_connections: int) -> HttpServer | None:
    """Return the web server; None if the settings have no address for it."""
    settings, access, calls = parts.settings, parts.access, parts.calls
    if not settings.http_listen:
        return None
    interval_s = settings.progress_interval
    front = Front(parts.serving, parts.limits, settings.max_message_bytes, interval_s)
    host, port = parse_host_port(settings.http_listen)
    origins = Origins(settings.http_allow_origin, checks_host=is_loopback(host))
    gate = access.gate
    keys = parts.transparency.board
    routes = {
        **list_routes(front, calls, gate, origins),
        # Before the API, whose last route refuses what it does not have.
        **list_state_routes(
            parts.services,
            parts.live,
            calls,
            gate,
            origins,
            trace_url=settings.trace_url,
            missing=list_missing_offers(settings, has_search=parts.search is not None),
        ),
        **list_api_routes(
            parts.services,
            calls,
            gate,
            origins,
            max_body_bytes=settings.max_message_bytes,
            interval_s=interval_s,
        ),
        **list_login_routes(calls, gate, origins),
        **list_page_routes(calls, origins),
        **list_pulse_routes(parts.services, calls, gate, origins, interval_s=interval_s),
        **list_proof_routes(keys, calls, gate, origins),
        **parts.transparency.list_routes(),
    }
    return HttpServer(
        routes,
        host,
        port,
        make_not_found(calls, origins),
        max_connections=max_connections,
        max_per_address=settings.max_connections_per_address,
        tls=access.make_http_context(),
        origins=origins,
    )


def list_missing_offers(settings: ServeConfig, *, has_search: bool) -> list[str]:
    """Return the offers that a server does not make, although it has their RPCs."""
    missing = [] if has_search else ["search"]
    if settings.record_only:
        missing += ["generate", "cancel", "fork"]
    if (settings.record_only or settings.upstream) and settings.upstream_weights is None:
        missing += ["verify", "explain"]
    if settings.upstream:
        missing.append("fork")
    return missing
