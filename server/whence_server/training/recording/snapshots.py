"""What the record says of weights on disk: a digest of every file and of every tensor."""

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
from whence_server.engine import weights
from whence_server.engine.digests import (
    TensorDigest,
    digest_files,
    digest_state,
    digest_weights,
)
from whence_server.lineage.reader import RECORD_NAME
from whence_server.training.recording import adapter_files, contents, saves
from whence_server.training.recording.adapters import (
    DEFAULT,
    adapted,
    architecture_of,
    base_state,
    own_state,
)

_NEEDED_TO_GO_ON = ("trainer_state.json", "optimizer.pt", "scheduler.pt")


def checkpoint(
    directory: Path, record: Path, model: Any, written: Sequence[str] | None = None
) -> Checkpoint:
    """Digest a directory that the model has just been saved to, whatever lies there now.

    Args:
        directory: where it was saved.
        record: the run's record, to which the path is relative.
        model: the same weights in memory.
        written: the files that this wrote, where that is known.

    Raises:
        LineageError: nothing was saved there, or a file cannot be read.
    """
    beside_record = directory.absolute() == record.parent.absolute()
    if written is not None and not written:
        raise LineageError(f"no file was written to {directory} when the model was saved")
    try:
        files = _digested(directory, beside_record, written or ())
        event = _of_tensors(directory, model)
    except (OSError, ConfigurationError) as error:
        raise LineageError(f"what was saved to {directory} cannot be digested: {error}") from error
    if not files:
        raise LineageError(f"nothing was saved to {directory}")
    path = relative_path(directory, record)
    event.path, event.path_bytes = format_path(path), get_undecodable_bytes(path)
    event.resumable = not beside_record and all(
        (directory / name).is_file() for name in _NEEDED_TO_GO_ON
    )
    _set_files(event, directory, files)
    return event


def with_additions(event: Checkpoint, directory: Path, record: Path) -> Checkpoint | None:
    """A checkpoint with the files that were put beside it since; None where that cannot be.

    Nor is there one where nothing was added, or something was changed or taken away.

    Raises:
        LineageError: a file cannot be read.
    """
    beside_record = directory.absolute() == record.parent.absolute()
    before = {file.path: file.sha256 for file in event.files}
    try:
        found = _digested(directory, beside_record, list(before)) if directory.is_dir() else []
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


def relative_path(directory: Path, record: Path) -> str:
    """A directory as the record names it: relative where it lies beside or below the record."""
    try:
        return directory.absolute().relative_to(record.parent.absolute()).as_posix()
    except ValueError:
        return directory.absolute().as_posix()


def copy_record(record: Path, directory: Path) -> None:
    """Put the record so far beside a model that was saved elsewhere, whole or not at all.

    Raises:
        LineageError: it cannot be written.
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


def _of_tensors(directory: Path, model: Any) -> Checkpoint:
    """The digests of what was saved: of a model in memory, of an adapter as it is on disk."""
    inner = adapted(model)
    if inner is None or not saves.holds_its_adapters(model):
        return _checkpoint(own_state(model), merged_adapter_digest=saves.merged_adapter(model))
    named = [name for name in inner.peft_config if name != DEFAULT]
    if adapter_files.names_in(directory, named):
        base = base_state(inner)
        return _checkpoint(
            adapter_files.tensors_in(directory, named),
            base_weights_digest=digest_weights(base) if base else "",
        )
    adapter = own_state(model)
    if contents.has_weights(directory):
        # Saved as a whole model, by a method that merges its adapter into a copy.
        whole = contents.tensors_of(directory, architecture_of(model), None)
        return Checkpoint(
            weights_digest=whole.weights_digest,
            tensors=_tensor_digests(whole.records),
            merged_adapter_digest=digest_weights(adapter),
        )
    return _checkpoint(adapter)


def _checkpoint(
    state: dict[str, Any], base_weights_digest: str = "", merged_adapter_digest: str = ""
) -> Checkpoint:
    digests = digest_state(state)
    return Checkpoint(
        weights_digest=digests.weights_digest,
        tensors=_tensor_digests(digests.tensors),
        base_weights_digest=base_weights_digest,
        merged_adapter_digest=merged_adapter_digest,
    )


def _tensor_digests(tensors: Iterable[TensorDigest]) -> list[training_pb2.TensorDigest]:
    return [
        training_pb2.TensorDigest(name=t.name, dtype=t.dtype, shape=t.shape, sha256=t.sha256)
        for t in tensors
    ]


def _digested(
    directory: Path, beside_record: bool, written: Sequence[str]
) -> list[domain.FileDigest]:
    names = _model_files(directory, written) if beside_record else _all_files(directory)
    return digest_files(directory, names)


def _set_files(event: Checkpoint, directory: Path, files: Sequence[domain.FileDigest]) -> None:
    del event.files[:]
    event.files.extend(
        FileDigest(path=format_path(f.path), size_bytes=f.size_bytes, sha256=f.sha256)
        for f in files
    )
    event.model_digest = contents.model_digest_of(directory, {f.path: f for f in files})


def _all_files(directory: Path) -> list[str]:
    return [
        path.relative_to(directory).as_posix()
        for path in directory.rglob("*")
        if path.is_file() and not path.name.startswith(RECORD_NAME)
    ]


def _model_files(directory: Path, written: Sequence[str]) -> list[str]:
    """Those of the model alone, and what was written with it: beside the record lies more."""
    names = {*written, *weights.CONFIGURATION_FILES, *weights.WEIGHT_FILES, "training_args.bin"}
    names |= {*weights.TOKENIZER_FILES, *adapter_files.names_in(directory)}
    names |= {*weights.list_chat_template_files(directory)}
    if contents.has_weights(directory):
        names |= set(weights.list_weight_files(directory))
    return [name for name in names if (directory / name).is_file()]
