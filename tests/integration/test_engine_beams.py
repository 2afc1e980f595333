"""Beam search, compared with transformers: equal ids and scores, also beside other rows."""

import random
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from engine_harness import (
    BeamHarness,
    as_in_transformers,
    beams,
    greedy,
    loaded_model,
    plain_logprobs,
    reference_greedy,
)
from tiny_models import CONFIGS

from whence_server.domain.decoding import Decoding, EarlyStopping, FinishReason
from whence_server.domain.engine import StopGeneration
from whence_server.engines.transformers.loading import LoadedModel

MODES = {
    EarlyStopping.WHEN_ENOUGH: True,
    EarlyStopping.HEURISTIC: False,
    EarlyStopping.NEVER: "never",
}
NUM_GREEDY = 18
"""Tokens of the streams beside a search, which is about as long."""
# RWKV's own `generate` cannot: "the cache cannot be reordered". MiniMax's forgets to reorder what
# its linear attention keeps.
ARCHITECTURES = sorted(CONFIGS.keys() - {"gpt2-long", "rwkv", "minimax"})


def reference(
    model: torch.nn.Module, prompt: list[int], decoding: Decoding
) -> tuple[list[list[int]], list[float]]:
    """Return ids and scores of `generate`, without the padding after a sequence's end."""
    ends = sorted({*decoding.eos_token_ids, *decoding.stop_token_ids})
    with as_in_transformers(model):
        output = model.generate(  # type: ignore[operator]
            torch.tensor([prompt], device=model.device),
            attention_mask=torch.ones(1, len(prompt), dtype=torch.long, device=model.device),
            do_sample=False,
            num_beams=decoding.num_beams,
            num_return_sequences=decoding.num_return_sequences,
            length_penalty=decoding.length_penalty,
            early_stopping=MODES[decoding.early_stopping],
            max_new_tokens=decoding.max_new_tokens,
            min_new_tokens=decoding.min_new_tokens or None,
            repetition_penalty=decoding.repetition_penalty,
            no_repeat_ngram_size=decoding.no_repeat_ngram_size,
            bad_words_ids=[list(word) for word in decoding.bad_word_ids] or None,
            sequence_bias=[[[token_id], bias] for token_id, bias in decoding.logit_bias] or None,
            eos_token_id=ends or None,
            pad_token_id=0,
            return_dict_in_generate=True,
            output_scores=True,
        )
    found = []
    for ids in output.sequences[:, len(prompt) :].tolist():
        end = next((i for i, token_id in enumerate(ids) if token_id in ends), len(ids) - 1)
        found.append(ids[: end + 1])
    return found, output.sequences_scores.tolist()


def prompts(count: int, seed: int, longest: int = 40) -> list[list[int]]:
    choose = random.Random(seed)
    return [
        [choose.randrange(1, 400) for _ in range(choose.randint(1, longest))] for _ in range(count)
    ]


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_beams_equal_generate_alone_and_in_a_batch(
    models: Callable[[str], LoadedModel], architecture: str
) -> None:
    loaded = models(architecture)
    harness = BeamHarness(loaded, chunk=16)
    choose = random.Random(7)
    modes = list(MODES)
    wanted = {}
    for i, prompt in enumerate(prompts(4, seed=1)):
        decoding = beams(
            choose.randint(4, 18),
            num_beams=choose.randint(2, 5),
            num_return_sequences=choose.randint(1, 2),
            length_penalty=choose.choice([-1.0, 0.0, 1.0, 2.0]),
            early_stopping=modes[i % 3],
            # Many ends, so that hypotheses finish at every length.
            eos_token_ids=tuple(range(0, 400, 9)),
        )
        wanted[str(i)] = prompt, decoding
    streams = {f"greedy {i}": prompt for i, prompt in enumerate(prompts(3, seed=2))}
    for (name, prompt), (search, (beam_prompt, decoding)) in zip(
        streams.items(), list(wanted.items())[:3], strict=True
    ):
        harness.admit(name, prompt, greedy(NUM_GREEDY, ignore_eos=True))
        harness.loop.run_turn()
        harness.admit(search, beam_prompt, decoding)
        harness.loop.run_turn()
    harness.run()
    harness.admit("3", *wanted["3"])
    harness.run()
    for name, (prompt, decoding) in wanted.items():
        ids, scores = reference(loaded.model, prompt, decoding)
        assert harness.winners(name) == ids, name
        assert harness.scores(name) == pytest.approx(scores, rel=1e-5)
    for name, prompt in streams.items():
        assert harness.ids(name) == reference_greedy(
            loaded.model, prompt, max_new_tokens=NUM_GREEDY, eos_token_id=None
        )


