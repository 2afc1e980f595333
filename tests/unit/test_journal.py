"""Appending and look-ups, across restarts and failures."""

import asyncio
import itertools
import stat
import subprocess
import sys
import textwrap

import apsw
import pytest
from journal_cases import FINISH, append_steps, collect, create, finish, index, settle, whole
from sealed_journals import make_options

from whence_server.domain.decoding import FinishReason
from whence_server.domain.entries import EntryKind
from whence_server.domain.errors import (
    ConfigurationError,
    GenerationExistsError,
    GenerationNotFoundError,
    GenerationRunningError,
    JournalError,
)
from whence_server.journal.journal import Journal
from whence_server.journal.rows import Durability, FinishIndex
from whence_server.journal.schema import MIGRATIONS, migrate
from whence_server.journal.sqlite_store import check_sqlite_version

FORMS = [
    *itertools.product(Durability, ["sqlite"], [None, "sealed"]),
    *itertools.product(Durability, ["postgres"], [None]),
    (Durability.GROUP, "postgres", "sealed"),
]
"""Durabilities, databases and forms of content."""


@pytest.fixture(params=FORMS, ids=str)
async def journal(request, tmp_path, use_store):
    durability, store, form = request.param
    keys = use_store(store)
    sealing = make_options(tmp_path / "master.key", keys) if form else None
    journal = await Journal.open(tmp_path / "data", durability=durability, sealing=sealing)
    yield journal
    await journal.close()


async def test_start_time_of_more_than_64_bits_is_refused_alone(journal):
    for start_time_ns in (2**63, -(2**63) - 1):
        with pytest.raises(ValueError, match="more than 64 bits"):
            create(journal, "far away", start_time_ns=start_time_ns)
    create(journal, "g")
    await journal.flush()
    assert (await journal.look_up("far away")) is None
    assert (await journal.look_up("g")) is not None


async def test_offsets_and_positions_have_no_gaps(journal):
    assert journal.create(index("g1"), b"start 1") == 1
    assert journal.create(index("g2"), b"start 2") == 1
    assert journal.append("g1", EntryKind.STEP, b"one") == 2
    journal.record_call("g1", b"call")
    assert journal.append("g2", EntryKind.STEP, b"two") == 2
    assert journal.finish("g1", b"end", FINISH) == 3
    await journal.flush()
    assert journal.committed_position == journal.position == 6
    entries = await journal.read_committed(0)
    assert [(e.position, e.generation_id, e.offset, e.kind, e.payload) for e in entries] == [
        (1, "g1", 1, EntryKind.STARTED, b"start 1"),
        (2, "g2", 1, EntryKind.STARTED, b"start 2"),
        (3, "g1", 2, EntryKind.STEP, b"one"),
        (4, "g1", 0, EntryKind.CALL, b"call"),
        (5, "g2", 2, EntryKind.STEP, b"two"),
        (6, "g1", 3, EntryKind.FINISHED, b"end"),
    ]
    assert [e.position for e in await journal.read_committed(2, limit=3)] == [3, 4, 5]
    assert [e.position for e in await journal.read_committed(3, max_bytes=1)] == [4]
    assert await journal.read_committed(2**64 - 1) == []


async def test_read_filters_by_offset_kind_and_limit(journal):
    create(journal, "g")
    journal.append("g", EntryKind.PROMPT_STEP, b"prompt")
    append_steps(journal, "g", b"0", b"1", b"2")
    journal.record_call("g", b"call")
    finish(journal, "g")
    everything = await journal.read("g")
    assert [e.offset for e in everything] == [1, 2, 3, 4, 5, 6]
    assert [e.payload for e in await journal.read("g", 3, limit=2)] == [b"1", b"2"]
    steps = await journal.read("g", kinds=[EntryKind.STEP], limit=2)
    assert [e.payload for e in steps] == [b"0", b"1"]
    ends = await journal.read("g", kinds={EntryKind.STARTED, EntryKind.FINISHED})
    assert [e.payload for e in ends] == [b"started", b"finished"]
    assert [e.payload for e in await journal.read("g", 4, kinds=[EntryKind.CALL])] == [b"call"]
    assert await journal.read("g", 2**64 - 1) == []
    assert await journal.read("g", kinds=[]) == []
    with pytest.raises(GenerationNotFoundError):
        await journal.read("other")


async def test_call_of_an_unknown_generation_is_recorded_without_an_id(journal):
    journal.record_call("", b"one")
    journal.record_call("never started", b"two")
    await journal.flush()
    entries = await journal.read_committed(0)
    assert [(e.generation_id, e.payload) for e in entries] == [("", b"one"), ("", b"two")]


async def test_look_up_returns_running_and_finished_rows_and_none_for_unknown_ids(journal):
    assert await journal.look_up("g") is None
    create(journal, "g")
    assert (await journal.get("g")).finish is None
    await journal.flush()
    assert (await journal.look_up("g")).request_digest == "d" * 64
    finish(journal, "g")
    assert (await journal.get("g")).finish == FINISH
    await journal.flush()
    row = await journal.get("g")
    assert (row.index, row.finish, row.deleted) == (index("g"), FINISH, False)
    with pytest.raises(GenerationNotFoundError, match="is not on record"):
        await journal.get("other")


