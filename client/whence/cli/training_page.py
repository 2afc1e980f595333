"""A training run as a self-contained HTML page, drawn by plotly (extra `plots`)."""

import html
import math
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from whence.cli.exits import UsageError
from whence.cli.training_show import Course, format_details
from whence.page.file import write_page
from whence.v1 import training_pb2 as pb

MAX_COLUMNS = 2_000
"""Maximum number of steps on the page; longer runs are thinned."""
INSTALL = "pip install 'whence[plots]'"

_PAGE = """\
<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<title>{title}</title>
<style>
body {{ font: 15px/1.5 system-ui, sans-serif; margin: 2em auto; max-width: 75em; padding: 0 1em }}
pre {{ overflow-x: auto }}
</style>
</head>
<body>
<h1>{title}</h1>
{figure}
<pre>{details}</pre>
</body>
</html>
"""


def write_run_page(path: Path, run: pb.GetTrainingRunResponse, course: Course) -> None:
    """Write the page atomically.

    Raises:
        UsageError: plotly is not installed, or the file cannot be written.
    """
    figure = _make_figure(run, course.thin(MAX_COLUMNS))
    page = _PAGE.format(
        title=html.escape(f"Training run {run.summary.name or run.summary.training_run_id}"),
        figure=figure.to_html(
            full_html=False, include_plotlyjs=True, config={"displaylogo": False}
        ),
        details=html.escape("\n".join(format_details(run))),
    )
    try:
        write_page(path, page)
    except OSError as error:
        raise UsageError(f"{path} cannot be written: {error.strerror or error}") from error


def _make_figure(run: pb.GetTrainingRunResponse, course: Course) -> Any:
    try:
        from plotly import graph_objects
        from plotly.subplots import make_subplots
    except ImportError as error:
        raise UsageError(f"--html needs plotly: {INSTALL}") from error
    groups = [group.name for group in run.started.groups]
    figure = make_subplots(
        rows=3,
        shared_xaxes=True,
        vertical_spacing=0.06,
        row_heights=[0.35, 0.15, 0.5],
        subplot_titles=(
            f"Loss, in nats a token ({course.covers})",
            "Learning rate",
            "Relative updates: norm of a step's change over the norm of the weights, by group",
        ),
    )
    steps = [step.step for step in course.steps]
    losses = _drop_non_finite(step.loss for step in course.steps)
    rates = _drop_non_finite(step.learning_rate for step in course.steps)
    for name, values, row in (("loss", losses, 1), ("learning rate", rates, 2)):
        figure.add_trace(graph_objects.Scatter(x=steps, y=values, name=name, mode="lines"), row, 1)
    broken = [step.step for step in course.steps if not math.isfinite(step.loss)]
    if broken:
        lowest = min((loss for loss in losses if loss is not None), default=0.0)
        figure.add_trace(
            graph_objects.Scatter(
                x=broken,
                y=[lowest] * len(broken),
                name="loss not finite",
                mode="markers",
                marker={"symbol": "x", "color": "crimson"},
            ),
            1,
            1,
        )
    for name, (at, measured) in _collect_evaluations(run).items():
        figure.add_trace(
            graph_objects.Scatter(x=at, y=measured, name=name, mode="lines+markers"), 1, 1
        )
    figure.add_trace(_make_heatmap(graph_objects, groups, course), 3, 1)
    figure.update_yaxes(autorange="reversed", row=3)
    figure.update_xaxes(title="step (dotted: checkpoints)", row=3)
    figure.update_layout(
        template="plotly_white", height=560 + 22 * len(groups), shapes=_make_checkpoint_lines(run)
    )
    return figure


def _make_heatmap(graph_objects: Any, groups: list[str], course: Course) -> Any:
    rows = [course.list_relative_updates(index) for index in range(len(groups))]
    return graph_objects.Heatmap(
        x=course.measured,
        y=groups,
        z=[[math.log10(value) if 0 < value < math.inf else None for value in row] for row in rows],
        customdata=rows,
        colorscale="Viridis",
        colorbar={"title": "log10", "len": 0.5, "y": 0.22},
        hovertemplate="%{y}, step %{x}: %{customdata:.3e}<extra></extra>",
    )


def _make_checkpoint_lines(run: pb.GetTrainingRunResponse) -> list[dict[str, Any]]:
    """Return a vertical line for each checkpoint."""
    line = {"color": "lightgray", "dash": "dot", "width": 1}
    everywhere = {"type": "line", "xref": "x", "yref": "paper", "y0": 0, "y1": 1, "line": line}
    steps = {checkpoint.step for checkpoint in run.checkpoints}
    return [{**everywhere, "x0": step, "x1": step, "layer": "below"} for step in sorted(steps)]


def _collect_evaluations(
    run: pb.GetTrainingRunResponse,
) -> dict[str, tuple[list[int], list[float | None]]]:
    """Return steps and values of evaluation losses, by metric; None for values not finite."""
    found: dict[str, tuple[list[int], list[float | None]]] = {}
    for evaluation in run.evaluations:
        for name, value in evaluation.metrics.items():
            if name.endswith("loss"):
                steps, values = found.setdefault(name, ([], []))
                steps.append(evaluation.step)
                values.append(value if math.isfinite(value) else None)
    return found


def _drop_non_finite(values: Iterable[float]) -> list[float | None]:
    """Replace values that are not finite by None, which plotly draws as gaps."""
    return [value if math.isfinite(value) else None for value in values]