@pytest.fixture
def gpt2(models: Callable[[str], LoadedModel]) -> LoadedModel:
    return models("gpt2")


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("length_penalty", [-2.0, 0.0, 0.7, 3.0])
def test_beams_equal_generate_for_every_early_stopping_and_penalty(
    gpt2: LoadedModel, mode: EarlyStopping, length_penalty: float
) -> None:
    harness = BeamHarness(gpt2)
    for number, prompt in enumerate(prompts(4, seed=3)):
        decoding = beams(
            30,
            num_beams=4,
            num_return_sequences=4,
            length_penalty=length_penalty,
            early_stopping=mode,
            eos_token_ids=tuple(range(number, 400, 17)),
            stop_token_ids=tuple(range(5, 400, 90)),
        )
        harness.admit(str(number), prompt, decoding)
        harness.run()
        ids, scores = reference(gpt2.model, prompt, decoding)
        assert harness.winners(str(number)) == ids
        assert harness.scores(str(number)) == pytest.approx(scores, rel=1e-5)
        for sequence in harness.done[str(number)].sequences:
            last = sequence.steps[-1].decision.token_id
            if last in decoding.eos_token_ids:
                assert sequence.finish is FinishReason.END_OF_SEQUENCE
            elif last in decoding.stop_token_ids:
                assert sequence.finish is FinishReason.STOP
            else:
                assert sequence.finish is FinishReason.LENGTH
                assert len(sequence.steps) == 30


@pytest.mark.parametrize(
    "settings",
    [
        {"repetition_penalty": 1.7},
        {"no_repeat_ngram_size": 2},
        {"min_new_tokens": 12},
        {"bad_word_ids": ((5,), (138,), (7, 9))},
        {"logit_bias": ((11, 4.5), (138, -3.0))},
        {"repetition_penalty": 1.2, "no_repeat_ngram_size": 3, "min_new_tokens": 6},
    ],
)
def test_processors_act_on_logprobs_as_in_generate(
    gpt2: LoadedModel, settings: dict[str, object]
) -> None:
    harness = BeamHarness(gpt2)
    wanted = {}
    for number, prompt in enumerate(prompts(3, seed=4)):
        decoding = beams(
            20,
            num_beams=3,
            num_return_sequences=2,
            eos_token_ids=tuple(range(0, 400, 9)),
            **settings,
        )
        wanted[str(number)] = prompt, decoding
        harness.admit(str(number), prompt, decoding)
    harness.run()
    for name, (prompt, decoding) in wanted.items():
        ids, scores = reference(gpt2.model, prompt, decoding)
        assert harness.winners(name) == ids
        assert harness.scores(name) == pytest.approx(scores, rel=1e-5)
        for sequence in harness.done[name].sequences:
            for step in sequence.steps:
                effects = step.decision.effects
                assert effects is not None
                assert len(effects.num_kept) == len(settings)


def test_rounds_trace_the_winners_ancestry(gpt2: LoadedModel) -> None:
    harness = BeamHarness(gpt2)
    decoding = beams(
        16, num_beams=4, num_return_sequences=4, eos_token_ids=tuple(range(0, 400, 11))
    )
    prompt = prompts(1, seed=5)[0]
    harness.admit("it", prompt, decoding)
    harness.run()
    paths: list[list[int]] = [[]]
    scores = [0.0]
    finished: dict[tuple[int, ...], float] = {}
    for made in harness.rounds["it"]:
        assert made.context_length == len(prompt) + made.index
        considered = made.continuations
        assert len(considered) == (1 + len(decoding.eos_token_ids)) * 4
        assert [c.score for c in considered] == sorted((c.score for c in considered), reverse=True)
        for continuation in considered:
            assert not (continuation.kept and continuation.finished)
            assert (
                continuation.score
                == pytest.approx(scores[continuation.parent] + continuation.logprob, abs=1e-4)
                or continuation.score < -1e8
            )
            if continuation.finished:
                path = (*paths[continuation.parent], continuation.token_id)
                finished[path] = continuation.score / len(path)
        kept = [c for c in considered if c.kept]
        assert len(kept) in {0, 4}
        paths = [[*paths[c.parent], c.token_id] for c in kept]
        scores = [c.score for c in kept]
    assert not paths, "nothing goes on beyond the last round"
    for ids, score in zip(harness.winners("it"), harness.scores("it"), strict=True):
        assert finished[tuple(ids)] == pytest.approx(score, rel=1e-5)


