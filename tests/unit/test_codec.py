"""Encoding to protobuf bytes, read back with the generated classes."""

import dataclasses
import math
import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from whence.v1 import call_pb2, generation_pb2, step_pb2
from whence_server.domain.chat import ChatInput, ChatMessage, ChatRecord
from whence_server.domain.constraints import Constraint, GrammarSyntax, Language
from whence_server.domain.decoding import (
    MAX_SEED,
    Configured,
    Decoding,
    FinishReason,
    GenerationDefaults,
    Strategy,
    TraceDetail,
    TraceOptions,
)
from whence_server.domain.errors import Code
from whence_server.domain.generation import CallRecord, Failure, Finished, SequenceResult, Started
from whence_server.domain.model import (
    AdapterInfo,
    Environment,
    ModelInfo,
    NamedAdapter,
    TextFiles,
)
from whence_server.domain.steps import (
    Candidates,
    Decision,
    Draw,
    Internals,
    ProcessorEffects,
    RequestedLogprobs,
    Step,
    Timing,
)
from whence_server.domain.tracing import TraceContext
from whence_server.journal import codec
from whence_server.rpc.constraints import convert_constraint

uint32 = st.integers(0, 2**32 - 1)
float32 = st.floats(width=32, allow_nan=False)
few = {"max_size": 12}


def optional(strategy):
    return st.none() | strategy


steps = st.builds(
    Step,
    uint32,
    uint32,
    st.builds(
        Decision,
        uint32,
        optional(float32),
        optional(float32),
        optional(uint32),
        optional(float32),
        optional(float32),
        optional(
            st.builds(
                Candidates,
                st.lists(uint32, **few),
                st.lists(float32, **few),
                st.lists(float32, **few),
            )
        ),
        optional(
            st.builds(
                ProcessorEffects,
                st.lists(uint32, **few),
                st.lists(float32, **few),
                st.lists(float32, **few),
            )
        ),
        optional(st.builds(Draw, float32, optional(uint32), optional(float32))),
        optional(
            st.builds(
                Internals,
                st.lists(uint32, **few),
                st.lists(float32, **few),
                optional(float32),
                st.lists(float32, **few),
                st.lists(uint32, **few),
                optional(float32),
            )
        ),
        optional(
            st.builds(
                RequestedLogprobs,
                st.lists(float32, min_size=1, max_size=12),
                st.lists(float32, **few),
            )
        ),
    ),
    st.text(),
    uint32,
    uint32,
    optional(st.builds(Timing, *[st.integers(0, 2**63 - 1)] * 3, uint32, uint32)),
)


def read(message, fields, renamed=()):
    """Return fields as a reader of the contract sees them: None if absent."""
    values = []
    for name in fields:
        field = message.DESCRIPTOR.fields_by_name[dict(renamed).get(name, name)]
        value = getattr(message, field.name)
        if field.has_presence and not message.HasField(field.name):
            value = None
        elif field.is_repeated:
            value = list(value)
        values.append(value)
    return values


def parts(message, name, kind):
    return kind(*read(getattr(message, name), kind._fields)) if message.HasField(name) else None


@given(steps)
def test_step_round_trip_keeps_all_fields(step):
    message = step_pb2.Step.FromString(codec.encode_step(step))
    decision = Decision(
        *read(message, Decision._fields[:6]),
        candidates=parts(message, "candidates", Candidates),
        effects=parts(message, "processors", ProcessorEffects),
        draw=parts(message, "draw", Draw),
        internals=parts(message, "internals", Internals),
        requested_logprobs=parts(message, "requested_logprobs", RequestedLogprobs),
    )
    back = Step(
        message.sequence_index,
        message.index,
        decision,
        message.text,
        message.text_begin_byte,
        message.text_end_byte,
        parts(message, "timing", Timing),
    )
    assert back == step


def test_numbers_are_the_nearest_float32_and_a_removed_candidate_is_minus_infinity():
    candidates = Candidates([1, 2], [-0.1, -0.2], [0.0, -math.inf])
    step = Step(0, 0, Decision(1, 0.1, candidates=candidates), "", 0, 0, None)
    message = step_pb2.Step.FromString(codec.encode_step(step))
    assert message.logprob == struct.unpack("f", struct.pack("f", 0.1))[0]
    assert list(message.candidates.sampling_logprobs) == [0.0, -math.inf]


MODEL = ModelInfo(
    name="tiny",
    architecture="GPT2LMHeadModel",
    num_parameters=10,
    num_layers=2,
    vocabulary_size=64,
    max_context_length=128,
    model_digest="m" * 64,
    tokenizer_digest="t" * 64,
    weights_digest="w" * 64,
    files=(),
    loaded_files=(),
    batched=True,
    environment=Environment("0.1", "2.13", "5.20", "float32", "cpu", 2, "sdpa", "packed"),
    defaults=GenerationDefaults(),
    text=TextFiles("{}", None, {}),
)
CONTEXT = TraceContext("a" * 32, "b" * 16, "c" * 16, 1, "vendor=1")


