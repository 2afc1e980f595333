"""The span of a generation has at most a megabyte, whatever is put on it, and says what was cut."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st
from opentelemetry.proto.trace.v1.trace_pb2 import ScopeSpans, Span
from span_reading import attributes, encoded, named, only_span
from telemetry_journal import MemoryJournal, finished, started, step

from whence.v1.generation_pb2 import SequenceResult
from whence.v1.step_pb2 import Candidates
from whence_server.domain.entries import EntryKind
from whence_server.domain.telemetry import ContentCapture
from whence_server.telemetry.spans.content_bound import BoundMessages, bound_content, cut_text

MEGABYTE = 1_000_000
INPUT, OUTPUT = "gen_ai.input.messages", "gen_ai.output.messages"
SHORTENED = "whence.span.shortened_attributes"
TEXT = 'a"\\\n\x01é語\U0001f600'


def size_of(text: str) -> int:
    return len(json.dumps(text, ensure_ascii=False).encode()) - 2


@given(text=st.text(max_size=60), repeats=st.integers(1, 400), max_bytes=st.integers(0, 12_000))
def test_the_longest_beginning_that_fits_is_kept(text: str, repeats: int, max_bytes: int) -> None:
    whole = text * repeats
    cut = cut_text(whole, max_bytes)
    assert whole.startswith(cut)
    assert size_of(cut) <= max_bytes
    assert cut == whole or size_of(whole[: len(cut) + 1]) > max_bytes


def message(text: str) -> dict[str, object]:
    return {"role": "user", "parts": [{"type": "text", "content": text}]}


@given(
    inputs=st.lists(st.integers(0, 3_000), max_size=3),
    outputs=st.lists(st.integers(0, 3_000), max_size=3),
    max_bytes=st.integers(1_000, 60_000),
)
def test_messages_are_whole_if_they_fit_and_else_cut_to_what_there_is(
    inputs: list[int], outputs: list[int], max_bytes: int
) -> None:
    first, second = ([message(TEXT * num) for num in nums] for nums in (inputs, outputs))
    *found, tools = bound_content(first, second, [], max_bytes)
    assert tools.text is None
    sizes = [
        len(json.dumps(m, ensure_ascii=False, separators=(",", ":")).encode()) if m else 0
        for m in (first, second)
    ]
    assert sum(it.num_bytes for it in found) <= max_bytes
    for given_messages, bound, size in zip((first, second), found, sizes, strict=True):
        assert bound.is_cut == (bound.num_bytes < size)
        read = json.loads(bound.text) if bound.text else []
        if not bound.is_cut:
            assert read == given_messages
        for whole, cut in zip(given_messages, read, strict=True):
            assert cut["role"] == "user"
            assert whole["parts"][0]["content"].startswith(cut["parts"][0]["content"])
    if sum(sizes) <= max_bytes:
        assert not any(it.is_cut for it in found)
    for bound, size in zip(found, sizes, strict=True):
        assert not bound.is_cut or size > max_bytes // 2, "less than half is never cut"


def parse(bound: BoundMessages) -> list[dict[str, object]]:
    return json.loads(bound.text) if bound.text else []


def test_messages_that_do_not_fit_without_their_texts_are_left_out_from_the_end() -> None:
    call = {"type": "tool_call", "id": None, "name": "f", "arguments": {"x": "y" * 1_000}}
    answer = {"type": "tool_call_response", "id": None, "response": "z" * 1_000}
    inputs = [{"role": "assistant", "parts": [call]}, {"role": "tool", "parts": [answer]}] * 5
    found, outputs, _ = bound_content(inputs, [], [], 3_500)
    assert (outputs.text, outputs.is_cut) == (None, False)
    assert found.is_cut
    assert 2_000 < found.num_bytes == len((found.text or "").encode()) <= 3_500
    whole = [[part for part in it["parts"] if part["type"] == "tool_call"] for it in parse(found)]
    assert whole == [[call] if i % 2 == 0 else [] for i in range(len(whole))], "calls are not cut"
    assert len(whole) < len(inputs)


def test_definitions_of_tools_have_at_most_half() -> None:
    tools = [{"type": "function", "name": f"f{i}", "description": "d" * 400} for i in range(10)]
    inputs, _, found = bound_content([message("short")], [], tools, 4_000)
    assert not inputs.is_cut
    assert found.is_cut
    assert parse(found) == tools[:4]
    assert parse(bound_content([message("short")], [], tools, 20_000)[2]) == tools


def test_half_of_a_character_in_a_call_is_kept_as_its_escape() -> None:
    call = {"type": "tool_call", "id": None, "name": "f", "arguments": {"x": "\ud83d é"}}
    found, _, _ = bound_content([{"role": "assistant", "parts": [call]}], [], [], 1_000)
    assert parse(found) == [{"role": "assistant", "parts": [call]}]
    assert found.num_bytes == len((found.text or "").encode())


def make_journal(prompt: str, output: str, num_steps: int) -> MemoryJournal:
    journal = MemoryJournal()
    journal.append("g", EntryKind.STARTED, started("g", prompt=prompt))
    for index in range(num_steps):
        candidates = Candidates(token_ids=range(1, 9), logprobs=[-0.12345678 * i for i in range(8)])
        journal.append("g", EntryKind.STEP, step(index, candidates=candidates))
    results = [SequenceResult(text=output)]
    journal.append("g", EntryKind.FINISHED, finished(num_steps, sequences=results))
    return journal


async def read_span(journal: MemoryJournal, token_arrays: int) -> tuple[bytes, Span]:
    """Return the span of a generation with its content, and its bytes."""
    options = {"content": ContentCapture.SPAN_ONLY, "token_arrays": token_arrays}
    pieces = await encoded(journal, **options)
    assert pieces == await encoded(journal, **options)
    ((piece, span),) = (
        (piece, span)
        for piece in pieces
        if (span := only_span(piece)).name == "text_completion demo"
    )
    assert ScopeSpans.FromString(piece).SerializeToString() == piece
    return piece, span


@pytest.mark.parametrize(
    ("prompt", "output", "num_steps", "cut"),
    [
        (100, 100, 5, []),
        (450_000, 450_000, 5, []),
        (1_500_000, 100, 5, [INPUT]),
        (100, 1_500_000, 5, [OUTPUT]),
        (1_500_000, 1_500_000, 5, [INPUT, OUTPUT]),
        (900_000, 100, 4_000, [INPUT]),
    ],
)
async def test_the_span_has_a_megabyte_and_names_what_was_cut(
    prompt: int, output: int, num_steps: int, cut: list[str]
) -> None:
    journal = make_journal(TEXT * (prompt // 20), TEXT * (output // 20), num_steps)
    _, span = await read_span(journal, num_steps)
    assert span.ByteSize() <= MEGABYTE
    found = attributes(span)
    arrays = [key for key in found if ".per_" in key]
    told = found.get(SHORTENED, [])
    assert [key for key in told if key not in arrays] == cut
    assert not [key for key in told if key in arrays] or set(arrays) <= set(told)
    num_tokens = len(found["gen_ai.iteration.per_token_cumulative_count"])
    assert (num_tokens < num_steps) == bool(set(arrays) & set(told))
    for key, text in ((INPUT, TEXT * (prompt // 20)), (OUTPUT, TEXT * (output // 20))):
        (read,) = json.loads(found[key])
        shown = read["parts"][0]["content"]
        assert text.startswith(shown)
        assert (shown == text) == (key not in told)
    if cut:
        assert span.ByteSize() > 990_000, "nothing is cut that has room"


async def test_arrays_that_end_early_are_named() -> None:
    _, span = await read_span(make_journal("short", "short", 4_000), 4_000)
    found = attributes(span)
    arrays = [key for key in found if ".per_" in key]
    assert sorted(found[SHORTENED]) == sorted(arrays)
    lengths = {len(json.loads(it) if isinstance(it, str) else it) for it in map(found.get, arrays)}
    assert len(lengths) == 1
    assert 1_000 < lengths.pop() < 4_000
    _, span = await read_span(make_journal("short", "short", 40), 30)
    assert SHORTENED not in attributes(span)
    assert not named([span], "decode")
