"""`decode_block` spans: what stands for the steps that have no span of their own."""

from collections import OrderedDict
from collections.abc import Mapping

from opentelemetry.proto.trace.v1.trace_pb2 import Span

from whence.v1.step_pb2 import Step
from whence_server.telemetry.journal import GenerationReader
from whence_server.telemetry.spans import names
from whence_server.telemetry.spans.bounds import SequenceBounds, pages_backward
from whence_server.telemetry.spans.children import child_span
from whence_server.telemetry.spans.origin import Origin
from whence_server.telemetry.spans.steps import num_step_spans
from whence_server.telemetry.spans.tally import Tally

STEPS_PER_BLOCK = 512
"""100,000 steps make fewer than 200 blocks."""

_MAX_TALLIES = 1_024


def num_blocks(num_steps: int) -> int:
    """Say how many blocks so many steps make."""
    return -(-num_steps // STEPS_PER_BLOCK)


class BlockSpans:
    """Sums up steps, and makes a span whenever a block is full.

    The sums are kept in memory while entries come in order. Where they are missing (after a
    restart, or when entries come again) they are made anew from the journal, so that the spans
    are functions of what it holds and of nothing else.

    Args:
        journal: read for steps that came before.
        step_spans: at most so many `decode_step` spans for one generation; None is no bound.
    """

    def __init__(self, journal: GenerationReader, step_spans: int | None) -> None:
        self._journal = journal
        self._step_spans = step_spans
        self._tallies: OrderedDict[tuple[str, int], Tally] = OrderedDict()

    async def add(self, origin: Origin, step: Step, offset: int) -> Span | None:
        """Take in a step beyond those with spans; gives the block's span if it is the last.

        Raises:
            GenerationNotFoundError: the generation was deleted.
        """
        first_index = self._first_index(origin, step.sequence_index, step.index)
        key = (origin.generation_id, step.sequence_index)
        tally = self._tallies.pop(key, None)
        if step.index == first_index:
            tally = Tally(origin.start_time_ns, step)
        elif tally is not None and tally.last_index == step.index - 1:
            tally.add(step)
        else:
            tally = await self._recalled(origin, step.sequence_index, step.index, offset + 1)
        if tally is None:
            return None
        if step.index == first_index + STEPS_PER_BLOCK - 1:
            return _block_span(origin, tally)
        self._keep(key, tally)
        return None

    async def rest(
        self, origin: Origin, bounds: Mapping[int, SequenceBounds], finished_offset: int
    ) -> list[Span]:
        """Return the spans of blocks that the generation's end left unfilled.

        Raises:
            GenerationNotFoundError: the generation was deleted.
        """
        spans = []
        for sequence_index, bound in bounds.items():
            last_index = bound.last.index
            if last_index < num_step_spans(origin, sequence_index, self._step_spans):
                continue
            first_index = self._first_index(origin, sequence_index, last_index)
            if last_index == first_index + STEPS_PER_BLOCK - 1:
                continue
            tally = self._tallies.pop((origin.generation_id, sequence_index), None)
            if tally is None or tally.last_index != last_index:
                tally = await self._recalled(origin, sequence_index, last_index, finished_offset)
            if tally is not None:
                spans.append(_block_span(origin, tally))
        return spans

    def forget(self, generation_id: str) -> None:
        """Keep nothing of a generation that was deleted."""
        for key in [key for key in self._tallies if key[0] == generation_id]:
            del self._tallies[key]

    def _first_index(self, origin: Origin, sequence_index: int, index: int) -> int:
        """The index of the first step of the block that a step is in."""
        num_own = num_step_spans(origin, sequence_index, self._step_spans)
        return index - (index - num_own) % STEPS_PER_BLOCK

    async def _recalled(
        self, origin: Origin, sequence_index: int, index: int, before_offset: int
    ) -> Tally | None:
        """Sum up the journal's steps from the block's first to this one.

        Other sequences' steps lie between these. Their sums are kept too, where the same pages
        hold them whole: each would otherwise read the same pages again.
        """
        steps: dict[int, list[Step]] = {}
        whole: set[int] = set()
        first_indices = {sequence_index: self._first_index(origin, sequence_index, index)}
        async for page in pages_backward(self._journal, origin.generation_id, before_offset):
            for step in reversed(page):
                other = step.sequence_index
                if step.index < num_step_spans(origin, other, self._step_spans):
                    whole.add(other)
                    continue
                if other not in first_indices:
                    first_indices[other] = self._first_index(origin, other, step.index)
                if step.index >= first_indices[other]:
                    steps.setdefault(other, []).append(step)
                if step.index <= first_indices[other]:
                    whole.add(other)
            if sequence_index in whole:
                break
        tallies = {
            other: _tally(origin, found)
            for other, found in steps.items()
            if other in whole or other == sequence_index
        }
        wanted = tallies.pop(sequence_index, None)
        for other, tally in tallies.items():
            is_full = tally.last_index - tally.first_index == STEPS_PER_BLOCK - 1
            if not is_full and (origin.generation_id, other) not in self._tallies:
                self._keep((origin.generation_id, other), tally)
        return wanted

    def _keep(self, key: tuple[str, int], tally: Tally) -> None:
        self._tallies[key] = tally
        if len(self._tallies) > _MAX_TALLIES:
            self._tallies.popitem(last=False)


def _tally(origin: Origin, newest_first: list[Step]) -> Tally:
    tally = Tally(origin.start_time_ns, newest_first[-1])
    for step in newest_first[-2::-1]:
        tally.add(step)
    return tally


def _block_span(origin: Origin, tally: Tally) -> Span:
    sequence_index = tally.sequence_index
    return child_span(
        origin,
        names.DECODE_BLOCK,
        origin.ids.decode_block(sequence_index, tally.first_index),
        tally.attributes(),
        times=(tally.start, tally.end),
        parent_span_id=origin.ids.decode(sequence_index),
    )