def started(**changes):
    base = Started(
        generation_id="00000000-0000-4000-8000-000000000001",
        trace_context=CONTEXT,
        start_time_ns=1_700_000_000_123_456_789,
        model=MODEL,
        prompt="a prompt ☃",
        prompt_token_ids=(5, 6, 7),
        decoding=Decoding(Strategy.GREEDY, 16),
        trace=TraceOptions(TraceDetail.DECISIONS, 0, prompt=True),
        processor_names=("temperature",),
        request_digest="d" * 64,
        labels={"team": "blue"},
        unavailable={"layers": "not offered"},
        source_method="value-norm-attention/1",
    )
    return generation_pb2.GenerationStarted.FromString(
        codec.encode_started(dataclasses.replace(base, **changes))
    )


def test_started_holds_all_settings_of_the_generation():
    message = started(chat=ChatRecord(ChatInput((ChatMessage("user", "Hi"),)), "default"))
    assert message.start_time.ToNanoseconds() == 1_700_000_000_123_456_789
    assert (message.trace_id, message.span_id) == ("a" * 32, "b" * 16)
    assert (message.parent_span_id, message.trace_flags) == ("c" * 16, 1)
    assert message.trace_state == "vendor=1"
    assert (message.model, message.model_digest) == ("tiny", "m" * 64)
    assert message.tokenizer_digest == "t" * 64
    assert message.environment.weights_digest == "w" * 64
    assert message.environment.attention_implementation == "sdpa"
    assert message.environment.step_kernels == "packed"
    assert list(message.prompt_token_ids) == [5, 6, 7]
    assert list(message.processor_names) == ["temperature"]
    assert dict(message.labels) == {"team": "blue"}
    assert dict(message.unavailable) == {"layers": "not offered"}
    assert message.source_method == "value-norm-attention/1"
    assert message.prompt == "a prompt ☃"
    assert message.request_digest == "d" * 64
    assert message.operation == "chat"
    assert message.effective_trace.detail == generation_pb2.TRACE_DETAIL_DECISIONS
    assert message.effective_trace.HasField("num_candidates")
    assert message.effective_trace.prompt


def test_started_holds_the_adapter_that_was_named():
    assert not started().HasField("adapter")
    identity = AdapterInfo("LORA", "1" * 64, "the/base", "2" * 64)
    message = started(adapter=NamedAdapter("tone", identity, "3" * 64, ()))
    assert message.adapter == generation_pb2.AppliedAdapter(
        name="tone",
        peft_type="LORA",
        digest="1" * 64,
        base="the/base",
        base_model_digest="2" * 64,
        weights_digest="3" * 64,
    )


@pytest.mark.parametrize("strategy", Strategy)
def test_effective_decoding_sets_every_field_of_its_strategy(strategy):
    constraint = Constraint(Language.REGEX, "a+")
    decoding = Decoding(strategy, 16, seed=MAX_SEED, forced_token_ids=(1, 2), constraint=constraint)
    message = started(decoding=decoding).effective_decoding
    chosen = message.WhichOneof("strategy")
    assert chosen == strategy.value
    for part in (message, getattr(message, chosen)):
        for field in part.DESCRIPTOR.fields:
            if field.has_presence and field.containing_oneof in (None, _synthetic(field)):
                assert part.HasField(field.name), field.name
    assert message.sample.seed == (MAX_SEED if strategy is Strategy.SAMPLE else 0)
    if strategy is Strategy.FORCED:
        assert list(message.forced.tokens.token_ids) == [1, 2]
    if strategy is Strategy.BEAM_SEARCH:
        assert message.beam_search.early_stopping == generation_pb2.EARLY_STOPPING_WHEN_ENOUGH


def _synthetic(field):
    """Return the oneof that marks the presence of a proto3 `optional` field, else None."""
    oneof = field.containing_oneof
    return oneof if oneof is not None and oneof.name.startswith("_") else None


def test_decoding_settings_keep_their_values():
    message = codec.convert_decoding(
        Decoding(
            Strategy.SAMPLE,
            9,
            stop=("a", "☃"),
            stop_token_ids=(3,),
            logit_bias=((4, 0.5), (9, -1.0)),
            temperature=0.5,
            top_k=7,
        )
    )
    assert list(message.stop) == ["a", "☃"]
    assert list(message.stop_token_ids) == [3]
    assert dict(message.logit_bias) == {4: 0.5, 9: -1.0}
    assert (message.sample.temperature, message.sample.top_k) == (0.5, 7)


