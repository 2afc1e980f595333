"""The spans themselves: the tree, its times, its attributes, and that bytes alone decide them."""

import hashlib
import struct
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st
from opentelemetry.proto.trace.v1.trace_pb2 import Span, Status
from span_reading import attributes, encoded, mapping, named, only_span, spans_of
from telemetry_journal import (
    CALLER_SPAN_ID,
    START_NS,
    TRACE_ID,
    MemoryJournal,
    call,
    finished,
    server_span_id,
    started,
    step,
    timestamp,
)

from whence.summary import shorten_float32
from whence.v1 import generation_pb2, step_pb2
from whence_server.domain.entries import EntryKind
from whence_server.telemetry.journal import UnreadableEntryError
from whence_server.telemetry.spans.encoder import SpanEncoder
from whence_server.telemetry.spans.float32 import shorten_all


@pytest.fixture
def journal() -> MemoryJournal:
    journal = MemoryJournal()
    journal.append_generation("g1", num_steps=30, num_sequences=2)
    return journal


async def test_spans_form_one_tree(journal):
    spans = await spans_of(journal)
    by_id = {span.span_id: span for span in spans}
    assert len(by_id) == len(spans) == 1 + 1 + 2 + 60
    assert {span.trace_id.hex() for span in spans} == {TRACE_ID}
    server = by_id[bytes.fromhex(server_span_id("g1"))]
    assert server.name == "whence.v1.GenerationService/Generate"
    assert server.kind == Span.SPAN_KIND_SERVER
    assert server.parent_span_id.hex() == CALLER_SPAN_ID
    parents = {"decode_step": "decode", "decode": "text_completion demo"}
    for span in spans:
        assert span.trace_state == "vendor=x"
        if span is server:
            assert span.flags == 0x301  # sampled; the parent is remote
            continue
        assert span.flags == 0x101  # sampled; the parent is our own
        assert span.kind == Span.SPAN_KIND_INTERNAL
        parent = by_id[span.parent_span_id]
        assert parent.name == parents.get(span.name, server.name)
        assert parent.start_time_unix_nano <= span.start_time_unix_nano
        assert span.end_time_unix_nano <= parent.end_time_unix_nano


async def test_steps_are_as_long_as_they_took_and_never_touch(journal):
    steps = [
        s
        for s in named(await spans_of(journal), "decode_step")
        if attributes(s)["whence.sequence.index"] == 1
    ]
    assert steps[0].end_time_unix_nano == START_NS + 14_000_000
    # The prompt's forward pass is not the first step's: only its choice is.
    assert steps[0].start_time_unix_nano == START_NS + 13_001_000
    assert steps[1].start_time_unix_nano == START_NS + 14_001_000
    for before, after in pairwise(steps):
        assert after.start_time_unix_nano - before.end_time_unix_nano == 1_000
    decode = named(await spans_of(journal), "decode")[1]
    assert decode.start_time_unix_nano == steps[0].start_time_unix_nano - 1_000
    assert decode.end_time_unix_nano == steps[-1].end_time_unix_nano


@given(elapsed=st.integers(0, 2**40), forward=st.integers(0, 2**40), select=st.integers(0, 2**40))
async def test_odd_timings_stay_inside_the_parents(elapsed, forward, select):
    timing = step_pb2.StepTiming(elapsed_ns=elapsed, forward_ns=forward, select_ns=select)
    journal = MemoryJournal()
    journal.append("g", EntryKind.STARTED, started("g"))
    journal.append("g", EntryKind.STEP, step(0, timing=timing))
    journal.append("g", EntryKind.FINISHED, finished(1, end_time=timestamp(START_NS - 5)))
    one, generation, decode = await spans_of(journal)
    assert one.end_time_unix_nano - one.start_time_unix_nano >= 1_000
    for inner, outer in ((one, decode), (decode, generation)):
        assert outer.start_time_unix_nano <= inner.start_time_unix_nano
        assert inner.end_time_unix_nano <= outer.end_time_unix_nano
    assert generation.start_time_unix_nano == START_NS


