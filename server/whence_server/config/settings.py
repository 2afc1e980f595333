"""Every setting of the server, read from flags and the environment.

A setting is a field of `ServeConfig`; its flag is `--field-name` and its environment variable
`WHENCE_FIELD_NAME`. A flag wins over the environment. Unknown flags and unknown `WHENCE_*`
variables are errors, so that a misspelt setting never goes unnoticed.
"""

import argparse
import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from whence_server.config.access import AccessSettings, check_access
from whence_server.config.checks import check_settings
from whence_server.config.content import ContentSettings
from whence_server.config.fields import declare_setting
from whence_server.config.http import HttpSettings
from whence_server.config.journal import JournalSettings
from whence_server.config.otlp import read_span_destination
from whence_server.config.reading import add_field_arguments, read_field_values
from whence_server.config.retention import RetentionSettings, check_retention
from whence_server.config.sealing import SealingSettings, check_sealing
from whence_server.config.signing import SigningSettings, check_signing
from whence_server.config.spelling import (
    accept_choice,
    accept_whole,
    parse_adapter,
    parse_addresses,
    parse_device,
    parse_directories,
    parse_exporter,
    parse_grace_seconds,
    parse_host_and_port,
    parse_path,
    parse_probability,
    parse_progress_seconds,
    parse_seconds,
    parse_stall_seconds,
    parse_step_spans,
    parse_switch,
    parse_text,
    require_utf8,
    spell_variable,
)
from whence_server.config.transparency import TransparencySettings, check_transparency
from whence_server.config.upstream import (
    UPSTREAM_PATHS,
    ModelSettings,
    check_model_settings,
)
from whence_server.domain.errors import ConfigurationError
from whence_server.domain.otlp import OtlpSettings

# Read by the client, which may share the server's environment.
CLIENT_VARIABLES = frozenset(
    f"WHENCE_{name}" for name in ("TARGET", "CA", "CERT", "KEY", "TOKEN", "TOKEN_FILE")
)
DEMO_GGUF_VARIABLE = "WHENCE_DEMO_MODEL_GGUF"
"""Variable with the path of the demo model's GGUF file; `make demo` and the tests read it."""
# Paths are bytes; everything else is text, and is said again on spans and in answers.
_PATHS = UPSTREAM_PATHS | {
    "model",
    "adapters",
    "data_dir",
    "training_runs",
    "head_weights",
    "journal_keys",
    "log_key",
    "log_dir",
}
_SPAN_SETTINGS = ("span_exporter", "otlp_endpoint", "otlp_protocol")


