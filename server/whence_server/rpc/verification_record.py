"""Conversion of a recorded generation from the contract's messages to a question."""

import struct
from collections.abc import Iterator, Sequence
from typing import Any

from google.protobuf.message import Message

from whence.v1 import generation_pb2, observation_pb2, step_pb2, verification_pb2
from whence_server.analysis.question import Question, RecordedIdentity, Unverifiable
from whence_server.domain.chat import ChatRecord, OutputForms
from whence_server.domain.content import ContentPolicy
from whence_server.domain.decoding import (
    DECODING_OPTIONS,
    Configured,
    Decoding,
    FinishReason,
    Strategy,
    TraceDetail,
)
from whence_server.domain.errors import FieldViolation
from whence_server.domain.generation import SequenceResult
from whence_server.domain.limits import Limits
from whence_server.domain.steps import (
    BeamContinuation,
    BeamRound,
    Candidates,
    Decision,
    Draw,
    ProcessorEffects,
    RequestedLogprobs,
    Step,
    Timing,
)
from whence_server.rpc.chats import convert_chat
from whence_server.rpc.conversions import read_options

MAX_RECORD_BYTES = 256 << 20
"""Size of a generation that is verified: some 250,000 steps."""
_MOST = {"max_new_tokens": 1 << 22, "num_beams": 256, "num_return_sequences": 1024}
"""Largest settings of a record that is verified; larger ones would take all memory."""
_NO_TIMING = Timing(0, 0, 0, 0, 0)


class UnverifiableError(Exception):
    """A record of which nothing can be said.

    Attributes:
        reason: cause, for programs.
    """

    def __init__(self, reason: Unverifiable, message: str) -> None:
        super().__init__(message)
        self.reason = reason
        self.message = message


def make_question(
    record: verification_pb2.GenerationRecord, *, every_step: bool = False
) -> Question:
    """Return the question about a recorded generation.

    Raises:
        UnverifiableError: nothing can be said about it.
    """
    _require_content(record)
    require_logprobs(record.started)
    try:
        return _read_question(record, every_step=every_step)
    except (ValueError, KeyError, TypeError, OverflowError, struct.error) as error:
        raise UnverifiableError(
            Unverifiable.RECORD_UNREADABLE, f"the record cannot be read: {error}"
        ) from error


def _read_question(record: verification_pb2.GenerationRecord, *, every_step: bool) -> Question:
    started, trace = record.started, record.started.effective_trace
    decoding = read_decoding(record)
    _check_sizes(decoding)
    # 0 is a record from before content policies, with everything.
    keeps_text = started.content in {0, ContentPolicy.FULL.value}
    return Question(
        generation_id=started.generation_id,
        identity=_read_identity(started),
        decoding=decoding,
        logprobs_only=started.HasField("upstream") or started.HasField("recorded"),
        # A prompt that its policy would not keep is a fault.
        prompt=started.prompt if keeps_text or started.prompt else None,
        chat=_read_chat(started) if keeps_text else None,
        is_token_input=False,
        prompt_token_ids=list(started.prompt_token_ids),
        processor_names=tuple(started.processor_names),
        keeps_text=keeps_text,
        prompt_decisions=[read_decision(step) for step in record.prompt_steps],
        steps=[_read_step(step) for step in record.steps],
        rounds=[_read_round(each) for each in record.beam_rounds],
        results=tuple(map(_read_result, record.finished.sequences)),
        finish_reason=FinishReason(record.finished.finish_reason),
        num_candidates=trace.num_candidates,
        every_step=every_step,
        detail=TraceDetail(trace.detail or TraceDetail.DECISIONS.value),
        logprob_token_ids=tuple(trace.logprob_token_ids),
        num_generated_tokens=record.finished.num_generated_tokens,
        start_time_ns=started.start_time.ToNanoseconds(),
        unread=tuple(list_unread(record)),
        contradictions=tuple(list_contradictions(started)),
    )


def list_unread(record: verification_pb2.GenerationRecord) -> Iterator[str]:
    """Yield the parts of a record that no replay computes, in words, with their numbers."""
    sequences = record.finished.sequences
    numbers = {
        "activations of {} steps": sum(step.HasField("internals") for step in record.steps),
        "tokens by their texts of {} steps": sum(
            bool(step.candidates.texts or step.token_text) for step in record.steps
        ),
        "tool calls of {} results": sum(bool(it.tool_calls) for it in sequences),
        "reasoning of {} results": sum(it.HasField("reasoning") for it in sequences),
        "whether {} results complete their constraint": sum(
            it.HasField("constraint_complete") for it in sequences
        ),
        "reasoning apart from the text of {} steps": sum(
            bool(step.reasoning_text) for step in record.steps
        ),
    }
    for words, number in numbers.items():
        if number:
            yield words.format(number)


