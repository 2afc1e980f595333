"""Encoding of the domain's types as protobuf bytes, which the journal stores and streams send.

Values that are None are absent in the message. Each function serialises once: the bytes are hashed
and kept, and never serialised again from a parsed message.
"""

from typing import Any

from google.protobuf.duration_pb2 import Duration
from google.protobuf.message import Message
from google.protobuf.timestamp_pb2 import Timestamp

from whence.v1 import call_pb2, generation_pb2, step_pb2
from whence_server.domain.decoding import (
    DECODING_OPTIONS,
    TRACE_OPTIONS,
    Decoding,
    FinishReason,
    Strategy,
    TraceOptions,
)
from whence_server.domain.forking import Branch
from whence_server.domain.generation import (
    CallError,
    CallRecord,
    Failure,
    Finished,
    HttpExchange,
    RecordedOrigin,
    SequenceResult,
    Started,
)
from whence_server.domain.model import ModelInfo, NamedAdapter
from whence_server.domain.options import Kind, Option
from whence_server.domain.steps import (
    BeamRound,
    Candidates,
    Draw,
    Internals,
    ProcessorEffects,
    Step,
    Timing,
)
from whence_server.journal.chat_codec import (
    convert_chat_record,
    convert_parsed_call,
    convert_reasoning,
)
from whence_server.journal.constraint_codec import fill_constraint
from whence_server.journal.observation_codec import (
    convert_observation,
    convert_report,
    find_upstream,
)


def encode_step(step: Step) -> bytes:
    """Return a serialised whence.v1.Step; it is optimised, because every token needs one.

    Filling submessages in place takes half the time of passing them to a constructor.
    """
    decision = step.decision
    proto = step_pb2.Step(
        sequence_index=step.sequence_index,
        index=step.index,
        token_id=decision.token_id,
        text=step.text,
        text_begin_byte=step.text_begin_byte,
        text_end_byte=step.text_end_byte,
        logprob=decision.logprob,
        sampling_logprob=decision.sampling_logprob,
        rank=decision.rank,
        entropy=decision.entropy,
        sampling_entropy=decision.sampling_entropy,
    )
    if decision.candidates is not None:
        _fill_candidates(proto.candidates, decision.candidates)
    if decision.effects is not None:
        _fill_effects(proto.processors, decision.effects)
    if decision.draw is not None:
        _fill_draw(proto.draw, decision.draw)
    if step.timing is not None:
        _fill_timing(proto.timing, step.timing)
    if decision.internals is not None:
        _fill_internals(proto.internals, decision.internals)
    if decision.requested_logprobs is not None:
        requested = decision.requested_logprobs
        proto.requested_logprobs.logprobs.extend(requested.logprobs)
        proto.requested_logprobs.sampling_logprobs.extend(requested.sampling_logprobs)
    return proto.SerializeToString()


def encode_beam_round(beam_round: BeamRound) -> bytes:
    """Return a serialised whence.v1.BeamRound."""
    proto = generation_pb2.BeamRound(index=beam_round.index)
    for parent, token_id, logprob, score, kept, finished in beam_round.continuations:
        proto.continuations.add(
            parent=parent,
            token_id=token_id,
            logprob=logprob,
            score=score,
            kept=kept,
            finished=finished,
        )
    _fill_timing(proto.timing, beam_round.timing)
    return proto.SerializeToString()


