"""A document's text, as long as its source still has the text that was trained on."""

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
"""A text is read, digested and sent in slices of this size."""


def document_text(document: TrainingDocument) -> bytes:
    """The document's bytes, read again from its source.

    Whoever asks is told no more of another text than that it is another: a record that somebody
    planted may name any file. What was found is in the log.

    Raises:
        DocumentChangedError: they cannot be read, or do not have the recorded digest.
    """
    with DocumentFile(document) as file:
        while file.digest_next():
            pass
        return b"".join(file.slices(0, document.end_byte - document.begin_byte))


class DocumentFile:
    """A document's source, whose text is given only as it was when it was digested.

    Digest all of it first, slice by slice; a slice that is other bytes when it is given is refused.
    Of the text no more than a slice is in memory, and 32 bytes of each.

    Args:
        document: as recorded.

    Raises:
        DocumentChangedError: the source is gone, or is no such file any more.
    """

    def __init__(self, document: TrainingDocument) -> None:
        self._document = document
        self._size = document.end_byte - document.begin_byte
        self._whole = hashlib.sha256()
        self._of_slices: list[bytes] = []
        self._descriptor = _opened(document)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()

    def close(self) -> None:
        """Let go of the source."""
        descriptor, self._descriptor = self._descriptor, -1
        if descriptor >= 0:
            os.close(descriptor)

    def digest_next(self, num_slices: int = 16) -> bool:
        """Digest some more slices; False once that was all of them.

        Raises:
            DocumentChangedError: it cannot be read, or does not have the recorded digest.
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

    def slices(self, begin: int, end: int) -> Iterator[bytes]:
        """The text's bytes [begin, end), each slice as it was digested.

        Raises:
            DocumentChangedError: it cannot be read, or has changed since.
        """
        while begin < end:
            number = begin // SLICE_BYTES
            octets = self._read(number * SLICE_BYTES)
            if hashlib.sha256(octets).digest() != self._of_slices[number]:
                raise _changed(self._document, "it changed while it was read")
            first = begin - number * SLICE_BYTES
            piece = octets[first : first + end - begin]
            yield piece
            begin += len(piece)

    def _read(self, begin: int) -> bytes:
        """The slice that begins at a byte of the document."""
        size = min(SLICE_BYTES, self._size - begin)
        try:
            octets = os.pread(self._descriptor, size, self._document.begin_byte + begin)
        except OSError as error:
            raise _changed(self._document, f"it cannot be read: {error.strerror}") from error
        if len(octets) < size:
            raise _changed(self._document, f"it ends before byte {self._document.end_byte}")
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
        raise _changed(
            document,
            f"its bytes {document.begin_byte} to {document.end_byte} have another SHA-256 than the "
            f"{document.sha256} on record",
        )


def _opened(document: TrainingDocument) -> int:
    path = document.source_bytes or os.fsencode(document.source)
    if not os.path.isabs(path):  # noqa: PTH117 - of bytes
        raise _changed(document, "it is no absolute path, as every source on record is")
    # Not to be blocked by a pipe that has taken the file's place.
    flags = os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC
    try:
        descriptor = os.open(path, flags)
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise _changed(document, f"it cannot be opened: {reason}") from error
    try:
        _require_whole(document, os.fstat(descriptor))
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor


def _require_whole(document: TrainingDocument, status: os.stat_result) -> None:
    if not stat.S_ISREG(status.st_mode):
        raise _changed(document, "it is no regular file any more")
    if status.st_size < document.end_byte or document.begin_byte > document.end_byte:
        _log.warning(
            "%s has %d bytes, and bytes %d to %d are on record",
            document.source,
            status.st_size,
            document.begin_byte,
            document.end_byte,
        )
        raise _changed(document, f"it ends before byte {document.end_byte}")


def _changed(document: TrainingDocument, detail: str) -> DocumentChangedError:
    return DocumentChangedError(
        f"{document.source} no longer has the text that was trained on: {detail}",
        source=document.source,
        sha256=document.sha256,
    )
