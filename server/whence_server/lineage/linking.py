"""Which training run made a loaded model: by the digests on record, never by where files lie."""

import logging
from collections.abc import Iterable, Sequence

from whence.v1.training_pb2 import Checkpoint
from whence_server.domain.model import ModelInfo, TrainingRunRef
from whence_server.lineage.run import TrainingRun

_log = logging.getLogger(__name__)


def link(
    model: ModelInfo, runs: Iterable[TrainingRun], beside: Sequence[TrainingRun]
) -> TrainingRunRef | None:
    """The run that has a checkpoint with the model's digests on record.

    Its files' digest goes before its weights' alone, which other files may hold as well.

    Args:
        model: as it was loaded.
        runs: all that are known.
        beside: those whose records lie beside the model, and are expected to tell of it.

    Returns:
        None where no record tells of these weights; the log says why.
    """
    runs = list(runs)
    for name in ("model_digest", "weights_digest"):
        wanted = getattr(model, name)
        for run in runs:
            checkpoint = _saved_as(run, name, wanted)
            if checkpoint is not None:
                return _linked(model, run, checkpoint, name)
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


def _saved_as(run: TrainingRun, name: str, digest: str) -> Checkpoint | None:
    """The newest checkpoint of a run with this digest."""
    if digest:
        for checkpoint in reversed(run.checkpoints):
            if getattr(checkpoint, name) == digest:
                return checkpoint
    return None


def _linked(
    model: ModelInfo, run: TrainingRun, checkpoint: Checkpoint, name: str
) -> TrainingRunRef:
    by = "files" if name == "model_digest" else "weights alone (files on record are others)"
    _log.info(
        "%s was made by the training run %s at step %d, by its %s",
        model.name,
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
