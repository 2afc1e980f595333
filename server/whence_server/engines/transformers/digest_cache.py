"""Cache of file digests from one start of the server to the next.

Hashing the weights of a large model takes longer than loading them, so the digests are kept in a
JSON file. A digest is taken from the cache only if all of these hold:

- The file's device, inode, size, mtime and ctime are the same. Copies can keep size and mtime
  (`rsync -t`, reproducible images), but no program can set ctime.
- ctime is older than the digest by more than the resolution of file systems' clocks.
- A sample of the content is the same.
- The loaded tensors equal those that the same files gave before (`confirm`). This detects changes
  that the file system does not report, such as writes through a memory mapping.
"""

import hashlib
import json
import logging
import os
import tempfile
import time
from collections.abc import Iterable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

from whence_server.domain.errors import ConfigurationError
from whence_server.domain.model import FileDigest
from whence_server.engines.transformers.digests import digest_file, digest_model_files

ALWAYS_READ_BYTES = 8 << 20
"""Size up to which files are hashed at every start, which takes milliseconds."""
SAMPLE_BYTES = 64 << 10
NUM_SAMPLES = 16
"""Number of samples of a file, evenly spaced from its start to its end."""
MAX_REMEMBERED_WEIGHTS = 64
"""Number of weights digests that are kept; the oldest are dropped first."""
NAMES_SHOWN = 10
COARSEST_CLOCK_NS = 2_000_000_000
"""Time within which two changes may leave the same ctime."""

_log = logging.getLogger(__name__)


class Identity(NamedTuple):
    """Metadata of a file in its file system, which changes with every write to the file."""

    device: int
    inode: int
    size_bytes: int
    mtime_ns: int
    ctime_ns: int


def read_identity(path: Path) -> Identity:
    """Return the metadata of a file; symbolic links are followed."""
    status = path.stat()
    return Identity(
        status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns
    )


def read_identities(paths: Iterable[Path]) -> dict[Path, Identity]:
    """Return the metadata of files."""
    return {path: read_identity(path) for path in paths}


def check_unchanged(before: Mapping[Path, Identity], after: Mapping[Path, Identity]) -> None:
    """Check that files did not change while they were loaded.

    Raises:
        ConfigurationError: files have changed, so that it is not known what was loaded.
    """
    changed = [str(path) for path, state in before.items() if after[path] != state]
    if changed:
        raise ConfigurationError(
            f"{', '.join(changed[:NAMES_SHOWN])} changed while the model was being loaded; start "
            "again when nothing writes to these files"
        )


