"""Head weights from the residual stream, compared with transformers' hidden states."""

from collections.abc import Callable
from itertools import combinations
from pathlib import Path

import pytest
import torch
from engine_harness import loaded_model, prompt_of
from internals_oracle import eager_model
from tiny_models import ARCHITECTURES, HYBRIDS, LAST_STAGES, NO_SOURCES

from whence_server.engines.transformers.internals.head_weights import HeadWeights
from whence_server.engines.transformers.internals.probe_building import build_probe
from whence_server.engines.transformers.internals.sources import UnavailableError
from whence_server.engines.transformers.internals.weighing import compute_stream_weights

SOME_ATTEND = [name for name in ("jamba", "bamba", *HYBRIDS) if name not in NO_SOURCES]
ATTENDING = [
    name
    for name in ARCHITECTURES + LAST_STAGES
    if name not in NO_SOURCES and name not in SOME_ATTEND
]
PIECES = [prompt_of(20, seed=1), prompt_of(9, seed=2)]

TinyModel = Callable[..., Path]


def mean_inverse_lengths(directory: Path) -> torch.Tensor:
    """Return mean inverse norms of each layer's input, from hidden states: float64 [layers]."""
    model = eager_model(directory)
    inverses = []
    for piece in PIECES:
        with torch.inference_mode():
            output = model(input_ids=torch.tensor([piece]), output_hidden_states=True)
        streams = torch.stack(output.hidden_states[:-1])[:, 0].double()  # (layers, tokens, width)
        inverses.append(1 / streams.norm(dim=-1))
    return torch.cat(inverses, 1).mean(1)


@pytest.mark.parametrize("architecture", ATTENDING)
def test_weights_are_mean_inverse_norms_of_the_layers_inputs(
    tiny_model: TinyModel, architecture: str
) -> None:
    loaded = loaded_model(tiny_model(architecture))
    means = mean_inverse_lengths(tiny_model(architecture))
    heads = loaded.model.config.get_text_config(decoder=True).num_attention_heads
    torch.testing.assert_close(
        torch.tensor(compute_stream_weights(loaded.model, PIECES), dtype=torch.float64),
        (means / means.max()).unsqueeze(1).expand(-1, heads),
        rtol=1e-4,
        atol=0,
    )


@pytest.mark.parametrize("architecture", SOME_ATTEND)
def test_layers_without_attention_have_no_weights(tiny_model: TinyModel, architecture: str) -> None:
    loaded = loaded_model(tiny_model(architecture))
    values = compute_stream_weights(loaded.model, PIECES)
    # They fit the model, else this would raise.
    build_probe(loaded.model, loaded.style, None, HeadWeights(values, ""))
    means = mean_inverse_lengths(tiny_model(architecture)).tolist()
    found = [row[0] for row in values]
    assert max(found) == 1
    some = [list(picked) for picked in combinations(means, len(found))]
    assert any(found == pytest.approx([m / max(ms) for m in ms], rel=1e-3) for ms in some)


def test_a_zero_residual_stream_is_unavailable(tiny_model: TinyModel) -> None:
    model = loaded_model(tiny_model("llama")).model
    model.get_input_embeddings().weight.zero_()
    with pytest.raises(UnavailableError, match="residual stream"):
        compute_stream_weights(model, PIECES)
