"""The journal's entries, in the order in which they were written."""

from enum import IntEnum
from typing import NamedTuple


class EntryKind(IntEnum):
    """Type of an entry's payload; the numbers are on disk and never reused."""

    UNREADABLE = 0
    """Stands for an entry whose row is damaged; never on disk, and without a payload."""
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
    """whence.v1.Call; has no offset in the generation"""
    DELETED = 7
    """whence.v1.Deletion, written when the generation's content was destroyed; has no offset in
    the generation. Empty in journals of earlier versions."""
    OCCURRENCE = 8
    """whence.v1.Occurrence; has no offset in the generation"""
    AUDIT = 9
    """whence.v1.AuditRecord; belongs to no generation, and stays when one is deleted"""


OUTSIDE_OFFSETS = frozenset(
    {EntryKind.CALL, EntryKind.DELETED, EntryKind.OCCURRENCE, EntryKind.AUDIT}
)
"""Kinds that have no offset, and that streams of a generation leave out."""


class Entry(NamedTuple):
    """One immutable entry of the journal."""

    position: int
    """Number in the journal, from 1 without gaps."""
    generation_id: str
    offset: int
    """Number among the generation's own entries, from 1 without gaps; 0 for kinds in
    OUTSIDE_OFFSETS."""
    kind: EntryKind
    payload: bytes
    """The serialised message; empty after the content was deleted."""
