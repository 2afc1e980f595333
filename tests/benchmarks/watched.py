"""A model with its attention watched, as it is served: what a ranking of its context is made of."""

from typing import Any, NamedTuple

import torch

from whence_server.engine.cache import BatchedCache
from whence_server.engine.internals import attention
from whence_server.engine.internals.examine import look_inside
from whence_server.engine.internals.sources import drawn
from whence_server.engine.internals.watching import watching
from whence_server.engine.probe import examine

NOTHING = torch.tensor([], dtype=torch.int64)


class Case(NamedTuple):
    """One step: a context, what follows, and where the fact stands that it needs, if it is one."""

    token_ids: list[int]
    answer: int
    needle: list[int]


class Watched:
    """A model that is looked into.

    Args:
        model: in eval mode.
    """

    def __init__(self, model: Any) -> None:
        self.model = model
        obstacle = attention.adopt(model)
        self._style = examine(model)
        self._inside, _ = look_inside(model, self._style, obstacle, None)

    @torch.inference_mode()
    def direct_and_mean(self, token_ids: list[int]) -> tuple[torch.Tensor, torch.Tensor]:
        """Each position's direct share, and its mean attention over all layers and heads.

        Returns:
            Two of float32 [tokens - 1], the newest position left out: what is missing to 1 is its.
        """
        assert self._style is not None
        assert self._inside.norms is not None
        cache = BatchedCache(self._style.num_layers, len(token_ids))
        with watching(self._inside) as watch:
            self.model(input_ids=torch.tensor([token_ids]), past_key_values=cache, use_cache=True)
        weights = watch.seen.weights
        norms = self._inside.norms.of([values[0] for values in cache.values])
        direct = drawn(weights, norms.unsqueeze(0), None)[0]
        return (direct / direct.sum())[:-1], torch.cat(weights, 1)[0].mean(0)[:-1]

    @torch.inference_mode()
    def logprobs(self, case: Case, hidden: list[torch.Tensor]) -> torch.Tensor:
        """Of the answer, once for each set of positions that are hidden from all layers."""
        length = len(case.token_ids)
        mask = torch.ones(len(hidden), length, dtype=torch.int64)
        for row, positions in enumerate(hidden):
            mask[row, positions] = 0
        logits = self.model(
            input_ids=torch.tensor([case.token_ids]).expand(len(hidden), -1),
            attention_mask=mask,
            position_ids=torch.arange(length).expand(len(hidden), -1),
        ).logits[:, -1]
        return torch.log_softmax(logits.float(), -1)[:, case.answer]
