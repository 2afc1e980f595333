"""One job of explanation on a tiny model: its messages, its bounds and its refusals."""

from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch

from whence.v1 import explain_pb2 as pb
from whence.v1 import explanation_pb2
from whence_server.analysis import explaining
from whence_server.analysis.explaining import check_weights, find_model
from whence_server.analysis.replay.models import HeldModel
from whence_server.analysis.setup import AnalysisSetup
from whence_server.domain.errors import (
    ExplanationRefusedError,
    ExplanationTooLargeError,
    InvalidRequestError,
    NotOfferedError,
)
from whence_server.domain.explanations import (
    ExplainMethod,
    ExplainQuestion,
    SegmentUnit,
    WantedWeights,
)
from whence_server.explain import job
from whence_server.explain.job import run_job
from whence_server.explain.methods import METHODS

PROMPT = "The quick brown fox jumps over the lazy dog"


@pytest.fixture(scope="module")
def held(tiny_model: Callable[..., Path]) -> HeldModel:
    from whence_server.engines.transformers.loading import load
    from whence_server.verification import make_options

    return HeldModel(load(make_options(tiny_model("gpt2-long"), None)), AnalysisSetup(None, "", 1))


def ask(held: HeldModel, question: ExplainQuestion) -> list[pb.ExplainResponse]:
    """Return the messages of a job."""
    sent: list[pb.ExplainResponse] = []
    run_job(question, held.loaded.model, held.loaded.info, held.tokenizer, sent.append)
    return sent


def make(prompt: Any = PROMPT, output: Any = " again", **fields: Any) -> ExplainQuestion:
    return ExplainQuestion(
        **{
            "prompt": prompt,
            "output": output,
            "begin": 0,
            "method": ExplainMethod.LEAVE_ONE_OUT,
            "unit": SegmentUnit.WORDS,
            "measures_trust": False,
            **fields,
        }
    )


def read_logprob(held: HeldModel, context: list[int], span: list[int]) -> float:
    with torch.no_grad():
        logits = held.loaded.model(input_ids=torch.tensor([context + span])).logits[0]
    rows = torch.log_softmax(logits[len(context) - 1 : -1].double(), -1)
    return float(rows.gather(1, torch.tensor(span)[:, None]).sum())


def test_the_result_says_what_was_explained_and_what_each_part_did(held: HeldModel) -> None:
    *before, last = ask(held, make())
    assert {message.WhichOneof("event") for message in before} <= {"progress", "partial"}
    progress = [message.progress for message in before if message.HasField("progress")]
    assert [it.phase for it in progress] == [pb.EXPLAIN_PHASE_SCORES] * len(progress)
    assert progress[0].done == 0
    assert all(a.done <= b.done <= b.total for a, b in pairwise(progress))
    found = last.result
    tokenizer = held.tokenizer
    ids = tokenizer.encode(PROMPT)
    span = tokenizer.encode(" again", add_special_tokens=False)
    assert found.method == explanation_pb2.EXPLAIN_METHOD_LEAVE_ONE_OUT
    assert found.weights_digest == held.loaded.info.weights_digest
    assert (found.span.text, list(found.span.token_ids)) == (" again", span)
    assert (found.span.begin_step, found.span.end_step) == (0, len(span))
    assert found.span.num_prompt_tokens == len(ids)
    assert "".join(segment.text for segment in found.segments) == PROMPT
    assert len(found.segments) == len(found.scores) == 9
    whole = read_logprob(held, ids, span)
    assert found.span.value == pytest.approx(whole, abs=1e-4)
    second = found.segments[1]
    without = read_logprob(held, ids[: second.begin] + ids[second.end :], span)
    assert found.scores[1] == pytest.approx(whole - without, abs=1e-4)


def test_a_contrast_explains_the_difference(held: HeldModel) -> None:
    ids = tuple(held.tokenizer.encode(PROMPT))
    found = ask(held, make(ids, (5,), against=6))[-1].result
    difference = read_logprob(held, list(ids), [5]) - read_logprob(held, list(ids), [6])
    assert found.span.value == pytest.approx(difference, abs=1e-4)
    assert list(found.span.against_token_ids) == [6]
    assert found.span.against_text
    text = ask(held, make(against=" dog"))[-1].result.span
    assert text.against_text == " dog"


