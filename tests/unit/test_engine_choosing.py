"""Failures in choosing or recording a token, which end only the rows concerned."""

import dataclasses
import math
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
import torch
from engine_harness import BeamHarness, Harness, beams, greedy, loaded_model, prompt_of, sampled

from whence_server.domain.decoding import Decoding, Strategy, TraceOptions
from whence_server.domain.steps import Decision
from whence_server.engines.transformers import batch
from whence_server.engines.transformers.beams import Beams
from whence_server.engines.transformers.choosing import IsolatingChooser
from whence_server.engines.transformers.decoding import BeamSearch, Chooser, NoChoice, Round, Row
from whence_server.engines.transformers.loading import LoadedModel

VOCABULARY_SIZE = 50
CULPRIT = 13
"""Seed of the rows for which the tests' choosers fail."""


@pytest.fixture(scope="module")
def gpt2(tiny_model: Callable[..., Path]) -> LoadedModel:
    return loaded_model(tiny_model("gpt2"))


class Stumbling(Chooser):
    """Chooser that fails, from a step on, for every batch with a row of seed CULPRIT."""

    error: Exception = OverflowError("math range error")

    def choose(self, logits: torch.Tensor, rows: Sequence[Row]) -> list[Decision | NoChoice]:
        if any(row.decoding.seed == CULPRIT and row.index >= 3 for row in rows):
            raise self.error
        return super().choose(logits, rows)

    def extend_beams(
        self, logits: torch.Tensor, rows: Sequence[Row], search: BeamSearch
    ) -> Round | NoChoice:
        if rows[0].decoding.seed == CULPRIT and rows[0].index >= 3:
            raise self.error
        return super().extend_beams(logits, rows, search)


def row(seed: int = 0, **settings: object) -> Row:
    decoding = Decoding(Strategy.GREEDY, 8, seed=seed, **settings)  # type: ignore[arg-type]
    return Row(decoding, TraceOptions(num_candidates=4), 0, [1, 2, 3], num_generated=0)


def choosing(kind: type[Chooser]) -> Chooser:
    return kind(VOCABULARY_SIZE, torch.device("cpu"))


def test_other_rows_get_the_same_tokens_beside_a_failing_one() -> None:
    logits = torch.randn(4, VOCABULARY_SIZE, generator=torch.Generator().manual_seed(1))
    rows = [row(), row(CULPRIT, repetition_penalty=1.2), row(temperature=0.7), row()]
    rows[1].index = 3
    expected = choosing(Chooser).choose(logits, rows)
    chosen = IsolatingChooser(choosing(Stumbling), lambda: None).choose(logits, rows)
    assert isinstance(chosen[1], NoChoice)
    assert chosen[1].reason == "CHOOSING_FAILED"
    assert [chosen[i] for i in (0, 2, 3)] == [expected[i] for i in (0, 2, 3)]


def test_a_lost_device_is_raised_and_fails_no_row() -> None:
    def lost() -> None:
        raise RuntimeError("the device is lost")

    rows = [row(), row(CULPRIT)]
    rows[1].index = 3
    with pytest.raises(RuntimeError, match="is lost"):
        IsolatingChooser(choosing(Stumbling), lost).choose(torch.zeros(2, VOCABULARY_SIZE), rows)


def test_running_streams_continue_beside_a_failing_one(gpt2: LoadedModel) -> None:
    alone, crowded = BeamHarness(gpt2), BeamHarness(gpt2, chooser=Stumbling)
    for harness in (alone, crowded):
        harness.admit("greedy", prompt_of(10, 1), greedy(20, ignore_eos=True))
        harness.admit("drawn", prompt_of(12, 2), sampled(20, ignore_eos=True, seed=4))
        harness.admit("beams", prompt_of(9, 3), beams(12, 3, ignore_eos=True))
    crowded.admit("culprit", prompt_of(8, 4), sampled(20, ignore_eos=True, seed=CULPRIT))
    crowded.admit("search", prompt_of(8, 5), beams(20, 2, ignore_eos=True, seed=CULPRIT))
    alone.run()
    crowded.run()
    assert {name: failed.reason for name, failed in crowded.failed.items()} == dict.fromkeys(
        ("culprit", "search"), "CHOOSING_FAILED"
    )
    assert len(crowded.ids("culprit")) == 3
    for name in ("greedy", "drawn"):
        assert crowded.ids(name) == alone.ids(name)
    assert crowded.winners("beams") == alone.winners("beams")


def test_a_search_whose_round_cannot_be_applied_fails_alone(
    gpt2: LoadedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Broken(Beams):
        def arrange(self) -> list[tuple[object, object]]:  # type: ignore[override]
            if self.num_rounds == 4:
                raise RuntimeError("no such row")
            return super().arrange()  # type: ignore[return-value]

    alone, crowded = Harness(gpt2), BeamHarness(gpt2)
    alone.admit("it", prompt_of(10, 1), greedy(20, ignore_eos=True))
    alone.run()
    monkeypatch.setattr(batch, "Beams", Broken)
    crowded.admit("it", prompt_of(10, 1), greedy(20, ignore_eos=True))
    crowded.admit("search", prompt_of(9, 3), beams(12, 3, ignore_eos=True))
    crowded.run()
    assert crowded.failed["search"].reason == "CHOOSING_FAILED"
    assert crowded.ids("it") == alone.ids("it")


def test_steps_with_a_huge_bias_are_recorded() -> None:
    # The mass that no_repeat_ngram removes is a difference of logprobs, which rounding makes
    # positive by as much as the biases are large.
    biased = row(logit_bias=((16, 1e38), (17, -3.4e38)), no_repeat_ngram_size=1)
    biased.rewrite([1, 2, 16])  # type: ignore[arg-type]
    others = [row(), row(temperature=0.5)]
    logits = torch.randn(3, VOCABULARY_SIZE, generator=torch.Generator().manual_seed(2))
    logits[:, 16] = 3.0
    decisions = choosing(Chooser).choose(logits, [biased, *others])
    first = decisions[0]
    assert isinstance(first, Decision)
    assert first.effects is not None
    assert all(0 <= mass <= 1 for mass in first.effects.removed_mass)
    alone = choosing(Chooser).choose(logits[1:], others)
    assert decisions[1:] == alone


@pytest.mark.parametrize("penalty", [1e38, 3.4e38])
@pytest.mark.parametrize("length_penalty", [-100.0, 100.0])
def test_scores_beyond_float32_fail_their_search_alone(
    gpt2: LoadedModel, penalty: float, length_penalty: float
) -> None:
    # No request may ask for these: the engine holds even so.
    hostile = dataclasses.replace(
        beams(2000, 2, ignore_eos=True, length_penalty=length_penalty),
        repetition_penalty=penalty,
        logit_bias=tuple((i, (-1.0) ** i * 1e38) for i in range(400)),
    )
    alone, crowded = Harness(gpt2), BeamHarness(gpt2)
    for harness in (alone, crowded):
        harness.admit("it", prompt_of(10, 1), greedy(20, ignore_eos=True))
    crowded.admit("hostile", prompt_of(9, 3), hostile)
    alone.run()
    crowded.run()
    assert crowded.ids("it") == alone.ids("it")
    assert "it" not in crowded.failed
    assert "hostile" in crowded.failed or all(map(math.isfinite, crowded.scores("hostile")))
