"""Parents of branches in the journal: listed, verified, rebuilt, and kept after their deletion."""

from pathlib import Path

import apsw
import pytest
from journal_cases import FINISH
from journal_records import change, started
from sealed_journals import make_options

from whence.v1.generation_pb2 import GenerationFinished
from whence_server.journal.derive import derive_started_index
from whence_server.journal.journal import Journal
from whence_server.journal.rebuild import rebuild_journal
from whence_server.journal.rows import ListFilter
from whence_server.journal.schema import MIGRATIONS, PARENTS_VERSION, migrate
from whence_server.journal.sealing.opening import SealingOptions
from whence_server.journal.verify import verify_journal

FINISHED = GenerationFinished(
    finish_reason=FINISH.finish_reason.value, num_generated_tokens=3
).SerializeToString()


def name(number: int) -> str:
    return f"00000000-0000-4000-8000-00000000000{number}"


PARENTS = {1: "", 2: name(1), 3: name(1), 4: name(2), 5: name(1)}


async def fill(directory: Path, sealing: SealingOptions | None = None) -> None:
    journal = await Journal.open(directory, sealing=sealing)
    for number, parent in PARENTS.items():
        message = started(name(number), number)
        if parent:
            message.fork.parent_generation_id = parent
        payload = message.SerializeToString()
        journal.create(derive_started_index(payload), payload)
        journal.finish(name(number), FINISHED, type(FINISH)(FINISH.finish_reason, 3, ""))
    await journal.flush()
    await journal.delete(name(5))
    await journal.close()


def find(data_dir: Path) -> str:
    return "\n".join(map(str, verify_journal(data_dir).findings))


async def list_ids(journal: Journal, parent: str) -> list[str]:
    rows, token = await journal.list(ListFilter(parent=parent), 10)
    assert token == ""
    return [row.generation_id for row in rows]


async def test_list_of_a_parent_has_its_branches_alone(tmp_path: Path, each_store: str) -> None:
    await fill(tmp_path)
    journal = await Journal.open(tmp_path)
    assert await list_ids(journal, name(1)) == [name(3), name(2)]
    assert await list_ids(journal, name(2)) == [name(4)]
    assert await list_ids(journal, name(4)) == []
    assert (await journal.get(name(4))).index.parent == name(2)
    assert (await journal.get(name(1))).index.parent == ""
    await journal.delete(name(1))
    assert await list_ids(journal, name(1)) == [name(3), name(2)]
    assert (await journal.verify()).intact
    await journal.close()


@pytest.mark.parametrize(
    "statement",
    [
        f"UPDATE parents SET parent = '{name(4)}'",
        "DELETE FROM parents",
        f"INSERT INTO parents VALUES ('{name(2)}', 1, '{name(1)}')",
        f"INSERT INTO parents VALUES ('{name(1)}', 1, '{name(5)}')",
        "INSERT INTO parents VALUES ('nobody', 1, 'nobody')",
    ],
)
async def test_changed_parents_are_found_and_rebuilt(tmp_path: Path, statement: str) -> None:
    await fill(tmp_path)
    change(tmp_path, statement)
    assert "parents" in find(tmp_path)
    rebuild_journal(tmp_path)
    assert find(tmp_path) == ""
    database = apsw.Connection(str(tmp_path / "journal.db"))
    rows = database.execute("SELECT generation_id, parent FROM parents")
    assert dict(rows) == {name(n): parent for n, parent in PARENTS.items() if parent and n != 5}


async def test_parents_of_an_encrypted_journal_are_found_without_its_keys(tmp_path: Path) -> None:
    options = make_options(tmp_path / "keys")
    await fill(tmp_path / "data", options)
    assert find(tmp_path / "data") == ""
    journal = await Journal.open(tmp_path / "data", sealing=options)
    assert await list_ids(journal, name(1)) == [name(3), name(2)]
    assert (await journal.get(name(4))).index.parent == name(2)
    await journal.close()
    database = apsw.Connection(str(tmp_path / "data" / "journal.db"))
    assert len(list(database.execute("SELECT * FROM parents"))) == 3


async def test_journal_of_the_version_before_has_no_parents(tmp_path: Path) -> None:
    journal = await Journal.open(tmp_path)
    payload = started(name(1), 1).SerializeToString()
    journal.create(derive_started_index(payload), payload)
    await journal.close()
    database = apsw.Connection(str(tmp_path / "journal.db"))
    database.execute("DROP TABLE parents; DROP TABLE told_keys")
    # The index of texts has changed since.
    earlier = apsw.Connection(":memory:")
    migrate(earlier, MIGRATIONS[: PARENTS_VERSION - 1])
    for table in ("passages", "searchable"):
        made = earlier.execute("SELECT sql FROM sqlite_schema WHERE name = ?", (table,)).get
        database.execute(f"DROP TABLE {table}")
        database.execute(made)
    database.pragma("user_version", PARENTS_VERSION - 1)
    database.close()
    assert find(tmp_path) == ""
    journal = await Journal.open(tmp_path)
    assert (await journal.get(name(1))).index.parent == ""
    assert await list_ids(journal, name(1)) == []
    await journal.close()
    assert find(tmp_path) == ""