async def test_a_step_span_has_all_fields_of_its_step_but_text(journal):
    one = named(await spans_of(journal), "decode_step")[2]
    assert attributes(one) == {
        "whence.generation.id": "g1",
        "whence.sequence.index": 0,
        "whence.step.index": 1,
        "whence.step.batch_size": 3,
        "whence.step.context_length": 21,
        "whence.step.forward_ns": 3_000_000,
        "whence.step.select_ns": 1_000_000,
        "whence.step.summary": "#1001 22.3% (drawn at 28.7%), 2 tokens likelier; "
        "won by 0.25 nats over #7",
        "whence.token.id": 1001,
        "whence.token.logprob": -1.5,
        "whence.token.sampling_logprob": -1.25,
        "whence.token.rank": 2,
        "whence.step.entropy": 3.5,
        "whence.step.sampling_entropy": 2.5,
        "whence.draw.noise": 0.5,
        "whence.draw.runner_up_token_id": 7,
        "whence.draw.margin": 0.25,
    }
    assert not any(b"secret" in piece for piece in await encoded(journal))


@given(
    st.lists(
        st.fixed_dictionaries(
            {},
            optional={
                "token_id": st.integers(0, 2**32 - 1),
                "logprob": st.floats(width=32, allow_nan=False),
                "sampling_logprob": st.floats(width=32, allow_nan=False),
                "rank": st.integers(0, 2**32 - 1),
                "entropy": st.floats(width=32, allow_nan=False),
                "draw": st.builds(
                    step_pb2.Draw,
                    noise=st.floats(width=32, allow_nan=False),
                    margin=st.none() | st.floats(width=32, allow_nan=False),
                    runner_up_token_id=st.none() | st.integers(0, 2**32 - 1),
                ),
            },
        ),
        min_size=1,
        max_size=8,
    )
)
async def test_absent_fields_make_no_attributes_after_other_steps(fields_of_steps):
    """The encoder reuses messages, in which no old value may remain."""
    journal = MemoryJournal()
    journal.append("g", EntryKind.STARTED, started("g"))
    for index, fields in enumerate(fields_of_steps):
        message = step_pb2.Step(index=index, text_end_byte=1, **fields)
        journal.append("g", EntryKind.STEP, message)
    for span, fields in zip(await spans_of(journal), fields_of_steps, strict=True):
        found = attributes(span)
        assert found.get("whence.token.id") == fields.get("token_id")
        assert found.get("whence.token.logprob") == exported(fields.get("logprob"))
        assert found.get("whence.token.sampling_logprob") == exported(
            fields.get("sampling_logprob")
        )
        assert found.get("whence.token.rank") == fields.get("rank")
        assert found.get("whence.step.entropy") == exported(fields.get("entropy"))
        assert "whence.step.sampling_entropy" not in found
        draw = fields.get("draw")
        assert found.get("whence.draw.noise") == (None if draw is None else exported(draw.noise))
        has_margin = draw is not None and draw.HasField("margin")
        assert found.get("whence.draw.margin") == (exported(draw.margin) if has_margin else None)
        has_other = draw is not None and draw.HasField("runner_up_token_id")
        other = draw.runner_up_token_id if has_other else None
        assert found.get("whence.draw.runner_up_token_id") == other


def exported(number: float | None) -> float | None:
    """Return a float32 as spans have it."""
    return None if number is None else shorten_all([number])[0]


async def test_the_genai_span_has_the_attributes_of_the_conventions(journal):
    (generation,) = named(await spans_of(journal), "text_completion demo")
    found = attributes(generation)
    assert {key: value for key, value in found.items() if key.startswith("gen_ai.")} == {
        "gen_ai.operation.name": "text_completion",
        "gen_ai.provider.name": "whence",
        "gen_ai.output.type": "text",
        "gen_ai.request.model": "demo",
        "gen_ai.request.stream": True,
        "gen_ai.request.max_tokens": 64,
        "gen_ai.request.choice.count": 2,
        "gen_ai.request.stop_sequences": ["\n\n"],
        "gen_ai.request.temperature": 0.8,
        "gen_ai.request.top_k": 40.0,
        "gen_ai.request.top_p": 0.95,
        # No gen_ai.request.seed: 2^64 - 1 is more than OTLP's integers hold.
        "gen_ai.response.id": "g1",
        "gen_ai.response.model": "demo",
        "gen_ai.response.finish_reasons": ["stop", "stop"],
        "gen_ai.response.time_to_first_chunk": 0.014,
        "gen_ai.usage.input_tokens": 5,
        "gen_ai.usage.output_tokens": 60,
    }
    assert found["whence.decoding.seed"] == str(2**64 - 1)
    assert found["whence.decoding.strategy"] == "sample"
    assert found["whence.model.digest"] == "aa"
    labels = [key for key in found if key.startswith("whence.label.")]
    assert labels == ["whence.label.a", "whence.label.team", "whence.label.zone"]
    assert found["whence.label.team"] == "search"
    assert generation.status == Status()


