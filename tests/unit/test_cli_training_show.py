"""Thinning of plotted steps, which keeps steps with recorded norms."""

import pytest
from lineage_records import training_step

from whence.cli.runs import format_event, name_state
from whence.cli.training_show import Course, format_details, round_stride
from whence.v1 import training_pb2 as pb


@pytest.mark.parametrize(
    ("num_steps", "stride"),
    [(0, 1), (100, 1), (101, 2), (201, 5), (501, 10), (1_001, 20), (2_001, 50), (10**6, 10_000)],
)
def test_strides_have_round_numbers(num_steps: int, stride: int) -> None:
    assert round_stride(num_steps, 100) == stride


@pytest.mark.parametrize("norm_stride", [1, 2, 5, 10])
def test_fewer_steps_still_have_norms(norm_stride: int) -> None:
    without = {"update_norms": [], "weight_norms": []}
    steps = [
        training_step(number, 1, 2, **({} if number % norm_stride == 0 else without))
        for number in range(1, 1_001)
    ]
    thinned = Course(steps, 1).thin(100)
    assert [step.step for step in thinned.steps] == list(range(10, 1_001, 10))
    assert thinned.measured == list(range(10, 1_001, 10))
    assert thinned.covers == "100 steps, one in 10"
    expected = [2.0**-1 / number / 10 for number in range(10, 1_001, 10)]
    assert thinned.list_relative_updates(1) == pytest.approx(expected)


def test_a_group_that_was_not_measured_has_no_row() -> None:
    assert Course([training_step(1, 1, 2)], 1).list_relative_updates(2) == []
    assert Course([training_step(1, 1, 2)], 1).covers == "1 step"


def test_weights_of_zero_have_no_relative_update() -> None:
    step = training_step(1, 1, 1, weight_norms=[0.0])
    assert Course([step], 1).list_relative_updates(0) == [0.0]


def test_what_is_not_on_record_is_said() -> None:
    gap = pb.RecordingGap(step=3, attempt=1, subject="example_ids", reason="a list\x1b[31m")
    run = pb.GetTrainingRunResponse(gaps=[gap])
    shown = list(format_details(run))
    assert shown[-2:] == ["\nnot on record", "  example_ids after step 3: a list\\x1b[31m"]
    assert format_event(pb.TrainingEvent(gap=gap)).split()[:2] == ["gap", "example_ids"]
    assert name_state(pb.TRAINING_STATE_UNRECORDED) == "unrecorded"
