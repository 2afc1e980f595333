"""Findings about the demo's model, from one start of its server to the next.

Each start has a new data directory. A server that finds nothing in it hashes the model's files and
tries the model out, which takes longer than loading it.
"""

import os
import shutil
import tempfile
from contextlib import suppress
from pathlib import Path

from whence_server.demo.cache import find_cache_dir

_FILES = ("digests.json", "findings.json")
"""Files of a data directory that name the conditions under which their content holds."""


def bring_findings(data_dir: Path, cache_dir: Path | None = None) -> None:
    """Copy what an earlier start found out into a data directory; a failure costs time only."""
    for name in _FILES:
        with suppress(OSError):
            shutil.copyfile((cache_dir or _find_directory()) / name, data_dir / name)


def keep_findings(data_dir: Path, cache_dir: Path | None = None) -> None:
    """Keep what a server has found out for the next start; a failure costs time only."""
    kept = cache_dir or _find_directory()
    with suppress(OSError):
        kept.mkdir(mode=0o700, parents=True, exist_ok=True)
        for name in _FILES:
            # By a rename: servers that start at the same time read whole files.
            descriptor, temporary = tempfile.mkstemp(dir=kept)
            os.close(descriptor)
            shutil.copyfile(data_dir / name, temporary)
            Path(temporary).replace(kept / name)


def _find_directory() -> Path:
    return find_cache_dir() / "starts"
