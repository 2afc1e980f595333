"""The demo's model: trained once, then kept in the user's cache."""

import fcntl
import shutil
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from whence_server.config.environment import process_environment, use_passive_waiting
from whence_server.demo.corpus import corpus_folder
from whence_server.demo.recipe import SETTINGS, key
from whence_server.domain.errors import ConfigurationError
from whence_server.training.weigh_heads import weigh_heads

_HEAD_WEIGHTS = "head-weights.1.json"
"""The number counts changes to how they are weighed."""


def demo_model(cache_dir: Path | None = None, *, settings: Mapping[str, Any] = SETTINGS) -> Path:
    """The directory of the demo's model, which is trained first where it is not cached.

    It appears in the cache whole or not at all, and of several processes that want it at once
    one trains it.

    Args:
        cache_dir: where models are kept; None is `whence` in the user's cache directory.
        settings: of `whence-server train`, by name; those of the demo's own model by default.
    """
    cache_dir = cache_dir or default_cache_dir()
    directory = cache_dir / f"demo-model-{key(settings)}"
    if directory.is_dir():
        return directory
    cache_dir.mkdir(parents=True, exist_ok=True)
    with _locked(directory.with_name(f"{directory.name}.lock")):
        if not directory.is_dir():
            _make(settings, directory)
    return directory


def demo_head_weights(directory: Path) -> Path | None:
    """A file of head weights for a demo's model, which is made first where there is none.

    Args:
        directory: as `demo_model` gives it.

    Returns:
        None where none can be made, as in a cache that cannot be written to: the demo goes without.
    """
    path = _head_weights_path(directory)
    if path.is_file():
        return path
    try:
        with _locked(directory.with_name(f"{directory.name}.lock")):
            if not path.is_file():
                weigh_heads(directory, [corpus_folder(directory.parent)], path)
    except (OSError, ConfigurationError) as error:
        _say(f"the model's heads are not weighed: {error}")
        return None
    return path


def _head_weights_path(directory: Path) -> Path:
    """Beside the model: what lies in its directory is signed with it."""
    return directory.with_name(f"{directory.name}.{_HEAD_WEIGHTS}")


def default_cache_dir() -> Path:
    """`whence` under $XDG_CACHE_HOME, or under ~/.cache (XDG Base Directory Specification)."""
    given = process_environment().get("XDG_CACHE_HOME", "")
    # The specification has relative paths ignored.
    base = Path(given) if Path(given).is_absolute() else Path.home() / ".cache"
    return base / "whence"


def _make(settings: Mapping[str, Any], directory: Path) -> None:
    """Train beside `directory`, and renames when all is there. The lock has to be held."""
    _say("training the demo's model on the Python reference (once, a few minutes) ...")
    use_passive_waiting()
    # Here and not above: a cached model needs nothing of the training stack.
    from whence_server.lineage.reader import RECORD_NAME
    from whence_server.training.export import start as telemetry
    from whence_server.training.train.train import train

    partial = directory.with_name(f"{directory.name}.partial")
    # One that was killed left it.
    shutil.rmtree(partial, ignore_errors=True)
    try:
        texts = str(corpus_folder(directory.parent))
        try:
            trained = train({**settings, "texts": (texts,), "output": str(partial), "name": "demo"})
        finally:
            # What sends it follows the record by its name, which is about to change.
            telemetry.finish(partial / RECORD_NAME)
        # Of an earlier model, which is gone.
        _head_weights_path(directory).unlink(missing_ok=True)
        partial.rename(directory)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    _say(f"trained to a loss of {trained.loss:.2f} nats a token: {directory}")


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Hold the lock on `path`; the system frees it however the process ends."""
    with path.open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            _say("another process is making the demo's model; waiting for it ...")
            fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)
