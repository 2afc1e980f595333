"""The engine, compared with transformers: equal tokens and numbers, also beside other rows."""

import random
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from engine_harness import Harness, greedy, loaded_model, plain_logprobs, reference_greedy, sampled
from tiny_models import ARCHITECTURES, BATCHED, HYBRIDS, LAST_STAGES

from whence_server.domain.decoding import (
    Decoding,
    FinishReason,
    Strategy,
    TraceDetail,
    TraceOptions,
)
from whence_server.domain.engine import Admit, Replay, StopGeneration, StopSequence
from whence_server.engines.transformers.loading import LoadedModel

Greedy = Callable[..., list[int]]


@pytest.fixture(scope="module")
def reference(models: Callable[[str], LoadedModel]) -> Greedy:
    """Return a cached function that runs `generate` on an architecture's model."""
    known: dict[tuple[str, tuple[int, ...]], list[int]] = {}

    def generated(architecture: str, prompt: list[int], max_new_tokens: int) -> list[int]:
        key = (architecture, tuple(prompt))
        if len(known.get(key, [])) < max_new_tokens:
            known[key] = reference_greedy(
                models(architecture).model,
                prompt,
                max_new_tokens=max_new_tokens,
                eos_token_id=None,
            )
        return known[key][:max_new_tokens]

    return generated


@pytest.fixture(params=ARCHITECTURES)
def loaded(request: pytest.FixtureRequest, models: Callable[[str], LoadedModel]) -> LoadedModel:
    return models(request.param)


@pytest.fixture
def gpt2(models: Callable[[str], LoadedModel]) -> LoadedModel:
    return models("gpt2")


def prompts(count: int, seed: int, longest: int = 60) -> list[list[int]]:
    choose = random.Random(seed)
    return [
        [choose.randrange(1, 400) for _ in range(choose.randint(1, longest))] for _ in range(count)
    ]


def rounding(loaded: LoadedModel) -> float:
    """Return the tolerance of float32 logprobs, compared with a plain forward pass.

    Where there is nothing but a state that is carried on, it rounds at every step, and not as a
    pass over all tokens does; these models' logits are larger, too. tests/unit/test_engine_solo.py
    holds their logits to `generate`'s bit for bit.
    """
    without_attention = loaded.info.architecture.startswith(("Mamba", "Rwkv"))
    return 1e-3 if without_attention else 1e-4


def test_reading_of_a_prompt_is_told_before_each_of_its_passes(gpt2: LoadedModel) -> None:
    harness = Harness(gpt2, chunk=16)
    harness.admit("long", list(range(1, 41)), greedy(2, ignore_eos=True))
    harness.loop.handle(
        Admit(
            "again",
            [7, 8, 9],
            greedy(40, ignore_eos=True),
            TraceOptions(),
            replays=[Replay(0, list(range(1, 31)))],
        )
    )
    harness.run()
    told: dict[str, list[int]] = {"long": [], "again": []}
    for turn in harness.turns:
        for reading in turn.prompts_reading:
            if reading.generation_id in told:
                told[reading.generation_id].append(reading.num_tokens)
        for prefilled in turn.prefilled:
            if prefilled.generation_id in told:
                # One before each pass, and none after the last.
                assert len(told[prefilled.generation_id]) == prefilled.num_chunks > 1
    assert told["long"][0] == 0
    assert told["long"] == sorted(set(told["long"]))
    assert told["long"][-1] < 40
    assert set(told["again"]) == {0, 3}, "replayed tokens are not the prompt's"


@pytest.mark.parametrize("architecture", ARCHITECTURES + LAST_STAGES + HYBRIDS)
def test_only_models_that_cannot_be_batched_decode_singly(
    models: Callable[[str], LoadedModel], architecture: str
) -> None:
    assert models(architecture).info.batched == (architecture in BATCHED + LAST_STAGES)


