"""Reading of training documents from their source files, checked against the recorded digests."""

import hashlib
import logging
import os
import stat
from collections.abc import Iterator
from typing import Self

from whence.v1.training_pb2 import TrainingDocument
from whence_server.domain.errors import DocumentChangedError

_log = logging.getLogger(__name__)


SLICE_BYTES = 1 << 20
"""Size of the slices in which a text is read, digested and sent."""


def read_document_text(document: TrainingDocument) -> bytes:
    """Return the document's bytes, read again from its source.

    A forged record may name any file, so that the error reveals nothing of a file's other content;
    the log has the details.

    Raises:
        DocumentChangedError: the bytes cannot be read, or do not have the recorded digest.
    """
    with DocumentFile(document) as file:
        while file.digest_slices():
            pass
        return b"".join(file.read_slices(0, document.end_byte - document.begin_byte))


class DocumentFile:
    """A document's source file, which returns only bytes that match the digest.

    Call `digest_slices` until it returns False, then `read_slices`, which refuses a slice that has
    changed in between. Memory holds one slice of the text, and a digest of 32 bytes for each slice.

    Args:
        document: the document as recorded.

    Raises:
        DocumentChangedError: the source is missing, is not a regular file, or is too short.
    """

    def __init__(self, document: TrainingDocument) -> None:
        self._document = document
        self._size = document.end_byte - document.begin_byte
        self._whole = hashlib.sha256()
        self._of_slices: list[bytes] = []
        self._descriptor = _open_source(document)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the source file."""
        descriptor, self._descriptor = self._descriptor, -1
        if descriptor >= 0:
            os.close(descriptor)

    def digest_slices(self, num_slices: int = 16) -> bool:
        """Digest the next slices, and return whether there may be more.

        Raises:
            DocumentChangedError: the source cannot be read, or does not have the recorded digest.
        """
        for _ in range(num_slices):
            begin = len(self._of_slices) * SLICE_BYTES
            if begin >= self._size:
                self._require_recorded()
                return False
            octets = self._read(begin)
            self._whole.update(octets)
            self._of_slices.append(hashlib.sha256(octets).digest())
        return True

    def read_slices(self, begin: int, end: int) -> Iterator[bytes]:
        """Yield the text's bytes [begin, end), slice by slice, each checked against its digest.

        Raises:
            DocumentChangedError: the source cannot be read, or has changed since it was digested.
        """
        while begin < end:
            number = begin // SLICE_BYTES
            octets = self._read(number * SLICE_BYTES)
            if hashlib.sha256(octets).digest() != self._of_slices[number]:
                raise _make_changed_error(self._document, "it changed while it was read")
            first = begin - number * SLICE_BYTES
            piece = octets[first : first + end - begin]
            yield piece
            begin += len(piece)

    def _read(self, begin: int) -> bytes:
        """Read the slice that begins at this byte of the document."""
        size = min(SLICE_BYTES, self._size - begin)
        try:
            octets = os.pread(self._descriptor, size, self._document.begin_byte + begin)
        except OSError as error:
            raise _make_changed_error(
                self._document, f"it cannot be read: {error.strerror}"
            ) from error
        if len(octets) < size:
            raise _make_changed_error(
                self._document, f"it ends before byte {self._document.end_byte}"
            )
        return octets

    def _require_recorded(self) -> None:
        found, document = self._whole.hexdigest(), self._document
        if found == document.sha256:
            return
        _log.warning(
            "%s: bytes %d to %d have the SHA-256 %s, and %s is on record",
            document.source,
            document.begin_byte,
            document.end_byte,
            found,
            document.sha256,
        )
        raise _make_changed_error(
            document,
            f"its bytes {document.begin_byte} to {document.end_byte} do not have the SHA-256 "
            f"{document.sha256} on record",
        )


def _open_source(document: TrainingDocument) -> int:
    path = document.source_bytes or os.fsencode(document.source)
    if not os.path.isabs(path):  # noqa: PTH117 - of bytes
        raise _make_changed_error(document, "its path is not absolute")
    # O_NONBLOCK: opening a named pipe in the file's place must not block.
    flags = os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC
    try:
        descriptor = os.open(path, flags)
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise _make_changed_error(document, f"it cannot be opened: {reason}") from error
    try:
        _require_whole(document, os.fstat(descriptor))
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor


def _require_whole(document: TrainingDocument, status: os.stat_result) -> None:
    if not stat.S_ISREG(status.st_mode):
        raise _make_changed_error(document, "it is not a regular file")
    if status.st_size < document.end_byte or document.begin_byte > document.end_byte:
        _log.warning(
            "%s has %d bytes, and bytes %d to %d are on record",
            document.source,
            status.st_size,
            document.begin_byte,
            document.end_byte,
        )
        raise _make_changed_error(document, f"it ends before byte {document.end_byte}")


def _make_changed_error(document: TrainingDocument, detail: str) -> DocumentChangedError:
    return DocumentChangedError(
        f"{document.source} no longer has the text that was trained on: {detail}",
        source=document.source,
        sha256=document.sha256,
    )
