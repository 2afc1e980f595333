"""Norms of updates and weights, against brute force, with one thread and with two."""

import pytest
import torch
from torch import nn

from whence_server.training.recording import norms
from whence_server.training.recording.groups import Group
from whence_server.training.recording.norms import NormMeter, Norms


@pytest.fixture(params=[1, 2])
def threads(request: pytest.FixtureRequest) -> int:
    return int(request.param)


def model_of(dtype: torch.dtype) -> nn.Module:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(70, 90), nn.Linear(90, 50), nn.Linear(50, 3))
    model[1].to(dtype)  # a part of it goes another way
    return model


def groups_of(model: nn.Module) -> list[Group]:
    names = [name for name, _ in model.named_parameters()]
    return [Group("some", 0, names[::2]), Group("others", 0, names[1::2])]


def moved(model: nn.Module, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator), alpha=0.01)


def expected(model: nn.Module, before: dict[str, torch.Tensor]) -> Norms:
    def norm(names: list[str], *, change: bool) -> float:
        after = dict(model.named_parameters())
        parts = [after[n].detach().double() - (before[n].double() if change else 0) for n in names]
        return float(torch.cat([part.flatten() for part in parts]).norm())

    groups = [group.parameter_names for group in groups_of(model)]
    return Norms(
        [norm(names, change=True) for names in groups],
        [norm(names, change=False) for names in groups],
    )


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_norms_are_equal_in_kernel_threads_and_torch(
    monkeypatch: pytest.MonkeyPatch, threads: int, dtype: torch.dtype
) -> None:
    started: list[object] = []

    class Counted(norms.ThreadPoolExecutor):  # type: ignore[name-defined,misc]
        def submit(self, *args: object, **kwargs: object) -> object:
            started.append(args)
            return super().submit(*args, **kwargs)

    monkeypatch.setattr(norms, "_WORTH_A_THREAD", 1)
    monkeypatch.setattr(norms, "ThreadPoolExecutor", Counted)
    monkeypatch.setattr(torch, "get_num_threads", lambda: threads)
    model = model_of(dtype)
    meter = NormMeter(model, groups_of(model), 1)
    meter.copy_weights(1)
    for step in (1, 2, 3):
        before = {name: p.detach().clone() for name, p in model.named_parameters()}
        moved(model, step)
        if step == 3:  # it may lie elsewhere from now on
            model[0].weight.data = model[0].weight.data.clone()
        found = meter.measure_step(step)
        assert found is not None
        assert found.updates == pytest.approx(expected(model, before).updates, rel=1e-5)
        assert found.weights == pytest.approx(expected(model, before).weights, rel=1e-5)
        meter.copy_weights(step + 1)
    assert len(started) == (3 if threads == 2 else 0)
