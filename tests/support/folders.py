"""Files of a folder in which a server may be at work."""

from contextlib import suppress
from pathlib import Path


def read_folder(folder: Path) -> dict[Path, bytes]:
    """Return the content of every file below a folder, but for those that vanish meanwhile."""
    content = {}
    for path in sorted(folder.rglob("*")):
        # A server replaces files by renames, and a database removes some.
        with suppress(FileNotFoundError, NotADirectoryError):
            if path.is_file():
                content[path] = path.read_bytes()
    return content
