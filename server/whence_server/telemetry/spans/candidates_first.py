"""A step's token and its runners-up, as parallel arrays with the token first."""

from typing import NamedTuple

from whence.v1.step_pb2 import Step
from whence_server.telemetry.spans.ahead import NUM_SCALARS, ReadStep

_NOWHERE = 2**32
_REMOVED = -3.4e38
"""Values below stand for -inf, a token that a processor removed."""


class Ranked(NamedTuple):
    """A step's token first, then its candidates without it, the likeliest first."""

    token_ids: list[int]
    """Empty if the token's id is not recorded."""
    logprobs: list[float]
    """Before any processor; empty if the token's is not recorded."""
    sampling_logprobs: list[float]
    """After all processors; empty if the token's is not recorded. It ends before the last tokens if
    processors removed them."""


def rank_candidates(read: ReadStep, *, others: bool = True) -> Ranked:
    """Return a step's token and its candidates.

    Args:
        read: the step.
        others: include the candidates besides the token.
    """
    step, arrays, shortened, *_ = read
    ids, raw, processed = arrays[:3]
    has_id = step.HasField("token_id")
    token_ids = [step.token_id] if has_id else []
    logprobs = shortened[:1] if step.HasField("logprob") else []
    sampling_logprobs = shortened[1:2] if step.HasField("sampling_logprob") else []
    if not others:
        return Ranked(token_ids, logprobs, sampling_logprobs)
    end = NUM_SCALARS + len(raw)
    ids, raw = ids[:], shortened[NUM_SCALARS:end]
    processed = shortened[end : end + len(processed)]
    place = _find_place(step, ids)
    for values in (ids, raw, processed):
        if place < len(values):
            del values[place]
    if has_id:
        token_ids += ids
    if logprobs:
        logprobs += raw
    if sampling_logprobs:
        while processed and processed[-1] < _REMOVED:
            processed.pop()
        sampling_logprobs += processed
    return Ranked(token_ids, logprobs, sampling_logprobs)


def _find_place(step: Step, ids: list[int]) -> int:
    """Return the token's place among its candidates; beyond their end if it is not among them."""
    if step.HasField("token_id") and ids:
        return ids.index(step.token_id) if step.token_id in ids else len(ids)
    return step.rank if step.HasField("rank") else _NOWHERE
