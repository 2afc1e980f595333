"""Reading of text files as training documents."""

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
    """Content of one text file."""

    source: str
    """Absolute path of the file."""
    data: bytes

    @property
    def sha256(self) -> str:
        """SHA-256 of the bytes, in hex."""
        return hashlib.sha256(self.data).hexdigest()


class TextCorpus(NamedTuple):
    """Documents that were read, and a note on each file that was skipped."""

    documents: list[TextDocument]
    skipped: list[str]
    """Path and reason for each file that was skipped."""


class DecodedText(NamedTuple):
    """A document's text, with the byte offset of each character."""

    text: str
    offsets: npt.NDArray[np.int64]
    """Offset of each character's first byte, then the number of bytes: shape (characters + 1,)."""


def read_texts(paths: Sequence[Path], unusable: str = "refuse") -> TextCorpus:
    """Read files and folders of files, sorted by path; names that begin with a dot are left out.

    Args:
        paths: files and folders, in order.
        unusable: treatment of a file that is empty, binary (it has a NUL byte) or not UTF-8:
            "refuse" raises, "skip" leaves it out, and "replace" reads each undecodable byte as
            U+FFFD and raises for empty and binary files.

    Raises:
        ConfigurationError: a path is missing, given twice or unusable, or every file was skipped.
    """
    documents, skipped = [], []
    for path in _find_files(paths):
        document = TextDocument(str(path.absolute()), _read_bytes(path))
        fault = _find_fault(document.data, replaces=unusable == "replace")
        if not fault:
            documents.append(document)
        elif unusable == "skip":
            skipped.append(f"{path} {fault}")
        else:
            raise ConfigurationError(
                f"{path} {fault}; leave it out, or choose how to treat such files (--unusable)"
            )
    if not documents:
        raise ConfigurationError("no text: every file was skipped (--unusable skip)")
    return TextCorpus(documents, skipped)


def decode_text(data: bytes) -> DecodedText:
    """Decode UTF-8; each undecodable byte becomes U+FFFD."""
    text = data.decode("utf-8", "surrogateescape")
    points = np.frombuffer(text.encode("utf-32-le", "surrogatepass"), "<u4")
    lengths = 1 + (points >= 0x80) + (points >= 0x800) + (points >= 0x10000).astype(np.int64)
    # Surrogates stand for single undecodable bytes (PEP 383); decoded UTF-8 has no others.
    escaped = (points >= 0xDC80) & (points <= 0xDCFF)
    lengths[escaped] = 1
    if escaped.any():
        text = np.where(escaped, 0xFFFD, points).astype("<u4").tobytes().decode("utf-32-le")
    return DecodedText(text, np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64))


def _find_files(paths: Sequence[Path]) -> Iterator[Path]:
    seen: set[Path] = set()
    for path in paths:
        for file in _list_files(path):
            place = file.resolve()
            if place in seen:
                raise ConfigurationError(f"{file} is given twice; each text is read once")
            seen.add(place)
            yield file


def _list_files(path: Path) -> list[Path]:
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


def _read_bytes(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise ConfigurationError(f"{path} cannot be read: {error.strerror}") from error


def _find_fault(data: bytes, *, replaces: bool) -> str:
    """Return why bytes are not a text, as the predicate of a sentence; "" if they are."""
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
