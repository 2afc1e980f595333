"""What the record says before the first step: the run, its dataset, the attempt."""

import json
import os
import tempfile
import uuid
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from google.protobuf.timestamp_pb2 import Timestamp
from torch.utils.data import IterableDataset

from whence.v1.training_pb2 import (
    AttemptStarted,
    ParameterGroup,
    ParentModel,
    TrainingDataset,
    TrainingEvent,
    TrainingRunStarted,
)
from whence_server.domain.errors import ConfigurationError, LineageError
from whence_server.domain.paths import format_path
from whence_server.engine.digests import digest_weights
from whence_server.lineage.places import records_near
from whence_server.lineage.whole import read_run
from whence_server.training.recording import contents, surroundings
from whence_server.training.recording.adapters import (
    adapted,
    architecture_of,
    config_json,
    own_state,
)
from whence_server.training.recording.documented import DocumentedExamples
from whence_server.training.recording.groups import Group


def run_started(
    trainer: Any,
    groups: Sequence[Group],
    *,
    name: str,
    recipe_json: str,
    parent: ParentModel | None,
    adapter_base: ParentModel | None,
) -> TrainingRunStarted:
    """A new run, as the trainer stands at the beginning of its training."""
    model = trainer.model
    config: Any = getattr(model, "config", None)
    found = surroundings.versions()
    inner = adapted(model)
    return TrainingRunStarted(
        training_run_id=str(uuid.uuid4()),
        name=format_path(name),
        start_time=now(),
        trace_id=os.urandom(16).hex(),
        span_id=os.urandom(8).hex(),
        architecture=architecture_of(model),
        num_parameters=sum(group.num_parameters for group in groups),
        config_json=config.to_json_string() if hasattr(config, "to_json_string") else "",
        arguments_json=_arguments_json(trainer.args),
        recipe_json=recipe_json,
        tokenizer_digest=tokenizer_digest(trainer.processing_class),
        initial_weights_digest=digest_weights(own_state(model)),
        parent=parent,
        adapter_base=adapter_base,
        adapter_config_json="" if inner is None else config_json(inner),
        groups=[
            ParameterGroup(
                name=g.name, num_parameters=g.num_parameters, parameter_names=g.parameter_names
            )
            for g in groups
        ],
        num_planned_steps=max(0, trainer.state.max_steps),
        whence_version=found.get("whence", ""),
    )


def dataset_events(dataset: Any, documents: DocumentedExamples | None) -> Iterator[TrainingEvent]:
    """What a run reads: the whole, then documents and examples where they are known."""
    if documents is not None:
        yield from documents.events()
    else:
        yield TrainingEvent(dataset=described(dataset))


def described(dataset: Any) -> TrainingDataset:
    """A dataset of which nothing is known but what it says of itself."""
    sized = hasattr(dataset, "__len__")
    is_stream = isinstance(dataset, IterableDataset) or not (
        sized and hasattr(type(dataset), "__getitem__")
    )
    fingerprint = getattr(dataset, "_fingerprint", "")
    kind = type(dataset)
    return TrainingDataset(
        kind="stream" if is_stream else "examples",
        num_examples=len(dataset) if sized else 0,
        description=f"{kind.__module__}.{kind.__qualname__} {fingerprint}".strip(),
    )


def attempt_started(trainer: Any, attempt: int, resumed_step: int) -> AttemptStarted:
    """A process that begins to train."""
    return AttemptStarted(
        attempt=attempt,
        start_time=now(),
        resumed_step=resumed_step,
        weights_digest=digest_weights(own_state(trainer.model)),
        num_processes=trainer.args.world_size,
        versions=surroundings.versions(),
        hardware=surroundings.hardware(trainer.args.device),
        determinism=surroundings.determinism(trainer.args),
    )


def parent_model(directory: Path, digest: str) -> ParentModel:
    """The model that a run goes on from.

    Args:
        directory: where it was read.
        digest: its weights digest, as they were loaded.
    """
    model_digest = ""
    with suppress(ConfigurationError, OSError):
        model_digest = contents.model_digest_of(directory)
    return ParentModel(
        source=format_path(directory),
        model_digest=model_digest,
        weights_digest=digest,
        training_run_id=_run_that_made(directory, digest),
    )


def tokenizer_digest(tokenizer: Any) -> str:
    """See `Model.tokenizer_digest`; empty where there is no tokenizer."""
    if not hasattr(tokenizer, "save_pretrained"):
        return ""
    with tempfile.TemporaryDirectory(prefix="whence-tokenizer-") as directory:
        tokenizer.save_pretrained(directory)
        return contents.tokenizer_digest_of(Path(directory))


def now() -> Timestamp:
    """The time, in UTC."""
    timestamp = Timestamp()
    timestamp.GetCurrentTime()
    return timestamp


def _run_that_made(directory: Path, digest: str) -> str:
    """The id of the run on record, beside a model or above it, that made these weights."""
    for path in records_near(directory.absolute()):
        try:
            run = read_run(path)
        except LineageError:
            continue
        if digest in {checkpoint.weights_digest for checkpoint in run.checkpoints}:
            return run.id
    return ""


def _arguments_json(arguments: Any) -> str:
    fields = {k: v for k, v in arguments.to_dict().items() if not k.endswith("token")}
    return json.dumps(fields, default=str, sort_keys=True)
