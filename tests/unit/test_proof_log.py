"""The transparency log over a real journal: growing, restarting, publishing, proving."""

import asyncio
import logging

import apsw
import pytest
from transparency import (
    generate,
    grow,
    make_options,
    open_log,
)
from waiting import wait_until

from whence.proof.checkpoints import verify_checkpoint
from whence.proof.merkle import verify_consistency, verify_inclusion
from whence.proof.merkle_tree import hash_leaf
from whence.proof.notes import VerifierKey
from whence_server.domain.entries import EntryKind
from whence_server.domain.errors import (
    ConfigurationError,
    InvalidRequestError,
    StatementNotLoggedError,
)
from whence_server.journal.journal import Journal
from whence_server.proof.key_files import write_private
from whence_server.proof.log import tables
from whence_server.proof.log.files import LogDirectory
from whence_server.proof.log.log import TransparencyLog
from whence_server.proof.log.sequencer import SequencerOptions
from whence_server.proof.log.statements import find_digest
from whence_server.proof.log.tiles import Tile, list_tiles, parse_path


async def read_digests(journal):
    entries = await journal.read_committed(0, 10_000)
    return [find_digest(it) for it in entries if it.kind is EntryKind.FINISHED]


async def test_every_ended_generation_is_proved_to_be_in_a_log_that_only_grows(tmp_path):
    async with open_log(tmp_path) as (journal, log):
        earlier = await grow(journal, log, *range(1, 6))
        assert earlier.size == 5
        newest = await grow(journal, log, *range(6, 301))
        assert newest.size == 300
        key = VerifierKey.parse(log.verifier_key)
        for place, digest in enumerate(await read_digests(journal)):
            proof = await log.prove_inclusion(digest)
            assert (proof.leaf_index, proof.size) == (place, 300)
            root = verify_checkpoint(proof.checkpoint, key).checkpoint.root
            leaf = hash_leaf(digest)
            assert verify_inclusion(leaf, place, proof.size, proof.path, root)
        grown = await log.prove_consistency(earlier.size)
        assert verify_consistency(5, earlier.root, 300, newest.root, grown.path)
        with pytest.raises(StatementNotLoggedError):
            await log.prove_inclusion(bytes(32))
        for size in (-1, 301, 2**62):
            with pytest.raises(InvalidRequestError, match="at most 300"):
                await log.prove_consistency(size)


async def test_a_log_goes_on_after_restarts_and_deletions_with_each_entry_once(tmp_path):
    async with open_log(tmp_path) as (journal, log):
        first = await grow(journal, log, 1, 2, 3)
        generate(journal, 4)
        await journal.flush()
    async with open_log(tmp_path) as (journal, log):
        await journal.delete("00000000-0000-4000-9000-000000000002")
        last = await grow(journal, log, 5)
        assert last.size == 5
        proof = await log.prove_consistency(first.size)
        assert verify_consistency(first.size, first.root, 5, last.root, proof.path)
        # A cursor that stands too early gives no entry a second leaf.
        rows = await journal.tree.read(
            lambda it: it.execute("SELECT count(*), count(DISTINCT position) FROM tree_leaves").get
        )
        assert rows == (5, 5)
    database = apsw.Connection(str(tmp_path / "data" / "journal.db"))
    database.execute("DELETE FROM cursors")
    database.close()
    async with open_log(tmp_path) as (journal, log):
        assert (await grow(journal, log)).root == last.root


async def test_leaves_and_checkpoint_are_in_the_same_transaction(tmp_path, monkeypatch):
    def fail(*_arguments):
        raise RuntimeError("killed before the end of the transaction")

    async with open_log(tmp_path) as (journal, log):
        before = await grow(journal, log, 1)
        with monkeypatch.context() as patch:
            patch.setattr(tables, "add_checkpoint", fail)
            generate(journal, 2)
            await journal.flush()
            assert not await log.flush(0.5)
            state = await journal.tree.read(tables.read_state)
            assert state.size == before.size
        assert (await grow(journal, log)).size == 2


