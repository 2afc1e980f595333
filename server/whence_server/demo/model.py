"""The demo's model: trained once, then kept in the user's cache directory."""

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from whence_server.config.environment import use_passive_waiting
from whence_server.demo.cache import find_cache_dir, hold_lock, print_progress
from whence_server.demo.corpus import ensure_corpus_folder
from whence_server.demo.recipe import SETTINGS, compute_key
from whence_server.domain.errors import ConfigurationError
from whence_server.training.weigh_heads import weigh_heads

_HEAD_WEIGHTS = "head-weights.1.json"
"""Suffix of the file; the number counts changes to the method."""


def ensure_demo_model(
    cache_dir: Path | None = None, *, settings: Mapping[str, Any] = SETTINGS
) -> Path:
    """Return the directory of the demo's model; train the model first if it is not cached.

    The directory appears in the cache atomically. If several processes call this at once, one
    trains and the others wait.

    Args:
        cache_dir: directory of the models; None is `whence` in the user's cache directory.
        settings: settings of `whence-server train` by name; the demo's own by default.
    """
    cache_dir = cache_dir or find_cache_dir()
    directory = cache_dir / f"demo-model-{compute_key(settings)}"
    if directory.is_dir():
        return directory
    cache_dir.mkdir(parents=True, exist_ok=True)
    with hold_lock(directory.with_name(f"{directory.name}.lock")):
        if not directory.is_dir():
            _train_model(settings, directory)
    return directory


def ensure_head_weights(directory: Path) -> Path | None:
    """Return the file of head weights for a demo's model; write it first if it is missing.

    Args:
        directory: result of `ensure_demo_model`.

    Returns:
        The file; None if it cannot be written: the demo then runs without head weights.
    """
    path = _get_head_weights_path(directory)
    if path.is_file():
        return path
    try:
        with hold_lock(directory.with_name(f"{directory.name}.lock")):
            if not path.is_file():
                weigh_heads(directory, [ensure_corpus_folder(directory.parent)], path)
    except (OSError, ConfigurationError) as error:
        print_progress(f"the demo runs without head weights: {error}")
        return None
    return path


def _get_head_weights_path(directory: Path) -> Path:
    """Return the path beside the model's directory, as files inside would change its digest."""
    return directory.with_name(f"{directory.name}.{_HEAD_WEIGHTS}")


def _train_model(settings: Mapping[str, Any], directory: Path) -> None:
    """Train in a folder beside `directory`, then rename it; the caller holds the lock."""
    print_progress("training the demo's model on the Python reference (once, a few minutes) ...")
    use_passive_waiting()
    # Imported here, as a cached model does not need the training packages.
    from whence_server.lineage.reader import RECORD_NAME
    from whence_server.training.export import start as telemetry
    from whence_server.training.train.train import train

    partial = directory.with_name(f"{directory.name}.partial")
    # A process that was killed may have left one.
    shutil.rmtree(partial, ignore_errors=True)
    try:
        texts = str(ensure_corpus_folder(directory.parent))
        try:
            trained = train({**settings, "texts": (texts,), "output": str(partial), "name": "demo"})
        finally:
            # The exporter follows the record by its name, which is about to change.
            telemetry.finish(partial / RECORD_NAME)
        # Head weights of an earlier model that was deleted.
        _get_head_weights_path(directory).unlink(missing_ok=True)
        partial.rename(directory)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    print_progress(f"trained to a loss of {trained.loss:.2f} nats a token: {directory}")
