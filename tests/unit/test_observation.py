"""Grades and steps of upstreams: on record, and as clients read them."""

import math

import pytest

from whence.cli.json_lines import describe_event, describe_token
from whence.cli.render import format_row
from whence.generation import GenerationState, TokenReader
from whence.page.record import make_page_record
from whence.summary import list_grades
from whence.v1 import observation_pb2
from whence.v1.generation_pb2 import GenerationEvent, GenerationStarted
from whence.v1.model_pb2 import UpstreamInfo
from whence.v1.step_pb2 import Step
from whence_server.domain import observation as domain
from whence_server.domain.decoding import Decoding, Strategy, TraceOptions
from whence_server.domain.engine import Admit
from whence_server.domain.errors import InvalidRequestError
from whence_server.domain.observation import (
    DrawOrigin,
    Observation,
    SecondDistribution,
    Seed,
)
from whence_server.domain.steps import Timing
from whence_server.domain.upstream import UpstreamCandidates, UpstreamDecision
from whence_server.generation.grades import OwnGrader, grade_own_engine
from whence_server.journal.observation_codec import convert_observation, encode_upstream_step

ENUMS = {
    "token_ids": (domain.TokenIds, observation_pb2.TokenIdOrigin),
    "distribution": (domain.Distribution, observation_pb2.DistributionKind),
    "second_distribution": (domain.SecondDistribution, observation_pb2.SecondDistribution),
    "seed": (domain.Seed, observation_pb2.SeedOrigin),
    "draw": (domain.DrawOrigin, observation_pb2.DrawOrigin),
    "tables": (domain.Tables, observation_pb2.TableCoverage),
    "weights": (domain.WeightsOrigin, observation_pb2.WeightsOrigin),
}


@pytest.mark.parametrize("field", ENUMS)
def test_a_grade_has_the_contracts_name_and_number(field):
    own, contract = ENUMS[field]
    told = {number: name for name, number in contract.items() if number}
    assert set(told) == {grade.value for grade in own}
    for grade in own:
        assert told[grade.value].endswith(f"_{grade.name}")
        message = convert_observation(Observation(**{field: grade}))
        assert list_grades(message)[field] == grade.name.lower()


def test_a_grade_of_a_later_version_is_its_number():
    assert list_grades(observation_pb2.Observation(draw=77)) == {"draw": "77"}


@pytest.mark.parametrize("strategy", Strategy)
def test_whences_own_engine_draws_only_when_it_samples(strategy):
    grades = grade_own_engine(Decoding(strategy, 4))
    draws = strategy is Strategy.SAMPLE
    assert grades.draw is (DrawOrigin.OURS if draws else DrawOrigin.NONE)
    assert grades.seed is (Seed.OURS if draws else Seed.NONE)
    given = SecondDistribution.NONE if strategy is Strategy.FORCED else SecondDistribution.GIVEN
    assert grades.second_distribution is given


def test_fields_for_an_upstream_are_refused_by_whences_own_engine():
    admission = Admit(
        "g", [1], Decoding(Strategy.GREEDY, 4), TraceOptions(), upstream_parameters_json='{"a":1}'
    )
    with pytest.raises(InvalidRequestError, match="upstream_parameters_json"):
        OwnGrader().grade(admission)


def encode(decision, text=" a", index=0):
    timing = Timing(5_000_000, 0, 0, 0, 0)
    return Step.FromString(encode_upstream_step(0, index, decision, text, 0, len(text), timing))


TEXTS_ALONE = UpstreamDecision(
    token_text=" a",
    logprob=-0.5,
    rank=0,
    candidates=UpstreamCandidates([], [" a", " b"], [-0.5, -1.5], [0.0, -math.inf]),
)
IDS_AND_TEXTS = UpstreamDecision(
    token_id=7,
    token_text=" a",
    logprob=-0.5,
    candidates=UpstreamCandidates([7, 8], [" a", " b"], [-0.5, -1.5], []),
    num_chunk_tokens=2,
)