def test_winners_have_the_numbers_of_a_plain_forward_pass(gpt2: LoadedModel) -> None:
    harness = BeamHarness(gpt2)
    prompt = prompts(1, seed=6)[0]
    harness.admit("it", prompt, beams(12, num_beams=3, num_return_sequences=3))
    harness.run()
    turns = {turn.cost.ready_ns: turn for turn in harness.turns}
    for sequence in harness.done["it"].sequences:
        ids = [step.decision.token_id for step in sequence.steps]
        plain = plain_logprobs(gpt2.model, prompt + ids)
        for i, (token_id, step) in enumerate(zip(ids, sequence.steps, strict=True)):
            expected = plain[len(prompt) + i - 1]
            decision = step.decision
            assert decision.logprob == pytest.approx(float(expected[token_id]), abs=1e-4)
            assert decision.rank == int((expected > expected[token_id]).sum())
            assert decision.entropy == pytest.approx(
                float(-(expected.exp() * expected).sum()), abs=1e-3
            )
            assert decision.candidates is not None
            assert decision.candidates.token_ids == expected.topk(8).indices.tolist()
            assert decision.draw is None
            assert step.context_length == len(prompt) + i
            (made,) = turns[step.cost.ready_ns].beam_rounds
            assert made.index == i, "a step's cost is its round's"


def test_a_search_leaves_as_a_group(gpt2: LoadedModel) -> None:
    harness = BeamHarness(gpt2, batch=6)
    first, second, third = prompts(3, seed=8)
    harness.admit("stopped", first, beams(40, num_beams=4))
    harness.admit("stream", second, greedy(20, ignore_eos=True))
    harness.admit("waits", third, beams(5, num_beams=3, num_return_sequences=2))
    while len(harness.rounds["stopped"]) < 3:
        harness.loop.run_turn()
    assert harness.runner.num_rows == 5
    assert not harness.rounds["waits"], "three more beams do not fit"
    harness.loop.handle(StopGeneration("stopped"))
    assert harness.runner.num_rows == 1
    harness.run()
    assert "stopped" not in harness.done
    assert (
        harness.winners("waits")
        == reference(gpt2.model, third, beams(5, num_beams=3, num_return_sequences=2))[0]
    )
    assert harness.ids("stream") == reference_greedy(
        gpt2.model, second, max_new_tokens=20, eos_token_id=None
    )


def test_a_full_context_ends_every_beam(gpt2: LoadedModel) -> None:
    harness = BeamHarness(gpt2)
    harness.admit("it", [7] * 250, beams(100, num_beams=3, num_return_sequences=2))
    harness.run()
    assert [len(ids) for ids in harness.winners("it")] == [6, 6]
    assert len(harness.rounds["it"]) == 6


def test_a_search_without_tokens_fails_alone(gpt2: LoadedModel) -> None:
    harness = BeamHarness(gpt2)
    first, second = prompts(2, seed=9)
    everything = tuple((token_id,) for token_id in range(416))
    harness.admit("nothing", first, beams(5, num_beams=2, bad_word_ids=everything))
    harness.admit("stream", second, greedy(5, ignore_eos=True))
    harness.run()
    assert harness.failed.keys() == {"nothing"}
    assert harness.failed["nothing"].reason == "NO_TOKEN_LEFT"
    assert "round 0" in harness.failed["nothing"].message
    assert len(harness.ids("stream")) == 5


def test_nan_logits_fail_the_search_alone(tiny_model: Callable[..., Path]) -> None:
    loaded = loaded_model(tiny_model("llama"))
    with torch.no_grad():
        loaded.model.get_input_embeddings().weight[415] = torch.nan
    harness = BeamHarness(loaded)
    good, bad = prompts(2, seed=10)
    harness.admit("good", good, beams(6, num_beams=2))
    harness.admit("bad", [*bad, 415], beams(6, num_beams=2))
    harness.run()
    assert harness.failed["bad"].reason == "NON_FINITE_LOGITS"
    assert harness.done.keys() == {"good"}
