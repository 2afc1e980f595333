"""Search for the training run that made a loaded model, by digests on record and never by paths."""

import logging
from collections.abc import Iterable, Mapping, Sequence
from pathlib import PurePosixPath

from whence.v1 import model_pb2 as pb
from whence.v1.training_pb2 import Checkpoint
from whence_server.domain.model import FileDigest, ModelInfo, TrainingRunRef
from whence_server.lineage.run import TrainingRun

_log = logging.getLogger(__name__)

_CONFIGURATION = "adapter_config.json"
_ADAPTER = ("adapter_config.", "adapter_model.")
_BASE = "base/"
"""Prefix of the names of the files of an adapter's base; see `FileDigest.path`."""
_BY = {
    "model_digest": "files",
    "weights_digest": "weights alone (files on record are others)",
}


def link(
    model: ModelInfo, runs: Iterable[TrainingRun], beside: Sequence[TrainingRun]
) -> TrainingRunRef | None:
    """Return the run that has a checkpoint with the model's digests on record.

    The digest of all files is compared first, then that of the weights, which several sets of
    files may share. An adapter matches by its files and the files of its base model.

    Args:
        model: the model as it was loaded.
        runs: all known runs.
        beside: the runs whose records lie beside the model; the log names them if none matches.

    Returns:
        The run, or None if no record has these weights; the log then says why.
    """
    runs = list(runs)
    for name in ("model_digest", "weights_digest"):
        wanted = getattr(model, name)
        for run in runs:
            checkpoint = _find_checkpoint(run, name, wanted)
            if checkpoint is not None:
                return make_reference(model.name, run, checkpoint, _BY[name])
    if model.adapter is not None:
        for run in runs:
            checkpoint = _find_adapter_checkpoint(run, model)
            if checkpoint is not None:
                return make_reference(
                    model.name, run, checkpoint, "adapter's files, on the base on record"
                )
    for run in beside:
        _log.warning(
            "%s is not linked to the training run %s, whose record lies at %s: none of the %d "
            "checkpoints on record has its model digest %s or its weights digest %s; its files "
            "were changed after the training, or are of another one",
            model.name,
            run.id,
            run.path,
            len(run.checkpoints),
            model.model_digest,
            model.weights_digest,
        )
    if not beside:
        _log.info("no training run is known that made %s", model.name)
    return None


def _find_checkpoint(run: TrainingRun, name: str, digest: str) -> Checkpoint | None:
    """Return the newest checkpoint of a run with this value in its digest field `name`."""
    if digest:
        for checkpoint in reversed(run.checkpoints):
            if getattr(checkpoint, name) == digest:
                return checkpoint
    return None


def _find_adapter_checkpoint(run: TrainingRun, model: ModelInfo) -> Checkpoint | None:
    """Return the newest checkpoint that has the model's adapter, trained on the model's base.

    The files of the base are compared; a run that has none of them on record does not match.
    """
    served = map_digests(model.files)
    base = map_digests(run.started.adapter_base.files)
    if not base or any(
        digest not in (served.get(name), served.get(_BASE + name)) for name, digest in base.items()
    ):
        return None
    return find_adapter_files(
        run, {name: served[name] for name in served if name.startswith(_ADAPTER)}
    )


def find_adapter_files(run: TrainingRun, adapter: Mapping[str, str]) -> Checkpoint | None:
    """Return the newest checkpoint of a run that has the files of an adapter.

    Args:
        run: the run.
        adapter: SHA-256 of the adapter's files, by their names in its directory.
    """
    for checkpoint in reversed(run.checkpoints):
        saved = map_digests(checkpoint.files)
        # An adapter that was saved under a name lies in a directory of that name.
        places = [name.removesuffix(_CONFIGURATION) for name in saved if _is_configuration(name)]
        if any(
            all(saved.get(place + name) == adapter[name] for name in adapter) for place in places
        ):
            return checkpoint
    return None


def map_digests(files: Iterable[FileDigest | pb.FileDigest]) -> dict[str, str]:
    """Return the SHA-256 of files by their paths."""
    return {file.path: file.sha256 for file in files}


def _is_configuration(path: str) -> bool:
    return PurePosixPath(path).name == _CONFIGURATION


def make_reference(name: str, run: TrainingRun, checkpoint: Checkpoint, by: str) -> TrainingRunRef:
    """Return the reference to a run, and log it.

    Args:
        name: name of the model or adapter that the run made.
        run: the run.
        checkpoint: the run's checkpoint of it.
        by: what the checkpoint was found by.
    """
    _log.info(
        "%s was made by the training run %s at step %d, by its %s",
        name,
        run.id,
        checkpoint.step,
        by,
    )
    return TrainingRunRef(
        training_run_id=run.id,
        trace_id=run.started.trace_id,
        span_id=run.started.span_id,
        step=checkpoint.step,
        record_head=run.head,
    )
