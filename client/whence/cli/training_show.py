"""A training run as text: its settings, its course and its plots."""

from collections.abc import Iterator, Sequence
from itertools import cycle
from typing import NamedTuple

from whence.cli.plots import HeatScale, compute_bin_means, draw_columns, format_axis
from whence.cli.render import fit_columns
from whence.cli.runs import (
    describe_dataset,
    describe_ending,
    describe_gap,
    format_metrics,
    format_progress,
    format_time,
    name_state,
)
from whence.client import Client
from whence.summary import escape
from whence.v1 import training_pb2 as pb

MAX_STEPS = 20_000
"""Maximum number of steps fetched for the plots; longer runs are thinned."""
_PAGE_STEPS = 5_000
_NAME_COLUMNS = 14
_GROUP_COLUMNS = 20
_MOST_LINES = 12


class Course(NamedTuple):
    """A run's steps, all of them or one in `stride`."""

    steps: list[pb.TrainingStep]
    stride: int

    @property
    def covers(self) -> str:
        """Description of the included steps."""
        steps = f"{len(self.steps):,} step{'' if len(self.steps) == 1 else 's'}"
        return steps if self.stride == 1 else f"{steps}, one in {self.stride:,}"

    @property
    def measured(self) -> list[int]:
        """Numbers of the steps with recorded norms."""
        return [step.step for step in self.steps if step.update_norms]

    def thin(self, max_steps: int) -> "Course":
        """Return the course with at most `max_steps` steps, thinned by a round stride."""
        one_in = round_stride(len(self.steps), max_steps)
        return Course(self.steps[one_in - 1 :: one_in], self.stride * one_in)

    def list_relative_updates(self, group: int) -> list[float]:
        """Return a group's ratios of update norm to weight norm, for steps that have both."""
        return [
            step.update_norms[group] / step.weight_norms[group] if step.weight_norms[group] else 0.0
            for step in self.steps
            if group < min(len(step.update_norms), len(step.weight_norms))
        ]


def fetch_course(client: Client, run: pb.GetTrainingRunResponse) -> Course:
    """Fetch a run's steps, thinned to at most `MAX_STEPS`."""
    stride = round_stride(run.summary.step, MAX_STEPS)
    steps = client.training_runs.steps(
        run.summary.training_run_id,
        first_step=0 if stride == 1 else stride,
        stride=stride,
        omit_examples=True,
        page_size=_PAGE_STEPS,
    )
    return Course(list(steps), stride)


def round_stride(num_steps: int, max_steps: int) -> int:
    """Return a round stride, because norms are often recorded at round steps only."""
    stride, factors = 1, cycle((2, 2.5, 2))
    while num_steps > stride * max_steps:
        stride = int(stride * next(factors))
    return stride


def format_details(run: pb.GetTrainingRunResponse) -> Iterator[str]:
    """Yield the lines of a run's record besides its steps."""
    for name, value in _collect_facts(run).items():
        yield f"{name:<{_NAME_COLUMNS}}  {escape(value)}"
    yield from _format_section(
        "attempts", [_format_attempt(run, attempt) for attempt in run.attempts]
    )
    yield from _format_section("checkpoints", _format_checkpoints(run))
    yield from _format_section(
        "evaluations", [f"step {e.step:<8,}  {format_metrics(e)}" for e in run.evaluations]
    )
    yield from _format_section("not on record", [describe_gap(gap) for gap in run.gaps])


def draw_plots(
    run: pb.GetTrainingRunResponse, course: Course, num_columns: int, *, color: bool
) -> Iterator[str]:
    """Yield plots of loss, learning rate and relative updates by parameter group."""
    if not course.steps:
        yield "no step is on record yet"
        return
    first, last = course.steps[0].step, course.steps[-1].step
    yield f"loss, in nats a token ({course.covers}; a column is a mean)"
    yield from draw_columns([step.loss for step in course.steps], num_columns)
    yield format_axis(first, last, num_columns)
    yield ""
    yield "learning rate"
    yield from draw_columns([step.learning_rate for step in course.steps], num_columns, 3)
    yield format_axis(first, last, num_columns)
    yield ""
    yield from _update_map(run.started.groups, course, num_columns, color=color)


def _update_map(
    groups: Sequence[pb.ParameterGroup], course: Course, num_columns: int, *, color: bool
) -> Iterator[str]:
    rows = {group.name: course.list_relative_updates(i) for i, group in enumerate(groups)}
    rows = {name: values for name, values in rows.items() if values}
    if not rows:
        yield "update norms are not on record"
        return
    indent = min(max(map(len, rows)), _GROUP_COLUMNS) + 2
    means = {name: compute_bin_means(values, num_columns - indent) for name, values in rows.items()}
    scale = HeatScale(mean for row in means.values() for mean in row)
    yield "relative updates: norm of a step's change over the norm of the weights, by group"
    yield f"({scale}; a cell is a mean)"
    for name, row in means.items():
        cells = "".join(scale.draw_cell(mean, color=color) for mean in row)
        yield f"{fit_columns(escape(name), indent - 2)}  {cells}"
    yield format_axis(course.measured[0], course.measured[-1], num_columns, indent)


