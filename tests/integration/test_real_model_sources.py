"""Sources of a real model: its attention sink is no source."""

from pathlib import Path

import pytest
from engine_harness import Harness, greedy, loaded_model
from transformers import AutoTokenizer

from whence_server.domain.decoding import TraceDetail, TraceOptions
from whence_server.domain.steps import Internals
from whence_server.engines.transformers.loading import LoadedModel

PROMPT = "The capital of France is"
FRANCE = 3
INTERNALS = TraceOptions(TraceDetail.INTERNALS)


@pytest.fixture(scope="module")
def loaded(real_model: Path) -> LoadedModel:
    return loaded_model(real_model)


def generate(loaded: LoadedModel, directory: Path, text: str, num_tokens: int) -> list[Internals]:
    ids = AutoTokenizer.from_pretrained(directory)(text).input_ids
    harness = Harness(loaded)
    harness.admit("it", ids, greedy(num_tokens), INTERNALS)
    harness.run()
    found = [step.decision.internals for step in harness.steps["it", 0]]
    return [internals for internals in found if internals is not None]


def test_the_first_token_is_a_sink_and_the_country_a_source(
    real_model: Path, loaded: LoadedModel
) -> None:
    first, *later = generate(loaded, real_model, PROMPT, 4)
    assert first.sink_share == pytest.approx(0.403, abs=0.01)
    assert first.source_positions[0] == FRANCE
    assert first.source_shares[0] == pytest.approx(0.187, abs=0.01)
    for internals in (first, *later):
        assert 0 not in internals.source_positions
        assert internals.sink_share is not None
        assert internals.self_share is not None
        # Fewer than 17 positions: all of them are listed.
        whole = sum(internals.source_shares) + internals.self_share + internals.sink_share
        assert whole == pytest.approx(1.0, abs=1e-5)


def test_two_first_line_breaks_are_both_sinks(real_model: Path, loaded: LoadedModel) -> None:
    (first,) = generate(loaded, real_model, f"\n\n{PROMPT}", 1)
    assert {0, 1}.isdisjoint(first.source_positions)
    assert sorted(first.source_positions) == [2, 3, 4, 5]
