"""Digests of the content of a model's directory, computed without a cache."""

import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import transformers
from safetensors import SafetensorError

from whence.v1 import training_pb2
from whence.v1.training_pb2 import Checkpoint
from whence_server.domain.errors import ConfigurationError
from whence_server.domain.model import FileDigest
from whence_server.engines.transformers import weights
from whence_server.engines.transformers.digests import (
    TensorDigest,
    digest_files,
    digest_model_files,
    digest_state,
)
from whence_server.lineage.reader import RECORD_NAME
from whence_server.training.recording import adapter_files

_MODULES = "modules.json"
"""File that lists the modules of a SentenceTransformer."""
_PROCESSORS = (
    "image_processor_config.json",
    "preprocessor_config.json",
    "processor_config.json",
    "video_preprocessor_config.json",
)
_CODE = re.compile(
    r"(modeling|configuration|tokenization|processing|image_processing|feature_extraction)\w*\.py"
)
_OF_TRAINERS = ("training_args.bin", "optimizer.bin", "scheduler.bin", "scaler.bin")
_WEIGHTS_LIKE = (".safetensors", ".bin", ".safetensors.index.json", ".bin.index.json")


@dataclass(frozen=True, slots=True)
class DigestedTensors:
    """Digests of a directory's weights as transformers loads them."""

    records: tuple[TensorDigest, ...]
    weights_digest: str
    missing: tuple[str, ...] = ()
    """Tensors of the architecture that are not in the files."""
    unexpected: tuple[str, ...] = ()
    """Tensors in the files that the architecture does not have."""
    mismatched: tuple[str, ...] = ()
    """Names of tensors with a different shape than the architecture's, with both shapes."""


def list_model_files(directory: Path) -> list[str]:
    """Return the files of a directory, with chat templates and adapters in folders below it.

    The record, its accompanying files and checkpoints below are left out.
    """
    own = {
        path.name
        for path in directory.iterdir()
        if path.is_file() and not path.name.startswith(RECORD_NAME)
    }
    templates = set(weights.list_chat_template_files(directory))
    return sorted(own | templates | set(adapter_files.list_adapter_files(directory)))


def has_weights(directory: Path) -> bool:
    """Return whether a directory has a weights file that transformers finds."""
    return any((directory / name).is_file() for name in weights.WEIGHT_FILES)


def holds_weights(name: str) -> bool:
    """Return whether a file of this name holds weights, or is an index of weight files."""
    return name.endswith(_WEIGHTS_LIKE) and Path(name).name not in _OF_TRAINERS


def prepares_text(name: str) -> bool:
    """Return whether a file of this name configures a tokenizer or another input processor."""
    return weights.is_tokenizer_file(name) or name in _PROCESSORS


def decides_what_is_computed(name: str) -> bool:
    """Return whether the presence of a file of this name changes the model's output.

    Python files do if the loader trusts remote code.
    """
    file = Path(name).name
    configures = name in (*weights.CONFIGURATION_FILES, _MODULES)
    configures = configures or file == adapter_files.CONFIGURATION
    return configures or prepares_text(name) or holds_weights(name) or bool(_CODE.match(file))


def digest_existing_files(directory: Path, names: list[str]) -> dict[str, FileDigest]:
    """Return the digest of each existing file, by its path.

    Raises:
        ConfigurationError: a file cannot be read.
    """
    try:
        there = [name for name in names if (directory / name).is_file()]
        return {file.path: file for file in digest_files(directory, there)}
    except OSError as error:
        raise ConfigurationError(f"{error.filename} cannot be read: {error.strerror}") from error


def compute_model_digest(directory: Path, files: Mapping[str, FileDigest] | None = None) -> str:
    """Compute `Model.model_digest`; return "" if the directory is not a whole model.

    Args:
        directory: directory of the model.
        files: known digests of its files; None computes them.

    Raises:
        ConfigurationError: a file cannot be read.
    """
    try:
        names = weights.list_model_files(
            directory, weights.list_weight_files(directory), with_code=False
        )
    except ConfigurationError:
        return ""
    return _digest_over(directory, names, files)


def compute_tokenizer_digest(directory: Path, files: Mapping[str, FileDigest] | None = None) -> str:
    """Compute `Model.tokenizer_digest`; return "" if there is no tokenizer.

    Raises:
        ConfigurationError: a file cannot be read.
    """
    try:
        names = weights.list_tokenizer_files(directory)
    except ConfigurationError:
        return ""
    return _digest_over(directory, names, files)


