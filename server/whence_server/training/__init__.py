"""Trains, and records what changed the weights: torch's and transformers' side of the lineage."""

from whence_server.training.documented import Document, DocumentedExamples, Piece
from whence_server.training.recorder import Recorder, record

__all__ = ["Document", "DocumentedExamples", "Piece", "Recorder", "record"]
