"""SQLite's write-ahead log, read without SQLite: what is in it, and what can no longer be read.

SQLite takes a log up to the first frame whose checksum is wrong, and says nothing of what lies
behind it: one flipped byte loses all newer transactions in silence. The format is described in
SQLite's file format documentation, section 4, and in the comments of its wal.c.
"""

import struct
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO, NamedTuple

_HEADER = struct.Struct(">8I")
_FRAME = struct.Struct(">6I")
_LITTLE_ENDIAN, _BIG_ENDIAN = 0x377F0682, 0x377F0683
_VERSION = 3_007_000
_PAGE_SIZES = frozenset(2**n for n in range(9, 17))
_MASK = 0xFFFFFFFF
# A log that was overwritten so often left no frame: it would have been of terabytes.
_MOST_LOGS = 1 << 24
# The index beside the log (-shm) begins with: version, unused, change, flags, page size (2),
# frames, pages, the last frame's checksum (2 words), the log's salts (8 bytes as in the log).
_INDEX_HEAD = struct.Struct("=3I2BH2I2I8s")
# After two copies of its head, 48 bytes each: frames that were copied into the database.
_COPIED_PLACE = 96


@dataclass(slots=True)
class LogReport:
    """A write-ahead log, as far as it can be read."""

    page_size: int = 0
    pages: dict[int, int] = field(default_factory=dict)
    """Page number to the offset, in the log, of its newest committed content."""
    num_pages: int = 0
    """Of the database after the last commit; 0 where there is none."""
    num_frames: int = 0
    """Frames up to the last commit that can be read."""
    faults: list[str] = field(default_factory=list)
    """What was lost, in words."""
    notes: list[str] = field(default_factory=list)
    """What was left out without a loss."""


class _Frame(NamedTuple):
    number: int
    offset: int
    page: int
    commit: int
    salts: tuple[int, int]
    checksum: tuple[int, int]
    body: bytes
    head: bytes


def read_log(path: Path, index_path: Path) -> LogReport:
    """Read a write-ahead log; an absent or an empty one has nothing in it.

    Raises:
        OSError: a file that is there cannot be read.
    """
    report = LogReport()
    size = path.stat().st_size if path.exists() else 0
    for file in (path, index_path):
        if file.exists() and not file.is_file():
            report.faults.append(f"{file.name} is no regular file, and cannot be read")
    if report.faults:
        return report
    if not size:
        _ask_index_of_nothing(report, index_path)
        return report
    with path.open("rb") as log:
        head = log.read(_HEADER.size)
        words = _HEADER.unpack(head) if len(head) == _HEADER.size else (0,) * 8
        magic, version, page_size, _, *rest = words
        salts, checksum = (rest[0], rest[1]), (rest[2], rest[3])
        order = ">" if magic == _BIG_ENDIAN else "<"
        if (
            magic not in (_LITTLE_ENDIAN, _BIG_ENDIAN)
            or version != _VERSION
            or page_size not in _PAGE_SIZES
            or _checksum(head[:24], (0, 0), order) != checksum
        ):
            report.faults.append(
                f"the write-ahead log's header is damaged: none of its {size} bytes can be read"
            )
            return report
        report.page_size = page_size
        frames = _frames(log, page_size)
        _walk(report, frames, salts, checksum, order)
        torn = (size - _HEADER.size) % (_FRAME.size + page_size)
    if torn and not report.faults:
        report.notes.append("the write-ahead log ends in a frame that was never written whole")
    _ask_index(report, index_path, head[16:24])
    return report


def _walk(
    report: LogReport,
    frames: Iterator[_Frame],
    salts: tuple[int, int],
    checksum: tuple[int, int],
    order: str,
) -> None:
    """Take frames up to the first that is not in order, then looks for what lies behind it."""
    uncommitted: dict[int, int] = {}
    for frame in frames:
        follows = _checksum(frame.head[:8] + frame.body, checksum, order) == frame.checksum
        if frame.salts != salts or not follows:
            follows = follows or _follows_but_for_a_bit(frame, checksum, order)
            _look_behind(report, frame, follows, frames, salts)
            return
        checksum = frame.checksum
        uncommitted[frame.page] = frame.offset
        if frame.commit:
            report.pages |= uncommitted
            report.num_pages, report.num_frames = frame.commit, frame.number
            uncommitted = {}
    if uncommitted:
        report.notes.append("the write-ahead log ends in a transaction that was never committed")


