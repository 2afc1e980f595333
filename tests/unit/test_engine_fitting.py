"""Head weights fitted to ablations: what is measured, and heads that are known to matter."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from engine_harness import loaded_model, prompt_of
from internals_oracle import attending, eager_model

from whence_server.engines.transformers.internals import fitting
from whence_server.engines.transformers.internals.fitting import (
    Examples,
    fit,
    fit_head_weights,
    measure_piece,
)
from whence_server.engines.transformers.internals.sources import UnavailableError

TinyModel = Callable[..., Path]
PIECE = prompt_of(68, seed=3)
NUM_TARGETS = 17
NUM_LAYERS, NUM_HEADS = 2, 4


@pytest.mark.parametrize("architecture", ["llama", "gpt2"])
def test_attention_of_earlier_tokens_is_that_of_eager_attention(
    tiny_model: TinyModel, architecture: str
) -> None:
    loaded = loaded_model(tiny_model(architecture))
    weights, values = fitting.read_attention(loaded.model, PIECE, NUM_TARGETS)
    expected = attending(eager_model(tiny_model(architecture)), PIECE)
    for ours, value, theirs in zip(weights, values, expected, strict=True):
        assert len(ours) == NUM_TARGETS
        for back, heads in enumerate(ours):
            query = len(PIECE) - 1 - back
            other = theirs.weights[:, query, : query + 1].float()
            torch.testing.assert_close(heads.cpu(), other, rtol=0, atol=1e-5)
        torch.testing.assert_close(value.cpu(), theirs.values.float(), rtol=0, atol=1e-5)


@pytest.mark.parametrize("architecture", ["llama", "gpt2"])
def test_left_out_tokens_have_the_effect_of_masked_ones(
    tiny_model: TinyModel, architecture: str
) -> None:
    loaded = loaded_model(tiny_model(architecture))
    spans = list(fitting.list_spans(len(PIECE) - NUM_TARGETS - 1))
    visible = fitting.draw_ablations(len(spans), torch.Generator().manual_seed(1))
    found = fitting.ablate(loaded.model, PIECE, NUM_TARGETS, spans, visible)
    mask = torch.ones(len(visible), len(PIECE), dtype=torch.int64)
    for row, seen in zip(mask, visible.tolist(), strict=True):
        for span, is_seen in zip(spans, seen, strict=True):
            row[span] = int(is_seen)
    given = torch.tensor([PIECE] * len(visible))
    positions = torch.arange(len(PIECE)).expand(len(visible), -1)
    with torch.inference_mode():
        logits = eager_model(tiny_model(architecture))(
            input_ids=given, attention_mask=mask, position_ids=positions
        ).logits[:, -NUM_TARGETS - 1 : -1]
    logprobs = logits.log_softmax(-1)
    answers = given[:, -NUM_TARGETS:].unsqueeze(-1)
    expected = logprobs.gather(-1, answers).squeeze(-1).mT
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-4)


def test_ablations_hide_half_of_the_spans_in_pairs_of_opposites() -> None:
    visible = fitting.draw_ablations(6, torch.Generator().manual_seed(1))
    assert visible.sum(1).tolist() == [3] * fitting.NUM_ABLATIONS
    assert torch.equal(visible[0::2], ~visible[1::2])
    spans = list(fitting.list_spans(45))
    assert (spans[0].start, spans[-1].stop) == (5, 45), "the first position always stays"


def make_examples(num_pieces: int, thetas: torch.Tensor, noise: float) -> list[Examples]:
    generator = torch.Generator().manual_seed(5)
    pieces = []
    for _ in range(num_pieces):
        reads = torch.rand(10, fitting.NUM_ABLATIONS, len(thetas), generator=generator)
        errors = torch.randn(10, fitting.NUM_ABLATIONS, generator=generator) * noise
        pieces.append(Examples(reads, reads @ thetas + errors))
    return pieces


def test_the_heads_that_predict_get_the_weight() -> None:
    thetas = torch.zeros(NUM_LAYERS * NUM_HEADS)
    thetas[2], thetas[5] = 1.0, 0.5
    fitted = fit(make_examples(20, thetas, noise=0.05), NUM_LAYERS)
    found = torch.tensor(fitted.values)
    assert found.shape == (NUM_LAYERS, NUM_HEADS)
    assert float(found.max()) == 1.0
    torch.testing.assert_close(found.flatten(), thetas, rtol=0, atol=0.1)
    assert fitted.correlation > 0.9 > fitted.correlation_alike
    assert fitted.num_tokens == 200


def test_noise_leaves_heads_alike() -> None:
    # Whatever is fitted to noise predicts other noise no better, so that it is not taken.
    pieces = make_examples(40, torch.zeros(NUM_LAYERS * NUM_HEADS), noise=1.0)
    fitted = fit(pieces, NUM_LAYERS)
    assert fitted.correlation - fitted.correlation_alike < 0.05


@pytest.mark.parametrize(
    ("num_pieces", "length", "least", "says"),
    [
        (3, 60, 0.0, "45 tokens of the texts, in 3 pieces,"),
        (4, 60, 100.0, "0 tokens of the texts, in 0 pieces,"),
        (8, 47, 0.0, "0 tokens of the texts, in 0 pieces,"),
    ],
    ids=["few pieces", "ends that do not need their beginnings", "short pieces"],
)
def test_texts_that_tell_too_little_are_refused(
    tiny_model: TinyModel,
    monkeypatch: pytest.MonkeyPatch,
    num_pieces: int,
    length: int,
    least: float,
    says: str,
) -> None:
    monkeypatch.setattr(fitting, "LEAST_EFFECT", least)
    loaded = loaded_model(tiny_model("llama"))
    pieces = [prompt_of(length, seed=seed) for seed in range(num_pieces)]
    with pytest.raises(UnavailableError, match=says):
        fit_head_weights(loaded.model, loaded.probe.norms, pieces)


def test_a_piece_tells_for_each_token_what_heads_read_from_visible_spans(
    tiny_model: TinyModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fitting, "LEAST_EFFECT", 0.0)
    loaded = loaded_model(tiny_model("llama"))
    assert loaded.probe.norms is not None
    made = measure_piece(loaded.model, loaded.probe.norms, PIECE, torch.Generator().manual_seed(2))
    assert made.reads.shape[:2] == made.logprobs.shape == (NUM_TARGETS, fitting.NUM_ABLATIONS)
    # A row and its opposite see every span once.
    whole = made.reads[:, 0] + made.reads[:, 1]
    torch.testing.assert_close(made.reads[:, 2] + made.reads[:, 3], whole)
    (attended, values) = fitting.read_attention(loaded.model, PIECE[:-1], NUM_TARGETS)
    norms = loaded.probe.norms.compute(values)
    first = next(iter(fitting.list_spans(len(PIECE) - NUM_TARGETS - 1))).start
    last = len(PIECE) - NUM_TARGETS - 1
    heads = torch.cat([layer[0] for layer in attended])
    expected = (heads * norms)[:, first:last].sum(1)
    torch.testing.assert_close(whole[-1], expected.cpu())
