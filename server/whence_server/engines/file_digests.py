"""Digests of a model's files."""

import hashlib
from collections.abc import Iterable, Sequence
from pathlib import Path

from whence_server.domain.model import FileDigest

CHUNK_BYTES = 1 << 20


def digest_files(directory: Path, names: Iterable[str]) -> list[FileDigest]:
    """Return the SHA-256 of each named file of a directory, sorted by name."""
    return [digest_file(name, directory / name) for name in sorted(names)]


def digest_file(name: str, path: Path) -> FileDigest:
    """Return the size and SHA-256 of a file's content.

    Args:
        name: recorded name of the file.
        path: path of the file.
    """
    return FileDigest(path=name, size_bytes=path.stat().st_size, sha256=hash_file(path.resolve()))


def digest_model_files(files: Sequence[FileDigest]) -> str:
    """Return the digest of a set of files as defined by OpenSSF model signing.

    It is the SHA-256 over the files' concatenated raw SHA-256 digests, in the order of their
    names. `model-signing` (1.1) signs the same digest if it signs exactly these files with one
    digest per file.
    """
    whole = hashlib.sha256()
    for file in sorted(files, key=lambda file: file.path):
        whole.update(bytes.fromhex(file.sha256))
    return whole.hexdigest()


def hash_file(path: Path) -> str:
    """Return the SHA-256 of a file's content, in hex."""
    with path.open("rb") as file:
        digest = hashlib.sha256()
        while chunk := file.read(CHUNK_BYTES):
            digest.update(chunk)
    return digest.hexdigest()
