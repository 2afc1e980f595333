"""Resumption of an interrupted `whence-server train`: checkpoint, and checks of the inputs."""

import json
import logging
import shutil
from collections.abc import Sequence
from itertools import count
from pathlib import Path

from whence.v1.training_pb2 import Checkpoint, TrainingState
from whence_server.domain.errors import LineageError
from whence_server.domain.paths import format_path, get_undecodable_bytes
from whence_server.engines.transformers.digests import digest_files
from whence_server.lineage.run import TrainingRun
from whence_server.lineage.texts import TextDocument
from whence_server.training.attest.signatures import remove_signatures

CHECKPOINTS = "checkpoints"
"""Name of the folder of a run's checkpoints in its output directory."""

_log = logging.getLogger(__name__)


def find_last_whole_checkpoint(output: Path, recorded: TrainingRun) -> Path | None:
    """Return the newest resumable checkpoint whose files are as recorded; None if there is none.

    A checkpoint is recorded once it is complete, so that one that was being saved during a kill is
    not on record.

    Raises:
        LineageError: a checkpoint has another architecture than the run.
    """
    newest = {c.path: c for c in recorded.checkpoints if c.resumable}
    for checkpoint in sorted(newest.values(), key=lambda c: c.step, reverse=True):
        directory = output / checkpoint.path
        if not directory.is_dir():
            continue
        _require_architecture(directory, recorded.started.architecture)
        fault = _find_fault(directory, checkpoint)
        if not fault:
            return directory
        _log.warning("the checkpoint %s is skipped: %s", directory, fault)
    return None


def clear_beyond(output: Path, checkpoint: Path | None, recorded: TrainingRun | None) -> None:
    """Remove the checkpoints after the one to resume from; the caller holds the record's lock.

    Recorded ones are moved to a folder `discarded-N`. Others were being saved during a kill, and
    are deleted. So are the signatures of a model that the training replaces.
    """
    remove_signatures(output)
    step = _parse_step(checkpoint) if checkpoint is not None else 0
    known = {output / c.path for c in recorded.checkpoints} if recorded is not None else set()
    beyond = [d for d in (output / CHECKPOINTS).glob("checkpoint-*") if _parse_step(d) > step]
    aside = _choose_discard_folder(output)
    for directory in beyond:
        if directory in known:
            aside.mkdir(exist_ok=True)
            directory.rename(aside / directory.name)
            _log.warning("%s is kept in %s", directory.name, aside)
        else:
            shutil.rmtree(directory)


def is_complete(output: Path, recorded: TrainingRun) -> bool:
    """Return whether the run completed and its final model is on disk as recorded."""
    finals = [c for c in recorded.checkpoints if c.path == "."]
    completed = recorded.state == TrainingState.TRAINING_STATE_COMPLETED
    return completed and bool(finals) and not _find_fault(output, finals[-1])


def require_same_documents(recorded: TrainingRun, documents: Sequence[TextDocument]) -> None:
    """Refuse texts that differ from the recorded documents.

    Raises:
        LineageError: a document differs; the message names the first one.
    """
    known = list(recorded.training_set.read_documents())
    for before, now in zip(known, documents, strict=False):
        source = format_path(now.source)
        if (before.source, before.source_bytes) != (source, get_undecodable_bytes(now.source)):
            missing = before.source not in {format_path(d.source) for d in documents}
            what = f"{before.source} is gone" if missing else f"{source} is new"
            raise _make_changed_error(what)
        if before.sha256 != now.sha256:
            raise _make_changed_error(
                f"{source} has SHA-256 {now.sha256}, and had {before.sha256} when it was read"
            )
    if len(known) > len(documents):
        raise _make_changed_error(f"{known[len(documents)].source} is gone")
    if len(documents) > len(known):
        raise _make_changed_error(f"{format_path(documents[len(known)].source)} is new")


def _make_changed_error(what: str) -> LineageError:
    return LineageError(f"the texts have changed since the run began: {what}")


def _require_architecture(directory: Path, architecture: str) -> None:
    try:
        found = json.loads((directory / "config.json").read_text())["architectures"][0]
    except (OSError, ValueError, LookupError, TypeError):
        return  # The comparison of digests will report it.
    if found != architecture:
        raise LineageError(
            f"{directory} is the checkpoint of a {found}; the run on record trains a {architecture}"
        )


def _find_fault(directory: Path, checkpoint: Checkpoint) -> str:
    """Return the first difference of a checkpoint's files from the record; "" if none."""
    for file in checkpoint.files:
        if not (directory / file.path).is_file():
            return f"{file.path} is missing"
        if digest_files(directory, [file.path])[0].sha256 != file.sha256:
            return f"{file.path} is not as it was recorded"
    return ""


def _choose_discard_folder(output: Path) -> Path:
    names = (output / CHECKPOINTS / f"discarded-{number}" for number in count(1))
    return next(path for path in names if not path.exists())


def _parse_step(directory: Path) -> int:
    number = directory.name.rpartition("-")[2]
    return int(number) if number.isdecimal() else 0
