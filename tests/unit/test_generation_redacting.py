"""Stored form of a redacted generation: what is stored tells nothing of what was redacted."""

import json
import threading
from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from dying_engine import MODEL
from google.protobuf.descriptor import Descriptor, FieldDescriptor
from hypothesis import given, settings
from hypothesis import strategies as st

from whence.v1 import generation_pb2 as g
from whence.v1.step_pb2 import Draw, Step
from whence_server.domain.content import ContentPolicy
from whence_server.domain.decoding import Decoding, FinishReason, Strategy, TraceOptions
from whence_server.domain.engine import Cost, StepMade, Turn
from whence_server.domain.entries import EntryKind
from whence_server.domain.errors import ConfigurationError
from whence_server.domain.generation import CallError, CallRecord, Started
from whence_server.domain.recorded import BatchStart, RecordedPrompt
from whence_server.domain.redaction import KINDS
from whence_server.domain.retention import LabelAge, LabelPattern, RetentionPolicy
from whence_server.domain.steps import Decision
from whence_server.domain.tracing import TraceContext
from whence_server.generation.content import redacting
from whence_server.generation.content.forms import Stored, StoredForms
from whence_server.generation.content.record import ContentRecord
from whence_server.generation.content.redacted_texts import _KEPT, redact_message
from whence_server.generation.content.redacting import RedactedForm
from whence_server.generation.content.redaction import open_redaction
from whence_server.generation.recording.batches import ReadyModel
from whence_server.generation.recording.recorders import Recorder, Recorders
from whence_server.generation.running import RunningGeneration
from whence_server.journal.codec import encode_started
from whence_server.journal.journal import Journal
from whence_server.journal.rows import FinishIndex
from whence_server.redaction.marks import redact
from whence_server.redaction.opening import open_detectors
from whence_server.redaction.stream import find_ranges
from whence_server.text.tokenizer import TextTokenizer

DETECTORS = open_detectors(KINDS, None)
MAIL, CARD = "joe@example.com", "4111 1111 1111 1111"
TEXTS = st.lists(
    st.sampled_from([MAIL, CARD, "joe", "@", " and ", "é", ", ", "Paris", "\U0001f600", " "]),
    min_size=1,
    max_size=8,
).map("".join)
KEY = "ghp_16C7e42F292c6912E7710c838347Ae178B4a"
IDS = ("_id", "_ids", "digest")
SECRET_ID = 77_777
STARTED = Started(
    generation_id="g",
    trace_context=TraceContext("1" * 32, "2" * 16),
    start_time_ns=1,
    model=MODEL,
    prompt=MAIL,
    prompt_token_ids=(1, 2),
    decoding=Decoding(Strategy.GREEDY, 5),
    trace=TraceOptions(),
    processor_names=(),
    request_digest="d" * 64,
    labels={},
)


def make_form(num_sequences: int = 1) -> RedactedForm:
    form = RedactedForm(DETECTORS, num_sequences, "blinded")
    form.take(EntryKind.STARTED, g.GenerationStarted(prompt="x").SerializeToString())
    return form


def make_step(index: int, text: str, begin: int, sequence: int = 0) -> Step:
    """Return a step with everything that a decision has."""
    step = Step(
        sequence_index=sequence,
        index=index,
        token_id=SECRET_ID,
        text=text,
        text_begin_byte=begin,
        text_end_byte=begin + len(text.encode()),
        logprob=-1.0,
        sampling_logprob=-1.0,
        rank=2,
        entropy=0.5,
        sampling_entropy=0.5,
        draw=Draw(noise=0.25, runner_up_token_id=3),
        token_text=text,
    )
    step.candidates.token_ids.extend([SECRET_ID, 5])
    step.candidates.texts.append(text)
    step.processors.token_logprobs.append(-1.0)
    step.requested_logprobs.logprobs.append(-1.0)
    step.internals.layer_shares.append(0.5)
    step.timing.elapsed_ns = 5
    return step


def make_finish(*texts: str) -> bytes:
    finished = g.GenerationFinished()
    for index, text in enumerate(texts):
        finished.sequences.add(
            sequence_index=index, text=text, token_ids=[SECRET_ID], logprob=-2.0, score=-3.0
        )
    return finished.SerializeToString()


