"""Every setting of the server: the only module that reads flags and the environment.

A setting is a field of `ServeConfig`; its flag is `--field-name` and its environment variable
`WHENCE_FIELD_NAME`. A flag wins over the environment. Unknown flags and unknown `WHENCE_*`
variables are errors, so that a misspelt setting never goes unnoticed. Of OpenTelemetry's own
variables, those in docs/settings.md are read; `otlp_settings` does it for any signal.
"""

import argparse
import dataclasses
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from whence_server.domain.errors import ConfigurationError
from whence_server.domain.otlp import (
    OtlpProtocol,
    OtlpSettings,
    Signal,
    default_endpoint,
    grpc_target,
    http_url,
    parse_headers,
    parse_timeout_s,
    signal_url,
)

# Read by the client, which may share the server's environment.
CLIENT_VARIABLES = frozenset({"WHENCE_TARGET"})
T = TypeVar("T")
_OTLP_TIMEOUT_S: float | None = 10.0


def _whole(low: int, high: int | None = None) -> Callable[[str], int]:
    def parse(text: str) -> int:
        value = int(text) if re.fullmatch(r"-?[0-9]+", text) else None
        if value is None or value < low or (high is not None and value > high):
            most = f" to {high}" if high is not None else " on"
            raise ValueError(f"expected a whole number from {low}{most}")
        return value

    return parse


