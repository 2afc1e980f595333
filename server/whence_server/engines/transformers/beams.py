"""A beam search in the batch: the rows of its beams, and the cost of its rounds."""

from collections.abc import Sequence

from whence_server.domain.engine import (
    BeamRoundMade,
    BeamSearchDone,
    BeamSequence,
    BeamStep,
    Cost,
)
from whence_server.engines.transformers.decoding import BeamSearch, Hypothesis, Round
from whence_server.engines.transformers.jobs import BatchRow


class Beams:
    """One generation's beam search, whose rows enter and leave the batch together.

    Args:
        rows: one row for each beam, all at the prompt's end.

    Attributes:
        rows: the rows in the order of the search's beams.
        search: the search itself.
    """

    def __init__(self, rows: Sequence[BatchRow]) -> None:
        first = rows[0]
        self.rows = list(rows)
        self.search = BeamSearch(first.row.decoding, first.num_steps)
        constraint = first.row.constraint
        self._begin = None if constraint is None else constraint.copy()
        """State of the constraint before the first token; None without a constraint."""
        self._rounds: list[tuple[Cost, int]] = []
        """Cost and context length of each round."""

    @property
    def generation_id(self) -> str:
        """Id of the search's generation."""
        return self.rows[0].generation_id

    @property
    def num_rounds(self) -> int:
        """Number of rounds made."""
        return len(self._rounds)

    def take(self, made: Round, cost: Cost) -> BeamRoundMade:
        """Add a round; return the message that reports it."""
        context_length = self.rows[0].context_length
        self._rounds.append((cost, context_length))
        return BeamRoundMade(self.generation_id, made.index, made.continuations, context_length)

    def arrange(self) -> list[tuple[BatchRow, BatchRow]]:
        """Assign the search's new beams to rows, and append their tokens.

        The first beam of each parent stays in the parent's row, so that little of the cache is
        copied.

        Returns:
            Pairs (from, to) of rows to copy in the cache.
        """
        parents = [self.rows[beam.parent] for beam in self.search.beams]
        free = {id(row): row for row in self.rows}
        rows = [free.pop(id(parent), None) for parent in parents]
        spare = iter(free.values())
        copies = []
        for i, (row, parent) in enumerate(zip(rows, parents, strict=True)):
            if row is None:
                row = next(spare)  # noqa: PLW2901 - a row that no beam has kept
                row.row.take_over(parent.row)
                copies.append((parent, row))
            rows[i] = row
        # After the first round nothing is copied, as all rows equal the prompt's cache.
        self.rows = [row for row in rows if row is not None]
        for row, beam in zip(self.rows, self.search.beams, strict=True):
            row.append(beam.token_id)
        return copies if len(self._rounds) > 1 else []

    def finish(self) -> BeamSearchDone:
        """Return the sequences that the search returns, with all their steps."""
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
        complete = self._judge(path)
        return BeamSequence(winner.score, winner.finish, steps, complete)

    def _judge(self, path: Sequence[Hypothesis]) -> bool | None:
        """Return whether the text of a path belongs to the constraint's language."""
        if self._begin is None:
            return None
        state = self._begin.copy()
        for step in path:
            state.advance(step.token_id)
        return state.is_complete
