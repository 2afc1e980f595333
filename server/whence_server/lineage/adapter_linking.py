"""Search for the training run that made an adapter, on the base that the run has on record."""

import logging
from collections.abc import Iterable

from whence.v1.training_pb2 import Checkpoint
from whence_server.domain.errors import ConfigurationError
from whence_server.domain.model import ModelInfo, NamedAdapter, TrainingRunRef
from whence_server.lineage.linking import find_adapter_files, make_reference, map_digests
from whence_server.lineage.run import TrainingRun

_log = logging.getLogger(__name__)


def link_adapter(
    model: ModelInfo, adapter: NamedAdapter, runs: Iterable[TrainingRun]
) -> TrainingRunRef | None:
    """Return the run that has a checkpoint of an adapter on record, trained on the model.

    The adapter's files are compared, or else the digest of its tensors.

    Args:
        model: the served model, to which the adapter is added.
        adapter: the adapter.
        runs: all known runs.

    Returns:
        The run; None if no record has the adapter, or the record does not identify its base.

    Raises:
        ConfigurationError: the adapter was trained on other weights than those of the model.
    """
    for run in runs:
        checkpoint, by = _find_checkpoint(run, adapter)
        if checkpoint is not None and _has_base(run, checkpoint, model, adapter):
            return make_reference(f"the adapter {adapter.name}", run, checkpoint, by)
    _log.info("no training run is known that made the adapter %s", adapter.name)
    return None


def _find_checkpoint(run: TrainingRun, adapter: NamedAdapter) -> tuple[Checkpoint | None, str]:
    """Return the newest checkpoint that has an adapter, and what it was found by."""
    saved = find_adapter_files(run, map_digests(adapter.files))
    if saved is not None:
        return saved, "files, on the base on record"
    for checkpoint in reversed(run.checkpoints):
        if checkpoint.weights_digest == adapter.weights_digest:
            return checkpoint, "weights alone, on the base on record"
    return None, ""


def _has_base(
    run: TrainingRun, checkpoint: Checkpoint, model: ModelInfo, adapter: NamedAdapter
) -> bool:
    """Return whether a run has the model on record as the base of the adapter it trained.

    Raises:
        ConfigurationError: the run has another base on record.
    """
    base = run.started.adapter_base
    digests = {base.weights_digest, checkpoint.base_weights_digest} - {""}
    if model.weights_digest in digests:
        return True
    served, recorded = map_digests(model.files), map_digests(base.files)
    compared = [name for name in model.loaded_files if name in recorded]
    for name in compared:
        if recorded[name] != served[name]:
            raise ConfigurationError(
                f"--adapter {adapter.name}={adapter.directory}: the training run {run.id} made it "
                f"on a base ({base.source}) whose {name} has the SHA-256 {recorded[name]}; that of "
                f"the served model is {served[name]}. Serve the base on record with --model"
            )
    if not compared:
        _log.warning(
            "the training run %s made the adapter %s, and has no files of its base on record that "
            "could be compared with the served model's: the adapter is not linked to it",
            run.id,
            adapter.name,
        )
    return bool(compared)
