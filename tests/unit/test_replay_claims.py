"""A verdict rests on everything that a record claims: each forged or missing part is found."""

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from stub_replay import (
    LOGITS,
    PROMPT,
    REQUESTED,
    SIZE,
    Tokenizer,
    ask,
    generate,
    judge,
    make_results,
    make_verifier,
    search,
)

from whence.summary.verifications import describe_event
from whence.v1 import step_pb2
from whence.v1 import verification_pb2 as pb
from whence_server.analysis.replay.comparison import make_lean
from whence_server.analysis.replay.perturbing import chooses
from whence_server.domain.decoding import (
    Configured,
    Decoding,
    FinishReason,
    Strategy,
    TraceDetail,
    TraceOptions,
)
from whence_server.domain.generation import SequenceResult
from whence_server.domain.steps import Candidates, Decision, Draw, RequestedLogprobs, Step
from whence_server.engines.transformers.decoding.choose import Chooser
from whence_server.engines.transformers.decoding.rows import Row
from whence_server.journal.codec import encode_step
from whence_server.rpc.verification_record import read_decision
from whence_server.rpc.verification_servicer import VerdictTeller

N = 20
SAMPLE = Decoding(
    Strategy.SAMPLE, N, temperature=0.8, top_p=0.95, seed=3, ignore_eos=True, eos_token_ids=(49,)
)
GREEDY = Decoding(Strategy.GREEDY, N, ignore_eos=True, repetition_penalty=1.2)
BEAMS = Decoding(Strategy.BEAM_SEARCH, N, num_beams=3, num_return_sequences=2, ignore_eos=True)
HONEST = generate(SAMPLE)
GOOD = {pb.VERDICT_VERIFIED, pb.VERDICT_VERIFIED_WITHIN_MARGIN}


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


def bare(ids: list[int]) -> list[Step]:
    return [Step(0, i, Decision(t, None), f"{t} ", 0, 0, None) for i, t in enumerate(ids)]


def change(place: int, **numbers: Any) -> list[Step]:
    steps = list(HONEST)
    steps[place] = steps[place]._replace(decision=steps[place].decision._replace(**numbers))
    return steps


def expect_divergent(question: Any, words: str = "") -> None:
    result = judge(question)
    assert result.verdict == pb.VERDICT_DIVERGENT, result
    told = [result.message, *(it.message for it in result.first_divergent.differences)]
    assert words in " ".join(told)


@pytest.mark.parametrize("decoding", [SAMPLE, GREEDY], ids=["sample", "greedy"])
def test_an_honest_record_is_verified_by_all_its_numbers(decoding: Decoding) -> None:
    steps = generate(decoding)
    result = judge(ask(decoding, steps))
    assert result.verdict == pb.VERDICT_VERIFIED, result
    assert result.num_steps == N
    assert result.num_logprobs == N * (1 + 8 + len(REQUESTED))
    assert not result.message


def test_an_honest_search_is_verified_by_its_rounds_and_by_its_steps() -> None:
    steps, rounds, scores = search(BEAMS)
    results = [
        result._replace(score=score)
        if hasattr(result, "_replace")
        else replace(result, score=score)
        for result, score in zip(make_results(steps), scores, strict=True)
    ]
    result = judge(ask(BEAMS, steps, results, rounds=rounds))
    assert result.verdict == pb.VERDICT_VERIFIED, result
    assert result.num_steps == len(rounds) + len(steps)
    forged = [replace(results[0], score=scores[0] + 1), results[1]]
    expect_divergent(ask(BEAMS, steps, forged, rounds=rounds), "a score of")
    moved = steps[3].decision._replace(entropy=(steps[3].decision.entropy or 0) + 1)
    forged_steps = [*steps[:3], steps[3]._replace(decision=moved), *steps[4:]]
    expect_divergent(ask(BEAMS, forged_steps, results, rounds=rounds), "entropy")
    nan = rounds[2].continuations[0]._replace(score=math.nan)
    forged_rounds = list(rounds)
    forged_rounds[2] = rounds[2]._replace(continuations=[nan, *rounds[2].continuations[1:]])
    assert judge(ask(BEAMS, steps, rounds=forged_rounds)).verdict == pb.VERDICT_DIVERGENT


