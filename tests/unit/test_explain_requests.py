"""Requests for explanations: built by the client, and checked by the server field by field."""

from typing import Any

import pytest

from whence.explaining import make_explain_request
from whence.v1 import explain_pb2 as pb
from whence.v1 import explanation_pb2
from whence_server.domain.errors import InvalidRequestError, NotOfferedError
from whence_server.domain.explanations import (
    DEFAULT_METHOD,
    METHOD_OPTIONS,
    ExplainMethod,
    Operator,
    SegmentUnit,
)
from whence_server.explain.methods import METHODS
from whence_server.rpc.explain_requests import read_given, read_way

ID = "00000000-0000-4000-8000-000000000001"


def test_the_clients_options_arrive_as_a_way() -> None:
    request = make_explain_request(
        ID,
        {
            "steps": range(3, 8),
            "sequence": 1,
            "against": 17,
            "method": "leave-one-out",
            "segments": [range(2), range(5, 9)],
            "operator": "remove",
            "seed": 7,
            "trust": False,
        },
    )
    recorded = request.recorded
    assert (recorded.generation_id, recorded.sequence_index) == (ID, 1)
    assert (recorded.begin_step, recorded.end_step) == (3, 8)
    way = read_way(request)
    assert way.method is ExplainMethod.LEAVE_ONE_OUT
    assert way.against == 17
    assert way.segments == ((0, 2), (5, 9))
    assert way.unit is None
    assert way.options == {"operator": "remove", "seed": 7}
    assert not way.measures_trust


def test_an_empty_request_means_the_defaults() -> None:
    way = read_way(make_explain_request(ID, {"step": 0}))
    assert way.method is DEFAULT_METHOD
    assert (way.against, way.unit, way.segments, way.options) == (None, None, None, {})
    assert way.measures_trust


def test_a_text_is_given_as_text_or_as_token_ids() -> None:
    assert read_given(make_explain_request(None, {"prompt": "a", "text": "b"}).given) == ("a", "b")
    given = make_explain_request(None, {"prompt": [1, 2], "text": [3]}).given
    assert read_given(given) == ((1, 2), (3,))


@pytest.mark.parametrize(
    ("generation_id", "options", "error", "words"),
    [
        (ID, {}, TypeError, "give `step`"),
        (ID, {"step": 1, "steps": range(2)}, TypeError, "give `step`"),
        (ID, {"step": 1, "prompt": "a", "text": "b"}, TypeError, "contradict"),
        (None, {"prompt": "a"}, TypeError, "`prompt` and `text`"),
        (None, {"prompt": "a", "text": "b", "step": 1}, TypeError, "`step` is for a generation"),
        (ID, {"steps": range(4, 4)}, ValueError, "no range of indexes"),
        (ID, {"steps": range(0, 9, 2)}, ValueError, "no range of indexes"),
        (ID, {"step": 1, "method": "magic"}, ValueError, "one of leave-one-out, "),
        (ID, {"step": 1, "segments": "verses"}, ValueError, "one of words, sentences, "),
        (ID, {"step": 1, "segments": [3]}, TypeError, "must be of type range"),
        (ID, {"step": 1, "methd": "flow"}, TypeError, "did you mean 'method'"),
    ],
)
def test_the_client_refuses_options_by_name(
    generation_id: str | None, options: Any, error: type[Exception], words: str
) -> None:
    with pytest.raises(error, match=words):
        make_explain_request(generation_id, options)


def refuse(**fields: Any) -> set[str]:
    """Return the fields at fault."""
    with pytest.raises(InvalidRequestError) as caught:
        read_way(pb.ExplainRequest(**fields))
    return {violation.field for violation in caught.value.violations}


def test_the_server_names_every_field_at_fault() -> None:
    leave_one_out = explanation_pb2.EXPLAIN_METHOD_LEAVE_ONE_OUT
    unit: Any = 99
    assert refuse(
        method=leave_one_out,
        against_text="",
        segmentation=pb.Segmentation(unit=unit),
        options=pb.ExplainOptions(operator=unit, max_gap=0.1),
    ) == {"against_text", "segmentation.unit", "options.operator", "options.max_gap"}
    assert refuse(segmentation=pb.Segmentation(segments=pb.ContextSegments())) == {
        "segmentation.segments"
    }


def test_an_unknown_method_is_not_offered_and_those_that_work_are_named() -> None:
    unknown: Any = 99
    with pytest.raises(NotOfferedError, match=r"number 99; it has .*leave-one-out"):
        read_way(pb.ExplainRequest(method=unknown))


def test_a_continuation_must_be_there() -> None:
    for given in (
        pb.GivenSpan(prompt="a"),
        pb.GivenSpan(text="b"),
        pb.GivenSpan(prompt="a", text=""),
    ):
        with pytest.raises(InvalidRequestError):
            read_given(given)


def test_the_domain_names_what_the_contract_names() -> None:
    for kind, enum, prefix in (
        (ExplainMethod, explanation_pb2.ExplainMethod, "EXPLAIN_METHOD_"),
        (Operator, explanation_pb2.AblationOperator, "ABLATION_OPERATOR_"),
        (SegmentUnit, pb.SegmentUnit, "SEGMENT_UNIT_"),
    ):
        named = {name.removeprefix(prefix): number for name, number in enum.items() if number}
        assert {member.name: member.value for member in kind} == named


def test_every_method_with_options_has_a_function_and_no_other() -> None:
    assert METHODS.keys() == METHOD_OPTIONS.keys()
    known = {field.name for field in pb.ExplainOptions.DESCRIPTOR.fields}
    assert all(names <= known for names in METHOD_OPTIONS.values())
    assert DEFAULT_METHOD in METHODS
