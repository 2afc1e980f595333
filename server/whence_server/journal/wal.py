"""Reader of SQLite's write-ahead log that reports the parts that SQLite cannot read.

SQLite reads a log up to the first frame with a wrong checksum and reports nothing about later
frames: one flipped byte silently loses all newer transactions. SQLite's file format
documentation, section 4, and the comments of its wal.c describe the format.
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
# No frame survives this many later logs: the file would have terabytes.
_MOST_LOGS = 1 << 24
# The index beside the log (-shm) begins with: version, unused, change, flags, page size (2),
# frames, pages, the last frame's checksum (2 words), the log's salts (8 bytes as in the log).
_INDEX_HEAD = struct.Struct("=3I2BH2I2I8s")
# After two copies of its head, 48 bytes each: frames that were copied into the database.
_COPIED_PLACE = 96


@dataclass(slots=True)
class LogReport:
    """Readable content of a write-ahead log, with its faults."""

    page_size: int = 0
    pages: dict[int, int] = field(default_factory=dict)
    """Offset in the log of each page's newest committed frame, by page number."""
    num_pages: int = 0
    """Size of the database after the last commit, in pages; 0 if there is no commit."""
    num_frames: int = 0
    """Number of frames up to the last readable commit."""
    faults: list[str] = field(default_factory=list)
    """Descriptions of lost content."""
    notes: list[str] = field(default_factory=list)
    """Descriptions of content that was ignored without a loss."""


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
    """Read a write-ahead log; a missing log counts as empty.

    Raises:
        OSError: an existing file cannot be read.
    """
    report = LogReport()
    size = path.stat().st_size if path.exists() else 0
    for file in (path, index_path):
        if file.exists() and not file.is_file():
            report.faults.append(f"{file.name} is not a regular file and cannot be read")
    if report.faults:
        return report
    if not size:
        _check_index_without_log(report, index_path)
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
            or _compute_checksum(head[:24], (0, 0), order) != checksum
        ):
            report.faults.append(
                f"the write-ahead log's header is damaged: none of its {size} bytes can be read"
            )
            return report
        report.page_size = page_size
        frames = _read_frames(log, page_size)
        _walk(report, frames, salts, checksum, order)
        torn = (size - _HEADER.size) % (_FRAME.size + page_size)
    if torn and not report.faults:
        report.notes.append("the write-ahead log ends with an incomplete frame")
    _check_index(report, index_path, head[16:24])
    return report


def _walk(
    report: LogReport,
    frames: Iterator[_Frame],
    salts: tuple[int, int],
    checksum: tuple[int, int],
    order: str,
) -> None:
    """Take frames up to the first invalid one, then report the frames after it."""
    uncommitted: dict[int, int] = {}
    for frame in frames:
        follows = _compute_checksum(frame.head[:8] + frame.body, checksum, order) == frame.checksum
        if frame.salts != salts or not follows:
            follows = follows or _has_one_flipped_bit(frame, checksum, order)
            _look_behind(report, frame, follows, frames, salts)
            return
        checksum = frame.checksum
        uncommitted[frame.page] = frame.offset
        if frame.commit:
            report.pages |= uncommitted
            report.num_pages, report.num_frames = frame.commit, frame.number
            uncommitted = {}
    if uncommitted:
        report.notes.append("the write-ahead log ends with a transaction that was never committed")


def _look_behind(
    report: LogReport,
    first: _Frame,
    follows: bool,
    frames: Iterator[_Frame],
    salts: tuple[int, int],
) -> None:
    # A frame with other salts and a wrong checksum is left over from an earlier log.
    lost = [first] if follows or first.salts == salts else []
    num_foreign = 0
    for frame in (first, *frames) if not lost else frames:
        if frame.salts == salts:
            lost.append(frame)
        elif not _is_left_over(frame, salts):
            num_foreign += 1
    if num_foreign:
        report.faults.append(
            f"{num_foreign} frames of the write-ahead log, after frame {first.number - 1}, belong "
            "neither to this log nor to an earlier one: their content cannot be read"
        )
    num_commits = sum(1 for frame in lost if frame.commit)
    if not lost:
        return
    if not num_commits and not follows:
        # The transaction failed or was interrupted.
        report.notes.append(
            f"the write-ahead log ends with {len(lost)} frames that were never committed"
        )
        return
    report.faults.append(
        f"frame {first.number} of the write-ahead log is damaged: {len(lost)} frames from this "
        f"one on, which end {num_commits} transactions, cannot be read; every reader loses "
        "their content"
    )


def _is_left_over(frame: _Frame, salts: tuple[int, int]) -> bool:
    """Return whether a frame is of an earlier log: each new log adds 1 to the first salt."""
    return 0 < (salts[0] - frame.salts[0]) & _MASK < _MOST_LOGS


def _has_one_flipped_bit(frame: _Frame, checksum: tuple[int, int], order: str) -> bool:
    """Return whether flipping one bit of the frame's head makes its checksum right."""
    head = int.from_bytes(frame.head[:8], "big")
    return any(
        _compute_checksum((head ^ (1 << bit)).to_bytes(8, "big") + frame.body, checksum, order)
        == frame.checksum
        for bit in range(64)
    )


def _read_frames(log: BinaryIO, page_size: int) -> Iterator[_Frame]:
    number, offset = 0, _HEADER.size
    while True:
        head, body = log.read(_FRAME.size), log.read(page_size)
        if len(head) < _FRAME.size or len(body) < page_size:
            return
        number += 1
        page, commit, salt1, salt2, sum1, sum2 = _FRAME.unpack(head)
        yield _Frame(number, offset, page, commit, (salt1, salt2), (sum1, sum2), body, head)
        offset += _FRAME.size + page_size


def _check_index(report: LogReport, index_path: Path, raw_salts: bytes) -> None:
    """Report frames that the index beside the log counts and the log does not have."""
    num_frames, _, salts = _read_index(index_path)
    if salts == raw_salts and num_frames > report.num_frames and not report.faults:
        report.faults.append(
            f"the write-ahead log had {num_frames} frames and has {report.num_frames}: its "
            "newest transactions are gone"
        )


def _check_index_without_log(report: LogReport, index_path: Path) -> None:
    """Report frames that the index counts although the log is missing or empty."""
    num_frames, num_copied, _ = _read_index(index_path)
    if num_frames > num_copied:
        report.faults.append(
            f"the write-ahead log is gone: it had {num_frames} frames, and {num_copied} of them "
            "are in the database; its newest transactions are lost to every reader"
        )


def _read_index(path: Path) -> tuple[int, int, bytes]:
    """Read the index; return numbers of frames and of copied frames, and the log's salts."""
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


def _compute_checksum(data: bytes, start: tuple[int, int], order: str) -> tuple[int, int]:
    words = struct.unpack(f"{order}{len(data) // 4}I", data)
    s0, s1 = start
    pairs = iter(words)
    for word in pairs:
        s0 = (s0 + word + s1) & _MASK
        s1 = (s1 + next(pairs) + s0) & _MASK
    return s0, s1
