"""Logits of every step of a recorded sequence, by passes over its prompt and its output."""

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import torch

from whence_server.engines.transformers.model_runner import ModelRunner

MAX_LOGITS_BYTES = 64 << 20
"""Size of the float32 logits of one pass; bounds the memory, whatever the vocabulary."""
_MAX_CHUNK = 512
_JOINED_TOKENS = 64
"""Tokens of the prompt's end that are read with the output: their logits cost less than a pass."""


class Reader(NamedTuple):
    """Reader of token ids with one model.

    Attributes:
        runner: runner of the model, without rows.
        vocabulary_size: V.
        batched: True if prompts can be read in chunks of any size.
    """

    runner: ModelRunner[Any]
    vocabulary_size: int
    batched: bool

    @property
    def chunk_size(self) -> int:
        """Number of tokens of a pass whose logits are all wanted."""
        return max(16, min(_MAX_CHUNK, MAX_LOGITS_BYTES // (4 * self.vocabulary_size)))

    def read_logits(
        self, prompt_ids: Sequence[int], token_ids: Sequence[int], adapter: str = ""
    ) -> Iterator[tuple[int, torch.Tensor]]:
        """Yield the logits from which each token was chosen, a pass at a time.

        Models whose results depend on the division into passes read the tokens one by one, as they
        were generated.

        Args:
            prompt_ids: the prompt; at least one token.
            token_ids: the tokens that follow; at least one.
            adapter: name of the adapter with which they are read.

        Yields:
            Index of the first step, and [steps, V].
        """
        ids = [*prompt_ids, *token_ids[:-1]]
        first = len(prompt_ids) - 1
        prompt = self.runner.start(ids, len(token_ids) - 1, adapter=adapter)
        while prompt.num_left:
            begin = prompt.num_done
            size = self._choose_size(begin, first, len(ids), len(token_ids) - 1)
            wanted = begin + size > first
            logits = self.runner.prefill(prompt, size, all_logits=wanted)
            if wanted:
                skipped = max(first - begin, 0)
                yield begin + skipped - first, logits[skipped:]

    def read_prompt_logits(
        self, token_ids: Sequence[int], adapter: str = ""
    ) -> Iterator[tuple[int, torch.Tensor]]:
        """Yield the logits after each token but the last, a pass at a time."""
        yield from self.read_logits(token_ids[:1], token_ids[1:], adapter)

    def _choose_size(self, begin: int, first: int, num_ids: int, num_generated: int) -> int:
        if not self.batched:
            if not begin:
                return self.runner.count_whole(num_ids, num_generated)
            return min(self.chunk_size, num_ids - begin)
        if first - begin > _JOINED_TOKENS:
            return min(_MAX_CHUNK, first - begin)
        return min(self.chunk_size, num_ids - begin)
