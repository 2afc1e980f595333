"""Digests of the files that an upstream says it serves."""

import os
from pathlib import Path

from whence_server.domain.errors import ConfigurationError
from whence_server.domain.model import FileDigest
from whence_server.engines.file_digests import digest_file

_IGNORED = frozenset({"lineage.binpb", "README.md", "LICENSE", "LICENSE.txt"})
"""Files that do not decide what is computed; a training record contains these digests itself."""


def digest_claimed_files(path: Path) -> tuple[FileDigest, ...]:
    """Return the digests of a file, or of the files of a folder and its folders, by name.

    Hidden files, licences, a README and a training record are left out.

    Raises:
        ConfigurationError: there is no file, or one cannot be read.
    """
    try:
        if path.is_file():
            return (digest_file(path.name, path),)
        found = [
            digest_file(file.relative_to(path).as_posix(), file)
            for folder, _, names in os.walk(path)
            for file in (Path(folder) / name for name in names)
            if _counts(file.relative_to(path))
        ]
    except OSError as error:
        raise ConfigurationError(
            f"--upstream-weights {error.filename}: cannot be read: {error.strerror}"
        ) from error
    if not found:
        raise ConfigurationError(f"--upstream-weights {path}: holds no file")
    return tuple(sorted(found, key=lambda file: file.path))


def _counts(path: Path) -> bool:
    return path.name not in _IGNORED and not any(part.startswith(".") for part in path.parts)
