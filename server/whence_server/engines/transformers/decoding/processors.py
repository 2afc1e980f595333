"""A request's logits processors: transformers' own, each built once for its setting."""

from collections.abc import Callable, Hashable
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, NamedTuple

import torch
from transformers.generation import logits_process

from whence_server.domain.decoding import Decoding
from whence_server.domain.processors import CONSTRAINT, PROCESSORS, list_processor_names
from whence_server.engines.transformers.decoding.kernels import Kernels

MAX_CACHED_STAGES = 64
"""Number of cached processors; bounded, as a bias holds a number for every token."""

Processor = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
"""(token ids [rows, T], scores [rows, V]) -> scores [rows, V]; changes neither argument."""


class Setting(NamedTuple):
    """A processor's name, value and range of steps."""

    name: str
    value: Hashable
    until: int | None = None
    """Step index before which the processor applies; None for no end."""
    since: int = 0
    """First step index at which the processor applies."""


@dataclass(frozen=True, slots=True, eq=False)
class Stage:
    """A processor, ready for all rows that share its setting.

    Attributes:
        order: position among all processors.
        processor: the function on scores.
        reads_history: True if the processor reads the previous tokens.
        until: step index before which the processor applies; None for no end.
        since: first step index at which the processor applies.
        constrains: True if the stage applies each row's own constraint instead of `processor`.
    """

    order: int
    processor: Processor
    reads_history: bool
    until: int | None
    since: int
    constrains: bool = False

    def applies(self, index: int) -> bool:
        """Return whether the processor changes scores at a step."""
        return (
            (self.constrains or self.processor is not _keep)
            and index >= self.since
            and (self.until is None or index < self.until)
        )


def list_settings(decoding: Decoding) -> tuple[Setting, ...]:
    """Return a request's processor settings, in the order of `list_processor_names`."""
    return tuple(_make_setting(name, decoding) for name in list_processor_names(decoding))


def _make_setting(name: str, decoding: Decoding) -> Setting:
    eos_token_ids = () if decoding.ignore_eos else decoding.eos_token_ids
    match name:
        case "no_repeat_ngram":
            return Setting(name, decoding.no_repeat_ngram_size)
        case "bad_words":
            # As in transformers, an end-of-sequence token cannot be a bad word.
            ends = {(token_id,) for token_id in eos_token_ids}
            return Setting(name, tuple(word for word in decoding.bad_word_ids if word not in ends))
        case "min_new_tokens":
            # transformers suppresses only end-of-sequence; here stop ids end a sequence too.
            ends_sequence = sorted({*eos_token_ids, *decoding.stop_token_ids})
            return Setting(name, tuple(ends_sequence), decoding.min_new_tokens)
        case "constraint":
            # One stage for all rows, whatever their constraints.
            return Setting(name, True)
        case _ if name in _CONFIGURED:
            return _make_configured_setting(name, decoding)
        case _:
            return Setting(name, getattr(decoding, name))


def _make_configured_setting(name: str, decoding: Decoding) -> Setting:
    """Return the setting of a processor that only a generation config can turn on."""
    configured = decoding.configured
    match name:
        case "begin_suppress_tokens":
            index = configured.begin_suppress_index
            return Setting(name, configured.begin_suppress_token_ids, index + 1, index)
        case "forced_bos_token":
            return Setting(name, (configured.forced_bos_token_id,), 1)
        case "forced_eos_token":
            last = decoding.max_new_tokens - 1
            return Setting(name, configured.forced_eos_token_ids, last + 1, last)
        case _:
            return Setting(name, getattr(configured, _CONFIGURED[name]))


