"""Faults of the database file that SQLite ignores, or that would change what it reads."""

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
    (56, 4, (1,), "text encoding"),
    (68, 4, (0,), "application id"),
    (72, 20, (0,), "reserved space"),
)
"""Offset, length, allowed values and name of header fields, as in SQLite's file format
documentation, section 1.3."""


def find_rollback_journal(path: Path) -> Iterator[str]:
    """Yield a fault if there is a rollback journal, which SQLite would apply before it reads.

    Args:
        path: path of the database.
    """
    journal = path.with_name(path.name + "-journal")
    if not journal.exists():
        return
    if not journal.is_file():
        yield f"{journal.name} is not a regular file and cannot be read"
        return
    with journal.open("rb") as file:
        first = file.read(1)
    # SQLite's own rule: a rollback journal that is not needed is empty or begins with zero.
    if first.strip(b"\0"):
        yield (
            f"{journal.name} is a rollback journal, which this journal never has; it would change "
            "the database when a server opens it"
        )


def find_file_faults(path: Path, log: LogReport) -> Iterator[str]:
    """Yield faults of the header and of the file's size.

    Args:
        path: path of the database.
        log: its write-ahead log, whose pages take precedence over the file's own.
    """
    size = path.stat().st_size
    with path.open("rb") as file:
        head = file.read(_HEADER_BYTES)
    if len(head) < _HEADER_BYTES or not head.startswith(_MAGIC):
        return  # SQLite reports it.
    page_size = _read_number(head, 16, 2)
    page_size = 65_536 if page_size == 1 else page_size
    if page_size and size % page_size:
        yield f"{path.name} ends within a page: {size} bytes are not a multiple of {page_size}"
    num_pages = max(_read_number(head, 28, 4), log.num_pages)
    if 0 < num_pages * page_size < size:
        extra = size - num_pages * page_size
        yield f"{path.name} has {extra} bytes after its last page, which nothing reads"
    # The log's first page takes precedence over the file's, which may be half written.
    if 1 not in log.pages:
        yield from _find_header_faults(head)


def _find_header_faults(head: bytes) -> Iterator[str]:
    for place, length, allowed, name in _FIXED:
        found = _read_number(head, place, length)
        if found not in allowed:
            yield f"the header's {name} (at byte {place}) is {found}, expected {allowed[-1]}"
    # Databases of earlier versions cannot give pages back. For others, SQLite's integrity check
    # compares the largest root page, at byte 52, with the tables.
    vacuum, incremental = _read_number(head, 52, 4), _read_number(head, 64, 4)
    if (vacuum > 0) != (incremental == 1) or incremental > 1:
        yield (
            f"the header's vacuum settings (at bytes 52 and 64) are {vacuum} and {incremental}, "
            "expected 0 and 0, or a page and 1"
        )
    if head[18] != head[19]:
        yield "the header's write and read versions differ"
    if head[24:28] != head[92:96]:
        yield "the header's change counter differs from its version-valid-for number"


def _read_number(head: bytes, place: int, length: int) -> int:
    return int.from_bytes(head[place : place + length], "big")
