"""Follows one generation: from memory while the reader keeps up, from disk where it lags."""

from collections.abc import AsyncGenerator, Awaitable, Callable

from whence_server.domain.entries import Entry, EntryKind
from whence_server.domain.errors import RecordDamagedError
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

    Raises:
        RecordDamagedError: of a generation that does not run, entries are missing; those
            before the first missing one have been yielded.
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
        sound = _up_to_a_gap(batch, cursor)
        if sound:
            yield sound
        if len(sound) < len(batch):
            raise _missing(batch[0].generation_id, sound[-1].offset if sound else cursor)
        if _is_end(batch):
            return
        cursor = batch[-1].offset


def _up_to_a_gap(batch: list[Entry], cursor: int) -> list[Entry]:
    """The entries that follow the cursor without a gap; FINISHED follows every cursor beyond it."""
    if _is_end(batch) and batch[-1].offset <= cursor:
        return batch
    for number, entry in enumerate(batch, start=1):
        if entry.offset != cursor + number:
            return batch[: number - 1]
    return batch


def _missing(generation_id: str, offset: int) -> RecordDamagedError:
    return RecordDamagedError(
        generation_id, f"it does not run, and what should follow its entry {offset} is missing"
    )


def _is_end(batch: list[Entry]) -> bool:
    return batch[-1].kind is EntryKind.FINISHED
