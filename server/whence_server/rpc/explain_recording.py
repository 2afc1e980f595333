"""Explanations on record: an occurrence of the generation, under its content policy."""

import asyncio
import logging
import time
from collections.abc import Callable, Sequence
from typing import NamedTuple, TypeAlias

from google.protobuf.message import DecodeError

from whence.v1 import explanation_pb2, occurrence_pb2
from whence_server.domain.content import ContentPolicy
from whence_server.domain.entries import Entry, EntryKind
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
MAX_TOTAL_BYTES = 2 << 20
"""Size of all explanations of one generation: GetGeneration answers with all of them, and other
clients than ours take 4 MiB."""
COMMIT_S = 10.0
"""Time that the journal has to write an explanation before it is said to be unrecorded."""
_MAX_READ = 1_000
_CHARACTERS_BEFORE = 200
"""Characters of the context that are searched together with a contrast."""
_REDACTED = "[redacted]"
_MAX_READ_BYTES = 8 << 20


Redact: TypeAlias = Callable[[str], str]


def keep(text: str) -> str:
    """Return a text as it is: nothing is redacted."""
    return text


async def record_explanation(
    journal: Journal,
    output: RecordedOutput,
    explanation: explanation_pb2.Explanation,
    caller: Caller,
    redact: Redact = keep,
) -> str:
    """Record an explanation; return the reason if it is not on disk, else "".

    Args:
        journal: the records.
        output: what the explanation was made from.
        explanation: the result.
        caller: the call that asked for it.
        redact: returns a text as it is stored.

    Raises:
        GenerationNotFoundError: the generation was deleted meanwhile.
    """
    occurrence = make_occurrence(output, explanation, caller, redact)
    payload = occurrence.SerializeToString()
    generation_id = output.started.generation_id
    try:
        if reason := await _find_missing_room(journal, generation_id, len(payload)):
            return reason
        await journal.later.record(generation_id, output.started.owner, payload)
        # Until it is on disk, a crash would lose what was said to be on record.
        await asyncio.wait_for(journal.flush(), COMMIT_S)
    except GenerationInOtherLogError:
        return "another server's log has the generation"
    except (JournalError, RecordDamagedError) as error:
        _log.error("an explanation of generation %s is not recorded: %s", generation_id, error)
        return "the journal cannot be read or written"
    except TimeoutError:
        _log.error("an explanation of generation %s is not on disk yet", generation_id)
        return f"the journal has not written it in {COMMIT_S:.0f} s"
    return ""


def make_occurrence(
    output: RecordedOutput,
    explanation: explanation_pb2.Explanation,
    caller: Caller,
    redact: Redact = keep,
) -> occurrence_pb2.Occurrence:
    """Return the occurrence that is recorded: without texts that policy and redaction keep out."""
    occurrence = occurrence_pb2.Occurrence(
        time=make_timestamp(time.time_ns()), num_steps=output.num_steps
    )
    occurrence.explained.caller.CopyFrom(convert_caller(caller))
    occurrence.explained.explanation.CopyFrom(explanation)
    _redact_contrast(occurrence.explained.explanation, redact)
    policy = ContentPolicy(output.started.content or ContentPolicy.FULL.value)
    if policy is not ContentPolicy.FULL:
        RECORD[policy].hide(occurrence)
    return occurrence


async def _find_missing_room(journal: Journal, generation_id: str, size: int) -> str:
    """Return why an explanation of this size is not recorded; "" if there is room."""
    if size > MAX_BYTES:
        return f"it has {size} bytes, and {MAX_BYTES} is the most that is recorded"
    recorded = await _measure_recorded(journal, generation_id)
    if recorded.num >= MAX_EXPLANATIONS:
        return f"the generation has {MAX_EXPLANATIONS} on record, the most for one"
    if recorded.num_bytes + size > MAX_TOTAL_BYTES:
        return (
            f"it has {size} bytes, and those on record of this generation have "
            f"{recorded.num_bytes}; {MAX_TOTAL_BYTES} is the most for all of them"
        )
    return ""


def _redact_contrast(explanation: explanation_pb2.Explanation, redact: Redact) -> None:
    """Redact the one text that the caller typed.

    Outputs with redacted parts are not explained: all other texts are on record as they are.
    """
    span = explanation.span
    if not span.against_text:
        return
    before = "".join(segment.text for segment in explanation.segments)[-_CHARACTERS_BEFORE:]
    stored = redact(span.against_text)
    if stored == span.against_text and redact(before + stored) == before + stored:
        return
    # What begins in the context and ends in the contrast has no mark of its own.
    span.against_text = _REDACTED if stored == span.against_text else stored
    del span.against_token_ids[:]


class _Recorded(NamedTuple):
    num: int
    num_bytes: int


async def _measure_recorded(journal: Journal, generation_id: str) -> _Recorded:
    """Return number and size of a generation's explanations, read up to a bound."""
    entries = await journal.read(
        generation_id,
        limit=_MAX_READ,
        kinds=(EntryKind.OCCURRENCE,),
        max_bytes=_MAX_READ_BYTES,
    )
    # Messages of megabytes would hold up the event loop, and all streams with it.
    return await asyncio.to_thread(_measure, entries)


def _measure(entries: Sequence[Entry]) -> _Recorded:
    sizes = [len(entry.payload) for entry in entries if _is_explanation(entry.payload)]
    return _Recorded(len(sizes), sum(sizes))


def _is_explanation(payload: bytes) -> bool:
    try:
        return occurrence_pb2.Occurrence.FromString(payload).HasField("explained")
    except DecodeError:
        return False
