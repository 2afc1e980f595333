"""Encoder of journal entries as spans."""

from collections import OrderedDict

from google.protobuf.message import DecodeError

from whence.v1.call_pb2 import Call
from whence.v1.generation_pb2 import BeamRound, GenerationFinished, GenerationStarted
from whence.v1.occurrence_pb2 import Occurrence
from whence.v1.step_pb2 import Step
from whence_server.domain.entries import Entry, EntryKind
from whence_server.domain.errors import (
    GenerationNotFoundError,
    RecordDamagedError,
)
from whence_server.domain.telemetry import ContentCapture
from whence_server.telemetry.journal import GenerationReader, UnreadableEntryError
from whence_server.telemetry.spans.beams import make_beam_round_span
from whence_server.telemetry.spans.blocks import BlockSpans
from whence_server.telemetry.spans.bounds import read_sequence_bounds
from whence_server.telemetry.spans.genai import make_generation_span
from whence_server.telemetry.spans.occurrences import read_occurrences
from whence_server.telemetry.spans.origin import Origin, read_origin
from whence_server.telemetry.spans.phases import make_phase_spans
from whence_server.telemetry.spans.span_events import make_generation_events
from whence_server.telemetry.spans.spans import (
    describe_span,
    encode_span,
    make_decode_span,
    make_server_span,
)
from whence_server.telemetry.spans.steps import StepSpans, count_step_spans

DEFAULT_STEP_SPANS = 1_000
_MAX_ORIGINS = 4_096
_STARTED = frozenset({EntryKind.STARTED})


