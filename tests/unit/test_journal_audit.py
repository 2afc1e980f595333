"""Comparison of every column with the entries, and reads beside a damaged row."""

import asyncio
import shutil
from contextlib import suppress

import apsw
import pytest
from journal_records import (
    DELETED,
    FIRST,
    RUNNING,
    SECOND,
    START_NS,
    begin,
    change,
    end,
    fill,
    started,
)
from store_hooks import StoreHooks

from whence_server.domain.entries import EntryKind
from whence_server.domain.errors import (
    ConfigurationError,
    GenerationNotFoundError,
    RecordDamagedError,
)
from whence_server.generation.recovery import close_interrupted
from whence_server.journal import sql_lookup
from whence_server.journal.journal import Journal
from whence_server.journal.rebuild import rebuild_journal
from whence_server.journal.rows import ListFilter
from whence_server.journal.verify import verify_journal

SWAP_IDS = (
    f"UPDATE generations SET generation_id = 'x' WHERE generation_id = '{FIRST}'",
    f"UPDATE generations SET generation_id = '{FIRST}' WHERE generation_id = '{SECOND}'",
    f"UPDATE generations SET generation_id = '{SECOND}' WHERE generation_id = 'x'",
)
INSERT_AT_999 = """
INSERT INTO generations SELECT 'z', writer, 999, secret, trace_id, model, start_time_ns,
    request_digest, labels, prompt_preview, num_prompt_tokens, finish_reason,
    num_generated_tokens, text_preview, deleted FROM generations LIMIT 1
"""
INTEGERS = [
    "started_position",
    "start_time_ns",
    "num_prompt_tokens",
    "finish_reason",
    "num_generated_tokens",
    "deleted",
    "writer",
]
TEXTS = ["trace_id", "model", "request_digest", "labels", "prompt_preview", "text_preview"]


@pytest.fixture(scope="module")
def template(tmp_path_factory):
    """Fill a journal once; each test gets a copy."""
    directory = tmp_path_factory.mktemp("template")
    asyncio.run(fill(directory))
    return directory


@pytest.fixture
def data_dir(template, tmp_path):
    return shutil.copytree(template, tmp_path / "data")


def found(data_dir):
    report = verify_journal(data_dir)
    assert report.intact == (not report.findings)
    return "\n".join(map(str, report.findings))


async def test_an_untouched_journal_is_intact(data_dir):
    report = verify_journal(data_dir)
    assert [str(finding) for finding in report.findings] == []
    assert (report.num_entries, report.num_generations) == (25, 4)
    assert report.notes == []


@pytest.mark.parametrize("row", [FIRST, DELETED, RUNNING])
@pytest.mark.parametrize("column", [*INTEGERS, *TEXTS])
async def test_every_changed_column_of_a_generation_is_named(data_dir, row, column):
    other = f"{column} + 1" if column in INTEGERS else f"{column} || '!'"
    if column == "finish_reason":
        other = "coalesce(finish_reason, 0) + 1"
    change(data_dir, f"UPDATE generations SET {column} = {other} WHERE generation_id = '{row}'")
    text = found(data_dir)
    assert row in text or "generations" in text
    assert column in text or column in {"started_position", "writer"}


@pytest.mark.parametrize("row", [FIRST, DELETED, RUNNING])
@pytest.mark.parametrize("value", ["NULL", "zeroblob(32)", "zeroblob(31)"])
async def test_a_changed_secret_is_found(data_dir, row, value):
    query = f"UPDATE generations SET secret = {value} WHERE generation_id = '{row}'"
    change(data_dir, query)
    same = row == DELETED and value == "NULL"
    assert (found(data_dir) == "") == same


