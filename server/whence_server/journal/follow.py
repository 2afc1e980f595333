"""Follows one generation: from memory while the reader keeps up, from disk where it lags."""

from collections.abc import AsyncGenerator, Awaitable, Callable

from whence_server.domain.entries import Entry, EntryKind
from whence_server.journal.tail import LiveGeneration


async def follow(
    live: LiveGeneration | None,
    read: Callable[[int], Awaitable[list[Entry]]],
    check: Callable[[], None],
    *,
    after_offset: int,
    max_batch_bytes: int,
) -> AsyncGenerator[list[Entry], None]:
    """A generation's entries beyond an offset, until FINISHED, which comes in any case.

    Args:
        live: the generation, if it is running.
        read: what is on disk beyond an offset; the last entry where there is nothing.
        check: raises when nothing new can come any more.
        after_offset: entries up to it are left out.
        max_batch_bytes: of payloads in a batch; a single entry may exceed it.
    """
    cursor = after_offset
    while live is not None and not live.closed:
        batch = live.after(cursor, max_batch_bytes)
        if batch is None:
            batch = await read(cursor)
        if not batch:
            check()
            await live.changed.wait()
            continue
        yield batch
        if _is_end(batch):
            return
        cursor = batch[-1].offset
    while True:
        batch = await read(cursor)
        yield batch
        if _is_end(batch):
            return
        cursor = batch[-1].offset


def _is_end(batch: list[Entry]) -> bool:
    return batch[-1].kind is EntryKind.FINISHED
