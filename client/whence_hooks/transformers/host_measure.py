"""Numbers of one step, measured in the host's memory by one thread.

torch shares each operation over its threads and waits for the last of them. Beside other busy
processes, each wait can last as long as a turn of the system's scheduler. numpy waits for nobody.
A few rows at a time stay in the processor's cache.
"""

import threading
from typing import NamedTuple, TypeAlias

import numpy as np
import numpy.typing as npt

Floats: TypeAlias = npt.NDArray[np.float32]
Ids: TypeAlias = npt.NDArray[np.int64]

MAX_AT_ONCE = 131_072
"""Scores that are measured at once, unless one row has more."""
_NUM_PLACES = 32
"""Scores in each of the groups whose maxima say where the largest scores are."""

_LOCAL = threading.local()


class Measured(NamedTuple):
    """Numbers of each row of the scores.

    Attributes:
        tops: largest score of each stage, float32 [R, stages].
        log_sums: logarithm of the sum of the exponentials of a stage, relative to `tops`.
        num_kept: number of scores above -inf after each processor, float32 [R, stages - 1].
        entropies: of the first and the last stage, in nats, float32 [R, 2].
        candidates: ids of the largest scores of the first stage, int64 [R, n].
    """

    tops: Floats
    log_sums: Floats
    num_kept: Floats
    entropies: Floats
    candidates: Ids

    def get_part(self, rows: slice) -> "Measured":
        """Return views of some rows' numbers."""
        return Measured(
            self.tops[rows],
            self.log_sums[rows],
            self.num_kept[rows],
            self.entropies[rows],
            self.candidates[rows],
        )


def measure_scores(stages: list[Floats], num_candidates: int) -> Measured:
    """Return the numbers of each row, with the memory of this thread.

    Args:
        stages: the model's own scores [R, V], then those after each processor.
        num_candidates: number of the largest scores to find.
    """
    meter: HostMeter | None = getattr(_LOCAL, "meter", None)
    if meter is None:
        meter = _LOCAL.meter = HostMeter()
    return meter.measure(stages, num_candidates)