def encode_started(started: Started) -> bytes:
    """Return a serialised whence.v1.GenerationStarted."""
    context, model = started.trace_context, started.model
    return generation_pb2.GenerationStarted(
        generation_id=started.generation_id,
        trace_id=context.trace_id,
        span_id=context.span_id,
        parent_span_id=context.parent_span_id,
        trace_flags=context.trace_flags,
        trace_state=context.trace_state,
        start_time=make_timestamp(started.start_time_ns),
        model=model.name,
        model_digest=model.model_digest,
        tokenizer_digest=model.tokenizer_digest,
        environment=convert_environment(model),
        prompt=started.prompt,
        prompt_token_ids=started.prompt_token_ids,
        effective_decoding=_convert_effective(started),
        effective_trace=convert_trace(started.trace),
        processor_names=started.processor_names,
        request_digest=started.request_digest,
        labels=started.labels,
        source_method=started.source_method,
        unavailable=started.unavailable,
        operation=started.operation,
        training_run=convert_training_run(model),
        configured_decoding=convert_configured(started.decoding),
        adapter=None if started.adapter is None else _convert_adapter(started.adapter),
        constraint_engine=started.constraint_engine,
        chat=None if started.chat is None else convert_chat_record(started.chat),
        observation=None
        if started.observation is None
        else convert_observation(started.observation),
        upstream=find_upstream(model),
        upstream_parameters_json=started.upstream_parameters_json,
        recorded=None if started.recorded is None else _convert_origin(started.recorded),
        owner=started.owner,
        unrecorded_reason=started.unrecorded_reason,
        content=generation_pb2.ContentPolicy.ValueType(started.trace.content.value),
        num_prompt_tokens=len(started.prompt_token_ids),
        fork=None if started.branch is None else _convert_branch(started.branch),
    ).SerializeToString()


def _convert_effective(started: Started) -> generation_pb2.Decoding:
    proto = convert_decoding(started.decoding)
    if started.recorded is not None and proto.HasField("sample"):
        # The other process drew, by a generator of its own.
        proto.sample.ClearField("seed")
    return proto


def _convert_origin(origin: RecordedOrigin) -> generation_pb2.RecordedElsewhere:
    return generation_pb2.RecordedElsewhere(
        library=origin.library,
        num_prompts=origin.num_prompts,
        prompt_index=origin.prompt_index,
    )


def _convert_branch(branch: Branch) -> generation_pb2.Fork:
    origin = branch.origin
    return generation_pb2.Fork(
        parent_generation_id=origin.parent_generation_id,
        sequence_index=origin.sequence_index,
        step=origin.step,
        num_forced_steps=branch.num_forced_steps,
        replaced_token_id=origin.replaced_token_id,
        changes_prompt=branch.changes_prompt,
        changed_settings=branch.changed_settings,
        parent_decoding=generation_pb2.Decoding.FromString(branch.parent_decoding),
        parent_trace_id=origin.parent_trace_id,
        parent_span_id=origin.parent_span_id,
        first_draw_sequence=branch.first_draw_sequence,
    )


def encode_finished(finished: Finished) -> bytes:
    """Return a serialised whence.v1.GenerationFinished."""
    return generation_pb2.GenerationFinished(
        sequences=[_convert_sequence(result) for result in finished.sequences],
        finish_reason=_convert_finish_reason(finished.finish_reason),
        num_prompt_tokens=finished.num_prompt_tokens,
        num_generated_tokens=finished.num_generated_tokens,
        queue_ns=finished.queue_ns,
        prefill_ns=finished.prefill_ns,
        decode_ns=finished.decode_ns,
        end_time=make_timestamp(finished.end_time_ns),
        failure=None if finished.failure is None else _convert_failure(finished.failure),
        num_prefill_chunks=finished.num_prefill_chunks,
        num_cached_prompt_tokens=finished.num_cached_prompt_tokens,
        upstream=None if finished.upstream is None else convert_report(finished.upstream),
    ).SerializeToString()


def encode_call(call: CallRecord) -> bytes:
    """Return a serialised whence.v1.Call."""
    context = call.trace_context
    return call_pb2.Call(
        trace_id=context.trace_id,
        span_id=context.span_id,
        parent_span_id=context.parent_span_id,
        trace_flags=context.trace_flags,
        trace_state=context.trace_state,
        method=call.method,
        start_time=make_timestamp(call.start_time_ns),
        end_time=make_timestamp(call.end_time_ns),
        status_code=call.status_code,
        generation_id=call.generation_id,
        server_address=call.server_address,
        server_port=call.server_port,
        error=None if call.error is None else _convert_call_error(call.error),
        http=None if call.http is None else _convert_http(call.http),
        caller_id=call.caller_id,
    ).SerializeToString()


