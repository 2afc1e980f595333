"""Selection of a training run on the command line, and lines for runs, steps and events."""

import re
from typing import Any

from google.protobuf.timestamp_pb2 import Timestamp

from whence.cli.exits import UsageError
from whence.cli.plots import format_number
from whence.client import Client
from whence.summary import escape
from whence.v1 import training_pb2 as pb

_WHOLE_ID = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}")
_NUM_SHOWN = 5


def run_id(client: Client, given: str | None) -> str:
    """Return the id of the selected run: a whole id, a unique prefix, or "" for the default run.

    Raises:
        UsageError: no run's id begins with the prefix, or several do.
    """
    if not given or _WHOLE_ID.fullmatch(given):
        return given or ""
    found = [run for run in client.training_runs.list() if run.training_run_id.startswith(given)]
    if len(found) == 1:
        return found[0].training_run_id
    if not found:
        raise UsageError(f"no training run's id begins with {given!r}; see `whence training list`")
    shown = ", ".join(run.training_run_id for run in found[:_NUM_SHOWN])
    more = ", ..." if len(found) > _NUM_SHOWN else ""
    raise UsageError(f"{len(found)} training runs' ids begin with {given!r}: {shown}{more}")


def format_summary(run: pb.TrainingRunSummary) -> str:
    """Return a run's line, with a prefix of its id."""
    loss = f"loss {format_number(run.loss)}" if run.HasField("loss") else ""
    return (
        f"{escape(run.training_run_id)[:8]}  {format_time(run.start_time)[:16]}  "
        f"{name_state(run.state):<11}  {format_progress(run):<15}  {loss:<11}  {escape(run.name)}"
    ).rstrip()


def format_progress(run: pb.TrainingRunSummary) -> str:
    """Return a run's present step, and its planned number of steps."""
    return f"step {run.step:,}" + (f"/{run.num_planned_steps:,}" if run.num_planned_steps else "")


STEP_HEADING = (
    f"{'step':>8}  {'att':>3}  {'epoch':>7}  {'loss':>9}  {'lr':>9}  {'grad norm':>9}  "
    f"{'tokens':>8}  {'ms':>8}  examples"
)


def format_step(step: pb.TrainingStep) -> str:
    """Return a step's line."""
    norm = format_number(step.grad_norm) if step.HasField("grad_norm") else ""
    num_examples = sum(len(rank.example_ids) for rank in step.ranks)
    return (
        f"{step.step:>8}  {step.attempt:>3}  {step.epoch:>7.3f}  {format_number(step.loss):>9}  "
        f"{format_number(step.learning_rate):>9}  {norm:>9}  {step.num_tokens:>8}  "
        f"{step.duration_ns / 1e6:>8.1f}  {num_examples}{'  skipped' if step.skipped else ''}"
    )


def format_event(event: pb.TrainingEvent) -> str:
    """Return an event's line."""
    kind = event.WhichOneof("event") or "unknown"
    told: Any = getattr(event, kind, None)
    match kind:
        case "started":
            named = f"{escape(told.name)}, {escape(told.architecture)}"
            text = f"{named}, run {escape(told.training_run_id)}"
        case "dataset":
            text = describe_dataset(told)
        case "documents":
            text = f"{len(told.documents)} from {told.first_index} on"
        case "examples":
            text = f"{len(told.num_pieces)} from {told.first_example_id} on"
        case "attempt_started":
            text = f"{told.attempt}, from step {told.resumed_step}, {format_time(told.start_time)}"
        case "step":
            loss, rate = format_number(told.loss), format_number(told.learning_rate)
            text = f"{told.step}  loss {loss}  lr {rate}"
        case "evaluation":
            text = f"at step {told.step}  {format_metrics(told)}"
        case "checkpoint":
            text = f"at step {told.step}  {escape(told.path)}"
        case "gap":
            text = describe_gap(told)
        case "attempt_finished":
            text = f"{told.attempt}, {describe_ending(told)}"
        case _:
            text = ""
    return f"{kind:<16}  {text}".rstrip()


def describe_dataset(dataset: pb.TrainingDataset) -> str:
    """Describe a run's training set."""
    parts = [
        f"{dataset.num_documents:,} documents" if dataset.num_documents else "",
        f"{dataset.num_examples:,} examples" if dataset.num_examples else "",
        f"{dataset.block_size:,} tokens each" if dataset.block_size else "",
        f"{dataset.num_tokens:,} tokens" if dataset.num_tokens else "",
    ]
    return ", ".join(part for part in parts if part) or f"of kind {escape(dataset.kind)}"


def describe_ending(ending: pb.AttemptFinished) -> str:
    """Describe the end of an attempt."""
    error = f": {escape(ending.error)}" if ending.error else ""
    return f"{name_state(ending.state)} at step {ending.step:,}{error}"


def describe_gap(gap: pb.RecordingGap) -> str:
    """Describe a gap of the record, with its reason."""
    return f"{escape(gap.subject)} after step {gap.step:,}: {escape(gap.reason)}"


def format_metrics(evaluation: pb.Evaluation) -> str:
    """Return an evaluation's metrics, sorted by name."""
    return "  ".join(
        f"{escape(name)} {format_number(value)}"
        for name, value in sorted(evaluation.metrics.items())
    )


def name_state(state: pb.TrainingState.ValueType) -> str:
    """Return the name of a run's state."""
    known = state in pb.TrainingState.values()
    return pb.TrainingState.Name(state).removeprefix("TRAINING_STATE_").lower() if known else "?"


def format_time(timestamp: Timestamp) -> str:
    """Format a time in UTC, to the second."""
    return timestamp.ToDatetime().strftime("%Y-%m-%d %H:%M:%SZ")