def test_what_an_upstream_did_not_tell_is_absent():
    step = encode(UpstreamDecision(), text="piece")
    assert {field.name for field, _ in step.ListFields()} == {"text", "text_end_byte", "timing"}
    assert step.timing.elapsed_ns == 5_000_000


def test_candidates_without_ids_leave_the_fields_of_earlier_clients_empty():
    table = encode(TEXTS_ALONE).candidates
    # An earlier client reads these as parallel lists, and shows no candidate.
    assert (list(table.token_ids), list(table.logprobs), list(table.sampling_logprobs)) == (
        [],
        [],
        [],
    )
    assert list(table.texts) == [" a", " b"]
    assert list(table.text_logprobs) == [-0.5, -1.5]
    assert list(table.text_sampling_logprobs) == [0.0, -math.inf]


def read(step, **started):
    def lookup(model, digest, token_id):
        return ""  # the server does not know the vocabulary

    (token,) = TokenReader(GenerationStarted(**started), lookup).read([step])
    return token


def test_a_token_without_id_has_the_text_that_the_upstream_told():
    token = read(encode(TEXTS_ALONE))
    assert (token.token_id, token.token_text) == (None, " a")
    first, second = token.candidates
    assert (first.token_id, first.text, first.sampling_probability) == (None, " a", 1.0)
    assert (second.text, second.sampling_probability) == (" b", 0.0)
    assert token.summary.startswith('" a" 60.7%')
    assert '" b" 22.3%' in token.summary
    row = format_row(token, color=False)
    assert row.count('" a"') == 1
    assert '" b"' in row


def test_ids_of_an_unknown_vocabulary_are_named_by_their_texts():
    token = read(encode(IDS_AND_TEXTS))
    assert (token.token_id, token.token_text, token.num_chunk_tokens) == (7, " a", 2)
    assert [(one.token_id, one.text) for one in token.candidates] == [(7, " a"), (8, " b")]
    assert '" b" 22.3%' in token.summary
    assert describe_token(token)["candidates"][1] == {
        "token_id": 8,
        "text": " b",
        "logprob": -1.5,
    }


def test_json_shows_grades_and_upstream():
    started = GenerationStarted(
        generation_id="g",
        observation=convert_observation(Observation(draw=DrawOrigin.ENGINE)),
        upstream=UpstreamInfo(kind="vllm", url="http://127.0.0.1:8000/v1", model="smol"),
        upstream_parameters_json='{"min_tokens_ratio": 1}',
    )
    state = GenerationState("g", lambda *_: "")
    event = GenerationEvent(started=started)
    state._observe(event)
    (told,) = describe_event(event, state)
    assert told["observation"]["draw"] == "engine"
    assert told["upstream"] == {
        "kind": "vllm",
        "url": "http://127.0.0.1:8000/v1",
        "model": "smol",
    }
    assert told["upstream_parameters_json"] == '{"min_tokens_ratio": 1}'


def test_the_page_names_tokens_without_ids_and_shows_the_grades():
    started = GenerationStarted(
        observation=convert_observation(Observation(draw=DrawOrigin.ENGINE)),
        upstream=UpstreamInfo(kind="ollama", url="http://127.0.0.1:11434", model="smol"),
    )
    steps = [encode(TEXTS_ALONE, index=0), encode(IDS_AND_TEXTS, index=1)]
    record = make_page_record(started, None, steps, (), None)
    first, second = record["sequences"][0]["steps"]
    names = record["vocabulary"]
    assert first["token_id"] < 0
    assert names[str(first["token_id"])] == " a"
    assert [names[str(one)] for one in first["candidates"]["token_ids"]] == [" a", " b"]
    assert first["candidates"]["logprobs"] == [-0.5, -1.5]
    assert second["token_id"] == 7
    assert names["8"] == " b"
    assert "draw engine" in record["generation"]["grades"]
    assert record["generation"]["upstream"] == "ollama at http://127.0.0.1:11434, model smol"
