"""The journal's entries: what happened, in the order in which it happened."""

from enum import IntEnum
from typing import NamedTuple


class EntryKind(IntEnum):
    """What an entry's payload is. The numbers are on disk: never reuse one."""

    UNREADABLE = 0
    """Never on disk: stands for an entry whose row makes no sense, without a payload."""
    STARTED = 1
    """whence.v1.GenerationStarted"""
    PROMPT_STEP = 2
    """whence.v1.Step of the prompt"""
    STEP = 3
    """whence.v1.Step"""
    BEAM_ROUND = 4
    """whence.v1.BeamRound"""
    FINISHED = 5
    """whence.v1.GenerationFinished"""
    CALL = 6
    """whence.v1.Call: outside the generation's own offsets"""
    DELETED = 7
    """whence.v1.Deletion: the generation's content was destroyed; outside its offsets. Empty in
    journals of earlier versions."""


OUTSIDE_OFFSETS = frozenset({EntryKind.CALL, EntryKind.DELETED})
"""Kinds that no stream of the generation shows."""


class Entry(NamedTuple):
    """One immutable record."""

    position: int
    """Place in the writer's log, from 1 without gaps."""
    generation_id: str
    offset: int
    """Place among the generation's own entries, from 1 without gaps; 0 outside them."""
    kind: EntryKind
    payload: bytes
    """The serialised message; empty once the content was deleted."""