def _seconds(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 <= value < 1e6:
        raise ValueError("expected seconds, a number from 0 on")
    return value


def _choice(*values: str) -> Callable[[str], str]:
    def parse(text: str) -> str:
        if text not in values:
            raise ValueError(f"expected one of {', '.join(values)}")
        return text

    return parse


def _switch(text: str) -> bool:
    if text.lower() in ("1", "true", "yes", "on"):
        return True
    if text.lower() in ("0", "false", "no", "off", ""):
        return False
    raise ValueError("expected true or false")


def _addresses(text: str) -> tuple[str, ...]:
    addresses = tuple(part.strip() for part in text.split(",") if part.strip())
    if not addresses:
        raise ValueError("expected at least one address")
    return addresses


def _text(text: str) -> str:
    if not text:
        raise ValueError("must not be empty")
    return text


def _path(text: str) -> Path:
    return Path(_text(text))


def _device(text: str) -> str:
    if not re.fullmatch(r"cpu|cuda(:[0-9]+)?|mps", text):
        raise ValueError("expected cpu, cuda, cuda:N or mps")
    return text


def _host_and_port(text: str) -> str:
    host, colon, port = text.rpartition(":")
    if text and not (colon and host and port.isascii() and port.isdecimal() and int(port) < 65_536):
        raise ValueError("expected HOST:PORT or [IPV6]:PORT; port 0 takes a free one")
    return text


def _step_spans(text: str) -> int | None:
    if text == "all":
        return None
    if text == "off":
        return 0
    try:
        return _whole(0)(text)
    except ValueError:
        raise ValueError("expected all, off or a whole number from 0 on") from None


def _exporter(text: str) -> str:
    if text and not re.fullmatch(r"[\w.-]+|[\w.]+:[\w.]+", text):
        raise ValueError(
            "expected otlp, none, the name of one installed exporter, or MODULE:CALLABLE"
        )
    return text


def _true(text: str) -> bool:
    # OpenTelemetry's own booleans: it forbids to take "1" or "yes" for true.
    if text.lower() not in ("true", "false"):
        raise ValueError("expected true or false")
    return text.lower() == "true"


def _readable_file(text: str) -> Path:
    try:
        with Path(text).open("rb"):
            return Path(text)
    except OSError as error:
        raise ValueError(
            f"cannot be read ({error.strerror}); expected the path of a PEM file"
        ) from None


def _setting(default: Any, parse: Callable[[str], Any], text: str, metavar: str = "") -> Any:
    metadata = {"parse": parse, "help": text, "metavar": metavar}
    if default is dataclasses.MISSING:
        return dataclasses.field(metadata=metadata)
    return dataclasses.field(default=default, metadata=metadata)


_REQUIRED = dataclasses.MISSING


@dataclass(frozen=True, slots=True, kw_only=True)
class ServeConfig:
    """The settings of `whence-server serve`, validated."""

    model: str = _setting(
        _REQUIRED, _text, "the model: a local directory or a Hugging Face hub id", "PATH_OR_ID"
    )
    model_name: str = _setting(
        "", str, "name to serve it under (default: the directory's name or the hub id)", "NAME"
    )
    dtype: str = _setting(
        "auto",
        _choice("auto", "float32", "bfloat16", "float16"),
        "type of weights and arithmetic; auto takes the checkpoint's own",
        "TYPE",
    )
    device: str = _setting("cpu", _device, "cpu, cuda, cuda:N or mps", "DEVICE")
    threads: int = _setting(0, _whole(0, 1024), "torch threads; 0 chooses by the model's size", "N")
    trust_remote_code: bool = _setting(
        False, _switch, "run modelling code that comes with the model"
    )
    listen: tuple[str, ...] = _setting(
        ("127.0.0.1:50051",),
        _addresses,
        "HOST:PORT or unix:PATH; several by comma; port 0 takes a free one",
        "ADDRESS",
    )
    insecure_listen_anywhere: bool = _setting(
        False, _switch, "allow addresses beyond loopback, without authentication"
    )
    data_dir: Path = _setting(Path("whence-data"), _path, "where the journal is kept", "DIR")
    durability: str = _setting(
        "group",
        _choice("group", "strict"),
        "group streams at once and commits within 20 ms; strict sends a token only once its "
        "record is on disk",
        "MODE",
    )
    max_queue: int = _setting(1024, _whole(1), "sequences that may wait", "N")
    max_batch_size: int = _setting(64, _whole(1, 4096), "sequences decoded together", "N")
    max_cache_tokens: int = _setting(
        131_072, _whole(16), "positions of all running sequences' key-value caches", "N"
    )
    max_prompt_tokens: int = _setting(
        0, _whole(0), "longest prompt; 0 is what the model's context holds", "N"
    )
    prefill_chunk_tokens: int = _setting(
        512, _whole(16), "prompt tokens read between two steps of the running streams", "N"
    )
    default_candidates: int = _setting(
        8, _whole(0, 128), "candidates a step where a request does not say", "N"
    )
    max_message_bytes: int = _setting(4 << 20, _whole(1024), "largest request", "BYTES")
    max_concurrent_streams: int = _setting(1024, _whole(1), "calls at once on one connection", "N")
    otlp_endpoint: str = _setting(
        "",
        str,
        "OTLP collector for spans; http/protobuf appends /v1/traces (default: "
        "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT, then OTEL_EXPORTER_OTLP_ENDPOINT; none set: no "
        "export)",
        "URL",
    )
    otlp_protocol: str = _setting(
        "",
        _choice("grpc", "http/protobuf"),
        "grpc or http/protobuf (default: OTEL_EXPORTER_OTLP_TRACES_PROTOCOL, then "
        "OTEL_EXPORTER_OTLP_PROTOCOL, then grpc)",
        "PROTOCOL",
    )
    span_exporter: str = _setting(
        "",
        _exporter,
        "where spans go: otlp, none, an installed opentelemetry_traces_exporter, or "
        "MODULE:CALLABLE (default: OTEL_TRACES_EXPORTER, then otlp once an endpoint is set)",
        "EXPORTER",
    )
    step_spans: int | None = _setting(
        1000, _step_spans, "step spans a generation: all, off or a number", "N"
    )
    drain_grace: float = _setting(
        30.0, _seconds, "seconds for running generations to finish after SIGTERM", "S"
    )
    no_step_candidates: bool = _setting(
        False, _switch, "leave the candidates out of step spans; they make up half of their bytes"
    )
    metrics_listen: str = _setting(
        "", _host_and_port, "HOST:PORT of the Prometheus page /metrics (default: none)", "ADDRESS"
    )
    log_level: str = _setting(
        "info", _choice("debug", "info", "warning", "error"), "what is logged", "LEVEL"
    )
    log_format: str = _setting(
        "console", _choice("console", "json"), "lines for people, or JSON objects", "FORMAT"
    )
    opentelemetry: Mapping[str, str] = dataclasses.field(default_factory=dict)
    """No setting of its own: OpenTelemetry's variables, for the parts that read more of them."""
    span_destination: OtlpSettings | str | None = None
    """No setting of its own: what those about spans and OpenTelemetry's variables come to. An
    OTLP destination, the name of an exporter, or None for no export."""

    @property
    def served_name(self) -> str:
        """The name under which clients ask for the model."""
        if self.model_name:
            return self.model_name
        path = Path(self.model)
        return path.resolve().name if path.is_dir() else self.model


def setting_fields() -> tuple[dataclasses.Field[Any], ...]:
    """The fields of `ServeConfig` that are settings."""
    return tuple(field for field in dataclasses.fields(ServeConfig) if field.metadata)


def flag_of(field: str) -> str:
    """The command-line flag of a setting."""
    return "--" + field.replace("_", "-")


def variable_of(field: str) -> str:
    """The environment variable of a setting."""
    return "WHENCE_" + field.upper()


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Puts every setting on a parser; `serve_config` reads what it parsed."""
    for field in setting_fields():
        text = f"{field.metadata['help']} [{variable_of(field.name)}]".replace("%", "%%")
        if field.metadata["parse"] is _switch:
            parser.add_argument(
                flag_of(field.name), dest=field.name, action="store_const", const="true", help=text
            )
        else:
            parser.add_argument(
                flag_of(field.name), dest=field.name, metavar=field.metadata["metavar"], help=text
            )


def serve_config(arguments: argparse.Namespace, environment: Mapping[str, str]) -> ServeConfig:
    """The settings from parsed flags and the environment.

    Raises:
        ConfigurationError: a setting that is missing, malformed or unknown.
    """
    fields = {field.name: field for field in setting_fields()}
    known = {variable_of(name) for name in fields} | CLIENT_VARIABLES
    for name in sorted(environment):
        if name.startswith("WHENCE_") and name not in known:
            raise ConfigurationError(
                f"{name}: no such setting; `whence-server serve --help` lists them"
            )
    values: dict[str, Any] = {}
    for name, field in fields.items():
        text, source = getattr(arguments, name, None), flag_of(name)
        if text is None:
            text, source = environment.get(variable_of(name)), variable_of(name)
        if text is None:
            continue
        try:
            values[name] = field.metadata["parse"](text)
        except ValueError as error:
            raise ConfigurationError(f"{source} {text!r}: {error}") from None
    if "model" not in values:
        raise ConfigurationError("--model: which model to serve? Give a directory or a hub id")
    values["span_destination"] = _span_destination(
        environment, *(values.get(name, "") for name in _SPAN_SETTINGS)
    )
    values["opentelemetry"] = {
        name: value for name, value in environment.items() if name.startswith("OTEL_")
    }
    return ServeConfig(**values)


_SPAN_SETTINGS = ("span_exporter", "otlp_endpoint", "otlp_protocol")


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
    exporters = _exporters(environment, signal, exporter)
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
    insecure = standard("INSECURE", _true, default=False)
    address = _endpoint(environment, signal, chosen, endpoint, insecure=insecure)
    if not address and not exporters:
        return None
    settings = OtlpSettings(
        endpoint=address or default_endpoint(chosen, signal),
        protocol=chosen,
        headers=standard("HEADERS", parse_headers, {}, secret=True),
        timeout_s=standard("TIMEOUT", parse_timeout_s, _OTLP_TIMEOUT_S),
        gzip=standard("COMPRESSION", _choice("gzip", "none"), "none") == "gzip",
        insecure=insecure,
        certificate=standard("CERTIFICATE", _readable_file, None),
        client_key=standard("CLIENT_KEY", _readable_file, None),
        client_certificate=standard("CLIENT_CERTIFICATE", _readable_file, None),
    )
    if (settings.client_key is None) != (settings.client_certificate is None):
        given, missing = "CLIENT_KEY", "CLIENT_CERTIFICATE"
        if settings.client_key is None:
            given, missing = missing, given
        raise ConfigurationError(f"{_of_all(given)}: it needs {_of_all(missing)} beside it")
    return settings


def _span_destination(
    environment: Mapping[str, str], exporter: str, endpoint: str, protocol: str
) -> OtlpSettings | str | None:
    """An OTLP destination, the name of an exporter that is not ours, or None for no export."""
    names = _exporters(environment, "traces", exporter)
    if len(names) > 1:
        raise ConfigurationError(
            f"OTEL_TRACES_EXPORTER {','.join(names)!r}: expected one exporter; a collector can "
            "pass spans on to several"
        )
    if _sdk_disabled(environment) or not names or names[0] in ("otlp", "none"):
        return otlp_settings(
            environment, "traces", exporter=exporter, endpoint=endpoint, protocol=protocol
        )
    if endpoint:
        raise ConfigurationError(
            f"{flag_of('otlp_endpoint')} {endpoint!r}: spans go to {names[0]!r}, which has "
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
        _parsed(variable, name, _exporter)
    if "none" in names and len(names) > 1:
        raise ConfigurationError(f"{variable} {text!r}: none stands alone")
    return names


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
        grpc_target(text, insecure=insecure)
        return text

    def of_all(text: str) -> str:
        return signal_url(text, signal)

    http = protocol is OtlpProtocol.HTTP_PROTOBUF
    own, shared = _of_signal(signal, "ENDPOINT"), _of_all("ENDPOINT")
    for source, text, parse in (
        (flag_of("otlp_endpoint"), wanted, of_all if http else grpc),
        (own, environment.get(own, ""), http_url if http else grpc),
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
    return _parsed(variable, environment.get(variable, "").strip() or "false", _true)


def _protocol(text: str) -> OtlpProtocol:
    return OtlpProtocol(_choice(*OtlpProtocol)(text))


def _of_signal(signal: Signal, name: str) -> str:
    return f"OTEL_EXPORTER_OTLP_{signal.upper()}_{name}"


def _of_all(name: str) -> str:
    return f"OTEL_EXPORTER_OTLP_{name}"
