"""Training of models, and recording of trainings, with torch and transformers.

The exported names load torch at their first use, as the commands' parsers and the process that
exports a run's trace are in this package and do not need torch.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from whence_server.training.recording.documented import Document, DocumentedExamples, Piece
    from whence_server.training.recording.record import record
    from whence_server.training.recording.recorder import Recorder
    from whence_server.training.recording.setup import parent_model

__all__ = ["Document", "DocumentedExamples", "Piece", "Recorder", "parent_model", "record"]

_MODULES = {
    "Document": "recording.documented",
    "DocumentedExamples": "recording.documented",
    "Piece": "recording.documented",
    "Recorder": "recording.recorder",
    "parent_model": "recording.setup",
    "record": "recording.record",
}


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_MODULES[name]}"), name)