@pytest.mark.parametrize("with_rounds", [False, True])
def test_an_unfinished_search_has_no_sequences(with_rounds: bool) -> None:
    _, rounds, _ = search(BEAMS)
    made_up = bare([7, 7, 8])
    kept = rounds[:5] if with_rounds else []
    question = ask(BEAMS, made_up, reason=FinishReason.CANCELLED, rounds=kept)
    empty = SequenceResult(1, "", (), FinishReason.CANCELLED)
    result = judge(question._replace(results=(*question.results, empty)))
    assert result.verdict == pb.VERDICT_DIVERGENT
    assert "unfinished search" in result.message


def test_another_programs_steps_need_a_logprob_each() -> None:
    for steps in (bare([7, 7, 8]), change(5, logprob=None)):
        result = judge(ask(SAMPLE, steps, logprobs_only=True))
        assert result.verdict == pb.VERDICT_NOT_VERIFIABLE
        assert result.reason == "NO_LOGPROBS"
    assert judge(ask(SAMPLE, HONEST, logprobs_only=True)).verdict == pb.VERDICT_VERIFIED


NUMBERS = [
    "logprob",
    "sampling_logprob",
    "rank",
    "entropy",
    "sampling_entropy",
    "candidates",
    "effects",
    "draw",
    "requested_logprobs",
]


@pytest.mark.parametrize("name", NUMBERS)
def test_a_number_that_the_trace_promises_may_not_be_left_out(name: str) -> None:
    expect_divergent(ask(SAMPLE, change(4, **{name: None})), name)


def test_a_trace_of_tokens_promises_two_numbers() -> None:
    steps = generate(SAMPLE, TraceOptions(TraceDetail.TOKENS, 0))
    question = ask(SAMPLE, steps, detail=TraceDetail.TOKENS, num_candidates=0)
    assert judge(question._replace(logprob_token_ids=())).verdict == pb.VERDICT_VERIFIED


NOT_NUMBERS = {"sequence_index", "index", "text", "text_begin_byte", "text_end_byte"}
"""Fields of a step that other tests and checks compare."""
NOT_COMPARED = {
    "timing",
    "internals",
    "token_text",
    "num_chunk_tokens",
    "redactions",
    "reasoning_text",
}


def forge(step: Step, field: str, value: float | None) -> list[step_pb2.Step]:
    """Return forged messages: each number of a field by itself moved, or replaced by NaN."""
    whole = step_pb2.Step.FromString(encode_step(step))
    inner = getattr(whole, field)
    if isinstance(inner, int | float):
        moved = _move(inner, value)
        forged = step_pb2.Step.FromString(encode_step(step))
        if moved is not None:
            setattr(forged, field, moved)
        return [] if moved is None else [forged]
    made = []
    for name in (it.name for it, numbers in inner.ListFields() if numbers is not None):
        forged = step_pb2.Step.FromString(encode_step(step))
        message = getattr(forged, field)
        numbers = getattr(message, name)
        is_list = not isinstance(numbers, int | float)
        moved = _move(numbers[0] if is_list else numbers, value)
        if moved is None:
            continue
        if is_list:
            numbers[0] = moved
        else:
            setattr(message, name, moved)
        made.append(forged)
    return made


def _move(number: float, value: float | None) -> float | None:
    """Return a forged number; None for a whole number that is to be NaN."""
    if isinstance(number, int):
        return None if value is None else number + 1
    return math.nan if value is None else number + value


@pytest.mark.parametrize("value", [1.0, None], ids=["moved by 1", "NaN"])
@pytest.mark.parametrize(
    "field", [it.name for it in step_pb2.Step.DESCRIPTOR.fields if it.name not in NOT_NUMBERS]
)
def test_every_number_of_a_step_is_compared(field: str, value: float | None) -> None:
    if field in NOT_COMPARED:
        return
    place = 6
    for forged in forge(HONEST[place], field, value):
        steps = list(HONEST)
        steps[place] = steps[place]._replace(decision=read_decision(forged))
        result = judge(ask(SAMPLE, steps))
        assert result.verdict == pb.VERDICT_DIVERGENT, (field, forged)
        assert result.first_divergent.index == place


