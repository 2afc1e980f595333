"""Gradient x input and integrated gradients, compared with finite differences and with Captum."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from explained import explained_model, ignore_progress, target_of

from whence_server.engines.transformers.internals.sources import UnavailableError
from whence_server.explain import memory
from whence_server.explain.gradients import (
    PathOptions,
    integrate_gradients,
    multiply_gradient,
)
from whence_server.explain.reading import compute_value
from whence_server.explain.target import Target

TinyModel = Callable[..., Path]
SMOOTH = ["gpt2", "llama", "gemma2", "bloom", "opt", "gpt_neox", "mamba", "rwkv"]
"""Architectures without a choice of experts, at which the value would jump."""
RECORDED = Path(__file__).parents[1] / "recorded" / "captum.json"


@torch.no_grad()
def read_at(model: Any, target: Target, embedded: torch.Tensor) -> float:
    """Return the span's log probability from embeddings of the context, by a plain call."""
    embed = model.get_input_embeddings()
    rest = embed(torch.tensor([target.span[:-1]], dtype=torch.int64))
    handle = embed.register_forward_hook(
        lambda _module, _args, _output: torch.cat((embedded[None], rest), 1)
    )
    ids = torch.tensor([target.ids[:-1]])
    logits = model(input_ids=ids).logits[0].double()
    handle.remove()
    logprobs = torch.log_softmax(logits, -1)
    return sum(float(logprobs[target.start - 1 + i, token]) for i, token in enumerate(target.span))


@pytest.mark.parametrize("architecture", SMOOTH)
def test_gradient_is_that_of_finite_differences(tiny_model: TinyModel, architecture: str) -> None:
    model = explained_model(tiny_model(architecture)).double()
    target = target_of(8, 2)
    found = multiply_gradient(model, target, ignore_progress)
    embed = model.get_input_embeddings()
    embedded = embed(torch.tensor(target.context))
    assert found.value == pytest.approx(read_at(model, target, embedded), rel=1e-5)
    for position in (0, 3, 7):
        # Norms and states are computed in float32, whose noise a smaller step would show.
        step = torch.zeros_like(embedded)
        step[position] = embedded[position] * 3e-4
        change = read_at(model, target, embedded + step) - read_at(model, target, embedded - step)
        assert found.scores[position] == pytest.approx(change / 6e-4, rel=1e-2, abs=1e-2)


@pytest.mark.parametrize("architecture", [name for name in SMOOTH if name != "rwkv"])
@pytest.mark.parametrize("baseline", ["mean", "7"])
def test_refined_scores_add_up_to_the_difference(
    tiny_model: TinyModel, architecture: str, baseline: str
) -> None:
    model = explained_model(tiny_model(architecture))
    target = target_of(8)
    options = PathOptions(baseline, max_gap=0.02, max_steps=2048)
    found = integrate_gradients(model, target, options, ignore_progress)
    embed = model.get_input_embeddings()
    with torch.no_grad():
        vectors = embed(torch.arange(416))
        start = vectors.mean(0) if baseline == "mean" else vectors[7]
    base = read_at(model, target, start.expand(8, -1))
    assert found.baseline_value == pytest.approx(base, rel=1e-3, abs=1e-3)
    change = found.value - found.baseline_value
    assert sum(found.scores) + found.gap == pytest.approx(change, abs=1e-4)
    assert abs(found.gap) <= 0.02 * abs(change)


def test_a_zero_baseline_needs_refining(tiny_model: TinyModel) -> None:
    model = explained_model(tiny_model("llama"))
    target = target_of(8)
    few = integrate_gradients(model, target, PathOptions(num_steps=8), ignore_progress)
    options = PathOptions(max_gap=0.02, max_steps=512)
    refined = integrate_gradients(model, target, options, ignore_progress)
    assert few.num_steps == 8
    change = abs(refined.value - refined.baseline_value)
    assert abs(few.gap) > 0.02 * change
    assert abs(refined.gap) <= 0.02 * change
    assert 8 < refined.num_steps <= 512


def test_refining_ends_at_the_most_steps(tiny_model: TinyModel) -> None:
    model = explained_model(tiny_model("llama"))
    options = PathOptions(max_gap=1e-9, max_steps=40)
    found = integrate_gradients(model, target_of(8), options, ignore_progress)
    assert found.num_steps == 40
    assert found.gap


