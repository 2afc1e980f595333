"""Sources of models that decode singly: found out at load, and kept for each sequence by itself."""

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from engine_harness import engine_options, loaded_model
from transformers import AutoModelForCausalLM

from whence_server.domain.errors import ConfigurationError
from whence_server.domain.model import InternalsInfo
from whence_server.engine.internals import attention
from whence_server.engine.internals import probe_building as examine
from whence_server.engine.internals import probed_sequence as single
from whence_server.engine.internals.probe import Inside
from whence_server.engine.internals.probe_building import look_inside
from whence_server.engine.internals.sources import OutputNorms, UnavailableError, drawn
from whence_server.engine.loading import load
from whence_server.engine.solo import SoloRunner

TinyModel = Callable[..., Path]
METHOD = "value-norm-attention/1"


def model_of(directory: Path) -> Any:
    """With our attention in its place."""
    model = AutoModelForCausalLM.from_pretrained(directory).eval().requires_grad_(False)
    assert attention.adopt(model) is None
    return model


def looked_into(model: Any) -> tuple[Inside, InternalsInfo]:
    inside, info = look_inside(model, None, None, None)
    assert info.source_method == (METHOD if inside.norms is not None else "")
    return inside, info


def test_a_layer_with_few_columns_weighs_nothing_before_them() -> None:
    norms = torch.tensor([[[1.0, 2.0, 3.0, 4.0], [1.0, 1.0, 1.0, 1.0]]])  # (1, K, 4)
    wide = torch.tensor([[[0.1, 0.2, 0.3, 0.4]]])
    narrow = torch.tensor([[[0.25, 0.75]]])
    padded = torch.tensor([[[9.0, 0.1, 0.2, 0.3, 0.4]]])
    expected = torch.tensor([[0.1, 0.4, 0.9 + 0.25, 1.6 + 0.75]])
    for first in (wide, padded):
        torch.testing.assert_close(drawn([first, narrow], norms, None), expected)


@pytest.mark.parametrize("architecture", ["jamba", "llama4"])
def test_a_position_s_norms_are_computed_once_for_all_its_rows(
    tiny_model: TinyModel, monkeypatch: pytest.MonkeyPatch, architecture: str
) -> None:
    model = model_of(tiny_model(architecture))
    inside, _ = looked_into(model)
    num_columns: list[int] = []
    original = OutputNorms.of

    def counting(self: OutputNorms, values: Sequence[torch.Tensor]) -> torch.Tensor:
        num_columns.append(values[0].shape[1])
        return original(self, values)

    monkeypatch.setattr(OutputNorms, "of", counting)
    runner = SoloRunner(model, inside)
    prompt = runner.start(list(range(30)), observed=True)
    runner.prefill(prompt, 30, all_logits=False)
    runner.join(prompt, 2)
    assert num_columns == [30]
    runner.decode([1, 2])
    runner.observe()
    assert num_columns == [30, 1, 1]
    runner.copy_rows([0], [1])
    runner.leave(0)
    runner.decode([3])
    runner.observe()
    assert num_columns == [30, 1, 1, 1]


def test_who_does_not_ask_is_not_watched(
    tiny_model: TinyModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = model_of(tiny_model("jamba"))
    inside, _ = looked_into(model)
    runner = SoloRunner(model, inside)
    for observed in (False, True):
        prompt = runner.start([5, 6, 7], observed=observed)
        runner.prefill(prompt, 3, all_logits=False)
        runner.join(prompt)
    watched: list[object] = []
    original = attention.Attended

    def counting(*args: Any) -> attention.Attended:
        watched.append(args)
        return original(*args)

    monkeypatch.setattr(attention, "Attended", counting)
    runner.decode([8, 9])
    assert len(watched) == 2, "the two layers that attend, once"
    observation = runner.observe()
    assert observation is not None
    assert observation.rows == [1]
    runner.stop_observing()
    runner.decode([10, 11])
    assert runner.observe() is None
    assert len(watched) == 2


def test_our_attention_is_in_place(tiny_model: TinyModel) -> None:
    loaded = loaded_model(tiny_model("jamba"))
    assert not loaded.info.batched
    assert attention.implementation(loaded.model) == "whence_sdpa"
    assert loaded.info.environment.attention_implementation == "sdpa"


def test_a_model_that_ours_would_change_keeps_its_own(
    tiny_model: TinyModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    def wrong(*args: Any, **kwargs: Any) -> torch.Tensor:
        return right(*args, **kwargs).flip(-1)

    right = attention._weights
    monkeypatch.setattr(attention, "_weights", wrong)
    loaded = loaded_model(tiny_model("jamba"))
    assert attention.implementation(loaded.model) == "sdpa"
    assert loaded.info.internals.unavailable == {
        "sources": "with our attention it gives other logits"
    }


def test_heads_that_are_gated_give_no_sources(tiny_model: TinyModel) -> None:
    # The gate is the newest token's: what a value adds is another thing at every step.
    inside, info = looked_into(model_of(tiny_model("qwen3_next")))
    assert inside.norms is None
    assert "do not go through one linear projection as they are" in info.unavailable["sources"]


def test_one_layer_of_many_that_attends_by_itself_is_noticed(tiny_model: TinyModel) -> None:
    model = model_of(tiny_model("llama4"))
    own = type(model.config)(**model.config.to_dict())
    own._attn_implementation = "sdpa"
    model.model.layers[2].self_attn.config = own
    inside, info = looked_into(model)
    assert inside.norms is None
    assert info.unavailable["sources"] == "3 of its 4 layers that attend do so by our function"


def test_one_layer_that_attends_by_itself_is_noticed_where_layers_share_what_is_kept(
    tiny_model: TinyModel,
) -> None:
    model = model_of(tiny_model("llama4"))
    with torch.inference_mode(), attention.watched_attention() as attended:
        output = model(input_ids=torch.arange(5)[None], use_cache=True)
    examine._check_own_cache(model, attended, output)
    output.past_key_values.layers.pop()
    examine._check_own_cache(model, attended, output)
    with pytest.raises(UnavailableError, match="3 of its 4 layers that attend"):
        examine._check_own_cache(model, attended[:3], output)


def test_columns_in_an_order_that_nobody_knows_are_refused(
    tiny_model: TinyModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = model_of(tiny_model("llama4"))

    class Other:
        pass

    monkeypatch.setattr(examine, "DynamicLayer", Other)
    inside, info = looked_into(model)
    assert inside.norms is None
    assert info.unavailable["sources"] == "it keeps its values in a cache of its own kind"


def test_other_sources_token_by_token_are_noticed(
    tiny_model: TinyModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = model_of(tiny_model("jamba"))

    def shifted(*args: Any) -> torch.Tensor:
        return drawn(*args).roll(1, -1)

    monkeypatch.setattr(single, "drawn", shifted)
    inside, info = looked_into(model)
    assert inside.norms is None
    assert (
        info.unavailable["sources"] == "token by token, it reads other positions than in one pass"
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
    with pytest.raises(ConfigurationError, match="2 layers of 4 heads that attend"):
        load(engine_options(directory, head_weights=str(path)))
