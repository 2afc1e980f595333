"""Owners of generations in the journal: listed, verified, rebuilt, and gone after a deletion."""

from pathlib import Path

import apsw
import pytest
from journal_cases import FINISH
from journal_records import change, started

from whence.v1.deletion_pb2 import Deletion
from whence.v1.generation_pb2 import GenerationFinished
from whence_server.domain.errors import InvalidRequestError
from whence_server.journal.derive import derive_started_index
from whence_server.journal.journal import Journal
from whence_server.journal.rebuild import rebuild_journal
from whence_server.journal.rows import ListFilter
from whence_server.journal.schema import MIGRATIONS, migrate
from whence_server.journal.verify import verify_journal

FINISHED = GenerationFinished(
    finish_reason=FINISH.finish_reason.value, num_generated_tokens=3
).SerializeToString()
OWNERS = {1: "alice", 2: "bob", 3: "alice", 4: "", 5: "alice"}


def name(number: int) -> str:
    return f"00000000-0000-4000-8000-00000000000{number}"


@pytest.fixture
async def data_dir(tmp_path: Path) -> Path:
    await fill(tmp_path)
    return tmp_path


async def fill(directory: Path) -> None:
    journal = await Journal.open(directory)
    for number, owner in OWNERS.items():
        message = started(name(number), number)
        message.owner = owner
        payload = message.SerializeToString()
        journal.create(derive_started_index(payload), payload)
        finish = type(FINISH)(FINISH.finish_reason, 3, "")
        journal.finish(name(number), FINISHED, finish)
    await journal.flush()
    await journal.delete(name(5), "carol")
    await journal.close()


def find(data_dir: Path) -> str:
    return "\n".join(map(str, verify_journal(data_dir).findings))


async def list_ids(journal: Journal, **fields: object) -> list[str]:
    found, token = [], ""
    while True:
        rows, token = await journal.list(ListFilter(**fields), 1, token)  # type: ignore[arg-type]
        found += [row.generation_id for row in rows]
        if not token:
            return found


async def test_list_of_an_owner_has_its_generations_alone(tmp_path: Path, each_store: str) -> None:
    await fill(tmp_path)
    journal = await Journal.open(tmp_path)
    assert await list_ids(journal) == [name(4), name(3), name(2), name(1)]
    assert await list_ids(journal, owner="alice") == [name(3), name(1)]
    assert await list_ids(journal, owner="alice", labels={"number": "2"}) == []
    assert await list_ids(journal, owner="alice", labels={"number": "3"}) == [name(3)]
    assert await list_ids(journal, owner="alice", trace_id=f"{1:032x}") == [name(1)]
    assert await list_ids(journal, owner="alice", model="tiny") == [name(3), name(1)]
    assert await list_ids(journal, owner="carol") == []
    assert (await journal.get(name(2))).index.owner == "bob"
    _, token = await journal.list(ListFilter(owner="alice"), 1)
    with pytest.raises(InvalidRequestError, match="another filter"):
        await journal.list(ListFilter(owner="bob"), 1, token)
    await journal.close()


def test_deletion_names_the_caller_and_leaves_no_owner(data_dir: Path) -> None:
    database = apsw.Connection(str(data_dir / "journal.db"))
    ((payload,),) = database.execute("SELECT payload FROM entries WHERE kind = 7")
    assert Deletion.FromString(payload).caller_id == "carol"
    owned = "SELECT generation_id FROM owners ORDER BY generation_id"
    assert [row[0] for row in database.execute(owned)] == [name(1), name(2), name(3)]
    assert find(data_dir) == ""


@pytest.mark.parametrize(
    "statement",
    [
        "UPDATE owners SET owner = 'bob'",
        "DELETE FROM owners WHERE owner = 'alice'",
        f"INSERT INTO owners VALUES ('bob', 1, '{name(4)}')",
        f"INSERT INTO owners VALUES ('bob', 1, '{name(5)}')",
        "INSERT INTO owners VALUES ('bob', 1, 'nobody')",
        "UPDATE owners SET start_time_ns = 1 WHERE owner = 'bob'",
        "UPDATE owners SET owner = CAST(x'ff41' AS TEXT) WHERE owner = 'bob'",
    ],
)
def test_changed_owners_are_found_and_rebuilt(data_dir: Path, statement: str) -> None:
    change(data_dir, statement)
    assert "owners" in find(data_dir) or "owner" in find(data_dir)
    rebuild_journal(data_dir)
    assert find(data_dir) == ""
    database = apsw.Connection(str(data_dir / "journal.db"))
    rows = database.execute("SELECT generation_id, owner FROM owners ORDER BY generation_id")
    assert dict(rows) == {name(n): owner for n, owner in OWNERS.items() if owner and n != 5}


async def test_journal_of_the_version_before_has_no_owners(data_dir: Path) -> None:
    database = apsw.Connection(str(data_dir / "journal.db"))
    earlier = apsw.Connection(":memory:")
    migrate(earlier, MIGRATIONS[:2])
    cursors = earlier.execute("SELECT sql FROM sqlite_schema WHERE name = 'cursors'").get
    database.execute("DROP TABLE owners; DROP TABLE origins; DROP INDEX generations_kept")
    trees = ("tree", "tree_leaves", "tree_nodes", "tree_checkpoints")
    later = (*trees, "passages", "searchable", "parents", "told_keys")
    for table in later:
        database.execute(f"DROP TABLE {table}")
    for statement in ("DROP TABLE cursors", cursors):
        database.execute(statement)
    database.pragma("user_version", 2)
    database.close()
    assert find(data_dir) == ""
    journal = await Journal.open(data_dir)
    assert (await journal.get(name(2))).index.owner == ""
    await journal.close()