def test_candidates_are_those_of_the_model() -> None:
    listed = HONEST[4].decision.candidates
    assert listed is not None
    same = Candidates([listed.token_ids[0]] * 8, [listed.logprobs[0]] * 8, [-1.0] * 8)
    expect_divergent(ask(SAMPLE, change(4, candidates=same)), "twice")
    fewer = Candidates(*(values[:7] for values in listed))
    expect_divergent(ask(SAMPLE, change(4, candidates=fewer)), "7 candidates on record, 8 here")
    row = torch.log_softmax(LOGITS[HONEST[3].decision.token_id], -1)
    least = [int(token_id) for token_id in row.argsort()[:8]]
    honest = [float(row[token_id]) for token_id in least]
    low = Candidates(least, honest, [-math.inf] * 8)
    expect_divergent(ask(SAMPLE, change(4, candidates=low)), "less likely here")


def test_a_runner_up_is_another_token_that_is_as_close() -> None:
    place = next(i for i, it in enumerate(HONEST) if it.decision.draw and it.decision.draw.margin)
    draw = HONEST[place].decision.draw
    assert draw is not None
    other = (draw.runner_up_token_id or 0) + 1
    expect_divergent(ask(SAMPLE, change(place, draw=draw._replace(runner_up_token_id=other))))
    expect_divergent(ask(SAMPLE, change(place, draw=draw._replace(noise=math.nan))), "noise")


TWO = replace(SAMPLE, num_return_sequences=2)
ENDS: dict[str, Callable[[], Any]] = {
    "a tail is cut": lambda: ask(SAMPLE, HONEST[:5]),
    "there are no results": lambda: ask(SAMPLE, HONEST, results=()),
    "a sequence is missing": lambda: ask(TWO, HONEST),
    "a text without steps is made up": lambda: ask(
        TWO,
        HONEST,
        (*make_results(HONEST), SequenceResult(1, "MADE UP", (), FinishReason.LENGTH)),
    ),
    "a stop string is claimed": lambda: ask(
        replace(SAMPLE, stop=("zzz",)), HONEST[:5], reason=FinishReason.STOP
    ),
    "a sequence is another one": lambda: ask(SAMPLE, generate(SAMPLE, sequence=5)),
    "a result has another logprob": lambda: ask(
        SAMPLE, HONEST, (replace(make_results(HONEST)[0], logprob=99.0),)
    ),
    "another reason is told for the whole": lambda: ask(SAMPLE, HONEST)._replace(
        finish_reason=FinishReason.STOP
    ),
    "another number of tokens is told": lambda: ask(SAMPLE, HONEST, num_generated_tokens=19),
    "a stop is told": lambda: ask(SAMPLE, HONEST, (replace(make_results(HONEST)[0], stop="."),)),
    "texts are on record against the policy": lambda: ask(
        SAMPLE, HONEST, keeps_text=False, prompt=None
    ),
    "a prompt is on record against the policy": lambda: ask(
        SAMPLE, [step._replace(text="") for step in HONEST], keeps_text=False
    ),
    "tokens that no request can suppress": lambda: ask(
        replace(SAMPLE, configured=Configured(suppress_token_ids=(4,))), HONEST
    ),
}


@pytest.mark.parametrize("name", ENDS)
def test_the_end_of_a_record_is_checked(name: str) -> None:
    result = judge(ENDS[name]())
    assert result.verdict == pb.VERDICT_DIVERGENT, result


@pytest.mark.parametrize("reason", [FinishReason.CANCELLED, FinishReason.INTERRUPTED])
def test_what_a_caller_or_a_crash_ended_is_verified_without_its_end(reason: FinishReason) -> None:
    result = judge(ask(SAMPLE, HONEST[:5], reason=reason))
    assert result.verdict == pb.VERDICT_VERIFIED
    assert "that it went no further is not shown" in result.message


