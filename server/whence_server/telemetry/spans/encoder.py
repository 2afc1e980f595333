"""Encoder of journal entries as spans."""

from collections.abc import Sequence

from google.protobuf.message import DecodeError

from whence.summary import DEFAULT_UNLIKELY_BELOW, Likelihoods
from whence.v1.call_pb2 import Call
from whence.v1.generation_pb2 import BeamRound, GenerationFinished
from whence.v1.occurrence_pb2 import Occurrence
from whence_server.domain.entries import Entry, EntryKind
from whence_server.domain.errors import (
    GenerationNotFoundError,
    RecordDamagedError,
)
from whence_server.domain.telemetry import ContentCapture, StepForm
from whence_server.telemetry.journal import (
    GenerationReader,
    UnreadableEntryError,
    VocabularyReader,
)
from whence_server.telemetry.spans.ahead import (
    AT_INDEX,
    AT_SEQUENCE_INDEX,
    ReadStep,
    StepsAhead,
)
from whence_server.telemetry.spans.beams import make_beam_round_span
from whence_server.telemetry.spans.blocks import BlockSpans
from whence_server.telemetry.spans.bounds import SequenceBounds, read_sequence_bounds
from whence_server.telemetry.spans.decode_parts import DecodeParts
from whence_server.telemetry.spans.explanations import make_explanation_span
from whence_server.telemetry.spans.genai import make_generation_span
from whence_server.telemetry.spans.likelihoods import LikelihoodBook
from whence_server.telemetry.spans.occurrences import Occurrences
from whence_server.telemetry.spans.origin import Origin
from whence_server.telemetry.spans.origins import Origins, read_started
from whence_server.telemetry.spans.parts import Parts, encode_decode_spans
from whence_server.telemetry.spans.phases import make_phase_spans
from whence_server.telemetry.spans.span_events import make_generation_events
from whence_server.telemetry.spans.spans import (
    describe_span,
    encode_span,
    make_decode_span,
    make_server_span,
)
from whence_server.telemetry.spans.step_events import StepEvents
from whence_server.telemetry.spans.steps import StepSpans, count_step_spans
from whence_server.telemetry.spans.token_arrays import read_token_arrays
from whence_server.telemetry.spans.token_names import NameBook

DEFAULT_STEP_SPANS = 1_000
_STEP = EntryKind.STEP  # a member takes longer to look up than to compare


