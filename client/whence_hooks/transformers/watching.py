"""Lists of processors and stopping criteria that tell a call what they saw."""

from typing import Any, Protocol

import torch
from transformers import generation
from transformers.generation import LogitsProcessorList, StoppingCriteriaList, logits_process

from whence.v1.generation_pb2 import FinishReason

_REASONS = {
    generation.EosTokenCriteria: FinishReason.FINISH_REASON_END_OF_SEQUENCE,
    generation.MaxLengthCriteria: FinishReason.FINISH_REASON_LENGTH,
    generation.MaxTimeCriteria: FinishReason.FINISH_REASON_TIMEOUT,
}


class Watcher(Protocol):
    """Receiver of what the lists see of a step."""

    def note_logits(self, scores: torch.Tensor) -> None:
        """Note the model's scores [R, V], which nobody changes until the step's end."""

    def note_processed(self, scores: torch.Tensor) -> None:
        """Note the scores [R, V] after the next processor, which nobody changes either."""

    def note_chosen(self, input_ids: torch.Tensor, done: list[torch.Tensor]) -> None:
        """Note the sequences with their new tokens, and the rows that each criterion ends."""


class WatchedProcessors(LogitsProcessorList):
    """Processors that work as without a watcher, and are watched."""

    def __init__(self, processors: LogitsProcessorList, watcher: Watcher) -> None:
        super().__init__(processors)
        self._watcher = watcher

    def __call__(
        self, input_ids: torch.LongTensor, scores: torch.Tensor, **kwargs: Any
    ) -> torch.Tensor:
        """Apply all processors, as `LogitsProcessorList` does."""
        # A processor of other people may write to the scores that it is given.
        is_safe = all(type(processor).__module__ == logits_process.__name__ for processor in self)
        self._watcher.note_logits(scores if is_safe else scores.clone())
        for processor in self:
            scores = LogitsProcessorList([processor])(input_ids, scores, **kwargs)
            self._watcher.note_processed(scores if is_safe else scores.clone())
        return scores


class WatchedCriteria(StoppingCriteriaList):
    """Stopping criteria that work as without a watcher, and are watched."""

    def __init__(self, criteria: StoppingCriteriaList, watcher: Watcher) -> None:
        super().__init__(criteria)
        self._watcher = watcher

    def __call__(
        self, input_ids: torch.LongTensor, scores: tuple[torch.Tensor] | None, **kwargs: Any
    ) -> torch.Tensor:
        """Return the rows that a criterion ends, as `StoppingCriteriaList` does."""
        is_done = torch.full(
            (input_ids.shape[0],), False, device=input_ids.device, dtype=torch.bool
        )
        done = []
        for criterion in self:
            done.append(criterion(input_ids, scores, **kwargs))
            is_done = is_done | done[-1]
        self._watcher.note_chosen(input_ids, done)
        return is_done


def list_reasons(criteria: StoppingCriteriaList) -> list[FinishReason.ValueType]:
    """Return the reason for a sequence's end that each criterion stands for."""
    return [
        next(
            (reason for kind, reason in _REASONS.items() if isinstance(criterion, kind)),
            FinishReason.FINISH_REASON_STOP,
        )
        for criterion in criteria
    ]
