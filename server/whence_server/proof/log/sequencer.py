"""Sequencer: appends the digests of one log of the journal to the transparency log.

It reads behind the journal's commits, so that no stream waits for it. New leaves and the signed
checkpoint over them are one transaction, which is on disk before anybody sees the checkpoint: no
later state of the log can contradict one that was shown.
"""

import asyncio
import logging
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol, TypeVar

from whence.proof.checkpoints import Checkpoint
from whence.proof.notes import NoteSigner, SignedNote
from whence_server.domain.entries import Entry, EntryKind
from whence_server.domain.errors import WhenceError
from whence_server.proof.log import tables
from whence_server.proof.log.statements import find_digest
from whence_server.proof.log.tables import Leaf

_log = logging.getLogger(__name__)

T = TypeVar("T")

CURSOR = "transparency-log"
"""Name of the journal's cursor."""
_FULL_BYTES = 4 << 20
"""Half of the most bytes that are read at once: a smaller page has everything that there was."""
_FIRST_RETRY_S, _LAST_RETRY_S = 0.5, 30.0


class TreeAccess(Protocol):
    """Access to the log's tables, and to the journal's FINISHED entries."""

    @property
    def writer(self) -> int:
        """Number of the writer of the journal's log."""

    @property
    def is_shared(self) -> bool:
        """True if other servers grow the same transparency log."""

    async def change(self, change: Callable[[Any], T]) -> T:
        """Call a function in one durable transaction."""
        ...

    async def read(self, read: Callable[[Any], T]) -> T:
        """Call a function that reads one state of the database."""
        ...

    async def read_finished(self, after_position: int, limit: int) -> tuple[list[Entry], int]:
        """Return the next FINISHED entries, and the position up to which all were read."""
        ...


class SequencedJournal(Protocol):
    """One log of the journal."""

    @property
    def tree(self) -> TreeAccess:
        """Tables of the transparency log."""

    @property
    def committed_position(self) -> int:
        """Position of the newest committed entry."""

    async def wait_committed(self, after_position: int) -> None:
        """Wait until an entry is committed after a position."""

    async def read_cursor(self, name: str) -> int:
        """Return the position that a cursor has reached."""
        ...

    def advance(self, name: str, position: int) -> None:
        """Move a cursor; durable with the next commit."""


@dataclass(frozen=True, slots=True)
class SequencerOptions:
    """Pace of a sequencer.

    Attributes:
        interval_s: seconds between two checkpoints.
        max_entries: most entries between two checkpoints; with more, several follow at once.
    """

    interval_s: float = 1.0
    max_entries: int = 1_000


class _Appended(NamedTuple):
    """Result of one transaction."""

    num_leaves: int
    has_checkpoint: bool


