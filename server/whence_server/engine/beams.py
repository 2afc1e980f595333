"""A beam search among the rows of the batch: which row is which beam, and what came of it."""

from collections.abc import Sequence

from whence_server.domain.engine import (
    BeamRoundMade,
    BeamSearchDone,
    BeamSequence,
    BeamStep,
    Cost,
)
from whence_server.engine.decoding import BeamSearch, Hypothesis, Round
from whence_server.engine.jobs import BatchRow


class Beams:
    """One generation's search, whose rows come and leave together.

    Args:
        rows: as many as there are beams, all at the prompt's end.

    Attributes:
        rows: in the order of the search's beams.
        search: the search itself.
    """

    def __init__(self, rows: Sequence[BatchRow]) -> None:
        first = rows[0]
        self.rows = list(rows)
        self.search = BeamSearch(first.row.decoding, first.num_steps)
        self._rounds: list[tuple[Cost, int]] = []
        """Cost and context length of each."""

    @property
    def generation_id(self) -> str:
        """Whose search it is."""
        return self.rows[0].generation_id

    @property
    def num_rounds(self) -> int:
        """Rounds that have been made."""
        return len(self._rounds)

    def take(self, made: Round, cost: Cost) -> BeamRoundMade:
        """Take note of a round that was made."""
        context_length = self.rows[0].context_length
        self._rounds.append((cost, context_length))
        return BeamRoundMade(self.generation_id, made.index, made.continuations, context_length)

    def arrange(self) -> list[tuple[BatchRow, BatchRow]]:
        """Return each of the search's new beams a row, and the row its new token.

        A beam stays in its parent's row where it is the first to want it, so that little of
        the cache has to be copied.

        Returns:
            What has to be copied in the cache: pairs of (from, to).
        """
        parents = [self.rows[beam.parent] for beam in self.search.beams]
        free = {id(row): row for row in self.rows}
        rows = [free.pop(id(parent), None) for parent in parents]
        spare = iter(free.values())
        copies = []
        for i, (row, parent) in enumerate(zip(rows, parents, strict=True)):
            if row is None:
                row = next(spare)  # noqa: PLW2901 - one that nobody's parent keeps
                row.row.rewrite(parent.row.token_ids)
                copies.append((parent, row))
            rows[i] = row
        # At the prompt's end all rows are the same.
        self.rows = [row for row in rows if row is not None]
        for row, beam in zip(self.rows, self.search.beams, strict=True):
            row.append(beam.token_id)
        return copies if len(self._rounds) > 1 else []

    def finish(self) -> BeamSearchDone:
        """The sequences that won, with all their steps."""
        return BeamSearchDone(
            self.generation_id, [self._make_sequence(winner) for winner in self.search.winners]
        )

    def _make_sequence(self, winner: Hypothesis) -> BeamSequence:
        path = winner.list_path()
        if winner.finish is None or any(step.decision is None for step in path):
            raise RuntimeError("a winner of the search has not finished, or lacks a record")
        steps = [
            BeamStep(step.decision, context_length, cost)
            for step, (cost, context_length) in zip(path, self._rounds, strict=False)
            if step.decision is not None  # for the types' sake
        ]
        return BeamSequence(winner.score, winner.finish, steps)
