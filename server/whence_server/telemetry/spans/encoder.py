"""Journal entries in, encoded spans out."""

from collections import OrderedDict

from google.protobuf.message import DecodeError

from whence.v1.call_pb2 import Call
from whence.v1.generation_pb2 import BeamRound, GenerationFinished, GenerationStarted
from whence.v1.step_pb2 import Step
from whence_server.domain.entries import Entry, EntryKind
from whence_server.domain.errors import (
    GenerationNotFoundError,
    RecordDamagedError,
)
from whence_server.domain.telemetry import ContentCapture
from whence_server.telemetry.journal import GenerationReader, UnreadableEntryError
from whence_server.telemetry.spans.beams import beam_round_span
from whence_server.telemetry.spans.blocks import BlockSpans
from whence_server.telemetry.spans.bounds import sequence_bounds
from whence_server.telemetry.spans.genai import generation_span
from whence_server.telemetry.spans.origin import Origin, read_origin
from whence_server.telemetry.spans.phases import phase_spans
from whence_server.telemetry.spans.spans import decode_span, describe_span, encode_span, server_span
from whence_server.telemetry.spans.steps import StepSpans, num_step_spans

DEFAULT_STEP_SPANS = 1_000
_MAX_ORIGINS = 4_096
_STARTED = frozenset({EntryKind.STARTED})


class SpanEncoder:
    """Makes each entry's spans from its bytes, its generation's start, and nothing else.

    Args:
        journal: read for the start of generations that are not remembered any more, for
            each sequence's first and last step, and for a block's steps after a restart.
        step_spans: at most so many `decode_step` spans for one generation, and so many
            `beam_round` spans; None is no bound, 0 is none.
        step_candidates: whether a step's span carries its candidates.
        content: where prompts, outputs and tokens' texts go.
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

    async def encode(self, entry: Entry) -> list[bytes]:
        """Encode an entry's spans, each as a ScopeSpans message that holds it alone.

        An entry whose content was deleted has none, nor has one of an unsampled generation.

        Raises:
            UnreadableEntryError: the payload cannot be understood.
        """
        try:
            if entry.kind is EntryKind.STEP:
                return await self._step(entry)
            if entry.kind is EntryKind.BEAM_ROUND:
                return await self._beam_round(entry)
            if entry.kind is EntryKind.FINISHED:
                return await self._finished(entry)
            if entry.kind is EntryKind.CALL:
                return self._call(entry)
            if entry.kind is EntryKind.STARTED and entry.payload:
                started = GenerationStarted.FromString(entry.payload)
                self._remember(entry.generation_id, read_origin(started))
        except GenerationNotFoundError:  # deleted since the entry was read
            return []
        except (DecodeError, ValueError, RecordDamagedError) as error:
            raise UnreadableEntryError(
                f"entry {entry.position} (generation {entry.generation_id!r}, "
                f"{entry.kind.name}) makes no span: {error}"
            ) from error
        if entry.kind is EntryKind.DELETED:
            self._origins.pop(entry.generation_id, None)
            self._blocks.forget(entry.generation_id)
        return []

    def describe(self, piece: bytes) -> str:
        """Return a span's ids and name, from the ScopeSpans message that holds it alone."""
        return describe_span(piece)

    async def _step(self, entry: Entry) -> list[bytes]:
        origin = await self._origin(entry.generation_id)
        if origin is None or not origin.sampled or not entry.payload:
            return []
        step = Step.FromString(entry.payload)
        if step.index >= num_step_spans(origin, step.sequence_index, self._step_spans):
            block = await self._blocks.add(origin, step, entry.offset)
            return [] if block is None else [encode_span(block)]
        return [self._steps.encode(origin, step)]

    async def _beam_round(self, entry: Entry) -> list[bytes]:
        origin = await self._origin(entry.generation_id)
        if origin is None or not origin.sampled or not entry.payload:
            return []
        beam_round = BeamRound.FromString(entry.payload)
        if self._step_spans is not None and beam_round.index >= self._step_spans:
            return []
        span = beam_round_span(origin, beam_round)
        return [] if span is None else [encode_span(span)]

    async def _finished(self, entry: Entry) -> list[bytes]:
        origin = await self._origin(entry.generation_id)
        if origin is None or not origin.sampled or not entry.payload:
            return []
        started = await read_started(self._journal, entry.generation_id)
        if started is None:
            return []
        finished = GenerationFinished.FromString(entry.payload)
        results = {result.sequence_index: result for result in finished.sequences}
        bounds = await sequence_bounds(
            self._journal,
            entry.generation_id,
            entry.offset,
            results.keys() | range(origin.num_sequences),
        )
        decodes = [
            decode_span(origin, bound, results.get(index), self._step_spans)
            for index, bound in bounds.items()
        ]
        blocks = await self._blocks.rest(origin, bounds, entry.offset)
        phases = phase_spans(origin, finished, decodes)
        parent = generation_span(
            origin, started, finished, bounds, (*phases, *decodes), content=self._content
        )
        return [encode_span(span) for span in (parent, *phases, *decodes, *blocks)]

    def _call(self, entry: Entry) -> list[bytes]:
        if not entry.payload:
            return []
        span = server_span(Call.FromString(entry.payload))
        return [] if span is None else [encode_span(span)]

    async def _origin(self, generation_id: str) -> Origin | None:
        """Return a generation's origin, or None where its start is gone or unreadable."""
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
            self._origins.popitem(last=False)


async def read_started(journal: GenerationReader, generation_id: str) -> GenerationStarted | None:
    """Read a generation's start; None where it is gone.

    Raises:
        DecodeError: it cannot be understood.
    """
    try:
        entries = await journal.read(generation_id, 0, 1, _STARTED)
    except GenerationNotFoundError:
        return None
    if not entries or not entries[0].payload:
        return None
    return GenerationStarted.FromString(entries[0].payload)
