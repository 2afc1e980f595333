"""Choice of the next tokens: from one step's logits to its decisions, for all rows at once.

logits -> pipeline (processors, stage by stage) -> choose, or beam -> record -> Decision
"""

from whence_server.engines.transformers.decoding.beam import BeamSearch, Hypothesis, Round
from whence_server.engines.transformers.decoding.choose import Chooser
from whence_server.engines.transformers.decoding.decisions import (
    NoChoice,
    NonFiniteLogits,
    NothingLeft,
)
from whence_server.engines.transformers.decoding.rows import Row

__all__ = [
    "BeamSearch",
    "Chooser",
    "Hypothesis",
    "NoChoice",
    "NonFiniteLogits",
    "NothingLeft",
    "Round",
    "Row",
]
