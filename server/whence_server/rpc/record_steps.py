"""Conversion of a batch's steps, rounds and end from parallel arrays, with checks of all."""

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import TypeVar

from whence.v1 import record_pb2, step_pb2
from whence_server.domain.decoding import FinishReason
from whence_server.domain.engine import Cost
from whence_server.domain.errors import Code, FieldViolation, InvalidRequestError
from whence_server.domain.generation import Failure
from whence_server.domain.recorded import BatchEnd, BatchRound, BatchStart, BatchStep, RowStep
from whence_server.domain.steps import BeamContinuation, Candidates, Decision, ProcessorEffects

_MAX_NS = 2**62
_MAX_REASON_CHARACTERS, _MAX_MESSAGE_CHARACTERS = 64, 1024
_ENDS = frozenset(
    {FinishReason.END_OF_SEQUENCE, FinishReason.STOP, FinishReason.LENGTH, FinishReason.TIMEOUT}
)
_ENDS_OF_BATCH = frozenset({FinishReason.CANCELLED, FinishReason.INTERRUPTED, FinishReason.FAILED})

T = TypeVar("T")


def convert_step(
    message: record_pb2.BatchStep, start: BatchStart, vocabulary_size: int
) -> BatchStep:
    """Convert one step of a batch.

    Args:
        message: the step.
        start: start of its batch.
        vocabulary_size: number of token ids of its model.

    Raises:
        InvalidRequestError: an array has another length, or a value is out of its range.
    """
    rows = list(message.rows)
    if not rows or rows[-1] >= start.num_rows or any(b <= a for a, b in pairwise(rows)):
        raise _make_error("step.rows", f"must be ascending and below {start.num_rows}")
    n, num_candidates, num_processors = (
        len(rows),
        start.trace.num_candidates,
        len(start.processor_names),
    )
    arrays = _Arrays(n, vocabulary_size)
    token_ids = arrays.take_counts("token_ids", message.token_ids)
    ranks = arrays.take_counts("ranks", message.ranks)
    logprobs = arrays.take("logprobs", message.logprobs)
    sampling_logprobs = arrays.take("sampling_logprobs", message.sampling_logprobs)
    entropies = arrays.take("entropies", message.entropies)
    sampling_entropies = arrays.take("sampling_entropies", message.sampling_entropies)
    candidate_ids = arrays.split_counts("candidate_ids", message.candidate_ids, num_candidates)
    candidate_logprobs = arrays.split(
        "candidate_logprobs", message.candidate_logprobs, num_candidates
    )
    candidate_sampling = arrays.split(
        "candidate_sampling_logprobs", message.candidate_sampling_logprobs, num_candidates
    )
    # All tokens are kept: one more than the largest id.
    counts = _Arrays(n, vocabulary_size + 1)
    num_kept = counts.split_counts("num_kept", message.num_kept, num_processors)
    processor_logprobs = arrays.split(
        "processor_logprobs", message.processor_logprobs, num_processors
    )
    ends = arrays.take("finish_reasons", message.finish_reasons)
    steps = []
    for i, row in enumerate(rows):
        if (token_id := token_ids[i]) is None:
            raise _make_error("step.token_ids", "must have an id for each row")
        logprob = _know(logprobs[i])
        decision = Decision(
            token_id=token_id,
            logprob=logprob,
            sampling_logprob=_know(sampling_logprobs[i]),
            rank=ranks[i],
            entropy=_know(entropies[i]),
            sampling_entropy=_know(sampling_entropies[i]),
            candidates=_make_candidates(
                candidate_ids[i], candidate_logprobs[i], candidate_sampling[i]
            ),
            effects=_make_effects(logprob, vocabulary_size, num_kept[i], processor_logprobs[i]),
        )
        steps.append(RowStep(row, decision, _convert_end(ends[i] or 0, _ENDS, "step")))
    return BatchStep(message.batch_number, message.index, _convert_cost(message.timing), steps)


def convert_round(
    message: record_pb2.BatchRound, start: BatchStart, vocabulary_size: int
) -> BatchRound:
    """Convert one round of a batch's beam searches; arguments as of `convert_step`.

    Raises:
        InvalidRequestError: an array has another length, or a value is out of its range.
    """
    n, num_prompts = len(message.prompts), len(start.prompts)
    columns = (
        *(message.parents, message.token_ids, message.logprobs, message.scores),
        *(message.kept, message.finished),
    )
    if any(len(column) != n for column in columns):
        raise _make_error("round", f"must have {n} entries in each array")
    if any(prompt >= num_prompts for prompt in message.prompts):
        raise _make_error("round.prompts", f"must be below {num_prompts}")
    if any(token_id >= vocabulary_size for token_id in message.token_ids):
        raise _make_error("round.token_ids", f"must be below {vocabulary_size}")
    continuations: dict[int, list[BeamContinuation]] = {}
    for prompt, *values in zip(message.prompts, *columns, strict=True):
        continuations.setdefault(prompt, []).append(BeamContinuation(*values))
    return BatchRound(
        message.batch_number, message.index, _convert_cost(message.timing), continuations
    )