def test_the_output_before_the_span_is_context_too(held: HeldModel) -> None:
    ids = tuple(held.tokenizer.encode(PROMPT))
    output = tuple(held.tokenizer.encode(" and the cat", add_special_tokens=False))
    found = ask(held, make(ids, output, begin=len(output) - 1))[-1].result
    assert found.span.begin_step == len(output) - 1
    assert found.segments[-1].end == len(ids) + len(output) - 1
    assert found.segments[-1].begin >= len(ids)


def test_own_segments_are_taken_as_they_are(held: HeldModel) -> None:
    found = ask(held, make(unit=None, segments=((0, 2), (4, 5))))[-1].result
    assert [(it.begin, it.end) for it in found.segments] == [(0, 2), (4, 5)]


@pytest.mark.parametrize(
    ("fields", "field"),
    [
        ({"segments": ((0, 2), (1, 3))}, "segmentation.segments"),
        ({"segments": ((2, 2),)}, "segmentation.segments"),
        ({"segments": ((0, 1_000),)}, "segmentation.segments"),
        ({"output": ""}, "given.text"),
        ({"output": (10**6,)}, "given.tokens"),
        ({"prompt": ()}, "given.prompt"),
        ({"prompt": (5,) * 20_000}, "given"),
        ({"output": (5,), "against": 5}, "against_token_id"),
        ({"output": (5,), "against": 10**6}, "against_token_id"),
        ({"output": (5, 6), "against": 7}, "against_token_id"),
        ({"output": " again", "against": " again"}, "against_text"),
    ],
)
def test_what_does_not_fit_the_model_is_refused_by_field(
    held: HeldModel, fields: dict[str, Any], field: str
) -> None:
    with pytest.raises(InvalidRequestError) as caught:
        ask(held, make(**fields))
    assert [violation.field for violation in caught.value.violations] == [field]


def test_a_context_without_anything_to_take_out_is_refused(held: HeldModel) -> None:
    with pytest.raises(InvalidRequestError, match="leaves nothing to take out"):
        ask(held, make((0,), (5,)))


def test_a_method_that_is_not_there_names_those_that_are(
    held: HeldModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(job, "METHODS", {ExplainMethod.FLOW: METHODS[ExplainMethod.LEAVE_ONE_OUT]})
    with pytest.raises(NotOfferedError, match="no method leave-one-out; it has flow"):
        ask(held, make())


def test_the_work_is_bounded_and_the_bound_is_told(
    held: HeldModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(job, "MAX_TOKENS_READ", 50)
    with pytest.raises(ExplanationTooLargeError, match="50 is the most"):
        ask(held, make())


def test_only_the_weights_on_record_explain_it(held: HeldModel) -> None:
    info = held.loaded.info
    dtype = info.environment.dtype
    same = WantedWeights(info.weights_digest, info.model_digest, dtype)
    check_weights(same, info)
    assert find_model(same, held) is held.loaded.model
    assert find_model(None, held) is held.loaded.model
    with pytest.raises(ExplanationRefusedError, match="names the weights " + "a" * 64) as caught:
        check_weights(replace(same, weights_digest="a" * 64), info)
    assert caught.value.reason == "OTHER_WEIGHTS"
    assert caught.value.metadata["weights_digest"] == "a" * 64
    with pytest.raises(ExplanationRefusedError, match="names no weights"):
        check_weights(WantedWeights("", "", dtype), info)
    check_weights(replace(same, tokenizer_digest=info.tokenizer_digest), info)
    with pytest.raises(ExplanationRefusedError, match="names the tokenizer " + "c" * 64) as caught:
        check_weights(replace(same, tokenizer_digest="c" * 64), info)
    assert caught.value.reason == "OTHER_WEIGHTS"
    assert caught.value.metadata["served_tokenizer_digest"] == info.tokenizer_digest
    adapted = replace(same, adapter="poet", adapter_digest="b" * 64)
    with pytest.raises(ExplanationRefusedError, match="'poet'"):
        find_model(adapted, held)


def test_all_cores_are_used_for_the_first_seconds_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(explaining.os, "sched_getaffinity", lambda _process: {0, 1, 2})
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with explaining._use_cores(whole=True) as give_back:
            give_back()
            assert torch.get_num_threads() == 3
        assert torch.get_num_threads() == 1
        monkeypatch.setattr(explaining, "ALL_CORES_S", 0.0)
        with explaining._use_cores(whole=True) as give_back:
            # Between the first passes, a generation may have begun.
            assert torch.get_num_threads() == 3
            give_back()
            assert torch.get_num_threads() == 1
        with explaining._use_cores(whole=False) as give_back:
            give_back()
            assert torch.get_num_threads() == 1
    finally:
        torch.set_num_threads(threads)
