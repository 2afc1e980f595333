"""Publication of a log as files in a directory, which any web server can serve."""

import os
import tempfile
from pathlib import Path

from whence.proof.checkpoints import Checkpoint, verify_checkpoint
from whence.proof.notes import NoteError, SignedNote, VerifierKey
from whence_server.domain.errors import ConfigurationError
from whence_server.proof.log.tiles import CHECKPOINT, Tile

_MODE = 0o644


class LogDirectory:
    """Directory with the tiles and the checkpoint of a log.

    A file appears whole, and the checkpoint last: who reads it finds all tiles that it needs.

    Args:
        path: the directory; created if it does not exist.
    """

    def __init__(self, path: Path) -> None:
        self._path = path

    def prepare(self, key: VerifierKey) -> Checkpoint | None:
        """Create the directory; return the state of the log that it shows, None for none.

        Args:
            key: the log's key, which must have signed the checkpoint.

        Raises:
            ConfigurationError: it cannot be written, or it shows another log.
        """
        try:
            self._path.mkdir(parents=True, exist_ok=True)
            content = (self._path / CHECKPOINT).read_bytes()
        except FileNotFoundError:
            return None
        except OSError as error:
            raise ConfigurationError(
                f"--log-dir {self._path} cannot be used: {error.strerror}"
            ) from error
        try:
            shown = Checkpoint.parse(SignedNote.parse(content).text)
            if shown.origin == key.name:
                return verify_checkpoint(content, key).checkpoint
        except NoteError as error:
            raise ConfigurationError(
                f"--log-dir {self._path}: its checkpoint cannot be read ({error}); choose an empty "
                "directory"
            ) from None
        raise ConfigurationError(
            f"--log-dir {self._path} shows log {shown.origin!r}, and this server's log is "
            f"{key.name!r}: choose another directory"
        )

    def write(self, tile: Tile, content: bytes) -> None:
        """Write a tile."""
        self._replace(tile.path, content)

    def write_checkpoint(self, note: bytes) -> None:
        """Write the checkpoint, after the tiles that it needs."""
        self._replace(CHECKPOINT, note)

    def _replace(self, name: str, content: bytes) -> None:
        path = self._path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        # Each writer has a draft of its own: another server may write the same file.
        descriptor, draft = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
        try:
            with os.fdopen(descriptor, "wb") as file:
                os.fchmod(descriptor, _MODE)
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
            Path(draft).replace(path)
        except BaseException:
            Path(draft).unlink(missing_ok=True)
            raise
