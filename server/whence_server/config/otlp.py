"""OTLP destinations of signals, from OpenTelemetry's variables (listed in docs/settings.md)."""

import re
from collections.abc import Callable, Mapping
from typing import TypeVar

from whence_server.config.spelling import (
    accept_choice,
    parse_exporter,
    parse_readable_file,
    parse_standard_boolean,
    require_utf8,
    spell_flag,
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


def read_otlp_settings(
    environment: Mapping[str, str],
    signal: Signal,
    *,
    exporter: str = "",
    endpoint: str = "",
    protocol: str = "",
) -> OtlpSettings | None:
    """Read the OTLP destination of a signal from OpenTelemetry's variables; None for no export.

    A signal's own variables take precedence over those for all signals; an empty variable counts
    as unset. Without an endpoint there is no export, unless OTEL_{SIGNAL}_EXPORTER is "otlp".

    Args:
        environment: environment variables.
        signal: the signal.
        exporter: takes precedence over OTEL_{SIGNAL}_EXPORTER.
        endpoint: takes precedence over the variables; for all signals, so HTTP's path is
            appended.
        protocol: takes precedence over the variables.

    Raises:
        ConfigurationError: a variable is malformed; the message names it.
    """
    check_text(environment)
    exporters = _read_exporters(environment, signal, exporter)
    if signal != "traces":
        _check_others(signal, exporters)
    if (
        _is_sdk_disabled(environment)
        or "none" in exporters
        or (exporters and "otlp" not in exporters)
    ):
        return None

    def read_standard(
        name: str, parse: Callable[[str], T], default: T, *, secret: bool = False
    ) -> T:
        for variable in (_name_for_signal(signal, name), _name_for_all(name)):
            text = environment.get(variable, "").strip()
            if text:
                return _parse(variable, text, parse, secret=secret)
        return default

    chosen = (
        OtlpProtocol(protocol)
        if protocol
        else read_standard("PROTOCOL", _parse_protocol, OtlpProtocol.GRPC)
    )
    insecure = read_standard("INSECURE", parse_standard_boolean, default=False)
    address = _read_endpoint(environment, signal, chosen, endpoint, insecure=insecure)

    def parse_own_headers(text: str) -> dict[str, str]:
        return parse_headers(text, grpc=chosen is OtlpProtocol.GRPC)

    settings = OtlpSettings(
        endpoint=address or get_default_endpoint(chosen, signal),
        protocol=chosen,
        headers=read_standard("HEADERS", parse_own_headers, {}, secret=True),
        timeout_s=read_standard("TIMEOUT", parse_timeout_s, _OTLP_TIMEOUT_S),
        gzip=read_standard("COMPRESSION", accept_choice("gzip", "none"), "none") == "gzip",
        insecure=insecure,
        certificate=read_standard("CERTIFICATE", parse_readable_file, None),
        client_key=read_standard("CLIENT_KEY", parse_readable_file, None),
        client_certificate=read_standard("CLIENT_CERTIFICATE", parse_readable_file, None),
    )
    if (settings.client_key is None) != (settings.client_certificate is None):
        given, missing = "CLIENT_KEY", "CLIENT_CERTIFICATE"
        if settings.client_key is None:
            given, missing = missing, given
        raise ConfigurationError(
            f"{_name_for_all(given)}: {_name_for_all(missing)} must be set too"
        )
    # Malformed variables are errors even if nothing is sent.
    return settings if address or exporters else None


def check_text(environment: Mapping[str, str]) -> None:
    """Check that OpenTelemetry's variables are UTF-8 and the resource attributes well-formed.

    Raises:
        ConfigurationError: a variable is not UTF-8 or malformed; the message names it.
    """
    for name, value in sorted(environment.items()):
        if name.startswith("OTEL_"):
            require_utf8(name, value)
    _parse(_ATTRIBUTES, environment.get(_ATTRIBUTES, ""), parse_resource_attributes, secret=True)


def find_unused_variables(environment: Mapping[str, str]) -> list[str]:
    """Return the names of set OpenTelemetry variables that whence does not use."""
    return [
        name
        for name, value in sorted(environment.items())
        if name.startswith("OTEL_") and value.strip() and not _USED.fullmatch(name)
    ]


def read_span_destination(
    environment: Mapping[str, str], exporter: str, endpoint: str, protocol: str
) -> OtlpSettings | str | None:
    """Return an OTLP destination, the name of another exporter, or None for no export."""
    check_text(environment)
    names = _read_exporters(environment, "traces", exporter)
    if len(names) > 1:
        raise ConfigurationError(
            f"OTEL_TRACES_EXPORTER {','.join(names)!r}: expected one exporter; a collector can "
            "pass spans on to several"
        )
    if _is_sdk_disabled(environment) or not names or names[0] in ("otlp", "none"):
        found = read_otlp_settings(
            environment, "traces", exporter=exporter, endpoint=endpoint, protocol=protocol
        )
        if found is None and protocol and not names and not _is_sdk_disabled(environment):
            raise ConfigurationError(
                f"{spell_flag('otlp_protocol')} {protocol!r}: spans go nowhere; give "
                f"{spell_flag('otlp_endpoint')} too, or leave it out"
            )
        return found
    for name, given in (("otlp_endpoint", endpoint), ("otlp_protocol", protocol)):
        if given:
            raise ConfigurationError(
                f"{spell_flag(name)} {given!r}: the exporter {names[0]!r} has its own "
                f"settings; leave one of them out, or give "
                f"{spell_flag('span_exporter')} otlp"
            )
    return names[0]


def _read_exporters(environment: Mapping[str, str], signal: Signal, wanted: str) -> tuple[str, ...]:
    """Return the exporters of a signal: `wanted`, or the names in OTEL_{SIGNAL}_EXPORTER."""
    variable = f"OTEL_{signal.upper()}_EXPORTER"
    text = wanted or environment.get(variable, "")
    names = tuple(name.strip() for name in text.split(",") if name.strip())
    for name in names:
        _parse(variable, name, parse_exporter)
    if "none" in names and len(names) > 1:
        raise ConfigurationError(f"{variable} {text!r}: none excludes other exporters")
    return names


def _check_others(signal: Signal, names: tuple[str, ...]) -> None:
    """Refuse other exporters than otlp and none for metrics and logs."""
    for name in names:
        if name not in ("otlp", "none"):
            advice = ""
            if name == "prometheus":
                advice = f"; for Prometheus to scrape a page, give {spell_flag('metrics_listen')}"
            raise ConfigurationError(
                f"OTEL_{signal.upper()}_EXPORTER {name!r}: expected otlp or none{advice}"
            )


def _read_endpoint(
    environment: Mapping[str, str],
    signal: Signal,
    protocol: OtlpProtocol,
    wanted: str,
    *,
    insecure: bool,
) -> str:
    """Return a signal's checked endpoint, HTTP's with its path; "" if none is set."""

    def check_grpc(text: str) -> str:
        parse_grpc_target(text, insecure=insecure)
        return text

    def append_path(text: str) -> str:
        return append_signal_path(text, signal)

    http = protocol is OtlpProtocol.HTTP_PROTOBUF
    own, shared = _name_for_signal(signal, "ENDPOINT"), _name_for_all("ENDPOINT")
    for source, text, parse in (
        (spell_flag("otlp_endpoint"), wanted, append_path if http else check_grpc),
        (own, environment.get(own, ""), check_http_url if http else check_grpc),
        (shared, environment.get(shared, ""), append_path if http else check_grpc),
    ):
        if text.strip():
            return _parse(source, text.strip(), parse)
    return ""


def _parse(source: str, text: str, parse: Callable[[str], T], *, secret: bool = False) -> T:
    try:
        return parse(text)
    except ValueError as error:
        # Keys in headers and passwords in URLs must not reach the log.
        shown = "" if secret else f" {re.sub(r'//[^/@]*@', '//***@', text)!r}"
        raise ConfigurationError(f"{source}{shown}: {error}") from None


def _is_sdk_disabled(environment: Mapping[str, str]) -> bool:
    variable = "OTEL_SDK_DISABLED"
    return _parse(
        variable, environment.get(variable, "").strip() or "false", parse_standard_boolean
    )


def _parse_protocol(text: str) -> OtlpProtocol:
    return OtlpProtocol(accept_choice(*OtlpProtocol)(text))


def _name_for_signal(signal: Signal, name: str) -> str:
    return f"OTEL_EXPORTER_OTLP_{signal.upper()}_{name}"


def _name_for_all(name: str) -> str:
    return f"OTEL_EXPORTER_OTLP_{name}"