@pytest.mark.parametrize("architecture", ARCHITECTURES + LAST_STAGES + HYBRIDS)
def test_greedy_alone_equals_generate(
    models: Callable[[str], LoadedModel], reference: Greedy, architecture: str
) -> None:
    harness = Harness(models(architecture))
    for number, prompt in enumerate([*prompts(2, seed=1), [7]]):
        harness.admit(str(number), prompt, greedy(25, ignore_eos=True))
        harness.run()
        assert harness.ids(str(number)) == reference(architecture, prompt, 25)
        assert harness.finish(str(number)) is FinishReason.LENGTH


# Whole prompts beside each other are read by one model of each kind; alone, by every one above.
WHOLE = ["gpt2", "llama", "mistral", "gemma2", "bloom", "mixtral"]


@pytest.mark.parametrize(
    ("architecture", "chunk"),
    [*((name, 16) for name in ARCHITECTURES + LAST_STAGES), *((name, 512) for name in WHOLE)],
)
def test_greedy_equals_plain_passes_while_rows_come_and_go(
    models: Callable[[str], LoadedModel], architecture: str, chunk: int
) -> None:
    loaded = models(architecture)
    harness = Harness(loaded, chunk=chunk, batch=9)
    choose = random.Random(chunk)
    lengths = random.Random(2)
    waiting = [(str(i), p, lengths.randint(1, 60)) for i, p in enumerate(prompts(14, seed=2))]
    everyone = list(waiting)
    widest = 0
    while waiting or not harness.loop.is_idle:
        while waiting and choose.random() < 0.5:
            name, prompt, length = waiting.pop()
            harness.admit(name, prompt, greedy(length, ignore_eos=True))
        harness.loop.run_turn()
        widest = max(widest, harness.runner.num_rows)
    assert widest >= 8
    for name, prompt, length in everyone:
        ids = harness.ids(name)
        assert len(ids) == length
        # One pass over the whole text tells the likeliest token at each of its places; that this
        # is the choice of `generate` too, which takes a pass for each token, is tested above.
        plain = plain_logprobs(loaded.model, prompt + ids[:-1])
        assert ids == plain[len(prompt) - 1 :].argmax(-1).tolist(), name


def test_logprobs_are_those_of_a_plain_forward_pass(loaded: LoadedModel) -> None:
    harness = Harness(loaded, chunk=16)
    given = prompts(6, seed=3)
    for number, prompt in enumerate(given):
        harness.admit(str(number), prompt, sampled(16, ignore_eos=True, seed=number))
    harness.run()
    for number, prompt in enumerate(given):
        ids = harness.ids(str(number))
        plain = plain_logprobs(loaded.model, prompt + ids)
        for i, step in enumerate(harness.steps[str(number), 0]):
            expected = plain[len(prompt) + i - 1]
            assert step.decision.logprob == pytest.approx(
                float(expected[ids[i]]), abs=rounding(loaded)
            )
            assert step.context_length == len(prompt) + i
            candidates = step.decision.candidates
            assert candidates is not None
            top = torch.tensor(candidates.logprobs)
            torch.testing.assert_close(
                top, expected.topk(len(top)).values, rtol=0, atol=rounding(loaded)
            )


def test_a_seed_gives_the_same_tokens_alone_and_in_any_batch(loaded: LoadedModel) -> None:
    prompt = prompts(1, seed=4)[0]
    alone, crowded = Harness(loaded), Harness(loaded, chunk=5)
    decoding = sampled(20, num_return_sequences=3, ignore_eos=True)
    alone.admit("it", prompt, decoding)
    alone.run()
    others = prompts(8, seed=5)
    for number, other in enumerate(others[:4]):
        crowded.admit(str(number), other, sampled(10 + number, seed=number))
    crowded.loop.run_turn()
    crowded.admit("it", prompt, decoding)
    for number, other in enumerate(others[4:], 4):
        crowded.admit(str(number), other, greedy(5 * number))
        crowded.loop.run_turn()
    crowded.run()
    for index in range(3):
        assert crowded.ids("it", index) == alone.ids("it", index)
    assert len({tuple(alone.ids("it", index)) for index in range(3)}) == 3


