"""Where signals go over OTLP, from OpenTelemetry's own variables; docs/settings.md lists them."""

import re
from collections.abc import Callable, Mapping
from typing import TypeVar

from whence_server.config.spelling import (
    choice,
    flag_of,
    readable_file,
    require_utf8,
    standard_boolean,
)
from whence_server.config.spelling import (
    exporter as exporter_name,
)
from whence_server.domain.errors import ConfigurationError
from whence_server.domain.otlp import (
    OtlpProtocol,
    OtlpSettings,
    Signal,
    append_signal_path,
    check_http_url,
    get_default_endpoint,
    parse_grpc_target,
    parse_timeout_s,
)
from whence_server.domain.otlp_text import parse_headers, parse_resource_attributes

T = TypeVar("T")
_OTLP_TIMEOUT_S: float | None = 10.0
_ATTRIBUTES = "OTEL_RESOURCE_ATTRIBUTES"
_USED = re.compile(
    r"OTEL_EXPORTER_OTLP_((TRACES|METRICS|LOGS)_)?(ENDPOINT|PROTOCOL|HEADERS|TIMEOUT|COMPRESSION"
    r"|CERTIFICATE|CLIENT_KEY|CLIENT_CERTIFICATE|INSECURE)"
    r"|OTEL_(TRACES|METRICS|LOGS)_EXPORTER|OTEL_SDK_DISABLED|OTEL_SERVICE_NAME"
    r"|OTEL_RESOURCE_ATTRIBUTES|OTEL_TRACES_SAMPLER(_ARG)?|OTEL_METRIC_EXPORT_INTERVAL"
    r"|OTEL_EXPORTER_OTLP_METRICS_TEMPORALITY_PREFERENCE"
    r"|OTEL_INSTRUMENTATION_GENAI_CAPTURE_MESSAGE_CONTENT"
)


def otlp_settings(
    environment: Mapping[str, str],
    signal: Signal,
    *,
    exporter: str = "",
    endpoint: str = "",
    protocol: str = "",
) -> OtlpSettings | None:
    """Where a signal goes over OTLP, from OpenTelemetry's variables; None is nowhere.

    A signal's own variables go before those for all, and an empty one counts as unset. Nothing
    is sent where no endpoint is set, unless OTEL_{SIGNAL}_EXPORTER asks for "otlp".

    Args:
        environment: where the variables are.
        signal: whose.
        exporter: goes before OTEL_{SIGNAL}_EXPORTER.
        endpoint: goes before the variables; for all signals, so HTTP's path is appended to it.
        protocol: goes before the variables.

    Raises:
        ConfigurationError: a variable is malformed; the message names it.
    """
    check_text(environment)
    exporters = _exporters(environment, signal, exporter)
    if signal != "traces":
        _check_others(signal, exporters)
    if _sdk_disabled(environment) or "none" in exporters or (exporters and "otlp" not in exporters):
        return None

    def standard(name: str, parse: Callable[[str], T], default: T, *, secret: bool = False) -> T:
        for variable in (_of_signal(signal, name), _of_all(name)):
            text = environment.get(variable, "").strip()
            if text:
                return _parsed(variable, text, parse, secret=secret)
        return default

    chosen = (
        OtlpProtocol(protocol) if protocol else standard("PROTOCOL", _protocol, OtlpProtocol.GRPC)
    )
    insecure = standard("INSECURE", standard_boolean, default=False)
    address = _endpoint(environment, signal, chosen, endpoint, insecure=insecure)

    def headers(text: str) -> dict[str, str]:
        return parse_headers(text, grpc=chosen is OtlpProtocol.GRPC)

    settings = OtlpSettings(
        endpoint=address or get_default_endpoint(chosen, signal),
        protocol=chosen,
        headers=standard("HEADERS", headers, {}, secret=True),
        timeout_s=standard("TIMEOUT", parse_timeout_s, _OTLP_TIMEOUT_S),
        gzip=standard("COMPRESSION", choice("gzip", "none"), "none") == "gzip",
        insecure=insecure,
        certificate=standard("CERTIFICATE", readable_file, None),
        client_key=standard("CLIENT_KEY", readable_file, None),
        client_certificate=standard("CLIENT_CERTIFICATE", readable_file, None),
    )
    if (settings.client_key is None) != (settings.client_certificate is None):
        given, missing = "CLIENT_KEY", "CLIENT_CERTIFICATE"
        if settings.client_key is None:
            given, missing = missing, given
        raise ConfigurationError(f"{_of_all(given)}: it needs {_of_all(missing)} beside it")
    # What is malformed is an error even where nothing is sent yet.
    return settings if address or exporters else None


def check_text(environment: Mapping[str, str]) -> None:
    """Check what cannot travel as text in OpenTelemetry's variables, and the resource's list.

    Raises:
        ConfigurationError: one holds other bytes than UTF-8, or is malformed; the message names
            it.
    """
    for name, value in sorted(environment.items()):
        if name.startswith("OTEL_"):
            require_utf8(name, value)
    _parsed(_ATTRIBUTES, environment.get(_ATTRIBUTES, ""), parse_resource_attributes, secret=True)