def _collect_facts(run: pb.GetTrainingRunResponse) -> dict[str, str]:
    summary, started = run.summary, run.started
    facts = {
        "run": summary.training_run_id,
        "name": summary.name,
        "state": f"{name_state(summary.state)}, {format_progress(summary)}"
        + (f", loss {summary.loss:.4f}" if summary.HasField("loss") else ""),
        "began": f"{format_time(summary.start_time)}; "
        f"last on record {format_time(summary.last_time)}",
        "model": f"{started.architecture}, {started.num_parameters:,} parameters",
        "went on from": _describe_parent(started),
        "adapter on": _describe_base(started),
        "training set": describe_dataset(run.dataset) if run.HasField("dataset") else "",
        "described as": run.dataset.description,
        "merkle root": run.dataset.merkle_root,
        "tokens seen": f"{summary.num_tokens_seen:,}",
        "superseded": f"{summary.num_superseded_steps:,} steps"
        if summary.num_superseded_steps
        else "",
        "tokenizer": started.tokenizer_digest,
        "weights before": started.initial_weights_digest,
        **_collect_digests(run),
        "serves as": ", ".join(summary.served_models),
        "record": f"{summary.record_path} ({summary.num_entries:,} entries)",
        "head": summary.head,
    }
    return {name: value for name, value in facts.items() if value}


def _describe_parent(started: pb.TrainingRunStarted) -> str:
    if not started.HasField("parent"):
        # Runs of `whence-server train`, which have a recipe, record every parent.
        return "random weights" if started.recipe_json else "not on record"
    parent = started.parent
    run = f", run {parent.training_run_id}" if parent.training_run_id else ""
    return f"{parent.source}{run}"


def _describe_base(started: pb.TrainingRunStarted) -> str:
    """Describe the frozen model below an adapter; "" without an adapter."""
    base = started.adapter_base
    return f"{base.source}, weights digest {base.weights_digest}" if base.ByteSize() else ""


def _collect_digests(run: pb.GetTrainingRunResponse) -> dict[str, str]:
    """Return the digests of the newest checkpoint, else of the last attempt's end."""
    if run.checkpoints:
        newest = run.checkpoints[-1]
        return {"model digest": newest.model_digest, "weights digest": newest.weights_digest}
    return {"weights digest": run.endings[-1].weights_digest} if run.endings else {}


def _format_attempt(run: pb.GetTrainingRunResponse, attempt: pb.AttemptStarted) -> str:
    endings = {ending.attempt: describe_ending(ending) for ending in run.endings}
    is_last = attempt.attempt == run.attempts[-1].attempt
    ended = endings.get(attempt.attempt, "goes on" if is_last else "was killed")
    processes = f", {attempt.num_processes} processes" if attempt.num_processes > 1 else ""
    return (
        f"{attempt.attempt}  {format_time(attempt.start_time)}  from step {attempt.resumed_step:,}"
        f"{processes}  {ended}"
    )


def _format_checkpoints(run: pb.GetTrainingRunResponse) -> list[str]:
    if not run.checkpoints:
        return []
    rows = [f"{'step':>8}  {'model digest':<14}  {'weights digest':<14}  {'resumable':<10}  path"]
    for checkpoint in run.checkpoints:
        state = "yes" if checkpoint.resumable else "no"
        if _is_superseded(checkpoint, run.attempts):
            state = "superseded"
        rows.append(
            f"{checkpoint.step:>8}  {_shorten_digest(checkpoint.model_digest)}  "
            f"{_shorten_digest(checkpoint.weights_digest)}  {state:<10}  {escape(checkpoint.path)}"
        )
    return rows


def _is_superseded(checkpoint: pb.Checkpoint, attempts: Sequence[pb.AttemptStarted]) -> bool:
    """Return whether a later attempt continued from an earlier step."""
    return any(
        attempt.attempt > checkpoint.attempt and attempt.resumed_step < checkpoint.step
        for attempt in attempts
    )


def _shorten_digest(digest: str) -> str:
    return fit_columns(escape(digest) or "none", 14)


def _format_section(name: str, lines: list[str]) -> Iterator[str]:
    if not lines:
        return
    yield f"\n{name}"
    left_out = len(lines) - _MOST_LINES
    if left_out > 0:
        lines = [lines[0], f"... {left_out - 1:,} more", *lines[-_MOST_LINES + 2 :]]
    for line in lines:
        yield f"  {line}"