def _convert_http(exchange: HttpExchange) -> call_pb2.HttpExchange:
    return call_pb2.HttpExchange(
        method=exchange.method, route=exchange.route, status_code=exchange.status_code
    )


def convert_decoding(decoding: Decoding) -> generation_pb2.Decoding:
    """Effective settings, every default filled in."""
    proto = generation_pb2.Decoding()
    strategy_name = decoding.strategy.value
    getattr(proto, strategy_name).SetInParent()
    for option in DECODING_OPTIONS:
        if not option.strategy_name:
            _set_option(proto, option, getattr(decoding, option.name))
        elif option.strategy_name == strategy_name:
            message = getattr(proto, strategy_name)
            _set_option(message, option, getattr(decoding, option.name))
    if decoding.strategy is Strategy.FORCED:
        proto.forced.tokens.token_ids.extend(decoding.forced_token_ids)
        # Present even where the continuation is empty.
        proto.forced.tokens.SetInParent()
    return proto


def convert_configured(decoding: Decoding) -> generation_pb2.ConfiguredDecoding | None:
    """Convert the settings of the model's generation config alone; None if there are none."""
    configured = decoding.configured
    proto = generation_pb2.ConfiguredDecoding(
        sequence_biases=[
            generation_pb2.SequenceBias(token_ids=token_ids, bias=bias)
            for token_ids, bias in configured.sequence_biases
        ],
        # A request's own are on record as text.
        bad_words=[]
        if decoding.bad_words
        else [generation_pb2.TokenInput(token_ids=word) for word in decoding.bad_word_ids],
        suppress_token_ids=configured.suppress_token_ids,
        begin_suppress_token_ids=configured.begin_suppress_token_ids,
        begin_suppress_index=configured.begin_suppress_index,
        forced_bos_token_id=configured.forced_bos_token_id,
        forced_eos_token_ids=configured.forced_eos_token_ids,
        top_h=configured.top_h,
        renormalize_logits=configured.renormalize_logits,
    )
    return proto if proto.ByteSize() else None


def convert_trace(trace: TraceOptions) -> generation_pb2.TraceOptions:
    """Return the granted trace options as the contract's message."""
    proto = generation_pb2.TraceOptions()
    for option in TRACE_OPTIONS:
        _set_option(proto, option, getattr(trace, option.name))
    return proto


def convert_environment(model: ModelInfo) -> generation_pb2.Environment:
    """Convert the environment on which the numbers depend."""
    environment = model.environment
    return generation_pb2.Environment(
        whence_version=environment.whence_version,
        torch_version=environment.torch_version,
        transformers_version=environment.transformers_version,
        dtype=environment.dtype,
        device=environment.device,
        num_threads=environment.num_threads,
        attention_implementation=environment.attention_implementation,
        weights_digest=model.weights_digest,
        step_kernels=environment.step_kernels,
    )


def convert_training_run(model: ModelInfo) -> generation_pb2.TrainingRunRef | None:
    """Convert the training run of the model's weights; None if it is unknown."""
    run = model.training_run
    if run is None:
        return None
    return generation_pb2.TrainingRunRef(
        training_run_id=run.training_run_id,
        trace_id=run.trace_id,
        span_id=run.span_id,
        step=run.step,
        record_head=run.record_head,
    )


def _convert_adapter(adapter: NamedAdapter) -> generation_pb2.AppliedAdapter:
    identity = adapter.identity
    return generation_pb2.AppliedAdapter(
        name=adapter.name,
        peft_type=identity.peft_type,
        digest=identity.digest,
        base=identity.base,
        base_model_digest=identity.base_model_digest,
        weights_digest=adapter.weights_digest,
    )


