"""TraceService: recorded generations, and events as they are recorded."""

import asyncio
from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Any

from google.protobuf import timestamp_pb2
from google.protobuf.message import DecodeError

from whence.v1 import generation_pb2, step_pb2, trace_pb2
from whence_server.domain.entries import Entry, EntryKind
from whence_server.domain.errors import (
    DrainingError,
    FieldViolation,
    InvalidRequestError,
    NotOfferedError,
    RecordDamagedError,
)
from whence_server.domain.identity import Scope
from whence_server.domain.limits import Limits
from whence_server.journal.content_hiding import READER
from whence_server.journal.journal import Journal
from whence_server.journal.rows import GenerationRow, ListFilter
from whence_server.journal.search.search import Hit, Search
from whence_server.rpc.calls import Call, Method
from whence_server.rpc.conversions import choose_page_size, require_generation_id
from whence_server.rpc.splice import (
    build_events,
    build_list_steps_response,
    build_watch_position,
    build_watch_response,
)
from whence_server.rpc.visibility import get_visible_owner, require_access, sees_content
from whence_server.rpc.watch_positions import read_positions
from whence_server.rpc.watching import (
    WatchFilter,
    stop_at_close,
)

SERVICE = "whence.v1.TraceService"

_DEFAULT_PAGE, _LARGEST_PAGE = 50, 1_000
_DEFAULT_HITS, _LARGEST_HITS = 20, 200
_NO_SEARCH = (
    "the journal is encrypted, and an index of its texts would tell what the encryption hides; "
    "list generations by model, time or label instead"
)
_DEFAULT_STEPS, _LARGEST_STEPS = 500, 5_000
# Well below the 4 MiB that a gRPC client accepts by default.
_MAX_STEPS_BYTES = 2 << 20
# Filters have the same bounds as requests.
_LIMITS = Limits()
_MAX_MODEL, _TRACE_ID, _MAX_ID = 1_024, 32, 64


