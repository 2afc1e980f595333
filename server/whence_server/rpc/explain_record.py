"""Span of a recorded generation, as the question about it needs it."""

from collections.abc import Sequence
from dataclasses import dataclass

from google.protobuf.message import DecodeError

from whence.v1 import explain_pb2, generation_pb2
from whence.v1.step_pb2 import Step
from whence_server.domain.content import ContentPolicy
from whence_server.domain.entries import Entry, EntryKind
from whence_server.domain.errors import (
    ExplanationRefusedError,
    ExplanationTooLargeError,
    FieldViolation,
    InvalidRequestError,
    RecordDamagedError,
)
from whence_server.domain.explanations import WantedWeights
from whence_server.journal.journal import Journal

_PAGE = 1_000
_KINDS = (EntryKind.STARTED, EntryKind.STEP)
MAX_RECORD_BYTES = 64 << 20
"""Size of the entries that are read for one explanation."""


@dataclass(frozen=True, slots=True)
class RecordedOutput:
    """Span of a generation as its record has it.

    Attributes:
        started: start of the generation.
        prompt: token ids of the prompt.
        output: token ids of the sequence up to the end of the span.
        weights: the weights that made it.
        contents: texts of the conversation's messages; None without a conversation.
        num_steps: number of steps of all sequences recorded when it was read.
    """

    started: generation_pb2.GenerationStarted
    prompt: tuple[int, ...]
    output: tuple[int, ...]
    weights: WantedWeights
    contents: tuple[str, ...] | None
    num_steps: int


async def read_start(journal: Journal, generation_id: str) -> generation_pb2.GenerationStarted:
    """Return a generation's start.

    Raises:
        GenerationNotFoundError: it is not known, or was deleted.
        RecordDamagedError: its start cannot be read.
    """
    for entry in await journal.read(generation_id, limit=1, kinds=(EntryKind.STARTED,)):
        return _parse_start(entry)
    raise RecordDamagedError(generation_id, "it has no STARTED entry")


async def read_output(journal: Journal, recorded: explain_pb2.RecordedSpan) -> RecordedOutput:
    """Return what is on record of a span, up to now if the generation runs.

    Raises:
        GenerationNotFoundError: it is not known, or was deleted.
        InvalidRequestError: the span's steps are not on record.
        ExplanationRefusedError: the record lacks the tokens.
        ExplanationTooLargeError: the record is too large.
        RecordDamagedError: an entry cannot be read.
    """
    started = await read_start(journal, recorded.generation_id)
    _require_tokens(started)
    offset, num_bytes, num_steps = 0, 0, 0
    steps: list[Step] = []
    while entries := await journal.read(
        recorded.generation_id, after_offset=offset, limit=_PAGE, kinds=_KINDS
    ):
        num_bytes += sum(len(entry.payload) for entry in entries)
        if num_bytes > MAX_RECORD_BYTES:
            raise ExplanationTooLargeError(
                f"the record has more than {MAX_RECORD_BYTES >> 20} MiB, the most that is read "
                "for an explanation"
            )
        for entry in entries:
            if entry.kind is EntryKind.STEP:
                num_steps += 1
                step = _parse_step(entry)
                if step.sequence_index == recorded.sequence_index:
                    steps.append(step)
        offset = entries[-1].offset
    end = recorded.end_step or recorded.begin_step + 1
    _check_range(recorded, end, steps)
    span = steps[:end]
    if any(step.redactions for step in span):
        raise _refuse_redacted()
    if not all(step.HasField("token_id") for step in span):
        raise _refuse_tokens("the record lacks token ids of steps")
    return RecordedOutput(
        started,
        tuple(started.prompt_token_ids),
        tuple(step.token_id for step in span),
        read_weights(started),
        read_contents(started),
        num_steps,
    )


def read_weights(started: generation_pb2.GenerationStarted) -> WantedWeights:
    """Return the weights that a record names."""
    return WantedWeights(
        weights_digest=started.environment.weights_digest,
        model_digest=started.model_digest,
        dtype=started.environment.dtype,
        adapter=started.adapter.name,
        adapter_digest=started.adapter.weights_digest,
        tokenizer_digest=started.tokenizer_digest,
    )


def read_contents(started: generation_pb2.GenerationStarted) -> tuple[str, ...] | None:
    """Return the texts of a conversation's messages; None without a conversation."""
    if not started.HasField("chat"):
        return None
    found: list[str] = []
    for message in started.chat.input.messages:
        if message.reasoning_content:
            found.append(message.reasoning_content)
        found += [message.content] if message.content else []
        found += [part.text for part in message.content_parts]
    return tuple(found)


def _check_range(recorded: explain_pb2.RecordedSpan, end: int, steps: Sequence[Step]) -> None:
    if not steps:
        raise _refuse_range(
            "sequence_index",
            f"is {recorded.sequence_index}; no step of this sequence is on record up to now",
        )
    if end <= recorded.begin_step:
        raise _refuse_range(
            "end_step", f"must be above begin_step, which is {recorded.begin_step}; it is {end}"
        )
    for name, value, most in (
        ("begin_step", recorded.begin_step, len(steps) - 1),
        ("end_step", end, len(steps)),
    ):
        if value > most:
            raise _refuse_range(
                name,
                f"is {value}; sequence {recorded.sequence_index} has {len(steps)} steps on record "
                f"up to now, so that it is at most {most}",
            )
    # Steps are recorded in order; a gap means a step that was never recorded.
    for index, step in enumerate(steps[:end]):
        if step.index != index:
            raise _refuse_tokens(f"step {index} of the sequence is not on record")


def _require_tokens(started: generation_pb2.GenerationStarted) -> None:
    if started.redactions:
        raise _refuse_redacted()
    if started.content == ContentPolicy.NONE.value:
        raise ExplanationRefusedError(
            "CONTENT_NOT_KEPT",
            "the content policy of the record keeps no token ids (content: none): there is nothing "
            "to explain",
        )
    if not started.prompt_token_ids:
        raise _refuse_tokens("the record lacks the token ids of the prompt")


def _parse_start(entry: Entry) -> generation_pb2.GenerationStarted:
    try:
        return generation_pb2.GenerationStarted.FromString(entry.payload)
    except DecodeError as error:
        raise RecordDamagedError(
            entry.generation_id, f"its start is not a message: {error}"
        ) from error


def _parse_step(entry: Entry) -> Step:
    try:
        return Step.FromString(entry.payload)
    except DecodeError as error:
        raise RecordDamagedError(
            entry.generation_id, f"a step is not a message: {error}"
        ) from error


def _refuse_range(field: str, description: str) -> InvalidRequestError:
    return InvalidRequestError(FieldViolation(f"recorded.{field}", description))


def _refuse_tokens(message: str) -> ExplanationRefusedError:
    return ExplanationRefusedError("NO_TOKEN_IDS", f"{message}: there is nothing to explain")


def _refuse_redacted() -> ExplanationRefusedError:
    return ExplanationRefusedError(
        "REDACTED",
        "parts of the texts were replaced before they were stored: their tokens are not on record, "
        "and cannot be explained",
    )
