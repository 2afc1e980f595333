"""Every setting of the server: the only module that reads flags and the environment.

A setting is a field of `ServeConfig`; its flag is `--field-name` and its environment variable
`WHENCE_FIELD_NAME`. A flag wins over the environment. Unknown flags and unknown `WHENCE_*`
variables are errors, so that a misspelt setting never goes unnoticed.
"""

import argparse
import dataclasses
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from whence_server.domain.errors import ConfigurationError

# Read by the client, which may share the server's environment.
CLIENT_VARIABLES = frozenset({"WHENCE_TARGET"})


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


def _step_spans(text: str) -> int | None:
    if text == "all":
        return None
    if text == "off":
        return 0
    try:
        return _whole(0)(text)
    except ValueError:
        raise ValueError("expected all, off or a whole number from 0 on") from None


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
        "OTLP/gRPC collector for spans (default: OTEL_EXPORTER_OTLP_TRACES_ENDPOINT, then "
        "OTEL_EXPORTER_OTLP_ENDPOINT; none set: no export)",
        "URL",
    )
    step_spans: int | None = _setting(
        1000, _step_spans, "step spans a generation: all, off or a number", "N"
    )
    drain_grace: float = _setting(
        30.0, _seconds, "seconds for running generations to finish after SIGTERM", "S"
    )
    log_level: str = _setting(
        "info", _choice("debug", "info", "warning", "error"), "what is logged", "LEVEL"
    )

    @property
    def served_name(self) -> str:
        """The name under which clients ask for the model."""
        if self.model_name:
            return self.model_name
        path = Path(self.model)
        return path.resolve().name if path.is_dir() else self.model


def flag_of(field: str) -> str:
    """The command-line flag of a setting."""
    return "--" + field.replace("_", "-")


def variable_of(field: str) -> str:
    """The environment variable of a setting."""
    return "WHENCE_" + field.upper()


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Puts every setting on a parser; `serve_config` reads what it parsed."""
    for field in dataclasses.fields(ServeConfig):
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
    fields = {field.name: field for field in dataclasses.fields(ServeConfig)}
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
    if "otlp_endpoint" not in values:
        # An empty variable counts as unset, as the OpenTelemetry specification has it.
        values["otlp_endpoint"] = (
            environment.get("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT")
            or environment.get("OTEL_EXPORTER_OTLP_ENDPOINT")
            or ""
        )
    return ServeConfig(**values)