class HostMeter:
    """Meter with memory that is used again in each step."""

    _gaps: Floats
    _weights: Floats
    _flags: npt.NDArray[np.bool_]

    def __init__(self) -> None:
        self._shape = (0, 0)

    def measure(self, stages: list[Floats], num_candidates: int) -> Measured:
        """Return the numbers of each row, as `measure_scores` does."""
        num_rows, num_tokens = stages[0].shape
        num_at_once = min(max(MAX_AT_ONCE // num_tokens, 1), num_rows)
        if self._shape != (num_at_once, num_tokens):
            self._shape = (num_at_once, num_tokens)
            self._gaps = np.empty(self._shape, np.float32)
            self._weights = np.empty(self._shape, np.float32)
            self._flags = np.empty(self._shape, np.bool_)
        measured = Measured(
            np.empty((num_rows, len(stages)), np.float32),
            np.empty((num_rows, len(stages)), np.float32),
            np.empty((num_rows, len(stages) - 1), np.float32),
            np.empty((num_rows, 2), np.float32),
            np.empty((num_rows, num_candidates), np.int64),
        )
        with np.errstate(all="ignore"):  # scores of -inf
            for begin in range(0, num_rows, num_at_once):
                rows = slice(begin, begin + num_at_once)
                self._measure_rows(
                    [stage[rows] for stage in stages],
                    measured.get_part(rows),
                )
        return measured

    def _measure_rows(self, stages: list[Floats], measured: Measured) -> None:
        num_rows = len(stages[0])
        gaps, weights = self._gaps[:num_rows], self._weights[:num_rows]
        kept = self._flags[:num_rows]
        sums = np.empty((num_rows, len(stages)), np.float32)
        for i, scores in enumerate(stages):
            tops = measured.tops[:, i]
            scores.max(-1, out=tops)
            is_filter = False
            if i:
                np.greater(scores, -np.inf, out=kept)
                measured.num_kept[:, i - 1] = [np.count_nonzero(row) for row in kept]
                is_filter = _is_filter(scores, stages[i - 1], kept, measured, i)
            if is_filter:
                # The exponentials are those of the stage before, where they are kept.
                np.multiply(weights, kept, out=weights)
            else:
                np.subtract(scores, tops[:, None], out=gaps)
                np.exp(gaps, out=weights)
            weights.sum(-1, out=sums[:, i])
            if i == 0:
                measured.entropies[:, 0] = _compute_entropies(gaps, weights, sums[:, 0])
        measured.entropies[:, 1] = (
            measured.entropies[:, 0]
            if len(stages) == 1
            else _compute_entropies(gaps, weights, sums[:, -1])
        )
        np.log(sums, out=measured.log_sums)
        if measured.candidates.shape[1]:
            measured.candidates[:] = _find_largest(stages[0], measured.candidates.shape[1])


@np.errstate(all="ignore")  # scores of -inf
def make_table(measured: Measured, stages: list[Floats], token_ids: Ids, rows: Ids) -> Floats:
    """Return the table of some choices: float32 [C, n], in the order of the layout's columns.

    Args:
        measured: numbers of each row.
        stages: the scores [R, V] that were measured.
        token_ids: [C], the chosen tokens.
        rows: [C], the row of the scores in which each was chosen.
    """
    own = stages[0]
    tops, log_sums = measured.tops[rows], measured.log_sums[rows]
    scores = np.stack([stage[rows, token_ids] for stage in stages], -1)
    logprobs = (scores - tops) - log_sums
    ranks = [
        np.count_nonzero(own[row] > score) for row, score in zip(rows, scores[:, 0], strict=True)
    ]
    columns = [
        token_ids[:, None],
        logprobs[:, :1],
        logprobs[:, -1:],
        np.array(ranks)[:, None],
        measured.entropies[rows],
    ]
    ids = measured.candidates[rows]
    if ids.shape[1]:
        columns.append(ids)
        for stage, scores_of in ((0, own), (-1, stages[-1])):
            found = scores_of[rows[:, None], ids]
            columns.append((found - tops[:, stage, None]) - log_sums[:, stage, None])
    columns += [measured.num_kept[rows], logprobs[:, 1:]]
    return np.concatenate(columns, -1, dtype=np.float32, casting="unsafe")


def _is_filter(
    scores: Floats, before: Floats, kept: npt.NDArray[np.bool_], measured: Measured, stage: int
) -> bool:
    """Return True if the processor only set scores to -inf, and kept each row's largest."""
    if not np.array_equal(measured.tops[:, stage], measured.tops[:, stage - 1]):
        return False
    num_equal = np.count_nonzero((scores == before) & kept)
    return bool(num_equal == measured.num_kept[:, stage - 1].sum(dtype=np.float64))


def _compute_entropies(gaps: Floats, weights: Floats, sums: Floats) -> Floats:
    """Return each row's entropy in nats.

    Args:
        gaps: the scores less the row's largest.
        weights: the exponentials of the gaps, 0 where a score does not count.
        sums: the sum of each row's weights.
    """
    means = np.einsum("rv,rv->r", weights, gaps)
    if np.isnan(means).any():
        np.copyto(gaps, 0.0, where=np.isneginf(gaps))  # 0 * -inf is NaN
        means = np.einsum("rv,rv->r", weights, gaps)
    entropies: Floats = np.log(sums) - means / sums
    # Scores of NaN and infinity give 0, as on a device.
    entropies[np.isnan(entropies)] = 0.0
    return entropies


def _find_largest(scores: Floats, num_candidates: int) -> Ids:
    """Return ids of each row's largest scores, largest first; NaN counts as the largest.

    The n largest lie in the n groups with the largest maxima: a pass over the scores finds these,
    and sorting is over few. Each group has the scores at equal distances, so that the maxima of
    neighbours are found together.
    """
    num_rows, num_tokens = scores.shape
    num_groups = num_tokens // _NUM_PLACES
    ids: Ids
    if num_groups <= 2 * num_candidates:
        ids = np.broadcast_to(np.arange(num_tokens), scores.shape)
        found = scores
    else:
        num_grouped = num_groups * _NUM_PLACES
        maxima = scores[:, :num_grouped].reshape(num_rows, _NUM_PLACES, num_groups).max(1)
        groups = np.argpartition(maxima, num_groups - num_candidates, -1)[:, -num_candidates:]
        places = np.arange(0, num_grouped, num_groups)
        ids = (groups[:, :, None] + places).reshape(num_rows, -1)
        if num_grouped < num_tokens:
            rest = np.arange(num_grouped, num_tokens)
            ids = np.concatenate([ids, np.broadcast_to(rest, (num_rows, len(rest)))], -1)
        found = np.take_along_axis(scores, ids, -1)
    order = np.argpartition(found, found.shape[1] - num_candidates, -1)[:, -num_candidates:]
    largest = np.take_along_axis(found, order, -1)
    # Sorted from the smallest up, so that NaN is the largest, as it is for torch.
    ascending = np.argsort(largest[:, ::-1], -1, kind="stable")
    order = np.take_along_axis(order, largest.shape[1] - 1 - ascending[:, ::-1], -1)
    return np.take_along_axis(ids, order, -1)
