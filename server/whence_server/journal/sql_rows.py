"""Conversion between the journal's types and rows of its database, which are validated."""

import json
from collections.abc import Collection, Iterable
from typing import Any, NamedTuple

from whence_server.domain.decoding import FinishReason
from whence_server.domain.entries import OUTSIDE_OFFSETS, Entry, EntryKind
from whence_server.domain.errors import RecordDamagedError
from whence_server.journal.derive import PEEK_BYTES, peek_generation_id
from whence_server.journal.label_index import parse_labels
from whence_server.journal.rows import FinishIndex, GenerationIndex, GenerationRow
from whence_server.journal.sealing.stored_form import peek_key_id
from whence_server.journal.store import NewGeneration
from whence_server.journal.value_index import OWNERS, PARENTS

INDEX_COLUMNS = (
    "generation_id, trace_id, model, start_time_ns, request_digest, labels, prompt_preview, "
    "num_prompt_tokens"
)
KINDS = {kind.value: kind for kind in EntryKind}  # a tenth of the time of EntryKind(kind)
_MAX_TOKENS = 2**32
# Texts are read as bytes: one that is not UTF-8 must affect its own row alone.
ROW_COLUMNS = f"""
    CAST(g.generation_id AS BLOB), CAST(g.trace_id AS BLOB), CAST(g.model AS BLOB),
    g.start_time_ns, CAST(g.request_digest AS BLOB), CAST(g.labels AS BLOB),
    CAST(g.prompt_preview AS BLOB), g.num_prompt_tokens, g.finish_reason, g.num_generated_tokens,
    CAST(g.text_preview AS BLOB), g.deleted, g.writer, g.started_position,
    (SELECT substr(e.payload, 1, {PEEK_BYTES}) FROM entries e
     WHERE e.writer = g.writer AND e.position = g.started_position),
    (SELECT e.kind FROM entries e
     WHERE e.writer = g.writer AND e.generation = g.started_position
     ORDER BY e."offset" DESC LIMIT 1),
    {OWNERS.column}, {PARENTS.column}
"""  # noqa: S608  # constants only
"""Columns of `generations g` that `parse_row` takes."""


def make_entries_query(kinds: Collection[EntryKind] | None) -> str:
    """Return SQL that selects what `read_own_entries` takes.

    Its bindings are the writer, the generation, the offset after which to begin, and the limit.
    """
    return (
        'SELECT position, "offset", kind, payload FROM entries '  # noqa: S608 - constants only
        f"WHERE writer = ? AND generation = ? AND {_make_offset_condition(kinds)} "
        'ORDER BY "offset", position LIMIT ?'
    )


def _make_offset_condition(kinds: Collection[EntryKind] | None) -> str:
    """Return an SQL condition whose one binding is the offset after which to begin."""
    if kinds is None:
        return '"offset" > max(?, 0)'
    if not kinds:
        return '"offset" > max(?, 0) AND 1 = 0'
    # The numbers are enum values: nothing can be injected.
    numbers = ", ".join(str(int(kind)) for kind in kinds)
    if OUTSIDE_OFFSETS.issuperset(kinds):
        # The range holds 0 alone. SQLite finds it in the index, without a walk over the
        # generation's steps; for an equality it would walk over the whole table, in its order.
        return f'"offset" BETWEEN 0 AND min(max(?, 0), 0) AND kind IN ({numbers})'
    outside = ' OR "offset" = 0' if OUTSIDE_OFFSETS.intersection(kinds) else ""
    return f'("offset" > max(?, 0){outside}) AND kind IN ({numbers})'


def read_entries(cursor: Any, max_bytes: int) -> list[Entry]:
    """Read (position, generation id, offset, kind, payload) up to a number of bytes.

    An entry of an unknown kind is returned as UNREADABLE.
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
        # A half-read statement would block a checkpoint.
        cursor.close()
    return entries


def read_own_entries(generation_id: str, cursor: Any, max_bytes: int) -> list[Entry]:
    """Read a generation's own entries, (position, offset, kind, payload), up to a number of bytes.

    Raises:
        RecordDamagedError: an entry has no content or an unknown kind.
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


