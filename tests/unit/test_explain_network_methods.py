"""Methods from inside the network, as the table of methods calls them."""

from collections.abc import Callable, Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from engine_harness import loaded_model
from explained import explained_model, ignore_progress, target_of

from whence_server.domain.errors import InvalidRequestError, NotOfferedError
from whence_server.explain import network_methods
from whence_server.explain.decomposition import decompose
from whence_server.explain.flow import FlowOptions, trace_flow
from whence_server.explain.gradients import multiply_gradient
from whence_server.explain.network_methods import (
    MAX_PATCHED_POSITIONS,
    decomposition,
    flow,
    gradient,
    integrated_gradients,
    patching,
)
from whence_server.explain.patching import PatchingMap
from whence_server.explain.reading import compute_value
from whence_server.explain.scores import MAX_TOKENS_READ
from whence_server.explain.target import Target

TinyModel = Callable[..., Path]
SEGMENTS = [(1, 4), (4, 8), (9, 12)]


def test_scores_are_sums_over_segments(tiny_model: TinyModel) -> None:
    model = explained_model(tiny_model("llama"))
    target = target_of(12)
    multiplied = multiply_gradient(model, target, ignore_progress).scores
    shares = trace_flow(model, target, FlowOptions(), ignore_progress).scores
    for method, positions in ((gradient, multiplied), (flow, shares)):
        found = method(model, target, SEGMENTS, {}, ignore_progress)
        expected = [sum(positions[begin:end]) for begin, end in SEGMENTS]
        assert found.values == pytest.approx(expected, abs=1e-6)
        assert found.value == pytest.approx(compute_value(model, target), abs=1e-4)
        rest = positions[0] + positions[8]
        assert float(found.parameters["outside_segments"]) == pytest.approx(rest, rel=1e-4)


def test_integrated_gradients_tell_their_path(tiny_model: TinyModel) -> None:
    model = explained_model(tiny_model("gpt2"))
    found = integrated_gradients(model, target_of(12), SEGMENTS, {"max_gap": 0.1}, ignore_progress)
    parameters = found.parameters
    assert (parameters["baseline"], parameters["path"]) == ("zero", "straight")
    assert parameters["max_gap"] == "0.1"
    assert found.num_passes == int(parameters["num_steps"]) >= 8
    assert found.gap is not None
    outside = float(parameters["outside_segments"])
    change = found.value - float(parameters["baseline_value"])
    assert sum(found.values) + outside + found.gap == pytest.approx(change, rel=1e-3)


def test_a_decomposition_has_terms_and_no_scores(tiny_model: TinyModel) -> None:
    model = explained_model(tiny_model("gemma2"))
    target = target_of(12, 1, (5,))
    found = decomposition(model, target, SEGMENTS, {}, ignore_progress)
    expected = decompose(model, target, ignore_progress)
    assert found.values == ()
    assert found.terms is not None
    assert found.terms.mlps == pytest.approx(expected.mlps)
    assert (len(found.terms.heads), len(found.terms.heads[0])) == (3, 4)
    assert found.gap == found.terms.residual
    assert found.terms.residual == pytest.approx(0, abs=1e-4)


def test_patching_restores_what_follows_the_corruption(tiny_model: TinyModel) -> None:
    model = explained_model(tiny_model("llama"))
    target = target_of(12)
    for seed in range(20):
        options = {"corrupted_segment": 1, "seed": seed}
        try:
            found = patching(model, target, SEGMENTS, options, ignore_progress)
            break
        except InvalidRequestError:
            continue  # This seed's noise does not lower the value.
    assert found.recovered is not None
    assert found.recovered.positions == tuple(range(4, 12))
    assert len(found.recovered.shares) == 3
    assert found.recovered.corrupted_value < found.value
    assert found.parameters["corrupted_positions"] == "4:8"
    assert found.parameters["seed"] == str(seed)
    assert found.recovered.shares[-1][-1] == pytest.approx(1, abs=1e-4)


def test_a_long_context_restores_the_last_positions_and_ends_of_segments() -> None:
    target = target_of(400)
    segments = [(i, i + 4) for i in range(0, 400, 4)]
    positions = network_methods._choose_positions(target, segments, 100)
    assert len(positions) <= MAX_PATCHED_POSITIONS
    assert positions == sorted(set(positions))
    assert positions[0] >= 100
    assert set(range(380, 400)) <= set(positions)
    assert sum(position % 4 == 3 and position < 370 for position in positions) > 10


