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
from whence_server.domain.errors import JournalUnreachableError
from whence_server.journal.journal import Journal
from whence_server.journal.postgres.store import PostgresStore
from whence_server.proof import key_board
from whence_server.proof.key_board import KeyBoard
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
        # The keys of a server that has ended stay: it has signed with them.
        assert await list_ids(a) == expected


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
        rows = await journal.tree.read(
            lambda it: it.execute("SELECT * FROM signing_keys").fetchall()
        )
        assert not rows
        await board.close()
    finally:
        await journal.close()
