"""Models whose rotary embeddings depend on length, compared with `generate`.

`generate` runs on a newly loaded model each time, since a model that was used before may have kept
the frequencies of another sequence.
"""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from engine_harness import (
    BeamHarness,
    Harness,
    beams,
    greedy,
    loaded_model,
    prompt_of,
    reference_greedy,
    sampled,
)
from tiny_models import LENGTH_DEPENDENT, LONGROPE_BOUNDARY
from transformers import AutoModelForCausalLM

from whence_server.domain.decoding import Decoding, Strategy, TraceDetail, TraceOptions
from whence_server.domain.engine import Admit, Replay
from whence_server.engines.transformers.loading import LoadedModel

Generate = Callable[..., list[int]]

SEQUENCES = {
    "short": (12, 10),
    "crosses it": (LONGROPE_BOUNDARY - 6, 14),
    "begins at it": (LONGROPE_BOUNDARY, 6),
    "long": (70, 8),
}
"""Numbers of prompt tokens and of new tokens."""
PROMPTS = {name: prompt_of(length, i) for i, (name, (length, _)) in enumerate(SEQUENCES.items())}


@pytest.fixture(scope="module", params=LENGTH_DEPENDENT)
def directory(request: pytest.FixtureRequest, tiny_model: Callable[..., Path]) -> Path:
    return tiny_model(request.param)


@pytest.fixture(scope="module")
def loaded(directory: Path) -> LoadedModel:
    return loaded_model(directory)


@pytest.fixture(scope="module")
def generate(directory: Path) -> Generate:
    known: dict[str, list[int]] = {}

    def generated(name: str) -> list[int]:
        if name not in known:
            known[name] = reference_greedy(
                fresh(directory),
                PROMPTS[name],
                max_new_tokens=SEQUENCES[name][1],
                eos_token_id=None,
            )
        return known[name]

    return generated


def fresh(directory: Path) -> torch.nn.Module:
    return AutoModelForCausalLM.from_pretrained(directory).eval()


def admit(harness: Harness, name: str, trace: TraceOptions | None = None) -> None:
    harness.admit(name, PROMPTS[name], greedy(SEQUENCES[name][1], ignore_eos=True), trace)


def test_length_dependent_models_are_found_and_decode_singly(loaded: LoadedModel) -> None:
    assert not loaded.info.batched
    assert loaded.rotary


def test_tokens_equal_generate_alone_and_beside_other_lengths(
    loaded: LoadedModel, generate: Generate
) -> None:
    alone, crowded = Harness(loaded, chunk=16), Harness(loaded, chunk=16)
    for name in SEQUENCES:
        admit(crowded, name)
        crowded.loop.run_turn()
        admit(alone, name)
        alone.run()
    crowded.run()
    for name in SEQUENCES:
        assert alone.ids(name) == crowded.ids(name) == generate(name), name


def test_tokens_equal_generate_with_a_full_trace(loaded: LoadedModel, generate: Generate) -> None:
    harness = Harness(loaded)
    for name in SEQUENCES:
        admit(harness, name, TraceOptions(TraceDetail.INTERNALS, num_candidates=3, prompt=True))
    harness.run()
    for name in SEQUENCES:
        assert harness.ids(name) == generate(name), name
        for step in harness.steps[name, 0]:
            internals = step.decision.internals
            assert internals is not None
            assert internals.source_positions
            assert max(internals.source_positions) < step.context_length
            assert sum(internals.source_shares) <= 1.001


def test_sources_of_tokens_read_twice_equal_one_pass(
    tiny_model: Callable[..., Path],
) -> None:
    # Phi-3 reads everything once more where its frequencies change.
    loaded = loaded_model(tiny_model("phi3_longrope"))
    trace = TraceOptions(TraceDetail.INTERNALS, num_candidates=3)
    name = "crosses it"
    harness = Harness(loaded)
    admit(harness, name, trace)
    harness.run()
    for index in (6, 7, 12):
        text = PROMPTS[name] + harness.ids(name)[:index]
        harness.admit(str(index), text, greedy(1, ignore_eos=True), trace)
        harness.run()
        expected = harness.steps[str(index), 0][0].decision.internals
        internals = harness.steps[name, 0][index].decision.internals
        assert expected is not None
        assert internals is not None
        assert internals.source_positions == expected.source_positions
        assert internals.source_shares == pytest.approx(expected.source_shares, abs=1e-4)