@pytest.mark.parametrize("against", [(5,), (5, 6)])
def test_a_contrast_is_a_difference(tiny_model: TinyModel, against: tuple[int, ...]) -> None:
    model = explained_model(tiny_model("gpt2"))
    target = target_of(8)
    options = PathOptions(num_steps=16)
    apart, own, other = (
        integrate_gradients(model, one, options, ignore_progress)
        for one in (
            Target(target.ids, 8, 8, against),
            target,
            Target((*target.context, *against), 8, 8),
        )
    )
    assert apart.value == pytest.approx(own.value - other.value, abs=1e-4)
    expected = [a - b for a, b in zip(own.scores, other.scores, strict=True)]
    assert apart.scores == pytest.approx(expected, abs=2e-3)


@pytest.mark.parametrize("architecture", ["gpt2", "llama", "bloom", "mixtral"])
def test_layers_that_are_computed_twice_give_the_same(
    tiny_model: TinyModel, architecture: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = explained_model(tiny_model(architecture))
    target = target_of(8, 2)
    kept = multiply_gradient(model, target, ignore_progress)
    monkeypatch.setattr(memory, "MAX_KEPT_BYTES", 1)
    again = multiply_gradient(model, target, ignore_progress)
    assert again.scores == pytest.approx(kept.scores, rel=1e-4, abs=1e-5)
    for module in model.modules():
        assert "forward" not in vars(module)


def test_random_weights_change_every_score(tiny_model: TinyModel) -> None:
    one, other = (
        multiply_gradient(explained_model(tiny_model("llama", seed)), target_of(8), ignore_progress)
        for seed in (0, 1)
    )
    assert all(a != b for a, b in zip(one.scores, other.scores, strict=True))


def test_progress_ends_the_work(tiny_model: TinyModel) -> None:
    model = explained_model(tiny_model("gpt2"))
    seen: list[tuple[int, int]] = []

    def stop_at_the_third(done: int, total: int) -> None:
        seen.append((done, total))
        if len(seen) == 3:
            raise InterruptedError

    with pytest.raises(InterruptedError):
        integrate_gradients(
            model, target_of(8), PathOptions(max_gap=1e-6, max_steps=64), stop_at_the_third
        )
    assert [done for done, _ in seen] == [0, 4, 8]
    assert {total for _, total in seen} == {64}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"baseline": "white"}, "expected zero, mean or a token id"),
        ({"max_gap": 0.0}, "max_gap: 0.0 is out of range"),
        ({"max_steps": 7}, "max_steps: 7 is too few; expected at least 8"),
        ({"num_steps": -1}, "num_steps: -1 is out of range"),
    ],
)
def test_options_out_of_range_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        PathOptions(**changes)


def test_a_baseline_beyond_the_vocabulary_is_refused(tiny_model: TinyModel) -> None:
    model = explained_model(tiny_model("gpt2"))
    with pytest.raises(ValueError, match="token 999 is not in the vocabulary of 416"):
        integrate_gradients(model, target_of(8), PathOptions("999"), ignore_progress)


def test_embeddings_that_are_not_read_once_are_refused(tiny_model: TinyModel) -> None:
    model = explained_model(tiny_model("gpt2"))
    embed, positions = model.transformer.wte, model.transformer.wpe
    positions.register_forward_hook(lambda _module, args, output: output + 0 * embed(args[0]))
    with pytest.raises(UnavailableError, match="calls its input embedding 2 times, expected once"):
        multiply_gradient(model, target_of(8), ignore_progress)


@pytest.mark.parametrize("architecture", ["gpt2", "llama"])
def test_scores_equal_captums(tiny_model: TinyModel, architecture: str) -> None:
    """Compare with Captum's values, which `make captum` records."""
    recorded = json.loads(RECORDED.read_text())[architecture]
    model = explained_model(tiny_model(architecture))
    target = Target(tuple(recorded["ids"]), recorded["start"], recorded["start"])
    assert compute_value(model, target) == pytest.approx(recorded["value"], rel=1e-4)
    multiplied = multiply_gradient(model, target, ignore_progress)
    check_close(multiplied.scores, recorded["gradient_x_input"])
    options = PathOptions(num_steps=recorded["num_steps"])
    integrated = integrate_gradients(model, target, options, ignore_progress)
    check_close(integrated.scores, recorded["integrated_gradients"])


def check_close(scores: list[float], expected: list[float]) -> None:
    torch.testing.assert_close(
        torch.tensor(scores),
        torch.tensor(expected),
        rtol=1e-4,
        atol=1e-4 * max(map(abs, expected)),
    )
