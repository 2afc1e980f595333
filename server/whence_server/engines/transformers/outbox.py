"""Outbox for the results of finished beam searches, which are sent in slices, one each turn.

The steps of 64 beams of 500 steps, with candidates, are some 50 MB. Sent at once, they would delay
all other streams for seconds, here while they are serialised and in the front while they are read.
"""

from collections import deque
from collections.abc import Iterator

from whence_server.domain.engine import BeamSearchDone, BeamSteps, Cost, Turn

CANDIDATES_IN_A_SLICE = 512
"""Candidates in one slice, with at least 8 for each step: about 2 ms of work for each side."""


class Outbox:
    """Finished searches that have not been sent completely."""

    def __init__(self) -> None:
        self._waiting: deque[tuple[str, Iterator[BeamSteps]]] = deque()

    @property
    def is_empty(self) -> bool:
        """True if everything has been sent."""
        return not self._waiting

    def put(self, done: BeamSearchDone) -> None:
        """Add a finished search."""
        self._waiting.append((done.generation_id, _cut_slices(done)))

    def drop(self, generation_id: str) -> None:
        """Remove a generation that was stopped."""
        self._waiting = deque(item for item in self._waiting if item[0] != generation_id)

    def take_next(self, cost: Cost) -> Turn:
        """Return the next slice, or the end of a search after its last slice."""
        generation_id, slices = self._waiting[0]
        steps = next(slices, None)
        if steps is not None:
            # Round robin: a short search does not wait for a long one.
            self._waiting.rotate(-1)
            return Turn(cost, beam_steps=[steps])
        self._waiting.popleft()
        return Turn(cost, beam_searches=[BeamSearchDone(generation_id, [])])


def _cut_slices(done: BeamSearchDone) -> Iterator[BeamSteps]:
    for sequence_index, sequence in enumerate(done.sequences):
        decision = sequence.steps[0].decision
        num_listed = len(decision.candidates.token_ids) if decision.candidates else 0
        if decision.requested_logprobs:
            num_listed += len(decision.requested_logprobs.logprobs)
        size = max(CANDIDATES_IN_A_SLICE // max(num_listed, 8), 1)
        for first in range(0, len(sequence.steps), size):
            is_last = first + size >= len(sequence.steps)
            yield BeamSteps(
                done.generation_id,
                sequence_index,
                first,
                sequence.steps[first : first + size],
                sequence.score,
                sequence.finish if is_last else None,
                sequence.constraint_complete if is_last else None,
            )