class Stages:
    """Cache of the processors built from settings."""

    def __init__(self, vocabulary_size: int, device: torch.device, kernels: Kernels) -> None:
        self._vocabulary_size = vocabulary_size
        self._device = device
        self._kernels = kernels
        self._stage = lru_cache(MAX_CACHED_STAGES)(self._make)

    def make_stages(self, row_settings: tuple[Setting, ...]) -> tuple[Stage, ...]:
        """Return the stages of a row; equal settings give the same objects."""
        return tuple(self._stage(setting) for setting in row_settings)

    def _make(self, setting: Setting) -> Stage:
        return Stage(
            order=_ORDER[setting.name],
            processor=self._make_processor(setting.name, setting.value),
            reads_history=setting.name in _READS_HISTORY,
            until=setting.until,
            since=setting.since,
            constrains=setting.name == CONSTRAINT,
        )

    def _make_processor(self, name: str, value: Any) -> Processor:
        if name == CONSTRAINT:
            return _keep
        if name in _BIASES:
            return self._make_bias(_BIASES[name](value))
        if name == "top_p":
            return lambda _, scores: self._kernels.keep_nucleus(scores, value)
        if name in _ON_DEVICE:
            return _ON_DEVICE[name](value, str(self._device))
        return _PLAIN[name](value)

    def _make_bias(self, biases: dict[tuple[int, ...], float]) -> Processor:
        possible = {
            token_ids: bias
            for token_ids, bias in biases.items()
            if max(token_ids) < self._vocabulary_size
        }
        return logits_process.SequenceBiasLogitsProcessor(possible) if possible else _keep


def _keep(_token_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
    return scores


def _guard(warper: Processor) -> Processor:
    """Wrap a warper that fails on rows without a token, so that it skips them."""

    def process(token_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        has_choice = scores.amax(-1, keepdim=True).isfinite()
        processed = warper(token_ids, torch.where(has_choice, scores, 0.0))
        return torch.where(has_choice, processed, scores)

    return process


_PLAIN: dict[str, Callable[[Any], Processor]] = {
    "repetition_penalty": lambda value: logits_process.RepetitionPenaltyLogitsProcessor(
        float(value)
    ),
    "no_repeat_ngram": logits_process.NoRepeatNGramLogitsProcessor,
    "temperature": lambda value: logits_process.TemperatureLogitsWarper(float(value)),
    "top_h": lambda value: _guard(logits_process.TopHLogitsWarper(float(value))),
    "top_k": logits_process.TopKLogitsWarper,
    "min_p": logits_process.MinPLogitsWarper,
    "typical_p": logits_process.TypicalLogitsWarper,
    "epsilon_cutoff": logits_process.EpsilonLogitsWarper,
    "renormalize_logits": lambda _: logits_process.LogitNormalization(),
}

_BIASES: dict[str, Callable[[Any], dict[tuple[int, ...], float]]] = {
    "sequence_bias": dict,
    "logit_bias": lambda value: {(token_id,): float(bias) for token_id, bias in value},
    "bad_words": lambda value: dict.fromkeys(value, -torch.inf),
    "min_new_tokens": lambda value: {(token_id,): -torch.inf for token_id in value},
}
"""Processors that add to logits, as amounts by token ids; the last of the ids gets the amount."""

_ON_DEVICE: dict[str, Callable[[Any, str], Processor]] = {
    "eta_cutoff": lambda value, device: _guard(
        logits_process.EtaLogitsWarper(value, device=device)
    ),
    "suppress_tokens": logits_process.SuppressTokensLogitsProcessor,
    "begin_suppress_tokens": logits_process.SuppressTokensLogitsProcessor,
    # Both apply at one step only and read no history, so that the length they see is 0.
    "forced_bos_token": lambda value, device: logits_process.ForcedEOSTokenLogitsProcessor(
        1, list(value), device
    ),
    "forced_eos_token": lambda value, device: logits_process.ForcedEOSTokenLogitsProcessor(
        1, list(value), device
    ),
}
"""Processors that hold tensors on the device."""

_CONFIGURED = {
    "sequence_bias": "sequence_biases",
    "forced_bos_token": "forced_bos_token_id",
    "forced_eos_token": "forced_eos_token_ids",
    "suppress_tokens": "suppress_token_ids",
    "begin_suppress_tokens": "begin_suppress_token_ids",
    "top_h": "top_h",
    "renormalize_logits": "renormalize_logits",
}
"""Fields of `Configured`, by the processors that they turn on."""

_READS_HISTORY = frozenset({"repetition_penalty", "no_repeat_ngram", "bad_words", "sequence_bias"})

_ORDER = {name: order for order, name in enumerate(PROCESSORS)}
