"""TorchScript graphs of modules, which share the modules' weights."""

import torch

from whence_server.engines.transformers.torchscript import trace


def model() -> torch.nn.Module:
    torch.manual_seed(0)
    layers = (torch.nn.Linear(6, 8), torch.nn.GELU(), torch.nn.LayerNorm(8), torch.nn.Linear(8, 3))
    return torch.nn.Sequential(*layers).eval().requires_grad_(False)


def test_a_graph_is_bit_identical_for_other_inputs() -> None:
    modules = model()
    graph = trace(modules, (torch.zeros(2, 6),))
    given = torch.randn(5, 6)
    assert torch.equal(graph(given), modules(given))


def test_a_graph_shares_the_weights() -> None:
    modules = model()
    graph = trace(modules, (torch.zeros(2, 6),))
    given = torch.randn(5, 6)
    before = graph(given)
    for parameter in modules.parameters():
        parameter.mul_(2.0)
    assert torch.equal(graph(given), modules(given))
    assert not torch.equal(graph(given), before)