def test_a_prompt_in_chunks_gives_the_same_logits(loaded: LoadedModel) -> None:
    prompt = prompts(1, seed=6)[0] * 3
    whole, pieces = Harness(loaded), Harness(loaded, chunk=4)
    for harness in (whole, pieces):
        harness.admit("it", prompt, greedy(20), TraceOptions(prompt=True))
        harness.run()
    assert pieces.ids("it") == whole.ids("it")
    for one, other in zip(pieces.prompts["it"], whole.prompts["it"], strict=True):
        assert one.token_id == other.token_id
        assert one.logprob == pytest.approx(other.logprob, abs=1e-4)


@pytest.mark.parametrize("chunk", [5, 512])
def test_prompt_traces_are_those_of_a_plain_forward_pass(loaded: LoadedModel, chunk: int) -> None:
    harness = Harness(loaded, chunk=chunk)
    prompt = prompts(1, seed=7)[0]
    harness.admit("it", prompt, greedy(1), TraceOptions(prompt=True, num_candidates=5))
    harness.run()
    decisions = harness.prompts["it"]
    assert [decision.token_id for decision in decisions] == prompt
    assert decisions[0].logprob is None
    plain = plain_logprobs(loaded.model, prompt)
    for i, decision in enumerate(decisions[1:], 1):
        expected = plain[i - 1]
        assert decision.logprob == pytest.approx(float(expected[prompt[i]]), abs=rounding(loaded))
        assert decision.rank == int((expected > expected[prompt[i]]).sum())
        assert decision.candidates is not None
        assert decision.candidates.token_ids == expected.topk(5).indices.tolist()


