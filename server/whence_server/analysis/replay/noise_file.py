"""File of measured noise, by the digest of the weights and the conditions of the measurement."""

import hashlib
import json
import logging
import tempfile
from contextlib import suppress
from pathlib import Path
from typing import Any

from whence_server.analysis.replay.noise import METHOD, Noise
from whence_server.domain.model import ModelInfo

MOST_KEPT = 64
"""Number of measurements that are kept; the oldest are dropped first."""
_log = logging.getLogger(__name__)


def describe_conditions(info: ModelInfo) -> str:
    """Return what a measurement depends on besides the weights, as text."""
    environment = info.environment
    processor = ""
    with suppress(OSError):
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        processor = next((line for line in lines if line.startswith("model name")), "")
    return ", ".join(
        [
            environment.dtype,
            environment.device,
            f"{environment.num_threads} threads",
            f"torch {environment.torch_version}",
            f"transformers {environment.transformers_version}",
            environment.attention_implementation,
            environment.step_kernels or "exact step kernels",
            processor.partition(":")[2].strip() or "unknown processor",
            METHOD,
        ]
    )


class NoiseFile:
    """File of measurements.

    Args:
        path: path of the file; "" for none, with which every process measures again.
    """

    def __init__(self, path: str) -> None:
        self._path = Path(path) if path else None

    def recall(self, weights_digest: str, conditions: str) -> Noise | None:
        """Return a measurement; None if there is none."""
        entry = self._read().get(_make_key(weights_digest, conditions))
        try:
            return None if entry is None else Noise(*entry["noise"])
        except (TypeError, KeyError):
            return None

    def keep(self, weights_digest: str, conditions: str, noise: Noise) -> None:
        """Keep a measurement; a failure is logged."""
        if self._path is None:
            return
        entries = self._read()
        key = _make_key(weights_digest, conditions)
        entries.pop(key, None)
        entries[key] = {
            "weights_digest": weights_digest,
            "conditions": conditions,
            "noise": list(noise),
        }
        kept = dict(list(entries.items())[-MOST_KEPT:])
        try:
            with tempfile.NamedTemporaryFile("w", dir=self._path.parent, delete=False) as file:
                json.dump(kept, file, indent=1)
            Path(file.name).replace(self._path)
        except OSError as error:
            _log.warning("the measured noise cannot be kept in %s: %s", self._path, error)

    def _read(self) -> dict[str, Any]:
        if self._path is None:
            return {}
        try:
            read = json.loads(self._path.read_text())
        except (OSError, ValueError):
            return {}
        return read if isinstance(read, dict) else {}


def _make_key(weights_digest: str, conditions: str) -> str:
    return hashlib.sha256(f"{weights_digest}\0{conditions}".encode()).hexdigest()
