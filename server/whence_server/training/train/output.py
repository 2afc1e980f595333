"""Output directory of a training: check before the training, and atomic saving of the model."""

import shutil
from pathlib import Path
from typing import Any

from safetensors import SafetensorError

from whence_server.domain.errors import ConfigurationError, LineageError
from whence_server.lineage.reader import RECORD_NAME, is_begun
from whence_server.training.train.resuming import CHECKPOINTS

_PARTIAL = "model.partial"


def save_model(model: Any, tokenizer: Any, output: Path) -> None:
    """Save the model to a temporary folder, then move its files, `config.json` last.

    Raises:
        LineageError: the model cannot be written.
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
            f"the model cannot be written to {output} ({error}): if the disk is full, free space "
            "and resume with --resume"
        ) from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def require_empty(output: Path) -> None:
    """Refuse an output directory that has a run or other files.

    Raises:
        ConfigurationError: the directory is not empty.
    """
    if is_begun(output / RECORD_NAME):
        raise ConfigurationError(
            f"--output {output}: it has the record of a run; resume that run (--resume), or choose "
            "another directory"
        )
    if output.exists() and (not output.is_dir() or any(map(_is_foreign, output.iterdir()))):
        raise ConfigurationError(
            f"--output {output}: it is not an empty directory; give an empty or a new one"
        )


def _is_foreign(path: Path) -> bool:
    """Return whether a file is not a remnant of a run that was killed before it began."""
    if path.name == CHECKPOINTS and path.is_dir():
        return any(path.iterdir())
    return not path.name.startswith(RECORD_NAME)
