"""Between the journal's types and SQLite's rows."""

import json
from collections.abc import Collection, Iterable
from typing import Any

from whence_server.domain.decoding import FinishReason
from whence_server.domain.entries import OUTSIDE_OFFSETS, Entry, EntryKind
from whence_server.journal.rows import FinishIndex, GenerationIndex, GenerationRow
from whence_server.journal.store import NewGeneration

INDEX_COLUMNS = (
    "generation_id, trace_id, model, start_time_ns, request_digest, labels, prompt_preview, "
    "num_prompt_tokens"
)
_KINDS = {kind.value: kind for kind in EntryKind}  # a tenth of the time of EntryKind(kind)
ROW_COLUMNS = f"{INDEX_COLUMNS}, finish_reason, num_generated_tokens, text_preview, deleted"


def offset_condition(kinds: Collection[EntryKind] | None) -> str:
    """An SQL condition with the offset to begin after as its one binding."""
    if kinds is None:
        return '"offset" > max(?, 0)'
    # The numbers are our own: nothing can be injected. An empty choice takes none.
    numbers = ", ".join(str(int(kind)) for kind in kinds)
    outside = ' OR "offset" = 0' if OUTSIDE_OFFSETS.intersection(kinds) else ""
    return f'("offset" > max(?, 0){outside}) AND kind IN ({numbers})'


def read_entries(cursor: Any, max_bytes: int) -> list[Entry]:
    """Reads (position, generation id, offset, kind, payload) until there are bytes enough."""
    entries: list[Entry] = []
    num_bytes = 0
    try:
        for position, generation_id, offset, kind, payload in cursor:
            num_bytes += len(payload)
            if entries and num_bytes > max_bytes:
                break
            entries.append(Entry(position, generation_id, offset, _KINDS[kind], payload))
    finally:
        # A statement left half-read would keep a checkpoint waiting.
        cursor.close()
    return entries


def generation_bindings(new: NewGeneration) -> tuple[Any, ...]:
    """(started_position, secret, *INDEX_COLUMNS)."""
    index = new.index
    return (
        new.started_position,
        new.secret,
        index.generation_id,
        index.trace_id,
        index.model,
        index.start_time_ns,
        index.request_digest,
        json.dumps(dict(index.labels)),
        _text(index.prompt_preview),
        index.num_prompt_tokens,
    )


def finish_bindings(finished: tuple[str, FinishIndex]) -> tuple[Any, ...]:
    """(finish_reason, num_generated_tokens, text_preview, generation_id)."""
    generation_id, finish = finished
    return (
        finish.finish_reason.value,
        finish.num_generated_tokens,
        _text(finish.text_preview),
        generation_id,
    )


def _text(preview: str) -> str:
    # A lone surrogate has no UTF-8: one preview must not cost a whole batch.
    return preview.encode(errors="replace").decode()


def index_of(row: Iterable[Any]) -> GenerationIndex:
    """From INDEX_COLUMNS."""
    generation_id, trace_id, model, start_time_ns, digest, labels, preview, num_tokens = row
    return GenerationIndex(
        generation_id,
        trace_id,
        model,
        start_time_ns,
        digest,
        json.loads(labels),
        preview,
        num_tokens,
    )


def row_of(row: list[Any]) -> GenerationRow:
    """From ROW_COLUMNS."""
    *index, finish_reason, num_generated_tokens, text_preview, deleted = row
    finish = None
    if finish_reason is not None and not deleted:
        finish = FinishIndex(FinishReason(finish_reason), num_generated_tokens, text_preview)
    return GenerationRow(index_of(index), finish, bool(deleted))
