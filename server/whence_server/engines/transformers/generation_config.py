"""A model's generation config: each field is applied, has no effect on tokens, or is refused.

transformers checks these fields in `generate`, where a wrong one fails each call. Here they are
checked before the weights are loaded, and a wrong one ends the start.
"""

import dataclasses
import json
import logging
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from transformers import GenerationConfig

from whence_server.domain import bounds
from whence_server.domain.decoding import (
    Configured,
    GenerationDefaults,
)
from whence_server.domain.errors import ConfigurationError
from whence_server.domain.limits import Limits
from whence_server.engines.transformers.generation_fields import (
    APPLIED,
    HARMLESS,
    IN_SAMPLING,
    REFUSED,
)

FILE = "generation_config.json"
SHOWN_CHARACTERS = 60

_log = logging.getLogger(__name__)


def check_file(directory: Path) -> None:
    """Check a model's generation config, before the weights are loaded.

    Raises:
        ConfigurationError: fields cannot be applied; the message names them and what would be
            right.
    """
    path = directory / FILE
    if not path.is_file():
        return
    try:
        values = json.loads(path.read_bytes())
    except (OSError, ValueError) as error:
        raise ConfigurationError(f"{path} is not JSON that can be read: {error}") from error
    if not isinstance(values, dict):
        raise ConfigurationError(f"{path} must hold a JSON object, not {_shorten(values)}")
    _check(values, path)
    _check_as_transformers_does(values, path)
    unknown = sorted(values.keys() - APPLIED.keys() - REFUSED.keys() - HARMLESS.keys())
    unknown = [name for name in unknown if name != "_commit_hash"]
    if unknown:
        _log.warning(
            "%s: fields that transformers' generate does not know are ignored: %s",
            path,
            ", ".join(unknown),
        )


def read_defaults(
    config: GenerationConfig, vocabulary_size: int, directory: Path | str = ""
) -> GenerationDefaults:
    """Return the decoding defaults of a generation config.

    Args:
        config: the model's generation config, as transformers loaded it.
        vocabulary_size: rows of the model's output head.
        directory: the model's directory, for messages.

    Raises:
        ConfigurationError: a field cannot be applied.
    """
    source = _find_source(directory)
    values = {name: value for name, value in vars(config).items() if value is not None}
    _check(values, source)
    _check_ids(values, vocabulary_size, source)
    _warn_about_sampling_values(values, source)
    stops = values.get("stop_strings", ())
    defaults = GenerationDefaults(
        **_take_as_they_are(values),
        **_list_switched_off(values),
        stop=(stops,) if isinstance(stops, str) else tuple(stops),
        min_new_tokens=max(values["min_new_tokens"], 0) if "min_new_tokens" in values else None,
        min_length=max(values.get("min_length", 0), 0),
        no_repeat_ngram_size=max(values.get("no_repeat_ngram_size", 0), 0),
        bad_word_ids=tuple(tuple(word) for word in values.get("bad_words_ids", ())),
        # Some configs have ids beyond the head's rows, which cannot be generated.
        eos_token_ids=_keep_known(values.get("eos_token_id"), vocabulary_size),
        configured=_read_configured(values, vocabulary_size),
    )
    _check_together(defaults, source)
    return defaults


def check_batch(defaults: GenerationDefaults, max_batch_size: int, directory: Path | str) -> None:
    """Check that defaults do not ask for more rows than decode together.

    Args:
        defaults: defaults of the model.
        max_batch_size: batch size of the server.
        directory: the model's directory, for the message.

    Raises:
        ConfigurationError: num_beams or num_return_sequences exceeds the batch size.
    """
    faults = [
        f"{name} is {value}, more than are decoded together (--max-batch-size {max_batch_size})"
        for name in ("num_beams", "num_return_sequences")
        if (value := getattr(defaults, name)) > max_batch_size
    ]
    _raise_faults(faults, _find_source(directory))


_READ_APART = frozenset(
    {
        *("top_p", "typical_p", "epsilon_cutoff", "eta_cutoff"),
        *("min_new_tokens", "min_length", "no_repeat_ngram_size"),
    }
)


def _take_as_they_are(values: Mapping[str, Any]) -> dict[str, Any]:
    """Return the settings that have transformers' name, and its values for every meaning."""
    names = {field.name for field in dataclasses.fields(GenerationDefaults)} - _READ_APART
    return {name: value for name, value in values.items() if name in names}


def _list_switched_off(values: Mapping[str, Any]) -> dict[str, Any]:
    """Return settings that are neutral outside a range, as in `generate`."""
    settings = {}
    for name in ("top_p", "typical_p"):
        settings[name] = min(float(values.get(name, 1.0)), 1.0)
    for name in ("epsilon_cutoff", "eta_cutoff"):
        value = float(values.get(name, 0.0))
        settings[name] = value if 0 < value < 1 else 0.0
    return settings


