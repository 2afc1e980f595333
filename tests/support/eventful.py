"""Journal and training record in which everything happens that telemetry tells about."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import training_records as records
from google.protobuf.duration_pb2 import Duration
from telemetry_journal import (
    CALLER_SPAN_ID,
    START_NS,
    TRACE_ID,
    MemoryJournal,
    call,
    finished,
    started,
    step,
    timestamp,
)

from whence.v1 import audit_pb2, call_pb2, explanation_pb2, model_pb2, step_pb2, training_pb2
from whence.v1 import generation_pb2 as g
from whence.v1 import observation_pb2 as ob
from whence.v1 import occurrence_pb2 as o
from whence_server.domain.entries import EntryKind

STEP_SPANS = 3
"""Bound on step spans with which some steps of the journal are in blocks."""
DIGEST = "ab" * 32


@dataclass(frozen=True)
class Kept:
    tokens: Sequence[bytes] = tuple(f" t{number}".encode() for number in range(1100))


class Vocabularies:
    """Vocabulary of every tokenizer."""

    async def find(self, tokenizer_digest: str, position: int) -> Kept:
        return Kept()


def make_eventful_journal() -> MemoryJournal:
    """Return a journal of generations of every strategy and end."""
    journal = MemoryJournal()
    _append_sampled(journal)
    _append_searched(journal)
    _append_of_upstream(journal)
    _append_failed(journal)
    _append_stopped(journal)
    _append_cancelled(journal)
    error = call_pb2.CallError(
        reason="INVALID_REQUEST", field="decoding.max_new_tokens", message="it must be positive"
    )
    journal.append("", EntryKind.CALL, call("", status_code=3, error=error))
    _append_http(journal)
    _append_audit(journal)
    return journal


def _append_audit(journal: MemoryJournal) -> None:
    """Append a read with everything that can be on record, and a refusal of an unknown caller."""
    read = audit_pb2.AuditRecord(
        num_calls=3,
        action=audit_pb2.AUDIT_ACTION_READ_CONTENT,
        method="whence.v1.TraceService/GetGeneration",
        caller_id="alice",
        address="192.0.2.7",
        generation_id="sampled",
        reason="erasure request 4711",
        trace_id=TRACE_ID,
        span_id=records.SPAN_ID,
    )
    refused = audit_pb2.AuditRecord(
        num_calls=1,
        action=audit_pb2.AUDIT_ACTION_REFUSED,
        address="192.0.2.7",
        detail="expired",
        status_code=16,
        is_summary=True,
    )
    for record in (read, refused):
        journal.append("", EntryKind.AUDIT, record)


def _append_http(journal: MemoryJournal) -> None:
    """Append HTTP requests: one that was answered, one that was refused, one that failed."""
    refused = call_pb2.CallError(reason="INVALID_REQUEST", field="decoding.stop", message="64")
    failed = call_pb2.CallError(exception_type="RuntimeError")
    for code, status, error in ((0, 200, None), (3, 400, refused), (13, 500, failed)):
        http = call_pb2.HttpExchange(
            method="POST", route="/v1/chat/completions", status_code=status
        )
        fields = {"status_code": code, "error": error, "http": http}
        journal.append("", EntryKind.CALL, call("of-http", **fields))


def _append_sampled(journal: MemoryJournal) -> None:
    decoding = g.Decoding(
        sample=g.Sample(temperature=0.8, top_k=40, top_p=0.95, seed=7),
        max_new_tokens=64,
        num_return_sequences=2,
        stop=["\n\n"],
    )
    run = g.TrainingRunRef(
        training_run_id=records.RUN,
        trace_id=records.TRACE_ID,
        span_id=records.SPAN_ID,
        step=20,
    )
    start = started(
        "sampled",
        effective_decoding=decoding,
        prompt="The quick",
        operation="text_completion",
        training_run=run,
        adapter=g.AppliedAdapter(name="tone", digest="ad" * 32, weights_digest="ae" * 32),
        fork=g.Fork(
            parent_generation_id="parent",
            parent_trace_id="af" * 16,
            changed_settings=["decoding.stop"],
        ),
        request_digest=DIGEST,
        tokenizer_digest=DIGEST,
        environment=g.Environment(weights_digest=DIGEST),
        processor_names=["temperature", "top_p"],
        source_method="value-norm-attention/1",
        unavailable={"layers": "the model has none"},
        labels={"team": "search", "gen_ai.conversation.id": "c-17"},
    )
    journal.append("sampled", EntryKind.STARTED, start)
    for index in range(4):
        for sequence in range(2):
            journal.append("sampled", EntryKind.STEP, _make_step(index, sequence))
    durations = {"queue_ns": 2_000_000, "prefill_ns": 8_000_000, "decode_ns": 16_000_000}
    ending = finished(4, 2, num_prefill_chunks=2, num_cached_prompt_tokens=4, **durations)
    journal.append("sampled", EntryKind.FINISHED, ending)
    journal.append("sampled", EntryKind.CALL, call("sampled", 4))


def _make_step(index: int, sequence: int) -> step_pb2.Step:
    return step(
        index,
        sequence,
        logprob=-9.5 if index == 0 else -0.5,
        candidates=step_pb2.Candidates(
            token_ids=[5, 6], logprobs=[-1, -2], sampling_logprobs=[-1, -math.inf]
        ),
        processors=step_pb2.ProcessorEffects(
            num_kept=[100, 40], removed_mass=[0, 0.25], token_logprobs=[-1, -1.25]
        ),
        internals=step_pb2.Internals(
            source_positions=[2, 0],
            source_shares=[0.5, 0.25],
            self_share=0.125,
            sink_share=0.0625,
            layer_shares=[0.25, 0.75],
            layer_leaders=[0, 2],
        ),
    )


def _append_of_upstream(journal: MemoryJournal) -> None:
    """Append a generation of an upstream that tells text and logprobs, and no ids."""
    start = started(
        "of-upstream",
        observation=ob.Observation(
            token_ids=ob.TOKEN_ID_ORIGIN_NONE,
            distribution=ob.DISTRIBUTION_KIND_RAW,
            second_distribution=ob.SECOND_DISTRIBUTION_COMPUTED,
            seed=ob.SEED_ORIGIN_OURS,
            draw=ob.DRAW_ORIGIN_ENGINE,
            tables=ob.TABLE_COVERAGE_SOME_STEPS,
            weights=ob.WEIGHTS_ORIGIN_CLAIMED,
        ),
        upstream=model_pb2.UpstreamInfo(
            kind="vllm", version="0.32.0", url="http://127.0.0.1:8000/v1", model="smol"
        ),
    )
    journal.append("of-upstream", EntryKind.STARTED, start)
    for index in range(4):
        made = step_pb2.Step(
            index=index,
            text=" a",
            token_text=" a",
            logprob=-0.5,
            timing=step_pb2.StepTiming(elapsed_ns=(index + 1) * 1_000_000),
            candidates=step_pb2.Candidates(texts=[" a", " b"], text_logprobs=[-0.5, -1.5]),
        )
        journal.append("of-upstream", EntryKind.STEP, made)
    report = g.UpstreamReport(model="smol", fingerprint="fp_1", num_prompt_tokens=3)
    journal.append("of-upstream", EntryKind.FINISHED, finished(4, 1, upstream=report))


def _append_searched(journal: MemoryJournal) -> None:
    decoding = g.Decoding(
        beam_search=g.BeamSearch(num_beams=2),
        max_new_tokens=8,
        constraint=g.Constraint(json_schema="{}"),
    )
    start = started(
        "searched",
        effective_decoding=decoding,
        tokenizer_digest=DIGEST,
        processor_names=["constraint"],
        constraint_engine="llguidance/1.9.1",
    )
    journal.append("searched", EntryKind.STARTED, start)
    timing = step(0).timing
    rounds = g.BeamRound(index=0, timing=timing)
    rounds.continuations.add(kept=True, score=-1.5)
    rounds.continuations.add(finished=True, score=-2.5)
    journal.append("searched", EntryKind.BEAM_ROUND, rounds)
    journal.append("searched", EntryKind.STEP, step(0, draw=None))
    ending = finished(1)
    ending.sequences[0].score = -0.75
    ending.sequences[0].constraint_complete = False
    journal.append("searched", EntryKind.FINISHED, ending)
    address = {"server_address": "/run/whence.sock", "server_port": None}
    journal.append("searched", EntryKind.CALL, call("searched", 1, **address))


def _append_failed(journal: MemoryJournal) -> None:
    decoding = g.Decoding(greedy=g.Greedy(), max_new_tokens=8)
    chat = g.ChatRecord(
        input=g.ChatInput(
            messages=[g.ChatMessage(role="user", content="Hi")], tools_json='[{"name": "f"}]'
        )
    )
    start = started("failed", effective_decoding=decoding, chat=chat)
    journal.append("failed", EntryKind.STARTED, start)
    failure = g.Failure(code=13, reason="NON_FINITE_LOGITS", message="the logits are NaN")
    ending = finished(0, finish_reason=g.FINISH_REASON_FAILED, failure=failure)
    journal.append("failed", EntryKind.FINISHED, ending)
    error = call_pb2.CallError(exception_type="RuntimeError")
    journal.append("failed", EntryKind.CALL, call("failed", 0, status_code=13, error=error))


def _append_stopped(journal: MemoryJournal) -> None:
    """Append a generation of which a stop string ended one sequence, and a token the other."""
    journal.append("stopped", EntryKind.STARTED, started("stopped", num_sequences=2))
    for sequence in range(2):
        journal.append("stopped", EntryKind.STEP, step(0, sequence))
    ending = finished(1, 2)
    ending.sequences[0].stop, ending.sequences[1].stop = "\n\n", "<|im_end|>"
    journal.append("stopped", EntryKind.FINISHED, ending)


def _append_cancelled(journal: MemoryJournal) -> None:
    """Append a generation to which everything happened that can be on record."""
    caller = o.Caller(
        method="whence.v1.GenerationService/CancelGeneration",
        trace_id=TRACE_ID,
        span_id=records.SPAN_ID,
        parent_span_id=CALLER_SPAN_ID,
        address="127.0.0.1",
        port=40_000,
    )
    happened = {
        "reader_left": o.ReaderLeft(caller=caller, last_offset=3, status_code=1, num_readers=0),
        "reader_joined": o.ReaderJoined(caller=caller, after_offset=3, num_readers=1),
        "engine_ended": o.EngineEnded(detail="killed by SIGKILL"),
        "engine_resumed": o.EngineResumed(),
        "max_duration_passed": o.MaxDurationPassed(max_duration=Duration(seconds=2)),
    }
    cancels = (
        o.GenerationCancelled(caller=caller),
        o.GenerationCancelled(without_reader=Duration(seconds=30)),
    )
    journal.append("cancelled", EntryKind.STARTED, started("cancelled"))
    journal.append("cancelled", EntryKind.STEP, step(0))
    time = timestamp(START_NS + 15_000_000)
    for kind, message in [*happened.items(), *(("cancelled", it) for it in cancels)]:
        occurrence = o.Occurrence(time=time, num_steps=1, **{kind: message})
        journal.append("cancelled", EntryKind.OCCURRENCE, occurrence)
    ending = finished(1, finish_reason=g.FINISH_REASON_CANCELLED)
    journal.append("cancelled", EntryKind.FINISHED, ending)
    explained = o.GenerationExplained(caller=caller, explanation=make_explanation())
    occurrence = o.Occurrence(time=time, num_steps=1, explained=explained)
    journal.append("cancelled", EntryKind.OCCURRENCE, occurrence)


def make_explanation() -> explanation_pb2.Explanation:
    """Return an explanation of a generation's first step with everything that spans tell."""
    return explanation_pb2.Explanation(
        method=explanation_pb2.EXPLAIN_METHOD_LEAVE_ONE_OUT,
        method_version=1,
        span=explanation_pb2.ExplainedSpan(end_step=1, token_ids=[5], value=-0.5),
        segments=[explanation_pb2.ContextSegment(begin=0, end=2)],
        scores=[1.5],
        trust=explanation_pb2.ExplanationTrust(
            verdict=explanation_pb2.TRUST_VERDICT_HIGH,
            correlation=0.75,
            correlation_low=0.5,
            correlation_high=0.875,
            num_ablations=32,
        ),
        num_passes=2,
        elapsed_seconds=0.25,
        weights_digest=DIGEST,
    )


def make_eventful_training() -> list[training_pb2.TrainingEvent]:
    """Return the events of a run that was killed, resumed, and has values that are not finite."""
    start = records.started()
    start.started.initial_weights_digest = start.started.tokenizer_digest = DIGEST
    start.started.parent.training_run_id = records.RUN
    odd = records.step(2)
    odd.step.loss, odd.step.skipped = math.nan, True
    return [
        *(start, records.dataset(), records.attempt(), records.step(1), odd),
        *(records.evaluation(2), records.checkpoint(2)),
        *(records.attempt(2, resumed_step=2), records.step(3, 2), records.finished(3, 2)),
    ]
