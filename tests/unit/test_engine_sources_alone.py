"""Sources of models that decode each sequence by itself: checks at load, and their state."""

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from engine_harness import engine_options, loaded_model
from transformers import AttentionInterface, AutoModelForCausalLM

from whence_server.domain.errors import ConfigurationError
from whence_server.domain.model import InternalsInfo
from whence_server.engines.transformers.internals import attention, probe_building, probed_sequence
from whence_server.engines.transformers.internals.probe import Probe
from whence_server.engines.transformers.internals.probe_building import build_probe
from whence_server.engines.transformers.internals.sources import (
    OutputNorms,
    Reading,
    UnavailableError,
    read_context,
)
from whence_server.engines.transformers.loading import load
from whence_server.engines.transformers.solo import SoloRunner

TinyModel = Callable[..., Path]
METHOD = "value-norm-attention/2"


def model_of(directory: Path) -> Any:
    """Return a model with our attention function in place."""
    model = AutoModelForCausalLM.from_pretrained(directory).eval().requires_grad_(False)
    assert attention.adopt(model) is None
    return model


def probe_of(model: Any) -> tuple[Probe, InternalsInfo]:
    probe, info = build_probe(model, None, None, None)
    assert info.source_method == (METHOD if probe.norms is not None else "")
    return probe, info


def test_a_layer_with_few_columns_has_weight_0_before_them() -> None:
    norms = torch.tensor([[[1.0, 2.0, 3.0, 4.0], [1.0, 1.0, 1.0, 1.0]]])  # (1, K, 4)
    wide = torch.tensor([[[0.1, 0.2, 0.3, 0.4]]])
    narrow = torch.tensor([[[0.25, 0.75]]])
    padded = torch.tensor([[[9.0, 0.1, 0.2, 0.3, 0.4]]])
    expected = torch.tensor([[0.1, 0.4, 0.9 + 0.25, 1.6 + 0.75]])
    for first in (wide, padded):
        found = read_context([first, narrow], norms, None).contributions
        torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("architecture", ["jamba", "llama4"])
def test_a_position_s_norms_are_computed_once_for_all_its_rows(
    tiny_model: TinyModel, monkeypatch: pytest.MonkeyPatch, architecture: str
) -> None:
    model = model_of(tiny_model(architecture))
    probe, _ = probe_of(model)
    num_columns: list[int] = []
    original = OutputNorms.compute

    def counting(self: OutputNorms, values: Sequence[torch.Tensor]) -> torch.Tensor:
        num_columns.append(values[0].shape[1])
        return original(self, values)

    monkeypatch.setattr(OutputNorms, "compute", counting)
    runner = SoloRunner(model, probe)
    prompt = runner.start(list(range(30)), probed=True)
    runner.prefill(prompt, 30, all_logits=False)
    runner.join(prompt, 2)
    assert num_columns == [30]
    runner.decode([1, 2])
    runner.read_probe()
    assert num_columns == [30, 1, 1]
    runner.copy_rows([0], [1])
    runner.leave(0)
    runner.decode([3])
    runner.read_probe()
    assert num_columns == [30, 1, 1, 1]


