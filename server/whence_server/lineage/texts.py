"""Reads text files as documents: found, digested, and told by byte where they are no text."""

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from whence_server.domain.errors import ConfigurationError


@dataclass(frozen=True, slots=True)
class TextDocument:
    """A text file, as it was read."""

    source: str
    """Its absolute path."""
    data: bytes

    @property
    def sha256(self) -> str:
        """Of its bytes, in hex."""
        return hashlib.sha256(self.data).hexdigest()


class Reading(NamedTuple):
    """What was read."""

    documents: list[TextDocument]
    skipped: list[str]
    """For each file that was left out, where it is and why."""


class Decoded(NamedTuple):
    """A document's text, and where its characters lie."""

    text: str
    offsets: npt.NDArray[np.int64]
    """Of each character, its first byte; and at the end the number of bytes: one more than the
    text has characters."""


def read_texts(paths: Sequence[Path], unusable: str = "refuse") -> Reading:
    """Read files, and those in folders below, by path; names that begin with a dot are left out.

    Args:
        paths: files and folders, in order.
        unusable: what becomes of a file that is empty, binary (it has a NUL byte) or not UTF-8:
            "refuse" raises, "skip" leaves it out, and "replace" reads each undecodable byte as
            U+FFFD and raises for the others.

    Raises:
        ConfigurationError: a path is missing, given twice or unusable, or nothing is left.
    """
    documents, skipped = [], []
    for path in _files(paths):
        document = TextDocument(str(path.absolute()), _bytes_of(path))
        fault = _fault(document.data, replaces=unusable == "replace")
        if not fault:
            documents.append(document)
        elif unusable == "skip":
            skipped.append(f"{path} {fault}")
        else:
            raise ConfigurationError(
                f"{path} {fault}; leave it out, or say what becomes of such files (--unusable)"
            )
    if not documents:
        raise ConfigurationError("no text: every file was skipped (--unusable skip)")
    return Reading(documents, skipped)


def decoded(data: bytes) -> Decoded:
    """A document's text; each byte that is no UTF-8 becomes U+FFFD."""
    text = data.decode("utf-8", "surrogateescape")
    points = np.frombuffer(text.encode("utf-32-le", "surrogatepass"), "<u4")
    lengths = 1 + (points >= 0x80) + (points >= 0x800) + (points >= 0x10000).astype(np.int64)
    # What stands for a single undecodable byte (PEP 383); a text has no surrogates of its own.
    escaped = (points >= 0xDC80) & (points <= 0xDCFF)
    lengths[escaped] = 1
    if escaped.any():
        text = np.where(escaped, 0xFFFD, points).astype("<u4").tobytes().decode("utf-32-le")
    return Decoded(text, np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64))


def _files(paths: Sequence[Path]) -> Iterator[Path]:
    seen: set[Path] = set()
    for path in paths:
        for file in _files_at(path):
            place = file.resolve()
            if place in seen:
                raise ConfigurationError(f"{file} is given twice; each text is read once")
            seen.add(place)
            yield file


def _files_at(path: Path) -> list[Path]:
    if path.is_file():
        return [path]
    if not path.is_dir():
        what = "is neither a file nor a folder" if path.exists() else "does not exist"
        raise ConfigurationError(f"{path} {what}; give text files, or folders with text files")
    found = [
        file
        for file in path.rglob("*")
        if file.is_file() and not any(p.startswith(".") for p in file.relative_to(path).parts)
    ]
    if not found:
        raise ConfigurationError(f"{path} has no files in it")
    return sorted(found, key=lambda file: file.relative_to(path).parts)


def _bytes_of(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise ConfigurationError(f"{path} cannot be read: {error.strerror}") from error


def _fault(data: bytes, *, replaces: bool) -> str:
    """What keeps bytes from being a text, as the rest of a sentence; "" for nothing."""
    if not data:
        return "is empty"
    if (offset := data.find(0)) >= 0:
        return f"is a binary file: it has a NUL byte at offset {offset}"
    if not replaces:
        try:
            data.decode()
        except UnicodeDecodeError as error:
            return f"is not UTF-8: byte 0x{data[error.start]:02x} at offset {error.start}"
    return ""
