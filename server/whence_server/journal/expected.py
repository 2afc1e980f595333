"""Rows of `generations` as they are stored, and as the entries imply them."""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

from whence.v1 import deletion_pb2
from whence_server.domain.entries import EntryKind
from whence_server.journal.derive import derive_finished_index, derive_started_index
from whence_server.journal.label_index import parse_labels
from whence_server.journal.rows import FinishIndex, GenerationIndex
from whence_server.journal.sql_rows import bind_finish, bind_index

TEXTS = ("generation_id", "trace_id", "model", "request_digest", "prompt_preview", "text_preview")
NUMBERS = (
    "writer",
    "started_position",
    "start_time_ns",
    "num_prompt_tokens",
    "finish_reason",
    "num_generated_tokens",
    "deleted",
)
SELECT_STORED = (
    "SELECT "  # noqa: S608 - constants only
    + ", ".join(f"CAST({name} AS BLOB)" for name in TEXTS)
    + ", "
    + ", ".join(NUMBERS)
    + ", CAST(labels AS BLOB), secret FROM generations "
    "WHERE writer = ? AND started_position > ? ORDER BY started_position LIMIT ?"
)
_PLACE_OF_POSITION = len(TEXTS) + NUMBERS.index("started_position")
_BEFORE_ALL, _CHUNK = -(2**63), 1_024
_TOMBSTONE = {
    "trace_id": "",
    "model": "",
    "start_time_ns": 0,
    "request_digest": "",
    "prompt_preview": "",
    "num_prompt_tokens": 0,
    "finish_reason": 0,
    "num_generated_tokens": 0,
    "text_preview": "",
    "deleted": 1,
}


class Deletion(NamedTuple):
    """A DELETED entry."""

    position: int
    message: deletion_pb2.Deletion | None


@dataclass(frozen=True, slots=True)
class StoredRow:
    """One stored row of `generations`; bytes that are not UTF-8 are decoded as U+FFFD."""

    columns: dict[str, Any]
    labels: dict[str, str] | str
    """The stored text if it is not a JSON object of strings."""
    secret: bytes | None

    @property
    def name(self) -> str:
        """The row's generation id."""
        return str(self.columns["generation_id"])

    @property
    def started_position(self) -> int:
        """Position of the generation's STARTED entry according to the row."""
        return int(self.columns["started_position"])


@dataclass(frozen=True, slots=True)
class ExpectedRow:
    """Row of `generations` that the entries imply; other columns are left out."""

    columns: dict[str, Any]
    labels: dict[str, str]
    owner: str = ""
    parent: str = ""


def walk_stored_rows(connection: Any, writer: int) -> Iterator[Any]:
    """Yield the stored rows of a writer's generations, for `parse_stored_row`."""
    last = _BEFORE_ALL
    while rows := connection.execute(SELECT_STORED, (writer, last, _CHUNK)).fetchall():
        yield from rows
        last = rows[-1][_PLACE_OF_POSITION]


def parse_stored_row(values: Any) -> StoredRow:
    """Parse one row of SELECT_STORED."""
    *columns, labels, secret = values
    texts, numbers = columns[: len(TEXTS)], columns[len(TEXTS) :]
    named: dict[str, Any] = {
        name: None if text is None else text.decode(errors="replace")
        for name, text in zip(TEXTS, texts, strict=True)
    }
    named |= zip(NUMBERS, numbers, strict=True)
    try:
        found = parse_labels(labels)
        # With other spaces or a repeated name, the labels are equal but not as they were written.
        same = encode_labels(found).encode() == labels
        parsed: dict[str, str] | str = found if same else labels.decode(errors="replace")
    except (ValueError, TypeError):
        parsed = "nothing" if labels is None else labels.decode(errors="replace")
    return StoredRow(named, parsed, secret)


def derive_row(
    connection: Any, writer: int, position: int, deletion: Deletion | None
) -> ExpectedRow:
    """Derive the row of the generation that starts at a position from its entries.

    Raises:
        ValueError: the entries are missing or damaged; the message says how.
    """
    places = {"writer": writer, "started_position": position}
    if deletion is not None:
        ids = {} if deletion.message is None else {"generation_id": deletion.message.generation_id}
        return ExpectedRow(places | ids | _TOMBSTONE, {})
    index = derive_started_index(_read_started(connection, writer, position))
    finish = _read_finish(connection, writer, position)
    columns = places | derive_columns(index, finish)
    return ExpectedRow(columns, dict(index.labels), index.owner, index.parent)


def derive_columns(index: GenerationIndex, finish: FinishIndex | None) -> dict[str, Any]:
    """Return the columns of a generation that is not deleted, without its labels."""
    generation_id, trace_id, model, start, digest, _, preview, num_tokens = bind_index(index)
    reason, num_generated, text = None, 0, ""
    if finish is not None:
        reason, num_generated, text, _ = bind_finish((generation_id, finish))
    return {
        "generation_id": generation_id,
        "trace_id": trace_id,
        "model": model,
        "start_time_ns": start,
        "request_digest": digest,
        "prompt_preview": preview,
        "num_prompt_tokens": num_tokens,
        "finish_reason": reason,
        "num_generated_tokens": num_generated,
        "text_preview": text,
        "deleted": 0,
    }


def encode_labels(labels: dict[str, str]) -> str:
    """Return labels as JSON, in the form in which a row stores them."""
    return json.dumps(labels)


def _read_started(connection: Any, writer: int, position: int) -> bytes:
    found = connection.execute(
        "SELECT kind, payload FROM entries WHERE writer = ? AND position = ?", (writer, position)
    ).fetchall()
    if not found or found[0][0] != EntryKind.STARTED:
        raise ValueError(f"no generation starts at position {position}")
    payload: bytes | None = found[0][1]
    if payload is None:
        raise ValueError("its content is gone without a DELETED entry")
    return payload


def _read_finish(connection: Any, writer: int, position: int) -> FinishIndex | None:
    found = connection.execute(
        "SELECT kind, payload FROM entries WHERE writer = ? AND generation = ? "
        'ORDER BY "offset" DESC LIMIT 1',
        (writer, position),
    ).fetchall()
    if not found or found[0][0] != EntryKind.FINISHED or found[0][1] is None:
        return None
    return derive_finished_index(found[0][1])
