"""Causal tracing, compared with whole passes in which one activation is overwritten."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from explained import explained_model, ignore_progress, target_of

from whence_server.engines.transformers.internals.layers import find_layers
from whence_server.explain.patching import Corruption, NothingLostError, patch
from whence_server.explain.reading import compute_value
from whence_server.explain.target import Target

TinyModel = Callable[..., Path]
ARCHITECTURES = ["gpt2", "llama", "gemma2", "bloom", "falcon", "opt", "mamba", "jamba", "cohere"]


@torch.no_grad()
def read_value(
    model: Any, ids: list[int], target: Target, restored: tuple[int, int, torch.Tensor] | None
) -> float:
    """Return the span's log probability, with one activation overwritten in a whole pass."""
    handles = []
    if restored is not None:
        layer, position, activation = restored

        def overwrite(_layer: Any, _args: Any, output: Any) -> Any:
            hidden = output[0] if isinstance(output, tuple) else output
            hidden = hidden.clone()
            hidden[0, position] = activation
            return (hidden, *output[1:]) if isinstance(output, tuple) else hidden

        handles.append(find_layers(model)[layer].register_forward_hook(overwrite))
    logits = model(input_ids=torch.tensor([ids])).logits[0].double()
    for handle in handles:
        handle.remove()
    logprobs = torch.log_softmax(logits, -1)
    return sum(float(logprobs[i - 1, ids[i]]) for i in range(target.start, len(ids)))


@torch.no_grad()
def read_activation(model: Any, target: Target, layer: int, position: int) -> torch.Tensor:
    seen: list[torch.Tensor] = []
    handle = find_layers(model)[layer].register_forward_hook(
        lambda _layer, _args, output: seen.append(
            output[0] if isinstance(output, tuple) else output
        )
    )
    model(input_ids=torch.tensor([target.ids]))
    handle.remove()
    return seen[0][0, position]


@torch.no_grad()
def likely_target(model: Any, num_context: int = 9, num_span: int = 2) -> Target:
    """Return a target whose span is what the model finds most likely."""
    ids = list(target_of(num_context).context)
    for _ in range(num_span):
        ids.append(int(model(input_ids=torch.tensor([ids])).logits[0, -1].argmax()))
    return Target(tuple(ids), num_context, num_context)


def make_replacement(model: Any, target: Target, begin: int, end: int) -> tuple[int, ...]:
    """Return other tokens for a part of the context, which make the span less probable."""
    own = compute_value(model, target)
    for first in range(1, 90):
        tokens = tuple((first + 7 * i) % 97 + 1 for i in range(end - begin))
        ids = (*target.ids[:begin], *tokens, *target.ids[end:])
        if compute_value(model, Target(ids, target.start, target.num_prompt)) < own - 0.1:
            return tokens
    raise AssertionError("no replacement lowers the value")


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_shares_are_those_of_whole_passes(tiny_model: TinyModel, architecture: str) -> None:
    model = explained_model(tiny_model(architecture))
    target = likely_target(model)
    tokens = make_replacement(model, target, 2, 5)
    positions = [2, 4, 8]
    found = patch(model, target, Corruption(2, 5, tokens), positions, ignore_progress)
    corrupted = [*target.ids[:2], *tokens, *target.ids[5:]]
    base = read_value(model, corrupted, target, None)
    clean = read_value(model, list(target.ids), target, None)
    assert found.corrupted_value == pytest.approx(base, abs=1e-3)
    assert found.value == pytest.approx(clean, abs=1e-3)
    assert len(found.shares) == len(find_layers(model))
    for layer in range(len(found.shares)):
        for column, position in enumerate(positions):
            activation = read_activation(model, target, layer, position)
            value = read_value(model, corrupted, target, (layer, position, activation))
            expected = (value - base) / (clean - base)
            assert found.shares[layer][column] == pytest.approx(expected, abs=1e-3)


def test_what_was_read_before_the_corruption_recovers_nothing(tiny_model: TinyModel) -> None:
    model = explained_model(tiny_model("gpt2"))
    target = likely_target(model, 9, 1)
    tokens = make_replacement(model, target, 4, 6)
    found = patch(model, target, Corruption(4, 6, tokens), [0, 3, 8], ignore_progress)
    for layer in found.shares:
        assert layer[:2] == pytest.approx([0, 0], abs=1e-5)
    # The last position of the last layer is all that the head reads.
    assert found.shares[-1][2] == pytest.approx(1, abs=1e-5)


