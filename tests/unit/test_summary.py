"""Summaries: one line for each kind of step, sequence and training span, from messages alone."""

import math
import re
import unicodedata

import numpy as np
import pytest
from google.protobuf.json_format import MessageToDict
from hypothesis import given
from hypothesis import strategies as st

from whence.summary import (
    PROMPT,
    Likelihood,
    Likelihoods,
    make_text_names,
    name_by_id,
    quote,
    quote_briefly,
    shorten_float32,
    summarise_attempt,
    summarise_beam_round,
    summarise_checkpoint,
    summarise_epoch,
    summarise_evaluation,
    summarise_optimizer_step,
    summarise_run,
    summarise_step,
)
from whence.summary.numbers import format_probability
from whence.v1 import generation_pb2, step_pb2, training_pb2

TEXTS = {967: " special", 266: " the", 258: " a", 911: " its", 1_500: " an", 13: "."}
NAMES = make_text_names(lambda token_id: TEXTS.get(token_id, ""))
IDS = name_by_id
FLOATS = st.floats(width=32, allow_nan=False, allow_infinity=False)


def sampled(**fields: object) -> step_pb2.Step:
    """Return the README's token: drawn over 22 likelier ones."""
    return step_pb2.Step(
        **{
            "token_id": 967,
            "logprob": math.log(0.00312),
            "sampling_logprob": math.log(0.00154),
            "rank": 22,
            "candidates": candidates([266, 258, 911, 1_500], [0.497, 0.115, 0.029, 0.023]),
            "processors": step_pb2.ProcessorEffects(num_kept=[50_257, 32]),
            "draw": step_pb2.Draw(noise=0.1, runner_up_token_id=266, margin=0.49),
            **fields,
        }
    )


def candidates(token_ids: list[int], probabilities: list[float]) -> step_pb2.Candidates:
    return step_pb2.Candidates(token_ids=token_ids, logprobs=list(map(math.log, probabilities)))


def chosen(token_id: int, probability: float, rank: int, **fields: object) -> step_pb2.Step:
    """Return a token without a draw."""
    others = candidates([266, 258, 911, 1_500], [0.497, 0.115, 0.029, 0.023])
    logprob = math.log(probability)
    own = {"logprob": logprob, "sampling_logprob": logprob, "rank": rank, "candidates": others}
    return step_pb2.Step(token_id=token_id, **{**own, **fields})


WITHOUT_IDS = {"token_id": None, "candidates": candidates([], [0.497, 0.115, 0.029, 0.023])}


@pytest.mark.parametrize(
    ("step", "names", "strategy", "line"),
    [
        (
            sampled(),
            NAMES,
            "sample",
            (
                '" special" 0.3% (drawn at 0.15%), 22 tokens likelier, 32 kept; '
                '" the" 49.7%, " a" 11.5%, " its" 2.9%; won by 0.49 nats over " the"'
            ),
        ),
        (
            sampled(),
            IDS,
            "sample",
            (
                "#967 0.3% (drawn at 0.15%), 22 tokens likelier, 32 kept; "
                "#266 49.7%, #258 11.5%, #911 2.9%; won by 0.49 nats over #266"
            ),
        ),
        (
            sampled(**WITHOUT_IDS),
            NAMES,
            "sample",
            (
                "0.3% (drawn at 0.15%), 22 tokens likelier, 32 kept; "
                "49.7%, 11.5%, 2.9%; won by 0.49 nats"
            ),
        ),
        (
            chosen(266, 0.497, 0),
            NAMES,
            "greedy",
            '" the" 49.7%, taken greedily, the likeliest; " a" 11.5%, " its" 2.9%, " an" 2.3%',
        ),
        (
            chosen(258, 0.115, 1, sampling_logprob=math.log(0.41)),
            NAMES,
            "greedy",
            (
                '" a" 11.5% (41.0% after processors), taken greedily, 1 token likelier; '
                '" the" 49.7%, " its" 2.9%, " an" 2.3%'
            ),
        ),
        (
            chosen(967, 0.00312, 22),
            NAMES,
            "forced",
            '" special" 0.3%, given, 22 tokens likelier; " the" 49.7%, " a" 11.5%, " its" 2.9%',
        ),
        (
            chosen(911, 0.029, 2),
            NAMES,
            "beam_search",
            (
                '" its" 2.9%, kept by beam search, 2 tokens likelier; '
                '" the" 49.7%, " a" 11.5%, " an" 2.3%'
            ),
        ),
        (
            chosen(13, 0.01, 1_234),
            NAMES,
            PROMPT,
            (
                '"." 1.0%, read in the prompt, 1,234 tokens likelier; '
                '" the" 49.7%, " a" 11.5%, " its" 2.9%'
            ),
        ),
        (step_pb2.Step(token_id=13), NAMES, PROMPT, '".", the prompt\'s first token'),
        (step_pb2.Step(), NAMES, PROMPT, ""),
        (  # TRACE_DETAIL_TOKENS
            step_pb2.Step(token_id=13, logprob=-1, sampling_logprob=-0.5),
            NAMES,
            "greedy",
            '"." 36.8% (60.7% after processors), taken greedily',
        ),
        (  # the only token that could be drawn
            sampled(draw=step_pb2.Draw(noise=0.1), candidates=None),
            NAMES,
            "sample",
            '" special" 0.3% (drawn at 0.15%), 22 tokens likelier, 32 kept',
        ),
        (  # a strategy of a later version
            chosen(967, 0.00312, 22, candidates=candidates([266, 967], [0.9, 0.05])),
            NAMES,
            "new",
            '" special" 0.3%, 22 tokens likelier; " the" 90.0%',
        ),
        (  # the chosen token's place among candidates without ids is its rank
            step_pb2.Step(logprob=math.log(0.115), rank=1, candidates=WITHOUT_IDS["candidates"]),
            NAMES,
            "greedy",
            "11.5%, taken greedily, 1 token likelier; 49.7%, 2.9%, 2.3%",
        ),
    ],
)
def test_each_kind_of_step_has_its_line(step, names, strategy, line):
    assert summarise_step(step, names, strategy) == line