class TraceServicer:
    """Servicer that reads the journal alone and needs no model."""

    def __init__(
        self, journal: Journal, closing: asyncio.Event, search: Search | None = None
    ) -> None:
        self._journal = journal
        self._closing = closing
        self._search = search

    def list_methods(self) -> list[Method[Any]]:
        """Return the service's methods."""
        return [
            Method("GetGeneration", trace_pb2.GetGenerationRequest, unary=self.get_generation),
            Method(
                "ListGenerations", trace_pb2.ListGenerationsRequest, unary=self.list_generations
            ),
            Method(
                "SearchGenerations",
                trace_pb2.SearchGenerationsRequest,
                unary=self.search_generations,
            ),
            Method("ListSteps", trace_pb2.ListStepsRequest, unary=self.list_steps),
            Method(
                "WatchGenerations",
                trace_pb2.WatchGenerationsRequest,
                stream=self.watch_generations,
            ),
            Method(
                "DeleteGeneration",
                trace_pb2.DeleteGenerationRequest,
                unary=self.delete_generation,
            ),
        ]

    async def get_generation(self, request: trace_pb2.GetGenerationRequest, call: Call) -> bytes:
        """Return the complete start and finish of one generation, and its occurrences."""
        call.generation_id = require_generation_id(request.generation_id)
        await require_access(self._journal, call.generation_id, call.identity, Scope.READ_ALL)
        row = await self._journal.get(call.generation_id)
        entries = await self._journal.read(
            call.generation_id,
            kinds=(EntryKind.STARTED, EntryKind.FINISHED, EntryKind.OCCURRENCE),
        )
        response = trace_pb2.GetGenerationResponse(summary=make_summary_message(row))
        try:
            for entry in entries:
                if entry.kind is EntryKind.STARTED:
                    response.started.MergeFromString(entry.payload)
                elif entry.kind is EntryKind.OCCURRENCE:
                    response.occurrences.add().MergeFromString(entry.payload)
                else:
                    response.finished.MergeFromString(entry.payload)
        except DecodeError as error:
            raise RecordDamagedError(
                call.generation_id, f"an entry is not a message: {error}"
            ) from error
        if response.started.generation_id != call.generation_id:
            raise RecordDamagedError(call.generation_id, "its STARTED entry has another id")
        if not sees_content(call.identity):
            READER.hide(response)
        return response.SerializeToString()

    async def list_generations(
        self, request: trace_pb2.ListGenerationsRequest, call: Call
    ) -> bytes:
        """Return a page of summaries, newest first."""
        rows, next_page_token = await self._journal.list(
            convert_filter(request.filter, get_visible_owner(call.identity)),
            choose_page_size(request.page_size, _DEFAULT_PAGE, _LARGEST_PAGE),
            request.page_token,
        )
        response = trace_pb2.ListGenerationsResponse(
            generations=[make_summary_message(row) for row in rows],
            next_page_token=next_page_token,
        )
        if not sees_content(call.identity):
            READER.hide(response)
        return response.SerializeToString()

    async def search_generations(
        self, request: trace_pb2.SearchGenerationsRequest, call: Call
    ) -> bytes:
        """Return a page of the generations that contain a text, or most of it."""
        if self._search is None:
            raise NotOfferedError(_NO_SEARCH)
        page = await self._search.find(
            request.text,
            convert_filter(request.filter, get_visible_owner(call.identity)),
            limit=choose_page_size(request.page_size, _DEFAULT_HITS, _LARGEST_HITS),
            token=request.page_token,
        )
        return trace_pb2.SearchGenerationsResponse(
            hits=[_make_hit_message(hit) for hit in page.hits],
            next_page_token=page.next_token,
            num_entries_behind=self._search.indexer.num_entries_behind,
            is_cut=page.is_cut,
        ).SerializeToString()

    async def list_steps(self, request: trace_pb2.ListStepsRequest, call: Call) -> bytes:
        """Return a page of steps, in the order in which they were made."""
        call.generation_id = require_generation_id(request.generation_id)
        await require_access(self._journal, call.generation_id, call.identity, Scope.READ_ALL)
        await self._journal.get(call.generation_id)
        limit = choose_page_size(request.page_size, _DEFAULT_STEPS, _LARGEST_STEPS)
        kind = EntryKind.PROMPT_STEP if request.prompt else EntryKind.STEP
        entries = await self._journal.read(
            call.generation_id,
            after_offset=_read_step_token(request.page_token),
            limit=limit + 1,
            kinds=(kind,),
        )
        page = _limit_bytes(entries[:limit])
        more = len(entries) > len(page)
        try:
            for entry in page:
                step_pb2.Step.FromString(entry.payload)
        except DecodeError as error:
            raise RecordDamagedError(
                call.generation_id, f"a step is not a message: {error}"
            ) from error
        if not sees_content(call.identity):
            page = list(map(READER.hide_entry, page))
        return build_list_steps_response(page, f"after:{page[-1].offset}" if more else "")

    async def watch_generations(
        self, request: trace_pb2.WatchGenerationsRequest, call: Call
    ) -> AsyncGenerator[bytes, None]:
        """Stream the events of all generations that match the filter, as they happen."""
        asked = request.after_position
        positions = await read_positions(asked, self._journal)
        list_filter = convert_filter(request.filter, get_visible_owner(call.identity))
        wanted = WatchFilter(self._journal, list_filter, request.lifecycle_only)
        shows_content = sees_content(call.identity)

        def make_filler() -> bytes:
            return build_watch_position(positions.make_token())

        call.make_filler = make_filler
        async with aclosing(
            stop_at_close(self._journal.follow_logs(positions.reached), self._closing)
        ) as batches:
            async for log_id, entries in batches:
                for run in await wanted.select_runs(entries):
                    shown = run if shows_content else list(map(READER.hide_entry, run))
                    for event in build_events(shown):
                        position = positions.make_token(log_id, event.last.position)
                        yield build_watch_response(event, position)
                positions.reached[log_id] = entries[-1].position
        # The stream has no end of its own: OK would tell a reader that it is complete.
        raise DrainingError

    async def delete_generation(
        self, request: trace_pb2.DeleteGenerationRequest, call: Call
    ) -> bytes:
        """Destroy a generation's content; its id stays taken."""
        call.generation_id = require_generation_id(request.generation_id)
        await require_access(self._journal, call.generation_id, call.identity, Scope.READ_ALL)
        await self._journal.delete(call.generation_id, call.identity.id)
        return trace_pb2.DeleteGenerationResponse().SerializeToString()