def _look_behind(
    report: LogReport,
    first: _Frame,
    follows: bool,
    frames: Iterator[_Frame],
    salts: tuple[int, int],
) -> None:
    # A frame of other salts is left over from before the log began anew, unless it follows.
    lost = [first] if follows or first.salts == salts else []
    num_foreign = 0
    for frame in (first, *frames) if not lost else frames:
        if frame.salts == salts:
            lost.append(frame)
        elif not _is_left_over(frame, salts):
            num_foreign += 1
    if num_foreign:
        report.faults.append(
            f"{num_foreign} frames of the write-ahead log, behind frame {first.number - 1}, belong "
            "neither to this log nor to an earlier one: what was written there cannot be read"
        )
    num_commits = sum(1 for frame in lost if frame.commit)
    if not lost:
        return
    if not num_commits and not follows:
        # A transaction that failed, or was cut off, was never committed.
        report.notes.append(
            f"the write-ahead log ends in {len(lost)} frames that were never committed"
        )
        return
    report.faults.append(
        f"frame {first.number} of the write-ahead log is damaged: {len(lost)} frames from there "
        f"on, which end {num_commits} transactions, cannot be read; what they hold is lost to "
        "every reader"
    )


def _is_left_over(frame: _Frame, salts: tuple[int, int]) -> bool:
    """Whether a frame is of a log that was before this one: each adds one to the first salt."""
    return 0 < (salts[0] - frame.salts[0]) & _MASK < _MOST_LOGS


def _follows_but_for_a_bit(frame: _Frame, checksum: tuple[int, int], order: str) -> bool:
    """Whether one flipped bit in its head is all that is wrong: the frame may end a commit."""
    head = int.from_bytes(frame.head[:8], "big")
    return any(
        _checksum((head ^ (1 << bit)).to_bytes(8, "big") + frame.body, checksum, order)
        == frame.checksum
        for bit in range(64)
    )


def _frames(log: BinaryIO, page_size: int) -> Iterator[_Frame]:
    number, offset = 0, _HEADER.size
    while True:
        head, body = log.read(_FRAME.size), log.read(page_size)
        if len(head) < _FRAME.size or len(body) < page_size:
            return
        number += 1
        page, commit, salt1, salt2, sum1, sum2 = _FRAME.unpack(head)
        yield _Frame(number, offset, page, commit, (salt1, salt2), (sum1, sum2), body, head)
        offset += _FRAME.size + page_size


def _ask_index(report: LogReport, index_path: Path, raw_salts: bytes) -> None:
    """The index beside the log knows how many frames there were, if it belongs to it."""
    num_frames, _, salts = _index(index_path)
    if salts == raw_salts and num_frames > report.num_frames and not report.faults:
        report.faults.append(
            f"the write-ahead log had {num_frames} frames, and {report.num_frames} are left: its "
            "newest transactions are gone"
        )


def _ask_index_of_nothing(report: LogReport, index_path: Path) -> None:
    """Where the log is absent or empty, the index knows of frames that only the log had."""
    num_frames, num_copied, _ = _index(index_path)
    if num_frames > num_copied:
        report.faults.append(
            f"the write-ahead log is gone: it had {num_frames} frames, and {num_copied} of them "
            "are in the database; its newest transactions are lost to every reader"
        )


def _index(path: Path) -> tuple[int, int, bytes]:
    """Frames of the log, how many of them were copied into the database, and the log's salts."""
    try:
        with path.open("rb") as index:
            head = index.read(_COPIED_PLACE + 4)
    except FileNotFoundError:
        return 0, 0, b""
    if len(head) < _COPIED_PLACE + 4:
        return 0, 0, b""
    _, _, _, is_set, _, _, num_frames, _, _, _, salts = _INDEX_HEAD.unpack_from(head)
    (num_copied,) = struct.unpack_from("=I", head, _COPIED_PLACE)
    return (num_frames, num_copied, salts) if is_set else (0, 0, b"")


def _checksum(data: bytes, start: tuple[int, int], order: str) -> tuple[int, int]:
    words = struct.unpack(f"{order}{len(data) // 4}I", data)
    s0, s1 = start
    pairs = iter(words)
    for word in pairs:
        s0 = (s0 + word + s1) & _MASK
        s1 = (s1 + next(pairs) + s0) & _MASK
    return s0, s1