@pytest.mark.parametrize(
    ("num_kept", "removed", "told"),
    [
        (40, 0.9321, ", constraint took 93.2%, 12 kept"),
        (1, 0.9321, ", forced by the constraint, 12 kept"),
        (40, 0.0001, ", 12 kept"),
    ],
)
def test_a_constraint_is_told_by_what_it_took(num_kept, removed, told):
    effects = step_pb2.ProcessorEffects(
        num_kept=[num_kept, 12], removed_mass=[removed, 0.5], token_logprobs=[-1, -0.5]
    )
    step = chosen(967, 0.00312, 22, processors=effects, candidates=candidates([], []))
    line = '" special" 0.3%, taken greedily, 22 tokens likelier'
    assert summarise_step(step, NAMES, "greedy", constrained=True) == f"{line}{told}"
    assert summarise_step(step, NAMES, "greedy") == f"{line}, 12 kept"


@pytest.mark.parametrize(
    ("margin", "nats"),
    [
        (0.0, "0.00"),
        (1e-9, "less than 0.01"),
        (0.0049, "less than 0.01"),
        (0.0051, "0.01"),
        (9.996, "10.00"),
        (12.5, "12.50"),
    ],
)
def test_only_an_exact_tie_is_won_by_nothing(margin, nats):
    line = summarise_step(sampled(draw=step_pb2.Draw(margin=margin)), NAMES, "sample")
    assert line.endswith(f"; won by {nats} nats")


@given(
    logprob=FLOATS,
    sampling_logprob=FLOATS,
    rank=st.integers(0, 2**32 - 1),
    ids=st.lists(st.integers(0, 2**32 - 1), max_size=6),
    logprobs=st.lists(FLOATS, max_size=6),
    margin=FLOATS,
    text=st.text(max_size=200),
)
def test_a_line_is_one_line_of_bounded_length(
    logprob, sampling_logprob, rank, ids, logprobs, margin, text
):
    step = sampled(
        logprob=logprob,
        sampling_logprob=sampling_logprob,
        rank=rank,
        candidates=step_pb2.Candidates(token_ids=ids, logprobs=logprobs),
        draw=step_pb2.Draw(margin=margin, runner_up_token_id=5),
    )
    line = summarise_step(step, make_text_names(lambda _: text), "sample")
    assert len(line) < 400
    for character in line:
        assert unicodedata.category(character) not in {"Cc", "Zl", "Zp"}
        assert unicodedata.bidirectional(character) not in {
            *("LRE", "LRO", "RLE", "RLO", "PDF", "LRI", "RLI", "FSI", "PDI"),
        }


@pytest.mark.parametrize(
    ("probability", "shown"),
    [
        (1.0, "100.0%"),
        (0.5, "50.0%"),
        (0.00312, "0.3%"),
        (0.00201, "0.2%"),
        (0.00154, "0.15%"),
        (0.0000123, "0.0012%"),
        (4.7e-07, "4.7e-05%"),
    ],
)
def test_probabilities_have_a_decimal_or_two_digits(probability, shown):
    assert format_probability(math.log(probability)) == shown


