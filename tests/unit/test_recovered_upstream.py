"""A generation of an upstream that a crash of the server interrupted."""

from pathlib import Path

import pytest
from journal_records import FIRST, started

from whence.v1 import generation_pb2 as g
from whence.v1.redaction_pb2 import Redaction
from whence.v1.step_pb2 import Step
from whence_server.domain.entries import EntryKind
from whence_server.domain.steps import Timing
from whence_server.domain.upstream import UpstreamDecision
from whence_server.generation.recovery import close_interrupted
from whence_server.journal.journal import Journal
from whence_server.journal.observation_codec import encode_upstream_step
from whence_server.journal.rows import GenerationIndex

ID_5 = UpstreamDecision(token_id=5, logprob=-0.5)


@pytest.mark.parametrize(
    ("decisions", "ids", "logprob"),
    [
        ([ID_5, ID_5], [5, 5], -1.0),
        ([ID_5, UpstreamDecision()], [], None),
        ([UpstreamDecision(), UpstreamDecision()], [], None),
    ],
)
async def test_what_the_upstream_did_not_tell_stays_absent(
    tmp_path: Path, decisions: list[UpstreamDecision], ids: list[int], logprob: float | None
) -> None:
    journal = await Journal.open(tmp_path)
    index = GenerationIndex(FIRST, f"{1:032x}", "smol", 1, f"{1:064x}", {}, "", 0)
    journal.create(index, started(FIRST, 1).SerializeToString())
    for number, decision in enumerate(decisions):
        timing = Timing(1_000 * (number + 1), 0, 0, 0, 0)
        step = encode_upstream_step(0, number, decision, "ab", 2 * number, 2 * number + 2, timing)
        journal.append(FIRST, EntryKind.STEP, step)
    await journal.close()
    journal = await Journal.open(tmp_path)
    await close_interrupted(journal)
    (entry,) = await journal.read(FIRST, kinds=(EntryKind.FINISHED,))
    finished = g.GenerationFinished.FromString(entry.payload)
    (result,) = finished.sequences
    assert finished.finish_reason == g.FINISH_REASON_INTERRUPTED
    assert (result.text, finished.num_generated_tokens) == ("abab", 2)
    assert list(result.token_ids) == ids
    assert (result.logprob if result.HasField("logprob") else None) == logprob
    await journal.close()


async def test_result_lists_what_its_steps_say_is_redacted(tmp_path: Path) -> None:
    journal = await Journal.open(tmp_path)
    index = GenerationIndex(FIRST, f"{1:032x}", "smol", 1, f"{1:064x}", {}, "", 0)
    journal.create(index, started(FIRST, 1).SerializeToString())
    mail = Redaction(kind="mail", field="text", begin_byte=3, end_byte=9, num_bytes=15)
    thought = Redaction(kind="card", field="reasoning_text", end_byte=6, num_bytes=16)
    for number, (text, listed) in enumerate(
        [("To ", []), ("[mail]", [mail, thought]), ("", [mail])]
    ):
        step = Step(index=number, text=text, redactions=listed)
        journal.append(FIRST, EntryKind.STEP, step.SerializeToString())
    await journal.close()
    journal = await Journal.open(tmp_path)
    await close_interrupted(journal)
    (entry,) = await journal.read(FIRST, kinds=(EntryKind.FINISHED,))
    (result,) = g.GenerationFinished.FromString(entry.payload).sequences
    assert (result.text, list(result.redactions)) == ("To [mail]", [mail])
    await journal.close()
