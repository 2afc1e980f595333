"""Following one generation: from memory while the reader keeps up, from disk when it lags."""

from collections.abc import AsyncGenerator, Awaitable, Callable

from whence_server.domain.entries import Entry, EntryKind
from whence_server.domain.errors import RecordDamagedError
from whence_server.journal.tail import LiveGeneration


async def follow(
    live: LiveGeneration | None,
    read: Callable[[int], Awaitable[list[Entry]]],
    check: Callable[[], None],
    wait_elsewhere: Callable[[], Awaitable[bool]],
    *,
    after_offset: int,
    max_batch_bytes: int,
) -> AsyncGenerator[list[Entry], None]:
    """Yield a generation's entries after an offset, up to and always including FINISHED.

    Args:
        live: the generation, if it is running.
        read: reads the entries on disk after an offset; the last entry if there are none.
        check: raises if no new entry can be committed.
        wait_elsewhere: waits for news if another server may run the generation; else returns False.
        after_offset: offset up to which entries are skipped.
        max_batch_bytes: limit of the payloads in a batch; a single entry may exceed it.

    Raises:
        RecordDamagedError: the generation is not running and entries are missing; those before
            the first missing one have been yielded.
    """
    cursor = after_offset
    while live is not None and not live.closed:
        batch = live.read_after(cursor, max_batch_bytes)
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
        sound = _truncate_at_gap(batch, cursor)
        if sound:
            yield sound
        elif batch[-1].offset <= cursor and not _is_end(batch) and await wait_elsewhere():
            continue
        if len(sound) < len(batch):
            raise _make_missing_error(batch[0].generation_id, sound[-1].offset if sound else cursor)
        if _is_end(batch):
            return
        cursor = batch[-1].offset


def _truncate_at_gap(batch: list[Entry], cursor: int) -> list[Entry]:
    """Return the entries up to the first gap; FINISHED alone is no gap after a later cursor."""
    if _is_end(batch) and batch[-1].offset <= cursor:
        return batch
    for number, entry in enumerate(batch, start=1):
        if entry.offset != cursor + number:
            return batch[: number - 1]
    return batch


def _make_missing_error(generation_id: str, offset: int) -> RecordDamagedError:
    return RecordDamagedError(
        generation_id, f"it is not running, and the entry after its offset {offset} is missing"
    )


def _is_end(batch: list[Entry]) -> bool:
    return batch[-1].kind is EntryKind.FINISHED
