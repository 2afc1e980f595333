"""What the record says of weights on disk: a digest of every file and of every tensor."""

import os
import shutil
from pathlib import Path
from typing import Any

from whence.v1.model_pb2 import FileDigest
from whence.v1.training_pb2 import Checkpoint, TensorDigest
from whence_server.domain.errors import ConfigurationError, LineageError
from whence_server.engine import weights
from whence_server.engine.digests import file_digests, state_digests
from whence_server.lineage.reader import RECORD_NAME
from whence_server.training import contents

_NEEDED_TO_GO_ON = ("trainer_state.json", "optimizer.pt", "scheduler.pt")


def checkpoint(directory: Path, record: Path, model: Any) -> Checkpoint:
    """Digests a directory that the model has just been saved to.

    Args:
        directory: where the weights lie.
        record: the run's record, to which the path is relative.
        model: the same weights in memory.

    Raises:
        LineageError: a file cannot be read.
    """
    beside_record = directory.absolute() == record.parent.absolute()
    try:
        names = _model_files(directory) if beside_record else _all_files(directory)
        files = file_digests(directory, names)
    except (OSError, ConfigurationError) as error:
        raise LineageError(f"what was saved to {directory} cannot be digested: {error}") from error
    digests = state_digests(model.state_dict())
    return Checkpoint(
        path=relative_path(directory, record),
        resumable=not beside_record and all((directory / n).is_file() for n in _NEEDED_TO_GO_ON),
        model_digest=contents.model_digest_of(directory, {f.path: f for f in files}),
        weights_digest=digests.weights_digest,
        files=[FileDigest(path=f.path, size_bytes=f.size_bytes, sha256=f.sha256) for f in files],
        tensors=[
            TensorDigest(name=t.name, dtype=t.dtype, shape=t.shape, sha256=t.sha256)
            for t in digests.tensors
        ],
    )


def relative_path(directory: Path, record: Path) -> str:
    """A directory as the record names it: relative where it lies beside or below the record."""
    try:
        return directory.absolute().relative_to(record.parent.absolute()).as_posix()
    except ValueError:
        return directory.absolute().as_posix()


def copy_record(record: Path, directory: Path) -> None:
    """Puts the record so far beside a model that was saved elsewhere, whole or not at all.

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


def _all_files(directory: Path) -> list[str]:
    return [
        path.relative_to(directory).as_posix()
        for path in directory.rglob("*")
        if path.is_file() and not path.name.startswith(RECORD_NAME)
    ]


def _model_files(directory: Path) -> list[str]:
    """Those of the model alone: beside the record lie other things too."""
    names = {*weights.weight_files(directory), *weights.CONFIGURATION_FILES}
    names |= {*weights.WEIGHT_FILES, *weights.TOKENIZER_FILES, "training_args.bin"}
    names |= {*weights.chat_template_files(directory)}
    return [name for name in names if (directory / name).is_file()]
