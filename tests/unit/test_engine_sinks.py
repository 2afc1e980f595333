"""The rule for attention sinks: where it finds them, and that it finds none without them."""

import pytest
import torch

from whence_server.engines.transformers.internals.sinks import find_sinks
from whence_server.engines.transformers.internals.sources import list_sources, read_context

NUM_HEADS = 4


def found(attention: list[float], sizes: list[float]) -> list[int]:
    sinks = find_sinks(torch.tensor([attention]), torch.tensor([sizes]))
    return [int(position) for position in sinks[0].nonzero().flatten()]


@pytest.mark.parametrize(
    ("attention", "sizes", "sinks"),
    [
        pytest.param([0.6, 0.1, 0.1, 0.2], [0.3, 1.0, 1.0, 1.0], [0], id="the first"),
        pytest.param([0.1, 0.1, 0.6, 0.2], [1.0, 1.0, 0.3, 1.0], [2], id="any other"),
        pytest.param(
            [0.3, 0.3, 0.1, 0.1, 0.1, 0.1], [0.3, 0.3, 1, 1, 1, 1], [0, 1], id="two with one token"
        ),
        pytest.param([0.6, 0.1, 0.1, 0.2], [0.8, 1.0, 1.0, 1.0], [], id="long values are a source"),
        pytest.param([0.1, 0.4, 0.3, 0.2], [0.3, 1.0, 1.0, 1.0], [], id="little attention"),
        pytest.param([0.25, 0.25, 0.25, 0.25], [1.0, 1.0, 1.0, 1.0], [], id="all alike"),
        pytest.param([0.1, 0.1, 0.1, 0.7], [1.0, 1.0, 1.0, 0.3], [], id="the newest never is"),
        pytest.param([0.9, 0.1], [0.3, 1.0], [0], id="two positions"),
        pytest.param([1.0], [1.0], [], id="one position"),
        pytest.param([0.0, 0.0, 0.7, 0.2, 0.1], [0, 0, 0.3, 1, 1], [2], id="after padding"),
        pytest.param([0.5, 0.5], [0.0, 0.0], [], id="no values at all"),
    ],
)
def test_a_sink_has_much_attention_and_short_values(
    attention: list[float], sizes: list[float], sinks: list[int]
) -> None:
    assert found(attention, sizes) == sinks


def test_in_a_long_context_a_sink_needs_a_fiftieth_of_the_attention() -> None:
    rest = 999
    for attention, sinks in ((0.03, [0]), (0.01, [])):
        others = [(1 - attention) / rest] * rest
        assert found([attention, *others], [0.3] + [1.0] * rest) == sinks


def test_shares_of_sources_the_newest_and_the_sink_have_a_sum_of_1() -> None:
    weights = torch.tensor([[[0.6, 0.1, 0.1, 0.2]] * NUM_HEADS]).reshape(1, NUM_HEADS, 4)
    norms = torch.tensor([[[0.5, 2.0, 1.0, 1.0]] * NUM_HEADS]).reshape(1, NUM_HEADS, 4)
    (sources,) = list_sources(read_context([weights], norms, None), [4])
    total = 0.6 * 0.5 + 0.1 * 2 + 0.1 + 0.2
    assert sources.positions == [1, 2]
    assert sources.shares == pytest.approx([0.2 / total, 0.1 / total])
    assert sources.self_share == pytest.approx(0.2 / total)
    assert sources.sink_share == pytest.approx(0.3 / total)


def test_rows_of_a_batch_have_sinks_of_their_own() -> None:
    weights = torch.tensor([[[0.6, 0.1, 0.1, 0.2]], [[0.0, 0.3, 0.3, 0.4]]])
    norms = torch.tensor([[[0.3, 1.0, 1.0, 1.0]], [[0.0, 1.0, 1.0, 1.0]]])
    first, second = list_sources(read_context([weights], norms, None), [4, 3])
    assert first.sink_share is not None
    assert first.positions == [1, 2]
    assert second.sink_share is None
    assert second.positions == [0, 1]
