"""Size of an SQLite journal without the pages that can be reused."""

from typing import Any


def measure_use(connection: Any) -> int:
    """Return the size of the database's pages in use, in bytes."""
    num_pages = connection.pragma("page_count") - connection.pragma("freelist_count")
    return int(num_pages * connection.pragma("page_size"))