async def test_published_files_are_whole_after_every_checkpoint(tmp_path):
    folder = tmp_path / "public"
    async with open_log(tmp_path, make_options(tmp_path, directory=folder)) as (journal, log):
        key = VerifierKey.parse(log.verifier_key)
        for numbers in (range(1, 4), range(4, 300), range(300, 515)):
            newest = await grow(journal, log, *numbers)

            def is_shown(size=newest.size):
                raw = folder.joinpath("checkpoint")
                return (
                    raw.exists()
                    and verify_checkpoint(raw.read_bytes(), key).checkpoint.size == size
                )

            await wait_until(is_shown, 60)
            for tile in list_tiles(0, newest.size):
                content = (folder / tile.path).read_bytes()
                assert content == await log.read_resource(tile.path)
                assert len(content) == tile.width * (34 if tile.level < 0 else 32)
        assert sorted(it.name for it in (folder / "tile").iterdir()) == ["0", "1", "entries"]
        assert await log.read_resource("tile/0/002.p/4") is None
        assert await log.read_resource("tile/9/000.p/1") is None


async def test_a_store_behind_what_is_published_does_not_start(tmp_path):
    folder = tmp_path / "public"
    options = make_options(tmp_path, directory=folder)
    async with open_log(tmp_path, options) as (journal, log):
        await grow(journal, log, 1, 2)
    old = tmp_path / "old"
    with pytest.raises(ConfigurationError, match=r"'whence/.*choose another directory"):
        async with open_log(tmp_path, options, old):
            pass
    database = apsw.Connection(str(tmp_path / "data" / "journal.db"))
    database.execute("UPDATE tree SET size = 1; DELETE FROM tree_leaves WHERE number = 1")
    database.close()
    with pytest.raises(ConfigurationError, match=r"shows 2 entries.*log has 1.*old copy"):
        async with open_log(tmp_path, options):
            pass


async def test_a_restored_backup_that_went_on_does_not_start_over_what_is_published(tmp_path):
    folder = tmp_path / "public"
    options = make_options(tmp_path, origin="example.com/log", directory=folder)
    async with open_log(tmp_path, options) as (journal, log):
        await grow(journal, log, 1, 2, 3)
    shown = (folder / "checkpoint").read_bytes()
    restored = tmp_path / "restored"
    quiet = make_options(tmp_path, origin="example.com/log")
    async with open_log(tmp_path, quiet, restored) as (journal, log):
        await grow(journal, log, 7, 8, 9, 10)
    with pytest.raises(ConfigurationError, match=r"shows 3 entries.*begins with others"):
        async with open_log(tmp_path, options, restored):
            pass
    assert (folder / "checkpoint").read_bytes() == shown
    (folder / "checkpoint").write_bytes(shown.replace(b"\n3\n", b"\n2\n"))
    with pytest.raises(ConfigurationError, match=r"is wrong.*choose an empty directory"):
        async with open_log(tmp_path, options):
            pass


async def test_only_a_full_page_is_followed_by_another_one_at_once(tmp_path):
    options = make_options(tmp_path, pace=SequencerOptions(interval_s=0.1, max_entries=2))
    journal = await Journal.open(tmp_path / "data")
    log = await TransparencyLog.open(journal, options)
    generate(journal, 1, 2, 3)
    await journal.flush()
    sequencer = log.make_follower(journal)
    assert await sequencer._append_next()
    # A checkpoint for each entry that comes meanwhile would be one transaction after the other.
    assert not await sequencer._append_next()
    assert (await journal.tree.read(tables.read_state)).size == 3
    await log.close()
    await journal.close()


async def test_an_end_that_cannot_be_read_is_named(tmp_path, caplog):
    async with open_log(tmp_path) as (journal, log):
        await grow(journal, log, 1)
        read = journal.tree.read_finished

        async def read_damaged(after_position, limit):
            entries, reached = await read(after_position, limit)
            return [it._replace(kind=EntryKind.UNREADABLE, payload=b"") for it in entries], reached

        journal.tree.read_finished = read_damaged
        assert (await grow(journal, log, 2)).size == 1
        assert "the end of generation 00000000-0000-4000-9000-000000000002" in caplog.text
        journal.tree.read_finished = read