async def test_a_conversations_label_is_the_conventions_attribute_and_is_sent_once():
    journal = MemoryJournal()
    labels = {"gen_ai.conversation.id": "c-17", "team": "search"}
    journal.append("g", EntryKind.STARTED, started("g", labels=labels))
    journal.append("g", EntryKind.FINISHED, finished(0))
    (generation,) = named(await spans_of(journal), "text_completion demo")
    found = attributes(generation)
    assert found["gen_ai.conversation.id"] == "c-17"
    assert found["whence.label.team"] == "search"
    assert [value for value in found.values() if value == "c-17"] == ["c-17"]


@given(st.floats(width=32, allow_nan=False, allow_infinity=False))
def test_a_float32_setting_is_shown_as_the_shortest_decimal(value):
    written = shorten_float32(value)
    assert struct.pack("f", written) == struct.pack("f", value)
    assert len(repr(written)) <= len(repr(value))


async def test_gen_ai_is_on_the_genai_span_alone(journal):
    with_gen_ai = [
        span.name
        for span in await spans_of(journal)
        if any(key.startswith("gen_ai.") for key in attributes(span))
    ]
    assert with_gen_ai == ["text_completion demo"]


@pytest.mark.parametrize("operation", ["chat", "text_completion"])
async def test_the_genai_span_is_named_after_its_operation(operation):
    journal = MemoryJournal()
    journal.append("g", EntryKind.STARTED, started("g", operation=operation))
    journal.append("g", EntryKind.FINISHED, finished(0))
    (generation,) = await spans_of(journal)
    assert generation.name == f"{operation} demo"
    assert attributes(generation)["gen_ai.operation.name"] == operation


async def test_a_seed_within_int64_is_in_the_conventions_attribute():
    journal = MemoryJournal()
    decoding = generation_pb2.Decoding(sample=generation_pb2.Sample(seed=2**63 - 1))
    journal.append("g", EntryKind.STARTED, started("g", effective_decoding=decoding))
    journal.append("g", EntryKind.FINISHED, finished(0))
    (generation,) = await spans_of(journal)
    assert attributes(generation)["gen_ai.request.seed"] == 2**63 - 1


async def test_a_failed_generation_is_an_error():
    journal = MemoryJournal()
    failed = generation_pb2.FINISH_REASON_FAILED
    failure = generation_pb2.Failure(code=13, reason="NON_FINITE_LOGITS", message="logits are NaN")
    journal.append("g", EntryKind.STARTED, started("g"))
    ending = finished(0, 0, finish_reason=failed, failure=failure)
    journal.append("g", EntryKind.FINISHED, ending)
    (generation,) = await spans_of(journal)
    assert generation.status == Status(code=Status.STATUS_CODE_ERROR, message="logits are NaN")
    assert attributes(generation)["error.type"] == "NON_FINITE_LOGITS"
    assert attributes(generation)["gen_ai.response.finish_reasons"] == ["error"]
    (event,) = generation.events
    assert event.name == "exception"
    assert event.time_unix_nano == generation.end_time_unix_nano
    assert mapping(event.attributes) == {
        "exception.type": "NON_FINITE_LOGITS",
        "exception.message": "logits are NaN",
    }


