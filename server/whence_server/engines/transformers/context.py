"""Context length of a model."""

from typing import Any

UNLIMITED_CONTEXT = (1 << 31) - 1
CONTEXT_LENGTH_FIELDS = ("max_position_embeddings", "n_positions", "max_seq_len", "seq_length")


def read_max_context_length(config: Any) -> int:
    """Return the longest sequence, prompt included, from the text part of a model's config.

    With dynamic NTK scaling, `max_position_embeddings` is the length that the model was trained
    on, and the longest sequence is that times `factor`.
    """
    for field in CONTEXT_LENGTH_FIELDS:
        value = getattr(config, field, None)
        if isinstance(value, int) and value > 0:
            return int(value * _read_dynamic_factor(config))
    return UNLIMITED_CONTEXT


def _read_dynamic_factor(config: Any) -> float:
    """Return the factor of dynamic NTK scaling; 1 if the model has none."""
    given = getattr(config, "rope_parameters", None) or {}
    # Some models have a set of parameters for each kind of layer.
    kinds = [given, *(value for value in given.values() if isinstance(value, dict))]
    factors = [
        kind.get("factor") or 1.0 for kind in kinds if "dynamic" in (kind.get("rope_type") or "")
    ]
    return max([1.0, *factors])