def split(text: str, cuts: Sequence[int]) -> list[str]:
    places = sorted({0, len(text), *(cut % (len(text) + 1) for cut in cuts)})
    return [text[a:b] for a, b in pairwise(places)]


def read(stored: Sequence[Stored]) -> list[Step]:
    return [Step.FromString(it.payload) for it in stored if it.kind is EntryKind.STEP]


def run(text: str, cuts: Sequence[int]) -> tuple[list[Step], list[Step], g.SequenceResult]:
    """Return the steps of a stream and of its record, and the result on record."""
    form, begin, live, stored = make_form(), 0, [], []
    for index, piece in enumerate(split(text, cuts)):
        live.append(make_step(index, piece, begin))
        begin = live[-1].text_end_byte
        stored += form.take(EntryKind.STEP, live[-1].SerializeToString())
    stored += form.take(EntryKind.FINISHED, make_finish(text))
    (result,) = g.GenerationFinished.FromString(stored.pop().payload).sequences
    return live, read(stored), result


CUTS = st.lists(st.integers(0, 1_000), max_size=40)


@settings(max_examples=200, deadline=None)
@given(TEXTS, CUTS)
def test_stored_steps_join_to_the_redacted_text(text: str, cuts: list[int]) -> None:
    live, stored, result = run(text, cuts)
    expected = redact(text, find_ranges(DETECTORS, text))
    assert "".join(step.text for step in stored) == result.text == expected
    assert [step.index for step in stored] == [step.index for step in live]
    end = 0
    for step in stored:
        assert step.text_begin_byte == end
        end = step.text_end_byte
    assert end == len(expected.encode())


@settings(max_examples=200, deadline=None)
@given(TEXTS, CUTS)
def test_what_tells_a_redacted_token_is_gone_and_every_other_step_is_whole(
    text: str, cuts: list[int]
) -> None:
    ranges = find_ranges(DETECTORS, text)
    live, stored, result = run(text, cuts)
    for before, after in zip(live, stored, strict=True):
        begin, end = before.text_begin_byte, before.text_end_byte
        kinds = [each.kind for each in ranges if each.begin < end and each.end > begin]
        assert [redaction.kind for redaction in after.redactions] == kinds
        if kinds:
            kept = Step(
                index=before.index,
                text=after.text,
                text_begin_byte=after.text_begin_byte,
                text_end_byte=after.text_end_byte,
                timing=before.timing,
                redactions=after.redactions,
            )
            assert after == kept
        else:
            before.text_begin_byte, before.text_end_byte = (
                after.text_begin_byte,
                after.text_end_byte,
            )
            assert after == before
    assert bool(result.token_ids) is result.HasField("logprob") is (not ranges)
    assert [it.num_bytes for it in result.redactions] == [each.end - each.begin for each in ranges]
    content = result.text.encode()
    for it in result.redactions:
        assert content[it.begin_byte : it.end_byte] == f"[{it.kind}]".encode()


def test_step_is_stored_once_nothing_can_begin_in_it() -> None:
    form, begin, numbers = make_form(), 0, []
    for index, piece in enumerate(["Write", " to", " joe", "@", "example", ".com", ",", " now"]):
        step = make_step(index, piece, begin)
        begin = step.text_end_byte
        numbers.append(
            [it.index for it in read(form.take(EntryKind.STEP, step.SerializeToString()))]
        )
    assert numbers == [[], [0], [1], [], [], [], [2, 3, 4, 5, 6], []]


def test_sequence_that_has_ended_holds_nothing_back() -> None:
    form = make_form(2)
    first = make_step(0, "Paris", 0)
    assert form.take(EntryKind.STEP, first.SerializeToString()) == []
    second = make_step(0, "So, ", 0, sequence=1)
    assert form.take(EntryKind.STEP, second.SerializeToString()) == []
    assert [step.text for step in read(form.end_sequence(0, ""))] == ["Paris", "So, "]
    third = make_step(1, "x, ", 4, sequence=1)
    assert [step.text for step in read(form.take(EntryKind.STEP, third.SerializeToString()))] == [
        "x, "
    ]


def test_step_waits_for_the_bytes_of_its_token() -> None:
    """A token's text may be held back, because a stop string or a character may be beginning."""
    form = make_form()
    held = make_step(0, "", 0)
    held.text_end_byte = 4
    assert form.take(EntryKind.STEP, held.SerializeToString()) == []
    release = make_step(1, "joe@example.com, ", 4)
    release.text_end_byte = 17
    first, second = read(form.take(EntryKind.STEP, release.SerializeToString()))
    assert (first.text, first.HasField("token_id")) == ("", False)
    assert (second.text, second.HasField("token_id")) == ("[mail], ", False)