def find_lossy_noise(model: Any, target: Target) -> Corruption:
    """Return noise that lowers the explained value."""
    for seed in range(30):
        corruption = Corruption(0, 5, num_noises=2, seed=seed)
        try:
            patch(model, target, corruption, [0], ignore_progress, layers=[0])
        except NothingLostError:
            continue
        return corruption
    raise AssertionError("no noise lowers the value")


def test_noise_is_the_same_for_a_seed_and_averaged(tiny_model: TinyModel) -> None:
    model = explained_model(tiny_model("llama"))
    target = target_of(9)
    corruption = find_lossy_noise(model, target)
    once = patch(model, target, corruption, [3, 8], ignore_progress)
    again = patch(model, target, corruption, [3, 8], ignore_progress)
    assert once == again
    singles = [
        Corruption(0, 5, num_noises=1, seed=seed) for seed in (corruption.seed, corruption.seed + 1)
    ]
    values = []
    for single in singles:
        try:
            found = patch(model, target, single, [8], ignore_progress, layers=[2])
            values.append(found.corrupted_value)
        except NothingLostError as error:
            values.append(float(str(error).split(" and ")[1].split(" ")[0]))
    assert once.corrupted_value == pytest.approx(sum(values) / 2, abs=1e-3)


def test_a_contrast_recovers_the_difference(tiny_model: TinyModel) -> None:
    model = explained_model(tiny_model("llama"))
    plain = target_of(9)
    target = Target(plain.ids, 9, 9, (5, 6))
    tokens = (11, 12, 13)
    corrupted = Target((*plain.ids[:2], *tokens, *plain.ids[5:]), 9, 9, (5, 6))
    own, other = compute_value(model, target), compute_value(model, corrupted)
    if own < other:
        target, corrupted, tokens = corrupted, target, plain.ids[2:5]
        own, other = other, own
    found = patch(model, target, Corruption(2, 5, tokens), [8], ignore_progress, layers=[2])
    assert found.value == pytest.approx(own, abs=1e-4)
    assert found.corrupted_value == pytest.approx(other, abs=1e-4)


def test_a_corruption_that_lowers_nothing_is_an_error(tiny_model: TinyModel) -> None:
    model = explained_model(tiny_model("llama"))
    target = target_of(9)
    own = target.ids[2:5]
    with pytest.raises(NothingLostError, match="positions 2 to 5 do not lower"):
        patch(model, target, Corruption(2, 5, own), [3], ignore_progress)


@pytest.mark.parametrize(
    ("corruption", "positions", "layers", "message"),
    [
        (Corruption(5, 5), [3], None, "5 to 5 are not a part"),
        (Corruption(0, 10), [3], None, "0 to 10 are not a part"),
        (Corruption(0, 2, (1,)), [3], None, "has 1 tokens, and the part that it replaces has 2"),
        (Corruption(0, 2, num_noises=0), [3], None, "num_noises: 0 is too few"),
        (Corruption(0, 2), [9], None, "expected some of 0 to 8"),
        (Corruption(0, 2), [], None, "expected some of 0 to 8"),
        (Corruption(0, 2), [3], [3], "layers: expected some of 0 to 2"),
    ],
)
def test_what_is_out_of_range_is_refused(
    tiny_model: TinyModel,
    corruption: Corruption,
    positions: list[int],
    layers: list[int] | None,
    message: str,
) -> None:
    model = explained_model(tiny_model("llama"))
    with pytest.raises(ValueError, match=message):
        patch(model, target_of(9), corruption, positions, ignore_progress, layers=layers)


def test_progress_counts_layers_and_ends_the_work(tiny_model: TinyModel) -> None:
    model = explained_model(tiny_model("llama"))
    target = likely_target(model, 9, 1)
    tokens = make_replacement(model, target, 2, 5)
    seen: list[tuple[int, int]] = []

    def stop_after_two(done: int, total: int) -> None:
        seen.append((done, total))
        if done == 2:
            raise InterruptedError

    with pytest.raises(InterruptedError):
        patch(model, target, Corruption(2, 5, tokens), [3], stop_after_two)
    assert seen == [(0, 3), (1, 3), (2, 3)]
    for module in model.modules():
        assert "forward" not in vars(module)