def make_timestamp(time_ns: int) -> Timestamp:
    """Convert Unix nanoseconds to a Timestamp, exactly."""
    seconds, nanos = divmod(time_ns, 10**9)
    return Timestamp(seconds=seconds, nanos=nanos)


def make_duration(seconds: float) -> Duration:
    """Convert seconds to a Duration."""
    whole, nanos = divmod(round(seconds * 1e9), 10**9)
    return Duration(seconds=whole, nanos=nanos)


def _fill_candidates(proto: step_pb2.Candidates, candidates: Candidates) -> None:
    # None is absent, and an empty list of candidates is not None.
    proto.SetInParent()
    proto.token_ids.extend(candidates.token_ids)
    proto.logprobs.extend(candidates.logprobs)
    proto.sampling_logprobs.extend(candidates.sampling_logprobs)


def _fill_effects(proto: step_pb2.ProcessorEffects, effects: ProcessorEffects) -> None:
    proto.SetInParent()
    proto.num_kept.extend(effects.num_kept)
    proto.removed_mass.extend(effects.removed_mass)
    proto.token_logprobs.extend(effects.token_logprobs)


def _fill_draw(proto: step_pb2.Draw, draw: Draw) -> None:
    proto.noise = draw.noise
    if draw.runner_up_token_id is not None:
        proto.runner_up_token_id = draw.runner_up_token_id
    if draw.margin is not None:
        proto.margin = draw.margin


def _fill_timing(proto: step_pb2.StepTiming, timing: Timing) -> None:
    proto.elapsed_ns = timing.elapsed_ns
    proto.forward_ns = timing.forward_ns
    proto.select_ns = timing.select_ns
    proto.batch_size = timing.batch_size
    proto.context_length = timing.context_length


def _fill_internals(proto: step_pb2.Internals, internals: Internals) -> None:
    proto.SetInParent()
    proto.source_positions.extend(internals.source_positions)
    proto.source_shares.extend(internals.source_shares)
    if internals.self_share is not None:
        proto.self_share = internals.self_share
    if internals.sink_share is not None:
        proto.sink_share = internals.sink_share
    proto.layer_shares.extend(internals.layer_shares)
    proto.layer_leaders.extend(internals.layer_leaders)


def _set_option(message: Message, option: Option, value: Any) -> None:
    if value is None:
        return
    match option.kind:
        case Kind.LIST:
            getattr(message, option.name).extend(value)
        case Kind.MAP:
            getattr(message, option.name).update(value)
        case Kind.CHOICE:
            setattr(message, option.name, value.value)
        case Kind.CONSTRAINT:
            fill_constraint(getattr(message, option.name), value)
        case Kind.SCALAR:
            setattr(message, option.name, value)


def _convert_finish_reason(reason: FinishReason) -> generation_pb2.FinishReason.ValueType:
    return generation_pb2.FinishReason.ValueType(reason.value)


def _convert_sequence(result: SequenceResult) -> generation_pb2.SequenceResult:
    return generation_pb2.SequenceResult(
        sequence_index=result.sequence_index,
        text=result.text,
        token_ids=result.token_ids,
        finish_reason=_convert_finish_reason(result.finish_reason),
        stop=result.stop,
        logprob=result.logprob,
        score=result.score,
        constraint_complete=result.constraint_complete,
        tool_calls=[convert_parsed_call(parsed) for parsed in result.tool_calls],
        reasoning=convert_reasoning(result.reasoning),
    )


def _convert_call_error(error: CallError) -> call_pb2.CallError:
    return call_pb2.CallError(
        reason=error.reason,
        field=error.field,
        message=error.message,
        exception_type=error.exception_type,
    )


def _convert_failure(failure: Failure) -> generation_pb2.Failure:
    delay_s = failure.retry_after_s
    return generation_pb2.Failure(
        code=failure.code.value,
        reason=failure.reason,
        message=failure.message,
        retry_delay=None if delay_s is None else make_duration(delay_s),
    )
