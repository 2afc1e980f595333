"""A journal with messages as a server writes them, and statements that damage it."""

from pathlib import Path

import apsw

from whence.v1 import call_pb2, step_pb2
from whence.v1 import generation_pb2 as g
from whence_server.domain.decoding import FinishReason
from whence_server.domain.entries import EntryKind
from whence_server.journal.journal import Journal
from whence_server.journal.rows import FinishIndex, GenerationIndex
from whence_server.journal.sealing.opening import SealingOptions

FIRST, SECOND, DELETED, RUNNING = (f"00000000-0000-4000-8000-00000000000{i}" for i in range(1, 5))
START_NS = 1_700_000_000_000_000_000


def started(generation_id: str, number: int, owner: str = "") -> g.GenerationStarted:
    message = g.GenerationStarted(
        generation_id=generation_id,
        trace_id=f"{number:032x}",
        model="tiny",
        prompt=f"prompt {number} " + "x" * 300,
        prompt_token_ids=range(number + 2),
        request_digest=f"{number:064x}",
        labels={"team": "blue", "number": str(number)},
        owner=owner,
    )
    message.start_time.FromNanoseconds(START_NS + number)
    return message


def begin(journal: Journal, generation_id: str, number: int, owner: str = "") -> None:
    message = started(generation_id, number, owner)
    index = GenerationIndex(
        generation_id,
        message.trace_id,
        message.model,
        message.start_time.ToNanoseconds(),
        message.request_digest,
        dict(message.labels),
        message.prompt[:200],
        len(message.prompt_token_ids),
        owner,
    )
    journal.create(index, message.SerializeToString())
    for step in list_steps(number):
        journal.append(generation_id, EntryKind.STEP, step)


def list_steps(number: int) -> list[bytes]:
    """Return the steps of a generation that `begin` writes."""
    steps = (step_pb2.Step(index=i, token_id=number, text=f"t{i}") for i in range(3))
    return [step.SerializeToString() for step in steps]


def end(journal: Journal, generation_id: str, number: int) -> None:
    text = f"text {number}"
    finished = g.GenerationFinished(
        finish_reason=g.FINISH_REASON_LENGTH,
        num_generated_tokens=3,
        sequences=[g.SequenceResult(text=text)],
    )
    journal.finish(
        generation_id, finished.SerializeToString(), FinishIndex(FinishReason.LENGTH, 3, text)
    )
    call(journal, generation_id)


def call(journal: Journal, generation_id: str) -> None:
    message = call_pb2.Call(method="whence.v1.GenerationService/Generate", trace_id="7" * 32)
    message.generation_id = generation_id
    journal.record_call(generation_id, message.SerializeToString())


async def fill(directory: Path, sealing: SealingOptions | None = None) -> None:
    """Fill a journal: two finished generations, a deleted and a running one, calls, cursors."""
    journal = await Journal.open(directory, sealing=sealing)
    call(journal, "")
    for number, generation_id in enumerate((FIRST, SECOND, DELETED), 1):
        begin(journal, generation_id, number)
        end(journal, generation_id, number)
    await journal.delete(DELETED)
    call(journal, DELETED)
    begin(journal, RUNNING, 4)
    await journal.flush()
    journal.advance("otlp-spans", 7)
    journal.advance("otlp-events", 3)
    await journal.close()


def change(directory: Path, *statements: str) -> None:
    database = apsw.Connection(str(directory / "journal.db"))
    database.pragma("journal_mode", "wal")
    for statement in statements:
        database.execute(statement)
    database.close()
