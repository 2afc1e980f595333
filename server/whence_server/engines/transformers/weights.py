"""The files of a model: their directories, and the ones that are read."""

import importlib.util
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from whence_server.domain.errors import ConfigurationError
from whence_server.engines.transformers.gguf_file import find_gguf

WEIGHT_FILES = (
    "model.safetensors",
    "model.safetensors.index.json",
    "pytorch_model.bin",
    "pytorch_model.bin.index.json",
)
"""Weight files in transformers' order: the first that exists is read."""

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
ADAPTER_CONFIGURATION = "adapter_config.json"
ADAPTER_WEIGHT_FILES = ("adapter_model.safetensors", "adapter_model.bin")
"""Adapter weight files in PEFT's order: the first that exists is read."""
BASE_PREFIX = "base/"
"""Prefix of the recorded names of a base's files, if its adapter is in another directory."""
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


@dataclass(frozen=True, slots=True)
class ModelPlaces:
    """Directories of the parts of a model.

    Attributes:
        directory: the directory asked for.
        base: directory of config.json and the weights of the whole model.
        base_name: the base's name in its adapter's configuration; "" if both share a directory.
        has_adapter: True if `directory` has an adapter.
        tokenizer: directory of the tokenizer's files.
        gguf: name of the GGUF file in `directory` that holds everything; "" for other models.
    """

    directory: Path
    base: Path
    base_name: str
    has_adapter: bool
    tokenizer: Path
    gguf: str = ""

    @property
    def source(self) -> Path:
        """The GGUF file; of other models the directory."""
        return self.directory / self.gguf

    def list_base_weights(self) -> list[str]:
        """Return the names of the weight files of the whole model.

        Raises:
            ConfigurationError: there are no weights, or the index names missing files.
        """
        return [self.gguf] if self.gguf else list_weight_files(self.base)

    def get_recorded_name(self, directory: Path, name: str) -> str:
        """Return the recorded name of a file of one of the directories."""
        return name if directory == self.directory else BASE_PREFIX + name


def find_places(model: str, *, trust_remote_code: bool) -> ModelPlaces:
    """Find a model, and the base model if it is an adapter.

    As in transformers, the base of an adapter beside a whole model is that model, even if the
    adapter names another one.

    Raises:
        ConfigurationError: the model or its base cannot be found, or PEFT is missing.
    """
    gguf = find_gguf(Path(model).expanduser())
    if gguf is not None:
        folder = gguf.parent
        return ModelPlaces(folder, folder, "", has_adapter=False, tokenizer=folder, gguf=gguf.name)
    directory = find_directory(model, trust_remote_code=trust_remote_code)
    if not (directory / ADAPTER_CONFIGURATION).is_file():
        return ModelPlaces(directory, directory, "", has_adapter=False, tokenizer=directory)
    require_peft(f"{directory} has an adapter ({ADAPTER_CONFIGURATION})")
    base, base_name = directory, ""
    if not (directory / "config.json").is_file():
        base_name, base = _find_base(directory, trust_remote_code=trust_remote_code)
    own = any((directory / name).is_file() for name in TOKENIZER_FILES)
    return ModelPlaces(
        directory, base, base_name, has_adapter=True, tokenizer=directory if own else base
    )


def require_peft(what: str) -> None:
    """Check that PEFT is installed.

    Args:
        what: beginning of the message: what needs it.

    Raises:
        ConfigurationError: PEFT is missing.
    """
    if importlib.util.find_spec("peft") is None:
        raise ConfigurationError(
            f"{what}, for which PEFT is needed: pip install 'whence[adapters]'"
        )


