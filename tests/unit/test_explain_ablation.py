"""Ablations and their linear model: against known models, scikit-learn and ContextCite."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from ablated import read_whole
from additive_model import AdditiveModel
from engine_harness import loaded_model, prompt_of
from sklearn.linear_model import Lasso
from sklearn.preprocessing import StandardScaler
from transformers import AutoModelForCausalLM

from whence_server.domain.errors import InvalidRequestError
from whence_server.explain.ablated_values import AblatedValues
from whence_server.explain.ablation import ablate_halves, get_scale
from whence_server.explain.leave_one_out import leave_one_out
from whence_server.explain.leave_one_out_hierarchy import leave_out_by_levels
from whence_server.explain.operators import Operator
from whence_server.explain.segments import Segment
from whence_server.explain.surrogate import fit_surrogate
from whence_server.explain.target import Target

RECORDED = Path(__file__).parents[1] / "recorded" / "context_cite.json"
WEIGHTS = [0.0, 0.0, 0.4, -0.8, 2.0, 0.1, 0.0, 1.2, -0.3, 0.6]
IDS = (2, 3, 4, 5, 6, 7, 8, 9)
SEGMENTS = [Segment(i, i + 1) for i in range(1, len(IDS))]
TARGET = Target((*IDS, 0), len(IDS), len(IDS))


def ignore(_done: int, _total: int) -> None:
    """Wait for no progress."""


@pytest.mark.parametrize("operator", list(Operator))
@pytest.mark.parametrize("against", [(), (1,)])
def test_weights_are_those_of_an_additive_model(
    operator: Operator, against: tuple[int, ...]
) -> None:
    target = Target(TARGET.ids, TARGET.start, TARGET.num_prompt, against)
    options = {"operator": operator.value, "num_ablations": 128}
    scores = ablate_halves(AdditiveModel(WEIGHTS), target, SEGMENTS, options, ignore)
    expected = [WEIGHTS[i] for i in IDS[1:]]
    # LASSO shrinks each weight by 2 alpha, as segments vary by a half.
    np.testing.assert_allclose(scores.values, expected, atol=0.021)
    assert scores.values[IDS.index(6) - 1] == 0
    assert scores.num_passes == 129
    assert scores.parameters["operator"] == operator.value
    logit = sum(WEIGHTS[i] for i in IDS)
    assert scores.value == pytest.approx(logit if against else -np.log1p(np.exp(-logit)))
    alone = leave_one_out(AdditiveModel(WEIGHTS), target, SEGMENTS, options, ignore)
    if against:
        np.testing.assert_allclose(alone.values, expected, atol=1e-12)
    assert alone.num_passes == 1 + len(SEGMENTS)


def test_only_ablations_see_what_is_told_twice() -> None:
    weights = [0.0, 0.0, 0.1, 3.0, 0.1]
    ids = (2, 3, 4, 3, 2, 4)
    target = Target((*ids, 0), len(ids), len(ids), (1,))
    segments = [Segment(i, i + 1) for i in range(len(ids) - 1)]
    model = AdditiveModel(weights, takes_largest=True)
    alone = leave_one_out(model, target, segments, {}, ignore)
    assert alone.values == (0.0,) * 5
    random = ablate_halves(model, target, segments, {}, ignore)
    assert {int(i) for i in np.argsort(random.values)[-2:]} == {1, 3}
    assert min(random.values[1], random.values[3]) > 1
    assert max(random.values[0], random.values[2], random.values[4]) < 0.1


def test_the_same_seed_gives_the_same_scores() -> None:
    def run(seed: int) -> tuple[float, ...]:
        options = {"seed": seed, "num_ablations": 16}
        return ablate_halves(AdditiveModel(WEIGHTS), TARGET, SEGMENTS, options, ignore).values

    assert run(1) == run(1)
    assert run(1) != run(2)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"operator": "erase"}, "options.operator"),
        ({"num_ablations": 1}, "from 2 to 4096"),
        ({"num_ablations": 4097}, "from 2 to 4096"),
        ({"seed": -1}, "0 or more"),
    ],
)
def test_wrong_options_are_refused(options: dict[str, object], said: str) -> None:
    with pytest.raises(InvalidRequestError, match=said):
        ablate_halves(AdditiveModel(WEIGHTS), TARGET, SEGMENTS, options, ignore)


@pytest.mark.parametrize(("num_rows", "num_segments"), [(64, 8), (64, 100), (16, 5)])
@pytest.mark.parametrize("alpha", [0.001, 0.01, 0.3])
def test_the_linear_model_is_that_of_scikit_learn(
    num_rows: int, num_segments: int, alpha: float
) -> None:
    rng = np.random.default_rng(num_segments)
    kept = rng.random((num_rows, num_segments)) < 0.5
    kept[:, 2] = True
    values = kept @ rng.normal(size=num_segments) + rng.normal(size=num_rows)
    scaler = StandardScaler().fit(kept.astype(float))
    lasso = Lasso(alpha=alpha, tol=1e-9, max_iter=100_000)
    lasso.fit(scaler.transform(kept.astype(float)), values / 3)
    expected = lasso.coef_ / scaler.scale_ * 3
    found = fit_surrogate(kept, values, 3, alpha)
    np.testing.assert_allclose(found.weights, expected, rtol=1e-5, atol=1e-6)
    predicted = lasso.predict(scaler.transform(kept.astype(float))) * 3
    np.testing.assert_allclose(found.predict(kept), predicted, rtol=1e-5, atol=1e-5)


def test_levels_agree_with_leaving_out_each(tiny_model: Callable[..., Path]) -> None:
    model = loaded_model(tiny_model("llama")).model
    target = Target(tuple(prompt_of(60, seed=5)), 57, 57)
    large = [Segment(begin, begin + 8) for begin in range(1, 57, 8)]
    small = [Segment(i, i + 2) for i in range(1, 57, 2)]
    exact = leave_one_out(model, target, small, {}, ignore)
    told: list[tuple[int, int]] = []
    found = leave_out_by_levels(model, target, (large, small), {}, lambda *work: told.append(work))
    left_out = [i for i, alone in enumerate(found.is_exact) if alone]
    assert len(left_out) == 3 * 4 + 8
    np.testing.assert_allclose(
        [found.scores.values[i] for i in left_out], [exact.values[i] for i in left_out], atol=2e-4
    )
    sampled = [i for i in left_out if not _is_in_best(small[i], large, model, target)]
    assert len(sampled) == 8
    weakest = sorted((abs(exact.values[i]) for i in left_out if i not in sampled), reverse=True)[4]
    expected = sum(abs(exact.values[i]) < weakest for i in sampled) / 8
    assert found.agreement == pytest.approx(expected)
    assert found.scores.num_passes == 1 + len(large) + len(left_out)
    assert told[-1][0] == told[-1][1]
    groups = leave_one_out(model, target, large, {}, ignore).values
    rough = [i for i in range(len(small)) if i not in left_out]
    for i in rough:
        assert found.scores.values[i] == pytest.approx(groups[i // 4] / 4, abs=2e-4)


def _is_in_best(segment: Segment, large: list[Segment], model: Any, target: Target) -> bool:
    scores = np.abs(leave_one_out(model, target, large, {}, ignore).values)
    best = [large[i] for i in np.argsort(-scores)[:3]]
    return any(start <= segment.start < end for start, end in best)


@pytest.mark.parametrize("name", ["tiny", "real"])
def test_ablations_are_those_of_context_cite(
    name: str, tiny_model: Callable[..., Path], request: pytest.FixtureRequest
) -> None:
    recorded = json.loads(RECORDED.read_text())[name]
    directory = tiny_model("llama") if name == "tiny" else request.getfixturevalue("real_model")
    model = AutoModelForCausalLM.from_pretrained(directory).eval()
    ids = (*recorded["prompt_ids"], *recorded["response_ids"])
    target = Target(ids, len(recorded["prompt_ids"]), len(recorded["prompt_ids"]))
    segments = [Segment(*each) for each in recorded["segments"]]
    masks = np.array(recorded["masks"], bool)
    few = masks if name == "tiny" else masks[:6]
    values = AblatedValues(model, target, segments).measure(few, Operator.REMOVE, ignore)
    logits = get_scale(target, values)
    np.testing.assert_allclose(logits, recorded["logits"][: len(few)], rtol=1e-3, atol=2e-3)
    found = fit_surrogate(masks, np.array(recorded["logits"]), len(target.span))
    np.testing.assert_allclose(found.weights, recorded["attributions"], rtol=1e-3, atol=1e-3)
    # One mask by a whole pass: the recorded logits are those of whole passes too.
    value = read_whole(model, target, segments, list(masks[0]), hides=False)
    assert values[0] == pytest.approx(value, rel=1e-4, abs=1e-4)
