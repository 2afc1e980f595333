"""Index over labels: a row for each label of each generation, newest last."""

import json
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

_SCHEMA = """
CREATE TABLE IF NOT EXISTS labels (
    name TEXT NOT NULL,
    value TEXT NOT NULL,
    start_time_ns INTEGER NOT NULL, -- its generation's
    generation_id TEXT NOT NULL,
    PRIMARY KEY (name, value, start_time_ns, generation_id)
) STRICT, WITHOUT ROWID;
CREATE INDEX IF NOT EXISTS labels_by_generation ON labels (generation_id);
"""
INSERT = "INSERT INTO labels VALUES (?, ?, ?, ?) ON CONFLICT DO NOTHING"
_SLICE = 2_000


def make_label_rows(
    generation_id: str, start_time_ns: int, labels: Mapping[str, str]
) -> Iterator[tuple[str, str, int, str]]:
    """Yield a generation's rows of the index."""
    for name, value in labels.items():
        yield _replace_surrogates(name), _replace_surrogates(value), start_time_ns, generation_id


def parse_labels(stored: str | bytes) -> dict[str, str]:
    """Parse the JSON of a row's labels.

    Raises:
        ValueError: it is not a JSON object of strings.
    """
    try:
        labels = json.loads(stored)
    except RecursionError:
        raise ValueError(
            "the labels are JSON that is nested too deeply, not an object of strings"
        ) from None
    if not isinstance(labels, dict) or not all(isinstance(v, str) for v in labels.values()):
        raise ValueError("the labels are not a JSON object of strings")
    try:
        "".join((*labels, *labels.values())).encode()
    except UnicodeEncodeError:
        raise ValueError("the labels hold a lone surrogate, which is no text") from None
    return labels


def prepare(connection: Any) -> None:
    """Create the index and fill it from the generations, in transactions of bounded size.

    Unreadable labels are left out: `verify` reports them, and a rebuild restores them.
    """
    connection.execute(_SCHEMA)
    last = b""
    while rows := connection.execute(
        "SELECT CAST(generation_id AS BLOB), start_time_ns, CAST(labels AS BLOB) FROM generations "
        "WHERE generation_id > CAST(? AS TEXT) AND deleted = 0 ORDER BY generation_id LIMIT ?",
        (last, _SLICE),
    ).fetchall():
        with connection:
            connection.executemany(INSERT, _parse_rows(rows))
        last = rows[-1][0]


def _parse_rows(rows: Iterable[tuple[bytes, int, bytes]]) -> Iterator[tuple[str, str, int, str]]:
    for raw_id, start_time_ns, stored in rows:
        try:
            labels = parse_labels(stored)
        except ValueError:
            continue
        yield from make_label_rows(raw_id.decode(errors="replace"), start_time_ns, labels)


def _replace_surrogates(label: str) -> str:
    # A lone surrogate has no UTF-8: one label must not cost a whole batch.
    return label.encode(errors="replace").decode()
