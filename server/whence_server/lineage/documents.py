"""A document's text, as long as its source still has the text that was trained on."""

import hashlib
import os
import stat
from pathlib import Path

from whence.v1.training_pb2 import TrainingDocument
from whence_server.domain.errors import DocumentChangedError


def document_text(document: TrainingDocument) -> bytes:
    """The document's bytes, read again from its source.

    Raises:
        DocumentChangedError: they cannot be read, or do not have the recorded digest.
    """
    text = _read(document)
    found = hashlib.sha256(text).hexdigest()
    if found != document.sha256:
        raise _changed(
            document,
            f"its bytes {document.begin_byte} to {document.end_byte} now have the SHA-256 "
            f"{found}, and {document.sha256} is on record",
        )
    return text


def _read(document: TrainingDocument) -> bytes:
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
            raise _changed(
                document,
                f"it has {status.st_size} bytes, and the document ends at {document.end_byte}",
            )
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