def list_contradictions(started: generation_pb2.GenerationStarted) -> Iterator[str]:
    """Yield what a record says of itself as a branch and no engine makes, in words."""
    if not started.HasField("fork"):
        return
    fork, decoding = started.fork, started.effective_decoding
    given = fork.num_forced_steps
    if decoding.HasField("beam_search") and given:
        yield f"a beam search has no given tokens, and the record names {given}"
    if fork.step > given:
        yield f"the branch begins at step {fork.step}, and {given} steps were given"
    if not decoding.HasField("forced") and given > decoding.max_new_tokens:
        yield f"{given} steps were given, and max_new_tokens is {decoding.max_new_tokens}"


def require_logprobs(started: generation_pb2.GenerationStarted) -> None:
    """Check that logprobs of another program are those of the model itself.

    Raises:
        UnverifiableError: they are of another distribution, or of ids that a text was divided into.
    """
    if not (started.HasField("upstream") or started.HasField("recorded")):
        return
    told = started.observation
    if told.distribution == observation_pb2.DISTRIBUTION_KIND_NONE:
        raise UnverifiableError(
            Unverifiable.NO_LOGPROBS,
            "another program chose the tokens, and told no logprobs: nothing can be computed here",
        )
    raw = {
        observation_pb2.DISTRIBUTION_KIND_UNSPECIFIED,
        observation_pb2.DISTRIBUTION_KIND_RAW,
    }
    if told.distribution not in raw:
        raise UnverifiableError(
            Unverifiable.OTHER_DISTRIBUTION,
            "another program chose the tokens, and its logprobs are not those of the model's own "
            "distribution",
        )
    if told.token_ids == observation_pb2.TOKEN_ID_ORIGIN_RETOKENIZED:
        raise UnverifiableError(
            Unverifiable.NO_TOKEN_IDS,
            "the token ids were made of the output's text, and may be others than the program's",
        )


def _check_sizes(decoding: Decoding) -> None:
    """Check the settings that memory is taken for.

    Raises:
        ValueError: one is larger than any server takes.
    """
    for name, most in _MOST.items():
        if not 0 < getattr(decoding, name) <= most:
            raise ValueError(f"decoding.{name} is {getattr(decoding, name)}, expected 1 to {most}")


def _require_content(record: verification_pb2.GenerationRecord) -> None:
    """Check that the record has what a replay needs.

    Raises:
        UnverifiableError: it has not.
    """
    started = record.started
    if not record.HasField("finished"):
        raise UnverifiableError(
            Unverifiable.NOT_FINISHED,
            "the generation is still running: verify it when it has ended",
        )
    redacted: Sequence[Any] = (started, *record.steps, *record.finished.sequences)
    if any(message.redactions for message in redacted):
        raise UnverifiableError(
            Unverifiable.REDACTED,
            "parts of the texts were replaced before they were stored: the tokens are not on "
            "record",
        )
    if started.content == ContentPolicy.NONE.value:
        raise UnverifiableError(
            Unverifiable.CONTENT_NOT_KEPT,
            "the content policy of the record keeps no token ids (content: none)",
        )
    if not started.prompt_token_ids or not all(step.HasField("token_id") for step in record.steps):
        raise UnverifiableError(
            Unverifiable.NO_TOKEN_IDS, "the record lacks token ids of the prompt or of steps"
        )
    words = started.configured_decoding.bad_words or started.effective_decoding.bad_words
    if "bad_words" in started.processor_names and not words:
        raise UnverifiableError(
            Unverifiable.CONTENT_NOT_KEPT,
            "the bad words are not on record: the content policy keeps no text",
        )
    constrained = started.effective_decoding.HasField("constraint")
    has_language = started.effective_decoding.constraint.WhichOneof("language") is not None
    if (constrained and not has_language) or (started.constraint_engine and not constrained):
        raise UnverifiableError(
            Unverifiable.CONTENT_NOT_KEPT,
            "the constraint is not on record: the content policy keeps no text",
        )


def read_decoding(record: verification_pb2.GenerationRecord) -> Decoding:
    """Return the settings in effect, without what the model and its tokenizer add.

    Raises:
        ValueError: a value is none of the domain's.
    """
    effective = record.started.effective_decoding
    violations: list[FieldViolation] = []
    values = read_options(
        DECODING_OPTIONS, generation_pb2.GenerateRequest(decoding=effective), violations
    )
    if violations:
        raise ValueError(f"{violations[0].field} {violations[0].description}")
    strategy = Strategy(effective.WhichOneof("strategy") or "")
    given = {name: value for name, value in values.items() if value is not None}
    forced: tuple[int, ...] = ()
    if strategy is Strategy.FORCED:
        forced = tuple(effective.forced.tokens.token_ids) or tuple(
            step.token_id for step in record.steps
        )
    elif record.started.HasField("fork") and strategy is not Strategy.BEAM_SEARCH:
        forced = _read_given(record)
    given.setdefault("max_new_tokens", max(len(forced), 1))
    given["logit_bias"] = tuple(sorted(given.get("logit_bias", ())))
    configured = record.started.configured_decoding
    return Decoding(
        strategy=strategy,
        **given,
        bad_word_ids=tuple(tuple(word.token_ids) for word in configured.bad_words),
        forced_token_ids=forced,
        first_draw_sequence=record.started.fork.first_draw_sequence,
        configured=_read_configured(configured),
    )


