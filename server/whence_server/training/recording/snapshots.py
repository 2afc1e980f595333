"""Record entries of saved models: a digest of every file and of every tensor."""

import os
import shutil
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from whence.v1 import training_pb2
from whence.v1.model_pb2 import FileDigest
from whence.v1.training_pb2 import Checkpoint
from whence_server.domain import model as domain
from whence_server.domain.errors import ConfigurationError, LineageError
from whence_server.domain.paths import format_path, get_undecodable_bytes
from whence_server.engines.transformers import weights
from whence_server.engines.transformers.digests import (
    TensorDigest,
    digest_files,
    digest_state,
    digest_weights,
)
from whence_server.lineage.reader import RECORD_NAME
from whence_server.training.recording import adapter_files, contents, saves
from whence_server.training.recording.adapters import (
    DEFAULT,
    find_adapted,
    get_architecture,
    get_base_state,
    get_trained_state,
)

_NEEDED_TO_RESUME = ("trainer_state.json", "optimizer.pt", "scheduler.pt")


def make_checkpoint(
    directory: Path, record: Path, model: Any, written: Sequence[str] | None = None
) -> Checkpoint:
    """Digest the directory that a model was saved to.

    Args:
        directory: directory of the saved model.
        record: the run's record; the path on record is relative to its directory.
        model: the saved model in memory.
        written: names of the files that saving wrote; None if they are not known.

    Raises:
        LineageError: no file was saved, or one cannot be read.
    """
    beside_record = directory.absolute() == record.parent.absolute()
    if written is not None and not written:
        raise LineageError(f"no file was written to {directory} when the model was saved")
    try:
        files = _digest_files(directory, beside_record, written or ())
        event = _digest_saved_tensors(directory, model)
    except (OSError, ConfigurationError) as error:
        raise LineageError(f"what was saved to {directory} cannot be digested: {error}") from error
    if not files:
        raise LineageError(f"nothing was saved to {directory}")
    path = make_recorded_path(directory, record)
    event.path, event.path_bytes = format_path(path), get_undecodable_bytes(path)
    event.resumable = not beside_record and all(
        (directory / name).is_file() for name in _NEEDED_TO_RESUME
    )
    _set_files(event, directory, files)
    return event


def add_new_files(event: Checkpoint, directory: Path, record: Path) -> Checkpoint | None:
    """Return a copy of a checkpoint with the files that were added to its directory since.

    Returns:
        The copy; None if no file was added, a file was changed or removed, or weights were added.

    Raises:
        LineageError: a file cannot be read.
    """
    beside_record = directory.absolute() == record.parent.absolute()
    before = {file.path: file.sha256 for file in event.files}
    try:
        found = _digest_files(directory, beside_record, list(before)) if directory.is_dir() else []
    except (OSError, ConfigurationError) as error:
        raise LineageError(f"{error}") from error
    now = {format_path(file.path): file.sha256 for file in found}
    if len(now) == len(before) or any(now.get(path) != it for path, it in before.items()):
        return None
    if any(contents.holds_weights(path) for path in now.keys() - before.keys()):
        return None
    more = Checkpoint()
    more.CopyFrom(event)
    _set_files(more, directory, found)
    return more


def make_recorded_path(directory: Path, record: Path) -> str:
    """Return a directory's path for the record: relative to the record's, else absolute."""
    try:
        return directory.absolute().relative_to(record.parent.absolute()).as_posix()
    except ValueError:
        return directory.absolute().as_posix()


def copy_record(record: Path, directory: Path) -> None:
    """Copy the record atomically to the directory of a model that was saved elsewhere.

    Raises:
        LineageError: the copy cannot be written.
    """
    if directory.absolute() == record.parent.absolute():
        return
    partial = directory / f"{RECORD_NAME}.partial"
    try:
        shutil.copyfile(record, partial)
        with partial.open("rb") as file:
            os.fsync(file.fileno())
        partial.replace(directory / RECORD_NAME)
    except OSError as error:
        partial.unlink(missing_ok=True)
        raise LineageError(
            f"the record cannot be copied to {directory}: {error.strerror}"
        ) from error


def _digest_saved_tensors(directory: Path, model: Any) -> Checkpoint:
    """Digest the tensors of a model in memory, or of an adapter as it is on disk."""
    inner = find_adapted(model)
    if inner is None or not saves.holds_its_adapters(model):
        return _make_tensor_checkpoint(
            get_trained_state(model), merged_adapter_digest=saves.get_merged_adapter_digest(model)
        )
    named = [name for name in inner.peft_config if name != DEFAULT]
    if adapter_files.list_adapter_files(directory, named):
        base = get_base_state(inner)
        return _make_tensor_checkpoint(
            adapter_files.read_tensors(directory, named),
            base_weights_digest=digest_weights(base) if base else "",
        )
    adapter = get_trained_state(model)
    if contents.has_weights(directory):
        # The method merged the adapter into a copy, and saved a whole model.
        whole = contents.digest_weights(directory, get_architecture(model), None)
        return Checkpoint(
            weights_digest=whole.weights_digest,
            tensors=_convert_digests(whole.records),
            merged_adapter_digest=digest_weights(adapter),
        )
    return _make_tensor_checkpoint(adapter)


def _make_tensor_checkpoint(
    state: dict[str, Any], base_weights_digest: str = "", merged_adapter_digest: str = ""
) -> Checkpoint:
    digests = digest_state(state)
    return Checkpoint(
        weights_digest=digests.weights_digest,
        tensors=_convert_digests(digests.tensors),
        base_weights_digest=base_weights_digest,
        merged_adapter_digest=merged_adapter_digest,
    )


def _convert_digests(tensors: Iterable[TensorDigest]) -> list[training_pb2.TensorDigest]:
    return [
        training_pb2.TensorDigest(name=t.name, dtype=t.dtype, shape=t.shape, sha256=t.sha256)
        for t in tensors
    ]


def _digest_files(
    directory: Path, beside_record: bool, written: Sequence[str]
) -> list[domain.FileDigest]:
    names = _list_model_files(directory, written) if beside_record else _list_all_files(directory)
    return digest_files(directory, names)


def _set_files(event: Checkpoint, directory: Path, files: Sequence[domain.FileDigest]) -> None:
    del event.files[:]
    event.files.extend(
        FileDigest(path=format_path(f.path), size_bytes=f.size_bytes, sha256=f.sha256)
        for f in files
    )
    event.model_digest = contents.compute_model_digest(directory, {f.path: f for f in files})


def _list_all_files(directory: Path) -> list[str]:
    return [
        path.relative_to(directory).as_posix()
        for path in directory.rglob("*")
        if path.is_file() and not path.name.startswith(RECORD_NAME)
    ]


def _list_model_files(directory: Path, written: Sequence[str]) -> list[str]:
    """Return the model's files and those written with it, as the record's directory has others."""
    names = {*written, *weights.CONFIGURATION_FILES, *weights.WEIGHT_FILES, "training_args.bin"}
    names |= {*weights.TOKENIZER_FILES, *adapter_files.list_adapter_files(directory)}
    names |= {*weights.list_chat_template_files(directory)}
    if contents.has_weights(directory):
        names |= set(weights.list_weight_files(directory))
    return [name for name in names if (directory / name).is_file()]