def bind_generation(new: NewGeneration) -> tuple[Any, ...]:
    """Return the bindings (started_position, secret, *INDEX_COLUMNS)."""
    return (new.started_position, new.secret, *bind_index(new.index))


def bind_index(index: GenerationIndex) -> tuple[Any, ...]:
    """Return the bindings of INDEX_COLUMNS."""
    return (
        index.generation_id,
        index.trace_id,
        index.model,
        index.start_time_ns,
        index.request_digest,
        json.dumps(
            {
                _replace_surrogates(name): _replace_surrogates(value)
                for name, value in index.labels.items()
            }
        ),
        _replace_surrogates(index.prompt_preview),
        index.num_prompt_tokens,
    )


def bind_finish(finished: tuple[str, FinishIndex]) -> tuple[Any, ...]:
    """Return (finish_reason, num_generated_tokens, text_preview, generation_id)."""
    generation_id, finish = finished
    return (
        finish.finish_reason.value,
        finish.num_generated_tokens,
        _replace_surrogates(finish.text_preview),
        generation_id,
    )


def _replace_surrogates(given: str) -> str:
    # A lone surrogate has no UTF-8: one preview or label must not cost a whole batch.
    return given.encode(errors="replace").decode()


class ParsedRow(NamedTuple):
    """One row of `generations`, with a description of its damage."""

    row: GenerationRow
    writer: int
    started_position: int


def parse_row(stored: Iterable[Any]) -> ParsedRow:
    """Parse ROW_COLUMNS; `GenerationRow.damage` describes faults."""
    *rest, owner, parent = stored
    *columns, finish_reason, num_tokens, preview, deleted, writer, started, first, last = rest
    generation_id = columns[0].decode(errors="replace")
    begun = peek_generation_id(first)
    if begun not in (None, generation_id):
        row = _make_blank_row(
            generation_id, "its row points to another generation's entries", foreign=True
        )
        return ParsedRow(row, writer, started)
    if bool(deleted) != (first is None):
        damage = (
            "it is marked as deleted, but its content is stored"
            if deleted
            else "its content is missing, but it is not marked as deleted"
        )
        return ParsedRow(_make_blank_row(generation_id, damage, deleted=True), writer, started)
    try:
        index = _parse_index(columns, owner, parent)
        finish = None
        if finish_reason is not None and not deleted:
            finish = FinishIndex(
                FinishReason(finish_reason), _parse_token_count(num_tokens), preview.decode()
            )
    except (ValueError, TypeError, AttributeError) as error:
        damage = f"its row cannot be read: {error}"
        return ParsedRow(_make_blank_row(generation_id, damage), writer, started)
    damage = ""
    if not deleted and (finish is None) == (last == EntryKind.FINISHED):
        damage = "its row and its entries disagree on whether it has finished"
    row = GenerationRow(index, finish, bool(deleted), damage, key_id=peek_key_id(first))
    return ParsedRow(row, writer, started)


def _parse_index(columns: list[Any], owner: bytes | None, parent: bytes | None) -> GenerationIndex:
    generation_id, trace_id, model, start_time_ns, digest, labels, preview, num_tokens = columns
    return GenerationIndex(
        generation_id.decode(),
        trace_id.decode(),
        model.decode(),
        start_time_ns + 0,
        digest.decode(),
        parse_labels(labels),
        preview.decode(),
        _parse_token_count(num_tokens),
        "" if owner is None else owner.decode(),
        "" if parent is None else parent.decode(),
    )


def _parse_token_count(stored: Any) -> int:
    """Return a number of tokens; raise ValueError if it is out of range."""
    if not 0 <= stored < _MAX_TOKENS:
        raise ValueError(f"{stored} is not a number of tokens")
    return int(stored)


def _make_blank_row(
    generation_id: str, damage: str, *, deleted: bool = False, foreign: bool = False
) -> GenerationRow:
    index = GenerationIndex(generation_id, "", "", 0, "", {}, "", 0)
    return GenerationRow(index, None, deleted, damage, foreign)
