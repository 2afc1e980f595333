"""Records that cannot be verified are refused in words; the date of a template is the record's."""

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from stub_replay import ask, generate, make_verifier

from whence.v1 import generation_pb2, verification_pb2
from whence.v1 import observation_pb2 as grades
from whence.v1 import verification_pb2 as pb
from whence_server.analysis.replay.chats import check_chat
from whence_server.domain.chat import ChatInput, ChatMessage, ChatRecord, OutputForms
from whence_server.domain.decoding import Decoding, Strategy, TraceDetail, TraceOptions
from whence_server.rpc.verification_record import UnverifiableError, make_question
from whence_server.text.chat import ChatTemplate

GREEDY = Decoding(Strategy.GREEDY, 3, ignore_eos=True)


def make_record(**decoding: Any) -> verification_pb2.GenerationRecord:
    record = verification_pb2.GenerationRecord()
    record.started.prompt_token_ids.extend([1, 2, 3])
    record.started.effective_decoding.greedy.SetInParent()
    record.started.effective_decoding.max_new_tokens = 3
    for name, value in decoding.items():
        setattr(record.started.effective_decoding, name, value)
    record.steps.add(token_id=7)
    record.finished.finish_reason = generation_pb2.FINISH_REASON_LENGTH
    record.finished.sequences.add(finish_reason=generation_pb2.FINISH_REASON_LENGTH)
    return record


def refuse(record: verification_pb2.GenerationRecord) -> str:
    with pytest.raises(UnverifiableError) as caught:
        make_question(record)
    return str(caught.value.reason)


def test_a_record_without_a_trace_detail_promises_decisions() -> None:
    assert make_question(make_record()).detail is TraceDetail.DECISIONS


@pytest.mark.parametrize("reason", [0, 99])
def test_a_reason_of_another_version_is_unreadable(reason: int) -> None:
    record = make_record()
    record.finished.sequences[0].finish_reason = reason  # type: ignore[assignment]
    assert refuse(record) == "RECORD_UNREADABLE"
    record = make_record()
    record.finished.finish_reason = reason  # type: ignore[assignment]
    assert refuse(record) == "RECORD_UNREADABLE"


@pytest.mark.parametrize(
    "decoding", [{"max_new_tokens": 4_000_000_000}, {"num_return_sequences": 1_000_000}]
)
def test_settings_that_would_take_all_memory_are_unreadable(decoding: dict[str, int]) -> None:
    assert refuse(make_record(**decoding)) == "RECORD_UNREADABLE"


@pytest.mark.parametrize(
    ("kind", "reason"),
    [
        (grades.DISTRIBUTION_KIND_NONE, "NO_LOGPROBS"),
        (grades.DISTRIBUTION_KIND_AFTER_TEMPERATURE, "OTHER_DISTRIBUTION"),
        (grades.DISTRIBUTION_KIND_PROCESSED, "OTHER_DISTRIBUTION"),
        (grades.DISTRIBUTION_KIND_UNKNOWN, "OTHER_DISTRIBUTION"),
    ],
)
def test_logprobs_of_another_distribution_are_not_compared(kind: Any, reason: str) -> None:
    record = make_record()
    record.started.upstream.SetInParent()
    record.started.observation.distribution = kind
    assert refuse(record) == reason
    record.started.observation.distribution = grades.DISTRIBUTION_KIND_RAW
    assert make_question(record).logprobs_only
    record.started.observation.token_ids = grades.TOKEN_ID_ORIGIN_RETOKENIZED
    assert refuse(record) == "NO_TOKEN_IDS"


def test_bad_words_that_the_policy_does_not_keep_cannot_be_replayed() -> None:
    record = make_record()
    record.started.processor_names.append("bad_words")
    assert refuse(record) == "CONTENT_NOT_KEPT"


def test_what_no_replay_computes_is_counted() -> None:
    record = make_record()
    record.steps[0].internals.SetInParent()
    record.finished.sequences[0].tool_calls.add()
    unread = make_question(record).unread
    assert unread == ("activations of 1 steps", "tool calls of 1 results")


class Chatting:
    """Tokenizer that renders one template."""

    def __init__(self, source: str) -> None:
        self._template = ChatTemplate(source, {})

    def render_chat(self, messages: Any, arguments: Any, name: str = "", tools: Any = None) -> Any:
        return self._template.render(messages, arguments, name, tools)


def check(source: str, prompt: str, time: datetime) -> int:
    tokenizer: Any = Chatting(source)
    given = ChatInput((ChatMessage("user", "Hi"),))
    question = ask(
        GREEDY,
        [],
        prompt=prompt,
        chat=ChatRecord(given, "", OutputForms()),
        start_time_ns=int(time.timestamp() * 1e9),
    )
    return check_chat(question, tokenizer).outcome


DATED = '{{ strftime_now("%d %b %Y %H:%M") }} {{ messages[0].content }}'
SAME, DIFFERENT = pb.VERIFICATION_OUTCOME_SAME, pb.VERIFICATION_OUTCOME_DIFFERENT


@pytest.mark.parametrize("hours", [0, 9, -5, 5.5])
def test_a_template_prints_the_date_of_the_request_in_any_time_zone(hours: float) -> None:
    time = datetime.now(UTC) - timedelta(days=2)
    local = (time + timedelta(hours=hours)).strftime("%d %b %Y %H:%M")
    assert check(DATED, f"{local} Hi", time) == SAME


def test_a_template_with_a_date_that_no_zone_has_is_not_checked() -> None:
    time = datetime.now(UTC)
    assert check(DATED, "01 Jan 1999 00:00 Hi", time) == pb.VERIFICATION_OUTCOME_NOT_CHECKED
    assert check("{{ messages[0].content }}", "Ho", time) == DIFFERENT
    assert check("{{ messages[0].content }}", "Hi", time) == SAME


def test_a_short_generation_has_no_limit_of_its_mean_and_a_long_one_has() -> None:
    trace = TraceOptions(TraceDetail.TOKENS, 0)
    verdicts = []
    for num_tokens in (3, 40):
        decoding = Decoding(Strategy.GREEDY, num_tokens, ignore_eos=True)
        steps = [
            step._replace(
                decision=step.decision._replace(logprob=(step.decision.logprob or 0.0) + 0.01)
            )
            for step in generate(decoding, trace)
        ]
        question = ask(decoding, steps, detail=TraceDetail.TOKENS, logprob_token_ids=())
        # A margin of 0.03 nats, and a typical difference of 0.002.
        *_, result = make_verifier(0.01, 0.002).verify(question)
        assert isinstance(result, pb.VerificationResult)
        verdicts.append(result.verdict)
    assert verdicts == [pb.VERDICT_VERIFIED, pb.VERDICT_DIVERGENT]


def test_weights_in_another_type_are_another_environment() -> None:
    question = ask(GREEDY, generate(GREEDY))
    environment = {**question.identity.environment, "dtype": "bfloat16"}
    identity = question.identity._replace(environment=environment, weights_digest="x")
    *_, result = make_verifier().verify(question._replace(identity=identity))
    assert isinstance(result, pb.VerificationResult)
    assert (result.verdict, result.reason) == (pb.VERDICT_NOT_VERIFIABLE, "OTHER_ENVIRONMENT")
    assert "bfloat16" in result.message
