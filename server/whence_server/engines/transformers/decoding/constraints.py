"""Constraints of rows: the tokens that remain, and the state that follows the chosen ones."""

from collections.abc import Collection, Sequence

import numpy as np
import numpy.typing as npt
import torch

from whence_server.constraints.compiler import Matcher
from whence_server.constraints.errors import ConstraintError
from whence_server.domain.decoding import Decoding


class RowConstraint:
    """The state of a constraint in one row.

    Args:
        matcher: state of the text so far; it is used by this row alone.
        end_token_ids: tokens that end the sequence and add no text of the language.

    Attributes:
        is_complete: True if the text so far belongs to the language.
    """

    __slots__ = ("_end_token_ids", "_failure", "_is_filled_up", "_mask", "_matcher", "is_complete")

    def __init__(self, matcher: Matcher, end_token_ids: Collection[int]) -> None:
        self._matcher = matcher
        self._end_token_ids = [*end_token_ids]
        self._mask: npt.NDArray[np.bool_] | None = None
        self._failure: ConstraintError | None = None
        self._is_filled_up = False
        self.is_complete = matcher.is_complete

    def read_mask(self) -> npt.NDArray[np.bool_]:
        """Return [V], not to be changed: True for each token that may come next.

        A token that ends the sequence may come where the text is complete, and only there.

        Raises:
            ConstraintError: the text exceeds a limit on the work for one token.
        """
        if self._failure is not None:
            raise self._failure
        if self._mask is None:
            self._mask = self._matcher.compute_mask()
            self._mask[self._end_token_ids] = self.is_complete
        return self._mask

    def advance(self, token_id: int) -> None:
        """Append a token to the text; one that ends the sequence adds nothing to it.

        A failure is raised by the next `read_mask`, which concerns this row alone. A beam without
        a continuation is filled up with a token that is not allowed, and then with any.
        """
        if self._failure is not None or self._is_filled_up or token_id in self._end_token_ids:
            return
        if self._mask is not None and not self._mask[token_id]:
            self._is_filled_up, self.is_complete = True, False
            self._mask = np.ones_like(self._mask)
            return
        try:
            self._matcher.advance([token_id])
            self._mask, self.is_complete = None, self._matcher.is_complete
        except ConstraintError as error:
            self._failure = error

    def copy(self) -> "RowConstraint":
        """Return a state that goes on independently."""
        copied = object.__new__(RowConstraint)
        copied._matcher = self._matcher.copy()
        copied._end_token_ids = self._end_token_ids
        copied._mask = self._mask
        copied._failure = self._failure
        copied._is_filled_up = self._is_filled_up
        copied.is_complete = self.is_complete
        return copied

    def explain_nothing_left(self) -> str:
        """Return why no token is left, where the other settings have removed the allowed ones."""
        allowed = np.flatnonzero(self.read_mask())
        if not allowed.size:
            return "no token of the model's vocabulary continues the text of the constraint"
        if set(allowed.tolist()) <= set(self._end_token_ids):
            return (
                "the text of the constraint is complete and nothing may follow, but "
                "min_new_tokens or another setting forbids the end of the sequence"
            )
        return (
            f"the constraint leaves {allowed.size} tokens, and the other decoding settings remove "
            "them: loosen bad_words, no_repeat_ngram_size, min_new_tokens or logit_bias"
        )


def start_constraint(
    compiled: Matcher, decoding: Decoding, token_ids: Sequence[int]
) -> RowConstraint:
    """Return the state of a row after the tokens that it has generated.

    Args:
        compiled: state of an empty text; not changed.
        decoding: settings of the request.
        token_ids: tokens generated before; none of them ends the sequence.

    Raises:
        ConstraintError: the language does not allow the tokens.
    """
    own = compiled.copy()
    own.advance(token_ids)
    return RowConstraint(own, own.select_ends(decoding.eos_token_ids, decoding.stop_token_ids))


def mask_scores(scores: torch.Tensor, constraints: Sequence[RowConstraint]) -> torch.Tensor:
    """Return scores [rows, V] with -inf for every token that its row's constraint removes.

    Raises:
        ConstraintError: a mask cannot be computed.
    """
    allowed = np.stack([constraint.read_mask() for constraint in constraints])
    removed = ~torch.from_numpy(allowed)
    return scores.masked_fill(removed.to(scores.device, non_blocking=True), -torch.inf)