@dataclass(frozen=True, slots=True, kw_only=True)
class ServeConfig(
    ModelSettings,
    JournalSettings,
    AccessSettings,
    ContentSettings,
    SealingSettings,
    SigningSettings,
    RetentionSettings,
    TransparencySettings,
    HttpSettings,
):
    """The settings of `whence-server serve`, validated."""

    adapters: tuple[tuple[str, Path], ...] = declare_setting(
        (),
        parse_adapter,
        "PEFT adapter of the model that requests can choose by NAME; the flag can be repeated, and "
        "commas separate the adapters in the variable",
        "NAME=DIR",
        each="--adapter",
    )
    dtype: str = declare_setting(
        "auto",
        accept_choice("auto", "float32", "bfloat16", "float16"),
        "type of weights and arithmetic; auto uses the type of the checkpoint",
        "TYPE",
    )
    device: str = declare_setting(
        "cpu", parse_device, "device of the model: cpu, cuda, cuda:N or mps", "DEVICE"
    )
    threads: int = declare_setting(
        0,
        accept_whole(0, 1024),
        "number of torch threads; 0 chooses it by the size of the model",
        "N",
    )
    step_kernels: str = declare_setting(
        "exact",
        accept_choice("exact", "packed"),
        "kernels of decoding steps: exact gives the logits of the model's modules to the bit; "
        "packed may multiply with a packed copy of float32 weights on the CPU, which is faster and "
        "differs by rounding, and is on record",
        "KERNELS",
    )
    trust_remote_code: bool = declare_setting(
        False, parse_switch, "run modelling code that comes with the model"
    )
    listen: tuple[str, ...] = declare_setting(
        ("127.0.0.1:50051",),
        parse_addresses,
        "addresses to listen on, separated by commas: HOST:PORT or unix:PATH; port 0 chooses a "
        "free port",
        "ADDRESS",
    )
    data_dir: Path = declare_setting(
        Path("whence-data"), parse_path, "directory of the journal", "DIR"
    )
    durability: str = declare_setting(
        "group",
        accept_choice("group", "strict"),
        "group sends tokens at once and commits within 20 ms; strict sends a token only after "
        "its record is on disk",
        "MODE",
    )
    record_failure: str = declare_setting(
        "closed",
        accept_choice("open", "closed"),
        "what happens to requests while the journal cannot be written: closed refuses them; open "
        "serves them without a record, and says so",
        "POLICY",
    )
    training_runs: tuple[Path, ...] = declare_setting(
        (),
        parse_directories,
        "directories to search for records of training runs, two levels deep, besides the "
        "model's own directory; separated by commas",
        "DIR",
    )
    max_queue: int = declare_setting(
        1024,
        accept_whole(1),
        "maximum number of waiting sequences; further requests are refused",
        "N",
    )
    max_batch_size: int = declare_setting(
        64, accept_whole(1, 4096), "maximum number of sequences that are decoded together", "N"
    )
    max_cache_tokens: int = declare_setting(
        131_072,
        accept_whole(16),
        "maximum number of positions in the key-value caches of all running sequences",
        "N",
    )
    prefix_cache_tokens: int = declare_setting(
        16_384,
        accept_whole(0),
        "maximum number of positions whose keys and values are kept, besides those of running "
        "sequences, for prompts that begin with the same tokens; 0 keeps none",
        "N",
    )
    max_prompt_tokens: int = declare_setting(
        0,
        accept_whole(0),
        "maximum number of tokens of a prompt; 0 is the length of the model's context",
        "N",
    )
    prefill_chunk_tokens: int = declare_setting(
        512,
        accept_whole(16),
        "number of prompt tokens to read between two decoding steps of the running streams",
        "N",
    )
    default_candidates: int = declare_setting(
        8,
        accept_whole(0, 128),
        "number of candidates on record for each step, for requests that set none",
        "N",
    )
    default_disconnect_grace: float = declare_setting(
        60.0,
        parse_grace_seconds,
        "seconds that a generation goes on without a reader, for requests with a generation_id "
        "and without a disconnect_grace",
        "S",
    )
    head_weights: str = declare_setting(
        "",
        parse_text,
        "JSON file with the weight of each attention head in the recorded sources; it names "
        "the model's weights digest (default: all heads have the same weight)",
        "FILE",
    )
    max_message_bytes: int = declare_setting(
        4 << 20, accept_whole(1024), "maximum size of a request, in bytes", "BYTES"
    )
    max_concurrent_streams: int = declare_setting(
        1024, accept_whole(1), "maximum number of concurrent calls on one connection", "N"
    )
    progress_interval: float = declare_setting(
        10.0,
        parse_progress_seconds,
        "seconds without a message after which a stream sends its progress, so that proxies do "
        "not close it; 0 sends none",
        "S",
    )
    otlp_endpoint: str = declare_setting(
        "",
        str,
        "OTLP collector for spans; http/protobuf appends /v1/traces (default: "
        "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT, then OTEL_EXPORTER_OTLP_ENDPOINT; without an "
        "endpoint there is no export)",
        "URL",
    )
    otlp_protocol: str = declare_setting(
        "",
        accept_choice("grpc", "http/protobuf"),
        "protocol of the collector: grpc or http/protobuf (default: "
        "OTEL_EXPORTER_OTLP_TRACES_PROTOCOL, then OTEL_EXPORTER_OTLP_PROTOCOL, then grpc)",
        "PROTOCOL",
    )
    span_exporter: str = declare_setting(
        "",
        parse_exporter,
        "exporter of spans: otlp, none, an installed opentelemetry_traces_exporter, or "
        "MODULE:CALLABLE (default: OTEL_TRACES_EXPORTER, then otlp if an endpoint is set)",
        "EXPORTER",
    )
    step_spans: int | None = declare_setting(
        1000,
        parse_step_spans,
        "maximum number of steps of each generation that are spans or events, whatever the form: a "
        "number, all or off",
        "N",
    )
    step_form: str = declare_setting(
        "spans",
        accept_choice("spans", "events", "both"),
        "form of steps in traces: spans (a decode_step for each), events (of their sequence's "
        "decode span, in the proposed token-level conventions), or both",
        "FORM",
    )
    token_arrays: int = declare_setting(
        0,
        accept_whole(0, 4096),
        "number of first tokens whose times, batch sizes and candidates are arrays on the span of "
        "a generation with one sequence; 0 is none",
        "N",
    )
    drain_grace: float = declare_setting(
        30.0, parse_seconds, "seconds that running generations have to finish after SIGTERM", "S"
    )
    engine_stall_timeout: float = declare_setting(
        30.0,
        parse_stall_seconds,
        "seconds after which an engine process without a sign of work (stopped, deadlocked) is "
        "restarted; a long forward pass is work; 0 disables the restart",
        "S",
    )
    no_step_candidates: bool = declare_setting(
        False,
        parse_switch,
        "leave the candidates out of step spans and events; they are a third of a span's bytes",
    )
    no_step_summary: bool = declare_setting(
        False,
        parse_switch,
        "leave the summaries out of spans: the line on each step, block, sequence and generation "
        "that says in words how its tokens were chosen",
    )
    step_span_names: str = declare_setting(
        "off",
        accept_choice("off", "token"),
        "what follows decode_step in a step span's name: off for nothing, token for the token's "
        "text, or its id where spans carry no text; backends then list an operation for each token",
        "NAMES",
    )
    unlikely_below: float = declare_setting(
        0.01,
        parse_probability,
        "probability under the model below which spans flag a token, and its generation, as "
        "unlikely; 0 flags none",
        "P",
    )
    metrics_listen: str = declare_setting(
        "",
        parse_host_and_port,
        "HOST:PORT of the Prometheus page /metrics and of /healthz (default: none)",
        "ADDRESS",
    )
    insecure_metrics_anywhere: bool = declare_setting(
        False,
        parse_switch,
        "allow --metrics-listen beyond loopback without TLS and authentication; "
        "--insecure-listen-anywhere allows it too",
    )
    log_level: str = declare_setting(
        "info",
        accept_choice("debug", "info", "warning", "error"),
        "lowest level of messages to log",
        "LEVEL",
    )
    log_format: str = declare_setting(
        "console",
        accept_choice("console", "json"),
        "format of log messages: lines for people, or JSON objects",
        "FORMAT",
    )
    opentelemetry: Mapping[str, str] = dataclasses.field(default_factory=dict)
    """OpenTelemetry's environment variables; not a setting of its own."""
    span_destination: OtlpSettings | str | None = None
    """Destination of spans, from the settings about spans and OpenTelemetry's variables: an OTLP
    destination, the name of an exporter, or None for no export; not a setting of its own."""


