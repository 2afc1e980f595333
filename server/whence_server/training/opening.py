"""Begins a run's record, or goes on with one: what has to be the same is checked first."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from google.protobuf.message import Message

from whence.v1.training_pb2 import ParentModel, TrainingEvent
from whence_server.domain.errors import LineageError
from whence_server.lineage.writer import RecordWriter
from whence_server.training import setup, telemetry
from whence_server.training.documented import DocumentedExamples
from whence_server.training.groups import Group
from whence_server.training.history import History
from whence_server.training.run import RecordedRun


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """What `record` was told, as far as it concerns the record itself."""

    path: Path
    name: str
    documents: DocumentedExamples | None
    parent: ParentModel | None
    recipe_json: str
    restart: bool

    def restarted(self) -> "Options":
        """The same, for a training that begins once more."""
        return replace(self, restart=True)


def require_place(options: Options, *, resumes: bool) -> None:
    """Refuses, before anything is computed, to record a new run over another.

    Raises:
        LineageError: there is a record already.
    """
    if options.path.exists() and not resumes and not options.restart:
        raise LineageError(
            f"{options.path} exists: another run was recorded here; go on with it "
            "(resume_from_checkpoint), or choose another directory"
        )


def begin(trainer: Any, groups: Sequence[Group], options: Options) -> RecordedRun:
    """Begins an attempt, of a new run or of the one that is on record.

    Raises:
        LineageError: the record cannot be written, or is of another run.
        ConfigurationError: a variable of OpenTelemetry's is malformed.
    """
    telemetry.is_wanted()
    step = trainer.state.global_step
    if options.path.exists() and (step or options.restart):
        writer, events = RecordWriter.resume(options.path)
        history = History.of(events)
        if not history.num_attempts:
            # Its process was killed before it had begun to train.
            writer.close()
            options.path.unlink()
            writer = _create(trainer, groups, options)
    else:
        writer, history = _create(trainer, groups, options), History()
    try:
        attempt = setup.attempt_started(trainer, history.num_attempts + 1, step)
        if history.num_attempts:
            _require_same(trainer, groups, options, history)
            _require_own_weights(history, step, attempt.weights_digest)
        run = RecordedRun(writer, attempt, history.tokens_seen.get(step, 0))
    except BaseException:
        writer.close()
        raise
    telemetry.start(options.path)
    return run


def _create(trainer: Any, groups: Sequence[Group], options: Options) -> RecordWriter:
    options.path.parent.mkdir(parents=True, exist_ok=True)
    started = setup.run_started(
        trainer,
        groups,
        name=options.name,
        recipe_json=options.recipe_json,
        parent=options.parent,
    )
    writer = RecordWriter.create(options.path, TrainingEvent(started=started))
    try:
        for event in setup.dataset_events(trainer.train_dataset, options.documents):
            writer.append(event)
        writer.sync()
    except BaseException:
        # A run that has not begun leaves nothing.
        writer.close()
        options.path.unlink(missing_ok=True)
        raise
    return writer


def _require_same(
    trainer: Any, groups: Sequence[Group], options: Options, history: History
) -> None:
    """Refuses to go on with another model, or on other data.

    Raises:
        LineageError: naming what is different.
    """
    started = history.started
    recorded = [(g.name, list(g.parameter_names), g.num_parameters) for g in started.groups]
    now = [(g.name, g.parameter_names, g.num_parameters) for g in groups]
    architecture = type(trainer.model).__name__
    if architecture != started.architecture or recorded != now:
        raise LineageError(
            f"{options.path} is the record of a {started.architecture} of "
            f"{started.num_parameters} parameters; the trainer has another model "
            f"({architecture})"
        )
    dataset = next(iter(setup.dataset_events(trainer.train_dataset, options.documents))).dataset
    if history.dataset is not None and dataset != history.dataset:
        raise LineageError(
            f"the dataset is not the one that {options.path} tells of: "
            f"{_difference(history.dataset, dataset)}"
        )


def _require_own_weights(history: History, step: int, digest: str) -> None:
    known = history.weights_digests_at(step)
    if digest not in known:
        what = "none is on record there" if not known else f"{min(known)} is on record there"
        raise LineageError(
            f"the checkpoint of step {step} is not this run's: its weights' digest is {digest}, "
            f"and {what}"
        )


def _difference(recorded: Message, now: Message) -> str:
    fields = (
        (field.name, getattr(recorded, field.name), getattr(now, field.name))
        for field in recorded.DESCRIPTOR.fields
    )
    return "; ".join(f"{name} was {old!r}, is {new!r}" for name, old, new in fields if old != new)
