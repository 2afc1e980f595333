"""Span ids of a training run: functions of the run's id and of what they stand for."""

import hashlib

_NEVER_ZERO = bytes(7) + b"\1"


def attempt_span_id(training_run_id: str, attempt: int) -> bytes:
    """The id of a `training_attempt` span."""
    return _span_id(training_run_id, f"attempt/{attempt}")


def epoch_span_id(training_run_id: str, attempt: int, epoch: int) -> bytes:
    """The id of what an attempt made of an epoch."""
    return _span_id(training_run_id, f"attempt/{attempt}/epoch/{epoch}")


def child_span_id(training_run_id: str, attempt: int, kind: str, step: int, nth: int) -> bytes:
    """The id of an optimizer step, an evaluation or a checkpoint.

    Args:
        training_run_id: whose.
        attempt: which process made it.
        kind: the span's name.
        step: the number of the step that it is, or that it follows.
        nth: from 0, where several of a kind follow the same step.
    """
    return _span_id(training_run_id, f"attempt/{attempt}/{kind}/{step}/{nth}")


def _span_id(training_run_id: str, place: str) -> bytes:
    """The first 8 bytes of SHA-256 over run and place; never zero, which stands for "invalid"."""
    span_id = hashlib.sha256(f"whence.v1.training\0{training_run_id}\0{place}".encode()).digest()[
        :8
    ]
    return span_id if any(span_id) else _NEVER_ZERO