def test_tokens_do_not_depend_on_the_trace(gpt2: LoadedModel) -> None:
    harness = Harness(gpt2)
    prompt = prompts(1, seed=8)[0]
    traces = {
        "tokens": TraceOptions(TraceDetail.TOKENS),
        "decisions": TraceOptions(TraceDetail.DECISIONS, num_candidates=20),
        "prompt too": TraceOptions(TraceDetail.DECISIONS, num_candidates=20, prompt=True),
    }
    for name, trace in traces.items():
        harness.admit(name, prompt, sampled(30), trace)
    harness.run()
    decisions = {name: [s.decision for s in harness.steps[name, 0]] for name in traces}
    ids = {name: [d.token_id for d in of] for name, of in decisions.items()}
    logprobs = {name: [d.logprob for d in of] for name, of in decisions.items()}
    assert ids["tokens"] == ids["decisions"] == ids["prompt too"]
    assert logprobs["tokens"] == logprobs["decisions"]
    # The prompt's positions go through the head together then: other sums, the same numbers.
    assert logprobs["prompt too"] == pytest.approx(logprobs["tokens"], abs=1e-5)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_end_of_sequence_and_stop_ids_respect_the_minimum(
    models: Callable[[str], LoadedModel], architecture: str
) -> None:
    loaded = models(architecture)
    harness = Harness(loaded)
    prompt = prompts(1, seed=9)[0]
    free = reference_greedy(loaded.model, prompt, max_new_tokens=30, eos_token_id=None)
    end = free[len(free) // 2]
    until = free[: free.index(end) + 1]
    harness.admit("eos", prompt, greedy(30, eos_token_ids=(end,)))
    harness.admit("ignored", prompt, greedy(30, eos_token_ids=(end,), ignore_eos=True))
    never = min(set(range(416)) - set(free))
    harness.admit("stop", prompt, greedy(30, stop_token_ids=(never, end)))
    harness.admit("minimum", prompt, greedy(30, eos_token_ids=(end,), min_new_tokens=25))
    harness.run()
    assert harness.ids("eos") == harness.ids("stop") == until
    assert harness.finish("eos") is FinishReason.END_OF_SEQUENCE
    assert harness.finish("stop") is FinishReason.STOP
    assert harness.ids("ignored") == free
    assert harness.ids("minimum") == reference_greedy(
        loaded.model, prompt, max_new_tokens=30, min_new_tokens=25, eos_token_id=end
    )


def test_a_forced_continuation_is_traced_to_its_end(gpt2: LoadedModel) -> None:
    harness = Harness(gpt2)
    prompt, forced = prompts(2, seed=10)
    harness.admit(
        "it",
        prompt,
        Decoding(
            Strategy.FORCED, len(forced), forced_token_ids=tuple(forced), eos_token_ids=(forced[0],)
        ),
    )
    harness.run()
    assert harness.ids("it") == forced
    assert harness.finish("it") is FinishReason.LENGTH
    plain = plain_logprobs(gpt2.model, prompt + forced)
    for i, step in enumerate(harness.steps["it", 0]):
        expected = float(plain[len(prompt) + i - 1, forced[i]])
        assert step.decision.logprob == pytest.approx(expected, abs=1e-4)


def test_a_full_context_ends_the_sequence(gpt2: LoadedModel) -> None:
    harness = Harness(gpt2)
    prompt = [7] * 250
    harness.admit("it", prompt, greedy(100, ignore_eos=True))
    harness.admit("full", [7] * 256, greedy(100, ignore_eos=True))
    harness.admit("long", [7] * 257, greedy(1))
    harness.run()
    assert len(harness.ids("it")) == 6
    assert len(harness.ids("full")) == 1
    assert harness.finish("it") is harness.finish("full") is FinishReason.LENGTH
    assert harness.failed["long"].reason == "PROMPT_LENGTH"


def test_a_sequence_and_a_generation_can_be_stopped(gpt2: LoadedModel) -> None:
    harness = Harness(gpt2, chunk=8)
    first, second, third = prompts(3, seed=11)
    decoding = sampled(20, num_return_sequences=3, ignore_eos=True)
    harness.admit("three", first, decoding)
    harness.admit("stopped", second, greedy(20, ignore_eos=True))
    harness.admit("other", third, greedy(20, ignore_eos=True))
    while len(harness.ids("stopped")) < 5:
        harness.loop.run_turn()
    harness.loop.handle(StopSequence("three", 1))
    harness.loop.handle(StopGeneration("stopped"))
    harness.loop.handle(StopGeneration("stopped"))
    harness.loop.handle(StopSequence("unknown", 0))
    made = len(harness.ids("three", 1))
    harness.run()
    assert len(harness.ids("stopped")) == 5
    assert len(harness.ids("three", 1)) == made < 20
    alone = Harness(gpt2)
    alone.admit("three", first, decoding)
    alone.run()
    for index in (0, 2):
        assert harness.ids("three", index) == alone.ids("three", index)
    assert harness.ids("other") == reference_greedy(
        gpt2.model, third, max_new_tokens=20, eos_token_id=None
    )


def test_a_generation_can_be_stopped_during_prefill(gpt2: LoadedModel) -> None:
    harness = Harness(gpt2, chunk=4)
    first, second = prompts(2, seed=12)
    harness.admit("stopped", first * 4, greedy(20))
    harness.admit("other", second, greedy(20, ignore_eos=True))
    harness.loop.run_turn()
    harness.loop.handle(StopGeneration("stopped"))
    harness.run()
    assert harness.ids("stopped") == []
    assert harness.ids("other") == reference_greedy(
        gpt2.model, second, max_new_tokens=20, eos_token_id=None
    )


def test_nan_logits_fail_one_generation_alone(tiny_model: Callable[..., Path]) -> None:
    loaded = loaded_model(tiny_model("llama"))
    with torch.no_grad():
        loaded.model.get_input_embeddings().weight[415] = torch.nan
    harness = Harness(loaded)
    bad, late, good = prompts(3, seed=13)
    harness.admit("good", good, greedy(30, ignore_eos=True))
    harness.loop.run_turn()
    harness.admit("bad", [*bad, 415], greedy(30))
    forced = Decoding(Strategy.FORCED, 6, forced_token_ids=(1, 2, 415, 3, 4, 5))
    harness.admit("late", late, forced)
    harness.run()
    assert harness.failed.keys() == {"bad", "late"}
    assert {failure.reason for failure in harness.failed.values()} == {"NON_FINITE_LOGITS"}
    assert harness.ids("late") == [1, 2, 415]
    assert harness.ids("good") == reference_greedy(
        loaded.model, good, max_new_tokens=30, eos_token_id=None
    )
    harness.admit("after", bad, greedy(30, ignore_eos=True))
    harness.run()
    assert harness.ids("after") == reference_greedy(
        loaded.model, bad, max_new_tokens=30, eos_token_id=None
    )
