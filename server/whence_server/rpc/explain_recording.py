"""Explanations on record: an occurrence of the generation, under its content policy."""

import logging
import time

from google.protobuf.message import DecodeError

from whence.v1 import explanation_pb2, occurrence_pb2
from whence_server.domain.content import ContentPolicy
from whence_server.domain.entries import EntryKind
from whence_server.domain.errors import (
    GenerationInOtherLogError,
    JournalError,
    RecordDamagedError,
)
from whence_server.domain.occurrences import Caller
from whence_server.journal.codec import make_timestamp
from whence_server.journal.content_hiding import RECORD
from whence_server.journal.journal import Journal
from whence_server.journal.occurrence_codec import convert_caller
from whence_server.rpc.explain_record import RecordedOutput

_log = logging.getLogger(__name__)

MAX_EXPLANATIONS = 100
"""Explanations of one generation that are recorded."""
MAX_BYTES = 1 << 20
"""Size of an explanation that is recorded."""
_MAX_READ = 1_000


async def record_explanation(
    journal: Journal,
    output: RecordedOutput,
    explanation: explanation_pb2.Explanation,
    caller: Caller,
) -> str:
    """Record an explanation; return the reason if it is not recorded, else "".

    Args:
        journal: the records.
        output: what the explanation was made from.
        explanation: the result.
        caller: the call that asked for it.

    Raises:
        GenerationNotFoundError: the generation was deleted meanwhile.
    """
    occurrence = make_occurrence(output, explanation, caller)
    payload = occurrence.SerializeToString()
    if len(payload) > MAX_BYTES:
        return f"it has {len(payload)} bytes, and {MAX_BYTES} is the most that is recorded"
    generation_id = output.started.generation_id
    if await _count_explanations(journal, generation_id) >= MAX_EXPLANATIONS:
        return f"the generation has {MAX_EXPLANATIONS} on record, the most for one"
    try:
        await journal.later.record(generation_id, output.started.owner, payload)
    except GenerationInOtherLogError:
        return "another server's log has the generation"
    except (JournalError, RecordDamagedError) as error:
        _log.error("an explanation of generation %s is not recorded: %s", generation_id, error)
        return "the journal cannot be written"
    return ""


def make_occurrence(
    output: RecordedOutput, explanation: explanation_pb2.Explanation, caller: Caller
) -> occurrence_pb2.Occurrence:
    """Return the occurrence that is recorded: without texts that the policy keeps out."""
    occurrence = occurrence_pb2.Occurrence(
        time=make_timestamp(time.time_ns()), num_steps=output.num_steps
    )
    occurrence.explained.caller.CopyFrom(convert_caller(caller))
    occurrence.explained.explanation.CopyFrom(explanation)
    policy = ContentPolicy(output.started.content or ContentPolicy.FULL.value)
    if policy is not ContentPolicy.FULL:
        RECORD[policy].hide(occurrence)
    return occurrence


async def _count_explanations(journal: Journal, generation_id: str) -> int:
    entries = await journal.read(generation_id, limit=_MAX_READ, kinds=(EntryKind.OCCURRENCE,))
    return sum(_is_explanation(entry.payload) for entry in entries)


def _is_explanation(payload: bytes) -> bool:
    try:
        return occurrence_pb2.Occurrence.FromString(payload).HasField("explained")
    except DecodeError:
        return False
