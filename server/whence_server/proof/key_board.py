"""Signing keys of all servers that share a journal's database, as each of them tells them."""

import asyncio
import contextlib
import logging
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from itertools import chain
from typing import Any, Protocol, TypeVar

from google.protobuf.message import DecodeError

from whence.proof.key_list import MAX_ENTRIES
from whence.v1 import proof_pb2
from whence_server.domain.errors import JournalError
from whence_server.proof.signing_keys import Listed, SigningKeys

T = TypeVar("T")
_log = logging.getLogger(__name__)

_UPSERT = (
    "INSERT INTO told_keys (key_id, writer, place, active, key) VALUES (?, ?, ?, ?, ?) "
    "ON CONFLICT (key_id, writer) DO UPDATE SET "
    "place = excluded.place, active = excluded.active, key = excluded.key"
)
_RETIRE = "UPDATE told_keys SET active = 0 WHERE writer = ?"
_SELECT_OWN = "SELECT key FROM told_keys WHERE key_id = ? AND writer = ?"
# A server that was killed cannot say that it signs no more: its lease runs out.
_SELECT = """
    SELECT k.key, k.active = 1 AND EXISTS (
        SELECT 1 FROM leases l
        WHERE l.writer = k.writer AND l.holder IS NOT NULL AND l.expires_at > clock_timestamp())
    FROM told_keys k ORDER BY k.writer, k.place, k.key_id
"""
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
        self._telling = asyncio.Lock()
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
        own = list(describe_keys(self._keys).keys)
        if not self._tables.is_shared:
            return own
        await self._tell()
        try:
            rows = await self._tables.read(lambda it: it.execute(_SELECT).fetchall())
        except JournalError as error:
            _log.warning("the keys of other servers are not listed: %s", error)
            rows = []
        others = merge_keys(_parse(bytes(data), is_active=bool(signs)) for data, signs in rows)
        for key in own:
            if (other := others.pop(key.key_id, None)) is not None:
                _keep_theft(key, other)
        return [*others.values(), *own]

    async def list_entries(self) -> Sequence[bytes]:
        """Return the entries for a bundle: as many as one may have, this server's before others."""
        listed = await self.list_keys()
        return [key.entry for key in listed if not key.HasField("stolen_since")][-MAX_ENTRIES:]

    async def _keep_telling(self) -> None:
        while True:
            await asyncio.sleep(_LOOK_S)
            try:
                await self._tell()
            except Exception:  # noqa: BLE001 - the next look may succeed
                _log.exception("the signing keys could not be told to other servers")

    async def _tell(self) -> None:
        # Of two changes at once, the older keys could be committed last.
        async with self._telling:
            listed = describe_keys(self._keys)
            told = listed.SerializeToString()
            if told == self._told:
                return
            try:
                await self._tables.change(partial(_write, list(listed.keys), self._tables.writer))
            except JournalError as error:
                _log.warning("other servers do not know this one's signing keys yet: %s", error)
            else:
                self._told = told


def _write(keys: Sequence[proof_pb2.SigningKey], writer: int, connection: Any) -> None:
    """Write a server's keys; those that its log's earlier servers told stay, and sign no more."""
    connection.execute(_RETIRE, (writer,))
    for place, key in enumerate(keys):
        key_id, written = bytes.fromhex(key.key_id), proof_pb2.SigningKey()
        written.CopyFrom(key)
        for (data,) in connection.execute(_SELECT_OWN, (key_id, writer)).fetchall():
            for earlier in _parse(bytes(data)):
                _keep_theft(written, earlier)
        row = (key_id, writer, place, int(key.active), written.SerializeToString())
        connection.execute(_UPSERT, row)


def merge_keys(
    told: Iterable[Sequence[proof_pb2.SigningKey]],
) -> dict[str, proof_pb2.SigningKey]:
    """Return each key once, by its id: servers with one key file tell the same ones.

    One that any of them knows to be stolen is stolen, since the earliest time that is told.
    """
    merged: dict[str, proof_pb2.SigningKey] = {}
    for key in chain.from_iterable(told):
        first = merged.setdefault(key.key_id, key)
        first.active = first.active or key.active
        _keep_theft(first, key)
    for key in merged.values():
        key.active = key.active and not key.HasField("stolen_since")
    return merged


def _keep_theft(key: proof_pb2.SigningKey, other: proof_pb2.SigningKey) -> None:
    """Take over the time of a theft from another word about a key, if it is the earlier one."""
    if other.HasField("stolen_since") and not (
        key.HasField("stolen_since")
        and key.stolen_since.ToNanoseconds() <= other.stolen_since.ToNanoseconds()
    ):
        key.stolen_since.CopyFrom(other.stolen_since)


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


def _parse(data: bytes, *, is_active: bool = False) -> Sequence[proof_pb2.SigningKey]:
    try:
        key = proof_pb2.SigningKey.FromString(data)
    except DecodeError:
        return []
    key.active = is_active
    return [key]
