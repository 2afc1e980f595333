"""Files with one weight for each attention head, fitted for a model.

    {"weights_digest": "<64 hex digits>", "method": "...", "head_weights": [[1.0, 0.5, ...], ...]}

with a list for each layer, and in it a number for each head. The method is optional: a text that
tells how the numbers were made. Head weights that are fitted so that
attention agrees with ablations make sources more faithful (Cohen-Wang et al., "Learning to
Attribute with Attention", 2025). They hold for one set of model weights, named by the digest.
"""

import hashlib
import json
import os
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

import torch

from whence_server.domain.errors import ConfigurationError

SMALLEST, LARGEST = torch.finfo(torch.float32).tiny, torch.finfo(torch.float32).max
MAX_SHOWN = 40
_NEEDED = {"weights_digest", "head_weights"}


class HeadWeights(NamedTuple):
    """Head weights (theta), and the digest of their file.

    Attributes:
        values: a list for each layer, with a number for each head.
        digest: SHA-256 of the file, in hex.
    """

    values: list[list[float]]
    digest: str


def read_head_weights(path: str, weights_digest: str) -> HeadWeights:
    """Read a file of head weights, and check that it is for the model.

    Raises:
        ConfigurationError: the file cannot be read, is malformed, or is for other weights.
    """
    where = f"--head-weights {path}"
    try:
        content = Path(path).read_bytes()
        document = json.loads(content)
    except (OSError, ValueError) as error:
        raise ConfigurationError(f"{where}: cannot be read: {error}") from None
    if not isinstance(document, dict) or document.keys() - {"method"} != _NEEDED:
        raise ConfigurationError(
            f'{where}: must be a JSON object with "weights_digest" and "head_weights", and with '
            'no other field than "method" besides'
        )
    if document["weights_digest"] != weights_digest:
        raise ConfigurationError(
            f"{where}: it is for weights with digest {document['weights_digest']}, but the "
            f"model's digest is {weights_digest}"
        )
    values = document["head_weights"]
    rows = values if isinstance(values, list) else []
    if not rows or not all(isinstance(row, list) and len(row) == len(rows[0]) for row in rows):
        raise ConfigurationError(
            f"{where}: head_weights must hold a list for each layer, all of one length"
        )
    for layer, row in enumerate(rows):
        for head, value in enumerate(row):
            if not _is_weight(value):
                raise ConfigurationError(
                    f"{where}: head_weights[{layer}][{head}] is {_shorten(value)}; it must be 0, "
                    f"or from {SMALLEST:.3g} to {LARGEST:.3g}, which a float32 can hold"
                )
    if not any(value > 0 for row in rows for value in row):
        raise ConfigurationError(f"{where}: at least one of head_weights must be above 0")
    return HeadWeights(rows, hashlib.sha256(content).hexdigest())


def write_head_weights(
    path: Path, weights_digest: str, values: Sequence[Sequence[float]], method: str
) -> None:
    """Write a file for `read_head_weights`, atomically.

    Args:
        path: the file.
        weights_digest: digest of the model's weights.
        values: a list for each layer, with a number for each head.
        method: text that tells how the numbers were made.

    Raises:
        ConfigurationError: the file exists already, or cannot be written.
    """
    document = {"weights_digest": weights_digest, "method": method, "head_weights": values}
    text = json.dumps(document) + "\n"
    partial = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        partial.write_text(text, encoding="utf-8")
        os.link(partial, path)  # unlike a rename, does not replace an existing file
    except FileExistsError:
        raise ConfigurationError(f"{path} exists already; give another path") from None
    except OSError as error:
        raise ConfigurationError(f"{path} cannot be written: {error.strerror}") from None
    finally:
        with suppress(OSError):
            partial.unlink(missing_ok=True)


def _is_weight(value: Any) -> bool:
    # Compared and not converted, as an integer may be too large for a float.
    return (
        isinstance(value, int | float)
        and not isinstance(value, bool)
        and (value == 0 or SMALLEST <= value <= LARGEST)
    )


def _shorten(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= MAX_SHOWN else f"{text[:MAX_SHOWN]}..."
