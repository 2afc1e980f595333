"""Attributes of a training run's spans, read from recorded messages."""

import math
from collections.abc import Iterable, Mapping
from typing import TypeAlias

from whence.summary import (
    shorten_float32,
    summarise_attempt,
    summarise_checkpoint,
    summarise_evaluation,
    summarise_optimizer_step,
    summarise_run,
)
from whence.v1.training_pb2 import (
    AttemptStarted,
    Checkpoint,
    Evaluation,
    TrainingDataset,
    TrainingRunStarted,
    TrainingState,
    TrainingStep,
)
from whence_server.telemetry.otlp.attributes import AttributeValue
from whence_server.telemetry.spans import names as spans
from whence_server.telemetry.training import names

Attributes: TypeAlias = Mapping[str, AttributeValue | None]

MAX_EXAMPLE_IDS = 256
KILLED = "killed"
"""State of an attempt that has no end on record."""


def make_run_attributes(
    started: TrainingRunStarted,
    dataset: TrainingDataset,
    state: str,
    weights_digest: str,
    last_step: int,
) -> Attributes:
    """Return the attributes of the root span."""
    return {
        names.TRAINING_SUMMARY: summarise_run(started, dataset, state, last_step),
        names.TRAINING_RUN_NAME: started.name,
        names.TRAINING_ARCHITECTURE: started.architecture,
        names.TRAINING_NUM_PARAMETERS: started.num_parameters,
        names.TRAINING_NUM_PLANNED_STEPS: started.num_planned_steps or None,
        names.TRAINING_GROUP_NAMES: [group.name for group in started.groups] or None,
        names.TRAINING_PARENT_RUN_ID: started.parent.training_run_id or None,
        names.TRAINING_MERKLE_ROOT: dataset.merkle_root or None,
        names.TRAINING_NUM_DOCUMENTS: dataset.num_documents or None,
        names.TRAINING_NUM_EXAMPLES: dataset.num_examples or None,
        names.TRAINING_STATE: state,
        names.TRAINING_INITIAL_WEIGHTS_DIGEST: started.initial_weights_digest or None,
        spans.WEIGHTS_DIGEST: weights_digest or None,
        spans.TOKENIZER_DIGEST: started.tokenizer_digest or None,
    }


def make_attempt_attributes(attempt: AttemptStarted, state: str, num_steps: int) -> Attributes:
    """Return the attributes of an attempt's span."""
    return {
        names.TRAINING_SUMMARY: summarise_attempt(attempt, state, num_steps),
        names.TRAINING_RESUMED_STEP: attempt.resumed_step,
        names.TRAINING_NUM_PROCESSES: attempt.num_processes,
        names.TRAINING_STATE: state,
    }


def make_step_attributes(step: TrainingStep, stride: int) -> Attributes:
    """Return the attributes of an optimizer step's span."""
    example_ids = [example for rank in step.ranks for example in rank.example_ids]
    shown = example_ids if len(example_ids) <= MAX_EXAMPLE_IDS else []
    measured = {
        names.TRAINING_LOSS: [step.loss],
        names.TRAINING_LEARNING_RATE: [step.learning_rate],
        names.TRAINING_GRAD_NORM: [step.grad_norm] if step.HasField("grad_norm") else [],
        names.TRAINING_UPDATE_NORMS: step.update_norms,
        names.TRAINING_WEIGHT_NORMS: step.weight_norms,
    }
    return {
        names.TRAINING_SUMMARY: summarise_optimizer_step(step),
        names.TRAINING_STEP: step.step,
        names.TRAINING_EPOCH: step.epoch,
        names.TRAINING_STEP_STRIDE: stride,
        names.TRAINING_LOSS: keep_finite(step.loss),
        names.TRAINING_LEARNING_RATE: keep_finite(step.learning_rate),
        names.TRAINING_GRAD_NORM: keep_finite(step.grad_norm)
        if step.HasField("grad_norm")
        else None,
        names.TRAINING_NON_FINITE: _name_non_finite(measured),
        names.TRAINING_NUM_TOKENS: step.num_tokens,
        names.TRAINING_NUM_TOKENS_SEEN: step.num_tokens_seen,
        names.TRAINING_STEP_NUM_EXAMPLES: len(example_ids),
        names.TRAINING_STEP_EXAMPLE_IDS: shown or None,
        names.TRAINING_UPDATE_NORMS: _keep_all_finite(step.update_norms),
        names.TRAINING_WEIGHT_NORMS: _keep_all_finite(step.weight_norms),
        names.TRAINING_STEP_SKIPPED: step.skipped or None,
    }


def make_evaluation_attributes(evaluation: Evaluation) -> Attributes:
    """Return the attributes of an evaluation's span."""
    metrics = {
        f"{names.EVALUATION_METRIC_PREFIX}{name}": keep_finite(value)
        for name, value in sorted(evaluation.metrics.items())
    }
    measured = {
        f"{names.EVALUATION_METRIC_PREFIX}{name}": [value]
        for name, value in sorted(evaluation.metrics.items())
    }
    return {
        names.TRAINING_SUMMARY: summarise_evaluation(evaluation),
        names.TRAINING_STEP: evaluation.step,
        **metrics,
        names.TRAINING_NON_FINITE: _name_non_finite(measured),
    }


def make_checkpoint_attributes(checkpoint: Checkpoint) -> Attributes:
    """Return the attributes of a checkpoint's span."""
    return {
        names.TRAINING_SUMMARY: summarise_checkpoint(checkpoint),
        names.TRAINING_STEP: checkpoint.step,
        names.CHECKPOINT_PATH: checkpoint.path,
        names.CHECKPOINT_RESUMABLE: checkpoint.resumable,
        names.CHECKPOINT_NUM_BYTES: sum(file.size_bytes for file in checkpoint.files),
        spans.MODEL_DIGEST: checkpoint.model_digest or None,
        spans.WEIGHTS_DIGEST: checkpoint.weights_digest or None,
    }


def get_state_name(state: TrainingState.ValueType) -> str:
    """Return a state in lower case: "completed", "interrupted", "failed"."""
    if state not in TrainingState.values():
        return str(state)  # written by a newer recorder
    return TrainingState.Name(state).removeprefix("TRAINING_STATE_").lower()


def keep_finite(number: float) -> float | None:
    """Return a finite number, and None for others, which many backends cannot store."""
    return number if math.isfinite(number) else None


def _name_non_finite(measured: Mapping[str, Iterable[float]]) -> list[str] | None:
    """Return the names of attributes with a value that is not finite; None if there are none."""
    return [name for name, values in measured.items() if _has_non_finite(values)] or None


def _has_non_finite(values: Iterable[float]) -> bool:
    return not all(map(math.isfinite, values))


def _keep_all_finite(numbers: Iterable[float]) -> list[float] | None:
    """Return float32 values in the fewest digits; None if there are none, or one is not finite."""
    listed = [shorten_float32(number) for number in numbers]
    return listed if listed and all(map(math.isfinite, listed)) else None
