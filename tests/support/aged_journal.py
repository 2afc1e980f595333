"""Journals whose generations have chosen ages, labels and sizes."""

import time
from collections.abc import Mapping
from pathlib import Path

from whence.v1 import call_pb2, step_pb2
from whence.v1 import generation_pb2 as g
from whence_server.domain.decoding import FinishReason
from whence_server.domain.entries import EntryKind
from whence_server.journal.journal import Journal
from whence_server.journal.rows import FinishIndex, GenerationIndex
from whence_server.journal.sealing.opening import SealingOptions

DAY_NS = 86_400 * 10**9


def name(number: int) -> str:
    """Return a generation's id."""
    return f"00000000-0000-4000-8000-{number:012d}"


def add(
    journal: Journal,
    number: int,
    age_days: float,
    labels: Mapping[str, str] | None = None,
    *,
    num_steps: int = 3,
    step_bytes: int = 20,
    ends: bool = True,
    owner: str = "",
) -> str:
    """Append a generation whose request arrived some days ago, and the record of its call."""
    start_ns = time.time_ns() - int(age_days * DAY_NS)
    started = g.GenerationStarted(
        generation_id=name(number), prompt=f"prompt {number}", labels=labels or {}, owner=owner
    )
    started.start_time.FromNanoseconds(start_ns)
    index = GenerationIndex(
        name(number), "", "", start_ns, "", dict(labels or {}), f"prompt {number}", 0, owner
    )
    journal.create(index, started.SerializeToString())
    for i in range(num_steps):
        step = step_pb2.Step(index=i, text=f"{number}/{i} ".ljust(step_bytes, "x"))
        journal.append(name(number), EntryKind.STEP, step.SerializeToString())
    if ends:
        finished = g.GenerationFinished(
            finish_reason=g.FINISH_REASON_LENGTH, num_generated_tokens=num_steps
        )
        journal.finish(
            name(number),
            finished.SerializeToString(),
            FinishIndex(FinishReason.LENGTH, num_steps, ""),
        )
        call = call_pb2.Call(method="whence.v1.GenerationService/Generate")
        call.generation_id = name(number)
        call.end_time.FromNanoseconds(start_ns)
        journal.record_call(name(number), call.SerializeToString())
    return name(number)


async def fill(
    directory: Path,
    *generations: tuple[int, float, Mapping[str, str]],
    sealing: SealingOptions | None = None,
    **options: int,
) -> None:
    """Write generations (number, age in days, labels) as an earlier process would."""
    journal = await Journal.open(directory, sealing=sealing)
    for number, age_days, labels in generations:
        add(journal, number, age_days, labels, **options)
    await journal.close()


async def list_kept(journal: Journal, numbers: range) -> list[int]:
    """Return the numbers of the generations that are not deleted."""
    kept = []
    for number in numbers:
        row = await journal.look_up(name(number))
        if row is not None and not row.deleted:
            kept.append(number)
    return kept
