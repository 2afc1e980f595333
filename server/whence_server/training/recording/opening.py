"""Begins a run's record, or goes on with one: what has to be the same is checked first."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from google.protobuf.message import Message

from whence.v1.training_pb2 import ParentModel, TrainingEvent
from whence_server.domain.errors import LineageError
from whence_server.engine.digests import digest_tensors, digest_weights
from whence_server.lineage.reader import is_begun
from whence_server.lineage.run import TrainingRun
from whence_server.lineage.whole import read_run
from whence_server.lineage.writer import RecordWriter
from whence_server.training.export import start as telemetry
from whence_server.training.recording import setup
from whence_server.training.recording.adapters import (
    adapted,
    architecture_of,
    base_state,
    own_state,
)
from whence_server.training.recording.contents import read_tensor_digest
from whence_server.training.recording.documented import DocumentedExamples
from whence_server.training.recording.groups import Group
from whence_server.training.recording.parents import base_of, parent_of
from whence_server.training.recording.run import RecordedRun


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """What `record` was told, as far as it concerns the record itself."""

    path: Path
    name: str
    documents: DocumentedExamples | None
    parent: ParentModel | None
    recipe_json: str
    restart: bool
    dataset: Any = None
    """What the trainer's data loader reads."""
    required: bool = False
    """Whether a training that cannot be recorded has to end."""
    writer: RecordWriter | None = None
    """The record, where it was opened before to keep others from it."""
    resumed_from: Path | None = None
    """The checkpoint that the training is told to go on from."""

    def restarted(self) -> "Options":
        """The same, for a training that begins once more."""
        return replace(self, restart=True)


def require_place(options: Options, *, resumes: bool) -> None:
    """Refuse, before anything is computed, to record a new run over another.

    Raises:
        LineageError: there is a record already.
    """
    if not resumes and not options.restart and is_begun(options.path):
        raise LineageError(
            f"{options.path} exists: another run was recorded here; go on with it "
            "(resume_from_checkpoint), or choose another directory"
        )


def begin(trainer: Any, groups: Sequence[Group], options: Options) -> RecordedRun:
    """Begin an attempt, of a new run or of the one that is on record.

    Raises:
        LineageError: the record cannot be written, or is of another run.
        ConfigurationError: a variable of OpenTelemetry's is malformed.
    """
    telemetry.is_wanted()
    step = trainer.state.global_step
    writer = options.writer
    if writer is None and options.path.exists() and (step or options.restart):
        writer = RecordWriter.resume(options.path)
    try:
        recorded = None if writer is None else TrainingRun.open(options.path)
        if writer is None or recorded is None or not recorded.attempts:
            # A record without an attempt: its process was killed before it had begun to train.
            writer = _begun(writer, trainer, groups, options)
            run = RecordedRun(writer, setup.attempt_started(trainer, 1, step))
        else:
            attempt = setup.attempt_started(trainer, len(recorded.attempts) + 1, step)
            _require_same(trainer, groups, options, recorded)
            _require_own_weights(recorded, step, trainer.model, attempt.weights_digest)
            run = RecordedRun(
                writer,
                attempt,
                recorded.tokens_seen_after(step),
                {
                    c.weights_digest: c.step
                    for c in recorded.counting_checkpoints()
                    if c.step <= step
                },
            )
    except BaseException:
        if writer is not None:
            writer.close()
        raise
    telemetry.start(options.path)
    return run


def _begun(
    writer: RecordWriter | None, trainer: Any, groups: Sequence[Group], options: Options
) -> RecordWriter:
    """A record with the run's start and its dataset: a new one, or the one that is open."""
    options.path.parent.mkdir(parents=True, exist_ok=True)
    base = base_of(trainer.model)
    started = TrainingEvent(
        started=setup.run_started(
            trainer,
            groups,
            name=options.name,
            recipe_json=options.recipe_json,
            parent=options.parent or parent_of(trainer, options.resumed_from) or base,
            adapter_base=base,
        )
    )
    if writer is None:
        writer = RecordWriter.create(options.path, started)
    else:
        writer.begin(started)
    try:
        for event in setup.dataset_events(options.dataset, options.documents):
            writer.append(event)
        writer.sync()
    except BaseException:
        # A run that has not begun leaves nothing.
        options.path.unlink(missing_ok=True)
        writer.close()
        raise
    return writer


def _require_same(
    trainer: Any, groups: Sequence[Group], options: Options, recorded: TrainingRun
) -> None:
    """Refuse to go on with another model, or on other data.

    Raises:
        LineageError: naming what is different.
    """
    started = recorded.started
    before = [(g.name, list(g.parameter_names), g.num_parameters) for g in started.groups]
    now = [(g.name, g.parameter_names, g.num_parameters) for g in groups]
    architecture = architecture_of(trainer.model)
    if architecture != started.architecture or before != now:
        raise LineageError(
            f"{options.path} is the record of a {started.architecture} of "
            f"{started.num_parameters} parameters; the trainer has another model "
            f"({architecture})"
        )
    _require_same_base(trainer.model, options, recorded)
    dataset = next(iter(setup.dataset_events(options.dataset, options.documents))).dataset
    known = recorded.training_set.dataset
    if known is not None and dataset != known:
        raise LineageError(
            f"the dataset is not the one that {options.path} tells of: "
            f"{_difference(known, dataset)}"
        )


def _require_same_base(model: Any, options: Options, recorded: TrainingRun) -> None:
    """Refuse an adapter that is on another model than the run's was."""
    if not recorded.started.HasField("adapter_base"):
        return
    inner = adapted(model)
    known = recorded.started.adapter_base.weights_digest
    found = "" if inner is None else digest_weights(base_state(inner))
    if known and found != known:
        raise LineageError(
            f"{options.path} is the record of an adapter on a model whose weights' digest is "
            f"{known}; the trainer's adapter is on one with {found}"
        )


def _require_own_weights(recorded: TrainingRun, step: int, model: Any, digest: str) -> None:
    known = {c.weights_digest for c in recorded.checkpoints if c.step == step}
    if step == 0:
        known = {recorded.started.initial_weights_digest}
    if step == 0 and digest not in known:
        raise LineageError(
            f"the training begins at step 0 again, and not at the weights that the run began at: "
            f"their digest is {digest}, and {min(known)} is on record there. Record it as a run of "
            "its own, in another directory"
        )
    if digest not in known and not _has_more_saved(recorded, step, model):
        what = "none is on record there" if not known else f"{min(known)} is on record there"
        raise LineageError(
            f"the checkpoint of step {step} is not this run's: its weights' digest is {digest}, "
            f"and {what}"
        )


def _has_more_saved(recorded: TrainingRun, step: int, model: Any) -> bool:
    """Whether an adapter's tensors were saved with others, as embeddings that were resized are."""
    if not recorded.started.HasField("adapter_base"):
        return False
    ours = set(digest_tensors(own_state(model)))
    saved = [c for c in read_run(recorded.path, with_tensors=True).checkpoints if c.step == step]
    return any(ours <= set(map(read_tensor_digest, checkpoint.tensors)) for checkpoint in saved)


def _difference(recorded: Message, now: Message) -> str:
    fields = (
        (field.name, getattr(recorded, field.name), getattr(now, field.name))
        for field in recorded.DESCRIPTOR.fields
    )
    return "; ".join(f"{name} was {old!r}, is {new!r}" for name, old, new in fields if old != new)
