"""Signing keys of the servers that share a database: each tells them all."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from whence.proof.key_list import find_trusted
from whence.proof.public_key import PublicKey
from whence.v1 import proof_pb2
from whence_server.domain.errors import JournalUnreachableError
from whence_server.journal.journal import Journal
from whence_server.journal.postgres.store import PostgresStore
from whence_server.proof import key_board
from whence_server.proof.key_board import KeyBoard, merge_keys
from whence_server.proof.signing_keys import KEY_NAME, LIST_NAME, SigningKeys, rotate


@pytest.fixture
def url(postgres: Any, tmp_path: Path) -> str:
    made: str = postgres.make_journal_url(str(tmp_path))
    return made


@pytest.fixture(autouse=True)
def fast(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("whence_server.proof.signing_keys._LOOK_S", 0.0)
    monkeypatch.setattr(key_board, "_LOOK_S", 0.05)


@asynccontextmanager
async def open_server(url: str, folder: Path, key: Path | None = None) -> AsyncIterator[KeyBoard]:
    """Open a server's journal and keys; yield its board."""
    folder.mkdir(exist_ok=True)
    journal = await Journal.open(folder, open_store=lambda *_: PostgresStore(url, 60.0))
    try:
        keys = SigningKeys.open(key or folder / KEY_NAME, folder / LIST_NAME)
        board = KeyBoard(journal.tree, keys)
        await board.start()
        try:
            yield board
        finally:
            await board.close()
    finally:
        await journal.close()


async def list_ids(board: KeyBoard) -> list[tuple[str, bool]]:
    return [(key.key_id, key.active) for key in await board.list_keys()]


async def test_every_server_tells_the_keys_of_all_and_follows_their_rotations(
    url: str, tmp_path: Path
) -> None:
    async with open_server(url, tmp_path / "a") as a:
        ((of_a, _),) = await list_ids(a)
        async with open_server(url, tmp_path / "b") as b:
            (first, (of_b, _)) = await list_ids(b)
            assert first == (of_a, True)
            assert await list_ids(a) == [(of_b, True), (of_a, True)]
            # Nobody asks the server whose key is replaced.
            new_id = rotate(tmp_path / "b" / KEY_NAME, tmp_path / "b" / LIST_NAME, 10).key.key_id
            expected = [(of_b, False), (new_id, True), (of_a, True)]
            for _ in range(2_000):
                if (found := await list_ids(a)) == expected:
                    break
                await asyncio.sleep(0.02)
            assert found == expected
            # A bundle of any server has the lists of all: who trusts one key follows its own list.
            entries = await a.list_entries()
            pems = {key.key_id: key.public_key_pem for key in await a.list_keys()}
            assert set(find_trusted([PublicKey(pems[of_b])], entries)) == {of_b, new_id}
            assert set(find_trusted([PublicKey(pems[of_a])], entries)) == {of_a}
        # The keys of a server that has ended stay: it has signed with them, and signs no more.
        ended = [(of_b, False), (new_id, False), (of_a, True)]
        assert await list_ids(a) == ended
        # Another server takes over its number in the database, with a key of its own.
        async with open_server(url, tmp_path / "c") as c:
            found = dict(await list_ids(c))
            assert {of_b: False, new_id: False, of_a: True}.items() <= found.items()
            assert len(found) == 4


async def test_servers_with_one_key_file_list_it_once(url: str, tmp_path: Path) -> None:
    shared = tmp_path / "shared.pem"
    async with (
        open_server(url, tmp_path / "a", shared) as a,
        open_server(url, tmp_path / "b", shared) as b,
    ):
        assert len(await list_ids(a)) == 1
        assert await list_ids(a) == await list_ids(b)
        (entry,) = await b.list_entries()
        (key,) = await b.list_keys()
        assert find_trusted([PublicKey(key.public_key_pem)], [entry])