def _find_base(directory: Path, *, trust_remote_code: bool) -> tuple[str, Path]:
    """Return an adapter's name of its base, and the base's directory."""
    path = directory / ADAPTER_CONFIGURATION
    try:
        configuration: Any = json.loads(path.read_bytes())
        name, revision = configuration["base_model_name_or_path"], configuration.get("revision")
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ConfigurationError(f"{path} is not an adapter's configuration: {error!r}") from error
    if not name or not isinstance(name, str):
        raise ConfigurationError(
            f"{directory} is an adapter, and {path.name} names no base: set "
            "base_model_name_or_path to a directory or a hub id"
        )
    try:
        base = find_directory(name, trust_remote_code=trust_remote_code, revision=revision)
    except ConfigurationError as error:
        raise ConfigurationError(
            f"{directory} is an adapter of {name}, which cannot be found: {error.message}; set "
            f"base_model_name_or_path in {path.name} to its directory or hub id"
        ) from error
    if base.resolve() == directory.resolve() or (base / ADAPTER_CONFIGURATION).is_file():
        raise ConfigurationError(
            f"{directory} is an adapter of {name}, which has an adapter itself; merge that one "
            "into its base with merge_and_unload, and name the result"
        )
    return name, base


def find_directory(model: str, *, trust_remote_code: bool, revision: str | None = None) -> Path:
    """Return the directory of a local model, or of a hub id's snapshot, downloaded if needed.

    Raises:
        ConfigurationError: there is neither a directory nor a hub model of that name.
    """
    directory = find_local_directory(model)
    if directory is not None:
        return directory
    return _fetch_snapshot(model, trust_remote_code=trust_remote_code, revision=revision)


def check_path(model: str) -> None:
    """Check that a model's name is no path without a file or directory.

    Raises:
        ConfigurationError: it is one, or a GGUF file that cannot be served.
    """
    if find_gguf(Path(model).expanduser()) is None:
        find_local_directory(model)


def find_local_directory(model: str) -> Path | None:
    """Return the directory of a local model; None for a name that may be a hub id.

    Raises:
        ConfigurationError: the name is a path, and there is no such directory.
    """
    path = Path(model).expanduser()
    if path.is_dir():
        return path
    if path.exists() or model.count("/") > 1 or model.startswith((".", "/", "~")):
        raise ConfigurationError(
            f"{model} is not a directory; give one with config.json and the weights, a GGUF file, "
            "or a hub id"
        )
    return None


def list_weight_files(directory: Path) -> list[str]:
    """Return the names of the weight files; shards are sorted by name.

    Raises:
        ConfigurationError: there are no weights, or the index names missing files.
    """
    first = _find_first(directory)
    if first is None and (directory / ADAPTER_CONFIGURATION).is_file():
        raise ConfigurationError(
            f"{directory} has no weights of a whole model: it is an adapter, as "
            f"{ADAPTER_CONFIGURATION} says"
        )
    if first is None:
        adapters = sorted(path.parent.name for path in directory.glob(f"*/{ADAPTER_CONFIGURATION}"))
        if adapters:
            raise ConfigurationError(
                f"{directory} has no weights, but directories with adapters: name one of them "
                f"({', '.join(adapters[:10])})"
            )
        raise ConfigurationError(
            f"{directory} has no weights: one of {', '.join(WEIGHT_FILES)} is needed"
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
            f"{directory / first} names {len(missing)} files that do not exist: "
            f"{', '.join(missing[:10])}"
        )
    return shards


def list_tokenizer_files(directory: Path) -> list[str]:
    """Return the names of the tokenizer's files.

    Raises:
        ConfigurationError: there is no vocabulary, without which transformers would make an empty
            tokenizer of the architecture's default class.
    """
    present = [name for name in TOKENIZER_FILES if (directory / name).is_file()]
    # `fast_tokenizer_files` in tokenizer_config.json chooses one by transformers' version.
    present += sorted(path.name for path in directory.glob("tokenizer.*.json"))
    if not _VOCABULARIES & set(present):
        raise ConfigurationError(f"{directory} has no tokenizer: tokenizer.json is missing")
    return sorted([*present, *list_chat_template_files(directory)])


def list_chat_template_files(directory: Path) -> list[str]:
    """Return the chat templates besides the default, as paths in the model's directory."""
    templates = (directory / CHAT_TEMPLATES).glob("*.jinja")
    return sorted(f"{CHAT_TEMPLATES}/{path.name}" for path in templates)