def test_a_stop_string_ends_a_sequence_where_it_is_found() -> None:
    word = HONEST[4].decision.token_id
    decoding = replace(SAMPLE, stop=(f" {word} ",))
    first = next(i for i in range(1, N) if HONEST[i].decision.token_id == word)
    grown, steps = Tokenizer().make_sequence_text(decoding.stop), []
    for step in HONEST[: first + 1]:
        piece = grown.push(step.decision.token_id, last=False)
        steps.append(step._replace(text=piece.text))
    assert piece.stop == f" {word} "
    [made] = make_results(steps, FinishReason.STOP)
    honest = replace(made, stop=piece.stop)
    result = judge(ask(decoding, steps, [honest], FinishReason.STOP))
    assert result.verdict == pb.VERDICT_VERIFIED, result
    as_length = replace(honest, finish_reason=FinishReason.LENGTH, stop="")
    question = ask(decoding, steps, [as_length], FinishReason.LENGTH)
    assert judge(question).verdict == pb.VERDICT_DIVERGENT


def test_a_forced_text_is_verified_by_its_logprobs_alone() -> None:
    decoding = Decoding(Strategy.FORCED, 4, forced_token_ids=(7, 8, 9, 10))
    steps = generate(decoding)
    result = judge(ask(decoding, steps))
    assert result.verdict == pb.VERDICT_VERIFIED, result
    assert result.basis == pb.VERIFICATION_BASIS_LOGPROBS
    assert "the text was given" in result.message
    expect_divergent(ask(decoding, bare([7, 8, 9, 10])), "logprob")
    drawn = steps[2].decision._replace(draw=Draw(0.5, None, None))
    forged = [*steps[:2], steps[2]._replace(decision=drawn), steps[3]]
    expect_divergent(ask(decoding, forged), "nothing is drawn")


def test_an_unknown_environment_is_not_the_same_one() -> None:
    question = ask(SAMPLE, HONEST)
    result = judge(question._replace(identity=question.identity._replace(environment={})))
    assert result.verdict == pb.VERDICT_VERIFIED
    assert "environment is not on record" in result.message


def test_arithmetic_of_another_environment_is_no_divergence() -> None:
    question = ask(SAMPLE, change(4, logprob=(HONEST[4].decision.logprob or 0) + 0.01))
    assert judge(question).verdict == pb.VERDICT_DIVERGENT
    other = question.identity._replace(
        environment={**question.identity.environment, "device": "cuda:0"}
    )
    result = judge(question._replace(identity=other))
    assert result.verdict == pb.VERDICT_NOT_VERIFIABLE
    assert result.reason == "OTHER_ENVIRONMENT"
    assert "1 of 20 steps" in result.message
    for steps in (change(4, logprob=-40.0), change(4, draw=Draw(0.5, None, None)), HONEST[:5]):
        assert judge(ask(SAMPLE, steps, identity=other)).verdict == pb.VERDICT_DIVERGENT


def test_other_files_beside_the_same_tensors_are_named() -> None:
    question = ask(SAMPLE, HONEST)
    other = question.identity._replace(model_digest="another")
    expect_divergent(question._replace(identity=other), "config.json")


@pytest.mark.parametrize(
    ("ids", "outcome"),
    [
        ([5, 7], pb.VERIFICATION_OUTCOME_SAME),
        ([0, 5, 1, 7, 2], pb.VERIFICATION_OUTCOME_NOT_CHECKED),
        ([5, 8], pb.VERIFICATION_OUTCOME_DIFFERENT),
    ],
)
def test_special_tokens_in_a_prompt_are_not_passed_over(ids: list[int], outcome: int) -> None:
    question = ask(SAMPLE, HONEST, prompt="5 7 ", prompt_token_ids=ids)
    checks = [it for it in make_verifier().verify(question) if isinstance(it, pb.VerificationCheck)]
    [check] = [it for it in checks if it.subject == pb.VERIFICATION_SUBJECT_PROMPT]
    assert check.outcome == outcome


