"""Oracle of decoding steps: transformers' processors on one row, and numpy in float64."""

import dataclasses
import math
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from transformers.generation import logits_process as hf

from whence_server.domain.decoding import Decoding, Strategy, TraceDetail, TraceOptions

TOKENS = TraceOptions(TraceDetail.TOKENS)
DECISIONS = TraceOptions(TraceDetail.DECISIONS, num_candidates=8)
GREEDY = Decoding(Strategy.GREEDY, max_new_tokens=64)
SAMPLE = Decoding(Strategy.SAMPLE, max_new_tokens=64, seed=0x1234567890ABCDEF)


def make_processors(decoding: Decoding, num_prompt_tokens: int) -> Iterator[tuple[str, Any]]:
    """Yield the processors that `generate` applies, in its order, with the contract's names."""
    yield from make_penalties(decoding, num_prompt_tokens)
    yield from make_configured_processors(decoding, num_prompt_tokens)
    if decoding.strategy is Strategy.SAMPLE:
        yield from make_warpers(decoding)
    if decoding.configured.renormalize_logits:
        yield "renormalize_logits", hf.LogitNormalization()


def make_configured_processors(d: Decoding, num_prompt_tokens: int) -> Iterator[tuple[str, Any]]:
    c, length = d.configured, num_prompt_tokens + d.max_new_tokens
    if c.forced_bos_token_id is not None:
        yield "forced_bos_token", hf.ForcedBOSTokenLogitsProcessor(c.forced_bos_token_id)
    if c.forced_eos_token_ids:
        forced = list(c.forced_eos_token_ids)
        yield "forced_eos_token", hf.ForcedEOSTokenLogitsProcessor(length, forced)
    if c.suppress_token_ids:
        yield "suppress_tokens", hf.SuppressTokensLogitsProcessor(c.suppress_token_ids)
    if c.begin_suppress_token_ids:
        yield (
            "begin_suppress_tokens",
            hf.SuppressTokensAtBeginLogitsProcessor(
                c.begin_suppress_token_ids, num_prompt_tokens + c.begin_suppress_index
            ),
        )


def make_penalties(d: Decoding, num_prompt_tokens: int) -> Iterator[tuple[str, Any]]:
    ends = [*(() if d.ignore_eos else d.eos_token_ids), *d.stop_token_ids]
    if d.configured.sequence_biases:
        biases = dict(d.configured.sequence_biases)
        yield "sequence_bias", hf.SequenceBiasLogitsProcessor(biases)
    if d.logit_bias:
        bias = {(token_id,): float(amount) for token_id, amount in d.logit_bias}
        yield "logit_bias", hf.SequenceBiasLogitsProcessor(bias)
    if d.repetition_penalty != 1.0:
        yield "repetition_penalty", hf.RepetitionPenaltyLogitsProcessor(d.repetition_penalty)
    if d.no_repeat_ngram_size:
        yield "no_repeat_ngram", hf.NoRepeatNGramLogitsProcessor(d.no_repeat_ngram_size)
    if d.bad_word_ids:
        words = [list(word) for word in d.bad_word_ids]
        yield "bad_words", hf.NoBadWordsLogitsProcessor(words, list(d.eos_token_ids))
    if d.min_new_tokens:
        yield (
            "min_new_tokens",
            hf.MinNewTokensLengthLogitsProcessor(num_prompt_tokens, d.min_new_tokens, ends),
        )


def make_warpers(d: Decoding) -> Iterator[tuple[str, Any]]:
    if d.temperature != 1.0:
        yield "temperature", hf.TemperatureLogitsWarper(d.temperature)
    if d.configured.top_h:
        yield "top_h", hf.TopHLogitsWarper(d.configured.top_h)
    if d.top_k:
        yield "top_k", hf.TopKLogitsWarper(d.top_k)
    if d.top_p < 1.0:
        yield "top_p", hf.TopPLogitsWarper(d.top_p)
    if d.min_p > 0.0:
        yield "min_p", hf.MinPLogitsWarper(d.min_p)
    if d.typical_p < 1.0:
        yield "typical_p", hf.TypicalLogitsWarper(d.typical_p)
    if d.epsilon_cutoff > 0.0:
        yield "epsilon_cutoff", hf.EpsilonLogitsWarper(d.epsilon_cutoff)
    if d.eta_cutoff > 0.0:
        yield "eta_cutoff", hf.EtaLogitsWarper(d.eta_cutoff)


@dataclasses.dataclass
class Expected:
    """Distributions of one row.

    Attributes:
        names: names of the applied processors.
        scores: float64 [V] each: the model's scores, then those after each processor.
        distributions: logprobs of the scores.
    """

    names: list[str]
    scores: list[np.ndarray]
    distributions: list[np.ndarray]


def expected(
    logits: torch.Tensor, decoding: Decoding, prompt: list[int], generated: list[int]
) -> Expected:
    """Apply the processors to one row."""
    scores = logits.float().unsqueeze(0)
    input_ids = torch.tensor([[*prompt, *generated]])
    names, stages = [], [scores]
    for name, processor in make_processors(decoding, len(prompt)):
        scores = processor(input_ids, scores)
        names.append(name)
        stages.append(scores)
    as_numpy = [stage[0].double().numpy() for stage in stages]
    return Expected(names, as_numpy, [log_softmax(stage) for stage in as_numpy])


def log_softmax(scores: np.ndarray) -> np.ndarray:
    shifted = scores - scores.max()
    return shifted - math.log(np.exp(shifted).sum())


def entropy(logprobs: np.ndarray) -> float:
    finite = logprobs[logprobs > -np.inf]
    return float(-(np.exp(finite) * finite).sum())