def test_tokens_of_a_stop_string_are_searched_with_it() -> None:
    """The output ends before the stop string, and the record has the ids of its tokens."""
    form, begin, stored = make_form(), 0, []
    for index, piece in enumerate(["To", " joe@", "example.", "com"]):
        step = make_step(index, piece if index < 2 else "", begin)
        step.text_end_byte = begin = begin + len(piece)
        stored += form.take(EntryKind.STEP, step.SerializeToString())
    stored += form.end_sequence(0, "example.com")
    assert [(it.text, it.HasField("token_id")) for it in read(stored)] == [
        ("To", True),
        (" [mail]", False),
        ("", False),
        ("", False),
    ]
    (ended,) = form.take(EntryKind.FINISHED, make_finish("To joe@"))
    (result,) = g.GenerationFinished.FromString(ended.payload).sequences
    assert (result.text, list(result.token_ids)) == ("To [mail]", [])


async def test_stop_token_whose_text_is_in_the_output_is_searched_once(tmp_path: Path) -> None:
    tokenizer = TextTokenizer(MODEL.text, MODEL.vocabulary_size)
    ids = tokenizer.encode("card 4111111111111111")
    decoding = replace(STARTED.decoding, stop_token_ids=(ids[-1],))
    started = replace(STARTED, prompt="Say: ", decoding=decoding)
    journal = await Journal.open(tmp_path)
    record = ContentRecord(journal, RedactedForm(DETECTORS, 1, "blinded"))
    record.create(encode_started(started))
    running = RunningGeneration(
        started, arrival_ns=0, grace_s=0.0, journal=record, tokenizer=tokenizer
    )
    for index, token_id in enumerate(ids):
        finish = FinishReason.STOP if index == len(ids) - 1 else None
        made = StepMade("g", 0, index, Decision(token_id, -1.0), index, finish)
        running.record_step(made, Turn(Cost(0, 0, 0, 1)))
    running.finish()
    entries = await journal.read("g")
    steps = [Step.FromString(it.payload) for it in entries if it.kind is EntryKind.STEP]
    assert "".join(step.text for step in steps) == "card [card]"
    assert not steps[-1].HasField("token_id")
    await journal.close()


def test_redacted_stop_string_leaves_the_output_and_hides_its_tokens() -> None:
    form = make_form()
    stored = [*form.take(EntryKind.STEP, make_step(0, "To ", 0).SerializeToString())]
    step = make_step(1, "", 3)
    step.text_end_byte = 3 + len(MAIL)
    stored += form.take(EntryKind.STEP, step.SerializeToString())
    stored += form.end_sequence(0, MAIL)
    assert [it.HasField("token_id") for it in read(stored)] == [True, False]
    (ended,) = form.take(EntryKind.FINISHED, make_finish("To "))
    (result,) = g.GenerationFinished.FromString(ended.payload).sequences
    assert (result.text, list(result.token_ids), list(result.redactions)) == ("To ", [], [])


def test_prompt_and_its_steps_lose_what_is_redacted() -> None:
    form = RedactedForm(DETECTORS, 1, "blinded")
    started = g.GenerationStarted(
        prompt=f"To {MAIL} now", prompt_token_ids=[1, 2, 3], request_digest="d"
    )
    (stored,) = form.take(EntryKind.STARTED, started.SerializeToString())
    kept = g.GenerationStarted.FromString(stored.payload)
    assert (kept.prompt, list(kept.prompt_token_ids)) == ("To [mail] now", [])
    assert kept.request_digest == "blinded"
    (redaction,) = kept.redactions
    assert (redaction.field, redaction.begin_byte, redaction.end_byte) == ("prompt", 3, 9)
    entries = []
    for index, (piece, begin) in enumerate(
        [("To ", 0), (MAIL[:4], 3), (MAIL[4:], 7), (" now", 18)]
    ):
        step = make_step(index, piece, begin)
        entries += form.take(EntryKind.PROMPT_STEP, step.SerializeToString())
    # The first step of the output ends the prompt.
    entries += form.take(EntryKind.STEP, make_step(0, "", 0).SerializeToString())
    assert {entry.kind for entry in entries[:-1]} == {EntryKind.PROMPT_STEP}
    steps = [Step.FromString(entry.payload) for entry in entries[:-1]]
    texts = [(step.text, step.HasField("token_id")) for step in steps]
    assert texts == [("To ", True), ("[mail]", False), ("", False), (" now", True)]


