"""Digests of files, remembered from one start of the server to the next.

Reading the weights of a large model takes longer than loading them, so their digests are kept in
a JSON file. A digest is taken from there only if nothing says that the file may have changed:

- Its place in the file system is the same: device, inode, size, times of modification and of
  status change. Copies can keep size and time of modification (`rsync -t`, reproducible images);
  no program can set the time of status change.
- The time of status change is older than the digest by more than file systems' clocks are coarse.
- A sample of its content is the same.
- The tensors that were loaded are those that the same files gave before (`confirm`). This sees
  a change that the file system does not report, as a write through a memory mapping may be.
"""

import hashlib
import json
import logging
import os
import tempfile
import time
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

from whence_server.domain.model import FileDigest
from whence_server.engine.digests import digest_file, digest_model_files

ALWAYS_READ_BYTES = 8 << 20
"""Files up to this size are digested at every start: that takes milliseconds."""
SAMPLE_BYTES = 64 << 10
NUM_SAMPLES = 16
"""Pieces of a file that are compared, from its head to its tail."""
MAX_REMEMBERED_WEIGHTS = 64
"""Tensors of models and conditions whose digests are kept; the oldest go first."""
COARSEST_CLOCK_NS = 2_000_000_000
"""A change within this time after another may leave the same time of status change."""

_log = logging.getLogger(__name__)


class Identity(NamedTuple):
    """State of a file in its file system, which changes with every write to it."""

    device: int
    inode: int
    size_bytes: int
    mtime_ns: int
    ctime_ns: int


def read_identity(path: Path) -> Identity:
    """Return the state of a file; a link's is that of its target."""
    status = path.stat()
    return Identity(
        status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns
    )


class DigestCache:
    """Digests of large files, and of the tensors that were loaded from them.

    Args:
        file: where they are kept; "" for nowhere, so that every file is read.
    """

    def __init__(self, file: str) -> None:
        self._file = Path(file) if file else None
        self._files: dict[str, dict[str, Any]] = {}
        self._weights: dict[str, str] = {}
        self._remembered: set[str] = set()
        """Paths whose digests were not computed at this start."""
        self._load()

    def compute(self, paths: Mapping[str, Path]) -> list[FileDigest]:
        """Return the SHA-256 of each file, by the names that are to be on record.

        Args:
            paths: where each file lies, by its name.
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
        """Return the files' digests once the loaded tensors agree with them, and keep both.

        Where a digest was remembered and the tensors are not those that the same files gave
        before, the files are read anew.

        Args:
            paths: as given to `digests`.
            files: what `digests` returned.
            weights_digest: of the tensors in memory.
            conditions: all else that the tensors depend on: versions, type, device.
        """
        expected = self._weights.get(_make_weights_key(files, conditions))
        if self._remembered and expected != weights_digest:
            anew = [self._compute(file.path, paths[file.path].resolve()) for file in files]
            stale = [new.path for old, new in zip(files, anew, strict=True) if old != new]
            if stale:
                _log.error(
                    "the remembered digests in %s were those of other content, which was replaced "
                    "without a trace in the file system; digested anew: %s",
                    self._file,
                    ", ".join(stale),
                )
            files = anew
        key = _make_weights_key(files, conditions)
        self._weights = {k: v for k, v in self._weights.items() if k != key} | {key: weights_digest}
        self._save()
        return files

    def _recall(self, name: str, path: Path) -> FileDigest | None:
        """Return the remembered digest, unless there is any doubt about it."""
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
            stored = json.loads(_content(self._file))
            # Without `version` it is of a release that went by path, size and mtime alone.
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
            _log.warning("%s is ignored, and all files are read: %r", self._file, error)

    def _save(self) -> None:
        """Replace the file in one rename, so that no reader sees half of it."""
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
                "%s cannot be written (%s): the next start reads all files again",
                self._file,
                error.strerror,
            )


def _content(file: Path) -> bytes:
    """Return a file's bytes.

    Raises:
        OSError: it cannot be read.
        ValueError: it is no regular file: a pipe would be waited for.
    """
    if file.exists() and not file.is_file():
        raise ValueError("it is no regular file")
    return file.read_bytes()


def _read_entry(value: dict[str, Any]) -> dict[str, Any]:
    """Return an entry of the file, checked.

    Raises:
        ValueError, TypeError, KeyError: it is none.
    """
    if len(bytes.fromhex(value["sha256"])) != hashlib.sha256().digest_size:
        raise ValueError(f"{value['sha256']!r} is no SHA-256")
    return {
        "identity": [int(number) for number in value["identity"]],
        "begun_ns": int(value["begun_ns"]),
        "sample": str(value["sample"]),
        "sha256": str(value["sha256"]),
    }


def _make_weights_key(files: list[FileDigest], conditions: str) -> str:
    return f"{digest_model_files(files)} {conditions}"


def _hash_sample(path: Path) -> str:
    """Return the SHA-256 of pieces of a file, evenly spread, its head and its tail among them."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        last = max(file.seek(0, os.SEEK_END) - SAMPLE_BYTES, 0)
        for piece in range(NUM_SAMPLES):
            file.seek(last * piece // (NUM_SAMPLES - 1))
            digest.update(file.read(SAMPLE_BYTES))
    return digest.hexdigest()
