"""Waiting for conditions that no event announces."""

import asyncio
from collections.abc import Callable
from typing import Any


async def wait_until(condition: Callable[[], bool], timeout_s: float = 30.0) -> None:
    """Wait until a condition holds, and let the event loop run meanwhile.

    Raises:
        TimeoutError: the condition does not hold in time.
    """
    async with asyncio.timeout(timeout_s):
        while not condition():  # noqa: ASYNC110 - nobody announces it
            await asyncio.sleep(0.001)


async def wait_for_rows(url: str, statement: str, rows: list[Any]) -> None:
    """Wait until a statement on a PostgreSQL database returns certain rows.

    Raises:
        TimeoutError: it does not in time.
    """
    import psycopg

    with psycopg.connect(url, autocommit=True) as connection:
        await wait_until(lambda: connection.execute(statement).fetchall() == rows, 60.0)