def _read_configured(values: Mapping[str, Any], vocabulary_size: int) -> Configured:
    # Of several biases of one sequence the last one counts.
    biases = {tuple(ids): float(bias) for ids, bias in values.get("sequence_bias", ())}
    return Configured(
        sequence_biases=tuple(biases.items()),
        suppress_token_ids=_keep_known(values.get("suppress_tokens"), vocabulary_size),
        begin_suppress_token_ids=_keep_known(values.get("begin_suppress_tokens"), vocabulary_size),
        forced_bos_token_id=values.get("forced_bos_token_id"),
        forced_eos_token_ids=_keep_known(values.get("forced_eos_token_id"), vocabulary_size),
        top_h=float(values.get("top_h", 0.0)),
        renormalize_logits=values.get("renormalize_logits", False),
    )


def _keep_known(ids: Any, vocabulary_size: int) -> tuple[int, ...]:
    """Return the ids within the vocabulary, of None, an id or a list of ids."""
    return tuple(token_id for token_id in _list_ids(ids) if 0 <= token_id < vocabulary_size)


def _list_ids(ids: Any) -> list[int]:
    return [] if ids is None else list(ids) if isinstance(ids, list | tuple) else [ids]


def _check(values: Mapping[str, Any], source: Path) -> None:
    faults = {}
    rules = [*APPLIED.items(), *(IN_SAMPLING.items() if values.get("do_sample") is True else ())]
    for name, rule in rules:
        value = values.get(name)
        if value is not None and name not in faults and not rule.allows(value):
            faults[name] = f"{name} is {_shorten(value)}; it must be {rule.text}"
    for name, refusal in REFUSED.items():
        value = values.get(name)
        if refusal.is_set(value):
            faults[name] = f"{name} is {_shorten(value)}, which is not applied; {refusal.instead}"
    _raise_faults(list(faults.values()), source)


def _check_as_transformers_does(values: Mapping[str, Any], source: Path) -> None:
    """Refuse what transformers does not read, as fields that exclude each other."""
    try:
        GenerationConfig.from_dict(dict(values))
    except Exception as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise ConfigurationError(f"{source} cannot be applied: {reason}") from error


def _warn_about_sampling_values(values: Mapping[str, Any], source: Path) -> None:
    """Log what is outside the ranges of sampling where the model does not sample by itself."""
    outside = [
        f"{name} ({_shorten(value)})"
        for name, rule in IN_SAMPLING.items()
        if (value := values.get(name)) is not None and not rule.allows(value)
    ]
    if outside:
        _log.warning(
            "%s has values that sampling cannot use; sampling requests must set their own: %s",
            source,
            ", ".join(outside),
        )


def _check_ids(values: Mapping[str, Any], vocabulary_size: int, source: Path) -> None:
    """Refuse ids beyond the vocabulary, in the fields for which transformers fails on them."""
    used = {
        "bad_words_ids": [i for word in values.get("bad_words_ids", ()) for i in word],
        "sequence_bias": [i for ids, _ in values.get("sequence_bias", ()) for i in ids],
        "forced_bos_token_id": _list_ids(values.get("forced_bos_token_id")),
        "forced_eos_token_id": _list_ids(values.get("forced_eos_token_id")),
    }
    faults = []
    for name, ids in used.items():
        beyond = next((i for i in ids if i >= vocabulary_size), None)
        if beyond is not None:
            faults.append(f"{name} has the id {beyond}; ids go up to {vocabulary_size - 1}")
    _raise_faults(faults, source)


def _check_together(defaults: GenerationDefaults, source: Path) -> None:
    """Refuse settings that exclude each other."""
    faults = []
    if defaults.num_beams > 1 and defaults.do_sample:
        faults.append(
            f"do_sample is true and num_beams is {defaults.num_beams}; beams are not sampled: set "
            "do_sample to false or num_beams to 1"
        )
    if defaults.num_beams > 1 and defaults.stop:
        faults.append(
            "stop_strings do not go with num_beams, as beam search does not look at text: remove "
            "them, or set num_beams to 1"
        )
    max_new_tokens = defaults.max_new_tokens or Limits().default_max_new_tokens
    if defaults.num_beams > 1 and not bounds.is_length_power_held(
        max_new_tokens, defaults.length_penalty
    ):
        faults.append(
            f"length_penalty is {defaults.length_penalty:g}; {max_new_tokens} new tokens to that "
            f"power must be from {1 / bounds.MAX_LENGTH_POWER:g} to {bounds.MAX_LENGTH_POWER:g}"
        )
    most = defaults.num_beams if defaults.num_beams > 1 or not defaults.do_sample else math.inf
    if defaults.num_return_sequences > most:
        faults.append(
            f"num_return_sequences is {defaults.num_return_sequences}; it must be at most "
            f"{most}, num_beams, or do_sample must be true"
        )
    _raise_faults(faults, source)


def _find_source(directory: Path | str) -> Path:
    """Return the file from which transformers reads the generation config."""
    path = Path(directory) / FILE
    return path if path.is_file() else Path(directory) / "config.json"


def _raise_faults(faults: list[str], source: Path) -> None:
    if faults:
        raise ConfigurationError(f"{source} cannot be applied: {'; '.join(faults)}")


def _shorten(value: Any) -> str:
    text = repr(value) if isinstance(value, float) else json.dumps(value, default=repr)
    return text if len(text) <= SHOWN_CHARACTERS else f"{text[:SHOWN_CHARACTERS]}..."