async def test_an_id_is_used_once(journal):
    create(journal, "g")
    with pytest.raises(GenerationExistsError):
        create(journal, "g")
    finish(journal, "g")
    await journal.flush()
    with pytest.raises(GenerationExistsError):
        create(journal, "g")
    await journal.delete("g")
    with pytest.raises(GenerationExistsError, match="deleted"):
        create(journal, "g")
    assert (await journal.verify()).num_entries == 3


async def test_only_a_running_generation_takes_entries(journal):
    with pytest.raises(GenerationNotFoundError):
        append_steps(journal, "g", b"")
    whole(journal, "g")
    with pytest.raises(GenerationNotFoundError):
        append_steps(journal, "g", b"")
    with pytest.raises(GenerationNotFoundError):
        finish(journal, "g")
    create(journal, "h")
    for kind in (EntryKind.STARTED, EntryKind.FINISHED, EntryKind.CALL, EntryKind.DELETED):
        with pytest.raises(ValueError, match="another method"):
            journal.append("h", kind, b"")
    assert journal.position == 6


async def test_preview_with_a_lone_surrogate_does_not_fail_the_batch(journal):
    create(journal, "g", prompt_preview="half \ud800", labels={"k": "\ud800"})
    journal.finish("g", b"end", FinishIndex(FinishReason.STOP, 0, "\udfff"))
    await journal.flush()
    row = await journal.get("g")
    assert (row.index.prompt_preview, row.finish.text_preview) == ("half ?", "?")
    assert row.index.labels == {"k": "?"}


async def test_entries_rows_and_unfinished_generations_survive_a_restart(tmp_path, each_store):
    journal = await Journal.open(tmp_path)
    whole(journal, "done", 2)
    create(journal, "open 1")
    create(journal, "open 2")
    append_steps(journal, "open 1", b"a", b"b")
    await journal.close()

    journal = await Journal.open(tmp_path)
    assert journal.list_unfinished() == ["open 1", "open 2"]
    assert journal.position == journal.committed_position == 8
    with pytest.raises(GenerationExistsError):
        create(journal, "open 1")
    assert journal.append("open 1", EntryKind.STEP, b"c") == 4
    create(journal, "new")
    finish(journal, "open 1")
    assert journal.list_unfinished() == ["open 2"]
    assert [e.payload for e in await collect(journal.follow("open 1"))] == [
        b"started", b"a", b"b", b"c", b"finished",
    ]  # fmt: skip
    report = await journal.verify()
    assert (report.num_entries, report.intact) == (11, True)
    await journal.close()


async def test_cursors_only_move_forward_and_are_durable(tmp_path, each_store):
    journal = await Journal.open(tmp_path)
    whole(journal, "g")
    assert await journal.read_cursor("otlp") == 0
    with pytest.raises(ValueError, match="from 0 to 0"):
        journal.advance("otlp", 1)
    await journal.flush()
    journal.advance("otlp", 4)
    journal.advance("other", 1)
    assert await journal.read_cursor("otlp") == 4
    with pytest.raises(ValueError, match="from 4 to 5, not 3"):
        journal.advance("otlp", 3)
    await journal.close()
    journal = await Journal.open(tmp_path)
    assert (await journal.read_cursor("otlp"), await journal.read_cursor("other")) == (4, 1)
    await journal.close()


async def test_cursor_is_committed_without_new_entries(journal, tmp_path):
    create(journal, "g")
    await journal.flush()
    journal.advance("otlp", 1)
    await journal.flush()
    assert journal._store.load_state().cursors == {"otlp": 1}


# ---- when it becomes visible and durable ----


async def test_group_shows_an_entry_at_once(tmp_path):
    journal = await Journal.open(tmp_path, commit_interval_s=60)
    create(journal, "g")
    assert [e.offset for e in await anext(journal.follow("g"))] == [1]
    assert journal.committed_position == 0
    await journal.close()


async def test_group_commits_within_its_interval_by_itself(tmp_path):
    journal = await Journal.open(tmp_path, commit_interval_s=0.001)
    create(journal, "g")
    await journal.wait_committed(0)
    append_steps(journal, "g", b"1")
    await journal.wait_committed(1)
    await journal.close()


async def test_strict_shows_nothing_that_is_not_on_disk(tmp_path, each_store):
    journal = await Journal.open(tmp_path, durability=Durability.STRICT)
    follower = journal.follow("g")
    create(journal, "g")
    follower = journal.follow("g")
    first = asyncio.ensure_future(anext(follower))
    await asyncio.sleep(0)
    assert not first.done()
    assert (await first)[-1].position <= journal.committed_position
    append_steps(journal, "g", b"1", b"2")
    finish(journal, "g")
    async for batch in follower:
        assert batch[-1].position <= journal.committed_position
    assert batch[-1].kind is EntryKind.FINISHED
    await journal.close()


