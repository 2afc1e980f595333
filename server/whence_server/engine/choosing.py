"""Choosing for a whole batch, so that what goes wrong ends the rows that it went wrong for.

Rows share their work: one that cannot be chosen for would take the others with it. So where
choosing for all fails, it is done for each row by itself. A choice depends on nothing but a row's
own logits and settings: the others get the tokens that they would have got.
"""

import logging
from collections.abc import Callable, Sequence

import torch

from whence_server.domain.steps import Decision
from whence_server.engine.decoding import BeamSearch, Chooser, NoChoice, Round, Row
from whence_server.engine.jobs import is_out_of_memory

logger = logging.getLogger(__name__)


class IsolatingChooser:
    """Choices of which each that fails becomes a `NoChoice`.

    Args:
        chooser: chooses the tokens.
        require_device: raises if the device is lost, for which no row is to blame.
    """

    def __init__(self, chooser: Chooser, require_device: Callable[[], None]) -> None:
        self._chooser = chooser
        self._require_device = require_device

    def choose(self, logits: torch.Tensor, rows: Sequence[Row]) -> Sequence[Decision | NoChoice]:
        """Choose for each row of [rows, V]."""
        try:
            return self._chooser.choose(logits, rows)
        except Exception as error:  # noqa: BLE001 - whatever it is, some of the rows may be fine
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
        """Make one round of a search, of [beams, V]."""
        try:
            return self._chooser.extend_beams(logits, rows, search)
        except Exception as error:  # noqa: BLE001 - it is this search's alone
            return self._explain(error)

    def _explain(self, error: Exception) -> NoChoice:
        self._require_device()
        logger.error("a token cannot be chosen or recorded", exc_info=error)
        return explain_no_choice(error)


def explain_no_choice(error: Exception) -> NoChoice:
    """Say why a row has no next token, where choosing or recording it failed."""
    if is_out_of_memory(error):
        return NoChoice("OUT_OF_MEMORY", "the engine ran out of memory over choosing a token")
    return NoChoice(
        "CHOOSING_FAILED", f"the token cannot be chosen or recorded: {type(error).__name__}"
    )
