"""Choice of a batch's tokens with isolated failures.

Rows are processed together, so that an error in one row would fail all. If the choice for all rows
fails, it is repeated for each row by itself. As a choice depends on a row's own logits and
settings only, the other rows get the same tokens as without the failure.
"""

import logging
from collections.abc import Callable, Sequence

import torch

from whence_server.constraints.errors import ConstraintError
from whence_server.domain.steps import Decision
from whence_server.engines.transformers.decoding import BeamSearch, Chooser, NoChoice, Round, Row
from whence_server.engines.transformers.jobs import is_out_of_memory

logger = logging.getLogger(__name__)


class IsolatingChooser:
    """Chooser that returns a `NoChoice` for each row that fails.

    Args:
        chooser: chooses the tokens.
        require_device: raises if the device is lost, which is no row's failure.
    """

    def __init__(self, chooser: Chooser, require_device: Callable[[], None]) -> None:
        self._chooser = chooser
        self._require_device = require_device

    def choose(self, logits: torch.Tensor, rows: Sequence[Row]) -> Sequence[Decision | NoChoice]:
        """Choose a token for each row of [rows, V]."""
        try:
            return self._chooser.choose(logits, rows)
        except Exception as error:  # noqa: BLE001 - other rows may not fail
            if len(rows) == 1:
                return [self._explain(error)]
            self._require_device()
        decisions: list[Decision | NoChoice] = []
        for i, row in enumerate(rows):
            decisions += self.choose(logits[i : i + 1], [row])
        return decisions

    def extend_beams(
        self, logits: torch.Tensor, rows: Sequence[Row], search: BeamSearch
    ) -> Round | NoChoice:
        """Run one round of a beam search from logits [beams, V]."""
        try:
            return self._chooser.extend_beams(logits, rows, search)
        except Exception as error:  # noqa: BLE001 - fails this search alone
            return self._explain(error)

    def _explain(self, error: Exception) -> NoChoice:
        self._require_device()
        logger.error("a token cannot be chosen or recorded", exc_info=error)
        return explain_no_choice(error)


def explain_no_choice(error: Exception) -> NoChoice:
    """Return the reason for a row's having no next token after an error."""
    if is_out_of_memory(error):
        return NoChoice("OUT_OF_MEMORY", "the engine ran out of memory while it chose a token")
    if isinstance(error, ConstraintError):
        return NoChoice("CONSTRAINT_FAILED", f"the constraint {error.message}")
    return NoChoice(
        "CHOOSING_FAILED", f"the token cannot be chosen or recorded: {type(error).__name__}"
    )
