"""Faults of the database file that SQLite reads past, or that would change what it reads."""

from collections.abc import Iterator
from pathlib import Path

from whence_server.journal.wal import LogReport

_HEADER_BYTES = 100
_MAGIC = b"SQLite format 3\0"
_FIXED: tuple[tuple[int, int, tuple[int, ...], str], ...] = (
    (18, 1, (1, 2), "write version"),
    (19, 1, (1, 2), "read version"),
    (44, 4, (4,), "schema format"),
    (48, 4, (0,), "cache size"),
    (52, 4, (0,), "vacuum setting"),
    (56, 4, (1,), "text encoding"),
    (64, 4, (0,), "incremental vacuum setting"),
    (68, 4, (0,), "application id"),
    (72, 20, (0,), "reserved space"),
)
"""Place, length, values that a journal's header may have there, and the field's name, as in
SQLite's file format documentation, section 1.3."""


def beside_faults(path: Path) -> Iterator[str]:
    """Look for a rollback journal, which SQLite would apply before it reads anything.

    Args:
        path: of the database.
    """
    journal = path.with_name(path.name + "-journal")
    if not journal.exists():
        return
    if not journal.is_file():
        yield f"{journal.name} is no regular file, and cannot be read"
        return
    with journal.open("rb") as file:
        first = file.read(1)
    # SQLite's own rule: one that was played back, or is done with, is empty or begins with zero.
    if first.strip(b"\0"):
        yield (
            f"{journal.name}, which a journal never has, would change the database when a server "
            "opens it"
        )


def file_faults(path: Path, log: LogReport) -> Iterator[str]:
    """Look at the header, and at whether the file ends with its last page.

    Args:
        path: of the database.
        log: its write-ahead log, whose pages go before the file's own.
    """
    size = path.stat().st_size
    with path.open("rb") as file:
        head = file.read(_HEADER_BYTES)
    if len(head) < _HEADER_BYTES or not head.startswith(_MAGIC):
        return  # SQLite says so.
    page_size = _number(head, 16, 2)
    page_size = 65_536 if page_size == 1 else page_size
    if page_size and size % page_size:
        yield f"{path.name} ends within a page: {size} bytes are no multiple of {page_size}"
    num_pages = max(_number(head, 28, 4), log.num_pages)
    if 0 < num_pages * page_size < size:
        extra = size - num_pages * page_size
        yield f"{path.name} has {extra} bytes behind its last page, which nothing reads"
    # The log's first page goes before the file's, which may then be half written.
    if 1 not in log.pages:
        yield from _header_faults(head)


def _header_faults(head: bytes) -> Iterator[str]:
    for place, length, allowed, name in _FIXED:
        found = _number(head, place, length)
        if found not in allowed:
            yield f"the header's {name} (at byte {place}) is {found}, expected {allowed[-1]}"
    if head[18] != head[19]:
        yield "the header's write and read versions differ"
    if head[24:28] != head[92:96]:
        yield "the header's change counter is not the one that its number of pages is valid for"


def _number(head: bytes, place: int, length: int) -> int:
    return int.from_bytes(head[place : place + length], "big")
