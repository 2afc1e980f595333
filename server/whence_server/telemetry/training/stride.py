"""Which optimizer steps have a span: one in so many, so that a trace stays within bounds."""

DEFAULT_STEP_SPANS = 1_000
"""Backends fail on traces with some thousand flat children; see docs/spans.md."""


def stride_at(step: int, num_planned_steps: int, step_spans: int = DEFAULT_STEP_SPANS) -> int:
    """Say one in how many steps has a span, around a step.

    A step alone decides whether it has one, whatever was sent before it. Where the end is known,
    steps share the allowance out evenly over the run. Where it is not, and beyond a plan's end,
    the stride doubles whenever the number of steps has doubled: the first quarter of the
    allowance then goes to as many steps, and an eighth more to each doubling.

    Args:
        step: its number, from 1.
        num_planned_steps: 0 where that is not known.
        step_spans: at most so many over the planned steps.
    """
    horizon = num_planned_steps or max(step_spans // 4, 1)
    allowance = step_spans if num_planned_steps else horizon
    while horizon < step:
        horizon *= 2
    return -(-horizon // allowance)


def has_span(step: int, stride: int) -> bool:
    """Return whether a step is one of those in so many; the very first always is."""
    return (step - 1) % stride == 0
