"""Signing keys of all servers that share a journal's database, as each of them tells them."""

import asyncio
import contextlib
import logging
from collections.abc import Callable, Sequence
from typing import Any, Protocol, TypeVar

from google.protobuf.message import DecodeError

from whence.proof.key_list import MAX_ENTRIES
from whence.v1 import proof_pb2
from whence_server.domain.errors import JournalError
from whence_server.proof.signing_keys import Listed, SigningKeys

T = TypeVar("T")
_log = logging.getLogger(__name__)

_UPSERT = (
    "INSERT INTO signing_keys (writer, keys) VALUES (?, ?) "
    "ON CONFLICT (writer) DO UPDATE SET keys = excluded.keys"
)
_SELECT = "SELECT keys FROM signing_keys WHERE writer <> ? ORDER BY writer"
_LOOK_S = 5.0
"""Seconds between two looks for a rotation that nothing else notices, on an idle server."""


class Tables(Protocol):
    """Access to the table, beside one log of the journal."""

    writer: int
    is_shared: bool

    async def change(self, change: Callable[[Any], T]) -> T:
        """Call a function in a transaction."""

    async def read(self, read: Callable[[Any], T]) -> T:
        """Call a function with a connection that sees one state of the database."""


class KeyBoard:
    """Keys of this server and of the others of its database.

    A server that has its journal for itself puts nothing there.

    Args:
        tables: access to the table.
        keys: this server's keys.
    """

    def __init__(self, tables: Tables, keys: SigningKeys) -> None:
        self._tables = tables
        self._keys = keys
        self._told = b""
        self._task: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Tell this server's keys, and go on telling them after each rotation."""
        if self._tables.is_shared:
            await self._tell()
            self._task = asyncio.create_task(self._keep_telling(), name="signing keys")

    async def close(self) -> None:
        """Stop; the keys stay told, as generations are signed with them."""
        if self._task is not None:
            self._task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._task

    async def list_keys(self) -> list[proof_pb2.SigningKey]:
        """Return the keys of all servers, this one's last; its last one signs now.

        While the database is away, these are this server's alone.
        """
        own = describe_keys(self._keys).keys
        if not self._tables.is_shared:
            return list(own)
        await self._tell()
        try:
            rows = await self._tables.read(
                lambda it: it.execute(_SELECT, (self._tables.writer,)).fetchall()
            )
        except JournalError as error:
            _log.warning("the keys of other servers are not listed: %s", error)
            rows = []
        # Servers with one key file each began a list with its key: a key is listed once.
        seen, others = {key.key_id for key in own}, []
        for (data,) in rows:
            for key in _parse(bytes(data)):
                if key.key_id not in seen:
                    seen.add(key.key_id)
                    others.append(key)
        return [*others, *own]

    async def list_entries(self) -> Sequence[bytes]:
        """Return the entries for a bundle: as many as one may have, this server's before others."""
        listed = await self.list_keys()
        return [key.entry for key in listed if not key.HasField("stolen_since")][-MAX_ENTRIES:]

    async def _keep_telling(self) -> None:
        while True:
            await asyncio.sleep(_LOOK_S)
            await self._tell()

    async def _tell(self) -> None:
        told = describe_keys(self._keys).SerializeToString()
        if told == self._told:
            return
        row = (self._tables.writer, told)

        def write(connection: Any) -> None:
            connection.execute(_UPSERT, row)

        try:
            await self._tables.change(write)
        except JournalError as error:
            _log.warning("other servers do not know this one's signing keys yet: %s", error)
        else:
            self._told = told


def describe_keys(keys: SigningKeys) -> proof_pb2.GetKeysResponse:
    """Return one server's keys, oldest first; those of lists with a stolen key come before."""
    answer = proof_pb2.GetKeysResponse()
    listed = keys.list_keys()
    for one, since in keys.list_stolen():
        key = _add_key(answer, one)
        if since is not None:
            key.stolen_since.FromDatetime(since)
    for one in listed:
        _add_key(answer, one).active = one is listed[-1]
    return answer


def _add_key(answer: proof_pb2.GetKeysResponse, listed: Listed) -> proof_pb2.SigningKey:
    key = listed.entry.key
    return answer.keys.add(key_id=key.key_id, public_key_pem=key.pem, entry=listed.data)


def _parse(data: bytes) -> Sequence[proof_pb2.SigningKey]:
    try:
        return proof_pb2.GetKeysResponse.FromString(data).keys
    except DecodeError:
        return []