def list_setting_fields() -> tuple[dataclasses.Field[Any], ...]:
    """Return the fields of `ServeConfig` that are settings."""
    return tuple(field for field in dataclasses.fields(ServeConfig) if field.metadata)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add every setting to a parser; `make_serve_config` reads the parsed flags."""
    add_field_arguments(parser, list_setting_fields())


def make_serve_config(arguments: argparse.Namespace, environment: Mapping[str, str]) -> ServeConfig:
    """Read the settings from parsed flags and the environment.

    Raises:
        ConfigurationError: a setting is missing, malformed or unknown.
    """
    fields = {field.name: field for field in list_setting_fields()}
    known = {spell_variable(name) for name in fields} | CLIENT_VARIABLES | {DEMO_GGUF_VARIABLE}
    for name in sorted(environment):
        if name.startswith("WHENCE_") and name not in known:
            raise ConfigurationError(
                f"{name}: no such setting; `whence-server serve --help` lists them"
            )
    values = read_field_values(list_setting_fields(), arguments, environment, _PATHS)
    values["span_destination"] = read_span_destination(
        environment, *(values.get(name, "") for name in _SPAN_SETTINGS)
    )
    values["opentelemetry"] = {
        name: value for name, value in environment.items() if name.startswith("OTEL_")
    }
    config = ServeConfig(**values)
    check_model_settings(config, {name: values[name] for name in values if name in fields})
    check_settings(config)
    check_sealing(config, config.journal)
    check_signing(config)
    check_retention(config)
    check_transparency(config)
    check_access(
        config, config.http_listen, config.metrics_listen, config.insecure_metrics_anywhere
    )
    require_utf8("--model-name (default: the name of --model)", config.served_name)
    return config
