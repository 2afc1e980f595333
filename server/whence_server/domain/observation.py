"""Grades of what an engine shows of a generation: how each part of the record was obtained.

whence's own engine sees everything. Another engine tells less; what it does not tell is absent from
the record, and the grade says why. Enum values are the contract's numbers.
"""

from dataclasses import dataclass
from enum import Enum


class TokenIds(Enum):
    """Origin of the token ids."""

    SAMPLED = 1
    """The engine said which ids it chose."""
    RETOKENIZED = 2
    """whence encoded the text; the engine may have chosen other ids with the same text."""
    NONE = 3
    """There are none: the engine told only text."""


class Distribution(Enum):
    """Distribution behind `Decision.logprob` and the candidates' logprobs."""

    RAW = 1
    """The model's own, before any processor."""
    AFTER_TEMPERATURE = 2
    """After temperature, before tokens were removed."""
    PROCESSED = 3
    """After all processors: the one drawn from."""
    UNKNOWN = 4
    """The engine does not say."""
    NONE = 5
    """There are no logprobs."""


class SecondDistribution(Enum):
    """Origin of `Decision.sampling_logprob`, the logprob in the other distribution."""

    GIVEN = 1
    """The engine computed both."""
    COMPUTED = 2
    """whence computed it from the engine's table of candidates, where the table has every token
    that the processors keep."""
    NONE = 3
    """It is absent."""


class Seed(Enum):
    """Origin of the seed."""

    OURS = 1
    """whence chose it, or passed on the request's."""
    REPORTED = 2
    """The engine chose it and told it."""
    UNKNOWN = 3
    """The engine chose it."""
    NONE = 4
    """Nothing was drawn."""


class DrawOrigin(Enum):
    """Origin of the random draws, and whether they can be computed again."""

    OURS = 1
    """whence drew; see `Draw` in step.proto."""
    ENGINE_RECOMPUTABLE = 2
    """The engine drew, by a function of the seed that is known."""
    ENGINE = 3
    """The engine drew; nobody can compute the draw again from the record."""
    NONE = 4
    """Nothing was drawn."""


class Tables(Enum):
    """Completeness of the steps' logprobs and candidates."""

    EVERY_STEP = 1
    SOME_STEPS = 2
    """Some steps may have none, e.g. tokens that a draft model proposed."""
    NONE = 3
    """No step has any."""


class WeightsOrigin(Enum):
    """Origin of what the record says about the weights."""

    DIGESTS = 1
    """whence read the files, or the tensors in memory, that compute the tokens."""
    DIGESTS_OF_CLAIMED_FILES = 2
    """whence read the files that the engine says it serves."""
    CLAIMED = 3
    """The engine's word: a name or a path."""
    UNKNOWN = 4


@dataclass(frozen=True, slots=True)
class Observation:
    """Grades of one generation; the defaults are those of whence's own engine when it samples."""

    token_ids: TokenIds = TokenIds.SAMPLED
    distribution: Distribution = Distribution.RAW
    second_distribution: SecondDistribution = SecondDistribution.GIVEN
    seed: Seed = Seed.OURS
    draw: DrawOrigin = DrawOrigin.OURS
    tables: Tables = Tables.EVERY_STEP
    weights: WeightsOrigin = WeightsOrigin.DIGESTS