@pytest.mark.parametrize(
    ("logprob", "shown"),
    [(-math.inf, "0%"), (math.nan, "nan%"), (1e-7, "100.0%"), (3e38, "271.8%"), (-3e38, "0%")],
)
def test_probabilities_that_are_none_raise_nothing(logprob, shown):
    assert format_probability(logprob) == shown


@given(st.floats(-6.2, 0))
def test_tenths_of_a_per_cent_are_rounded_as_python_does(logprob):
    shown, exact = format_probability(logprob), f"{math.exp(logprob):.1%}"
    # A tie may fall to either side.
    assert shown == exact or abs(float(shown[:-1]) - 100 * math.exp(logprob)) < 0.0500001


@given(st.floats(width=32))
def test_float32_values_have_the_digits_that_numpy_prints(value):
    short = shorten_float32(value)
    assert short == float(str(np.float32(value))) or math.isnan(short)
    assert math.copysign(1, short) == math.copysign(1, value) or math.isnan(short)


@given(st.floats(-100, 0))
def test_a_number_that_is_no_float32_has_the_digits_of_the_nearest_one(logprob):
    probability = math.exp(logprob)
    assert shorten_float32(probability) == float(str(np.float32(probability)))


def test_the_digits_are_those_of_protobufs_json():
    step = step_pb2.Step(logprob=-0.6994731426239014)
    assert step.logprob == -0.6994731426239014
    assert shorten_float32(step.logprob) == -0.69947314 == MessageToDict(step)["logprob"]


@given(st.text(max_size=60), st.integers(4, 40))
def test_a_quoted_name_is_bounded_and_cut_between_characters(text, most):
    name = quote_briefly(text, most)
    assert len(name) <= most
    assert name[0] == name[-1] == '"'
    whole = quote(text)[1:-1].replace('"', '\\"')
    inner = name[1:-1]
    if inner != whole:
        assert inner.endswith("…")
        assert whole.startswith(inner[:-1])
        # The next character with its escape would not have fitted.
        assert re.fullmatch(r"(\\(\\|\"|n|t|x..|u....|U.{8})|[^\\])*", inner, re.DOTALL)


def test_names_are_cached_and_bounded(monkeypatch):
    monkeypatch.setattr("whence.summary.names.MAX_CACHED_NAMES", 3)
    asked = []
    names = make_text_names(lambda token_id: asked.append(token_id) or "abcde"[token_id])
    assert "".join(names(token_id)[1] for token_id in (1, 1, 2, 3, 4, 1)) == "bbcdeb"
    assert asked == [1, 2, 3, 4, 1]
    assert len(names.__self__) <= 3


def beam(token_id: int, score: float, **fields: object) -> generation_pb2.BeamContinuation:
    return generation_pb2.BeamContinuation(token_id=token_id, score=score, **fields)


def test_a_round_says_which_beams_were_kept_and_over_which():
    one = generation_pb2.BeamRound(
        continuations=[
            beam(911, -3.02),
            beam(266, -2.31, kept=True),
            beam(13, -2.1, finished=True),
            beam(258, -2.751, kept=True),
        ]
    )
    line = '2 kept: " the" -2.31, " a" -2.75; over 1: " its" -3.02; 1 ended: "." -2.10'
    assert summarise_beam_round(one, NAMES) == line
    assert summarise_beam_round(one, IDS) == line.replace('" the"', "#266").replace(
        '" a"', "#258"
    ).replace('" its"', "#911").replace('"."', "#13")
    for continuation in one.continuations:
        continuation.ClearField("token_id")
    numbers = "2 kept: -2.31, -2.75; over 1: -3.02; 1 ended: -2.10"
    assert summarise_beam_round(one, NAMES) == numbers


def test_a_wide_round_lists_its_first():
    beams = [beam(266, -1.0 - i, kept=i < 6) for i in range(12)]
    line = summarise_beam_round(generation_pb2.BeamRound(continuations=beams), NAMES)
    assert line == (
        '6 kept: " the" -1.00, " the" -2.00, " the" -3.00, " the" -4.00, …; '
        'over 6: " the" -7.00, " the" -8.00, " the" -9.00, " the" -10.00, …'
    )


def count(*probabilities: float | None, sequence_index: int = 0) -> Likelihood:
    part = Likelihood()
    for index, probability in enumerate(probabilities):
        logprob = None if probability is None else math.log(probability)
        step = {"sequence_index": sequence_index, "index": index, "token_id": 266 + index}
        part.add(step_pb2.Step(**step, logprob=logprob))
    return part


