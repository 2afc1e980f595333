"""Journals of several servers in one PostgreSQL database."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from whence_server.journal.journal import Journal
from whence_server.journal.postgres.store import PostgresStore

LEASE_S = 1.0
"""Lease of servers that a test takes over from; others keep theirs for the length of a test."""


@asynccontextmanager
async def server(url: str, directory: Path, lease_s: float = 60.0) -> AsyncIterator[Journal]:
    """Open a server's journal in a database, and close it at the end."""
    journal = await Journal.open(directory, open_store=lambda *_: PostgresStore(url, lease_s))
    try:
        yield journal
    finally:
        await journal.close()


async def wait_for_takeover(journal: Journal) -> Journal:
    """Wait until a server can take another one's log over; return the journal of that log."""
    while True:
        if (taken := await journal.take_over()) is not None:
            return taken
        await asyncio.sleep(0.05)