def is_tokenizer_file(path: str) -> bool:
    """Return whether a file, by its path in the model's directory, is the tokenizer's."""
    by_release = path.startswith("tokenizer.") and path.endswith(".json")
    return path in TOKENIZER_FILES or by_release or path.startswith(f"{CHAT_TEMPLATES}/")


def list_model_files(directory: Path, weights: list[str], *, with_code: bool) -> list[str]:
    """Return the names of all files that a whole model's digest covers.

    Args:
        directory: the model's directory.
        weights: the weight files.
        with_code: whether to include Python files, because they are run.
    """
    return sorted(
        {*_list_base_files(directory, weights, with_code), *list_tokenizer_files(directory)}
    )


def list_model_paths(
    places: ModelPlaces, weights: list[str], *, with_code: bool
) -> dict[str, Path]:
    """Return the paths of all files that affect a model's results, by their recorded names.

    Args:
        places: directories of the model's parts.
        weights: the base's weight files.
        with_code: whether to include Python files, because they are run.

    Raises:
        ConfigurationError: the tokenizer or the adapter's weights are missing.
    """
    if places.gguf:
        return {places.gguf: places.source}
    parts = [
        (places.base, _list_base_files(places.base, weights, with_code)),
        (places.tokenizer, list_tokenizer_files(places.tokenizer)),
    ]
    if places.has_adapter:
        parts.append((places.directory, list_adapter_files(places.directory)))
    return {
        places.get_recorded_name(directory, name): directory / name
        for directory, names in parts
        for name in names
    }


def list_adapter_files(directory: Path) -> list[str]:
    """Return the names of an adapter's files: its configuration and its weights.

    Raises:
        ConfigurationError: there are no weights.
    """
    weights = [name for name in ADAPTER_WEIGHT_FILES if (directory / name).is_file()]
    if not weights:
        raise ConfigurationError(
            f"{directory} is an adapter without weights: one of {', '.join(ADAPTER_WEIGHT_FILES)} "
            "is needed"
        )
    return [ADAPTER_CONFIGURATION, weights[0]]


def _list_base_files(directory: Path, weights: list[str], with_code: bool) -> list[str]:
    names = {*weights}
    names |= {name for name in CONFIGURATION_FILES if (directory / name).is_file()}
    names |= {name for name in [_find_first(directory)] if name}
    if with_code:
        names |= {path.relative_to(directory).as_posix() for path in directory.rglob("*.py")}
    return sorted(names)


def _find_first(directory: Path) -> str | None:
    """Return the weight file, or index of shards, that transformers reads; None without any."""
    return next((name for name in WEIGHT_FILES if (directory / name).is_file()), None)


def _fetch_snapshot(hub_id: str, *, trust_remote_code: bool, revision: str | None) -> Path:
    from huggingface_hub import HfApi, snapshot_download

    # HTTPError is httpx's, which the hub's client raises unchanged.
    from huggingface_hub.errors import HFValidationError, HTTPError  # type: ignore[attr-defined]

    patterns = ["*.json", "*.jinja", "*.txt", "*.model"] + ["*.py"] * trust_remote_code
    try:
        try:
            names = HfApi().list_repo_files(hub_id, revision=revision)
            kind = "*.safetensors" if any(n.endswith(".safetensors") for n in names) else "*.bin"
            patterns.append(kind)
        except (OSError, HTTPError):  # offline: use files that were downloaded before
            patterns += ["*.safetensors", "*.bin"]
        snapshot = snapshot_download(
            hub_id, revision=revision, allow_patterns=patterns, ignore_patterns=["*/*"]
        )
        # The only subfolder of a model that is read.
        snapshot_download(hub_id, revision=revision, allow_patterns=[f"{CHAT_TEMPLATES}/*.jinja"])
    except (OSError, ValueError, HTTPError, HFValidationError) as error:
        first = str(error).strip().splitlines()[0] if str(error).strip() else repr(error)
        raise ConfigurationError(
            f"{hub_id!r} is neither a directory nor a model that can be downloaded from the hub: "
            f"{first}"
        ) from error
    return Path(snapshot)
