"""Stride of optimizer steps with a span, which bounds the size of a run's trace."""

DEFAULT_STEP_SPANS = 1_000
"""Default number of step spans: backends fail on thousands of siblings; see docs/spans.md."""


def compute_stride(step: int, num_planned_steps: int, step_spans: int = DEFAULT_STEP_SPANS) -> int:
    """Return the stride around a step: one step in each stride has a span.

    It depends on the step's number and the plan alone. If the number of planned steps is known,
    the spans are spread evenly over them. If it is not, and after the last planned step, the
    stride doubles whenever the number of steps has doubled: the first quarter of the spans goes
    to as many steps, and another eighth to each doubling.

    Args:
        step: number of the step, from 1.
        num_planned_steps: number of planned steps; 0 if it is not known.
        step_spans: most spans for the planned steps.
    """
    horizon = num_planned_steps or max(step_spans // 4, 1)
    allowance = step_spans if num_planned_steps else horizon
    while horizon < step:
        horizon *= 2
    return -(-horizon // allowance)


def has_span(step: int, stride: int) -> bool:
    """Return whether a step has a span; the first step always has one."""
    return (step - 1) % stride == 0
