"""The upstream's API key, read from a file."""

from pathlib import Path

from whence_server.domain.errors import ConfigurationError

_MAX_BYTES = 16 << 10


class ApiKey:
    """Key in a file, read again when the file changes, so that a key can be replaced.

    Args:
        path: the file; None for no key.
    """

    def __init__(self, path: Path | None) -> None:
        self._path = path
        self._stamp: tuple[int, int, int] | None = None
        self._key = ""

    def make_headers(self) -> dict[str, str]:
        """Return the header that holds the key; none without a file.

        Raises:
            ConfigurationError: the file cannot be read, or holds no key.
        """
        if self._path is None:
            return {}
        try:
            status = self._path.stat()
            stamp = (status.st_mtime_ns, status.st_size, status.st_ino)
            if stamp != self._stamp:
                self._key = _read(self._path)
                self._stamp = stamp
        except OSError as error:
            raise ConfigurationError(
                f"the upstream's API key cannot be read from {self._path}: {error.strerror}"
            ) from None
        return {"Authorization": f"Bearer {self._key}"}


def _read(path: Path) -> str:
    with path.open("rb") as file:
        content = file.read(_MAX_BYTES + 1)
    key = content.strip()
    # A header cannot hold other characters, and an error must not quote the key.
    if not key or len(content) > _MAX_BYTES or any(not 0x21 <= byte <= 0x7E for byte in key):
        raise ConfigurationError(
            f"the file of the upstream's API key, {path}, must hold one key of printable ASCII "
            "characters and nothing else"
        )
    return key.decode("ascii")