@pytest.mark.parametrize("reason", ["CANCELLED", "TIMEOUT", "INTERRUPTED"])
async def test_a_cancelled_or_timed_out_generation_is_no_error(reason):
    journal = MemoryJournal()
    journal.append("g", EntryKind.STARTED, started("g"))
    value = generation_pb2.FinishReason.Value(f"FINISH_REASON_{reason}")
    ending = finished(0, 0, finish_reason=value)
    journal.append("g", EntryKind.FINISHED, ending)
    (generation,) = await spans_of(journal)
    assert generation.status == Status()
    assert not generation.events
    found = attributes(generation)
    assert found["gen_ai.response.finish_reasons"] == [reason.lower()]
    assert "error.type" not in found


@pytest.mark.parametrize(
    ("code", "name", "is_error"),
    [
        (0, "OK", False),
        (1, "CANCELLED", False),
        (2, "UNKNOWN", True),
        (3, "INVALID_ARGUMENT", False),
        (4, "DEADLINE_EXCEEDED", True),
        (5, "NOT_FOUND", False),
        (6, "ALREADY_EXISTS", False),
        (7, "PERMISSION_DENIED", False),
        (8, "RESOURCE_EXHAUSTED", False),
        (9, "FAILED_PRECONDITION", False),
        (10, "ABORTED", False),
        (11, "OUT_OF_RANGE", False),
        (12, "UNIMPLEMENTED", True),
        (13, "INTERNAL", True),
        (14, "UNAVAILABLE", True),
        (15, "DATA_LOSS", True),
        (16, "UNAUTHENTICATED", False),
        (77, "77", True),
    ],
)
async def test_the_server_span_has_the_calls_status(code, name, is_error):
    journal = MemoryJournal()
    journal.append("g", EntryKind.CALL, call("g", status_code=code))
    (server,) = await spans_of(journal)
    assert attributes(server) == {
        "rpc.system.name": "grpc",
        "rpc.method": "whence.v1.GenerationService/Generate",
        "rpc.response.status_code": name,
        "server.address": "127.0.0.1",
        "server.port": 50051,
        "whence.generation.id": "g",
    } | ({"error.type": name} if is_error else {})
    expected = Status.STATUS_CODE_ERROR if is_error else Status.STATUS_CODE_UNSET
    assert server.status.code == expected


async def test_a_server_span_without_parent_and_port_lacks_them():
    journal = MemoryJournal()
    message = call("", parent_span_id="", server_address="/run/whence.sock")
    message.ClearField("server_port")
    journal.append("", EntryKind.CALL, message)
    (server,) = await spans_of(journal)
    assert server.parent_span_id == b""
    assert server.flags == 0x101
    assert attributes(server)["server.address"] == "/run/whence.sock"
    assert not attributes(server).keys() & {"server.port", "whence.generation.id"}


async def test_encoding_is_a_function_of_the_bytes(journal):
    whole = await encoded(journal)
    assert await encoded(journal) == whole
    # A new encoder that begins anywhere makes the same spans from there on.
    encoder = SpanEncoder(journal)
    per_entry = [await encoder.encode(entry) for entry in journal.entries]
    for begin in range(0, len(journal.entries), 7):
        fresh = SpanEncoder(journal)
        for entry, expected in list(zip(journal.entries, per_entry, strict=True))[begin:]:
            assert await fresh.encode(entry) == expected


def test_ids_are_the_documented_digest():
    from whence_server.telemetry.spans.ids import SpanIds

    trace_id = bytes.fromhex(TRACE_ID)
    preimage = b"whence.v1.span\0" + trace_id + (2).to_bytes(4, "big") + b"g1" + b"\x03"
    preimage += (5).to_bytes(4, "big") + (9).to_bytes(4, "big")
    ids = SpanIds(trace_id, "g1")
    assert ids.get_decode_step_id(5, 9) == hashlib.sha256(preimage).digest()[:8]
    assert len({ids.get_generation_id(), ids.get_decode_id(0), ids.get_decode_step_id(0, 0)}) == 3


async def test_an_unsampled_generation_has_no_spans():
    journal = MemoryJournal()
    journal.append_generation("g", num_steps=3, flags=0)
    assert await encoded(journal) == []


