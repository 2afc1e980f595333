"""Values under ablations: equal to whole passes, for fewer tokens."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from ablated import read_whole
from engine_harness import loaded_model, prompt_of
from internals_oracle import eager_model

from whence_server.domain.errors import NotOfferedError
from whence_server.explain import cached_sequences
from whence_server.explain.ablated_values import AblatedValues
from whence_server.explain.leave_one_out import leave_out_each
from whence_server.explain.masks import draw_halves
from whence_server.explain.operators import Operator
from whence_server.explain.segments import Segment
from whence_server.explain.span_values import compute_logprobs, convert_to_logits
from whence_server.explain.target import Target

TinyModel = Callable[..., Path]
IDS = tuple(prompt_of(60, seed=5))
START = 54
SEGMENTS = [Segment(begin, begin + 6) for begin in range(3, 45, 7)]
TARGETS = {
    "span": Target(IDS, START, 50),
    "token": Target(IDS[: START + 1], START, 50),
    "token against token": Target(IDS[: START + 1], START, 50, (IDS[0] + 1,)),
    "span against text": Target(IDS, START, 50, tuple(prompt_of(4, seed=6))),
}
ATTENDING = ("llama", "gpt2", "opt", "mistral", "gemma2")


def ignore(_done: int, _total: int) -> None:
    """Wait for no progress."""


@pytest.mark.parametrize("target", TARGETS.values(), ids=TARGETS.keys())
@pytest.mark.parametrize("operator", list(Operator))
@pytest.mark.parametrize("architecture", ATTENDING)
def test_values_are_those_of_whole_passes(
    tiny_model: TinyModel, architecture: str, operator: Operator, target: Target
) -> None:
    model = loaded_model(tiny_model(architecture)).model
    reader = AblatedValues(model, target, SEGMENTS)
    kept = np.vstack([leave_out_each(len(SEGMENTS)), draw_halves(len(SEGMENTS), 4, 1)])
    values = reader.measure(kept, operator, ignore)
    plain = eager_model(tiny_model(architecture))
    expected = [
        read_whole(plain, target, SEGMENTS, row, hides=operator is Operator.HIDE) for row in kept
    ]
    np.testing.assert_allclose(values, expected, rtol=1e-4, atol=2e-4)
    assert reader.num_passes == len(kept)


@pytest.mark.parametrize("architecture", ["mamba", "jamba", "bloom"])
def test_models_without_a_prefix_to_reuse_or_tokens_to_hide_remove_them(
    tiny_model: TinyModel, architecture: str
) -> None:
    model = loaded_model(tiny_model(architecture)).model
    target = TARGETS["span against text"]
    reader = AblatedValues(model, target, SEGMENTS)
    kept = leave_out_each(len(SEGMENTS))
    values = reader.measure(kept, Operator.REMOVE, ignore)
    expected = [read_whole(model, target, SEGMENTS, row, hides=False) for row in kept]
    np.testing.assert_allclose(values, expected, rtol=1e-4, atol=2e-4)
    with pytest.raises(NotOfferedError, match="use remove"):
        reader.measure(kept, Operator.HIDE, ignore)


@pytest.mark.parametrize("operator", list(Operator))
@pytest.mark.parametrize("target", TARGETS.values(), ids=TARGETS.keys())
def test_the_work_is_known_before_and_less_than_half_of_whole_passes(
    tiny_model: TinyModel, target: Target, operator: Operator
) -> None:
    model = loaded_model(tiny_model("llama")).model
    segments = [Segment(i, i + 1) for i in range(1, START)]
    kept = leave_out_each(len(segments))
    reader = AblatedValues(model, target, segments)
    total = reader.count_tokens(kept, operator)
    told: list[tuple[int, int]] = []
    reader.measure(kept, operator, lambda *work: told.append(work), total)
    assert reader.num_tokens == total
    assert told[-1] == (total, total)
    assert [done for done, _ in told] == sorted(done for done, _ in told)
    whole = len(kept) * (START + len(target.span) - 1)
    assert total < 0.62 * (whole + len(kept) * len(target.against))


def test_a_job_ends_where_its_progress_raises(tiny_model: TinyModel) -> None:
    reader = AblatedValues(loaded_model(tiny_model("llama")).model, TARGETS["span"], SEGMENTS)

    def cancel(_done: int, _total: int) -> None:
        raise InterruptedError

    with pytest.raises(InterruptedError):
        reader.measure(leave_out_each(len(SEGMENTS)), Operator.REMOVE, cancel)
    assert 0 < reader.num_passes < 1 + len(SEGMENTS)


def test_long_contexts_are_read_in_chunks(
    tiny_model: TinyModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = loaded_model(tiny_model("llama")).model
    kept = leave_out_each(len(SEGMENTS))
    whole = {
        target: AblatedValues(model, target, SEGMENTS).measure(kept, Operator.REMOVE, ignore)
        for target in TARGETS.values()
    }
    monkeypatch.setattr(cached_sequences, "CHUNK_TOKENS", 4)
    for target, values in whole.items():
        chunked = AblatedValues(model, target, SEGMENTS).measure(kept, Operator.REMOVE, ignore)
        np.testing.assert_allclose(chunked, values, rtol=1e-4, atol=2e-4)


@pytest.mark.parametrize("architecture", ATTENDING)
def test_tokens_that_see_nothing_disturb_no_other(tiny_model: TinyModel, architecture: str) -> None:
    # Longer than a window, and from the first token on: attention of hidden tokens has nothing.
    model = loaded_model(tiny_model(architecture)).model
    target, segments = TARGETS["span"], [Segment(0, 30), Segment(30, 40)]
    none = np.zeros((1, 2), bool)
    (value,) = AblatedValues(model, target, segments).measure(none, Operator.HIDE, ignore)
    expected = read_whole(
        eager_model(tiny_model(architecture)), target, segments, none[0], hides=True
    )
    assert value == pytest.approx(expected, rel=1e-4, abs=2e-4)


def test_a_context_of_which_nothing_is_left_keeps_its_last_token(tiny_model: TinyModel) -> None:
    model = loaded_model(tiny_model("llama")).model
    target = TARGETS["span"]
    segments = [Segment(0, 30), Segment(30, START)]
    none = np.zeros((1, 2), bool)
    (value,) = AblatedValues(model, target, segments).measure(none, Operator.REMOVE, ignore)
    alone = Target(IDS[START - 1 :], 1, 0)
    expected = read_whole(model, alone, [], [], hides=False)
    assert value == pytest.approx(expected, abs=2e-4)


def test_probabilities_next_to_one_keep_their_logits() -> None:
    # Of p = 1 - 2e-22, which float64 rounds to 1.
    logits = torch.tensor([[50.0, 0.0, 0.0], [0.0, 1.0, 2.0]])
    found = compute_logprobs(logits, [0, 2])
    assert float(found[0]) == pytest.approx(-2 * np.exp(-50.0), rel=1e-9)
    assert float(found[1]) == pytest.approx(2 - np.log(1 + np.e + np.e**2), rel=1e-6)
    (of_first,) = convert_to_logits(found[:1].numpy())
    assert of_first == pytest.approx(50 - np.log(2), rel=1e-9)
    halves = np.log(np.array([1e-30, 0.25, 0.5, 0.75]))
    expected = [np.log(1e-30), np.log(1 / 3), 0.0, np.log(3)]
    np.testing.assert_allclose(convert_to_logits(halves), expected, rtol=1e-12, atol=1e-12)


def test_halves_differ_and_few_segments_give_all_of_theirs() -> None:
    halves = draw_halves(12, 64, 0)
    assert halves.shape == (64, 12)
    assert len({row.tobytes() for row in halves}) == 64
    assert 0.4 < halves.mean() < 0.6
    assert (draw_halves(12, 64, 0) == halves).all()
    assert (draw_halves(12, 64, 1) != halves).any()
    assert len(draw_halves(5, 64, 0)) == 32
    assert len(draw_halves(5, 32, 0)) == 32
    assert len(draw_halves(1, 64, 0)) == 2
