"""Settings that choose what computes the tokens: whence's own engine, an upstream, or nothing."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from whence_server.config.fields import declare_setting
from whence_server.config.spelling import (
    accept_choice,
    accept_whole,
    parse_switch,
    parse_text,
    spell_flag,
)
from whence_server.domain.errors import ConfigurationError

UPSTREAM_PATHS = frozenset({"tokenizer", "upstream_weights", "upstream_api_key_file"})
"""Settings here that are paths."""
_CHOICES = ("model", "upstream", "record_only")
"""Settings of which exactly one is given."""
_OF_OWN_ENGINE = (
    *("adapters", "dtype", "device", "threads", "step_kernels", "trust_remote_code"),
    *("head_weights", "max_cache_tokens", "prefix_cache_tokens", "prefill_chunk_tokens"),
    "engine_stall_timeout",
)
"""Settings of whence's own engine, which an upstream has no use for."""


def parse_upstream_url(text: str) -> str:
    """Parse an HTTP URL without user name, password, query and fragment."""
    try:
        parts = urlsplit(text)
        port = parts.port
    except ValueError:
        parts, port = urlsplit(""), None
    if parts.scheme not in {"http", "https"} or not parts.hostname or port == 0:
        raise ValueError("expected http://HOST:PORT/PATH or https://HOST:PORT/PATH")
    if parts.username is not None or parts.password is not None or parts.query or parts.fragment:
        raise ValueError(
            "expected a URL without user name, password, query and fragment; give a key with "
            "--upstream-api-key-file"
        )
    return text.rstrip("/")


def parse_tokenizer(text: str) -> Path:
    """Parse the path of a tokenizer.json, or of a folder that has one."""
    path = Path(parse_text(text)).expanduser()
    if not (path / "tokenizer.json").is_file() and not path.is_file():
        raise ValueError("expected a tokenizer.json, or a folder that has one")
    return path


def parse_weights(text: str) -> Path:
    """Parse the path of an existing folder or file of weights."""
    path = Path(parse_text(text)).expanduser()
    if not path.exists():
        raise ValueError("expected the folder or the file that the upstream serves")
    return path


def parse_file(text: str) -> Path:
    """Parse the path of an existing file."""
    path = Path(parse_text(text)).expanduser()
    if not path.is_file():
        raise ValueError("expected a file")
    return path


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelSettings:
    """Settings that name the model, and what computes its tokens."""

    model: str = declare_setting(
        "",
        parse_text,
        "model to serve: a local directory, a GGUF file or a Hugging Face hub id; give this, "
        "--upstream or --record-only",
        "PATH_OR_ID",
    )
    record_only: bool = declare_setting(
        False,
        parse_switch,
        "serve no model: only put generations of other processes on record (docs/hooks.md), and "
        "show what is recorded",
    )
    model_name: str = declare_setting(
        "",
        str,
        "name that clients use for the model (default: the directory's name, the hub id, or the "
        "upstream's name for it)",
        "NAME",
    )
    upstream: str = declare_setting(
        "",
        parse_upstream_url,
        "URL of another engine's server that computes the tokens, in place of --model, such as "
        "http://127.0.0.1:8000/v1",
        "URL",
    )
    upstream_kind: str = declare_setting(
        "",
        accept_choice("vllm", "llama.cpp", "sglang", "ollama", "openai"),
        "kind of the upstream: vllm, llama.cpp, sglang, ollama or openai (default: found by asking "
        "it)",
        "KIND",
    )
    upstream_model: str = declare_setting(
        "",
        parse_text,
        "name that the upstream has for the model (default: the one that it serves)",
        "NAME",
    )
    upstream_retry: int = declare_setting(
        0,
        accept_whole(0, 100),
        "number of times that a generation which got no token is begun again after the upstream "
        "was away",
        "N",
    )
    upstream_api_key_file: Path | None = declare_setting(
        None,
        parse_file,
        "file with the API key of the upstream; the key is in no log and no record",
        "FILE",
    )
    upstream_weights: Path | None = declare_setting(
        None,
        parse_weights,
        "folder or file that the upstream says it serves; its digests go on record",
        "PATH",
    )
    tokenizer: Path | None = declare_setting(
        None,
        parse_tokenizer,
        "tokenizer.json of the upstream's model, or a folder that has one; prompts are then "
        "checked and counted, and sent as token ids where the upstream takes them",
        "PATH",
    )

    @property
    def served_name(self) -> str:
        """Name that clients use for the model; for an upstream, until it tells its own.

        "" without a model.
        """
        if self.record_only or self.model_name:
            return self.model_name
        if self.upstream:
            return self.upstream_model or urlsplit(self.upstream).netloc
        path = Path(self.model).expanduser()
        if path.is_file():
            return path.stem
        return path.resolve().name if path.is_dir() else self.model


def check_model_settings(config: ModelSettings, given: dict[str, Any]) -> None:
    """Check that exactly one thing computes the tokens, and that nothing is set for the other.

    Args:
        config: the settings.
        given: those that a flag or a variable sets.

    Raises:
        ConfigurationError: they contradict.
    """
    chosen = [spell_flag(name) for name in _CHOICES if getattr(config, name)]
    if not chosen:
        raise ConfigurationError(
            "--model is missing: give the directory of a model, or a hub id; or give --upstream "
            "URL, or --record-only"
        )
    if len(chosen) > 1:
        raise ConfigurationError(f"{' and '.join(chosen)} exclude each other: give one of them")
    of_upstream = ["tokenizer", *(name for name in given if name.startswith("upstream_"))]
    useless = {
        "--model": [(name, "--upstream") for name in of_upstream],
        "--upstream": [(name, "--model") for name in _OF_OWN_ENGINE],
        "--record-only": [
            *((name, "--upstream") for name in of_upstream),
            *((name, "--model") for name in (*_OF_OWN_ENGINE, "model_name", "http_listen")),
        ],
    }[chosen[0]]
    for name, other in useless:
        if name in given:
            flag = "--adapter" if name == "adapters" else spell_flag(name)
            raise ConfigurationError(
                f"{flag} does not go with {chosen[0]}: it is a setting of {other}"
            )
