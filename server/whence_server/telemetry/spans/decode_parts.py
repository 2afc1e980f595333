"""Events of running sequences, split into parts; one `decode` span holds one part."""

from collections import OrderedDict
from collections.abc import AsyncGenerator
from contextlib import aclosing

from whence.v1.step_pb2 import Step
from whence_server.telemetry.journal import GenerationReader
from whence_server.telemetry.spans.ahead import ReadStep, StepsAhead
from whence_server.telemetry.spans.origin import Origin
from whence_server.telemetry.spans.pages import read_step_pieces
from whence_server.telemetry.spans.parts import Part, Parts, encode_part_span
from whence_server.telemetry.spans.step_events import StepEvents
from whence_server.telemetry.spans.steps import compute_step_interval

MAX_PART_BYTES = 997_000
"""Most bytes of the events of one span; its attributes fit into the rest of a megabyte."""

EVENTS_A_STEP = 2
"""Events of one step: its start and its token."""

_MAX_KEPT_BYTES = 64_000_000
_MAX_SEQUENCES = 16_384


class DecodeParts:
    """Events of running sequences, from which spans are made.

    The events are kept in memory while steps come in order. If they are missing (after a restart,
    when entries come again, or when all of them take too much memory), they are made again from
    the journal, so that spans depend on the journal alone.

    Args:
        journal: read for earlier steps of a sequence.
        ahead: reader of steps.
        events: encoder of a step's events.
        max_events: most events of a part, unless it holds one step.
        max_bytes: most bytes of a part's events, unless one step has more.
    """

    def __init__(
        self,
        journal: GenerationReader,
        ahead: StepsAhead,
        events: StepEvents,
        max_events: int,
        max_bytes: int = MAX_PART_BYTES,
    ) -> None:
        self._journal = journal
        self._ahead = ahead
        self._events = events
        self._max_steps = max_events // EVENTS_A_STEP
        self._max_bytes = max_bytes
        self._running: OrderedDict[tuple[str, int], Parts] = OrderedDict()
        self._num_bytes = 0

    async def add(self, origin: Origin, read: ReadStep, offset: int) -> bytes | None:
        """Add a step; return the span of a further part if the step is the first after it.

        Raises:
            GenerationNotFoundError: the generation was deleted.
            ValueError: the step's times are negative or exceed 64 bits; it is left out.
        """
        step, events = read[0], self._events.encode(origin, read)
        key = (origin.generation_id, step.sequence_index)
        parts = self._take(key)
        if step.index == 0:
            parts = None  # of a first step that comes again, nothing is kept
        elif parts is None or parts.newest.last_index != step.index - 1:
            parts = await self._gather(origin, step.sequence_index, step.index, offset)
        parts, full = self._append(origin, parts, step, events)
        self._keep(key, parts)
        if full is None or full.number == 0:
            return None  # the first is sent with the sequence's end
        await self._restore(origin, step.sequence_index, full, offset)
        return encode_part_span(origin, step.sequence_index, full)

    async def finish(
        self, origin: Origin, sequence_index: int, num_steps: int, finished_offset: int
    ) -> Parts | None:
        """Return a sequence's first and newest part; None if no step is an event.

        Args:
            origin: the generation's place in its trace.
            sequence_index: index of the sequence.
            num_steps: number of its steps that are events.
            finished_offset: offset of the generation's FINISHED entry.

        Raises:
            GenerationNotFoundError: the generation was deleted.
        """
        if num_steps == 0:
            return None
        parts = self._take((origin.generation_id, sequence_index))
        if parts is None or parts.newest.last_index != num_steps - 1:
            parts = await self._gather(origin, sequence_index, num_steps, finished_offset)
        if parts is not None:
            for part in parts.list_parts():
                await self._restore(origin, sequence_index, part, finished_offset)
        return parts

    def forget(self, generation_id: str) -> None:
        """Remove the events of a deleted generation."""
        for key in [key for key in self._running if key[0] == generation_id]:
            self._take(key)

    def _append(
        self, origin: Origin, parts: Parts | None, step: Step, events: bytes
    ) -> tuple[Parts, Part | None]:
        """Append a step; return the parts, and the part that was full before it."""
        start, end = compute_step_interval(origin.start_time_ns, step.index, step.timing)
        full = None
        if parts is None:
            part = Part(0, step.index, start)
            parts = Parts(part, part)
        elif self._is_full(parts.newest, len(events)):
            full = parts.newest
            parts.newest = Part(full.number + 1, step.index, start)
        parts.newest.add(step, end, events)
        return parts, full

    def _is_full(self, part: Part, more_bytes: int) -> bool:
        return part.num_steps >= self._max_steps or part.num_bytes + more_bytes > self._max_bytes

    async def _gather(
        self, origin: Origin, sequence_index: int, end_index: int, before_offset: int
    ) -> Parts | None:
        """Gather the journal's steps of a sequence from its first to the one before an index."""
        parts: Parts | None = None
        indices = range(end_index)
        async for step, events in self._encode_again(
            origin, sequence_index, indices, before_offset
        ):
            parts, _ = self._append(origin, parts, step, events)
        return parts

    async def _restore(
        self, origin: Origin, sequence_index: int, part: Part, before_offset: int
    ) -> None:
        """Make a part's events again if they were dropped."""
        if part.events is None:
            indices = range(part.first_index, part.last_index + 1)
            made = self._encode_again(origin, sequence_index, indices, before_offset)
            part.events = [events async for _, events in made]

    async def _encode_again(
        self, origin: Origin, sequence_index: int, indices: range, before_offset: int
    ) -> AsyncGenerator[tuple[Step, bytes], None]:
        """Yield the journal's steps of a sequence with their events, without unreadable ones."""
        # A step's offset is larger than its index, because each step has an entry.
        pieces = read_step_pieces(self._journal, origin.generation_id, after_offset=indices.start)
        async with aclosing(pieces):
            async for piece in pieces:
                for entry, read in self._ahead.read_again(piece):
                    if entry.offset >= before_offset:
                        return
                    step = read[0]
                    if step.sequence_index != sequence_index or step.index < indices.start:
                        continue
                    if step.index >= indices.stop:
                        return
                    if events := self._encode(origin, read):
                        yield step, events

    def _encode(self, origin: Origin, read: ReadStep) -> bytes:
        """Serialise a step's events; b"" if its times are not possible."""
        try:
            return self._events.encode(origin, read)
        except ValueError:
            return b""

    def _take(self, key: tuple[str, int]) -> Parts | None:
        parts = self._running.pop(key, None)
        if parts is not None:
            self._num_bytes -= parts.count_kept_bytes()
        return parts

    def _keep(self, key: tuple[str, int], parts: Parts) -> None:
        self._running[key] = parts
        self._num_bytes += parts.count_kept_bytes()
        if len(self._running) > _MAX_SEQUENCES:
            self._take(next(iter(self._running)))
        if self._num_bytes > _MAX_KEPT_BYTES:
            self._drop_events()

    def _drop_events(self) -> None:
        """Drop the events of sequences, those that waited longest first, until half are left.

        What a part holds stays known, so that each part is made again at most once.
        """
        for parts in self._running.values():
            if self._num_bytes <= _MAX_KEPT_BYTES // 2:
                return
            self._num_bytes -= parts.count_kept_bytes()
            for part in parts.list_parts():
                part.events = None
