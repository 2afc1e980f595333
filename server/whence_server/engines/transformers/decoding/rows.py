"""State of one sequence that the choice of its tokens needs."""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from whence_server.domain.decoding import Decoding, TraceDetail, TraceOptions
from whence_server.engines.transformers.decoding.constraints import RowConstraint
from whence_server.engines.transformers.decoding.processors import Setting, Stage, list_settings


class Row:
    """Mutable state of one sequence, with values derived once from its request.

    Args:
        decoding: as applied.
        trace: as granted.
        sequence_index: index of the sequence among the request's.
        prompt_token_ids: the prompt, followed by tokens generated before the engine's restart.
        num_generated: number of generated tokens at the end of `prompt_token_ids`.
        constraint: state of the request's constraint after these; None without one.

    Attributes:
        index: number of tokens generated so far: the index of the step to make.
        settings: the processors that apply to it, in order.
        stages: the same as objects, shared with other rows; a `Chooser` fills them in.
        detailed: True if its decisions have more than the tokens and their logprobs.
        probed: True if the model's activations are read for its decisions.
        num_candidates: number of candidates recorded for each step.
        logprob_token_ids: whose logprobs are recorded of each step besides.
        seed_words: the seed's low and high 32 bits.
    """

    __slots__ = (
        "_num_forced",
        "_num_tokens",
        "_token_ids",
        "constraint",
        "decoding",
        "detailed",
        "index",
        "logprob_token_ids",
        "num_candidates",
        "probed",
        "seed_words",
        "sequence_index",
        "settings",
        "stages",
        "trace",
    )

    def __init__(
        self,
        decoding: Decoding,
        trace: TraceOptions,
        sequence_index: int,
        prompt_token_ids: Sequence[int] | npt.NDArray[np.int64],
        num_generated: int = 0,
        *,
        constraint: RowConstraint | None = None,
    ) -> None:
        self.decoding = decoding
        self.trace = trace
        self.constraint = constraint
        self.sequence_index = sequence_index
        self.index = num_generated
        self.settings: tuple[Setting, ...] = list_settings(decoding)
        self.stages: tuple[Stage, ...] | None = None
        self.detailed = trace.detail is not TraceDetail.TOKENS
        self.probed = trace.detail is TraceDetail.INTERNALS
        self.num_candidates = trace.num_candidates if self.detailed else 0
        self.logprob_token_ids = trace.logprob_token_ids if self.detailed else ()
        self.seed_words = (decoding.seed & 0xFFFFFFFF, decoding.seed >> 32)
        self._num_forced = len(decoding.forced_token_ids)
        self._num_tokens = len(prompt_token_ids)
        self._token_ids = np.empty(self._num_tokens + decoding.max_new_tokens, dtype=np.int64)
        self._token_ids[: self._num_tokens] = prompt_token_ids

    @property
    def token_ids(self) -> npt.NDArray[np.int64]:
        """Tokens of the prompt and generated ones: a view, valid until the next `append`."""
        return self._token_ids[: self._num_tokens]

    @property
    def is_forced(self) -> bool:
        """True if the token of the next step is given and not chosen."""
        return self.index < self._num_forced

    @property
    def forced_token_id(self) -> int | None:
        """The forced token of the next step; None if the token is chosen."""
        return self.decoding.forced_token_ids[self.index] if self.is_forced else None

    def get_constraint(self) -> RowConstraint:
        """Return the state of the constraint of a row that has one."""
        if self.constraint is None:
            raise RuntimeError("a row of a request with a constraint has none")
        return self.constraint

    def rewrite(self, token_ids: npt.NDArray[np.int64]) -> None:
        """Replace all tokens by equally many."""
        self._token_ids[: self._num_tokens] = token_ids

    def take_over(self, other: "Row") -> None:
        """Replace all tokens by another row's, equally many, for a beam with a new hypothesis."""
        self.rewrite(other.token_ids)
        if other.constraint is not None:
            self.constraint = other.constraint.copy()

    def append(self, token_id: int) -> None:
        """Append the token of the step just made."""
        if self._num_tokens == len(self._token_ids):
            self._token_ids = np.concatenate([self._token_ids, np.empty_like(self._token_ids)])
        self._token_ids[self._num_tokens] = token_id
        self._num_tokens += 1
        self.index += 1
        if self.constraint is not None:
            self.constraint.advance(token_id)