def test_rows_that_did_not_ask_are_not_probed(
    tiny_model: TinyModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = model_of(tiny_model("jamba"))
    probe, _ = probe_of(model)
    runner = SoloRunner(model, probe)
    for probed in (False, True):
        prompt = runner.start([5, 6, 7], probed=probed)
        runner.prefill(prompt, 3, all_logits=False)
        runner.join(prompt)
    watched: list[object] = []
    original = attention.LayerAttention

    def counting(*args: Any) -> attention.LayerAttention:
        watched.append(args)
        return original(*args)

    monkeypatch.setattr(attention, "LayerAttention", counting)
    runner.decode([8, 9])
    assert len(watched) == 2, "the two layers that attend, once"
    readout = runner.read_probe()
    assert readout is not None
    assert readout.rows == [1]
    runner.stop_probing()
    runner.decode([10, 11])
    assert runner.read_probe() is None
    assert len(watched) == 2


def test_our_attention_is_in_place(tiny_model: TinyModel) -> None:
    loaded = loaded_model(tiny_model("jamba"))
    assert not loaded.info.batched
    assert attention.get_implementation(loaded.model) == "whence_sdpa"
    assert loaded.info.environment.attention_implementation == "sdpa"


def test_a_model_whose_logits_ours_would_change_keeps_its_attention(tiny_model: TinyModel) -> None:
    def wrong(module: Any, query: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        output, weights = ours(module, query, *args, **kwargs)
        return (output.flip(-1) if query.shape[2] == 1 else output), weights

    ours = AttentionInterface()["whence_sdpa"]
    AttentionInterface.register("whence_sdpa", wrong)
    try:
        loaded = loaded_model(tiny_model("jamba"), findings_cache="")
    finally:
        AttentionInterface.register("whence_sdpa", ours)
    assert attention.get_implementation(loaded.model) == "sdpa"
    assert loaded.info.internals.unavailable == {
        "sources": "with our attention function it gives other logits"
    }


def test_heads_that_are_gated_give_no_sources(tiny_model: TinyModel) -> None:
    # The gate is the newest token's: what a value adds is another thing at every step.
    probe, info = probe_of(model_of(tiny_model("qwen3_next")))
    assert probe.norms is None
    assert "are not the unchanged input of one linear projection" in info.unavailable["sources"]


def test_one_layer_with_its_own_attention_is_found(tiny_model: TinyModel) -> None:
    model = model_of(tiny_model("llama4"))
    own = type(model.config)(**model.config.to_dict())
    own._attn_implementation = "sdpa"
    model.model.layers[2].self_attn.config = own
    probe, info = probe_of(model)
    assert probe.norms is None
    assert info.unavailable["sources"] == "only 3 of its 4 attention layers use our function"


def test_one_layer_with_its_own_attention_is_found_if_layers_share_a_cache(
    tiny_model: TinyModel,
) -> None:
    model = model_of(tiny_model("llama4"))
    with torch.inference_mode(), attention.collect_attention() as attended:
        output = model(input_ids=torch.arange(5)[None], use_cache=True)
    probe_building.check_own_cache(model, attended, output)
    output.past_key_values.layers.pop()
    probe_building.check_own_cache(model, attended, output)
    with pytest.raises(UnavailableError, match="only 3 of its 4 attention layers"):
        probe_building.check_own_cache(model, attended[:3], output)


def test_caches_with_unknown_column_order_give_no_sources(
    tiny_model: TinyModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = model_of(tiny_model("llama4"))

    class Other:
        pass

    monkeypatch.setattr(probe_building, "DynamicLayer", Other)
    probe, info = probe_of(model)
    assert probe.norms is None
    assert info.unavailable["sources"] == "it keeps its values in a cache of its own kind"


def test_sources_that_differ_token_by_token_are_found(
    tiny_model: TinyModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = model_of(tiny_model("jamba"))

    def shifted(*args: Any) -> Reading:
        return Reading(*(part.roll(1, -1) for part in read_context(*args)))

    monkeypatch.setattr(probed_sequence, "read_context", shifted)
    probe, info = probe_of(model)
    assert probe.norms is None
    assert (
        info.unavailable["sources"]
        == "its sources differ between one pass and decoding token by token"
    )


def test_head_weights_are_those_of_the_layers_that_attend(
    tiny_model: TinyModel, tmp_path: Path
) -> None:
    directory = tiny_model("jamba")
    digest = loaded_model(directory).info.weights_digest
    path = tmp_path / "heads.json"
    path.write_text(json.dumps({"weights_digest": digest, "head_weights": [[1.0] * 4] * 2}))
    loaded = load(engine_options(directory, head_weights=str(path)))
    assert loaded.info.internals.source_method.startswith(f"{METHOD};head-weights=sha256:")
    path.write_text(json.dumps({"weights_digest": digest, "head_weights": [[1.0] * 4] * 4}))
    with pytest.raises(ConfigurationError, match="2 attention layers of 4 heads"):
        load(engine_options(directory, head_weights=str(path)))