async def test_an_idle_server_signs_what_was_left_unsigned_once_the_key_is_back(tmp_path):
    async with open_log(tmp_path) as (journal, log):
        await grow(journal, log, 1)
    key = tmp_path / "log-key.pem"
    content = key.read_bytes()
    key.unlink()
    async with open_log(tmp_path) as (journal, log):
        await grow(journal, log, 2)
    write_private(key, content)
    async with open_log(tmp_path) as (_, log):
        await wait_until(lambda: log.stats.size == 2, 60)


async def test_a_log_does_not_begin_over_the_entries_of_another(tmp_path):
    async with open_log(tmp_path) as (journal, log):
        await grow(journal, log, 1)
    database = apsw.Connection(str(tmp_path / "data" / "journal.db"))
    database.execute("DELETE FROM tree")
    database.close()
    with pytest.raises(ConfigurationError, match="table tree has no row"):
        async with open_log(tmp_path):
            pass


async def test_files_of_two_servers_do_not_meet_in_one_draft(tmp_path):
    directory = LogDirectory(tmp_path)
    contents = [bytes([it]) * 100_000 for it in range(8)]

    async def write(content):
        for _ in range(20):
            await asyncio.to_thread(directory.write, Tile(0, 0, 256), content)

    await asyncio.gather(*map(write, contents))
    assert (tmp_path / "tile/0/000").read_bytes() in contents
    assert [it.name for it in (tmp_path / "tile/0").iterdir()] == ["000"]
    assert (tmp_path / "tile/0/000").stat().st_mode & 0o777 == 0o644


async def test_without_its_key_a_log_grows_and_signs_nothing(tmp_path, caplog):
    async with open_log(tmp_path) as (journal, log):
        first = await grow(journal, log, 1)
    key = tmp_path / "log-key.pem"
    assert key.stat().st_mode & 0o777 == 0o600
    content = key.read_bytes()
    key.unlink()
    with caplog.at_level(logging.ERROR):
        async with open_log(tmp_path) as (journal, log):
            assert (await grow(journal, log, 2)).size == 1
    assert "is missing" in caplog.text
    assert not key.exists()
    write_private(key, content)
    async with open_log(tmp_path) as (journal, log):
        newest = await grow(journal, log, 3)
        assert newest.size == 3
        proof = await log.prove_consistency(1)
        assert verify_consistency(1, first.root, 3, newest.root, proof.path)


async def test_a_log_keeps_its_name(tmp_path):
    options = make_options(tmp_path, origin="example.com/log")
    async with open_log(tmp_path, options) as (_, log):
        assert log.origin == "example.com/log"
    async with open_log(tmp_path) as (_, log):
        assert log.origin == "example.com/log"
    with pytest.raises(ConfigurationError, match="a log keeps its name"):
        async with open_log(tmp_path, make_options(tmp_path, origin="example.com/other")):
            pass


@pytest.mark.parametrize(
    "path",
    [
        "",
        "tile/0/0",
        "tile/00/000",
        "tile/0/000.p/256",
        "tile/0/000.p/0",
        "tile/0/x000/000",
        "tile/0/../checkpoint",
        "tile/8/000",
        "tile/entries/000/",
        "tile/0/" + "x001/" * 7 + "000",
        "tile/0/٠٠٠",
    ],
)
def test_other_paths_are_no_tiles(path):
    assert parse_path(path) is None


@pytest.mark.parametrize(
    ("tile", "path", "end"),
    [
        (Tile(0, 0, 3), "tile/0/000.p/3", 3),
        (Tile(-1, 1_234_067, 256), "tile/entries/x001/x234/067", 1_234_068 * 256),
        (Tile(1, 999, 1), "tile/1/999.p/1", (999 * 256 + 1) * 256),
    ],
)
def test_tiles_have_the_paths_of_the_specification(tile, path, end):
    assert (tile.path, tile.end) == (path, end)
    assert parse_path(path) == tile
