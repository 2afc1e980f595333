"""Cache of what the trials of a model found, from one start of the engine to the next.

The trials (`trials.py`) run a model some forty times, which takes longer than loading a small one.
Their findings depend only on the loaded tensors, the code, the settings and the machine, so they
are kept in a JSON file under the digest of all of these (`conditions.py`). Any change of one of
them is another key, under which nothing is found.
"""

import json
import logging
import os
import tempfile
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

from whence_server.domain.model import InternalsInfo
from whence_server.engines.transformers.style import ForwardStyle

MAX_REMEMBERED = 16
"""Number of models whose findings are kept; the oldest are dropped first."""
_VERSION = 2

_log = logging.getLogger(__name__)


class Findings(NamedTuple):
    """Results of the trials of a model.

    Attributes:
        style: call style for a batch; None if every sequence decodes by itself.
        attention_obstacle: reason why our attention function is not in place; None if it is.
        internals: internals that the model gives.
        captured: True if the captured step has the logits of the modules, to the bit.
        captured_probed: True if the captured step with a probe has their activations too.
        packed: True if the captured step multiplies with packed weights.
        reuses_prefixes: True if the logits are the same with a prefix cache.
        pass_dependence: reason why results depend on the division into passes; "" if they do not.
    """

    style: ForwardStyle | None
    attention_obstacle: str | None
    internals: InternalsInfo
    captured: bool
    captured_probed: bool
    packed: bool
    reuses_prefixes: bool
    pass_dependence: str


class FindingsCache:
    """File of findings by the digest of their conditions.

    Args:
        file: path of the file; "" for none, with which every start runs the trials.
    """

    def __init__(self, file: str) -> None:
        self._file = Path(file) if file else None

    def recall(self, conditions: str) -> Findings | None:
        """Return the findings under these conditions; None if there are none, or if damaged."""
        entry = self._read().get(conditions)
        try:
            return None if entry is None else _decode(entry)
        except (TypeError, KeyError, ValueError, AttributeError) as error:
            _log.warning("the findings in %s are ignored: %r", self._file, error)
            return None

    def keep(self, conditions: str, findings: Findings) -> None:
        """Keep the findings; a failure is logged."""
        entries = self._read()
        entries.pop(conditions, None)
        entries[conditions] = _encode(findings)
        self._write(dict(list(entries.items())[-MAX_REMEMBERED:]))

    def forget(self, conditions: str) -> None:
        """Remove the findings under these conditions."""
        entries = self._read()
        if entries.pop(conditions, None) is not None:
            self._write(entries)

    def _read(self) -> dict[str, Any]:
        if self._file is None or not self._file.is_file():
            return {}
        try:
            stored = json.loads(self._file.read_bytes())
            entries = stored["findings"] if stored["version"] == _VERSION else {}
            if isinstance(entries, dict):
                return entries
        except (OSError, ValueError, TypeError, KeyError, RecursionError) as error:
            _log.warning("%s is ignored, and the model is tried again: %r", self._file, error)
        return {}

    def _write(self, entries: dict[str, Any]) -> None:
        """Replace the file by a rename, so that no reader sees a partial file."""
        if self._file is None:
            return
        temporary = ""
        try:
            self._file.parent.mkdir(parents=True, exist_ok=True)
            descriptor, temporary = tempfile.mkstemp(dir=self._file.parent, prefix=self._file.name)
            with os.fdopen(descriptor, "w") as file:
                json.dump({"version": _VERSION, "findings": entries}, file, indent=1)
            Path(temporary).replace(self._file)
        except OSError as error:
            if temporary:
                with suppress(OSError):
                    Path(temporary).unlink(missing_ok=True)
            _log.warning(
                "%s cannot be written (%s): the next start tries the model again",
                self._file,
                error.strerror,
            )


def _encode(findings: Findings) -> dict[str, Any]:
    style, internals = findings.style, findings.internals
    return {
        "style": None
        if style is None
        else {
            "num_layers": style.num_layers,
            "position_ids": style.position_ids,
            "logits_to_keep": style.logits_to_keep,
            "ready_mask": style.ready_mask,
            "windows": style.windows,
        },
        "attention_obstacle": findings.attention_obstacle,
        "source_method": internals.source_method,
        "unavailable": dict(internals.unavailable),
        "captured": findings.captured,
        "captured_probed": findings.captured_probed,
        "packed": findings.packed,
        "reuses_prefixes": findings.reuses_prefixes,
        "pass_dependence": findings.pass_dependence,
    }


def _decode(entry: dict[str, Any]) -> Findings:
    """Return a checked entry of the file.

    Raises:
        TypeError, KeyError, ValueError, AttributeError: the entry is malformed.
    """
    style, obstacle = entry["style"], entry["attention_obstacle"]
    if style is not None:
        windows = tuple(
            (str(kind), None if window is None else int(window))
            for kind, window in style["windows"]
        )
        style = ForwardStyle(
            num_layers=int(style["num_layers"]),
            position_ids=_read_flag(style["position_ids"]),
            logits_to_keep=_read_flag(style["logits_to_keep"]),
            ready_mask=_read_flag(style["ready_mask"]),
            windows=windows,
        )
    return Findings(
        style=style,
        attention_obstacle=None if obstacle is None else str(obstacle),
        internals=InternalsInfo(
            str(entry["source_method"]),
            {str(part): str(why) for part, why in entry["unavailable"].items()},
        ),
        captured=_read_flag(entry["captured"]),
        captured_probed=_read_flag(entry["captured_probed"]),
        packed=_read_flag(entry["packed"]),
        reuses_prefixes=_read_flag(entry["reuses_prefixes"]),
        pass_dependence=str(entry["pass_dependence"]),
    )


def _read_flag(value: Any) -> bool:
    if not isinstance(value, bool):
        raise TypeError(f"{value!r} is neither true nor false")
    return value
