"""The files that make up a model: where they lie, and which of them are read."""

import json
from pathlib import Path

from whence_server.domain.errors import ConfigurationError

WEIGHT_FILES = (
    "model.safetensors",
    "model.safetensors.index.json",
    "pytorch_model.bin",
    "pytorch_model.bin.index.json",
)
"""In transformers' order: the first that is there is read."""

TOKENIZER_FILES = (
    "added_tokens.json",
    "chat_template.jinja",
    "chat_template.json",
    "merges.txt",
    "sentencepiece.bpe.model",
    "special_tokens_map.json",
    "spiece.model",
    "tokenizer.json",
    "tokenizer.model",
    "tokenizer_config.json",
    "vocab.json",
    "vocab.txt",
)
CONFIGURATION_FILES = ("config.json", "generation_config.json")

CHAT_TEMPLATES = "additional_chat_templates"
"""transformers' folder for a model's chat templates besides the default: NAME.jinja."""

_VOCABULARIES = {
    "sentencepiece.bpe.model",
    "spiece.model",
    "tokenizer.json",
    "tokenizer.model",
    "vocab.json",
    "vocab.txt",
}


def model_directory(model: str, *, trust_remote_code: bool) -> Path:
    """The directory of a local model, or the snapshot of a hub id, fetched if need be.

    Raises:
        ConfigurationError: there is no such directory, and no such model can be reached.
    """
    path = Path(model).expanduser()
    if path.is_dir():
        return path
    if path.exists() or model.count("/") > 1 or model.startswith((".", "/", "~")):
        raise ConfigurationError(
            f"{model} is not a directory; give one with config.json and the weights, or a hub id"
        )
    return _snapshot(model, trust_remote_code=trust_remote_code)


def weight_files(directory: Path) -> list[str]:
    """The files that hold the tensors, shards by name.

    Raises:
        ConfigurationError: there are none, or an index that names missing ones.
    """
    first = _first(directory)
    if first is None:
        raise ConfigurationError(
            f"{directory} has no weights: one of {', '.join(WEIGHT_FILES)} has to be there"
        )
    if not first.endswith(".index.json"):
        return [first]
    try:
        shards = sorted(set(json.loads((directory / first).read_text())["weight_map"].values()))
    except (ValueError, KeyError, AttributeError, TypeError) as error:
        raise ConfigurationError(
            f"{directory / first} is not an index of weight files: {error!r}"
        ) from error
    missing = [name for name in shards if not (directory / name).is_file()]
    if missing:
        raise ConfigurationError(
            f"{directory / first} names {len(missing)} files that are not there: "
            f"{', '.join(missing[:10])}"
        )
    return shards


def tokenizer_files(directory: Path) -> list[str]:
    """The tokenizer's files.

    Raises:
        ConfigurationError: there is no vocabulary among them; transformers would make an empty
            tokenizer of the architecture's default class.
    """
    present = [name for name in TOKENIZER_FILES if (directory / name).is_file()]
    # What tokenizer_config.json's `fast_tokenizer_files` chooses by the version of transformers.
    present += sorted(path.name for path in directory.glob("tokenizer.*.json"))
    if not _VOCABULARIES & set(present):
        raise ConfigurationError(f"{directory} has no tokenizer: tokenizer.json is missing")
    return sorted([*present, *chat_template_files(directory)])


def chat_template_files(directory: Path) -> list[str]:
    """List the chat templates besides the default, by their paths in the model's directory."""
    templates = (directory / CHAT_TEMPLATES).glob("*.jinja")
    return sorted(f"{CHAT_TEMPLATES}/{path.name}" for path in templates)


def is_tokenizer_file(path: str) -> bool:
    """Tell whether a file of a model, by its path in the directory, is the tokenizer's."""
    return path in TOKENIZER_FILES or path.startswith(f"{CHAT_TEMPLATES}/")


def model_files(directory: Path, weights: list[str], *, with_code: bool) -> list[str]:
    """Everything that decides what the model computes: what its digest covers.

    Args:
        directory: where the model lies.
        weights: the weight files read.
        with_code: whether Python files count, because they are run.
    """
    names = {*weights, *tokenizer_files(directory)}
    names |= {name for name in CONFIGURATION_FILES if (directory / name).is_file()}
    names |= {name for name in [_first(directory)] if name}
    if with_code:
        names |= {path.name for path in directory.glob("*.py")}
    return sorted(names)


def _first(directory: Path) -> str | None:
    """The weight file, or the index of several, that transformers reads."""
    return next((name for name in WEIGHT_FILES if (directory / name).is_file()), None)


def _snapshot(hub_id: str, *, trust_remote_code: bool) -> Path:
    from huggingface_hub import HfApi, snapshot_download
    from huggingface_hub.errors import HFValidationError

    patterns = ["*.json", "*.jinja", "*.txt", "*.model"] + ["*.py"] * trust_remote_code
    try:
        try:
            names = HfApi().list_repo_files(hub_id)
            kind = "*.safetensors" if any(n.endswith(".safetensors") for n in names) else "*.bin"
            patterns.append(kind)
        except OSError:  # offline: what has been fetched before will do
            patterns += ["*.safetensors", "*.bin"]
        snapshot = snapshot_download(hub_id, allow_patterns=patterns, ignore_patterns=["*/*"])
        # The only folder of a model that is read; nothing is fetched where there is none.
        snapshot_download(hub_id, allow_patterns=[f"{CHAT_TEMPLATES}/*.jinja"])
    except (OSError, ValueError, HFValidationError) as error:
        first = str(error).strip().splitlines()[0] if str(error).strip() else repr(error)
        raise ConfigurationError(
            f"{hub_id!r} is neither a directory nor a model that the hub gives out: {first}"
        ) from error
    return Path(snapshot)