def test_many_steps_say_where_the_least_likely_tokens_are():
    both = Likelihoods([count(0.5, 0.004, 0.2), count(0.05, 0.9, sequence_index=1)])
    assert both.summarise(IDS) == (
        "5 tokens, mean probability 33.1%, least 0.4%; "
        "least likely: #267 0.4% at 0/1, #266 5.0% at 1/0, #268 20.0% at 0/2"
    )
    assert both.num_unlikely == 1
    assert both.least_likely is not None
    assert (both.least_likely.sequence_index, both.least_likely.step_index) == (0, 1)
    assert both.least_probability == pytest.approx(0.004)


def test_steps_without_probabilities_or_ids_are_counted():
    assert Likelihoods([]).summarise(IDS) == "no tokens"
    nothing = Likelihoods([count(None)])
    assert nothing.summarise(IDS) == "1 token"
    assert nothing.least_likely is None
    assert nothing.least_probability is None
    part = Likelihood()
    part.add(step_pb2.Step(logprob=math.log(0.25)))
    line = "1 token, mean probability 25.0%, least 25.0%; least likely: 25.0% at 0/0"
    assert Likelihoods([part]).summarise(IDS) == line


@given(st.lists(st.floats(-100, 0, width=32), min_size=1, max_size=50), st.floats(0, 1))
def test_the_least_likely_are_the_lowest_and_the_earliest(logprobs, unlikely_below):
    part = Likelihood(unlikely_below)
    for index, logprob in enumerate(logprobs):
        part.add(step_pb2.Step(index=index, logprob=logprob))
    lowest = sorted((logprob, index) for index, logprob in enumerate(logprobs))[:3]
    assert [(token.logprob, token.step_index) for token in part.least] == lowest
    bar = math.log(unlikely_below) if unlikely_below else -math.inf
    assert part.num_unlikely == sum(logprob < bar for logprob in logprobs)


STEP = training_pb2.TrainingStep(
    step=20, loss=5.7439, learning_rate=0.001, grad_norm=3.3, num_tokens=256
)


@pytest.mark.parametrize(
    ("made", "line"),
    [
        (
            summarise_optimizer_step(STEP),
            "step 20: loss 5.74, learning rate 0.001, gradient norm 3.3, 256 tokens",
        ),
        (
            summarise_optimizer_step(
                training_pb2.TrainingStep(step=1_000, loss=math.nan, num_tokens=1, skipped=True)
            ),
            "step 1,000: loss nan, learning rate 0, 1 token, update skipped",
        ),
        (
            summarise_evaluation(
                training_pb2.Evaluation(
                    step=20,
                    metrics={"eval_runtime": 1.5, "eval_loss": 5.61, "a": 1, "b": 2, "c": 3},
                )
            ),
            "after step 20: eval_loss 5.61, a 1, b 2, …",
        ),
        (summarise_evaluation(training_pb2.Evaluation(step=2)), "after step 2: no metrics"),
        (
            summarise_checkpoint(
                training_pb2.Checkpoint(
                    step=20,
                    path="checkpoint-20\n",
                    resumable=True,
                    files=[{"size_bytes": 3_100_000}, {"size_bytes": 20}],
                )
            ),
            'after step 20: "checkpoint-20\\n", 3.1 MB, can be resumed',
        ),
        (
            summarise_checkpoint(training_pb2.Checkpoint(step=1, files=[{"size_bytes": 20}])),
            'after step 1: "", 20 bytes',
        ),
        (
            summarise_epoch(1, 20, 5_120, 5.93, 0),
            "epoch 1: 20 steps, 5,120 tokens, mean loss 5.93",
        ),
        (
            summarise_epoch(2, 1, 1, None, 1),
            "epoch 2: 1 step, 1 token, 1 loss not finite",
        ),
        (
            summarise_attempt(
                training_pb2.AttemptStarted(attempt=2, resumed_step=20, num_processes=2),
                "completed",
                40,
            ),
            "attempt 2: completed, 40 steps, resumed after step 20, 2 processes",
        ),
        (
            summarise_attempt(training_pb2.AttemptStarted(attempt=1), "killed", 1),
            "attempt 1: killed, 1 step",
        ),
        (
            summarise_run(
                training_pb2.TrainingRunStarted(
                    name="demo",
                    num_planned_steps=700,
                    architecture="GPT2LMHeadModel",
                    num_parameters=3_700_000,
                ),
                training_pb2.TrainingDataset(num_documents=79),
                "completed",
                700,
            ),
            (
                '"demo": completed, step 700 of 700, GPT2LMHeadModel, 3,700,000 parameters, '
                "79 documents"
            ),
        ),
        (
            summarise_run(
                training_pb2.TrainingRunStarted(name="\u202e"),
                training_pb2.TrainingDataset(),
                "killed",
                0,
            ),
            '"\\u202e": killed, step 0',
        ),
    ],
)
def test_each_span_of_a_training_has_its_line(made, line):
    assert made == line
