"""Failures in the engine, which end only the generations concerned, and the loss of a device."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from engine_harness import Harness, greedy, loaded_model, prompt_of, reference_greedy, sampled

from whence_server.domain.decoding import TraceDetail, TraceOptions
from whence_server.engines.transformers.internals.probed_rows import ProbedPrompt
from whence_server.engines.transformers.loading import LoadedModel
from whence_server.engines.transformers.runner import Runner


@pytest.fixture(scope="module")
def gpt2(tiny_model: Callable[..., Path]) -> LoadedModel:
    return loaded_model(tiny_model("gpt2"))


def raising(error: Exception) -> Callable[..., None]:
    def raises(*_args: object, **_kwargs: object) -> None:
        raise error

    return raises


def test_a_failed_prefill_fails_its_generation_alone(
    gpt2: LoadedModel, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    harness = Harness(gpt2)
    good = prompt_of(20, seed=14)
    harness.admit("good", good, greedy(10, ignore_eos=True))
    harness.loop.run_turn()
    harness.admit("bad", [5, 7], greedy(10))
    # Half-way, where several tokens are read.
    layer = gpt2.model.transformer.h[1]
    forward = layer.forward

    def breaks(hidden: torch.Tensor, *args: object, **kwargs: object) -> object:
        return forward(hidden, *args, **kwargs) if hidden.shape[1] == 1 else 1 / 0

    monkeypatch.setattr(layer, "forward", breaks)
    harness.run()
    assert harness.failed["bad"].reason == "FORWARD_FAILED"
    assert "Traceback" in caplog.text
    assert len(harness.ids("good")) == 10


@pytest.mark.parametrize(
    ("target", "name"),
    [
        (Runner, "decode"),
        (Runner, "prefill"),
        (Runner, "join"),
        (Runner, "read_probe"),
        (ProbedPrompt, "read_probe"),
    ],
)
def test_a_lost_device_ends_the_engine_and_no_generation(
    gpt2: LoadedModel, monkeypatch: pytest.MonkeyPatch, target: type, name: str
) -> None:
    # As CUDA does: one call fails, in whichever words, and from then on every wait for the device.
    def loses(*_args: object, **_kwargs: object) -> None:
        lost = torch.AcceleratorError("CUDA error: device-side assert triggered")
        monkeypatch.setattr(Runner, "synchronize", raising(lost))
        raise RuntimeError("CUDA error: CUBLAS_STATUS_EXECUTION_FAILED")

    harness = Harness(gpt2)
    internals = TraceOptions(TraceDetail.INTERNALS)
    harness.admit("first", [5, 7], greedy(10), internals)
    harness.loop.run_turn()
    harness.admit("second", [5, 7], greedy(10), internals)
    monkeypatch.setattr(target, name, loses)
    with pytest.raises(torch.AcceleratorError, match="device-side assert"):
        harness.run()
    assert not harness.failed


def test_a_failed_step_fails_only_the_generations_in_it(
    gpt2: LoadedModel, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    # Through its modules, which can break half-way.
    harness = Harness(gpt2._replace(graph=None), chunk=16)
    first, second, third = (prompt_of(9, seed) for seed in (15, 16, 17))
    harness.admit("first", first, greedy(20))
    harness.admit("second", second, sampled(20, num_return_sequences=2))
    for _ in range(4):
        harness.loop.run_turn()
    layer = gpt2.model.transformer.h[1]
    with monkeypatch.context() as broken:
        broken.setattr(layer, "forward", lambda *_args, **_kwargs: 1 / 0)
        harness.loop.run_turn()
    assert harness.failed.keys() == {"first", "second"}
    assert "ZeroDivisionError" in caplog.text
    assert harness.loop.is_idle
    harness.admit("third", third, greedy(20, ignore_eos=True))
    harness.run()
    assert harness.ids("third") == reference_greedy(
        gpt2.model, third, max_new_tokens=20, eos_token_id=None
    )


def test_generations_that_cannot_fit_are_refused_at_admission(gpt2: LoadedModel) -> None:
    harness = Harness(gpt2, batch=2)
    harness.admit("many", [1], sampled(5, num_return_sequences=3))
    assert harness.loop.is_idle
    assert harness.failed["many"].reason == "BATCH_TOO_SMALL"
