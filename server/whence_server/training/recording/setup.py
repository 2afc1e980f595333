"""Record entries before the first step: the run, its dataset, the attempt."""

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
from whence_server.engines.transformers.digests import digest_weights
from whence_server.lineage.places import find_records_near
from whence_server.lineage.whole import read_run
from whence_server.training.recording import contents, surroundings
from whence_server.training.recording.adapters import (
    find_adapted,
    format_config_json,
    get_architecture,
    get_trained_state,
)
from whence_server.training.recording.documented import DocumentedExamples
from whence_server.training.recording.groups import Group


def make_run_started(
    trainer: Any,
    groups: Sequence[Group],
    *,
    name: str,
    recipe_json: str,
    parent: ParentModel | None,
    adapter_base: ParentModel | None,
) -> TrainingRunStarted:
    """Describe a new run, at the beginning of the trainer's training."""
    model = trainer.model
    config: Any = getattr(model, "config", None)
    found = surroundings.collect_versions()
    inner = find_adapted(model)
    return TrainingRunStarted(
        training_run_id=str(uuid.uuid4()),
        name=format_path(name),
        start_time=get_timestamp(),
        trace_id=os.urandom(16).hex(),
        span_id=os.urandom(8).hex(),
        architecture=get_architecture(model),
        num_parameters=sum(group.num_parameters for group in groups),
        config_json=config.to_json_string() if hasattr(config, "to_json_string") else "",
        arguments_json=_format_arguments_json(trainer.args),
        recipe_json=recipe_json,
        tokenizer_digest=compute_tokenizer_digest(trainer.processing_class),
        initial_weights_digest=digest_weights(get_trained_state(model)),
        parent=parent,
        adapter_base=adapter_base,
        adapter_config_json="" if inner is None else format_config_json(inner),
        groups=[
            ParameterGroup(
                name=g.name, num_parameters=g.num_parameters, parameter_names=g.parameter_names
            )
            for g in groups
        ],
        num_planned_steps=max(0, trainer.state.max_steps),
        whence_version=found.get("whence", ""),
    )


def make_dataset_events(
    dataset: Any, documents: DocumentedExamples | None
) -> Iterator[TrainingEvent]:
    """Yield the entries of a dataset: its description, then documents and examples if known."""
    if documents is not None:
        yield from documents.make_events()
    else:
        yield TrainingEvent(dataset=describe_dataset(dataset))


def describe_dataset(dataset: Any) -> TrainingDataset:
    """Describe a dataset whose documents are not known."""
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


def make_attempt_started(trainer: Any, attempt: int, resumed_step: int) -> AttemptStarted:
    """Describe an attempt: the process that begins to train."""
    return AttemptStarted(
        attempt=attempt,
        start_time=get_timestamp(),
        resumed_step=resumed_step,
        weights_digest=digest_weights(get_trained_state(trainer.model)),
        num_processes=trainer.args.world_size,
        versions=surroundings.collect_versions(),
        hardware=surroundings.describe_hardware(trainer.args.device),
        determinism=surroundings.collect_determinism_settings(trainer.args),
    )


def parent_model(directory: Path, digest: str) -> ParentModel:
    """Describe the model that a run continues from.

    Args:
        directory: directory that it was loaded from.
        digest: weights digest of the loaded model.
    """
    model_digest = ""
    with suppress(ConfigurationError, OSError):
        model_digest = contents.compute_model_digest(directory)
    return ParentModel(
        source=format_path(directory),
        model_digest=model_digest,
        weights_digest=digest,
        training_run_id=_find_run_id(directory, digest),
    )


def compute_tokenizer_digest(tokenizer: Any) -> str:
    """Compute `Model.tokenizer_digest` of a tokenizer in memory; return "" for another object."""
    if not hasattr(tokenizer, "save_pretrained"):
        return ""
    with tempfile.TemporaryDirectory(prefix="whence-tokenizer-") as directory:
        tokenizer.save_pretrained(directory)
        return contents.compute_tokenizer_digest(Path(directory))


def get_timestamp() -> Timestamp:
    """Return the current time, in UTC."""
    timestamp = Timestamp()
    timestamp.GetCurrentTime()
    return timestamp


def _find_run_id(directory: Path, digest: str) -> str:
    """Return the id of the recorded run, beside or above a model, that made it; "" if none."""
    for path in find_records_near(directory.absolute()):
        try:
            run = read_run(path)
        except LineageError:
            continue
        if digest in {checkpoint.weights_digest for checkpoint in run.checkpoints}:
            return run.id
    return ""


def _format_arguments_json(arguments: Any) -> str:
    fields = {k: v for k, v in arguments.to_dict().items() if not k.endswith("token")}
    return json.dumps(fields, default=str, sort_keys=True)
