"""A training's output directory: empty before, and the model in it whole or not at all."""

import shutil
from pathlib import Path
from typing import Any

from safetensors import SafetensorError

from whence_server.domain.errors import ConfigurationError, LineageError
from whence_server.lineage.reader import RECORD_NAME, is_begun
from whence_server.training.train.resuming import CHECKPOINTS

_PARTIAL = "model.partial"


def save_model(model: Any, tokenizer: Any, output: Path) -> None:
    """Save beside, then moves file by file: `config.json` last.

    Raises:
        LineageError: it cannot be written.
    """
    partial = output / _PARTIAL
    shutil.rmtree(partial, ignore_errors=True)
    try:
        model.save_pretrained(partial)
        tokenizer.save_pretrained(partial)
        (output / "config.json").unlink(missing_ok=True)
        for path in sorted(partial.iterdir(), key=lambda path: path.name == "config.json"):
            path.replace(output / path.name)
    except (OSError, SafetensorError) as error:
        raise LineageError(
            f"the model cannot be written to {output} ({error}): if the disk is full, make room "
            "and go on with --resume"
        ) from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def require_empty(output: Path) -> None:
    """Refuse to begin a run where there is another, or something else.

    Raises:
        ConfigurationError: naming the directory.
    """
    if is_begun(output / RECORD_NAME):
        raise ConfigurationError(
            f"--output {output}: a run is on record there; go on with it (--resume), or choose "
            "another directory"
        )
    if output.exists() and (not output.is_dir() or any(map(_is_foreign, output.iterdir()))):
        raise ConfigurationError(
            f"--output {output}: something else is there; give an empty or a new directory"
        )


def _is_foreign(path: Path) -> bool:
    """Whether it is something else than what a run leaves that was killed before it had begun."""
    if path.name == CHECKPOINTS and path.is_dir():
        return any(path.iterdir())
    return not path.name.startswith(RECORD_NAME)