@pytest.mark.parametrize("strategy", [Strategy.SAMPLE, Strategy.GREEDY])
def test_nobody_steers_within_the_margin(strategy: Strategy) -> None:
    num_tokens = 60
    decoding = replace(
        SAMPLE if strategy is Strategy.SAMPLE else replace(GREEDY, repetition_penalty=1.0),
        max_new_tokens=num_tokens,
    )
    chooser = Chooser(SIZE, torch.device("cpu"))
    row, last, steps = Row(decoding, TraceOptions(TraceDetail.TOKENS, 0), 0, PROMPT), PROMPT[-1], []
    num_steered = 0
    for index in range(num_tokens):
        logits = LOGITS[last]
        [made] = chooser.choose(logits[None], [row])
        assert isinstance(made, Decision)
        picked = made.token_id
        likely = [t for t in range(SIZE) if t != picked and logits[t] > logits.max() - 6]
        for wanted in likely:
            if chooses(chooser, logits, make_lean(row), wanted=wanted, winner=picked, nats=0.44):
                picked, num_steered = wanted, num_steered + 1
                break
        steps.append(Step(0, index, Decision(picked, None), f"{picked} ", 0, 0, None))
        row.append(picked)
        last = picked
    assert num_steered > 20
    # As wide as that of a model in bfloat16: 0.45 nats.
    verifier = make_verifier(0.15, 0.02)
    result = judge(ask(decoding, steps, detail=None), verifier)
    assert result.num_divergent == 0
    assert result.verdict == pb.VERDICT_DIVERGENT
    assert f"at {result.num_within_margin} steps" in result.message
    # Noise itself passes.
    noisy = generate(replace(decoding, max_new_tokens=num_tokens))
    assert judge(ask(decoding, noisy), verifier).verdict in GOOD


def test_requested_logprobs_are_compared() -> None:
    requested = HONEST[3].decision.requested_logprobs
    assert requested is not None
    swapped = RequestedLogprobs(requested.logprobs[::-1], requested.sampling_logprobs)
    expect_divergent(ask(SAMPLE, change(3, requested_logprobs=swapped)), "requested token")
    short = RequestedLogprobs(requested.logprobs[:1], requested.sampling_logprobs[:1])
    expect_divergent(ask(SAMPLE, change(3, requested_logprobs=short)), "requested logprobs")


def audit(event: pb.VerifyGenerationResponse) -> str:
    return VerdictTeller().describe(event.SerializeToString())


def test_given_tokens_and_other_draws_are_no_choices_of_the_model() -> None:
    ids = tuple(step.decision.token_id for step in HONEST)
    for num_given, basis in (
        (5, pb.VERIFICATION_BASIS_CHOICES),
        (N, pb.VERIFICATION_BASIS_LOGPROBS),
    ):
        decoding = replace(SAMPLE, forced_token_ids=ids[:num_given])
        result = judge(ask(decoding, generate(decoding)))
        assert result.verdict in GOOD, result
        assert (result.num_given_steps, result.basis) == (num_given, basis)
        assert "its parent was not looked at" in result.message
        grounded = judge(ask(decoding, generate(decoding))._replace(is_parent_compared=True))
        assert "not looked at" not in grounded.message
        told = "\n".join(describe_event(pb.VerifyGenerationResponse(result=result)))
        assert f"the first {num_given} tokens of each sequence were given: the record" in told
        audited = audit(pb.VerifyGenerationResponse(result=result))
        assert (f"{num_given} tokens given" in audited) is (num_given < N)


def test_other_draws_are_told_with_the_verdict() -> None:
    decoding = replace(SAMPLE, first_draw_sequence=12_345)
    result = judge(ask(decoding, generate(decoding)))
    assert result.verdict in GOOD, result
    assert "draws are those of sequence 12345 of its parent; its parent was not" in result.message


def test_branch_that_no_engine_makes_is_divergent() -> None:
    question = ask(SAMPLE, HONEST)._replace(contradictions=("it says so",))
    result = judge(question)
    assert (result.verdict, result.message) == (pb.VERDICT_DIVERGENT, "it says so")