@pytest.mark.parametrize("num_words", [0, 5_000])
@pytest.mark.parametrize(
    ("prompt", "pieces", "expected"),
    [
        ("My key is ghp_abcdefghij", ["klmn", "opqrstuvwx", " is", " it"], "[key] is it"),
        ("é joe@", ["exam", "ple.com", " and ", MAIL, ", "], "[mail] and [mail], "),
        ("x-----BEGIN PRIVATE KEY-----", ["abc", "def"], "[key]"),
        (f"To {MAIL}. ", ["And ", MAIL, ", "], "And [mail], "),
        ("5", ["4111111111111111", ", "], "[card], "),
        ("x", [KEY, ", "], "[key], "),
    ],
)
def test_match_across_the_end_of_the_prompt_is_redacted_in_the_output(
    prompt: str, pieces: list[str], expected: str, num_words: int
) -> None:
    form = RedactedForm(DETECTORS, 1, "blinded")
    started = g.GenerationStarted(prompt="Paris, " * num_words + prompt)
    form.take(EntryKind.STARTED, started.SerializeToString())
    stored, begin = [], 0
    for index, piece in enumerate(pieces):
        step = make_step(index, piece, begin)
        begin = step.text_end_byte
        stored += form.take(EntryKind.STEP, step.SerializeToString())
    stored += form.take(EntryKind.FINISHED, make_finish("".join(pieces)))
    (result,) = g.GenerationFinished.FromString(stored.pop().payload).sequences
    steps = read(stored)
    assert "".join(step.text for step in steps) == result.text == expected
    assert [step.HasField("token_id") for step in steps] == [not step.redactions for step in steps]


def test_request_without_a_match_is_stored_as_it_is() -> None:
    form = RedactedForm(DETECTORS, 1, "blinded")
    started = g.GenerationStarted(
        prompt="To Joe", prompt_token_ids=[1, 2], request_digest="d", owner=MAIL, model=CARD
    )
    (stored,) = form.take(EntryKind.STARTED, started.SerializeToString())
    assert g.GenerationStarted.FromString(stored.payload) == started


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (f'{{"to": "{MAIL}", "n": 3}}', '{"to": "[mail]", "n": 3}'),
        ('{"to": "jo\\u0065@ex\\u0061mple.com"}', '{"to": "[mail]"}'),
        ('{"card": 4111111111111111, "x": [1.5, null]}', '{"card": "[card]", "x": [1.5, null]}'),
        (f'{{"{MAIL}": "é\\n{CARD}\\""}}', '{"[mail]": "é\\n[card]\\""}'),
        (f"{{not JSON {MAIL}", "{not JSON [mail]"),
        # Half of a character, as some models write it.
        (f'{{"a": "\\ud83d {MAIL}"}}', '{"a": "\ufffd [mail]"}'),
        ('{"a": "\\ud83d"}', '{"a": "\\ud83d"}'),
        ('{"a":   "b"}', '{"a":   "b"}'),
        (
            f'{{"a": "joe\\u0040example.com", "n": {"1" * 5_000}}}',
            f'{{"a": "[mail]", "n": {"1" * 5_000}}}',
        ),
    ],
)
def test_json_stays_json_and_is_searched_as_it_reads(text: str, expected: str) -> None:
    form = RedactedForm(DETECTORS, 1, "blinded")
    started = g.GenerationStarted()
    started.chat.input.template_arguments_json = text
    (stored,) = form.take(EntryKind.STARTED, started.SerializeToString())
    kept = g.GenerationStarted.FromString(stored.payload)
    assert kept.chat.input.template_arguments_json == expected
    for it in kept.redactions:
        assert it.field == "chat.input.template_arguments_json"
        assert expected.encode()[it.begin_byte : it.end_byte] == f"[{it.kind}]".encode()
    if not text.startswith("{not"):
        json.loads(expected, parse_int=str)


