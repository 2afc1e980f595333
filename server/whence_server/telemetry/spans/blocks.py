"""`decode_block` spans, each a summary of consecutive steps without a span of their own."""

import asyncio
from collections import OrderedDict
from collections.abc import Mapping

from opentelemetry.proto.trace.v1.trace_pb2 import Span

from whence.v1.step_pb2 import Step
from whence_server.telemetry.journal import GenerationReader
from whence_server.telemetry.spans import names
from whence_server.telemetry.spans.bounds import SequenceBounds, read_pages_backward
from whence_server.telemetry.spans.children import make_child_span
from whence_server.telemetry.spans.origin import Origin
from whence_server.telemetry.spans.steps import count_step_spans
from whence_server.telemetry.spans.tally import Tally

STEPS_PER_BLOCK = 512
"""Steps of a full block; 100,000 steps make fewer than 200 blocks."""

_MAX_TALLIES = 1_024
_STEPS_AT_ONCE = 256


def count_blocks(num_steps: int) -> int:
    """Return the number of blocks for a number of steps."""
    return -(-num_steps // STEPS_PER_BLOCK)


class BlockSpans:
    """Sums of steps, from which a span is made whenever a block is full.

    The sums are kept in memory while entries come in order. If they are missing (after a
    restart, or when entries come again), they are computed again from the journal, so that spans
    depend on the journal alone.

    Args:
        journal: read for earlier steps of a block.
        step_spans: most `decode_step` spans of one generation; None is no bound.
        summary: put the summary of its steps on each span.
    """

    def __init__(
        self, journal: GenerationReader, step_spans: int | None, *, summary: bool = True
    ) -> None:
        self._journal = journal
        self._step_spans = step_spans
        self._summary = summary
        self._tallies: OrderedDict[tuple[str, int], Tally] = OrderedDict()

    async def add(self, origin: Origin, step: Step, offset: int) -> Span | None:
        """Add a step that has no span of its own; return the block's span if the step is its last.

        Raises:
            GenerationNotFoundError: the generation was deleted.
        """
        first_index = self._find_first_index(origin, step.sequence_index, step.index)
        key = (origin.generation_id, step.sequence_index)
        tally = self._tallies.pop(key, None)
        if step.index == first_index:
            tally = Tally(origin.start_time_ns, step)
        elif tally is not None and tally.last_index == step.index - 1:
            tally.add(step)
        else:
            tally = await self._sum_up_again(origin, step.sequence_index, step.index, offset + 1)
        if tally is None:
            return None
        if step.index == first_index + STEPS_PER_BLOCK - 1:
            return self._make_span(origin, tally)
        self._keep(key, tally)
        return None

    async def make_rest(
        self, origin: Origin, bounds: Mapping[int, SequenceBounds], finished_offset: int
    ) -> list[Span]:
        """Return the spans of blocks that were not full when the generation ended.

        Raises:
            GenerationNotFoundError: the generation was deleted.
        """
        spans = []
        for sequence_index, bound in bounds.items():
            last_index = bound.last.index
            if last_index < count_step_spans(origin, sequence_index, self._step_spans):
                continue
            first_index = self._find_first_index(origin, sequence_index, last_index)
            if last_index == first_index + STEPS_PER_BLOCK - 1:
                continue
            tally = self._tallies.pop((origin.generation_id, sequence_index), None)
            if tally is None or tally.last_index != last_index:
                tally = await self._sum_up_again(
                    origin, sequence_index, last_index, finished_offset
                )
            if tally is not None:
                spans.append(self._make_span(origin, tally))
        return spans

    def forget(self, generation_id: str) -> None:
        """Remove the sums of a deleted generation."""
        for key in [key for key in self._tallies if key[0] == generation_id]:
            del self._tallies[key]

    def _find_first_index(self, origin: Origin, sequence_index: int, index: int) -> int:
        """Return the index of the first step of a step's block."""
        num_own = count_step_spans(origin, sequence_index, self._step_spans)
        return index - (index - num_own) % STEPS_PER_BLOCK

    async def _sum_up_again(
        self, origin: Origin, sequence_index: int, index: int, before_offset: int
    ) -> Tally | None:
        """Sum up the journal's steps from a block's first to this one.

        The pages hold steps of other sequences as well. Their sums are kept if the pages hold
        their blocks completely, so that the pages are not read again.
        """
        steps: dict[int, list[Step]] = {}
        whole: set[int] = set()
        first_indices = {sequence_index: self._find_first_index(origin, sequence_index, index)}
        async for page in read_pages_backward(self._journal, origin.generation_id, before_offset):
            for step in reversed(page):
                other = step.sequence_index
                if step.index < count_step_spans(origin, other, self._step_spans):
                    whole.add(other)
                    continue
                if other not in first_indices:
                    first_indices[other] = self._find_first_index(origin, other, step.index)
                if step.index >= first_indices[other]:
                    steps.setdefault(other, []).append(step)
                if step.index <= first_indices[other]:
                    whole.add(other)
            if sequence_index in whole:
                break
        tallies = {
            other: await _sum_up(origin, found)
            for other, found in steps.items()
            if other in whole or other == sequence_index
        }
        wanted = tallies.pop(sequence_index, None)
        for other, tally in tallies.items():
            is_full = tally.last_index - tally.first_index == STEPS_PER_BLOCK - 1
            if not is_full and (origin.generation_id, other) not in self._tallies:
                self._keep((origin.generation_id, other), tally)
        return wanted

    def _make_span(self, origin: Origin, tally: Tally) -> Span:
        sequence_index = tally.sequence_index
        summary = tally.likelihood.summarise(origin.names) if self._summary else None
        return make_child_span(
            origin,
            names.DECODE_BLOCK,
            origin.ids.get_decode_block_id(sequence_index, tally.first_index),
            {names.STEP_SUMMARY: summary, **tally.make_attributes()},
            times=(tally.start, tally.end),
            parent_span_id=origin.ids.get_decode_id(sequence_index),
        )

    def _keep(self, key: tuple[str, int], tally: Tally) -> None:
        self._tallies[key] = tally
        if len(self._tallies) > _MAX_TALLIES:
            self._tallies.popitem(last=False)


async def _sum_up(origin: Origin, newest_first: list[Step]) -> Tally:
    tally = Tally(origin.start_time_ns, newest_first[-1])
    for number, step in enumerate(newest_first[-2::-1]):
        if number % _STEPS_AT_ONCE == 0:
            await asyncio.sleep(0)  # the event loop runs its other tasks
        tally.add(step)
    return tally
