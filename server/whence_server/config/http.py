"""Settings of the HTTP server: OpenAI's API, the JSON API and its login."""

from dataclasses import dataclass

from whence_server.config.fields import declare_setting
from whence_server.config.spelling import parse_host_and_port, parse_origin, parse_trace_url


# Without slots: a class cannot inherit the slots of two.
@dataclass(frozen=True, kw_only=True)
class HttpSettings:
    """The part of the server's settings that says where it speaks HTTP, and with whom."""

    http_listen: str = declare_setting(
        "",
        parse_host_and_port,
        "HOST:PORT of the HTTP server: OpenAI's API (/v1/chat/completions, /v1/completions, "
        "/v1/responses, /v1/models) and the JSON API (/api/v1) (default: none)",
        "ADDRESS",
    )
    http_allow_origin: tuple[str, ...] = declare_setting(
        (),
        parse_origin,
        "origin of web pages that may use --http-listen, for example https://app.example; the flag "
        "can be repeated, and commas separate the origins in the variable (default: none)",
        "ORIGIN",
        each="--http-allow-origin",
    )
    trace_url: str = declare_setting(
        "",
        parse_trace_url,
        "URL of a trace in the tracing backend, with {trace_id} in it, for example "
        "http://localhost:16686/trace/{trace_id} (Jaeger); readers of the JSON API make links of "
        "it (default: none)",
        "URL",
    )
