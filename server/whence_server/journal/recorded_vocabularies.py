"""Vocabularies of models in other processes, kept within bounds: callers send them."""

import json
import logging
import threading
from collections.abc import Sequence
from pathlib import Path

from whence_server.domain.errors import VocabulariesFullError
from whence_server.journal.vocabularies import FOLDER, OWNER, Vocabularies

_log = logging.getLogger(__name__)

MAX_BYTES = 1 << 30
"""Maximum size of all of them together."""
MAX_OWNER_BYTES = 256 << 20
"""Maximum size of those that one caller sent."""
# Tag and length of a token on disk, and the header.
_TOKEN_BYTES, _HEADER_BYTES = 5, 512


class RecordedVocabularies:
    """Keeper of the vocabularies that recorders send.

    Args:
        vocabularies: the files.
        data_dir: the journal's directory.
        max_bytes: bound on all files together.
        max_owner_bytes: bound on the files of one caller.
    """

    def __init__(
        self,
        vocabularies: Vocabularies,
        data_dir: Path,
        *,
        max_bytes: int = MAX_BYTES,
        max_owner_bytes: int = MAX_OWNER_BYTES,
    ) -> None:
        self._vocabularies = vocabularies
        self._folder = data_dir / FOLDER
        self._max_bytes = max_bytes
        self._max_owner_bytes = max_owner_bytes
        self._lock = threading.Lock()
        self._sizes: dict[str, tuple[str, int]] | None = None
        """Owner and size of each file by its digest; None until the folder is read."""

    def keep(
        self, tokenizer_digest: str, tokens: Sequence[bytes], position: int, owner: str
    ) -> None:
        """Keep a vocabulary, as `Vocabularies.keep`; never in place of a served tokenizer's.

        Args:
            tokenizer_digest: digest of the tokenizer.
            tokens: bytes of every id.
            position: position of the journal's newest entry.
            owner: id of the caller that sent it.

        Raises:
            VocabulariesFullError: the vocabularies of the caller, or all, would take too many
                bytes.
        """
        with self._lock:
            if self._sizes is None:
                self._sizes = _read_sizes(self._folder)
            known_owner, known = self._sizes.get(tokenizer_digest, (owner, 0))
            size = sum(map(len, tokens)) + _TOKEN_BYTES * len(tokens) + _HEADER_BYTES
            if size > known and not self._vocabularies.has_served(tokenizer_digest):
                self._check(known_owner, size - known)
                self._sizes[tokenizer_digest] = (known_owner, size)
            self._vocabularies.keep(tokenizer_digest, tokens, position, owner=known_owner)

    def _check(self, owner: str, added: int) -> None:
        sizes = (self._sizes or {}).values()
        total = added + sum(size for _, size in sizes)
        own = added + sum(size for name, size in sizes if name == owner)
        if own > self._max_owner_bytes:
            raise VocabulariesFullError("this caller's", own, self._max_owner_bytes)
        if total > self._max_bytes:
            raise VocabulariesFullError("all recorders'", total, self._max_bytes)


def _read_sizes(folder: Path) -> dict[str, tuple[str, int]]:
    """Return owner and size of each file that holds a recorded model's vocabulary."""
    sizes: dict[str, tuple[str, int]] = {}
    try:
        paths = [path for path in folder.iterdir() if not path.name.startswith(".")]
    except FileNotFoundError:
        return {}
    for path in paths:
        try:
            with path.open("rb") as file:
                owner = json.loads(file.readline(1 << 16)).get(OWNER)
            if owner is not None:
                sizes[path.name] = (str(owner), path.stat().st_size)
        except (OSError, ValueError, AttributeError) as error:
            _log.warning("%s is no vocabulary: %s", path, error)
    return sizes
