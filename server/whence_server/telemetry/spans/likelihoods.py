"""Probabilities of running generations' steps, counted as the steps are read."""

from collections import OrderedDict

from google.protobuf.message import DecodeError

from whence.summary import Likelihood
from whence.v1.step_pb2 import Step
from whence_server.telemetry.journal import GenerationReader
from whence_server.telemetry.spans.ahead import ReadStep
from whence_server.telemetry.spans.bounds import SequenceBounds
from whence_server.telemetry.spans.pages import read_step_pieces

_MAX_GENERATIONS = 4_096


class LikelihoodBook:
    """Probabilities of the steps of each generation, by sequence.

    They are counted in memory while steps come in order. If some are missing at the end (after a
    restart), all steps are read again from the journal, so that spans depend on the journal alone.

    Args:
        journal: read for the steps of generations that were not seen from their start.
        unlikely_below: probability below which a token is unlikely.
    """

    def __init__(self, journal: GenerationReader, unlikely_below: float) -> None:
        self._journal = journal
        self._unlikely_below = unlikely_below
        self._running: OrderedDict[str, dict[int, Likelihood]] = OrderedDict()

    def begin(self, generation_id: str) -> None:
        """Begin to count a generation, whose start was read."""
        self._running.setdefault(generation_id, {})
        if len(self._running) > _MAX_GENERATIONS:
            self._running.popitem(last=False)

    def add(self, generation_id: str, read: ReadStep) -> None:
        """Count the next step of a sequence; a step that comes again changes nothing."""
        parts = self._running.get(generation_id)
        if parts is None:
            return
        step, _, _, _, scalars, _, sequence_index, index = read
        part = parts.get(sequence_index)
        if part is None:
            part = parts[sequence_index] = Likelihood(self._unlikely_below)
        if index == part.num_steps:
            part.add_logprob(step, scalars[0])

    async def finish(
        self, generation_id: str, bounds: dict[int, SequenceBounds], finished_offset: int
    ) -> dict[int, Likelihood]:
        """Return the probabilities of a generation's sequences, by ascending sequence index.

        Args:
            generation_id: the generation.
            bounds: first and last step of each sequence.
            finished_offset: offset of its FINISHED entry.

        Raises:
            GenerationNotFoundError: the generation was deleted.
        """
        parts = self._running.pop(generation_id, {})
        if any(
            index not in parts or parts[index].num_steps != bound.last.index + 1
            for index, bound in bounds.items()
        ):
            parts = await self._count_again(generation_id, finished_offset)
        return dict(sorted(parts.items()))

    def forget(self, generation_id: str) -> None:
        """Remove the counts of a deleted generation."""
        self._running.pop(generation_id, None)

    async def _count_again(self, generation_id: str, finished_offset: int) -> dict[int, Likelihood]:
        parts: dict[int, Likelihood] = {}
        async for piece in read_step_pieces(self._journal, generation_id):
            for entry in piece:
                if entry.offset >= finished_offset or not entry.payload:
                    continue
                try:
                    step = Step.FromString(entry.payload)
                except DecodeError:  # an unreadable step has no span, and does not count
                    continue
                part = parts.get(step.sequence_index)
                if part is None:
                    part = parts[step.sequence_index] = Likelihood(self._unlikely_below)
                part.add(step)
        return parts