class DigestCache:
    """Cache of the digests of large files, and of the tensors that were loaded from them.

    Args:
        file: path of the cache; "" for no cache, with which every file is hashed.
    """

    def __init__(self, file: str) -> None:
        self._file = Path(file) if file else None
        self._files: dict[str, dict[str, Any]] = {}
        self._weights: dict[str, str] = {}
        self._remembered: set[str] = set()
        """Paths whose digests were taken from the cache at this start."""
        self._load()

    def compute(self, paths: Mapping[str, Path]) -> list[FileDigest]:
        """Return the SHA-256 of each file, sorted by name.

        Args:
            paths: path of each file, by its recorded name.
        """
        found = []
        for name in sorted(paths):
            path = paths[name].resolve()
            found.append(self._recall(name, path) or self._compute(name, path))
        return found

    def confirm(
        self,
        paths: Mapping[str, Path],
        files: list[FileDigest],
        weights_digest: str,
        conditions: str,
    ) -> list[FileDigest]:
        """Return the files' digests, checked against the loaded tensors, and save both.

        If a digest is from the cache and the tensors differ from those that the same files gave
        before, the files are hashed again.

        Args:
            paths: argument of `compute`.
            files: result of `compute`.
            weights_digest: digest of the tensors in memory.
            conditions: versions, dtype and device, on which the tensors depend besides the files.
        """
        expected = self._weights.get(_make_weights_key(files, conditions))
        if self._remembered and expected != weights_digest:
            anew = [self._compute(file.path, paths[file.path].resolve()) for file in files]
            stale = [new.path for old, new in zip(files, anew, strict=True) if old != new]
            if stale:
                _log.error(
                    "digests in the cache %s were outdated: files have changed without a change "
                    "of their metadata; hashed again: %s",
                    self._file,
                    ", ".join(stale),
                )
            files = anew
        key = _make_weights_key(files, conditions)
        self._weights = {k: v for k, v in self._weights.items() if k != key} | {key: weights_digest}
        self._save()
        return files

    def _recall(self, name: str, path: Path) -> FileDigest | None:
        """Return the cached digest; None if the file may have changed."""
        entry = self._files.get(str(path))
        now = read_identity(path)
        if entry is None or now.size_bytes <= ALWAYS_READ_BYTES or entry["identity"] != list(now):
            return None
        if entry["begun_ns"] - now.ctime_ns < COARSEST_CLOCK_NS or entry["sample"] != _hash_sample(
            path
        ):
            return None
        self._remembered.add(str(path))
        return FileDigest(path=name, size_bytes=now.size_bytes, sha256=entry["sha256"])

    def _compute(self, name: str, path: Path) -> FileDigest:
        begun_ns, before = time.time_ns(), read_identity(path)
        digest = digest_file(name, path)
        self._files.pop(str(path), None)
        if before.size_bytes > ALWAYS_READ_BYTES and read_identity(path) == before:
            self._files[str(path)] = {
                "identity": list(before),
                "begun_ns": begun_ns,
                "sample": _hash_sample(path),
                "sha256": digest.sha256,
            }
        return digest

    def _load(self) -> None:
        if self._file is None:
            return
        try:
            stored = json.loads(_read_regular_file(self._file))
            # Files without `version` are of a release that compared only path, size and mtime.
            if stored.get("version") == 2:
                self._files = {str(k): _read_entry(v) for k, v in stored["files"].items()}
                self._weights = {str(k): str(v) for k, v in stored["weights"].items()}
        except FileNotFoundError:
            pass
        except (
            OSError,
            ValueError,
            TypeError,
            KeyError,
            AttributeError,
            OverflowError,
            RecursionError,
        ) as error:
            self._files, self._weights = {}, {}
            _log.warning(
                "the digest cache %s is ignored, and all files are hashed: %r", self._file, error
            )

    def _save(self) -> None:
        """Replace the file by a rename, so that no reader sees a partial file."""
        if self._file is None:
            return
        weights = dict(list(self._weights.items())[-MAX_REMEMBERED_WEIGHTS:])
        document = {"version": 2, "files": self._files, "weights": weights}
        temporary = ""
        try:
            self._file.parent.mkdir(parents=True, exist_ok=True)
            descriptor, temporary = tempfile.mkstemp(dir=self._file.parent, prefix=self._file.name)
            with os.fdopen(descriptor, "w") as file:
                json.dump(document, file, indent=1)
            Path(temporary).replace(self._file)
        except OSError as error:
            if temporary:
                with suppress(OSError):
                    Path(temporary).unlink(missing_ok=True)
            _log.warning(
                "the digest cache %s cannot be written (%s): the next start hashes all files again",
                self._file,
                error.strerror,
            )


def _read_regular_file(file: Path) -> bytes:
    """Return a file's bytes.

    Raises:
        OSError: the file cannot be read.
        ValueError: it is not a regular file; reading a pipe would block.
    """
    if file.exists() and not file.is_file():
        raise ValueError("it is not a regular file")
    return file.read_bytes()


def _read_entry(value: dict[str, Any]) -> dict[str, Any]:
    """Return a checked entry of the file.

    Raises:
        ValueError, TypeError, KeyError: the entry is malformed.
    """
    if len(bytes.fromhex(value["sha256"])) != hashlib.sha256().digest_size:
        raise ValueError(f"{value['sha256']!r} is not a SHA-256")
    return {
        "identity": [int(number) for number in value["identity"]],
        "begun_ns": int(value["begun_ns"]),
        "sample": str(value["sample"]),
        "sha256": str(value["sha256"]),
    }


def _make_weights_key(files: list[FileDigest], conditions: str) -> str:
    return f"{digest_model_files(files)} {conditions}"


def _hash_sample(path: Path) -> str:
    """Return the SHA-256 of evenly spaced samples of a file, its start and end included."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        last = max(file.seek(0, os.SEEK_END) - SAMPLE_BYTES, 0)
        for piece in range(NUM_SAMPLES):
            file.seek(last * piece // (NUM_SAMPLES - 1))
            digest.update(file.read(SAMPLE_BYTES))
    return digest.hexdigest()
