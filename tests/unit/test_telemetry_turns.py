"""Making spans again from the journal lets the event loop run its other tasks in between."""

from collections.abc import Coroutine
from typing import Any

import pytest
from telemetry_journal import MemoryJournal

from whence.summary import Likelihood
from whence_server.domain.entries import Entry, EntryKind
from whence_server.domain.telemetry import StepForm
from whence_server.telemetry.spans import blocks, decode_parts, pages, step_events, token_arrays
from whence_server.telemetry.spans.encoder import SpanEncoder
from whence_server.telemetry.spans.tally import Tally

NUM_STEPS = 2_000


def list_turns(work: Coroutine[Any, Any, object], counted: list[object]) -> list[int]:
    """Run a coroutine; return how often something was done in each turn of the event loop."""
    turns = []
    while True:
        before = len(counted)
        try:
            work.send(None)
        except StopIteration:
            return [*turns, len(counted) - before]
        turns.append(len(counted) - before)


def count_calls(monkeypatch: pytest.MonkeyPatch, kind: type, name: str) -> list[object]:
    """Count the calls of a method from now on."""
    calls: list[object] = []
    method = getattr(kind, name)

    def counting(*arguments: Any, **named: Any) -> Any:
        calls.append(None)
        return method(*arguments, **named)

    monkeypatch.setattr(kind, name, counting)
    return calls


@pytest.fixture
def journal() -> MemoryJournal:
    made = MemoryJournal()
    made.append_generation("g", NUM_STEPS)
    return made


def find(journal: MemoryJournal, kind: EntryKind, place: int = 0) -> Entry:
    return [entry for entry in journal.entries if entry.kind is kind][place]


@pytest.mark.parametrize(
    ("kind", "place", "most", "number"),
    [
        # A restart in the middle: the events of all earlier steps are made again.
        (EntryKind.STEP, NUM_STEPS - 10, (step_events.StepEvents, "encode"), NUM_STEPS - 10),
        # A restart before the end: the first and the newest part are made again, too.
        (EntryKind.FINISHED, 0, (step_events.StepEvents, "encode"), NUM_STEPS),
        (EntryKind.FINISHED, 0, (token_arrays._Arrays, "add"), NUM_STEPS),
        (EntryKind.FINISHED, 0, (Likelihood, "add"), NUM_STEPS),
    ],
)
def test_few_steps_are_worked_on_in_one_turn(
    journal: MemoryJournal,
    monkeypatch: pytest.MonkeyPatch,
    kind: EntryKind,
    place: int,
    most: tuple[type, str],
    number: int,
) -> None:
    calls = count_calls(monkeypatch, *most)
    encoder = SpanEncoder(journal, None, step_form=StepForm.EVENTS, token_arrays=NUM_STEPS)
    turns = list_turns(encoder.encode(find(journal, kind, place)), calls)
    assert sum(turns) >= number
    assert max(turns) <= pages.STEPS_AT_ONCE + 1  # and the step itself


def test_the_sums_of_a_block_are_made_again_in_turns(
    journal: MemoryJournal, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = count_calls(monkeypatch, Tally, "add")
    block = find(journal, EntryKind.STEP, blocks.STEPS_PER_BLOCK - 1)
    turns = list_turns(SpanEncoder(journal, 0).encode(block), calls)
    assert sum(turns) == blocks.STEPS_PER_BLOCK
    assert max(turns) <= blocks._STEPS_AT_ONCE + 1


def test_dropped_events_are_made_again_in_turns_and_only_those(
    journal: MemoryJournal, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(decode_parts, "_MAX_KEPT_BYTES", 100_000)
    encoder = SpanEncoder(journal, None, step_form=StepForm.EVENTS)
    *steps, end = [entry for entry in journal.entries if entry.kind is not EntryKind.CALL]
    calls: list[object] = []
    for entry in steps:
        list_turns(encoder.encode(entry), calls)
    calls = count_calls(monkeypatch, step_events.StepEvents, "encode")
    turns = list_turns(encoder.encode(end), calls)
    assert 0 < sum(turns) <= 1_000, "the first part, and the newest if it was dropped"
    assert max(turns) <= pages.STEPS_AT_ONCE