class Sequencer:
    """Task that appends the digests of one log of the journal, each once.

    Args:
        journal: the log of the journal.
        signer: signs checkpoints; None at a server without the log's key, where another one signs.
        options: pace.
        publishes_at_once: True if a checkpoint needs no cosignature to be published.
        on_checkpoint: called after a checkpoint was stored.
        find: returns the digest of a FINISHED entry's statement; None if it has none.
    """

    def __init__(
        self,
        journal: SequencedJournal,
        signer: NoteSigner | None,
        options: SequencerOptions = SequencerOptions(),
        *,
        publishes_at_once: bool = True,
        on_checkpoint: Callable[[], None] = lambda: None,
        find: Callable[[Entry], bytes | None] = find_digest,
    ) -> None:
        self._journal = journal
        self._signer = signer
        self._options = options
        self._publishes_at_once = publishes_at_once
        self._on_checkpoint = on_checkpoint
        self._find = find
        self._position: int | None = None
        self._is_first_look = True
        self._moved = asyncio.Event()
        self._hurry = asyncio.Event()
        self._retry_s = _FIRST_RETRY_S
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Start in the running event loop."""
        self._task = asyncio.create_task(self._run(), name=CURSOR)

    async def flush(self, timeout_s: float) -> bool:
        """Append what is committed by now, without waiting for the interval's end.

        Returns:
            False if the time ran out.
        """
        target = self._journal.committed_position
        self._hurry.set()
        try:
            async with asyncio.timeout(timeout_s):
                while self._position is None or self._position < target:
                    self._moved.clear()
                    self._hurry.set()
                    await self._moved.wait()
        except TimeoutError:
            return False
        finally:
            self._hurry.clear()
        return True

    async def close(self) -> None:
        """Stop; the next start goes on from the last leaf."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
            self._task = None

    async def _run(self) -> None:
        while True:
            try:
                await self._follow()
            except Exception as error:  # noqa: BLE001 - it is reported, and sequencing goes on
                _report(error, self._retry_s)
                await asyncio.sleep(self._retry_s)
                self._retry_s = min(2 * self._retry_s, _LAST_RETRY_S)

    async def _follow(self) -> None:
        if self._position is None:
            writer = self._journal.tree.writer
            last = await self._journal.tree.read(lambda it: tables.find_last_position(it, writer))
            self._position = max(last, await self._journal.read_cursor(CURSOR))
        while True:
            while await self._append_next():
                pass
            self._retry_s = _FIRST_RETRY_S
            await self._wait()

    async def _append_next(self) -> bool:
        """Append the next entries and sign a checkpoint; return True if there may be more."""
        position, limit = self._position or 0, self._options.max_entries
        entries, reached = await self._journal.tree.read_finished(position, limit)
        leaves = self._make_leaves(entries)
        if leaves or await self._has_unsigned():
            appended = await self._journal.tree.change(lambda it: self._append(it, leaves))
            if appended.has_checkpoint:
                self._on_checkpoint()
        if reached > position:
            self._journal.advance(CURSOR, reached)
        self._position = reached
        self._moved.set()
        # A page that is not full ends at the newest entry: the next checkpoint waits for its time.
        num_bytes = sum(len(entry.payload) for entry in entries)
        return len(entries) >= limit or num_bytes >= _FULL_BYTES

    async def _has_unsigned(self) -> bool:
        """Return whether there are leaves that this server has to sign.

        Another server has appended them, or this one at a time when it did not have the key.
        """
        tree = self._journal.tree
        if self._signer is None or not (tree.is_shared or self._is_first_look):
            return False
        state = await tree.read(tables.read_state)
        newest = await tree.read(lambda it: tables.find_newest_checkpoint(it, published=False))
        self._is_first_look = False
        return state is not None and state.size > (0 if newest is None else newest.size)

    def _make_leaves(self, entries: list[Entry]) -> list[Leaf]:
        writer = self._journal.tree.writer
        for entry in entries:
            if entry.kind is EntryKind.UNREADABLE:
                _log.warning(
                    "entry %d, the end of generation %s, cannot be read: its statement does not "
                    "get into the transparency log",
                    *(entry.position, entry.generation_id),
                )
        digests = ((entry.position, self._find(entry)) for entry in entries)
        return [Leaf(digest, writer, position) for position, digest in digests if digest]

    def _append(self, connection: Any, leaves: list[Leaf]) -> _Appended:
        """Append the leaves that are not there yet, and sign the log's new state."""
        size = tables.lock_size(connection)
        # The cursor is stored later than the leaves, and another server may have had this log.
        last = tables.find_last_position(connection, self._journal.tree.writer)
        new = [leaf for leaf in leaves if leaf.position > last]
        if new:
            size = tables.append_leaves(connection, size, new)
        newest = tables.find_newest_checkpoint(connection, published=False)
        if self._signer is None or size <= (0 if newest is None else newest.size):
            return _Appended(len(new), has_checkpoint=False)
        note = sign_state(self._signer, size, tables.make_reader(connection, size).compute_root())
        published = note if self._publishes_at_once else None
        tables.add_checkpoint(connection, size, note, published)
        return _Appended(len(new), has_checkpoint=True)

    async def _wait(self) -> None:
        """Wait for new entries, then until the next checkpoint is due."""
        position = self._position or 0
        if self._journal.tree.is_shared:
            # The log also grows by other servers.
            with suppress(TimeoutError):
                async with asyncio.timeout(self._options.interval_s):
                    await self._journal.wait_committed(position)
        else:
            await self._journal.wait_committed(position)
        with suppress(TimeoutError):
            async with asyncio.timeout(self._options.interval_s):
                await self._hurry.wait()
                self._hurry.clear()


def sign_state(signer: NoteSigner, size: int, root: bytes) -> bytes:
    """Return the signed checkpoint of a state of the log."""
    text = Checkpoint(signer.key.name, size, root).format()
    return SignedNote(text, (signer.sign(text),)).format()


def _report(error: Exception, retry_s: float) -> None:
    if isinstance(error, WhenceError):
        _log.error("the transparency log cannot grow at present: %s", error)
    else:
        _log.error(
            "the transparency log failed, and is tried again in %.1f s", retry_s, exc_info=error
        )