async def test_stolen_keys_are_told_with_the_time_and_are_in_no_bundle(
    url: str, tmp_path: Path
) -> None:
    async with open_server(url, tmp_path / "a") as a, open_server(url, tmp_path / "b") as b:
        theft = datetime(2026, 1, 2, tzinfo=UTC)
        place = tmp_path / "b" / KEY_NAME, tmp_path / "b" / LIST_NAME
        new_id = rotate(*place, 10, theft).key.key_id
        assert await list_ids(b)
        told = [key for key in await a.list_keys() if key.HasField("stolen_since")]
        assert [key.stolen_since.ToDatetime(UTC) for key in told] == [theft]
        entries = await a.list_entries()
        assert told[0].entry not in entries
        assert new_id in {key.key_id for key in await a.list_keys()}
        assert len(entries) == 2


async def test_theft_is_told_also_if_only_one_of_the_servers_with_a_key_knows_it(
    url: str, tmp_path: Path
) -> None:
    shared = tmp_path / "shared.pem"
    async with open_server(url, tmp_path / "a", shared) as a:
        ((stolen_id, _),) = await list_ids(a)
    async with (
        # The number of a is that of the server that does not share its key.
        open_server(url, tmp_path / "c") as c,
        open_server(url, tmp_path / "b", shared) as b,
    ):
        theft = datetime(2026, 1, 2, tzinfo=UTC)
        rotate(shared, tmp_path / "b" / LIST_NAME, 10, theft)
        assert await list_ids(b)
        told = {key.key_id: key for key in await c.list_keys()}
        assert told[stolen_id].stolen_since.ToDatetime(UTC) == theft
        assert not told[stolen_id].active
        assert told[stolen_id].entry not in await c.list_entries()


def test_earliest_time_of_a_theft_counts() -> None:
    def make_key(since: int = 0, *, active: bool = False) -> proof_pb2.SigningKey:
        key = proof_pb2.SigningKey(key_id="k", active=active)
        if since:
            key.stolen_since.seconds = since
        return key

    for told in (
        [[make_key(active=True)], [make_key(7)], [make_key(5)]],
        [[make_key(5)], [make_key(7)], [make_key(active=True)]],
    ):
        (key,) = merge_keys(told).values()
        assert (key.stolen_since.seconds, key.active) == (5, False)
    (key,) = merge_keys([[make_key()], [make_key(active=True)]]).values()
    assert key.active


async def test_changes_of_the_keys_are_written_one_after_the_other(
    tmp_path: Path,
) -> None:
    written: list[int] = []
    begun, release = asyncio.Event(), asyncio.Event()

    class Slow:
        writer, is_shared = 1, True

        async def change(self, change: Any) -> None:
            begun.set()
            await release.wait()
            written.append(len(change.args[0]))

        async def read(self, _read: Any) -> list[Any]:
            return []

    board = KeyBoard(Slow(), SigningKeys.open(tmp_path / KEY_NAME, tmp_path / LIST_NAME))
    first = asyncio.create_task(board.list_keys())
    await asyncio.wait_for(begun.wait(), 60)
    rotate(tmp_path / KEY_NAME, tmp_path / LIST_NAME, 10)
    second = asyncio.create_task(board.list_keys())
    await asyncio.sleep(0)
    release.set()
    await asyncio.wait_for(asyncio.gather(first, second), 60)
    assert written == [1, 2]


async def test_own_keys_are_told_while_the_database_is_away(
    url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    async def fail(*_: object) -> None:
        raise JournalUnreachableError("the database is away")

    async with open_server(url, tmp_path / "a") as a, open_server(url, tmp_path / "b"):
        (_, own) = await list_ids(a)
        monkeypatch.setattr(a._tables, "read", fail)
        monkeypatch.setattr(a._tables, "change", fail)
        rotate(tmp_path / "a" / KEY_NAME, tmp_path / "a" / LIST_NAME, 10)
        found = await list_ids(a)
        assert (found[0], len(found)) == ((own[0], False), 2)
        assert "other servers do not know this one's signing keys yet" in caplog.text


async def test_a_server_with_a_journal_of_its_own_tells_its_keys_alone(tmp_path: Path) -> None:
    journal = await Journal.open(tmp_path)
    try:
        board = KeyBoard(journal.tree, SigningKeys.open(tmp_path / KEY_NAME, tmp_path / LIST_NAME))
        await board.start()
        ((_, is_active),) = await list_ids(board)
        assert is_active
        rows = await journal.tree.read(lambda it: it.execute("SELECT * FROM told_keys").fetchall())
        assert not rows
        await board.close()
    finally:
        await journal.close()