def convert_end(message: record_pb2.BatchEnded, start: BatchStart) -> BatchEnd:
    """Convert the end of a batch that began with `start`.

    Raises:
        InvalidRequestError: a value is out of its range.
    """
    if len(message.scores) not in {0, start.num_rows}:
        raise _make_error("ended.scores", f"must have {start.num_rows} entries, or none")
    times = (message.elapsed_ns, message.prefill_begin_ns, message.prefill_end_ns)
    if not 0 <= min(times) <= max(times) <= _MAX_NS:
        raise _make_error("ended", f"must have times from 0 to {_MAX_NS} ns")
    reason = _convert_end(message.finish_reason, _ENDS_OF_BATCH, "ended")
    return BatchEnd(
        message.batch_number,
        *times,
        reason,
        _convert_failure(message) if reason is FinishReason.FAILED else None,
        list(message.scores),
        message.num_lost,
    )


def _convert_failure(message: record_pb2.BatchEnded) -> Failure:
    given = message.failure
    code = next((code for code in Code if code.value == given.code), Code.UNKNOWN)
    return Failure(
        code,
        given.reason[:_MAX_REASON_CHARACTERS] or "GENERATE_FAILED",
        given.message[:_MAX_MESSAGE_CHARACTERS],
    )


def _convert_end(
    number: int, allowed: frozenset[FinishReason], message: str
) -> FinishReason | None:
    if number == 0:
        return None
    reason = next((reason for reason in allowed if reason.value == number), None)
    if reason is None:
        names = ", ".join(sorted(reason.name for reason in allowed))
        raise _make_error(f"{message}.finish_reason", f"must be one of {names}, not {number}")
    return reason


def _convert_cost(timing: step_pb2.StepTiming) -> Cost:
    times = (timing.elapsed_ns, timing.forward_ns, timing.select_ns)
    if not 0 <= min(times) <= max(times) <= _MAX_NS:
        raise _make_error("timing", f"must have times from 0 to {_MAX_NS} ns")
    return Cost(*times, timing.batch_size)


class _Arrays:
    """Reader of the arrays of one message.

    Args:
        num_rows: entries of an array that has one for each row.
        bound: bound of ids and counts.
    """

    def __init__(self, num_rows: int, bound: int) -> None:
        self._num_rows = num_rows
        self._bound = bound

    def take(self, name: str, values: Sequence[T]) -> Sequence[T | None]:
        """Return a value for each row; None where the array is empty."""
        if not values:
            return [None] * self._num_rows
        if len(values) != self._num_rows:
            raise _make_error(f"step.{name}", f"must have {self._num_rows} entries, or none")
        return values

    def take_counts(self, name: str, values: Sequence[int]) -> Sequence[int | None]:
        """Return an id or a count for each row."""
        self._check_bound(name, values)
        return self.take(name, values)

    def split(self, name: str, values: Sequence[T], width: int) -> Sequence[list[T]]:
        """Return the values of each row, of which it has `width`; none where the array is empty."""
        if not values:
            return [[]] * self._num_rows
        if len(values) != self._num_rows * width:
            raise _make_error(
                f"step.{name}", f"must have {self._num_rows * width} entries, or none"
            )
        return [list(values[i * width : (i + 1) * width]) for i in range(self._num_rows)]

    def split_counts(self, name: str, values: Sequence[int], width: int) -> Sequence[list[int]]:
        """Return the ids or counts of each row."""
        self._check_bound(name, values)
        return self.split(name, values, width)

    def _check_bound(self, name: str, values: Sequence[int]) -> None:
        if values and max(values) >= self._bound:
            raise _make_error(f"step.{name}", f"must be below {self._bound}")


def _know(value: float | None) -> float | None:
    """Return a number; None if the model's logits were no distribution."""
    return None if value is None or math.isnan(value) else value


def _make_candidates(
    ids: list[int], logprobs: list[float], sampling_logprobs: list[float]
) -> Candidates | None:
    if not ids or len(logprobs) != len(ids) or any(map(math.isnan, logprobs)):
        return None
    if any(map(math.isnan, sampling_logprobs)):
        sampling_logprobs = []
    return Candidates(ids, logprobs, sampling_logprobs)


def _make_effects(
    logprob: float | None, vocabulary_size: int, num_kept: list[int], logprobs: list[float]
) -> ProcessorEffects | None:
    """Return the effects of the processors.

    A processor that removes tokens does not change the scores of the others, so that the chosen
    token's gain is the removed mass.
    """
    if logprob is None or not num_kept or len(logprobs) != len(num_kept):
        return None
    if any(map(math.isnan, logprobs)):
        return None
    masses = [
        -math.expm1(before - after) if kept != kept_before and before < after else 0.0
        for kept_before, kept, before, after in zip(
            [vocabulary_size, *num_kept], num_kept, [logprob, *logprobs], logprobs, strict=False
        )
    ]
    return ProcessorEffects(num_kept, masses, logprobs)


def _make_error(field: str, description: str) -> InvalidRequestError:
    return InvalidRequestError(FieldViolation(field, description))
