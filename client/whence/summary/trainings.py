"""Summaries of a training's record: a step, an evaluation, a checkpoint, an epoch, an attempt."""

from collections.abc import Mapping

from whence.summary.numbers import count
from whence.summary.quoting import quote_briefly
from whence.v1.training_pb2 import (
    AttemptStarted,
    Checkpoint,
    Evaluation,
    TrainingDataset,
    TrainingRunStarted,
    TrainingStep,
)

_MAX_NAME = 64
_MAX_METRICS = 3
_UNITS = ("bytes", "kB", "MB", "GB", "TB")


def summarise_optimizer_step(step: TrainingStep) -> str:
    """Return a step's line: 'step 20: loss 5.74, learning rate 0.001, gradient norm 3.3, ...'."""
    parts = [f"loss {step.loss:.3g}", f"learning rate {step.learning_rate:.3g}"]
    if step.HasField("grad_norm"):
        parts.append(f"gradient norm {step.grad_norm:.3g}")
    parts.append(count(step.num_tokens, "token"))
    if step.skipped:
        parts.append("update skipped")
    return f"step {step.step:,}: {', '.join(parts)}"


def summarise_evaluation(evaluation: Evaluation) -> str:
    """Return an evaluation's line: 'after step 20: eval_loss 5.61'; losses come first."""
    metrics: Mapping[str, float] = evaluation.metrics
    ordered = sorted(metrics, key=lambda name: ("loss" not in name, name))
    listed = [f"{_shorten(name)} {metrics[name]:.3g}" for name in ordered[:_MAX_METRICS]]
    if len(ordered) > _MAX_METRICS:
        listed.append("…")
    return f"after step {evaluation.step:,}: {', '.join(listed) or 'no metrics'}"


def summarise_checkpoint(checkpoint: Checkpoint) -> str:
    """Return a checkpoint's line: 'after step 20: "checkpoint-20", 3.1 MB, can be resumed'."""
    parts = [quote_briefly(checkpoint.path, _MAX_NAME)]
    if checkpoint.files:
        parts.append(_format_bytes(sum(file.size_bytes for file in checkpoint.files)))
    if checkpoint.resumable:
        parts.append("can be resumed")
    return f"after step {checkpoint.step:,}: {', '.join(parts)}"


def summarise_epoch(
    number: int, num_steps: int, num_tokens: int, mean_loss: float | None, num_non_finite: int
) -> str:
    """Return an epoch's line: 'epoch 1: 20 steps, 5,120 tokens, mean loss 5.9'.

    Args:
        number: number of the epoch, from 1.
        num_steps: steps that the attempt made in it.
        num_tokens: tokens of those steps.
        mean_loss: mean of their finite losses; None if there is none.
        num_non_finite: number of losses that are not finite.
    """
    parts = [count(num_steps, "step"), count(num_tokens, "token")]
    if mean_loss is not None:
        parts.append(f"mean loss {mean_loss:.3g}")
    if num_non_finite:
        losses = "loss" if num_non_finite == 1 else "losses"
        parts.append(f"{num_non_finite:,} {losses} not finite")
    return f"epoch {number}: {', '.join(parts)}"


def summarise_attempt(attempt: AttemptStarted, state: str, num_steps: int) -> str:
    """Return an attempt's line: 'attempt 2: completed, 40 steps, resumed after step 20'.

    Args:
        attempt: the attempt's start.
        state: its state in lower case.
        num_steps: optimizer steps that it made.
    """
    parts = [state, count(num_steps, "step")]
    if attempt.resumed_step:
        parts.append(f"resumed after step {attempt.resumed_step:,}")
    if attempt.num_processes > 1:
        parts.append(f"{attempt.num_processes} processes")
    return f"attempt {attempt.attempt}: {', '.join(parts)}"


def summarise_run(
    started: TrainingRunStarted, dataset: TrainingDataset, state: str, last_step: int
) -> str:
    """Return a run's line: '"demo": completed, step 700 of 700, GPT2LMHeadModel, ...'.

    Args:
        started: the run's start.
        dataset: its data set; empty if none is recorded.
        state: state of its newest attempt in lower case.
        last_step: number of its newest optimizer step; 0 if it has none.
    """
    planned = f" of {started.num_planned_steps:,}" if started.num_planned_steps else ""
    parts = [state, f"step {last_step:,}{planned}"]
    if started.architecture:
        parts.append(_shorten(started.architecture))
    if started.num_parameters:
        parts.append(count(started.num_parameters, "parameter"))
    if dataset.num_documents:
        parts.append(count(dataset.num_documents, "document"))
    return f"{quote_briefly(started.name, _MAX_NAME)}: {', '.join(parts)}"


def _shorten(name: str) -> str:
    """Return a name without quotes, escaped and cut; programs and not people chose it."""
    return quote_briefly(name, _MAX_NAME)[1:-1]


def _format_bytes(number: int) -> str:
    size, unit = float(number), 0
    while size >= 1000 and unit < len(_UNITS) - 1:
        size, unit = size / 1000, unit + 1
    return f"{size:.1f} {_UNITS[unit]}" if unit else f"{number} bytes"
