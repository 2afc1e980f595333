"""The real model of the demo, SmolLM2-135M-Instruct: converted once, then kept in the cache."""

import hashlib
import json
import shutil
import subprocess
import sys
import time
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from whence_server.demo.cache import find_cache_dir, hold_lock, print_progress
from whence_server.demo.real_weights import (
    GGUF_NAME,
    GGUF_SHA256,
    REQUIREMENT,
    WHEEL_SHA256,
    ensure_gguf,
)
from whence_server.domain.errors import ConfigurationError

NAME = "SmolLM2-135M-Instruct"

# Number of changes to the conversion.
_REVISION = 1
# Packages whose versions the converted files depend on.
_LIBRARIES = ("gguf", "tokenizers", "transformers")


def ensure_real_model(cache_dir: Path | None = None) -> Path:
    """Return the directory of the real model; download and convert it first if it is not cached.

    The directory appears in the cache atomically. If several processes call this at once, one
    makes the model and the others wait. `get_digests_path` names the file with its digests.

    Args:
        cache_dir: directory of the models; None is `whence` in the user's cache directory.

    Raises:
        ConfigurationError: the model cannot be downloaded, converted or kept; the message says
            what is needed.
    """
    cache_dir = cache_dir or find_cache_dir()
    versions = _get_versions()
    directory = cache_dir / f"{NAME}-{_compute_key(versions)}"
    if directory.is_dir():
        return directory
    try:
        cache_dir.mkdir(parents=True, exist_ok=True)
        with hold_lock(cache_dir / f"{NAME}.lock"):
            if not directory.is_dir():
                _convert(ensure_gguf(cache_dir), directory, versions)
    except OSError as error:
        raise ConfigurationError(
            f"{cache_dir}: the demo's model, 640 MB, cannot be kept here: {error.strerror}; set "
            "XDG_CACHE_HOME to the path of another cache directory"
        ) from error
    return directory


def get_digests_path(directory: Path) -> Path:
    """Return the file beside a model's directory with the digests of its sources and its files."""
    return directory.with_name(f"{directory.name}.json")


def read_digests(directory: Path) -> Mapping[str, str]:
    """Return the SHA-256 of the GGUF file and of the weights in `directory`, in hex, by name."""
    digests = json.loads(get_digests_path(directory).read_text(encoding="utf-8"))
    return {
        digests["gguf"]["name"]: digests["gguf"]["sha256"],
        "model.safetensors": digests["sha256"]["model.safetensors"],
    }


def _get_versions() -> Mapping[str, str]:
    try:
        return {name: version(name) for name in _LIBRARIES}
    except PackageNotFoundError as error:
        raise ConfigurationError(
            f"{error.name} is not installed: pip install 'whence[server,demo]'"
        ) from error


def _compute_key(versions: Mapping[str, str]) -> str:
    """Return twelve hex digits of a digest over everything that the files depend on."""
    ingredients = {"revision": _REVISION, "gguf": GGUF_SHA256, "libraries": dict(versions)}
    return hashlib.sha256(json.dumps(ingredients, sort_keys=True).encode()).hexdigest()[:12]


def _convert(gguf: Path, directory: Path, versions: Mapping[str, str]) -> None:
    """Convert in a folder beside `directory`, then rename it; the caller holds the lock."""
    print_progress("converting it from GGUF to safetensors (once) ...")
    started = time.monotonic()
    partial = directory.with_name(f"{directory.name}.partial")
    # A process that was killed may have left one.
    shutil.rmtree(partial, ignore_errors=True)
    try:
        converted = subprocess.run(  # noqa: S603 - our own interpreter
            [sys.executable, "-m", "whence_server.demo.convert_gguf", str(gguf), str(partial)],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            check=False,
        )
        if converted.returncode:
            # The last line of a traceback names the error.
            *_, reason = converted.stdout.splitlines() or [""]
            raise ConfigurationError(
                f"{gguf}: the conversion failed with status {converted.returncode}: {reason}"
            )
        _write_digests(partial, get_digests_path(directory), versions)
        partial.rename(directory)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    print_progress(f"  converted in {time.monotonic() - started:.0f} s: {directory}")


def _write_digests(partial: Path, path: Path, versions: Mapping[str, str]) -> None:
    """Write the digests to `path`, beside the directory, whose own digest they would change."""
    files = {}
    for file in sorted(partial.iterdir()):
        with file.open("rb") as content:
            files[file.name] = hashlib.file_digest(content, "sha256").hexdigest()
    digests = {
        "wheel": {"name": REQUIREMENT, "sha256": WHEEL_SHA256},
        "gguf": {"name": GGUF_NAME, "sha256": GGUF_SHA256},
        "converted_with": dict(versions),
        "sha256": files,
    }
    path.write_text(json.dumps(digests, indent=2) + "\n")
