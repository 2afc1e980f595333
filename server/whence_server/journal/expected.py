"""What a row beside the entries has to say, told by the entries."""

import json
from dataclasses import dataclass
from typing import Any, NamedTuple

from whence.v1 import deletion_pb2
from whence_server.domain.entries import EntryKind
from whence_server.journal.derive import index_of_finished, index_of_started
from whence_server.journal.label_index import labels_of
from whence_server.journal.rows import FinishIndex, GenerationIndex
from whence_server.journal.sqlite_rows import finish_bindings, index_bindings

_WRITER = 1
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
    + ", CAST(labels AS BLOB), secret FROM generations ORDER BY started_position"
)
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
    """A DELETED entry, and what it says; None in journals of earlier versions."""

    position: int
    said: deletion_pb2.Deletion | None


@dataclass(frozen=True, slots=True)
class StoredRow:
    """One row of `generations` as it is stored; texts that are no UTF-8 with marks in them."""

    columns: dict[str, Any]
    labels: dict[str, str] | str
    """As text where they are no labels."""
    secret: bytes | None

    @property
    def name(self) -> str:
        """The row's id."""
        return str(self.columns["generation_id"])

    @property
    def started_position(self) -> int:
        """Where it says that its generation starts."""
        return int(self.columns["started_position"])


@dataclass(frozen=True, slots=True)
class ExpectedRow:
    """What follows from the entries; a column that does not follow from them is left out."""

    columns: dict[str, Any]
    labels: dict[str, str]


def stored_row(values: Any) -> StoredRow:
    """Read one row of SELECT_STORED."""
    *columns, labels, secret = values
    texts, numbers = columns[: len(TEXTS)], columns[len(TEXTS) :]
    named: dict[str, Any] = {
        name: None if text is None else text.decode(errors="replace")
        for name, text in zip(TEXTS, texts, strict=True)
    }
    named |= zip(NUMBERS, numbers, strict=True)
    try:
        found = labels_of(labels)
        # Other spaces, or a name twice: the same labels, and not as they were written.
        same = labels_text(found).encode() == labels
        parsed: dict[str, str] | str = found if same else labels.decode(errors="replace")
    except (ValueError, TypeError):
        parsed = "nothing" if labels is None else labels.decode(errors="replace")
    return StoredRow(named, parsed, secret)


def expected_row(connection: Any, position: int, deletion: Deletion | None) -> ExpectedRow:
    """What the row of the generation that starts at a position has to say.

    Raises:
        ValueError: the entries do not tell, in words.
    """
    places = {"writer": _WRITER, "started_position": position}
    if deletion is not None:
        ids = {} if deletion.said is None else {"generation_id": deletion.said.generation_id}
        return ExpectedRow(places | ids | _TOMBSTONE, {})
    index = index_of_started(_started(connection, position))
    finish = _finish(connection, position)
    return ExpectedRow(places | columns_of(index, finish), dict(index.labels))


def columns_of(index: GenerationIndex, finish: FinishIndex | None) -> dict[str, Any]:
    """The columns of a generation that is not deleted, but for its labels."""
    generation_id, trace_id, model, start, digest, _, preview, num_tokens = index_bindings(index)
    reason, num_generated, text = None, 0, ""
    if finish is not None:
        reason, num_generated, text, _ = finish_bindings((generation_id, finish))
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


def labels_text(labels: dict[str, str]) -> str:
    """Labels as the row has them."""
    return json.dumps(labels)


def _started(connection: Any, position: int) -> bytes:
    found = connection.execute(
        "SELECT kind, payload FROM entries WHERE writer = ? AND position = ?", (_WRITER, position)
    ).fetchall()
    if not found or found[0][0] != EntryKind.STARTED:
        raise ValueError(f"no generation starts at position {position}")
    payload: bytes | None = found[0][1]
    if payload is None:
        raise ValueError("its content is gone without a DELETED entry")
    return payload


def _finish(connection: Any, position: int) -> FinishIndex | None:
    found = connection.execute(
        "SELECT kind, payload FROM entries WHERE writer = ? AND generation = ? "
        'ORDER BY "offset" DESC LIMIT 1',
        (_WRITER, position),
    ).fetchall()
    if not found or found[0][0] != EntryKind.FINISHED or found[0][1] is None:
        return None
    return index_of_finished(found[0][1])
