"""Results of methods, and the way in which they tell of their progress."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Final, TypeAlias

from whence_server.explain.ablation_rows import Kept

MAX_TOKENS_READ: Final = 1_000_000
"""Tokens that the model may read for one phase of an explanation."""

Progress: TypeAlias = Callable[[int, int], None]
"""Called between passes with the work done and the whole work, in tokens that the model reads.

It raises if the job is too large or no longer wanted: a method calls it first with 0.
"""


@dataclass(frozen=True)
class Terms:
    """Explained logit, or difference of logits, as a sum of terms; see `ValueDecomposition`.

    Attributes:
        heads: terms by layer and head.
        attention_rests: terms of attention that belong to no head, by layer.
        mlps: terms by layer.
    """

    embedding: float
    heads: tuple[tuple[float, ...], ...]
    attention_rests: tuple[float, ...]
    mlps: tuple[float, ...]
    norm_bias: float
    head_bias: float
    residual: float


@dataclass(frozen=True)
class RecoveredShares:
    """Shares of the explained value that restored activations recover; see `PatchingMap`.

    Attributes:
        positions: positions that were restored.
        shares: shares by layer and position.
        corrupted_value: explained value of the corrupted run.
    """

    positions: tuple[int, ...]
    shares: tuple[tuple[float, ...], ...]
    corrupted_value: float


@dataclass(frozen=True)
class Scores:
    """Result of a method.

    Attributes:
        values: score of each segment; empty for a method that has none.
        value: explained value with the whole context.
        num_passes: number of sequences that the model read, from their first changed token on.
        gap: sum that the scores leave unexplained; None for methods that do not add up.
        parameters: parameters that the method used, by name.
        terms: terms of a decomposition.
        recovered: shares of a patching.
        fitted_rows: ablations that the scores were fitted to, which are no test of them.
    """

    values: tuple[float, ...]
    value: float
    num_passes: int
    gap: float | None = None
    parameters: Mapping[str, str] = field(default_factory=dict)
    terms: Terms | None = None
    recovered: RecoveredShares | None = None
    fitted_rows: Kept | None = field(default=None, compare=False, repr=False)
