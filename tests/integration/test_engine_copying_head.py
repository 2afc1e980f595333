"""Sources of a hand-built model with one head that copies a known position."""

import hashlib
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from engine_harness import Harness, engine_options, greedy
from tiny_models import byte_level_tokenizer
from transformers import GPT2Config, GPT2LMHeadModel

from whence_server.domain.decoding import TraceDetail, TraceOptions
from whence_server.domain.errors import ConfigurationError
from whence_server.domain.steps import Internals
from whence_server.engines.transformers.loading import LoadedModel, load

WIDTH, HEADS, SIZE = 32, 2, 16
COPIED = 77
"""The token that the copying head attends to, at any position."""
WHERE = 13
PROMPT = [*range(100, 100 + WHERE), COPIED, *range(200, 220)]


def copying_model(directory: Path, *, copies: bool) -> Path:
    """Save a model of one layer: head 0 copies COPIED, and head 1 attends evenly to all.

    Args:
        directory: where to save it.
        copies: whether head 0's output reaches the residual stream: its W_O is zero otherwise.
    """
    torch.manual_seed(0)
    model = GPT2LMHeadModel(
        GPT2Config(
            vocab_size=416,
            n_positions=64,
            n_embd=WIDTH,
            n_layer=1,
            n_head=HEADS,
            bos_token_id=0,
            eos_token_id=0,
        )
    )
    attention = model.transformer.h[0].attn
    with torch.no_grad():
        model.transformer.wpe.weight.zero_()
        embeddings = model.transformer.wte.weight.normal_()
        # The first coordinate is COPIED's own.
        embeddings[:, 0] = 0.0
        embeddings[COPIED] = 0.0
        embeddings[COPIED, 0] = 5.0
        attention.c_attn.weight.zero_()  # (width, 3 * width): queries, keys, values
        attention.c_attn.bias.zero_()
        query, key, value = (slice(i * WIDTH, (i + 1) * WIDTH) for i in range(3))
        attention.c_attn.bias[query][0] = 40.0
        attention.c_attn.weight[:, key][0, 0] = 1.0
        attention.c_attn.weight[:, value] = torch.eye(WIDTH)
        attention.c_proj.weight.copy_(torch.eye(WIDTH))
        attention.c_proj.bias.zero_()
        if not copies:
            attention.c_proj.weight[:SIZE] = 0.0
    model.save_pretrained(directory)
    byte_level_tokenizer().save_pretrained(directory)
    return directory


def seen_of(loaded: LoadedModel) -> list[Internals]:
    harness = Harness(loaded, chunk=16)
    harness.admit("it", PROMPT, greedy(6, ignore_eos=True), TraceOptions(TraceDetail.INTERNALS))
    harness.run()
    decisions = [step.decision for step in harness.steps["it", 0]]
    assert COPIED not in [decision.token_id for decision in decisions[:-1]]
    return [decision.internals for decision in decisions if decision.internals is not None]


@pytest.fixture(scope="module")
def directories(tmp_path_factory: pytest.TempPathFactory) -> Callable[[bool], Path]:
    made = {
        copies: copying_model(tmp_path_factory.mktemp(f"copies-{copies}"), copies=copies)
        for copies in (True, False)
    }
    return made.__getitem__


def singly(loaded: LoadedModel) -> LoadedModel:
    """Return the model with a cache for each sequence."""
    info = replace(loaded.info, batched=False)
    return loaded._replace(style=None, graph=None, info=info)


@pytest.mark.parametrize("way", [lambda loaded: loaded, singly])
def test_sources_name_the_copied_position(
    directories: Callable[[bool], Path], way: Callable[[LoadedModel], LoadedModel]
) -> None:
    for seen in seen_of(way(load(engine_options(directories(True))))):
        assert seen.source_positions[0] == WHERE
        assert seen.source_shares[0] > 0.4
        assert seen.source_shares[0] > 8 * seen.source_shares[1]


@pytest.mark.parametrize("way", [lambda loaded: loaded, singly])
def test_a_head_without_output_projection_gives_no_source(
    directories: Callable[[bool], Path], way: Callable[[LoadedModel], LoadedModel]
) -> None:
    for seen in seen_of(way(load(engine_options(directories(False))))):
        shares = dict(zip(seen.source_positions, seen.source_shares, strict=True))
        # What is left is the head that spreads evenly over some 35 positions.
        assert shares.get(WHERE, 0.0) < 0.06
        assert max(seen.source_shares) < 0.06


def test_head_weights_scale_each_heads_contribution(
    directories: Callable[[bool], Path], tmp_path: Path
) -> None:
    loaded = load(engine_options(directories(True)))
    path = tmp_path / "heads.json"

    def weighed(weights: list[list[float]]) -> LoadedModel:
        content = {"weights_digest": loaded.info.weights_digest, "head_weights": weights}
        path.write_text(json.dumps(content))
        return load(engine_options(directories(True), head_weights=str(path)))

    copying = weighed([[1.0, 0.0]])
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    assert copying.info.internals.source_method == (
        f"value-norm-attention/2;head-weights=sha256:{digest}"
    )
    for seen in seen_of(copying):
        assert seen.source_positions[0] == WHERE
        assert seen.source_shares[0] > 0.99
    for seen in seen_of(weighed([[0.0, 1.0]])):
        assert max(seen.source_shares) < 0.06
    with pytest.raises(ConfigurationError, match="1 attention layers of 2 heads"):
        weighed([[1.0]])


def test_head_weights_for_a_model_without_sources_are_refused(
    tiny_model: Callable[..., Path], tmp_path: Path
) -> None:
    loaded = load(engine_options(tiny_model("bloom")))
    path = tmp_path / "heads.json"
    path.write_text(
        json.dumps({"weights_digest": loaded.info.weights_digest, "head_weights": [[1.0] * 4] * 3})
    )
    with pytest.raises(ConfigurationError, match="gives no sources"):
        load(engine_options(tiny_model("bloom"), head_weights=str(path)))