@pytest.mark.parametrize("num_replayed", [3, 9])
def test_continuing_after_an_engines_death_gives_the_same_tokens(
    loaded: LoadedModel, generate: Generate, num_replayed: int
) -> None:
    expected = generate("crosses it")
    harness = Harness(loaded, chunk=16)
    admit(harness, "short")
    harness.loop.run_turn()
    decoding = greedy(len(expected), ignore_eos=True)
    replays = [Replay(0, expected[:num_replayed])]
    prompt = PROMPTS["crosses it"]
    harness.steps["on", 0] = list(harness.steps["short", 0][:1]) * num_replayed
    harness.loop.handle(Admit("on", prompt, decoding, TraceOptions(), replays=replays))
    harness.run()
    assert harness.ids("on")[num_replayed:] == expected[num_replayed:]
    assert harness.ids("short") == generate("short")


def test_a_forced_continuation_has_the_logprobs_of_generate(
    directory: Path, loaded: LoadedModel, generate: Generate
) -> None:
    forced = generate("crosses it")
    prompt = PROMPTS["crosses it"]
    harness = Harness(loaded)
    decoding = Decoding(Strategy.FORCED, len(forced), forced_token_ids=tuple(forced))
    harness.admit("forced", prompt, decoding)
    harness.run()
    output = fresh(directory).generate(  # type: ignore[operator]
        torch.tensor([prompt]),
        attention_mask=torch.ones(1, len(prompt), dtype=torch.long),
        do_sample=False,
        max_new_tokens=len(forced),
        eos_token_id=None,
        pad_token_id=0,
        return_dict_in_generate=True,
        output_logits=True,
    )
    for token_id, logits, step in zip(
        forced, output.logits, harness.steps["forced", 0], strict=True
    ):
        expected = float(torch.log_softmax(logits[0].float(), -1)[token_id])
        assert step.decision.logprob == pytest.approx(expected, abs=1e-4)


def test_beam_search_across_the_boundary_equals_generate(
    directory: Path, loaded: LoadedModel
) -> None:
    prompt = PROMPTS["crosses it"]
    harness = BeamHarness(loaded)
    harness.admit("beams", prompt, beams(10, 2, num_return_sequences=2, ignore_eos=True))
    for name in ("short", "long"):
        admit(harness, name)
    harness.run()
    output = fresh(directory).generate(  # type: ignore[operator]
        torch.tensor([prompt]),
        attention_mask=torch.ones(1, len(prompt), dtype=torch.long),
        do_sample=False,
        num_beams=2,
        num_return_sequences=2,
        max_new_tokens=10,
        eos_token_id=None,
        pad_token_id=0,
    )
    assert harness.winners("beams") == output[:, len(prompt) :].tolist()


def test_samples_of_one_prompt_equal_samples_alone(loaded: LoadedModel) -> None:
    prompt = PROMPTS["crosses it"]
    alone, crowded = Harness(loaded), Harness(loaded)
    for harness in (alone, crowded):
        harness.admit("it", prompt, sampled(10, num_return_sequences=2, ignore_eos=True))
    admit(crowded, "long")
    alone.run()
    crowded.run()
    assert [alone.ids("it", i) for i in range(2)] == [crowded.ids("it", i) for i in range(2)]


@pytest.mark.parametrize("architecture", ["doge", "deepseek_v32", "minimax_m3"])
def test_attention_that_selects_tokens_equals_generate(
    tiny_model: Callable[..., Path], architecture: str
) -> None:
    directory = tiny_model(architecture)
    harness = Harness(loaded_model(directory), chunk=9)
    for name in SEQUENCES:
        admit(harness, name)
    harness.run()
    for name, (_, num_new) in SEQUENCES.items():
        assert harness.ids(name) == reference_greedy(
            fresh(directory), PROMPTS[name], max_new_tokens=num_new, eos_token_id=None
        )