async def test_a_deleted_generation_is_skipped(journal):
    journal.append_generation("g2", num_steps=2)
    journal.delete("g1")
    ids = {attributes(span)["whence.generation.id"] for span in await spans_of(journal)}
    assert ids == {"g2"}


async def test_a_generation_that_is_deleted_while_it_is_sent_has_no_more_spans(journal):
    encoder = SpanEncoder(journal)
    assert await encoder.encode(journal.entries[1])
    journal.delete("g1")
    assert [await encoder.encode(entry) for entry in journal.entries] == [[]] * len(journal.entries)


@pytest.mark.parametrize(
    ("step_spans", "num_sequences", "expected"),
    [(None, 2, [30, 30]), (0, 1, [0]), (7, 2, [4, 3]), (1000, 3, [30, 30, 30]), (1, 3, [1, 0, 0])],
)
async def test_step_spans_are_limited_for_each_generation(step_spans, num_sequences, expected):
    journal = MemoryJournal()
    journal.append_generation("g", num_steps=30, num_sequences=num_sequences)
    spans = await spans_of(journal, step_spans=step_spans)
    sequences = [attributes(span)["whence.sequence.index"] for span in named(spans, "decode_step")]
    assert [sequences.count(i) for i in range(num_sequences)] == expected
    decodes = [attributes(span) for span in named(spans, "decode")]
    assert [found["whence.decode.num_step_spans"] for found in decodes] == expected
    assert [found["whence.decode.num_steps"] for found in decodes] == [30] * num_sequences


async def test_first_and_last_steps_are_found_for_sequences_of_different_length():
    journal = MemoryJournal()
    journal.append("g", EntryKind.STARTED, started("g", num_sequences=4))
    for index in range(5):
        journal.append("g", EntryKind.PROMPT_STEP, step(index))
    lengths = [3, 400, 900, 0]
    for index in range(max(lengths)):
        for sequence, length in enumerate(lengths):
            if index < length:
                journal.append("g", EntryKind.STEP, step(index, sequence))
    journal.append("g", EntryKind.FINISHED, finished(900, 4))
    decodes = named(await spans_of(journal), "decode")
    found = {
        attributes(span)["whence.sequence.index"]: attributes(span)["whence.decode.num_steps"]
        for span in decodes
    }
    assert found == {0: 3, 1: 400, 2: 900}


@pytest.mark.parametrize(("step_spans", "num_spans", "at_most"), [(None, 2, 40), (1_000, 3, 900)])
async def test_the_end_of_a_long_generation_costs_short_reads(
    monkeypatch, step_spans, num_spans, at_most
):
    """Two short ones; and, after a restart, a block's steps and every step once."""
    journal = MemoryJournal()
    journal.append_generation("g", num_steps=2_000)
    encoder = SpanEncoder(journal, step_spans)
    for entry in journal.entries[:-2]:
        await encoder.encode(entry)
    num_read = 0
    read = journal.read

    async def counted(*arguments):
        nonlocal num_read
        entries = await read(*arguments)
        num_read += len(entries)
        return entries

    monkeypatch.setattr(journal, "read", counted)
    assert len(await encoder.encode(journal.entries[-2])) == num_spans
    assert num_read < 40
    num_read = 0
    restarted = SpanEncoder(journal, step_spans)
    assert len(await restarted.encode(journal.entries[-2])) == num_spans
    assert num_read < 2_000 + at_most


async def test_an_unreadable_entry_is_an_error_that_names_it(journal):
    broken = journal.entries[1]._replace(payload=b"\xff\xff")
    with pytest.raises(UnreadableEntryError, match=r"entry 2 .*'g1', STEP"):
        await SpanEncoder(journal).encode(broken)
    bad_call = call("g", trace_id="zz").SerializeToString()
    entry = journal.entries[-1]._replace(payload=bad_call)
    with pytest.raises(UnreadableEntryError, match="CALL"):
        await SpanEncoder(journal).encode(entry)