def unused_variables(environment: Mapping[str, str]) -> list[str]:
    """Names the OpenTelemetry variables that are set and that nothing here reads."""
    return [
        name
        for name, value in sorted(environment.items())
        if name.startswith("OTEL_") and value.strip() and not _USED.fullmatch(name)
    ]


def span_destination(
    environment: Mapping[str, str], exporter: str, endpoint: str, protocol: str
) -> OtlpSettings | str | None:
    """An OTLP destination, the name of an exporter that is not ours, or None for no export."""
    check_text(environment)
    names = _exporters(environment, "traces", exporter)
    if len(names) > 1:
        raise ConfigurationError(
            f"OTEL_TRACES_EXPORTER {','.join(names)!r}: expected one exporter; a collector can "
            "pass spans on to several"
        )
    if _sdk_disabled(environment) or not names or names[0] in ("otlp", "none"):
        found = otlp_settings(
            environment, "traces", exporter=exporter, endpoint=endpoint, protocol=protocol
        )
        if found is None and protocol and not names and not _sdk_disabled(environment):
            raise ConfigurationError(
                f"{flag_of('otlp_protocol')} {protocol!r}: spans go nowhere; give "
                f"{flag_of('otlp_endpoint')} beside it, or leave it out"
            )
        return found
    for name, given in (("otlp_endpoint", endpoint), ("otlp_protocol", protocol)):
        if given:
            raise ConfigurationError(
                f"{flag_of(name)} {given!r}: spans go to {names[0]!r}, which has "
                f"settings of its own; leave one of them out, or ask for "
                f"{flag_of('span_exporter')} otlp"
            )
    return names[0]


def _exporters(environment: Mapping[str, str], signal: Signal, wanted: str) -> tuple[str, ...]:
    """Who is to send a signal: the names in OTEL_{SIGNAL}_EXPORTER, unless one is `wanted`."""
    variable = f"OTEL_{signal.upper()}_EXPORTER"
    text = wanted or environment.get(variable, "")
    names = tuple(name.strip() for name in text.split(",") if name.strip())
    for name in names:
        _parsed(variable, name, exporter_name)
    if "none" in names and len(names) > 1:
        raise ConfigurationError(f"{variable} {text!r}: none stands alone")
    return names


def _check_others(signal: Signal, names: tuple[str, ...]) -> None:
    """Refuse what would only turn a signal's OTLP off: metrics and logs go nowhere else."""
    for name in names:
        if name not in ("otlp", "none"):
            advice = ""
            if name == "prometheus":
                advice = f"; for Prometheus to scrape a page, give {flag_of('metrics_listen')}"
            raise ConfigurationError(
                f"OTEL_{signal.upper()}_EXPORTER {name!r}: expected otlp or none{advice}"
            )


def _endpoint(
    environment: Mapping[str, str],
    signal: Signal,
    protocol: OtlpProtocol,
    wanted: str,
    *,
    insecure: bool,
) -> str:
    """A signal's endpoint, checked: HTTP's with its path; "" where none is set."""

    def grpc(text: str) -> str:
        parse_grpc_target(text, insecure=insecure)
        return text

    def of_all(text: str) -> str:
        return append_signal_path(text, signal)

    http = protocol is OtlpProtocol.HTTP_PROTOBUF
    own, shared = _of_signal(signal, "ENDPOINT"), _of_all("ENDPOINT")
    for source, text, parse in (
        (flag_of("otlp_endpoint"), wanted, of_all if http else grpc),
        (own, environment.get(own, ""), check_http_url if http else grpc),
        (shared, environment.get(shared, ""), of_all if http else grpc),
    ):
        if text.strip():
            return _parsed(source, text.strip(), parse)
    return ""


def _parsed(source: str, text: str, parse: Callable[[str], T], *, secret: bool = False) -> T:
    try:
        return parse(text)
    except ValueError as error:
        # Neither the keys in headers nor a password in a URL are for the log.
        shown = "" if secret else f" {re.sub(r'//[^/@]*@', '//***@', text)!r}"
        raise ConfigurationError(f"{source}{shown}: {error}") from None


def _sdk_disabled(environment: Mapping[str, str]) -> bool:
    variable = "OTEL_SDK_DISABLED"
    return _parsed(variable, environment.get(variable, "").strip() or "false", standard_boolean)


def _protocol(text: str) -> OtlpProtocol:
    return OtlpProtocol(choice(*OtlpProtocol)(text))


def _of_signal(signal: Signal, name: str) -> str:
    return f"OTEL_EXPORTER_OTLP_{signal.upper()}_{name}"


def _of_all(name: str) -> str:
    return f"OTEL_EXPORTER_OTLP_{name}"
