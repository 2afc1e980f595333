"""Between the journal's types and SQLite's rows. Of rows, nothing is taken on trust."""

import json
from collections.abc import Collection, Iterable
from typing import Any, NamedTuple

from whence_server.domain.decoding import FinishReason
from whence_server.domain.entries import OUTSIDE_OFFSETS, Entry, EntryKind
from whence_server.domain.errors import RecordDamagedError
from whence_server.journal.derive import PEEK_BYTES, peek_generation_id
from whence_server.journal.label_index import labels_of
from whence_server.journal.rows import FinishIndex, GenerationIndex, GenerationRow
from whence_server.journal.store import NewGeneration

INDEX_COLUMNS = (
    "generation_id, trace_id, model, start_time_ns, request_digest, labels, prompt_preview, "
    "num_prompt_tokens"
)
KINDS = {kind.value: kind for kind in EntryKind}  # a tenth of the time of EntryKind(kind)
_MAX_TOKENS = 2**32
# Texts come as bytes: one that is no UTF-8 must cost its own row alone.
ROW_COLUMNS = f"""
    CAST(g.generation_id AS BLOB), CAST(g.trace_id AS BLOB), CAST(g.model AS BLOB),
    g.start_time_ns, CAST(g.request_digest AS BLOB), CAST(g.labels AS BLOB),
    CAST(g.prompt_preview AS BLOB), g.num_prompt_tokens, g.finish_reason, g.num_generated_tokens,
    CAST(g.text_preview AS BLOB), g.deleted, g.started_position,
    (SELECT substr(e.payload, 1, {PEEK_BYTES}) FROM entries e
     WHERE e.writer = g.writer AND e.position = g.started_position),
    (SELECT e.kind FROM entries e
     WHERE e.writer = g.writer AND e.generation = g.started_position
     ORDER BY e."offset" DESC LIMIT 1)
"""  # noqa: S608  # constants only
"""Of `generations g`: what `parsed_row` takes."""


def offset_condition(kinds: Collection[EntryKind] | None) -> str:
    """An SQL condition with the offset to begin after as its one binding."""
    if kinds is None:
        return '"offset" > max(?, 0)'
    # The numbers are our own: nothing can be injected. An empty choice takes none.
    numbers = ", ".join(str(int(kind)) for kind in kinds)
    outside = ' OR "offset" = 0' if OUTSIDE_OFFSETS.intersection(kinds) else ""
    return f'("offset" > max(?, 0){outside}) AND kind IN ({numbers})'


def read_entries(cursor: Any, max_bytes: int) -> list[Entry]:
    """Read (position, generation id, offset, kind, payload) until there are bytes enough.

    An entry whose row makes no sense comes as UNREADABLE.
    """
    entries: list[Entry] = []
    num_bytes = 0
    try:
        for position, generation_id, offset, kind, payload in cursor:
            num_bytes += len(payload)
            if entries and num_bytes > max_bytes:
                break
            known = KINDS.get(kind, EntryKind.UNREADABLE)
            shown = b"" if known is EntryKind.UNREADABLE else payload
            name = generation_id.decode(errors="replace")
            entries.append(Entry(position, name, offset, known, shown))
    finally:
        # A statement left half-read would keep a checkpoint waiting.
        cursor.close()
    return entries


def own_entries(generation_id: str, cursor: Any, max_bytes: int) -> list[Entry]:
    """Read a generation's own entries, (position, offset, kind, payload), as `read_entries`.

    Raises:
        RecordDamagedError: one of them makes no sense.
    """
    entries: list[Entry] = []
    num_bytes = 0
    try:
        for position, offset, kind, payload in cursor:
            if payload is None or kind not in KINDS or kind == EntryKind.UNREADABLE:
                what = "content" if payload is None else "kind"
                raise RecordDamagedError(generation_id, f"its entry {offset} has no {what}")
            num_bytes += len(payload)
            if entries and num_bytes > max_bytes:
                break
            entries.append(Entry(position, generation_id, offset, KINDS[kind], payload))
    finally:
        cursor.close()
    return entries


def generation_bindings(new: NewGeneration) -> tuple[Any, ...]:
    """(started_position, secret, *INDEX_COLUMNS)."""
    return (new.started_position, new.secret, *index_bindings(new.index))


def index_bindings(index: GenerationIndex) -> tuple[Any, ...]:
    """INDEX_COLUMNS."""
    return (
        index.generation_id,
        index.trace_id,
        index.model,
        index.start_time_ns,
        index.request_digest,
        json.dumps({_text(name): _text(value) for name, value in index.labels.items()}),
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


def _text(given: str) -> str:
    # A lone surrogate has no UTF-8: one preview or label must not cost a whole batch.
    return given.encode(errors="replace").decode()


class ParsedRow(NamedTuple):
    """One row of `generations`, as far as it makes sense."""

    row: GenerationRow
    started_position: int


def parsed_row(stored: Iterable[Any]) -> ParsedRow:
    """Read ROW_COLUMNS; what is wrong with them is said in `GenerationRow.damage`."""
    *columns, finish_reason, num_tokens, preview, deleted, started_position, first, last = stored
    generation_id = columns[0].decode(errors="replace")
    begun = peek_generation_id(first)
    if begun not in (None, generation_id):
        row = _blank(generation_id, "its row leads to another generation's entries", foreign=True)
        return ParsedRow(row, started_position)
    if bool(deleted) != (first is None):
        damage = (
            "it is marked as deleted, and its content is there"
            if deleted
            else "its content is gone, and it is not marked as deleted"
        )
        return ParsedRow(_blank(generation_id, damage, deleted=True), started_position)
    try:
        index = _index(columns)
        finish = None
        if finish_reason is not None and not deleted:
            finish = FinishIndex(FinishReason(finish_reason), _number(num_tokens), preview.decode())
    except (ValueError, TypeError, AttributeError) as error:
        damage = f"its row cannot be read: {error}"
        return ParsedRow(_blank(generation_id, damage), started_position)
    damage = ""
    if not deleted and (finish is None) == (last == EntryKind.FINISHED):
        damage = "its row and its entries disagree on whether it has finished"
    return ParsedRow(GenerationRow(index, finish, bool(deleted), damage), started_position)


def _index(columns: list[Any]) -> GenerationIndex:
    generation_id, trace_id, model, start_time_ns, digest, labels, preview, num_tokens = columns
    return GenerationIndex(
        generation_id.decode(),
        trace_id.decode(),
        model.decode(),
        start_time_ns + 0,
        digest.decode(),
        labels_of(labels),
        preview.decode(),
        _number(num_tokens),
    )


def _number(stored: Any) -> int:
    """A number of tokens."""
    if not 0 <= stored < _MAX_TOKENS:
        raise ValueError(f"{stored} is no number of tokens")
    return int(stored)


def _blank(
    generation_id: str, damage: str, *, deleted: bool = False, foreign: bool = False
) -> GenerationRow:
    index = GenerationIndex(generation_id, "", "", 0, "", {}, "", 0)
    return GenerationRow(index, None, deleted, damage, foreign)
