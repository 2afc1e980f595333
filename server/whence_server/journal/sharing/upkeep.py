"""Signs of life of a server that shares its database with others."""

import asyncio

from whence_server.domain.errors import JournalError, JournalUnwritableError
from whence_server.journal.sharing.store import SharedStore
from whence_server.journal.writer import Writer

_RENEWALS_PER_LEASE = 3


async def keep_lease(store: SharedStore, writer: Writer) -> None:
    """Renew a lease until the task is cancelled or the lease is lost, which ends the journal."""
    while True:
        try:
            await writer.run(store.renew)
        except JournalUnwritableError:
            # Nobody else may have taken the log when the database is back.
            writer.probe()
        except JournalError as error:
            writer.fail_for_good(error)
            return
        await asyncio.sleep(store.lease_s / _RENEWALS_PER_LEASE)
