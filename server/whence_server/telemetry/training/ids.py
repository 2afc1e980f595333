"""Span ids of a training run, each a function of the run's id and the span's place in it."""

import hashlib

_NEVER_ZERO = bytes(7) + b"\1"


def make_attempt_span_id(training_run_id: str, attempt: int) -> bytes:
    """Return the id of a `training_attempt` span."""
    return _make_span_id(training_run_id, f"attempt/{attempt}")


def make_epoch_span_id(training_run_id: str, attempt: int, epoch: int) -> bytes:
    """Return the id of the span of an epoch in an attempt."""
    return _make_span_id(training_run_id, f"attempt/{attempt}/epoch/{epoch}")


def make_child_span_id(training_run_id: str, attempt: int, kind: str, step: int, nth: int) -> bytes:
    """Return the span id of an optimizer step, an evaluation or a checkpoint.

    Args:
        training_run_id: id of the run.
        attempt: number of the attempt.
        kind: name of the span.
        step: number of the optimizer step, for others of the step before them.
        nth: index from 0 among spans of a kind with the same step.
    """
    return _make_span_id(training_run_id, f"attempt/{attempt}/{kind}/{step}/{nth}")


def _make_span_id(training_run_id: str, place: str) -> bytes:
    """Return the first 8 bytes of SHA-256 over run and place, never zero, which is invalid."""
    span_id = hashlib.sha256(f"whence.v1.training\0{training_run_id}\0{place}".encode()).digest()[
        :8
    ]
    return span_id if any(span_id) else _NEVER_ZERO
