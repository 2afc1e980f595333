"""Lists take bounded work and memory for a page, for every filter."""

import asyncio
import shutil
import threading

import apsw
import pytest
from large_journal import START_NS, large_journal
from store_hooks import StoreHooks

from whence_server.journal import sql_list, sql_lookup
from whence_server.journal.journal import Journal
from whence_server.journal.listing import PageKey
from whence_server.journal.rows import Durability, ListFilter
from whence_server.journal.sqlite_store import SqliteStore
from whence_server.journal.store import Batch

NUM_GENERATIONS = 20_000
NOTHING = {f"label {i}": "none" for i in range(32)}


@pytest.fixture(scope="module")
def database(tmp_path_factory):
    path = large_journal(tmp_path_factory.mktemp("large"), NUM_GENERATIONS)
    connection = apsw.Connection(str(path))
    yield connection
    connection.close()


def page_and_steps(connection, list_filter, beyond=None, limit=50):
    """Read a page; return it with the steps of SQLite's virtual machine, in thousands."""
    ticks = []
    connection.set_progress_handler(lambda: bool(ticks.append(1)), 1_000)
    try:
        page = sql_list.read_page(connection, list_filter, beyond, limit, 1 << 20)
    finally:
        connection.set_progress_handler(None)
    return page, len(ticks)


@pytest.mark.parametrize(
    ("list_filter", "thousands"),
    [
        (ListFilter(), 20),
        (ListFilter(labels=NOTHING), 2),
        (ListFilter(labels={"team": "blue"} | {f"l{i}": "none" for i in range(31)}), 3),
        (ListFilter(labels={"rare": "yes", "parity": "1"}), 30),
        (ListFilter(labels={"rare": "yes"}), 30),
        (ListFilter(trace_id="0" * 31 + "7"), 5),
        (ListFilter(model="unknown"), 2),
        (ListFilter(start_after_ns=START_NS + 2 * NUM_GENERATIONS), 2),
        (ListFilter(start_before_ns=START_NS), 2),
        # No index serves these alone: the walk ends after a bounded number.
        (ListFilter(labels={"parity": "1", "rare": "yes"}), 250),
        (ListFilter(labels={"team": "blue", "parity": "1"}, model="unknown"), 5),
        (ListFilter(labels={"team": "blue", "parity": "2"}), 3),
    ],
)
def test_sqlite_steps_of_a_page_are_bounded(database, list_filter, thousands):
    _, steps = page_and_steps(database, list_filter)
    assert steps <= thousands


@pytest.mark.parametrize(
    ("list_filter", "number"),
    [
        (ListFilter(), NUM_GENERATIONS),
        (ListFilter(labels={"rare": "yes"}), 200),
        (ListFilter(labels={"rare": "yes", "parity": "1"}), 0),
        (ListFilter(labels={"team": "blue", "parity": "1"}), 10_000),
        (ListFilter(labels={"team": "blue"}, model="other"), 0),
        (ListFilter(labels={"team": "blue"}, start_after_ns=START_NS + 19_990), 10),
        (ListFilter(labels={"rare": "yes"}, start_before_ns=START_NS + 301), 3),
    ],
)
def test_all_pages_equal_a_plain_query(database, list_filter, number):
    seen, beyond, num_pages = [], None, 0
    while True:
        page, _ = page_and_steps(database, list_filter, beyond, limit=999)
        seen += [row.generation_id for row in page.rows]
        num_pages += 1
        assert num_pages < 60
        if page.end is None:
            break
        assert page.end != beyond
        beyond = page.end
    assert len(seen) == number
    assert seen == sorted(set(seen), reverse=True)


def test_page_ends_after_max_examined_generations(database, monkeypatch):
    monkeypatch.setattr(sql_list, "MAX_EXAMINED", 2_000)
    wanted = ListFilter(labels={"parity": "1", "rare": "yes"})
    page, _ = page_and_steps(database, wanted)
    assert (page.rows, page.end) == (
        [],
        PageKey(START_NS + 16_001, b"00000000-0000-4000-8000-000000016001"),
    )


