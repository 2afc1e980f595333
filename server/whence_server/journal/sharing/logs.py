"""Following all logs of a database."""

from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping
from functools import partial

from whence_server.domain.entries import Entry
from whence_server.domain.errors import JournalError
from whence_server.journal.patience import Patience
from whence_server.journal.readers import Readers
from whence_server.journal.sharing.log_ends import LogEnds
from whence_server.journal.sharing.store import SharedStore

_BATCH_ENTRIES = 1_024


async def follow_logs(
    store: SharedStore,
    ends: LogEnds,
    readers: Readers,
    patience: Patience,
    wait: Callable[[], Awaitable[object]],
    *,
    reached: Mapping[bytes, int],
    max_batch_bytes: int,
) -> AsyncGenerator[tuple[bytes, list[Entry]], None]:
    """Yield a log's id with its next committed entries, for every log and without an end.

    Args:
        store: the database.
        ends: look-ups of the ends of its logs.
        readers: threads for look-ups.
        patience: patience with a database that is away.
        wait: waits until a log may have grown.
        reached: positions up to which entries are skipped, by log id; 0 for a log without one.
        max_batch_bytes: limit of the payloads in a batch.

    Raises:
        JournalUnreachableError: the database has been away for longer than the patience.
        JournalError: a log is shorter than before.
    """
    places = dict(reached)
    while True:
        has_grown = False
        for log in await patience.read(ends.read):
            after = places.get(log.log_id, 0)
            if log.position > after:
                read = partial(store.read_log, limit=_BATCH_ENTRIES, max_bytes=max_batch_bytes)
                entries = await patience.read(partial(readers.run_heavy, read, log.writer, after))
                if not entries:
                    raise JournalError(
                        f"log {log.log_id.hex()} ended at entry {log.position} and ends before it "
                        "now: the database has lost entries, as an asynchronous standby or an old "
                        "backup has; begin the watch anew"
                    )
                yield log.log_id, entries
                places[log.log_id] = entries[-1].position
                has_grown = True
        if not has_grown:
            await wait()
