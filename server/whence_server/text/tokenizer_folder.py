"""A tokenizer's files as they lie in a model's folder, read without transformers.

A tokenizer class with code of its own is not loaded: what counts is tokenizer.json.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from tokenizers import Tokenizer

from whence_server.domain.errors import ConfigurationError
from whence_server.domain.model import TextFiles

_TEMPLATE, _MORE_TEMPLATES = "chat_template.jinja", "additional_chat_templates"
_CONFIGURATION = "tokenizer_config.json"


class TokenizerFolder(NamedTuple):
    """A tokenizer that was read from files.

    Attributes:
        text: the tokenizer.
        directory: the folder of its files.
        names: names of the files that were read, relative to the folder.
        vocabulary_size: number of ids, added tokens included.
    """

    text: TextFiles
    directory: Path
    names: list[str]
    vocabulary_size: int


def read_tokenizer_folder(path: Path) -> TokenizerFolder:
    """Read a tokenizer.json, and what lies beside it: settings and chat templates.

    Args:
        path: the file, or the folder that has one.

    Raises:
        ConfigurationError: a file cannot be read.
    """
    directory = path if path.is_dir() else path.parent
    file = "tokenizer.json" if path.is_dir() else path.name
    serialised = _read_text(directory / file)
    try:
        tokenizer = Tokenizer.from_str(serialised)
    # `tokenizers` raises Exception itself.
    except Exception as error:
        raise ConfigurationError(f"--tokenizer {directory / file}: {error}") from error
    names = [file]
    configuration = _read_object(directory, names)
    is_bpe = type(tokenizer.model).__name__ == "BPE"
    cleans_up = bool(configuration.get("clean_up_tokenization_spaces")) and not is_bpe
    text = TextFiles(
        tokenizer_json=serialised,
        chat_template=_read_templates(directory, configuration, names),
        special_tokens=_read_special_tokens(configuration),
        split_special_tokens=bool(configuration.get("split_special_tokens")),
        cleans_up_spaces=cleans_up,
    )
    return TokenizerFolder(text, directory, sorted(names), tokenizer.get_vocab_size())


def _read_object(directory: Path, names: list[str]) -> dict[str, Any]:
    path = directory / _CONFIGURATION
    if not path.is_file():
        return {}
    names.append(_CONFIGURATION)
    try:
        value = json.loads(_read_text(path))
    except ValueError as error:
        raise ConfigurationError(f"--tokenizer {path}: is no JSON: {error}") from error
    if not isinstance(value, dict):
        raise ConfigurationError(f"--tokenizer {path}: is no JSON object")
    return value


def _read_templates(
    directory: Path, configuration: Mapping[str, Any], names: list[str]
) -> str | dict[str, str] | None:
    """Return the chat template, or several by name; files count before the configuration."""
    templates: dict[str, str] = {}
    if (directory / _TEMPLATE).is_file():
        names.append(_TEMPLATE)
        templates["default"] = _read_text(directory / _TEMPLATE)
        for path in sorted((directory / _MORE_TEMPLATES).glob("*.jinja")):
            names.append(f"{_MORE_TEMPLATES}/{path.name}")
            templates[path.stem] = _read_text(path)
    else:
        given = configuration.get("chat_template")
        if isinstance(given, str):
            templates["default"] = given
        elif isinstance(given, list):
            templates = {str(one["name"]): str(one["template"]) for one in given}
    if set(templates) == {"default"}:
        return templates["default"]
    return templates or None


def _read_special_tokens(configuration: Mapping[str, Any]) -> dict[str, str]:
    """Return the template's variables: {"bos_token": "<s>", ...}."""
    tokens = {}
    for name, value in configuration.items():
        content = value.get("content") if isinstance(value, dict) else value
        if name.endswith("_token") and isinstance(content, str):
            tokens[name] = content
    return tokens


def _read_text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, ValueError) as error:
        raise ConfigurationError(f"--tokenizer {path}: cannot be read: {error}") from error