async def test_end_that_cannot_be_redacted_is_stored_without_content(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise UnicodeError

    monkeypatch.setattr(redacting, "redact_result", fail)
    journal = await Journal.open(tmp_path)
    record = ContentRecord(journal, RedactedForm(DETECTORS, 1, "blinded"))
    record.create(encode_started(replace(STARTED, prompt="Say: ")))
    record.append("g", EntryKind.STEP, make_step(0, "joe", 0).SerializeToString())
    finished = g.GenerationFinished.FromString(make_finish("joe"))
    finished.finish_reason = g.FINISH_REASON_LENGTH
    record.finish("g", finished.SerializeToString(), FinishIndex(FinishReason.LENGTH, 1, "joe"))
    _, step, end = await journal.read("g")
    assert Step.FromString(step.payload).text == "joe"
    kept = g.GenerationFinished.FromString(end.payload)
    assert kept.finish_reason == g.FINISH_REASON_LENGTH
    assert (kept.sequences[0].text, list(kept.sequences[0].token_ids)) == ("", [])
    await journal.close()


def test_every_text_of_a_request_and_a_result_is_searched() -> None:
    form = RedactedForm(DETECTORS, 1, "blinded")
    started = g.GenerationStarted()
    started.labels[MAIL] = f"of {MAIL}"
    started.effective_decoding.stop.append(CARD)
    started.effective_decoding.bad_words.append(MAIL)
    started.effective_decoding.constraint.regex = MAIL
    started.effective_decoding.forced.tokens.token_ids.append(SECRET_ID)
    started.upstream_parameters_json = json.dumps({"user": MAIL})
    message = started.chat.input.messages.add(role="user", name=MAIL, reasoning_content=MAIL)
    message.content_parts.add(text=MAIL)
    message.tool_calls.add(name="send", arguments_json=json.dumps({"to": MAIL}))
    started.chat.input.tools_json = json.dumps([{"description": MAIL}])
    (stored,) = form.take(EntryKind.STARTED, started.SerializeToString())
    finished = g.GenerationFinished()
    finished.failure.message = f"the upstream said: {MAIL}"
    finished.upstream.prompt = MAIL
    finished.upstream.prompt_token_ids.append(SECRET_ID)
    result = finished.sequences.add(stop=MAIL)
    result.tool_calls.add().call.arguments_json = json.dumps({"to": MAIL})
    result.reasoning.text = MAIL
    (ended,) = form.take(EntryKind.FINISHED, finished.SerializeToString())
    for payload in (stored.payload, ended.payload):
        assert b"joe" not in payload
        assert b"4111" not in payload
    kept = g.GenerationStarted.FromString(stored.payload)
    assert dict(kept.labels) == {"[mail]": "of [mail]"}
    assert not kept.effective_decoding.forced.tokens.token_ids
    assert {it.field for it in kept.redactions} >= {
        "labels[[mail]]",
        "chat.input.messages[0].content_parts[0].text",
        "chat.input.messages[0].tool_calls[0].arguments_json",
        "effective_decoding.constraint.regex",
    }
    over = g.GenerationFinished.FromString(ended.payload)
    assert not over.upstream.prompt_token_ids


def test_reasoning_that_an_upstream_tells_apart_is_a_text_of_its_own() -> None:
    form, stored = make_form(), []
    thoughts = ["Use ", "joe@exa", "mple.com", " and ", "then"]
    for index, piece in enumerate(thoughts):
        step = make_step(index, "", 0)
        step.reasoning_text = piece
        stored += form.take(EntryKind.STEP, step.SerializeToString())
    # The answer does not wait for more reasoning.
    stored += form.take(EntryKind.STEP, make_step(5, "Yes, ", 0).SerializeToString())
    steps = read(stored)
    assert [(it.reasoning_text, it.HasField("token_id")) for it in steps] == [
        *[("Use ", True), ("[mail]", False), ("", False), (" and ", True), ("then", True)],
        ("", True),
    ]
    assert [it.field for it in steps[1].redactions] == ["reasoning_text"]
    assert steps[-1].text == "Yes, "


def test_rounds_of_a_search_are_stored_without_the_hypotheses() -> None:
    form = make_form()
    told = g.BeamRound(index=3)
    told.continuations.add(token_id=SECRET_ID, logprob=-1.0)
    told.timing.elapsed_ns = 5
    (stored,) = form.take(EntryKind.BEAM_ROUND, told.SerializeToString())
    kept = g.BeamRound.FromString(stored.payload)
    assert (kept.index, kept.timing.elapsed_ns, len(kept.continuations)) == (3, 5, 0)


def test_ranges_of_calls_and_reasoning_follow_the_stored_text() -> None:
    text = f"<think>{MAIL}</think> call"
    form = make_form()
    form.take(EntryKind.STEP, make_step(0, text, 0).SerializeToString())
    finished = g.GenerationFinished()
    result = finished.sequences.add(text=text)
    result.reasoning.text, result.reasoning.text_end_byte = MAIL, text.index(" call")
    result.tool_calls.add(text_begin_byte=len(text) - 4, text_end_byte=len(text))
    *_, ended = form.take(EntryKind.FINISHED, finished.SerializeToString())
    (kept,) = g.GenerationFinished.FromString(ended.payload).sequences
    assert kept.text == "<think>[mail]</think> call"
    assert kept.text[: kept.reasoning.text_end_byte] == "<think>[mail]</think>"
    assert kept.text[kept.tool_calls[0].text_begin_byte :] == "call"


def make_started(policy: ContentPolicy) -> Started:
    return replace(STARTED, trace=replace(STARTED.trace, content=policy))


def test_policy_comes_after_redaction() -> None:
    redaction = open_redaction(KINDS, None)
    form = StoredForms(redaction.make_form).make(make_started(ContentPolicy.TOKENS))
    assert form is not None
    started = g.GenerationStarted(prompt=MAIL, prompt_token_ids=[1, 2])
    started.labels["x"] = MAIL
    (stored,) = form.take(EntryKind.STARTED, started.SerializeToString())
    kept = g.GenerationStarted.FromString(stored.payload)
    assert (kept.prompt, list(kept.prompt_token_ids)) == ("", [])
    assert dict(kept.labels) == {"x": "[mail]"}
    step = make_step(0, f"{MAIL}, ", 0)
    (entry,) = form.take(EntryKind.STEP, step.SerializeToString())
    kept_step = Step.FromString(entry.payload)
    assert (kept_step.text, kept_step.HasField("token_id")) == ("", False)
    assert [it.kind for it in kept_step.redactions] == ["mail"]


def test_nothing_is_made_of_a_generation_without_redaction_under_full() -> None:
    redaction = open_redaction((), None)
    forms = StoredForms(redaction.make_form)
    assert forms.make(make_started(ContentPolicy.FULL)) is None
    assert forms.choose_hiding(ContentPolicy.FULL) is None


def test_others_see_no_content_of_what_is_in_memory_unredacted() -> None:
    forms = StoredForms(open_redaction(("mail",), None).make_form)
    hiding = forms.choose_hiding(ContentPolicy.FULL)
    assert hiding is not None
    message = g.GenerationStarted(prompt=MAIL, prompt_token_ids=[1, 2])
    hiding.hide(message)
    assert message == g.GenerationStarted()


def find_searched_ids(kind: Descriptor, seen: set[str]) -> set[str]:
    """Return the names of all texts of ids and digests of a message that are searched."""
    found: set[str] = set()
    if kind.full_name.startswith("whence.") and kind.full_name not in seen:
        seen.add(kind.full_name)
        for field in kind.fields:
            if field.message_type is not None:
                found |= find_searched_ids(field.message_type, seen)
            elif field.type == FieldDescriptor.TYPE_STRING and field.full_name not in _KEPT:
                found |= {field.full_name} if field.name.endswith(IDS) else set()
    return found


def test_ids_and_digests_are_not_searched() -> None:
    # One id of 116 looks like the number of a card; the caller chooses the ids of its tools' calls.
    searched = find_searched_ids(g.GenerationStarted.DESCRIPTOR, set())
    assert searched == {"whence.v1.ChatMessage.tool_call_id"}
    assert not find_searched_ids(g.GenerationFinished.DESCRIPTOR, set())
    fork = g.Fork(
        parent_generation_id="bf58877c-ff45-4450-8165-94426c451334",
        parent_trace_id="013826457ed87a88864517dc53c1c1e6",
        changed_settings=["max_new_tokens"],
    )
    started = g.GenerationStarted(fork=fork, prompt=MAIL)
    assert [each.field for each in redact_message(started, DETECTORS)] == ["prompt"]
    assert started.fork == fork


def test_error_of_a_call_is_redacted() -> None:
    error = CallError("INVALID_REQUEST", f"labels[{MAIL}]", f"{MAIL} is no label")
    call = CallRecord(
        trace_context=STARTED.trace_context,
        method="m",
        start_time_ns=1,
        end_time_ns=2,
        status_code=3,
        generation_id="",
        server_address="",
        server_port=None,
        error=error,
    )
    redacted = open_redaction(("mail",), None).redact_call(call)
    assert redacted == replace(
        call, error=CallError("INVALID_REQUEST", "labels[[mail]]", "[mail] is no label")
    )
    assert open_redaction((), None).redact_call(call) == call


@pytest.mark.parametrize(
    ("policy", "fault"),
    [
        (
            RetentionPolicy(holds=(LabelPattern("customer", MAIL),)),
            f"--hold-label customer={MAIL}: matches nothing, .* as customer=\\[mail\\]; write that",
        ),
        (
            RetentionPolicy(label_ages=(LabelAge(LabelPattern(MAIL, "*"), 9),)),
            f"--retain-label {MAIL}=\\*: matches nothing",
        ),
    ],
)
def test_rule_of_retention_that_matches_no_stored_label_stops_the_start(
    policy: RetentionPolicy, fault: str
) -> None:
    with pytest.raises(ConfigurationError, match=fault):
        open_redaction(("mail",), None).check_labels(policy)
    open_redaction(("card",), None).check_labels(policy)
    open_redaction((), None).check_labels(policy)


def test_rule_of_retention_may_name_what_is_stored() -> None:
    held = RetentionPolicy(holds=(LabelPattern("customer", "[mail]"), LabelPattern("a", "*")))
    open_redaction(("mail",), None).check_labels(held)


@pytest.mark.parametrize("num_words", [10, 10_000])
async def test_start_that_was_searched_ahead_is_stored_the_same(num_words: int) -> None:
    started = replace(STARTED, prompt=f"To {MAIL}. " * num_words)
    forms = StoredForms(open_redaction(KINDS, None).make_form)
    async with forms.prepare(started):
        ahead = forms.make(started)
    at_once = forms.make(started)
    assert ahead is not None
    assert at_once is not None
    payload = encode_started(started)
    (stored,) = ahead.take(EntryKind.STARTED, payload)
    assert [stored] == at_once.take(EntryKind.STARTED, payload)
    assert g.GenerationStarted.FromString(stored.payload).prompt == "To [mail]. " * num_words


async def test_search_ahead_of_a_request_that_is_refused_leaves_nothing() -> None:
    started = replace(STARTED, prompt=MAIL * 10_000)
    forms = StoredForms(open_redaction(KINDS, None).make_form)
    with pytest.raises(RuntimeError):
        async with forms.prepare(started):
            raise RuntimeError
    assert not forms._prepared


async def test_long_prompts_of_a_recorded_batch_are_searched_in_threads(tmp_path: Path) -> None:
    threads = []

    class Form(RedactedForm):
        def _make_started(self, payload: bytes) -> Stored:
            threads.append(threading.current_thread())
            return super()._make_started(payload)

    tokenizer = TextTokenizer(MODEL.text, MODEL.vocabulary_size)
    prompt = RecordedPrompt("g", tuple(tokenizer.encode(f"To {MAIL}. " * 2_000)))
    start = BatchStart(
        number=1,
        model_number=1,
        start_time_ns=1,
        trace_contexts=[STARTED.trace_context],
        decoding=STARTED.decoding,
        trace=STARTED.trace,
        processor_names=(),
        prompts=[prompt],
        request_digest="d" * 64,
    )
    journal = await Journal.open(tmp_path)
    vocabularies: Any = SimpleNamespace(keep=lambda *_: None)
    forms = StoredForms(lambda _, digest: Form(DETECTORS, 1, digest))
    link: Any = None
    recorders = Recorders(journal, vocabularies, lambda: None, link, forms=forms)
    recorder = Recorder("test/1", 0)
    recorder.models[1] = ReadyModel(MODEL, tokenizer, 0)
    await recorders.begin(recorder, start)
    assert not recorder.refusals
    (stored,) = await journal.read("g")
    assert g.GenerationStarted.FromString(stored.payload).prompt == "To [mail]. " * 2_000
    (thread,) = threads
    assert thread is not threading.main_thread()
    recorders.close()
    await journal.close()