def _make_hit_message(hit: Hit) -> trace_pb2.SearchHit:
    before, match, after = hit.excerpt
    return trace_pb2.SearchHit(
        summary=make_summary_message(hit.row),
        part=trace_pb2.SearchPart.ValueType(hit.found.part.value),
        sequence_index=hit.found.sequence,
        begin_byte=hit.bytes.begin,
        end_byte=hit.bytes.end,
        step_index=hit.step,
        share=hit.share,
        before=before,
        match=match,
        after=after,
    )


def make_summary_message(row: GenerationRow) -> trace_pb2.GenerationSummary:
    """Convert a generation's row to a summary."""
    index, finish = row.index, row.finish
    start_time = timestamp_pb2.Timestamp()
    start_time.FromNanoseconds(index.start_time_ns)
    summary = trace_pb2.GenerationSummary(
        generation_id=index.generation_id,
        trace_id=index.trace_id,
        model=index.model,
        start_time=start_time,
        num_prompt_tokens=index.num_prompt_tokens,
        prompt_preview=index.prompt_preview,
        labels=index.labels,
        damage=row.damage,
        parent_generation_id=index.parent,
    )
    if finish is not None:
        summary.finish_reason = generation_pb2.FinishReason.ValueType(finish.finish_reason.value)
        summary.num_generated_tokens = finish.num_generated_tokens
        summary.text_preview = finish.text_preview
    return summary


def convert_filter(given: trace_pb2.GenerationFilter, owner: str | None = None) -> ListFilter:
    """Convert a filter to the journal's type; unset fields match everything.

    Args:
        given: the filter.
        owner: the only owner whose generations match; None for all.

    Raises:
        InvalidRequestError: fields exceed their bounds; the error names all of them.
    """
    if violations := _find_filter_violations(given):
        raise InvalidRequestError(*violations)
    return ListFilter(
        start_after_ns=_get_time_ns(given, "start_after"),
        start_before_ns=_get_time_ns(given, "start_before"),
        model=given.model,
        trace_id=given.trace_id,
        labels=dict(given.labels),
        owner=owner,
        parent=given.parent_generation_id,
    )


def _find_filter_violations(given: trace_pb2.GenerationFilter) -> list[FieldViolation]:
    found = []
    bounds = (
        ("model", given.model, _MAX_MODEL),
        ("trace_id", given.trace_id, _TRACE_ID),
        ("parent_generation_id", given.parent_generation_id, _MAX_ID),
    )
    for field, value, most in bounds:
        if len(value) > most:
            found.append(FieldViolation(f"filter.{field}", f"may have at most {most} characters"))
    if len(given.labels) > _LIMITS.max_labels:
        found.append(
            FieldViolation(
                "filter.labels",
                f"has {len(given.labels)} labels; at most {_LIMITS.max_labels} are allowed",
            )
        )
        return found
    most = _LIMITS.max_label_characters
    for key, value in given.labels.items():
        if not key:
            found.append(FieldViolation("filter.labels", "a label's key must not be empty"))
        elif max(len(key), len(value)) > most:
            found.append(
                FieldViolation(
                    f"filter.labels[{key[:64]}]",
                    f"key and value may have at most {most} characters",
                )
            )
    return found


def _get_time_ns(given: trace_pb2.GenerationFilter, field: str) -> int | None:
    if not given.HasField(field):  # type: ignore[arg-type]  # one of the two names
        return None
    timestamp = getattr(given, field)
    return int(timestamp.seconds) * 1_000_000_000 + int(timestamp.nanos)


def _read_step_token(token: str) -> int:
    if not token:
        return 0
    prefix, _, offset = token.partition(":")
    if prefix != "after" or not offset.isascii() or not offset.isdecimal() or len(offset) > 18:
        raise InvalidRequestError(
            FieldViolation("page_token", "is no token that ListSteps returned")
        )
    return int(offset)


def _limit_bytes(entries: list[Entry]) -> list[Entry]:
    total = 0
    for i, entry in enumerate(entries):
        total += len(entry.payload)
        if total > _MAX_STEPS_BYTES and i:
            return entries[:i]
    return entries