@pytest.mark.parametrize(("durability", "level"), [("group", 1), ("strict", 2)])
async def test_write_connection_has_wal_secure_delete_and_the_durabilitys_sync_level(
    tmp_path, durability, level
):
    journal = await Journal.open(tmp_path / "new", durability=Durability(durability))
    connection = journal._store._connection
    assert connection.pragma("synchronous") == level
    assert connection.pragma("journal_mode") == "wal"
    assert connection.pragma("secure_delete") == 1
    assert stat.S_IMODE((tmp_path / "new").stat().st_mode) == 0o700
    await journal.close()


async def test_wait_writable_blocks_until_pending_bytes_are_committed(tmp_path, monkeypatch):
    journal = await Journal.open(tmp_path, max_pending_bytes=1_000, commit_interval_s=60)
    create(journal, "g")
    await asyncio.wait_for(journal.wait_writable(), 5)
    assert journal.committed_position == 0
    append_steps(journal, "g", b"x" * 2_000)
    await journal.wait_writable()
    assert journal.committed_position == 2
    await journal.close()


# ---- failures ----


async def test_close_ends_waiting_followers_with_an_error(tmp_path, each_store):
    journal = await Journal.open(tmp_path)
    create(journal, "g")
    follower = asyncio.ensure_future(collect(journal.follow("g")))
    await settle()
    await journal.close()
    with pytest.raises(JournalError, match="closed"):
        await follower
    with pytest.raises(JournalError, match="closed"):
        append_steps(journal, "g", b"")


async def test_a_second_server_on_the_directory_is_refused(tmp_path):
    journal = await Journal.open(tmp_path)
    script = textwrap.dedent(
        """
        import asyncio, pathlib, sys
        from whence_server.domain.errors import ConfigurationError
        from whence_server.journal.journal import Journal
        try:
            asyncio.run(Journal.open(pathlib.Path(sys.argv[1])))
        except ConfigurationError as error:
            print(error)
        """
    )
    command = [sys.executable, "-c", script, str(tmp_path)]
    done = await asyncio.to_thread(subprocess.run, command, capture_output=True, check=True)
    assert b"another server" in done.stdout
    assert b"--data-dir" in done.stdout
    with pytest.raises(ConfigurationError, match="another server"):
        await Journal.open(tmp_path)
    await journal.close()
    await (await Journal.open(tmp_path)).close()


async def test_newer_schema_is_refused_and_not_changed(tmp_path):
    await (await Journal.open(tmp_path)).close()
    database = apsw.Connection(str(tmp_path / "journal.db"))
    database.pragma("user_version", 99)
    database.close()
    with pytest.raises(ConfigurationError, match="version 99"):
        await Journal.open(tmp_path)
    database = apsw.Connection(str(tmp_path / "journal.db"))
    assert database.pragma("user_version") == 99
    database.close()


async def test_a_file_that_is_no_database_is_refused(tmp_path):
    (tmp_path / "journal.db").write_bytes(b"not a database " * 1_000)
    with pytest.raises(ConfigurationError, match=r"journal\.db"):
        await Journal.open(tmp_path)


async def test_data_directory_that_cannot_be_created_is_refused(tmp_path):
    (tmp_path / "file").write_bytes(b"")
    for path in (tmp_path / "file", tmp_path / "file" / "below"):
        with pytest.raises(ConfigurationError, match="data directory"):
            await Journal.open(path)


def test_each_migration_is_all_or_nothing(tmp_path):
    database = apsw.Connection(str(tmp_path / "x.db"))
    steps = (*MIGRATIONS, "CREATE TABLE extra (a); CREATE TABLE extra (a);")
    with pytest.raises(apsw.SQLError):
        migrate(database, steps)
    assert database.pragma("user_version") == len(MIGRATIONS)
    assert database.execute("SELECT count(*) FROM sqlite_schema WHERE name = 'extra'").get == 0
    migrate(database, (*MIGRATIONS, "CREATE TABLE extra (a);"))
    assert database.pragma("user_version") == len(MIGRATIONS) + 1
    database.close()


@pytest.mark.parametrize("version", ["3.7.17", "3.40.1", "3.51.2"])
def test_an_sqlite_that_can_corrupt_the_log_is_refused(version):
    with pytest.raises(ConfigurationError, match=version):
        check_sqlite_version(version)


@pytest.mark.parametrize("version", ["3.51.3", "3.52.0", "4.0.0"])
def test_sqlite_version_without_the_wal_reset_bug_is_accepted(version):
    check_sqlite_version(version)


async def test_a_running_generation_cannot_be_deleted(journal):
    create(journal, "g")
    with pytest.raises(GenerationRunningError, match="cancel it first"):
        await journal.delete("g")
    with pytest.raises(GenerationNotFoundError):
        await journal.delete("other")