@pytest.mark.parametrize("options", [{"max_gap": 0}, {"max_gap": 1.5}, {"max_gap": "small"}])
def test_a_gap_out_of_range_is_refused(
    tiny_model: TinyModel, options: Mapping[str, object]
) -> None:
    model = explained_model(tiny_model("gpt2"))
    with pytest.raises(InvalidRequestError, match=r"options.max_gap: is .* must be above 0"):
        integrated_gradients(model, target_of(12), SEGMENTS, options, ignore_progress)


def test_a_corrupted_segment_out_of_range_is_refused(tiny_model: TinyModel) -> None:
    model = explained_model(tiny_model("gpt2"))
    with pytest.raises(InvalidRequestError, match="is 3; it must be a number from 0 to 2"):
        patching(model, target_of(12), SEGMENTS, {"corrupted_segment": 3}, ignore_progress)
    with pytest.raises(InvalidRequestError, match="has no segment"):
        patching(model, target_of(12), [], {}, ignore_progress)


def test_an_architecture_without_flow_is_told_what_works(tiny_model: TinyModel) -> None:
    model = explained_model(tiny_model("mamba"))
    with pytest.raises(NotOfferedError, match=r"does not give flow: layer 1 .* gradient and"):
        flow(model, target_of(12), SEGMENTS, {}, ignore_progress)


def test_progress_is_told_in_tokens(tiny_model: TinyModel) -> None:
    seen: list[tuple[int, int]] = []
    model = explained_model(tiny_model("gpt2"))
    gradient(model, target_of(12, 2), SEGMENTS, {}, lambda *args: seen.append(args))
    assert seen == [(0, 13), (13, 13)]


@pytest.mark.parametrize(
    "architecture", ["llama", "gpt2", "llama_dynamic", "phi3_longrope", "rwkv", "gemma3_dynamic"]
)
def test_a_model_that_the_engine_has_tried_out_can_be_explained(
    tiny_model: TinyModel, architecture: str
) -> None:
    """The engine's trials run without gradients, and must leave nothing behind that has none."""
    model = loaded_model(tiny_model(architecture), maps_weights=True).model
    target = target_of(50)
    multiplied = gradient(model, target, SEGMENTS, {}, ignore_progress)
    assert multiplied.value == pytest.approx(compute_value(model, target), abs=1e-4)
    assert all(multiplied.values)
    terms = decomposition(model, target, SEGMENTS, {}, ignore_progress).terms
    assert terms is not None
    assert terms.residual == pytest.approx(0, abs=1e-3)


@pytest.mark.parametrize(("num_tokens", "num_layers"), [(1_000, 30), (30_000, 80), (200_000, 80)])
def test_patching_restores_as_many_positions_as_the_work_allows(
    monkeypatch: pytest.MonkeyPatch, num_tokens: int, num_layers: int
) -> None:
    config = SimpleNamespace(num_hidden_layers=num_layers)
    model = SimpleNamespace(config=SimpleNamespace(get_text_config=lambda decoder: config))
    target = Target(tuple(range(num_tokens + 1)), num_tokens, num_tokens)
    segments = [(i, i + 10) for i in range(0, num_tokens, 10)]
    told: list[tuple[int, int]] = []
    positions: list[int] = []

    def patch(_model: Any, _target: Any, _corruption: Any, chosen: Any, progress: Any) -> Any:
        positions.extend(chosen)
        progress(0, num_layers)
        return PatchingMap(0.0, -1.0, list(chosen), [], 0)

    monkeypatch.setattr(network_methods, "patch", patch)
    patching(model, target, segments, {}, lambda *work: told.append(work))
    assert positions == sorted(set(positions))
    assert 1 <= len(positions) <= MAX_PATCHED_POSITIONS
    ((_, total),) = told
    assert total == len(positions) * num_tokens * num_layers // 2
    # One position alone is always tried.
    assert total <= MAX_TOKENS_READ or len(positions) == 1
    assert len(positions) > 24 or num_tokens > 1_000


def test_flow_counts_a_pass_and_a_sweep(tiny_model: TinyModel) -> None:
    seen: list[tuple[int, int]] = []
    model = explained_model(tiny_model("gpt2"))
    flow(model, target_of(12, 2), SEGMENTS, {}, lambda *args: seen.append(args))
    assert seen[0] == (0, 26)
    assert seen[-1] == (26, 26)
