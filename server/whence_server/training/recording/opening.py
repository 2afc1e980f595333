"""Start of a run's record, or resumption of one after comparing model and data with it."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from google.protobuf.message import Message

from whence.v1.training_pb2 import ParentModel, TrainingEvent
from whence_server.domain.errors import LineageError
from whence_server.engines.transformers.digests import digest_tensors, digest_weights
from whence_server.lineage.reader import is_begun
from whence_server.lineage.run import TrainingRun
from whence_server.lineage.whole import read_run
from whence_server.lineage.writer import RecordWriter
from whence_server.training.export import start as telemetry
from whence_server.training.recording import setup
from whence_server.training.recording.adapters import (
    find_adapted,
    get_architecture,
    get_base_state,
    get_trained_state,
)
from whence_server.training.recording.contents import read_tensor_digest
from whence_server.training.recording.documented import DocumentedExamples
from whence_server.training.recording.groups import Group
from whence_server.training.recording.parents import describe_base, find_parent
from whence_server.training.recording.run import RecordedRun


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """Arguments of `record` that concern the record itself."""

    path: Path
    name: str
    documents: DocumentedExamples | None
    parent: ParentModel | None
    recipe_json: str
    restart: bool
    dataset: Any = None
    """Dataset that the trainer's data loader reads."""
    required: bool = False
    """True if an error of the recording ends the training."""
    writer: RecordWriter | None = None
    """Writer that already holds the record's lock; None opens the record."""
    resumed_from: Path | None = None
    """Checkpoint that the training resumes from; None for none."""

    def copy_for_restart(self) -> "Options":
        """Return a copy for a training that begins again."""
        return replace(self, restart=True)


def require_place(options: Options, *, resumes: bool) -> None:
    """Refuse to overwrite the record of another run, before anything is computed.

    Raises:
        LineageError: there is a record already.
    """
    if not resumes and not options.restart and is_begun(options.path):
        raise LineageError(
            f"{options.path} exists: it is the record of another run; resume that run "
            "(resume_from_checkpoint), or choose another directory"
        )


def begin(trainer: Any, groups: Sequence[Group], options: Options) -> RecordedRun:
    """Begin an attempt of a new run, or of the run on record.

    Raises:
        LineageError: the record cannot be written, or is that of another run.
        ConfigurationError: a variable of OpenTelemetry is malformed.
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
            writer = _begin_record(writer, trainer, groups, options)
            run = RecordedRun(writer, setup.make_attempt_started(trainer, 1, step))
        else:
            attempt = setup.make_attempt_started(trainer, len(recorded.attempts) + 1, step)
            _require_same(trainer, groups, options, recorded)
            _require_own_weights(recorded, step, trainer.model, attempt.weights_digest)
            run = RecordedRun(
                writer,
                attempt,
                recorded.read_num_tokens_seen(step),
                {
                    c.weights_digest: c.step
                    for c in recorded.list_counting_checkpoints()
                    if c.step <= step
                },
            )
    except BaseException:
        if writer is not None:
            writer.close()
        raise
    telemetry.start(options.path)
    return run


def _begin_record(
    writer: RecordWriter | None, trainer: Any, groups: Sequence[Group], options: Options
) -> RecordWriter:
    """Write the run's start and its dataset to a new record, or to the open one."""
    options.path.parent.mkdir(parents=True, exist_ok=True)
    base = describe_base(trainer.model)
    started = TrainingEvent(
        started=setup.make_run_started(
            trainer,
            groups,
            name=options.name,
            recipe_json=options.recipe_json,
            parent=options.parent or find_parent(trainer, options.resumed_from) or base,
            adapter_base=base,
        )
    )
    if writer is None:
        writer = RecordWriter.create(options.path, started)
    else:
        writer.begin(started)
    try:
        for event in setup.make_dataset_events(options.dataset, options.documents):
            writer.append(event)
        writer.sync()
    except BaseException:
        # A run that has not begun leaves no record.
        options.path.unlink(missing_ok=True)
        writer.close()
        raise
    return writer


def _require_same(
    trainer: Any, groups: Sequence[Group], options: Options, recorded: TrainingRun
) -> None:
    """Refuse to resume with a different model or dataset.

    Raises:
        LineageError: model or dataset differ from the record; the message names the difference.
    """
    started = recorded.started
    before = [(g.name, list(g.parameter_names), g.num_parameters) for g in started.groups]
    now = [(g.name, g.parameter_names, g.num_parameters) for g in groups]
    architecture = get_architecture(trainer.model)
    if architecture != started.architecture or before != now:
        raise LineageError(
            f"{options.path} is the record of a {started.architecture} of "
            f"{started.num_parameters} parameters; the trainer has another model "
            f"({architecture})"
        )
    _require_same_base(trainer.model, options, recorded)
    dataset = next(iter(setup.make_dataset_events(options.dataset, options.documents))).dataset
    known = recorded.training_set.dataset
    if known is not None and dataset != known:
        raise LineageError(
            f"the dataset is not the one on record in {options.path}: "
            f"{_describe_difference(known, dataset)}"
        )


def _require_same_base(model: Any, options: Options, recorded: TrainingRun) -> None:
    """Refuse an adapter whose base model differs from the recorded one."""
    if not recorded.started.HasField("adapter_base"):
        return
    inner = find_adapted(model)
    known = recorded.started.adapter_base.weights_digest
    found = "" if inner is None else digest_weights(get_base_state(inner))
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
            f"the training begins at step 0 with weights of the digest {digest}, and the run on "
            f"record began with {min(known)}. Record it as a new run, in another directory"
        )
    if digest not in known and not _has_more_saved(recorded, step, model):
        what = "none is on record there" if not known else f"{min(known)} is on record there"
        raise LineageError(
            f"the checkpoint of step {step} is not this run's: its weights' digest is {digest}, "
            f"and {what}"
        )


def _has_more_saved(recorded: TrainingRun, step: int, model: Any) -> bool:
    """Return whether a checkpoint has the adapter's tensors among others, as embeddings."""
    if not recorded.started.HasField("adapter_base"):
        return False
    ours = set(digest_tensors(get_trained_state(model)))
    saved = [c for c in read_run(recorded.path, with_tensors=True).checkpoints if c.step == step]
    return any(ours <= set(map(read_tensor_digest, checkpoint.tensors)) for checkpoint in saved)


def _describe_difference(recorded: Message, now: Message) -> str:
    fields = (
        (field.name, getattr(recorded, field.name), getattr(now, field.name))
        for field in recorded.DESCRIPTOR.fields
    )
    return "; ".join(f"{name} was {old!r}, is {new!r}" for name, old, new in fields if old != new)
