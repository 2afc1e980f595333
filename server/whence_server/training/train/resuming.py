"""Finds where an interrupted `whence-server train` goes on, and whether it may."""

import json
import logging
import shutil
from collections.abc import Sequence
from itertools import count
from pathlib import Path

from whence.v1.training_pb2 import Checkpoint, TrainingState
from whence_server.domain.errors import LineageError
from whence_server.domain.paths import format_path, get_undecodable_bytes
from whence_server.engine.digests import digest_files
from whence_server.lineage.run import TrainingRun
from whence_server.lineage.texts import TextDocument

CHECKPOINTS = "checkpoints"
"""The folder of a run's checkpoints, below its output directory."""

_log = logging.getLogger(__name__)


def last_whole_checkpoint(output: Path, recorded: TrainingRun) -> Path | None:
    """The newest checkpoint on record that is as it was recorded; None where there is none.

    A checkpoint is put on record once it is whole, so that one that was being saved when its
    process was killed is not.

    Raises:
        LineageError: a checkpoint is of another architecture.
    """
    newest = {c.path: c for c in recorded.checkpoints if c.resumable}
    for checkpoint in sorted(newest.values(), key=lambda c: c.step, reverse=True):
        directory = output / checkpoint.path
        if not directory.is_dir():
            continue
        _require_architecture(directory, recorded.started.architecture)
        fault = _fault(directory, checkpoint)
        if not fault:
            return directory
        _log.warning("%s is passed over: %s", directory, fault)
    return None


def clear_beyond(output: Path, checkpoint: Path | None, recorded: TrainingRun | None) -> None:
    """Make room for the checkpoints after the one to go on from; call it under the record's lock.

    What is on record there, and is to be made again, is moved to a folder `discarded-N`. What is
    not on record was being saved when its process was killed, and is removed.
    """
    step = _step_of(checkpoint) if checkpoint is not None else 0
    known = {output / c.path for c in recorded.checkpoints} if recorded is not None else set()
    beyond = [d for d in (output / CHECKPOINTS).glob("checkpoint-*") if _step_of(d) > step]
    aside = _discarded(output)
    for directory in beyond:
        if directory in known:
            aside.mkdir(exist_ok=True)
            directory.rename(aside / directory.name)
            _log.warning("%s is kept in %s", directory.name, aside)
        else:
            shutil.rmtree(directory)


def is_complete(output: Path, recorded: TrainingRun) -> bool:
    """Whether the run went to its end, and its final model is there, as it was recorded."""
    finals = [c for c in recorded.checkpoints if c.path == "."]
    completed = recorded.state == TrainingState.TRAINING_STATE_COMPLETED
    return completed and bool(finals) and not _fault(output, finals[-1])


def require_same_documents(recorded: TrainingRun, documents: Sequence[TextDocument]) -> None:
    """Refuse texts that are not those on record.

    Raises:
        LineageError: naming the first document that is different.
    """
    known = list(recorded.training_set.all_documents())
    for before, now in zip(known, documents, strict=False):
        source = format_path(now.source)
        if (before.source, before.source_bytes) != (source, get_undecodable_bytes(now.source)):
            missing = before.source not in {format_path(d.source) for d in documents}
            what = f"{before.source} is gone" if missing else f"{source} is new"
            raise _changed(what)
        if before.sha256 != now.sha256:
            raise _changed(
                f"{source} has SHA-256 {now.sha256}, and had {before.sha256} when it was read"
            )
    if len(known) > len(documents):
        raise _changed(f"{known[len(documents)].source} is gone")
    if len(documents) > len(known):
        raise _changed(f"{format_path(documents[len(known)].source)} is new")


def _changed(what: str) -> LineageError:
    return LineageError(f"the texts have changed since the run began: {what}")


def _require_architecture(directory: Path, architecture: str) -> None:
    try:
        found = json.loads((directory / "config.json").read_text())["architectures"][0]
    except (OSError, ValueError, LookupError, TypeError):
        return  # Its digest will not be the recorded one.
    if found != architecture:
        raise LineageError(
            f"{directory} is the checkpoint of a {found}; the run on record trains a {architecture}"
        )


def _fault(directory: Path, checkpoint: Checkpoint) -> str:
    """What is not as recorded; "" for nothing."""
    for file in checkpoint.files:
        if not (directory / file.path).is_file():
            return f"{file.path} is missing"
        if digest_files(directory, [file.path])[0].sha256 != file.sha256:
            return f"{file.path} is not as it was recorded"
    return ""


def _discarded(output: Path) -> Path:
    names = (output / CHECKPOINTS / f"discarded-{number}" for number in count(1))
    return next(path for path in names if not path.exists())


def _step_of(directory: Path) -> int:
    number = directory.name.rpartition("-")[2]
    return int(number) if number.isdecimal() else 0
