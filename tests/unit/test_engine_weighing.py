"""Head weights from the residual stream, against transformers' own hidden states."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from engine_harness import loaded_model, prompt_of
from internals_oracle import eager_model
from tiny_models import ARCHITECTURES, HYBRIDS

from whence_server.engine.internals.examine import look_inside
from whence_server.engine.internals.head_weights import HeadWeights
from whence_server.engine.internals.sources import UnavailableError
from whence_server.engine.internals.weighing import stream_weights

WITHOUT_SOURCES = {"bloom", "falcon", "mamba", "mamba2", "rwkv", "qwen3_next"}
SOME_ATTEND = [name for name in ("jamba", "bamba", *HYBRIDS) if name not in WITHOUT_SOURCES]
ATTENDING = [
    name for name in ARCHITECTURES if name not in WITHOUT_SOURCES and name not in SOME_ATTEND
]
PIECES = [prompt_of(20, seed=1), prompt_of(9, seed=2)]

TinyModel = Callable[..., Path]


@pytest.mark.parametrize("architecture", ATTENDING)
def test_heads_count_by_the_stream_that_their_layer_takes_in(
    tiny_model: TinyModel, architecture: str
) -> None:
    model = eager_model(tiny_model(architecture))
    inverses = []
    for piece in PIECES:
        with torch.inference_mode():
            output = model(input_ids=torch.tensor([piece]), output_hidden_states=True)
        streams = torch.stack(output.hidden_states[:-1])[:, 0].double()  # (layers, tokens, width)
        inverses.append(1 / streams.norm(dim=-1))
    means = torch.cat(inverses, 1).mean(1)
    expected = means / means.max()
    values = stream_weights(loaded_model(tiny_model(architecture)).model, PIECES)
    heads = model.config.get_text_config(decoder=True).num_attention_heads
    torch.testing.assert_close(
        torch.tensor(values, dtype=torch.float64),
        expected.unsqueeze(1).expand(-1, heads),
        rtol=1e-4,
        atol=0,
    )


@pytest.mark.parametrize("architecture", SOME_ATTEND)
def test_layers_that_do_not_attend_have_none(tiny_model: TinyModel, architecture: str) -> None:
    loaded = loaded_model(tiny_model(architecture))
    values = stream_weights(loaded.model, PIECES)
    config = loaded.model.config.get_text_config(decoder=True)
    assert len(values) <= config.num_hidden_layers
    assert max(value for row in values for value in row) == 1
    # They fit the model, else this would raise.
    look_inside(loaded.model, loaded.style, None, HeadWeights(values, ""))


def test_a_stream_without_length_has_no_weight(tiny_model: TinyModel) -> None:
    model = loaded_model(tiny_model("llama")).model
    model.get_input_embeddings().weight.zero_()
    with pytest.raises(UnavailableError, match="residual stream"):
        stream_weights(model, PIECES)