async def test_an_unreadable_start_is_reported_once_and_its_steps_are_skipped(journal):
    bad = started("g1", trace_id="0" * 32).SerializeToString()
    start = journal.entries[0] = journal.entries[0]._replace(payload=bad)
    encoder = SpanEncoder(journal)
    with pytest.raises(UnreadableEntryError, match=r"entry 1 .*STARTED.* is not a W3C id"):
        await encoder.encode(start)
    spans = [only_span(p) for entry in journal.entries[1:] for p in await encoder.encode(entry)]
    assert [span.name for span in spans] == ["whence.v1.GenerationService/Generate"]


RUN = generation_pb2.TrainingRunRef(
    training_run_id="6f1c2f0e-1d2b-4c57-9a41-0c3f5f7f9d10",
    trace_id="4bf92f3577b34da6a3ce929d0e0e4736",
    span_id="00f067aa0ba902b7",
    step=700,
    record_head="ab" * 32,
)


async def _genai_span(**fields: object) -> Span:
    journal = MemoryJournal()
    journal.append("g", EntryKind.STARTED, started("g", **fields))
    journal.append("g", EntryKind.FINISHED, finished(0))
    return named(await spans_of(journal), "text_completion demo")[0]


async def test_the_genai_span_links_to_the_training_run():
    span = await _genai_span(training_run=RUN)
    (link,) = span.links
    assert (link.trace_id.hex(), link.span_id.hex()) == (RUN.trace_id, RUN.span_id)
    assert link.flags == 0x300  # whether it was sampled is not known; it is another process's
    told = attributes(span)
    assert told["whence.training.run_id"] == RUN.training_run_id
    assert told["whence.training.trace_id"] == RUN.trace_id
    assert told["whence.training.span_id"] == RUN.span_id
    assert told["whence.training.step.number"] == 700


@pytest.mark.parametrize("ids", [{}, {"trace_id": "xyz"}, {"trace_id": "0" * 32}])
async def test_a_training_run_without_span_ids_makes_attributes_and_no_link(ids):
    run = generation_pb2.TrainingRunRef(training_run_id="r", span_id=RUN.span_id, **ids)
    span = await _genai_span(training_run=run)
    assert not span.links
    assert attributes(span)["whence.training.run_id"] == "r"
    assert attributes(span)["whence.training.step.number"] == 0


FORK = generation_pb2.Fork(
    parent_generation_id="g0",
    sequence_index=1,
    step=2,
    num_forced_steps=3,
    changed_settings=["decoding.sample.temperature"],
    parent_trace_id=TRACE_ID,
    parent_span_id=server_span_id("g0"),
)


async def test_a_branch_links_to_the_genai_span_of_its_parent():
    span = await _genai_span(fork=FORK)
    journal = MemoryJournal()
    journal.append_generation("g0", num_steps=1)
    parent = named(await spans_of(journal), "text_completion demo")[0]
    (link,) = span.links
    assert (link.trace_id, link.span_id) == (parent.trace_id, parent.span_id)
    told = {k: v for k, v in attributes(span).items() if k.startswith("whence.fork.")}
    assert told == {
        "whence.fork.parent.generation_id": "g0",
        "whence.fork.parent.trace_id": TRACE_ID,
        "whence.fork.sequence_index": 1,
        "whence.fork.step": 2,
        "whence.fork.num_forced_steps": 3,
        "whence.fork.changes_prompt": False,
        "whence.fork.changed_settings": ["decoding.sample.temperature"],
    }


async def test_given_steps_of_a_branch_are_told_as_given():
    journal = MemoryJournal()
    greedy = generation_pb2.Decoding(greedy=generation_pb2.Greedy())
    journal.append("g", EntryKind.STARTED, started("g", fork=FORK, effective_decoding=greedy))
    for index in range(5):
        bare = step(index)
        bare.ClearField("draw")
        journal.append("g", EntryKind.STEP, bare)
    spans = named(await spans_of(journal), "decode_step")
    summaries = [attributes(span)["whence.step.summary"] for span in spans]
    assert [", given" in it for it in summaries] == [True] * 3 + [False] * 2
    assert ["taken greedily" in it for it in summaries] == [False] * 3 + [True] * 2


async def test_without_a_training_run_there_is_no_link():
    span = await _genai_span()
    assert not span.links
    assert not [key for key in attributes(span) if key.startswith("whence.training.")]
