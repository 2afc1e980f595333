"""A document's text, as long as its source still has the text that was trained on."""

import hashlib
import logging
import os
import stat
from pathlib import Path

from whence.v1.training_pb2 import TrainingDocument
from whence_server.domain.errors import DocumentChangedError

_log = logging.getLogger(__name__)


def document_text(document: TrainingDocument) -> bytes:
    """The document's bytes, read again from its source.

    Whoever asks is told no more of another text than that it is another: a record that somebody
    planted may name any file. What was found is in the log.

    Raises:
        DocumentChangedError: they cannot be read, or do not have the recorded digest.
    """
    text = _read(document)
    found = hashlib.sha256(text).hexdigest()
    if found != document.sha256:
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
    return text


def _read(document: TrainingDocument) -> bytes:
    if not Path(document.source).is_absolute():
        raise _changed(document, "it is no absolute path, as every source on record is")
    # Not to be blocked by a pipe that has taken the file's place.
    flags = os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC
    try:
        descriptor = os.open(Path(document.source), flags)
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise _changed(document, f"it cannot be opened: {reason}") from error
    try:
        status = os.fstat(descriptor)
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
        with os.fdopen(descriptor, "rb", closefd=False) as file:
            file.seek(document.begin_byte)
            return file.read(document.end_byte - document.begin_byte)
    except OSError as error:
        raise _changed(document, f"it cannot be read: {error.strerror}") from error
    finally:
        os.close(descriptor)


def _changed(document: TrainingDocument, detail: str) -> DocumentChangedError:
    return DocumentChangedError(
        f"{document.source} no longer has the text that was trained on: {detail}",
        source=document.source,
        sha256=document.sha256,
    )
