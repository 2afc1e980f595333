"""Digests of the files that an upstream says it serves, and whether it says so of them."""

import os
from pathlib import Path, PurePath, PurePosixPath, PureWindowsPath

from whence_server.domain.errors import ConfigurationError
from whence_server.domain.model import FileDigest
from whence_server.engines.file_digests import digest_file
from whence_server.engines.upstream.exchange import UpstreamDescription

_IGNORED = frozenset({"lineage.binpb", "README.md", "LICENSE", "LICENSE.txt"})
"""Files that do not decide what is computed; a training record contains these digests itself."""

_WEIGHT_SUFFIXES = frozenset({".gguf", ".safetensors", ".bin", ".pt", ".pth"})
"""Suffixes of names that are those of one file, and of no folder or repository."""
_NAMELESS_KINDS = frozenset({"ollama"})
"""Kinds whose statement is no name of a file or folder."""


def describe_difference(weights: Path, told: UpstreamDescription) -> str:
    """Return in words how given files differ from those that an upstream names; "" if not.

    Names alone are compared: a container has the same files in another place. A folder may have
    any name, so that only the upstream's name of a file can refute.

    Args:
        weights: file or folder that is given.
        told: the upstream's own description.

    Raises:
        ConfigurationError: the upstream names a file, and it is not among the given ones.
    """
    claimed = told.claimed_files
    if not claimed or told.kind in _NAMELESS_KINDS:
        return ""
    path = _parse_path(claimed)
    if path.suffix in _WEIGHT_SUFFIXES:
        held = {weights.name} if weights.is_file() else {file.name for file in weights.rglob("*")}
        if path.name not in held:
            raise ConfigurationError(
                f"--upstream-weights {weights}: the upstream says that it serves {claimed!r}, "
                "which is not among these files; give the file that it serves"
            )
        return ""
    names = {part.casefold() for part in (*weights.parts, *weights.resolve().parts)}
    # The hub's cache has a repository under this name.
    repository = f"models--{claimed.replace('/', '--')}".casefold()
    if path.name.casefold() in names or repository in names:
        return ""
    return f"the upstream says that it serves {claimed!r}, and --upstream-weights is {weights}"


def _parse_path(text: str) -> PurePath:
    return PureWindowsPath(text) if "\\" in text else PurePosixPath(text)


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
