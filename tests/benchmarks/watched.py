"""A model with a probe of its attention, as it is served, for rankings of its context."""

from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import torch

from whence_server.engines.transformers.batching_check import check_batching
from whence_server.engines.transformers.cache import BatchedCache
from whence_server.engines.transformers.internals import attention
from whence_server.engines.transformers.internals.probe import collect_activations
from whence_server.engines.transformers.internals.probe_building import build_probe
from whence_server.engines.transformers.internals.sources import read_context
from whence_server.engines.transformers.internals.weighing import compute_stream_weights

NOTHING = torch.tensor([], dtype=torch.int64)


class Case(NamedTuple):
    """One step: a context, the token after it, and the positions of the fact that it needs."""

    token_ids: list[int]
    answer: int
    needle: list[int]


class Watched:
    """Model with a probe of its attention.

    Args:
        model: model in eval mode.
        pieces: token ids of texts, from which the weights of heads are computed.
    """

    def __init__(self, model: Any, pieces: Iterable[Sequence[int]]) -> None:
        self.model = model
        obstacle = attention.adopt(model)
        self._style = check_batching(model)
        self._probe, _ = build_probe(model, self._style, obstacle, None)
        self._thetas = torch.tensor(compute_stream_weights(model, pieces)).flatten()  # (K,)

    @torch.inference_mode()
    def shares(self, token_ids: list[int]) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Return each position's share with and without weights of heads, and its mean attention.

        Returns:
            Three float32 [tokens - 1], without the newest position, which has the rest to 1.
        """
        assert self._style is not None
        assert self._probe.norms is not None
        cache = BatchedCache(self._style.num_layers, len(token_ids))
        with collect_activations(self._probe) as buffer:
            self.model(input_ids=torch.tensor([token_ids]), past_key_values=cache, use_cache=True)
        weights = buffer.activations.weights
        norms = self._probe.norms.compute([values[0] for values in cache.values])  # (K, tokens)
        weighed, alike = (
            read_context(weights, of_heads.unsqueeze(0), None).contributions[0]
            for of_heads in (norms * self._thetas.unsqueeze(1), norms)
        )
        mean = torch.cat(weights, 1)[0].mean(0)
        return (weighed / weighed.sum())[:-1], (alike / alike.sum())[:-1], mean[:-1]

    @torch.inference_mode()
    def logprobs(self, case: Case, hidden: list[torch.Tensor]) -> torch.Tensor:
        """Return the logprob of the answer for each set of hidden positions."""
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