@pytest.mark.parametrize(
    ("statements", "words"),
    [
        (SWAP_IDS, "generation_id"),
        (["UPDATE generations SET finish_reason = NULL"], "finish_reason"),
        (["UPDATE generations SET deleted = 1 - deleted"], "deleted"),
        (
            [f"UPDATE generations SET generation_id = 'y' WHERE generation_id = '{DELETED}'"],
            "generation_id",
        ),
        ([f"DELETE FROM generations WHERE generation_id = '{SECOND}'"], "has no row"),
        ([f"DELETE FROM generations WHERE generation_id = '{DELETED}'"], "has no row"),
        (
            [INSERT_AT_999],
            "no generation starts at position 999",
        ),
        (["UPDATE cursors SET position = 999 WHERE name = 'otlp-spans'"], "after the newest entry"),
        (["UPDATE cursors SET position = -1 WHERE name = 'otlp-spans'"], "after the newest entry"),
        (["UPDATE cursors SET position = 8 WHERE name = 'otlp-spans'"], "does not match its seal"),
        (["UPDATE cursors SET seal = NULL"], "does not match its seal"),
        (
            ["UPDATE cursors SET name = 'other' WHERE name = 'otlp-spans'"],
            "does not match its seal",
        ),
        (
            [
                "UPDATE cursors SET name = 'x' WHERE name = 'otlp-spans'",
                "UPDATE cursors SET name = 'otlp-spans' WHERE name = 'otlp-events'",
                "UPDATE cursors SET name = 'otlp-events' WHERE name = 'x'",
            ],
            "does not match its seal",
        ),
        (["UPDATE generations SET labels = labels || ' '"], "labels: stored"),
        (["UPDATE generations SET labels = replace(labels, ': ', ':')"], "labels: stored"),
        (
            ["UPDATE generations SET labels = replace(hex(zeroblob(20000)), '0', '[')"],
            "labels: stored",
        ),
        (["DELETE FROM labels WHERE name = 'team'"], "a missing row"),
        (["UPDATE labels SET value = 'red' WHERE name = 'team'"], "an extra row"),
        (["UPDATE labels SET start_time_ns = 1"], "an extra row"),
        (["INSERT INTO labels VALUES ('a', 'b', 1, 'nobody')"], "belongs to no generation"),
        (["INSERT INTO writers VALUES (2, x'00')"], "writers"),
        (["UPDATE writers SET writer_id = zeroblob(16)"], "broken at entry 1"),
        (["UPDATE entries SET writer = 2 WHERE position = 25"], "unknown writer"),
        (["UPDATE entries SET inner_digest = x'00' WHERE position = 3"], "inner_digest"),
        (["UPDATE entries SET generation = 2 WHERE position = 1"], "generation"),
        (["UPDATE entries SET generation = 2 WHERE position = 20"], "generation"),
        # The deleted one's step and one of another deleted one: nothing but the digest has it.
        (["UPDATE entries SET inner_digest = zeroblob(32) WHERE position = 15"], "broken"),
        (["CREATE TRIGGER t AFTER INSERT ON labels BEGIN SELECT 1; END"], "schema trigger t"),
        (["DROP INDEX labels_by_generation"], "schema index labels_by_generation"),
    ],
)
async def test_changes_of_other_tables_are_found(data_dir, statements, words):
    change(data_dir, *statements)
    assert words in found(data_dir)


async def test_exchanged_ids_of_two_deleted_generations_are_found(tmp_path):
    journal = await Journal.open(tmp_path)
    for number, generation_id in enumerate((FIRST, SECOND), 1):
        begin(journal, generation_id, number)
        end(journal, generation_id, number)
    for generation_id in (FIRST, SECOND):
        await journal.delete(generation_id)
    await journal.close()
    assert found(tmp_path) == ""
    change(tmp_path, *SWAP_IDS)
    assert found(tmp_path).count("generation_id") == 2


async def test_entry_moved_between_deleted_generations_is_found(tmp_path):
    journal = await Journal.open(tmp_path)
    for number, generation_id in enumerate((FIRST, SECOND), 1):
        begin(journal, generation_id, number)
    for number, generation_id in enumerate((FIRST, SECOND), 1):
        end(journal, generation_id, number)
        await journal.delete(generation_id)
    await journal.close()
    assert found(tmp_path) == ""
    # A call: it has no offset that would tell.
    change(tmp_path, "UPDATE entries SET generation = 5 WHERE kind = 6 AND generation = 1")
    assert "are not the" in found(tmp_path)