class SpanEncoder:
    """Encoder of journal entries as spans, each a function of the entry and its generation's start.

    Args:
        journal: read for the start of generations that are not cached, for each sequence's
            first and last step, and for a block's steps after a restart.
        step_spans: most `decode_step` spans of one generation, and most of its `beam_round`
            spans; None is no bound.
        step_candidates: put candidates on the spans of steps.
        content: signals that carry prompts, outputs and tokens' texts.
    """

    def __init__(
        self,
        journal: GenerationReader,
        step_spans: int | None = DEFAULT_STEP_SPANS,
        *,
        step_candidates: bool = True,
        content: ContentCapture = ContentCapture.NO_CONTENT,
    ) -> None:
        self._journal = journal
        self._step_spans = step_spans
        self._content = content.on_spans
        self._steps = StepSpans(candidates=step_candidates, text=content.on_spans)
        self._blocks = BlockSpans(journal, step_spans)
        self._origins: OrderedDict[str, Origin | None] = OrderedDict()
        self._without_occurrences: set[str] = set()
        """Generations whose start was encoded here, and no occurrence since."""

    async def encode(self, entry: Entry) -> list[bytes]:
        """Encode an entry's spans, each as a ScopeSpans message that holds it alone.

        Deleted entries and entries of unsampled generations have no span.

        Raises:
            UnreadableEntryError: the payload is not a message of the entry's kind.
        """
        try:
            if entry.kind is EntryKind.STEP:
                return await self._encode_step(entry)
            if entry.kind is EntryKind.BEAM_ROUND:
                return await self._encode_beam_round(entry)
            if entry.kind is EntryKind.FINISHED:
                return await self._encode_finished(entry)
            if entry.kind is EntryKind.CALL:
                return self._encode_call(entry)
            if entry.kind is EntryKind.STARTED and entry.payload:
                started = GenerationStarted.FromString(entry.payload)
                self._remember(entry.generation_id, read_origin(started))
                self._without_occurrences.add(entry.generation_id)
            if entry.kind is EntryKind.OCCURRENCE:
                self._without_occurrences.discard(entry.generation_id)
        except GenerationNotFoundError:  # deleted since the entry was read
            return []
        except (DecodeError, ValueError, RecordDamagedError) as error:
            raise UnreadableEntryError(
                f"entry {entry.position} (generation {entry.generation_id!r}, "
                f"{entry.kind.name}) cannot be made into spans: {error}"
            ) from error
        if entry.kind is EntryKind.DELETED:
            self._origins.pop(entry.generation_id, None)
            self._without_occurrences.discard(entry.generation_id)
            self._blocks.forget(entry.generation_id)
        return []

    def describe(self, piece: bytes) -> str:
        """Return a span's ids and name, from the ScopeSpans message that holds it alone."""
        return describe_span(piece)

    async def _encode_step(self, entry: Entry) -> list[bytes]:
        origin = await self._find_origin(entry.generation_id)
        if origin is None or not origin.sampled or not entry.payload:
            return []
        step = Step.FromString(entry.payload)
        if step.index >= count_step_spans(origin, step.sequence_index, self._step_spans):
            block = await self._blocks.add(origin, step, entry.offset)
            return [] if block is None else [encode_span(block)]
        return [self._steps.encode(origin, step)]

    async def _encode_beam_round(self, entry: Entry) -> list[bytes]:
        origin = await self._find_origin(entry.generation_id)
        if origin is None or not origin.sampled or not entry.payload:
            return []
        beam_round = BeamRound.FromString(entry.payload)
        if self._step_spans is not None and beam_round.index >= self._step_spans:
            return []
        span = make_beam_round_span(origin, beam_round)
        return [] if span is None else [encode_span(span)]

    async def _encode_finished(self, entry: Entry) -> list[bytes]:
        origin = await self._find_origin(entry.generation_id)
        if origin is None or not origin.sampled or not entry.payload:
            return []
        started = await read_started(self._journal, entry.generation_id)
        if started is None:
            return []
        finished = GenerationFinished.FromString(entry.payload)
        results = {result.sequence_index: result for result in finished.sequences}
        bounds = await read_sequence_bounds(
            self._journal,
            entry.generation_id,
            entry.offset,
            results.keys() | range(origin.num_sequences),
        )
        decodes = [
            make_decode_span(origin, bound, results.get(index), self._step_spans)
            for index, bound in bounds.items()
        ]
        blocks = await self._blocks.make_rest(origin, bounds, entry.offset)
        phases = make_phase_spans(origin, finished, decodes)
        events = make_generation_events(
            started,
            finished,
            bounds,
            await self._read_occurrences(entry),
            content=self._content,
        )
        parent = make_generation_span(
            origin,
            started,
            finished,
            bounds,
            (*phases, *decodes),
            events=events,
            content=self._content,
        )
        return [encode_span(span) for span in (parent, *phases, *decodes, *blocks)]

    async def _read_occurrences(self, finished: Entry) -> list[Occurrence]:
        """Return a generation's occurrences, without a look at the journal if there are none."""
        if finished.generation_id in self._without_occurrences:
            return []
        return await read_occurrences(self._journal, finished)

    def _encode_call(self, entry: Entry) -> list[bytes]:
        if not entry.payload:
            return []
        span = make_server_span(Call.FromString(entry.payload))
        return [] if span is None else [encode_span(span)]

    async def _find_origin(self, generation_id: str) -> Origin | None:
        """Return a generation's origin; None if its start is deleted or unreadable."""
        origins = self._origins
        if generation_id in origins:
            origins.move_to_end(generation_id)
            return origins[generation_id]
        try:
            started = await read_started(self._journal, generation_id)
            origin = None if started is None else read_origin(started)
        except (DecodeError, ValueError):
            origin = None
        self._remember(generation_id, origin)
        return origin

    def _remember(self, generation_id: str, origin: Origin | None) -> None:
        self._origins[generation_id] = origin
        if len(self._origins) > _MAX_ORIGINS:
            oldest, _ = self._origins.popitem(last=False)
            self._without_occurrences.discard(oldest)


async def read_started(journal: GenerationReader, generation_id: str) -> GenerationStarted | None:
    """Read a generation's start; None if it was deleted.

    Raises:
        DecodeError: the payload is no GenerationStarted.
    """
    try:
        entries = await journal.read(generation_id, 0, 1, _STARTED)
    except GenerationNotFoundError:
        return None
    if not entries or not entries[0].payload:
        return None
    return GenerationStarted.FromString(entries[0].payload)