def _digest_over(directory: Path, names: list[str], files: Mapping[str, FileDigest] | None) -> str:
    known = digest_existing_files(directory, names) if files is None else files
    return digest_model_files([known[name] for name in names])


def find_common_dtype(checkpoint: Checkpoint) -> Any:
    """Return the torch dtype of all tensors of a recorded checkpoint; None if they differ."""
    dtypes = {tensor.dtype for tensor in checkpoint.tensors}
    return getattr(torch, dtypes.pop()) if len(dtypes) == 1 else None


def digest_weights(
    directory: Path, architecture: str, dtype: torch.dtype | None
) -> DigestedTensors:
    """Load weights with transformers, and digest them.

    Args:
        directory: directory of the weights.
        architecture: name of the transformers class; for an unknown name, AutoModelForCausalLM.
        dtype: dtype to load them in; None is the dtype in the files.

    Raises:
        ConfigurationError: they cannot be loaded; one line says why.
    """
    model, loading = load_model(directory, architecture, dtype)
    digests = digest_state(model.state_dict())
    return DigestedTensors(
        records=tuple(digests.tensors),
        weights_digest=digests.weights_digest,
        missing=tuple(sorted(loading["missing_keys"])),
        unexpected=tuple(sorted(loading["unexpected_keys"])),
        mismatched=tuple(
            f"{name} ({list(stored)} instead of {list(expected)})"
            for name, stored, expected in sorted(loading["mismatched_keys"])
        ),
    )


def digest_adapters(directory: Path, below: Sequence[str] = ()) -> DigestedTensors:
    """Digest the tensors of the adapters in a directory, as stored in the files.

    Args:
        directory: directory of the adapter.
        below: names of adapters in folders below it.

    Raises:
        ConfigurationError: they cannot be loaded; one line says why.
    """
    digests = digest_state(adapter_files.read_tensors(directory, below))
    return DigestedTensors(records=tuple(digests.tensors), weights_digest=digests.weights_digest)


def load_model(
    directory: Path, architecture: str, dtype: torch.dtype | None
) -> tuple[Any, dict[str, Any]]:
    """Return a loaded model and transformers' loading info; arguments as `digest_weights`."""
    found = weights.list_weight_files(directory)
    if not (directory / "config.json").is_file():
        raise ConfigurationError(f"the weights in {directory} cannot be loaded: no config.json")
    known: Any = getattr(transformers, architecture, None)
    loads = known if hasattr(known, "from_pretrained") else transformers.AutoModelForCausalLM
    with _silence_transformers(), _translate_errors(directory):
        model, loading = loads.from_pretrained(
            directory,
            dtype=dtype or "auto",
            local_files_only=True,
            use_safetensors=all(name.endswith(".safetensors") for name in found),
            output_loading_info=True,
            ignore_mismatched_sizes=True,
        )
    return model.eval(), loading


@contextmanager
def _silence_transformers() -> Iterator[None]:
    """Silence transformers' report of tensors that do not fit; the caller reports them."""
    verbosity = transformers.utils.logging.get_verbosity()
    showed_bars = transformers.utils.logging.is_progress_bar_enabled()
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    try:
        yield
    finally:
        transformers.utils.logging.set_verbosity(verbosity)
        if showed_bars:
            transformers.utils.logging.enable_progress_bar()


@contextmanager
def _translate_errors(directory: Path) -> Iterator[None]:
    try:
        yield
    except SafetensorError as error:
        raise ConfigurationError(
            f"the weights in {directory} cannot be loaded: damaged safetensors file ({error})"
        ) from error
    except MemoryError:
        raise
    except Exception as error:
        lines = [line.strip() for line in str(error).splitlines() if line.strip()]
        reason = lines[0] if lines else "no reason given"
        raise ConfigurationError(
            f"the weights in {directory} cannot be loaded: {type(error).__name__}: {reason}"
        ) from error


def read_tensor_digest(tensor: training_pb2.TensorDigest) -> TensorDigest:
    """Return a checkpoint's digest of a tensor in the form of digests of tensors in memory."""
    return TensorDigest(tensor.name, tensor.dtype, tuple(tensor.shape), tensor.sha256)
