"""The engine in half precision, compared with transformers in the same type."""

import random
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from computing import DEVICE
from engine_harness import Harness, greedy, loaded_model, reference_greedy

from whence_server.domain.decoding import Decoding, Strategy
from whence_server.engines.transformers.loading import LoadedModel

ARCHITECTURES = ["gpt2", "llama", "mistral", "mamba", "mamba2"]
DTYPES = ["bfloat16", "float16"]

ROUNDINGS = 4
"""Tolerance of logprobs, in units of the type's precision at the largest logit: some for a logit,
and as many for the sum over all."""


@pytest.fixture(scope="module")
def models(tiny_model: Callable[..., Path]) -> Callable[[str, str], LoadedModel]:
    loaded: dict[tuple[str, str], LoadedModel] = {}

    def get(architecture: str, dtype: str) -> LoadedModel:
        if (architecture, dtype) not in loaded:
            loaded[architecture, dtype] = loaded_model(tiny_model(architecture), dtype=dtype)
        return loaded[architecture, dtype]

    return get


@pytest.fixture(params=DTYPES)
def dtype(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(params=ARCHITECTURES)
def loaded(
    request: pytest.FixtureRequest, models: Callable[[str, str], LoadedModel], dtype: str
) -> LoadedModel:
    return models(request.param, dtype)


def prompts(count: int, seed: int) -> list[list[int]]:
    choose = random.Random(seed)
    return [[choose.randrange(1, 400) for _ in range(choose.randint(1, 50))] for _ in range(count)]


def test_the_model_is_in_that_type(loaded: LoadedModel, dtype: str) -> None:
    assert loaded.info.environment.dtype == dtype
    assert loaded.model.dtype is getattr(torch, dtype)
    architecture = loaded.info.architecture
    assert loaded.info.batched == (not architecture.startswith("Mamba"))


@pytest.mark.skipif(DEVICE != "cpu", reason="transformers' attention has kernels of its own there")
def test_greedy_alone_equals_generate(loaded: LoadedModel) -> None:
    """A batch of one runs the same kernels on the same numbers."""
    harness = Harness(loaded)
    for number, prompt in enumerate(prompts(4, seed=1)):
        harness.admit(str(number), prompt, greedy(30, ignore_eos=True))
        harness.run()
        expected = reference_greedy(loaded.model, prompt, max_new_tokens=30, eos_token_id=None)
        assert harness.ids(str(number)) == expected


def test_a_mixed_batch_stays_within_rounding(loaded: LoadedModel, dtype: str) -> None:
    harness = Harness(loaded, chunk=16)
    given = prompts(8, seed=2)
    for number, prompt in enumerate(given):
        strategy = Strategy.SAMPLE if number % 2 else Strategy.GREEDY
        decoding = Decoding(strategy, 10 + 3 * number, ignore_eos=True, seed=number)
        harness.admit(str(number), prompt, decoding)
        harness.loop.run_turn()
    harness.run()
    assert not harness.failed
    for number, prompt in enumerate(given):
        ids = harness.ids(str(number))
        assert len(ids) == 10 + 3 * number
        with torch.inference_mode():
            input_ids = torch.tensor([prompt + ids], device=loaded.model.device)
            logits = loaded.model(input_ids=input_ids, use_cache=False).logits[0].float().cpu()
        margin = ROUNDINGS * torch.finfo(getattr(torch, dtype)).eps * float(logits.abs().max())
        plain = torch.log_softmax(logits, -1)
        for i, step in enumerate(harness.steps[str(number), 0]):
            expected = plain[len(prompt) + i - 1]
            assert step.decision.logprob == pytest.approx(float(expected[ids[i]]), abs=margin)
            if number % 2 == 0:
                assert float(expected.max() - expected[ids[i]]) <= margin