def test_query_planner_uses_the_intended_indexes(database):
    plans = []
    database.exec_trace = None
    for wanted, index in (
        (ListFilter(labels={"rare": "yes"}), "d USING PRIMARY KEY (name=? AND value=?"),
        (ListFilter(model="tiny"), "generations_by_model (model=?"),
        (ListFilter(trace_id="7"), "generations_by_trace (trace_id=?"),
        (ListFilter(start_after_ns=5), "generations_by_start (start_time_ns>?"),
    ):
        chosen = sql_list._choose_index(database, wanted)
        conditions = sql_list._make_walk_conditions(chosen, wanted, None, None)
        sql = f"SELECT 1 FROM {chosen.source} WHERE {sql_list._join_sql(conditions)}"
        bindings = sql_list._collect_bindings(conditions)
        plan = database.execute(f"EXPLAIN QUERY PLAN {sql}", bindings).fetchall()
        plans.append(plan)
        assert index in plan[0][3]


async def test_a_page_is_bounded_in_bytes(tmp_path):
    large_journal(tmp_path, 300, num_labels=32)
    journal = await Journal.open(tmp_path)
    seen, token = [], ""
    while True:
        rows, token = await journal.list(ListFilter(), 1_000, token)
        assert 0 < sum(len(str(row.index.labels)) for row in rows) < 2 << 20
        seen += [row.generation_id for row in rows]
        if not token:
            break
    assert len(seen) == len(set(seen)) == 300
    await journal.close()


async def test_look_ups_do_not_wait_for_lists(tmp_path):
    large_journal(tmp_path, 10)
    go_on = threading.Event()
    hooks = StoreHooks(before_page=lambda: go_on.wait(30))
    journal = await Journal.open(tmp_path, open_store=hooks.open_store)
    lists = [journal.list(ListFilter(), 10) for _ in range(12)]

    listing = asyncio.gather(*lists)
    for _ in range(20):
        assert (await journal.get("00000000-0000-4000-8000-000000000007")).damage == ""
    assert not listing.done()
    go_on.set()
    assert {len(rows) for rows, _ in await listing} == {10}
    await journal.close()


async def test_migration_fills_the_label_index(tmp_path, monkeypatch):
    monkeypatch.setattr("whence_server.journal.label_index._SLICE", 7)
    path = large_journal(tmp_path, 50)
    database = apsw.Connection(str(path))
    whole = database.execute("SELECT * FROM labels").fetchall()
    # As the first schema had it.
    database.execute(
        "DROP TABLE origins; DROP INDEX generations_kept; "
        "DROP TABLE owners; DROP TABLE labels; DROP INDEX generations_by_model; "
        "DROP TABLE tree; DROP TABLE tree_leaves; DROP TABLE tree_nodes; "
        "DROP TABLE tree_checkpoints; DROP TABLE passages; DROP TABLE searchable; "
        "DROP TABLE parents; DROP TABLE told_keys; "
        "DROP TABLE cursors; "
        "CREATE TABLE cursors (name TEXT PRIMARY KEY, position INTEGER NOT NULL) "
        "STRICT, WITHOUT ROWID; INSERT INTO cursors VALUES ('otlp-spans', 3);"
        "UPDATE generations SET labels = 'none' WHERE started_position = 1"
    )
    database.pragma("user_version", 1)
    database.close()
    journal = await Journal.open(tmp_path)
    rows, _ = await journal.list(ListFilter(labels={"parity": "1"}), 100)
    assert len(rows) == 24
    assert await journal.read_cursor("otlp-spans") == 3
    await journal.close()
    database = apsw.Connection(str(path))
    left = database.execute("SELECT * FROM labels").fetchall()
    assert len(whole) - len(left) == 2
    database.close()


@pytest.mark.parametrize("number", [1, NUM_GENERATIONS // 2, NUM_GENERATIONS])
def test_sqlite_steps_of_a_deletion_do_not_grow_with_the_journal(database, number, tmp_path):
    generation_id = f"00000000-0000-4000-8000-{number:012d}"
    copy = tmp_path / "journal.db"
    shutil.copy(database.filename, copy)
    store = SqliteStore(copy, Durability.GROUP)
    ticks = []
    connection = store._connection
    connection.set_progress_handler(lambda: bool(ticks.append(1)), 100)
    digests = sql_lookup.read_entry_digests(connection, generation_id, 1)
    store.write(Batch(deleted=[(generation_id, 2**62)], last_position=1))
    connection.set_progress_handler(None)
    assert len(digests[1]) == 2
    assert store.find_generation(generation_id).deleted
    assert len(ticks) <= 10
    store.close()
