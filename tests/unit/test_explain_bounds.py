"""Bounds of an explanation's work and memory: they hold before any of it is spent."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from explained import explained_model, ignore_progress, target_of

from whence_server.analysis import process
from whence_server.domain.errors import ExplanationTooLargeError
from whence_server.explain import leave_one_out as leaving
from whence_server.explain import memory
from whence_server.explain.flow import FlowOptions, trace_flow
from whence_server.explain.leave_one_out import count_least, leave_one_out
from whence_server.explain.patching import Corruption, patch
from whence_server.explain.scores import Progress
from whence_server.explain.segments import Segment

TARGET = target_of(20)
SEGMENTS = [Segment(i, i + 1) for i in range(20)]
METHODS: dict[str, Callable[[Any, Progress], object]] = {
    "flow": lambda model, progress: trace_flow(model, TARGET, FlowOptions(), progress),
    "patching": lambda model, progress: patch(
        model, TARGET, Corruption(2, 5), range(2, 20), progress
    ),
    "leave one out": lambda model, progress: leave_one_out(model, TARGET, SEGMENTS, {}, progress),
}


def refuse(_done: int, total: int) -> None:
    """Refuse any work, as a job does that is too large."""
    if total:
        raise ExplanationTooLargeError("too large")


@pytest.fixture
def model(tiny_model: Callable[..., Path], monkeypatch: pytest.MonkeyPatch) -> Any:
    """A model that must not be run."""

    def fail(*_args: Any, **_kwargs: Any) -> None:
        raise AssertionError("the model was run")

    made = explained_model(tiny_model("llama"))
    monkeypatch.setattr(made.model, "forward", fail)
    monkeypatch.setattr(leaving, "leave_out_each", fail)
    return made


@pytest.mark.parametrize("name", METHODS)
def test_work_is_refused_before_any_is_done(model: Any, name: str) -> None:
    with pytest.raises(ExplanationTooLargeError, match="too large"):
        METHODS[name](model, refuse)


@pytest.mark.parametrize("name", ["flow", "patching"])
def test_outputs_that_cannot_be_kept_are_refused_before_a_pass(
    model: Any, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.setattr(memory, "MAX_STREAM_BYTES", 1000)
    with pytest.raises(ExplanationTooLargeError, match="outputs of all layers") as caught:
        METHODS[name](model, ignore_progress)
    assert int(caught.value.metadata["num_tokens"]) >= 20
    assert int(caught.value.metadata["max_tokens"]) < 20


def test_leaving_out_reads_at_least_what_comes_after_each_segment(
    tiny_model: Callable[..., Path],
) -> None:
    told: list[tuple[int, int]] = []
    model = explained_model(tiny_model("llama"))
    leave_one_out(model, TARGET, SEGMENTS, {}, lambda *work: told.append(work))
    assert told[0] == (0, count_least(TARGET, SEGMENTS)) == (0, 190)
    assert 190 <= told[-1][0] == told[-1][1]


def test_the_process_is_ended_before_others_if_memory_is_short(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    file = tmp_path / "oom_score_adj"
    monkeypatch.setattr(process, "_BADNESS_FILE", file)
    process._offer_to_end()
    assert not file.exists()
    for before, after in (("0\n", "500"), ("800\n", "800\n")):
        file.write_text(before)
        process._offer_to_end()
        assert file.read_text() == after