async def test_calls_appended_during_a_deletion_are_covered_by_its_digest(tmp_path):
    from journal_records import call

    hooks, loop = StoreHooks(), asyncio.get_running_loop()
    journal = await Journal.open(tmp_path, open_store=hooks.open_store)
    begin(journal, FIRST, 1)
    end(journal, FIRST, 1)
    await journal.flush()
    hooks.after_digests = lambda: loop.call_soon_threadsafe(call, journal, FIRST)
    await journal.delete(FIRST)
    call(journal, FIRST)
    await journal.close()
    assert found(tmp_path) == ""


# ---- a rebuild ----


@pytest.mark.parametrize(
    "statements",
    [
        SWAP_IDS,
        ["UPDATE generations SET finish_reason = NULL, labels = 'none', model = 'other'"],
        ["UPDATE generations SET deleted = 1 - deleted, prompt_preview = 'false'"],
        [f"UPDATE generations SET generation_id = 'y' WHERE generation_id = '{DELETED}'"],
        ["DELETE FROM labels WHERE name = 'team'"],
        ["INSERT INTO labels VALUES ('a', 'b', 1, 'nobody')"],
        ["UPDATE cursors SET position = 999"],
        ["UPDATE cursors SET name = CAST(x'ff41' AS TEXT) WHERE name = 'otlp-spans'"],
        ["UPDATE labels SET value = CAST(x'ff41' AS TEXT)"],
        ["UPDATE labels SET generation_id = CAST(x'ff41' AS TEXT)"],
        ["UPDATE generations SET labels = replace(hex(zeroblob(20000)), '0', '[')"],
    ],
)
async def test_rebuild_repairs_columns_and_does_not_change_entries(data_dir, statements):
    query = "SELECT * FROM entries ORDER BY position"
    before = apsw.Connection(str(data_dir / "journal.db")).execute(query).fetchall()
    head = verify_journal(data_dir).head
    change(data_dir, *statements)
    assert found(data_dir)
    assert rebuild_journal(data_dir) >= 0
    report = verify_journal(data_dir)
    assert [str(finding) for finding in report.findings] == []
    assert report.head == head
    assert apsw.Connection(str(data_dir / "journal.db")).execute(query).fetchall() == before


async def test_rebuild_is_refused_while_a_server_uses_the_journal(data_dir):
    journal = await Journal.open(data_dir)
    with pytest.raises(ConfigurationError, match="another server"):
        rebuild_journal(data_dir)
    with pytest.raises(ConfigurationError, match="a server is using"):
        verify_journal(data_dir)
    await journal.close()


# ---- reads beside bad rows ----


async def test_reads_through_a_row_of_another_generation_are_refused(data_dir):
    change(data_dir, *SWAP_IDS)
    journal = await Journal.open(data_dir)
    for generation_id in (FIRST, SECOND):
        for reading in (
            journal.get(generation_id),
            journal.read(generation_id),
            anext(journal.follow(generation_id)),
            journal.delete(generation_id),
        ):
            with pytest.raises(RecordDamagedError, match="another generation"):
                await reading
    rows, _ = await journal.list(ListFilter(), 10)
    by_id = {row.generation_id: row for row in rows}
    assert by_id[FIRST].damage
    assert by_id[FIRST].index.prompt_preview == ""
    assert (await journal.read(RUNNING))[0].payload == started(RUNNING, 4).SerializeToString()
    await journal.close()


@pytest.mark.parametrize("labels", ["no json", "[1]", '{"a": 1}', "x'ff'", '{"a": "\\ud800"}'])
async def test_damaged_labels_do_not_fail_a_list(data_dir, labels, caplog, monkeypatch):
    # A row is named once in a process.
    monkeypatch.setattr(sql_lookup, "_logged", set())
    value = f"CAST({labels} AS TEXT)" if labels.startswith("x'") else f"'{labels}'"
    change(data_dir, f"UPDATE generations SET labels = {value} WHERE generation_id = '{FIRST}'")
    journal = await Journal.open(data_dir)
    rows, token = await journal.list(ListFilter(), 10)
    assert (len(rows), token) == (3, "")
    (row,) = [row for row in rows if row.generation_id == FIRST]
    assert row.damage
    # What the row cannot say, the entries do.
    assert row.index.labels == {"team": "blue", "number": "1"}
    assert row.index.start_time_ns == START_NS + 1
    assert row.finish.text_preview == "text 1"
    assert FIRST in caplog.text
    assert (await journal.get(FIRST)).index == row.index
    await journal.close()


