"""A real model that is asked about paragraphs: what it reads, and what hiding sentences does."""

from collections.abc import Iterable
from typing import Any, NamedTuple

import torch
from questions import Prompt
from transformers import AutoTokenizer, DynamicCache

from whence_server.engines.transformers.internals.probe import collect_activations
from whence_server.engines.transformers.loading import LoadedModel


class Asked(NamedTuple):
    """A prompt that the model answers right.

    Attributes:
        token_ids: the prompt.
        answer: token id of the answer.
        sentences: begin and end of each sentence of the paragraph, in tokens.
        logprob: logprob of the answer.
        attention: attention weights of the newest position, [K, tokens].
        norms: norms of the values of all positions, heads alike, [K, tokens].
        cache: keys and values of the prompt, for each layer.
    """

    token_ids: list[int]
    answer: int
    sentences: list[tuple[int, int]]
    logprob: float
    attention: torch.Tensor
    norms: torch.Tensor
    cache: list[tuple[torch.Tensor, torch.Tensor]]


class Questioned:
    """A model that answers questions.

    Args:
        loaded: the model, as it is served, whose sources weigh all heads alike.
        directory: directory of its tokenizer.
    """

    def __init__(self, loaded: LoadedModel, directory: str) -> None:
        self._loaded = loaded
        self._tokenizer: Any = AutoTokenizer.from_pretrained(directory)

    @torch.inference_mode()
    def read(self, prompt: Prompt) -> Asked | None:
        """Read a prompt; return None if the model's likeliest next token is not the answer."""
        assert self._loaded.probe.norms is not None
        encoded = self._tokenizer(prompt.text, return_offsets_mapping=True)
        ids: list[int] = encoded.input_ids
        answer: int = self._tokenizer(prompt.answer, add_special_tokens=False).input_ids[0]
        cache = DynamicCache()
        with collect_activations(self._loaded.probe) as buffer:
            logits = self._loaded.model(
                input_ids=torch.tensor([ids]),
                past_key_values=cache,
                use_cache=True,
                logits_to_keep=1,
            ).logits[0, -1]
        if int(logits.argmax()) != answer:
            return None
        return Asked(
            ids,
            answer,
            [_find_tokens(encoded.offset_mapping, *span) for span in prompt.sentences],
            float(torch.log_softmax(logits.float(), -1)[answer]),
            torch.cat(buffer.activations.weights, 1)[0],
            self._loaded.probe.norms.compute([layer.values[0] for layer in cache.layers]),
            [(layer.keys, layer.values) for layer in cache.layers],
        )

    @torch.inference_mode()
    def measure_without(self, asked: Asked, hidden: Iterable[int]) -> float:
        """Return the logprob of the answer while these sentences are hidden from all layers."""
        gone = {i for sentence in hidden for i in range(*asked.sentences[sentence])}
        # Everything before the first hidden token is as it was.
        first = min(gone)
        rest = [i for i in range(first, len(asked.token_ids)) if i not in gone]
        cache = DynamicCache()
        for layer, (keys, values) in enumerate(asked.cache):
            cache.update(keys[:, :, :first], values[:, :, :first], layer)
        logits = self._loaded.model(
            input_ids=torch.tensor([[asked.token_ids[i] for i in rest]]),
            position_ids=torch.tensor([rest]),
            attention_mask=torch.ones(1, first + len(rest), dtype=torch.int64),
            past_key_values=cache,
            use_cache=True,
            logits_to_keep=1,
        ).logits[0, -1]
        return float(torch.log_softmax(logits.float(), -1)[asked.answer])


def _find_tokens(offsets: list[tuple[int, int]], begin: int, end: int) -> tuple[int, int]:
    """Return the begin and end of the tokens with characters from `begin` to `end`."""
    inside = [i for i, (first, last) in enumerate(offsets) if first < end and last > begin]
    return inside[0], inside[-1] + 1
