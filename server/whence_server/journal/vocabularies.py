"""Vocabularies of tokenizers, kept beside the journal under the tokenizers' digests.

The journal holds token ids. Spans of a backlog may belong to a model that is no longer served, and
its tokenizer is then gone. Each tokenizer's vocabulary is therefore written once, before the first
generation of its model begins.
"""

import asyncio
import hashlib
import json
import logging
import os
import re
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from google.protobuf.message import DecodeError

from whence.v1.model_pb2 import GetVocabularyResponse
from whence_server.journal.privacy import make_directory

_log = logging.getLogger(__name__)

FOLDER = "vocabularies"
MAX_POSITION = 2**63
"""Position after all entries: `find` with it returns a vocabulary whenever it was kept."""
_DIGEST = re.compile("[0-9a-f]{8,128}")
_FORMAT = 1
OWNER = "recorded_for"
"""Field of the header of a recorded model's vocabulary: id of the caller that sent it."""
_MOST_IN_MEMORY = 4


class KeptVocabulary(NamedTuple):
    """Tokens of a tokenizer by id."""

    tokens: Sequence[bytes]
    """Bytes of the ids from 0 on; b"" for an id without text."""
    kept_at: int
    """Position of the journal's newest entry at the time at which the vocabulary was written."""
    owner: str | None = None
    """Id of the caller that sent it; None for a tokenizer that the server has loaded itself."""


class Vocabularies:
    """Files of vocabularies, one for each tokenizer's digest.

    Args:
        data_dir: the journal's directory.
    """

    def __init__(self, data_dir: Path) -> None:
        self._folder = data_dir / FOLDER
        self._loaded: dict[str, KeptVocabulary] = {}

    async def find(self, tokenizer_digest: str, position: int) -> KeptVocabulary | None:
        """Return the vocabulary for a generation; None if it was not kept before its start.

        A generation that began before its vocabulary was kept never gets it. Its spans are thus
        the same whenever they are sent.

        Args:
            tokenizer_digest: digest in the generation's start.
            position: the journal's position of the generation's start.
        """
        kept = self._loaded.get(tokenizer_digest)
        if kept is None:
            kept = await asyncio.to_thread(self._read, tokenizer_digest)
            if kept is None:
                return None
            if len(self._loaded) >= _MOST_IN_MEMORY:
                self._loaded.clear()
            self._loaded[tokenizer_digest] = kept
        return kept if position > kept.kept_at else None

    def has_served(self, tokenizer_digest: str) -> bool:
        """Return whether the vocabulary of a tokenizer that the server itself loaded is kept."""
        kept = self._read(tokenizer_digest)
        return kept is not None and kept.owner is None

    def keep(
        self,
        tokenizer_digest: str,
        tokens: Sequence[bytes],
        position: int,
        owner: str | None = None,
    ) -> None:
        """Write a vocabulary, unless it is kept already; a failure is logged.

        Args:
            tokenizer_digest: digest of the tokenizer's files; without one nothing is kept.
            tokens: bytes of every id. A longer vocabulary replaces a shorter one of the same
                tokenizer: a model may have fewer rows in its head than the tokenizer has tokens.
            position: position of the journal's newest entry.
            owner: id of the caller that sent it; None for a tokenizer that the server has loaded
                itself. A caller's vocabulary never replaces the server's own.
        """
        kept = self._read(tokenizer_digest)
        if kept is not None and kept.kept_at <= position:
            is_own, was_own = owner is None, kept.owner is None
            if was_own and not is_own:
                return
            if len(kept.tokens) >= len(tokens) and was_own == is_own:
                return
            position = kept.kept_at
        # A position beyond the journal's end is that of an earlier journal in this directory.
        try:
            self._write(tokenizer_digest, KeptVocabulary(tokens, position, owner))
        except OSError as error:
            _log.warning(
                "the vocabulary of tokenizer %s cannot be kept (%s): spans name its tokens by id",
                tokenizer_digest[:12],
                error.strerror,
            )
        self._loaded.pop(tokenizer_digest, None)

    def _read(self, tokenizer_digest: str) -> KeptVocabulary | None:
        """Read a file; None if there is none, or if it is damaged."""
        if not _DIGEST.fullmatch(tokenizer_digest):
            return None
        path = self._folder / tokenizer_digest
        try:
            return _parse(path.read_bytes())
        except FileNotFoundError:
            return None
        except (OSError, ValueError, KeyError, TypeError, DecodeError) as error:
            _log.warning("%s is no vocabulary: %s; spans name its tokens by id", path, error)
            return None

    def _write(self, tokenizer_digest: str, kept: KeptVocabulary) -> None:
        if not _DIGEST.fullmatch(tokenizer_digest):
            return
        make_directory(self._folder)
        body = GetVocabularyResponse(tokens=kept.tokens).SerializeToString()
        header: dict[str, object] = {
            "format": _FORMAT,
            "kept_at": kept.kept_at,
            "sha256": hashlib.sha256(body).hexdigest(),
        }
        if kept.owner is not None:
            header[OWNER] = kept.owner
        # mkstemp gives mode 0600; the name appears when the content is on disk.
        descriptor, partial = tempfile.mkstemp(dir=self._folder, prefix=".partial-")
        try:
            with os.fdopen(descriptor, "wb") as file:
                file.write(json.dumps(header).encode() + b"\n" + body)
                file.flush()
                os.fsync(file.fileno())
            Path(partial).replace(self._folder / tokenizer_digest)
        except OSError:
            Path(partial).unlink(missing_ok=True)
            raise


def _parse(content: bytes) -> KeptVocabulary:
    head, _, body = content.partition(b"\n")
    header = json.loads(head)
    if header["sha256"] != hashlib.sha256(body).hexdigest():
        raise ValueError("its content does not match its SHA-256")
    tokens = GetVocabularyResponse.FromString(body).tokens
    return KeptVocabulary(tokens, int(header["kept_at"]), header.get(OWNER))