class SpanEncoder:
    """Encoder of journal entries as spans, each a function of the entry and its generation's start.

    Args:
        journal: read for the start of generations that are not cached, for each sequence's
            first and last step, and for a block's steps after a restart.
        step_spans: most steps of one generation that are spans or events, and most of its
            `beam_round` spans; None is no bound.
        step_form: steps are spans, events of their sequence's span, or both.
        token_arrays: most tokens in the arrays of a generation's span; 0 is none.
        step_candidates: put candidates on the spans and events of steps.
        step_summary: put summaries on spans: one line for a person.
        token_span_names: put the token's name in the name of a step's span.
        unlikely_below: probability below which a token is flagged as unlikely.
        content: signals that carry prompts, outputs and tokens' texts.
        vocabularies: texts of tokens for summaries and names; None names tokens by id.
    """

    def __init__(
        self,
        journal: GenerationReader,
        step_spans: int | None = DEFAULT_STEP_SPANS,
        *,
        step_form: StepForm = StepForm.SPANS,
        token_arrays: int = 0,
        step_candidates: bool = True,
        step_summary: bool = True,
        token_span_names: bool = False,
        unlikely_below: float = DEFAULT_UNLIKELY_BELOW,
        content: ContentCapture = ContentCapture.NO_CONTENT,
        vocabularies: VocabularyReader | None = None,
    ) -> None:
        self._journal = journal
        self._step_spans = step_spans
        self._content = content.on_spans
        # Imported here: only a process that exports spans needs numpy.
        from whence_server.telemetry.spans.float32 import shorten_all

        self._summary = step_summary
        names = NameBook(vocabularies if content.on_spans else None)
        self._origins = Origins(journal, names)
        self._occurrences = Occurrences(journal)
        self._ahead = StepsAhead(shorten_all, self._origins.cached, candidates=step_candidates)
        self._steps = StepSpans(
            shorten_all,
            candidates=step_candidates,
            text=content.on_spans,
            summary=step_summary,
            token_names=token_span_names,
            unlikely_below=unlikely_below,
        )
        self._form = step_form
        self._has_events = step_form.has_events  # asked at every step
        self._token_arrays = token_arrays
        self._candidates = step_candidates
        events = StepEvents(
            shorten_all,
            candidates=step_candidates,
            summary=step_summary,
            unlikely_below=unlikely_below,
        )
        max_events = DEFAULT_STEP_SPANS if step_spans is None else step_spans
        self._parts = DecodeParts(journal, self._ahead, events, max_events)
        self._blocks = BlockSpans(journal, step_spans, summary=step_summary)
        self._likelihoods = LikelihoodBook(journal, unlikely_below)

    def expect(self, entries: Sequence[Entry]) -> None:
        """Note the entries that will be encoded next, in order, so that steps are read ahead."""
        self._ahead.expect(entries)

    async def encode(self, entry: Entry) -> list[bytes]:
        """Encode an entry's spans, each as a ScopeSpans message that holds it alone.

        Deleted entries and entries of unsampled generations have no span.

        Raises:
            UnreadableEntryError: the payload is not a message of the entry's kind.
        """
        try:
            if entry.kind is not _STEP:
                return await self._encode_other(entry)
            # In this coroutine, because another one would take time at every step.
            origin = self._origins.cached.get(entry.generation_id)
            if origin is None:
                origin = await self._origins.find(entry.generation_id)
            if origin is None or not origin.sampled or not entry.payload:
                return []
            read = self._ahead.read(entry)
            self._likelihoods.add(entry.generation_id, read)
            if self._step_spans is None or read[AT_INDEX] < count_step_spans(
                origin, read[AT_SEQUENCE_INDEX], self._step_spans
            ):
                if self._has_events:
                    return await self._encode_event(origin, read, entry.offset)
                return [self._steps.encode(origin, read)]
            block = await self._blocks.add(origin, read[0], entry.offset)
            return [] if block is None else [encode_span(block)]
        except GenerationNotFoundError:  # deleted since the entry was read
            return []
        except (DecodeError, ValueError, RecordDamagedError) as error:
            raise UnreadableEntryError(
                f"entry {entry.position} (generation {entry.generation_id!r}, "
                f"{entry.kind.name}) cannot be made into spans: {error}"
            ) from error

    def describe(self, piece: bytes) -> str:
        """Return a span's ids and name, from the ScopeSpans message that holds it alone."""
        return describe_span(piece)

    async def _encode_other(self, entry: Entry) -> list[bytes]:
        match entry.kind:
            case EntryKind.BEAM_ROUND:
                return await self._encode_beam_round(entry)
            case EntryKind.FINISHED:
                return await self._encode_finished(entry)
            case EntryKind.CALL:
                return self._encode_call(entry)
            case EntryKind.STARTED if entry.payload:
                origin = await self._origins.begin(entry)
                self._occurrences.begin(entry.generation_id)
                if origin.sampled:
                    self._likelihoods.begin(entry.generation_id)
            case EntryKind.OCCURRENCE:
                self._occurrences.note(entry.generation_id)
                return await self._encode_occurrence(entry)
            case EntryKind.DELETED:
                self._origins.forget(entry.generation_id)
                self._occurrences.note(entry.generation_id)
                self._blocks.forget(entry.generation_id)
                self._parts.forget(entry.generation_id)
                self._likelihoods.forget(entry.generation_id)
        return []

    async def _encode_event(self, origin: Origin, read: ReadStep, offset: int) -> list[bytes]:
        part = await self._parts.add(origin, read, offset)
        spans = [] if part is None else [part]
        if self._form.has_spans:
            spans.append(self._steps.encode(origin, read))
        return spans

    async def _encode_occurrence(self, entry: Entry) -> list[bytes]:
        try:
            occurrence = Occurrence.FromString(entry.payload)
        except DecodeError:
            # Left out, as on the generation's span.
            return []
        if not occurrence.HasField("explained"):
            return []
        origin = await self._origins.find(entry.generation_id)
        if origin is None or not origin.sampled:
            return []
        explained = occurrence.explained.explanation.span
        num_own = count_step_spans(origin, explained.sequence_index, self._step_spans)
        has_span = self._form.has_spans and explained.begin_step < num_own
        span = make_explanation_span(origin, occurrence, has_step_span=has_span)
        return [] if span is None else [encode_span(span)]

    async def _encode_beam_round(self, entry: Entry) -> list[bytes]:
        origin = await self._origins.find(entry.generation_id)
        if origin is None or not origin.sampled or not entry.payload:
            return []
        beam_round = BeamRound.FromString(entry.payload)
        if self._step_spans is not None and beam_round.index >= self._step_spans:
            return []
        span = make_beam_round_span(origin, beam_round, summary=self._summary)
        return [] if span is None else [encode_span(span)]

    async def _encode_finished(self, entry: Entry) -> list[bytes]:
        origin = await self._origins.find(entry.generation_id)
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
        counted = await self._likelihoods.finish(entry.generation_id, bounds, entry.offset)
        parts = await self._finish_parts(origin, bounds, entry.offset)
        decodes = {
            index: make_decode_span(
                origin,
                bound,
                results.get(index),
                step_spans=self._step_spans,
                summary=self._summarise(origin, Likelihoods([counted[index]])),
                parts=parts.get(index),
                form=self._form,
            )
            for index, bound in bounds.items()
        }
        blocks = await self._blocks.make_rest(origin, bounds, entry.offset)
        phases = make_phase_spans(origin, finished, decodes.values())
        likelihoods = Likelihoods(counted.values())
        events = make_generation_events(
            started,
            finished,
            bounds,
            await self._occurrences.read(entry),
            content=self._content,
        )
        parent = make_generation_span(
            origin,
            started,
            finished,
            bounds,
            (*phases, *decodes.values()),
            events=events,
            content=self._content,
            likelihoods=likelihoods,
            summary=self._summarise(origin, likelihoods),
            arrays=await read_token_arrays(
                self._journal,
                self._ahead,
                origin,
                self._token_arrays,
                candidates=self._candidates,
            ),
        )
        return [
            parent,
            *(encode_span(span) for span in phases),
            *encode_decode_spans(origin, decodes, parts),
            *(encode_span(span) for span in blocks),
        ]

    async def _finish_parts(
        self, origin: Origin, bounds: dict[int, SequenceBounds], finished_offset: int
    ) -> dict[int, Parts]:
        """Return the parts of each sequence's events; none where steps are no events."""
        found: dict[int, Parts] = {}
        if not self._form.has_events:
            return found
        for index, bound in bounds.items():
            num_own = count_step_spans(origin, index, self._step_spans)
            num_events = min(bound.last.index + 1, num_own)
            parts = await self._parts.finish(origin, index, num_events, finished_offset)
            if parts is not None:
                found[index] = parts
        return found

    def _summarise(self, origin: Origin, likelihoods: Likelihoods) -> str | None:
        return likelihoods.summarise(origin.names) if self._summary else None

    def _encode_call(self, entry: Entry) -> list[bytes]:
        if not entry.payload:
            return []
        span = make_server_span(Call.FromString(entry.payload))
        return [] if span is None else [encode_span(span)]
