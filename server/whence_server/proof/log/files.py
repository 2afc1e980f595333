"""Publication of a log as files in a directory, which any web server can serve."""

import os
from pathlib import Path

from whence.proof.checkpoints import Checkpoint
from whence.proof.notes import NoteError, SignedNote
from whence_server.domain.errors import ConfigurationError
from whence_server.proof.log.tiles import CHECKPOINT, Tile


class LogDirectory:
    """Directory with the tiles and the checkpoint of a log.

    A file appears whole, and the checkpoint last: who reads it finds all tiles that it needs.

    Args:
        path: the directory; created if it does not exist.
    """

    def __init__(self, path: Path) -> None:
        self._path = path

    def prepare(self, origin: str) -> int:
        """Create the directory; return the size of the log that it shows, 0 for none.

        Raises:
            ConfigurationError: it cannot be written, or it shows another log.
        """
        try:
            self._path.mkdir(parents=True, exist_ok=True)
            content = (self._path / CHECKPOINT).read_bytes()
        except FileNotFoundError:
            return 0
        except OSError as error:
            raise ConfigurationError(
                f"--log-dir {self._path} cannot be used: {error.strerror}"
            ) from error
        try:
            shown = Checkpoint.parse(SignedNote.parse(content).text)
        except NoteError as error:
            raise ConfigurationError(
                f"--log-dir {self._path}: its checkpoint cannot be read ({error}); choose an empty "
                "directory"
            ) from None
        if shown.origin != origin:
            raise ConfigurationError(
                f"--log-dir {self._path} shows log {shown.origin!r}, and this server's log is "
                f"{origin!r}: choose another directory"
            )
        return shown.size

    def write(self, tile: Tile, content: bytes) -> None:
        """Write a tile."""
        self._replace(tile.path, content)

    def write_checkpoint(self, note: bytes) -> None:
        """Write the checkpoint, after the tiles that it needs."""
        self._replace(CHECKPOINT, note)

    def _replace(self, name: str, content: bytes) -> None:
        path = self._path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        draft = path.with_name(f".{path.name}.new")
        with draft.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        draft.replace(path)