@pytest.mark.parametrize("stored", ["x'ff41'", "zeroblob(3000)", "x''"])
async def test_an_id_that_is_none_costs_no_page(data_dir, stored):
    new_id = f"generation_id = CAST({stored} AS TEXT)"
    change(data_dir, f"UPDATE generations SET {new_id} WHERE generation_id = '{FIRST}'")
    journal = await Journal.open(data_dir)
    for list_filter in (ListFilter(), ListFilter(model="tiny")):
        rows, token = await journal.list(list_filter, 1)
        while token:
            page, token = await journal.list(list_filter, 1, token)
            rows += page
        assert [row.generation_id for row in rows if not row.damage] == [RUNNING, SECOND]
        assert len(rows) == 3
    await journal.close()


@pytest.mark.parametrize("kind", [1, 3, 5])
async def test_an_entry_that_was_given_to_another_generation_is_not_shown_as_its_own(
    data_dir, kind
):
    moved = f"(SELECT min(position) FROM entries WHERE kind = {kind})"
    other = f"(SELECT started_position FROM generations WHERE generation_id = '{SECOND}')"
    change(data_dir, f"UPDATE entries SET generation = {other} WHERE position = {moved}")
    journal = await Journal.open(data_dir)
    with pytest.raises(RecordDamagedError, match="two entries"):
        await journal.read(SECOND)
    with pytest.raises(RecordDamagedError, match="two entries"):
        await journal.read(SECOND, kinds=[EntryKind(kind)])
    await journal.close()


async def test_a_start_after_a_finish_was_taken_away_does_not_break_the_chain(data_dir):
    change(data_dir, "UPDATE generations SET finish_reason = NULL")
    journal = await Journal.open(data_dir)
    assert journal.list_unfinished() == [RUNNING]
    assert await close_interrupted(journal) == 1
    assert (await journal.get(FIRST)).finish.num_generated_tokens == 3
    assert (await journal.verify()).intact
    await journal.close()
    report = verify_journal(data_dir)
    assert report.chain_intact
    assert {finding.column for finding in report.findings} == {"finish_reason"}


@pytest.mark.parametrize(
    "statement",
    [
        "UPDATE generations SET deleted = 1",
        "UPDATE generations SET deleted = 0",
        "UPDATE generations SET secret = NULL",
        "UPDATE generations SET labels = '?'",
        "UPDATE generations SET finish_reason = 77",
        "UPDATE entries SET kind = 77 WHERE kind = 3",
        "UPDATE entries SET payload = NULL WHERE kind = 3",
        "UPDATE entries SET payload = x'ff' WHERE kind = 1",
        "UPDATE entries SET payload = x'ff' WHERE kind = 5",
        "DELETE FROM entries WHERE kind = 1",
        "UPDATE cursors SET position = 999",
        "DELETE FROM generations",
    ],
)
async def test_damaged_journal_opens_and_serves_undamaged_generations(data_dir, statement):
    change(data_dir, statement)
    journal = await Journal.open(data_dir)
    await close_interrupted(journal)
    assert await journal.read_cursor("otlp-spans") in {0, 7}
    await journal.list(ListFilter(labels={"team": "blue"}), 10)
    await journal.read_committed(0)
    for generation_id in (FIRST, DELETED, RUNNING):
        for reading in (journal.get, journal.read):
            with suppress(GenerationNotFoundError, RecordDamagedError):
                await reading(generation_id)
    begin(journal, "00000000-0000-4000-8000-00000000000a", 9)
    await journal.flush()
    await journal.close()


async def test_row_with_a_position_after_the_log_end_prevents_opening(data_dir):
    change(
        data_dir,
        f"UPDATE generations SET started_position = 99 WHERE generation_id = '{FIRST}'",
    )
    with pytest.raises(ConfigurationError, match=r"position after.*verify"):
        await Journal.open(data_dir)
