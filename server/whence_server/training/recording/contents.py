"""What a model's directory holds now: every digest computed anew, none taken from a cache."""

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
from whence_server.engine import weights
from whence_server.engine.digests import (
    TensorDigest,
    digest_files,
    digest_model_files,
    digest_state,
)
from whence_server.lineage.reader import RECORD_NAME
from whence_server.training.recording import adapter_files

_MODULES = "modules.json"
"""What a SentenceTransformer is made of."""
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
class Tensors:
    """A directory's weights, as transformers loads them."""

    records: tuple[TensorDigest, ...]
    weights_digest: str
    missing: tuple[str, ...] = ()
    """Tensors that the architecture has and the files have not."""
    unexpected: tuple[str, ...] = ()
    """Tensors that the files have and the architecture has not."""
    mismatched: tuple[str, ...] = ()
    """Tensors of another shape than the architecture's, with both shapes."""


def present_files(directory: Path) -> list[str]:
    """Every file that can have to do with the model: its own, and its templates and adapters below.

    Checkpoints may lie below a run's final model; the record and what belongs to it is left out.
    """
    own = {
        path.name
        for path in directory.iterdir()
        if path.is_file() and not path.name.startswith(RECORD_NAME)
    }
    templates = set(weights.list_chat_template_files(directory))
    return sorted(own | templates | set(adapter_files.names_in(directory)))


def has_weights(directory: Path) -> bool:
    """Whether transformers would find weights there."""
    return any((directory / name).is_file() for name in weights.WEIGHT_FILES)


def holds_weights(name: str) -> bool:
    """Whether a file of this name holds weights, or says which files do, for transformers."""
    return name.endswith(_WEIGHTS_LIKE) and Path(name).name not in _OF_TRAINERS


def prepares_text(name: str) -> bool:
    """Whether a file of this name says how text, or anything else, becomes the model's input."""
    return weights.is_tokenizer_file(name) or name in _PROCESSORS


def decides_what_is_computed(name: str) -> bool:
    """Whether a file of this name changes the model by being there.

    Of Python files that is so where code of the model's own is trusted.
    """
    file = Path(name).name
    configures = name in (*weights.CONFIGURATION_FILES, _MODULES)
    configures = configures or file == adapter_files.CONFIGURATION
    return configures or prepares_text(name) or holds_weights(name) or bool(_CODE.match(file))


def digests_of(directory: Path, names: list[str]) -> dict[str, FileDigest]:
    """SHA-256 of each file that is there, by its path.

    Raises:
        ConfigurationError: one cannot be read.
    """
    try:
        there = [name for name in names if (directory / name).is_file()]
        return {file.path: file for file in digest_files(directory, there)}
    except OSError as error:
        raise ConfigurationError(f"{error.filename} cannot be read: {error.strerror}") from error


def model_digest_of(directory: Path, files: Mapping[str, FileDigest] | None = None) -> str:
    """See `Model.model_digest`; "" where the directory is no whole model.

    Args:
        directory: where it lies.
        files: digests of its files where they are known; without them they are computed.

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


def tokenizer_digest_of(directory: Path, files: Mapping[str, FileDigest] | None = None) -> str:
    """See `Model.tokenizer_digest`; "" where there is no tokenizer. As `model_digest_of`."""
    try:
        names = weights.list_tokenizer_files(directory)
    except ConfigurationError:
        return ""
    return _digest_over(directory, names, files)


def _digest_over(directory: Path, names: list[str], files: Mapping[str, FileDigest] | None) -> str:
    known = digests_of(directory, names) if files is None else files
    return digest_model_files([known[name] for name in names])


def dtype_of(checkpoint: Checkpoint) -> Any:
    """What all tensors of a checkpoint on record are in; None where they differ."""
    dtypes = {tensor.dtype for tensor in checkpoint.tensors}
    return getattr(torch, dtypes.pop()) if len(dtypes) == 1 else None


def tensors_of(directory: Path, architecture: str, dtype: torch.dtype | None) -> Tensors:
    """Load the weights as transformers does, and digests them.

    Args:
        directory: where they lie.
        architecture: the transformers class; where it has none of this name, the one for causal
            language models is taken.
        dtype: what to load them as; None is what the files say.

    Raises:
        ConfigurationError: they cannot be loaded; one line says why.
    """
    model, loading = load(directory, architecture, dtype)
    digests = digest_state(model.state_dict())
    return Tensors(
        records=tuple(digests.tensors),
        weights_digest=digests.weights_digest,
        missing=tuple(sorted(loading["missing_keys"])),
        unexpected=tuple(sorted(loading["unexpected_keys"])),
        mismatched=tuple(
            f"{name} ({list(stored)} instead of {list(expected)})"
            for name, stored, expected in sorted(loading["mismatched_keys"])
        ),
    )


def adapter_of(directory: Path, below: Sequence[str] = ()) -> Tensors:
    """Digest the tensors of the adapters in a directory, as they are in their files.

    Args:
        directory: where the adapter lies.
        below: names of others that lie below it.

    Raises:
        ConfigurationError: they cannot be loaded; one line says why.
    """
    digests = digest_state(adapter_files.tensors_in(directory, below))
    return Tensors(records=tuple(digests.tensors), weights_digest=digests.weights_digest)


def load(
    directory: Path, architecture: str, dtype: torch.dtype | None
) -> tuple[Any, dict[str, Any]]:
    """A model and transformers' report on its loading; see `tensors_of`."""
    found = weights.list_weight_files(directory)
    if not (directory / "config.json").is_file():
        raise ConfigurationError(f"the weights in {directory} cannot be loaded: no config.json")
    known: Any = getattr(transformers, architecture, None)
    loads = known if hasattr(known, "from_pretrained") else transformers.AutoModelForCausalLM
    with _quiet(), _translated(directory):
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
def _quiet() -> Iterator[None]:
    """Without transformers' own report on what does not fit: ours names it."""
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
def _translated(directory: Path) -> Iterator[None]:
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
