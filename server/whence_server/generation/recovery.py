"""Recovery after a crash: generations and calls left open in the journal are closed."""

import logging
from collections.abc import Awaitable, Callable

from google.protobuf.message import DecodeError

from whence.v1 import call_pb2, generation_pb2, occurrence_pb2, step_pb2
from whence.v1.redaction_pb2 import Redaction
from whence_server.domain.decoding import FinishReason
from whence_server.domain.entries import EntryKind
from whence_server.domain.errors import GenerationNotFoundError, RecordDamagedError
from whence_server.domain.generation import CallRecord, Finished, SequenceResult
from whence_server.domain.tracing import TraceContext
from whence_server.journal.codec import encode_call, encode_finished
from whence_server.journal.journal import Journal
from whence_server.journal.rows import PREVIEW_CHARACTERS, FinishIndex

_log = logging.getLogger(__name__)

_GENERATE = "whence.v1.GenerationService/Generate"
_FORK = "whence.v1.GenerationService/ForkGeneration"
_UNAVAILABLE = 14
_PAGE = 1_000
_DAMAGE = (RecordDamagedError, GenerationNotFoundError, DecodeError, ValueError, IndexError)


async def close_interrupted(journal: Journal) -> int:
    """Write FINISHED, with reason INTERRUPTED, for every generation that a crash interrupted.

    The results are rebuilt from the committed steps, and the end time is that of the last step or
    occurrence.
    A call that was interrupted is recorded as UNAVAILABLE, even if its generation had finished,
    because the call gives the root span. A generation whose journal rows are damaged is logged
    and not changed.

    Returns:
        Number of generations closed.
    """
    unfinished = journal.list_unfinished()
    closed = []
    for generation_id in unfinished:
        if await _try_close(_finish, journal, generation_id):
            closed.append(generation_id)
        else:
            journal.give_up(generation_id)
    for generation_id in dict.fromkeys([*closed, *journal.list_uncalled()]):
        await _try_close(_end_call, journal, generation_id)
    if closed:
        _log.warning("closed %d generations that a crash had interrupted", len(closed))
    await journal.flush()
    return len(closed)


async def _try_close(
    close: Callable[[Journal, str], Awaitable[None]], journal: Journal, generation_id: str
) -> bool:
    """Close one generation and return True; return False, and log, if its rows are damaged."""
    try:
        await close(journal, generation_id)
    except _DAMAGE as error:
        _log.error(
            "generation %s was interrupted and cannot be closed, as its record is damaged: %s",
            generation_id,
            error,
        )
        return False
    return True


async def _finish(journal: Journal, generation_id: str) -> None:
    started = await _read_started(journal, generation_id)
    results = _Results(max(started.effective_decoding.num_return_sequences, 1))
    offset = 0
    while entries := await journal.read(
        generation_id, after_offset=offset, limit=_PAGE, kinds=(EntryKind.STEP,)
    ):
        for entry in entries:
            results.add(step_pb2.Step.FromString(entry.payload))
        offset = entries[-1].offset
    await journal.signing.load(generation_id)
    start_ns = started.start_time.ToNanoseconds()
    finished = Finished(
        sequences=results.make_sequences(),
        finish_reason=FinishReason.INTERRUPTED,
        num_prompt_tokens=started.num_prompt_tokens or len(started.prompt_token_ids),
        num_generated_tokens=results.num_tokens,
        queue_ns=0,
        prefill_ns=results.first_elapsed_ns,
        decode_ns=results.last_elapsed_ns - results.first_elapsed_ns,
        end_time_ns=max(
            start_ns + results.last_elapsed_ns, await _read_last_time(journal, generation_id)
        ),
    )
    journal.finish(
        generation_id,
        results.add_redactions(encode_finished(finished)),
        FinishIndex(
            FinishReason.INTERRUPTED, results.num_tokens, results.get_text(0)[:PREVIEW_CHARACTERS]
        ),
    )


async def _read_last_time(journal: Journal, generation_id: str) -> int:
    """Return the Unix time in ns of a generation's last occurrence; 0 if it has none."""
    entries = await journal.read(generation_id, kinds=(EntryKind.OCCURRENCE,))
    occurrences = (occurrence_pb2.Occurrence.FromString(entry.payload) for entry in entries)
    return max((occurrence.time.ToNanoseconds() for occurrence in occurrences), default=0)


