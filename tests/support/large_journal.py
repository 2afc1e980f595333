"""A journal with many generations: only their rows and STARTED entries."""

import json
from pathlib import Path

import apsw

from whence.v1 import generation_pb2 as g
from whence_server.journal.label_index import INSERT, make_label_rows
from whence_server.journal.schema import migrate

START_NS = 1_700_000_000_000_000_000


def large_journal(directory: Path, num_generations: int, num_labels: int = 2) -> Path:
    """Create a database whose generations have the label `team`, one in a hundred `rare`."""
    path = directory / "journal.db"
    database = apsw.Connection(str(path))
    database.pragma("journal_mode", "wal")
    migrate(database)
    with database:
        database.execute("INSERT INTO writers VALUES (1, zeroblob(16))")
        for number in range(1, num_generations + 1):
            _insert(database, number, num_labels)
    database.close()
    return path


def _insert(database: apsw.Connection, number: int, num_labels: int) -> None:
    generation_id = f"00000000-0000-4000-8000-{number:012d}"
    labels = {"team": "blue", "parity": str(number % 2)}
    labels |= {f"label {i}": "x" * 200 for i in range(num_labels - 2)}
    if number % 100 == 0:
        labels["rare"] = "yes"
    start = g.GenerationStarted(generation_id=generation_id).SerializeToString()
    database.execute(
        "INSERT INTO entries VALUES (1, ?, ?, 1, 1, ?, NULL, zeroblob(32))",
        (2 * number - 1, 2 * number - 1, start),
    )
    database.execute(
        "INSERT INTO entries VALUES (1, ?, ?, 2, 5, x'', NULL, zeroblob(32))",
        (2 * number, 2 * number - 1),
    )
    database.execute(
        "INSERT INTO generations VALUES (?, 1, ?, zeroblob(32), ?, 'tiny', ?, '', ?, ?, 3, 3, 9, "
        "?, 0)",
        (
            generation_id,
            2 * number - 1,
            f"{number:032x}",
            START_NS + number,
            json.dumps(labels),
            "p" * 200,
            "t" * 200,
        ),
    )
    database.executemany(INSERT, make_label_rows(generation_id, START_NS + number, labels))
