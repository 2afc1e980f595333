"""Questions of explanation: what is explained, by which method, with which weights."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum
from typing import Final


class ExplainMethod(Enum):
    """Methods that the contract names, with its numbers."""

    LEAVE_ONE_OUT = 1
    ABLATION = 2
    GRADIENT = 3
    INTEGRATED_GRADIENTS = 4
    FLOW = 5
    DECOMPOSITION = 6
    PATCHING = 7

    @property
    def spelling(self) -> str:
        """Name as in the command: lower case with hyphens."""
        return self.name.lower().replace("_", "-")


class Operator(Enum):
    """Ways in which a segment is taken out of the context, with the contract's numbers."""

    REMOVE = 1
    HIDE = 2


class SegmentUnit(Enum):
    """Units of segments, with the contract's numbers."""

    WORDS = 1
    SENTENCES = 2
    LINES = 3
    MESSAGES = 4
    TOKENS = 5


METHOD_OPTIONS: Final[Mapping[ExplainMethod, frozenset[str]]] = {
    ExplainMethod.LEAVE_ONE_OUT: frozenset({"operator"}),
    ExplainMethod.ABLATION: frozenset({"operator", "num_ablations"}),
    ExplainMethod.GRADIENT: frozenset(),
    ExplainMethod.INTEGRATED_GRADIENTS: frozenset({"max_gap"}),
    ExplainMethod.FLOW: frozenset(),
    ExplainMethod.DECOMPOSITION: frozenset(),
    ExplainMethod.PATCHING: frozenset({"corrupted_segment"}),
}
"""Methods that there are, with the names of their options besides the seed."""
DEFAULT_METHOD: Final = ExplainMethod.LEAVE_ONE_OUT


@dataclass(frozen=True, slots=True)
class WantedWeights:
    """Weights that a record names; explained are those alone.

    Attributes:
        weights_digest: digest of the tensors; "" if the record names only files.
        model_digest: digest of the model's files.
        dtype: data type of the tensors; "" if it is not on record.
        adapter: name of the adapter; "" for none.
        adapter_digest: digest of the adapter's tensors.
        tokenizer_digest: digest of the tokenizer; "" if it is not on record.
    """

    weights_digest: str
    model_digest: str
    dtype: str
    adapter: str = ""
    adapter_digest: str = ""
    tokenizer_digest: str = ""

    @property
    def digest(self) -> str:
        """Digest that names the weights in errors."""
        return self.weights_digest or self.model_digest


@dataclass(frozen=True, slots=True)
class ExplainQuestion:
    """Span to explain, and the way of the explanation.

    Attributes:
        prompt: text before the output, or its token ids.
        output: the output up to the end of the span, as text or token ids.
        begin: index of the span's first token in the output.
        against: contrast: a token id, or a text; None for none.
        method: the method.
        unit: unit of the segments; None for the one that suits the context.
        segments: positions [begin, end) of the caller's own segments; None to divide by the unit.
        contents: texts of the conversation's messages, which the chat template put into the
            prompt; None if there is no conversation.
        options: settings of the method, by their names in the contract.
        measures_trust: True if the faithfulness of the scores is measured.
        weights: weights that the record names; None for a text that no record has.
        sequence_index: sequence of the span.
        uses_all_cores: True if nothing else computes on this machine.
    """

    prompt: str | tuple[int, ...]
    output: str | tuple[int, ...]
    begin: int
    method: ExplainMethod
    against: int | str | None = None
    unit: SegmentUnit | None = None
    segments: tuple[tuple[int, int], ...] | None = None
    contents: tuple[str, ...] | None = None
    options: Mapping[str, object] = field(default_factory=dict)
    measures_trust: bool = True
    weights: WantedWeights | None = None
    sequence_index: int = 0
    uses_all_cores: bool = False