async def _end_call(journal: Journal, generation_id: str) -> None:
    started = await _read_started(journal, generation_id)
    for entry in await journal.read(generation_id, kinds=(EntryKind.CALL,)):
        # Other calls that resumed the generation may have ended before.
        if call_pb2.Call.FromString(entry.payload).span_id == started.span_id:
            return
    finished = generation_pb2.GenerationFinished()
    for entry in await journal.read(generation_id, limit=1, kinds=(EntryKind.FINISHED,)):
        finished.MergeFromString(entry.payload)
    call = _make_interrupted_call(
        started, started.start_time.ToNanoseconds(), finished.end_time.ToNanoseconds()
    )
    journal.record_call(generation_id, encode_call(call))


async def _read_started(journal: Journal, generation_id: str) -> generation_pb2.GenerationStarted:
    started = generation_pb2.GenerationStarted()
    for entry in await journal.read(generation_id, limit=1, kinds=(EntryKind.STARTED,)):
        started.MergeFromString(entry.payload)
    return started


def _make_interrupted_call(
    started: generation_pb2.GenerationStarted, start_time_ns: int, end_time_ns: int
) -> CallRecord:
    return CallRecord(
        trace_context=TraceContext(
            trace_id=started.trace_id,
            span_id=started.span_id,
            parent_span_id=started.parent_span_id,
            trace_flags=started.trace_flags,
            trace_state=started.trace_state,
        ),
        method=_FORK if started.HasField("fork") else _GENERATE,
        start_time_ns=start_time_ns,
        end_time_ns=end_time_ns,
        status_code=_UNAVAILABLE,
        generation_id=started.generation_id,
        server_address="",
        server_port=None,
    )


class _Results:
    """Sequences of a generation, rebuilt from its recorded steps."""

    def __init__(self, num_sequences: int) -> None:
        self._texts: list[list[str]] = [[] for _ in range(num_sequences)]
        self._token_ids: list[list[int]] = [[] for _ in range(num_sequences)]
        self._logprobs: list[list[float]] = [[] for _ in range(num_sequences)]
        self._redactions: list[list[Redaction]] = [[] for _ in range(num_sequences)]
        self.first_elapsed_ns = 0
        self.last_elapsed_ns = 0

    @property
    def num_tokens(self) -> int:
        return sum(len(texts) for texts in self._texts)

    def add(self, step: step_pb2.Step) -> None:
        index = step.sequence_index
        self._texts[index].append(step.text)
        # An upstream may have told neither.
        if step.HasField("token_id"):
            self._token_ids[index].append(step.token_id)
        if step.HasField("logprob"):
            self._logprobs[index].append(step.logprob)
        redactions = self._redactions[index]
        # Each step that has a share in a range lists it.
        redactions += [it for it in step.redactions if it.field == "text" and it not in redactions]
        self.last_elapsed_ns = step.timing.elapsed_ns
        self.first_elapsed_ns = self.first_elapsed_ns or self.last_elapsed_ns

    def add_redactions(self, payload: bytes) -> bytes:
        """Return FINISHED with what is redacted in the texts of its sequences."""
        finished = generation_pb2.GenerationFinished.FromString(payload)
        for result, redactions in zip(finished.sequences, self._redactions, strict=True):
            result.redactions.extend(redactions)
        return finished.SerializeToString()

    def get_text(self, index: int) -> str:
        return "".join(self._texts[index])

    def make_sequences(self) -> tuple[SequenceResult, ...]:
        return tuple(
            SequenceResult(
                sequence_index=i,
                text=self.get_text(i),
                token_ids=tuple(self._token_ids[i]) if self._has_all_ids(i) else (),
                finish_reason=FinishReason.INTERRUPTED,
                logprob=self._sum_logprobs(i),
            )
            for i in range(len(self._texts))
        )

    def _has_all_ids(self, index: int) -> bool:
        return len(self._token_ids[index]) == len(self._texts[index])

    def _sum_logprobs(self, index: int) -> float | None:
        """Return the sum of the logprobs; None if a step has none, as in part it would mislead."""
        recorded = self._logprobs[index]
        return sum(recorded) if len(recorded) == len(self._texts[index]) else None