def test_configured_decoding_holds_every_setting_of_the_model():
    configured = Configured(
        sequence_biases=(((1, 2), 0.5), ((3,), -math.inf)),
        suppress_token_ids=(4,),
        begin_suppress_token_ids=(5,),
        begin_suppress_index=1,
        forced_bos_token_id=0,
        forced_eos_token_ids=(6, 7),
        top_h=0.5,
        renormalize_logits=True,
    )
    decoding = Decoding(Strategy.SAMPLE, 9, bad_word_ids=((8, 9),), configured=configured)
    message = started(decoding=decoding).configured_decoding
    assert [(list(b.token_ids), b.bias) for b in message.sequence_biases] == [
        ([1, 2], 0.5),
        ([3], -math.inf),
    ]
    assert [list(word.token_ids) for word in message.bad_words] == [[8, 9]]
    told = {field.name for field, _ in message.ListFields()}
    assert told == {field.name for field in message.DESCRIPTOR.fields}
    assert message.HasField("forced_bos_token_id")
    for name in ("suppress_token_ids", "begin_suppress_token_ids", "forced_eos_token_ids"):
        assert tuple(getattr(message, name)) == getattr(configured, name)
    assert (message.begin_suppress_index, message.top_h, message.renormalize_logits) == (1, 0.5, 1)


def test_configured_decoding_is_absent_without_settings():
    words = Decoding(Strategy.GREEDY, 9, bad_words=("fox",), bad_word_ids=((8, 9),))
    assert not started(decoding=words).HasField("configured_decoding")


def test_finished_round_trip_with_and_without_a_failure():
    finished = Finished(
        sequences=(
            SequenceResult(0, "text", (1, 2), FinishReason.STOP, "stop", logprob=-0.5),
            SequenceResult(1, "", (), FinishReason.FAILED),
        ),
        finish_reason=FinishReason.FAILED,
        num_prompt_tokens=3,
        num_generated_tokens=2,
        queue_ns=1,
        prefill_ns=2,
        decode_ns=3,
        end_time_ns=1_700_000_000_000_000_001,
    )
    message = generation_pb2.GenerationFinished.FromString(codec.encode_finished(finished))
    assert not message.HasField("failure")
    assert not message.HasField("num_cached_prompt_tokens")
    assert message.end_time.ToNanoseconds() == 1_700_000_000_000_000_001
    first, second = message.sequences
    assert (first.text, list(first.token_ids), first.stop) == ("text", [1, 2], "stop")
    assert (first.HasField("logprob"), first.HasField("score")) == (True, False)
    assert second.finish_reason == generation_pb2.FINISH_REASON_FAILED
    failed = dataclasses.replace(finished, failure=Failure(Code.INTERNAL, "NON_FINITE", "NaN"))
    message = generation_pb2.GenerationFinished.FromString(codec.encode_finished(failed))
    assert (message.failure.code, message.failure.reason) == (13, "NON_FINITE")
    read = dataclasses.replace(finished, num_prefill_chunks=1, num_cached_prompt_tokens=0)
    message = generation_pb2.GenerationFinished.FromString(codec.encode_finished(read))
    assert message.HasField("num_cached_prompt_tokens")


@pytest.mark.parametrize("reason", FinishReason)
def test_finish_reasons_equal_the_contracts_values(reason):
    assert generation_pb2.FinishReason.Name(reason.value) == f"FINISH_REASON_{reason.name}"


@pytest.mark.parametrize("detail", TraceDetail)
def test_trace_details_equal_the_contracts_values(detail):
    message = codec.convert_trace(TraceOptions(detail))
    assert generation_pb2.TraceDetail.Name(message.detail) == f"TRACE_DETAIL_{detail.name}"


def test_a_call_on_a_unix_socket_has_no_port():
    call = CallRecord(CONTEXT, "whence.v1.S/M", 5, 10**18 + 7, 5, "g", "/run/whence.sock", None)
    message = call_pb2.Call.FromString(codec.encode_call(call))
    assert not message.HasField("server_port")
    assert message.end_time.ToNanoseconds() == 10**18 + 7
    assert (message.method, message.status_code) == ("whence.v1.S/M", 5)
    call = dataclasses.replace(call, server_port=0)
    assert call_pb2.Call.FromString(codec.encode_call(call)).HasField("server_port")


@pytest.mark.parametrize(
    ("constraint", "wanted"),
    [
        (Constraint(Language.JSON_SCHEMA, "{}"), generation_pb2.Constraint(json_schema="{}")),
        (Constraint(Language.REGEX, "a+"), generation_pb2.Constraint(regex="a+")),
        (
            Constraint(Language.GRAMMAR, "root ::= x", GrammarSyntax.EBNF),
            generation_pb2.Constraint(
                grammar=generation_pb2.Grammar(
                    text="root ::= x", syntax=generation_pb2.GRAMMAR_SYNTAX_EBNF
                )
            ),
        ),
    ],
)
def test_a_constraint_is_recorded_as_the_request_gave_it(constraint, wanted):
    decoding = Decoding(Strategy.GREEDY, 16, constraint=constraint)
    assert started(decoding=decoding).effective_decoding.constraint == wanted
    assert convert_constraint(wanted) == constraint