def _read_given(record: verification_pb2.GenerationRecord) -> tuple[int, ...]:
    """Return the tokens that a branch was given, as its longest sequence has them."""
    most = record.started.fork.num_forced_steps
    given: dict[int, dict[int, int]] = {}
    for step in record.steps:
        if step.index < most:
            given.setdefault(step.sequence_index, {})[step.index] = step.token_id
    longest = max(given.values(), key=len, default={})
    return tuple(longest[index] for index in sorted(longest))


def _read_configured(configured: generation_pb2.ConfiguredDecoding) -> Configured:
    forced = configured.forced_bos_token_id
    return Configured(
        sequence_biases=tuple(
            (tuple(bias.token_ids), bias.bias) for bias in configured.sequence_biases
        ),
        suppress_token_ids=tuple(configured.suppress_token_ids),
        begin_suppress_token_ids=tuple(configured.begin_suppress_token_ids),
        begin_suppress_index=configured.begin_suppress_index,
        forced_bos_token_id=forced if configured.HasField("forced_bos_token_id") else None,
        forced_eos_token_ids=tuple(configured.forced_eos_token_ids),
        top_h=configured.top_h,
        renormalize_logits=configured.renormalize_logits,
    )


def _read_identity(started: generation_pb2.GenerationStarted) -> RecordedIdentity:
    environment = {
        field.name: str(value)
        for field, value in started.environment.ListFields()
        if field.name != "weights_digest"
    }
    return RecordedIdentity(
        started.model_digest,
        started.tokenizer_digest,
        started.environment.weights_digest,
        environment,
        started.adapter.name,
        started.adapter.weights_digest,
    )


def _read_chat(started: generation_pb2.GenerationStarted) -> ChatRecord | None:
    if not started.HasField("chat"):
        return None
    violations: list[FieldViolation] = []
    read = convert_chat(started.chat.input, "", Limits(), violations)
    return ChatRecord(read, started.chat.template_name, OutputForms())


def read_decision(step: step_pb2.Step) -> Decision:
    """Return a step's decision; a number that is not on record is None."""
    return Decision(
        token_id=step.token_id,
        logprob=_get(step, "logprob"),
        sampling_logprob=_get(step, "sampling_logprob"),
        rank=_get(step, "rank"),
        entropy=_get(step, "entropy"),
        sampling_entropy=_get(step, "sampling_entropy"),
        candidates=_read_candidates(step),
        effects=_read_effects(step),
        draw=_read_draw(step),
        requested_logprobs=RequestedLogprobs(
            list(step.requested_logprobs.logprobs), list(step.requested_logprobs.sampling_logprobs)
        )
        if step.HasField("requested_logprobs")
        else None,
    )


def _read_candidates(step: step_pb2.Step) -> Candidates | None:
    listed = step.candidates
    if not step.HasField("candidates") or len(listed.token_ids) != len(listed.logprobs):
        return None
    return Candidates(list(listed.token_ids), list(listed.logprobs), list(listed.sampling_logprobs))


def _read_effects(step: step_pb2.Step) -> ProcessorEffects | None:
    if not step.HasField("processors"):
        return None
    effects = step.processors
    return ProcessorEffects(
        list(effects.num_kept), list(effects.removed_mass), list(effects.token_logprobs)
    )


def _read_draw(step: step_pb2.Step) -> Draw | None:
    if not step.HasField("draw"):
        return None
    return Draw(step.draw.noise, _get(step.draw, "runner_up_token_id"), _get(step.draw, "margin"))


def _read_step(step: step_pb2.Step) -> Step:
    return Step(
        step.sequence_index,
        step.index,
        read_decision(step),
        step.text,
        step.text_begin_byte,
        step.text_end_byte,
        None,
    )


def _read_round(recorded: generation_pb2.BeamRound) -> BeamRound:
    return BeamRound(
        recorded.index,
        [
            BeamContinuation(
                each.parent, each.token_id, each.logprob, each.score, each.kept, each.finished
            )
            for each in recorded.continuations
        ],
        _NO_TIMING,
    )


def _read_result(result: generation_pb2.SequenceResult) -> SequenceResult:
    return SequenceResult(
        result.sequence_index,
        result.text,
        tuple(result.token_ids),
        FinishReason(result.finish_reason),
        result.stop,
        _get(result, "logprob"),
        _get(result, "score"),
    )


def _get(message: Message, field: str) -> Any:
    return getattr(message, field) if message.HasField(field) else None
