"""Prompts that begin with what was read before: the same logits, for every way to decode."""

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from engine_harness import (
    BeamHarness,
    Harness,
    as_in_transformers,
    beams,
    greedy,
    loaded_model,
    plain_logprobs,
    prompt_of,
    reference_greedy,
    sampled,
)
from internals_oracle import eager_model, shares
from tiny_models import BATCHED, LAST_STAGES, LENGTH_DEPENDENT, SOLO, save_model_that_breaks

from whence_server.domain.decoding import TraceDetail, TraceOptions
from whence_server.domain.engine import Admit, Replay, StopGeneration
from whence_server.engines.transformers import loop
from whence_server.engines.transformers.loading import LoadedModel
from whence_server.engines.transformers.prefix_check import reuses_prefixes
from whence_server.engines.transformers.runner import Runner

MARGIN = 1e-4
"""Largest difference of a float32 log probability from a pass over all tokens, in nats, as
docs/limits.md has it."""
ROUNDINGS = 4
"""The same in half precision, in units of the type's precision at the largest logit."""

Models = Callable[[str], LoadedModel]


def with_prefixes(loaded: LoadedModel, num_tokens: int = 4096) -> LoadedModel:
    """Return the model with a prefix cache, of its own for every runner."""
    num_tokens = num_tokens if reuses_prefixes(loaded.model, loaded.style) else 0
    return loaded._replace(info=dataclasses.replace(loaded.info, prefix_cache_tokens=num_tokens))


@pytest.fixture
def gpt2(models: Models) -> LoadedModel:
    return with_prefixes(models("gpt2"))


def count_cached(harness: Harness, generation_id: str) -> int:
    (prefilled,) = [
        prefilled
        for turn in harness.turns
        for prefilled in turn.prefilled
        if prefilled.generation_id == generation_id
    ]
    return prefilled.num_cached_tokens


def run(harness: Harness, name: str, prompt: list[int], *settings: Any) -> list[int]:
    """Run one generation to its end; return its tokens."""
    harness.admit(name, prompt, *settings)
    harness.run()
    assert not harness.failed
    return harness.ids(name)


def read_again(loaded: LoadedModel) -> tuple[torch.Tensor, torch.Tensor, int]:
    """Read and decode, then read a prompt that begins with most of it, and decode again.

    Returns:
        The logits after the last token of the prompt and after one more; those of a pass over all
        tokens; and the number of tokens that were found in the cache.
    """
    runner = loaded.make_runner()
    assert isinstance(runner, Runner)
    known, rest = prompt_of(60, seed=1), prompt_of(9, seed=2)
    prompt = runner.start(known[:40])
    for num_tokens in (24, 16):
        runner.prefill(prompt, num_tokens, all_logits=False)
    runner.keep_prefix(prompt, "")
    runner.join(prompt)
    for token_id in known[40:59]:
        runner.decode([token_id])
    runner.keep_row(0, known, "")
    runner.clear()

    token_ids = [*known[:55], *rest]
    prompt = runner.start(token_ids[:-1])
    runner.reuse_prefix(prompt, "")
    last = runner.prefill(prompt, prompt.num_left, all_logits=False)
    runner.join(prompt)
    ours = torch.cat([last, runner.decode(token_ids[-1:])])
    with torch.inference_mode(), as_in_transformers(loaded.model):
        input_ids = torch.tensor([token_ids], device=loaded.model.device)
        plain = loaded.model(input_ids=input_ids, use_cache=False).logits[0, -2:]
    return ours.float().cpu(), plain.float().cpu(), prompt.num_cached


@pytest.mark.parametrize("architecture", BATCHED + LAST_STAGES)
def test_logits_after_a_cached_prefix_are_those_of_a_pass_over_all_tokens(
    models: Models, architecture: str
) -> None:
    loaded = with_prefixes(models(architecture))
    assert loaded.info.prefix_cache_tokens == 4096
    ours, plain, num_cached = read_again(loaded)
    assert num_cached == 48, "a part of what was read, and a part of what was decoded"
    difference = torch.log_softmax(ours, -1) - torch.log_softmax(plain, -1)
    assert float(difference.abs().max()) < MARGIN


@pytest.mark.parametrize("architecture", ["gpt2", "gemma2", "mixtral"])
def test_a_prefix_that_ends_with_a_chunk_changes_no_bit(models: Models, architecture: str) -> None:
    # The passes over what is left are then those over a prompt that is read anew.
    anew = Harness(models(architecture), chunk=32)
    cached = Harness(with_prefixes(models(architecture)), chunk=32)
    known, prompt = prompt_of(64, seed=10), [*prompt_of(64, seed=10), *prompt_of(9, seed=11)]
    run(cached, "first", [*known, 1], greedy(1))
    for harness in (anew, cached):
        run(harness, "prompt", prompt, sampled(12, ignore_eos=True))
    assert count_cached(cached, "prompt") == 64
    ours, theirs = (
        [step.decision for step in harness.steps["prompt", 0]] for harness in (cached, anew)
    )
    assert ours == theirs


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_logits_after_a_cached_prefix_are_within_rounding_in_half_precision(
    tiny_model: Callable[..., Path], dtype: str
) -> None:
    ours, plain, num_cached = read_again(
        with_prefixes(loaded_model(tiny_model("llama"), dtype=dtype))
    )
    assert num_cached == 48
    margin = ROUNDINGS * torch.finfo(getattr(torch, dtype)).eps * float(plain.abs().max())
    difference = torch.log_softmax(ours, -1) - torch.log_softmax(plain, -1)
    assert float(difference.abs().max()) < margin


@pytest.mark.parametrize("architecture", [SOLO[0], "jamba", "llama4", LENGTH_DEPENDENT[1]])
def test_models_that_decode_singly_have_no_prefix_cache(models: Models, architecture: str) -> None:
    loaded = with_prefixes(models(architecture))
    assert loaded.info.prefix_cache_tokens == 0
    harness, prompt = Harness(loaded), prompt_of(40, seed=3)
    first = run(harness, "first", prompt, greedy(5, ignore_eos=True))
    assert run(harness, "again", prompt, greedy(5, ignore_eos=True)) == first
    assert count_cached(harness, "again") == 0


def test_a_model_whose_logits_would_be_others_has_no_prefix_cache(
    models: Models, monkeypatch: pytest.MonkeyPatch
) -> None:
    loaded = models("llama")
    assert reuses_prefixes(loaded.model, loaded.style)
    read = Runner.reuse_prefix

    def read_wrong(runner: Runner, prompt: Any, namespace: str) -> None:
        read(runner, prompt, namespace)
        for column in prompt.cache.list_columns():
            column.mul_(1.5)

    monkeypatch.setattr(Runner, "reuse_prefix", read_wrong)
    assert not reuses_prefixes(loaded.model, loaded.style)


def test_each_turn_of_a_chat_reads_only_what_is_new(gpt2: LoadedModel) -> None:
    harness = Harness(gpt2)
    chat: list[int] = []
    for turn, expected in enumerate((0, 32, 64)):
        chat += prompt_of(25, seed=turn)
        answer = run(harness, str(turn), chat, greedy(13, ignore_eos=True))
        assert count_cached(harness, str(turn)) == expected
        assert answer == reference_greedy(gpt2.model, chat, max_new_tokens=13, eos_token_id=None)
        chat += answer
    assert harness.turns[-1].utilisation.num_prefix_tokens == 112


def test_prompts_that_come_together_read_their_common_beginning_once(gpt2: LoadedModel) -> None:
    system = prompt_of(100, seed=0)
    prompts = {str(i): [*system, *prompt_of(7, seed=i + 1)] for i in range(6)}
    harness = Harness(gpt2, chunk=64)
    for name, prompt in prompts.items():
        harness.admit(name, prompt, greedy(5, ignore_eos=True))
    harness.run()
    num_read = sum(len(prompt) - count_cached(harness, name) for name, prompt in prompts.items())
    assert num_read <= 107 + 64 + 5 * (107 - 96), "what was read together in the first turn, too"
    for name, prompt in prompts.items():
        expected = reference_greedy(gpt2.model, prompt, max_new_tokens=5, eos_token_id=None)
        assert harness.ids(name) == expected


def test_prefixes_that_wait_for_their_turn_are_not_read_before(
    gpt2: LoadedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loop, "REUSED_TOKENS_A_TURN", 150)
    harness, system = Harness(gpt2), prompt_of(100, seed=0)
    run(harness, "first", system, greedy(1))
    for i in range(5):
        harness.admit(str(i), [*system, *prompt_of(7, seed=i + 1)], greedy(1))
    num_before = len(harness.turns)
    harness.loop.run_turn()
    read = [p.generation_id for turn in harness.turns[num_before:] for p in turn.prefilled]
    assert read == ["0", "1"]
    harness.run()
    assert [count_cached(harness, str(i)) for i in range(5)] == [96] * 5


def test_sampling_beams_and_sequences_are_those_of_a_prompt_read_anew(
    models: Models, gpt2: LoadedModel
) -> None:
    prompt = prompt_of(50, seed=4)
    decodings = {
        "sampled": sampled(8, ignore_eos=True),
        "sequences": sampled(8, ignore_eos=True, num_return_sequences=3),
    }
    search = beams(8, num_beams=3, num_return_sequences=2)
    anew, cached = BeamHarness(models("gpt2")), BeamHarness(gpt2)
    run(cached, "first", prompt, greedy(1))
    for name, decoding in decodings.items():
        run(anew, name, prompt, decoding)
        run(cached, name, prompt, decoding)
        assert count_cached(cached, name) == 48
        for index in range(decoding.num_return_sequences):
            assert cached.ids(name, index) == anew.ids(name, index)
            for ours, theirs in zip(
                cached.steps[name, index], anew.steps[name, index], strict=True
            ):
                assert ours.decision.logprob == pytest.approx(theirs.decision.logprob, abs=MARGIN)
    for harness in (anew, cached):
        harness.admit("search", prompt, search)
        harness.run()
    assert count_cached(cached, "search") == 48
    assert cached.winners("search") == anew.winners("search")
    assert cached.scores("search") == pytest.approx(anew.scores("search"), abs=MARGIN)


def test_a_traced_prompt_is_read_anew(gpt2: LoadedModel) -> None:
    harness, prompt = Harness(gpt2, chunk=32), prompt_of(50, seed=5)
    run(harness, "first", prompt, greedy(1))
    run(harness, "traced", prompt, greedy(1), TraceOptions(prompt=True))
    assert count_cached(harness, "traced") == 0
    expected = plain_logprobs(gpt2.model, prompt)
    traced = harness.prompts["traced"]
    assert len(traced) == 50
    for index, decision in enumerate(traced[1:]):
        logprob = float(expected[index, decision.token_id])
        assert decision.logprob == pytest.approx(logprob, abs=MARGIN)


@pytest.mark.parametrize("architecture", ["gpt2", "gemma2"])
def test_internals_after_a_cached_prefix_count_its_positions(
    models: Models, tiny_model: Callable[..., Path], architecture: str
) -> None:
    harness, prompt = Harness(with_prefixes(models(architecture))), prompt_of(50, seed=6)
    run(harness, "first", prompt, greedy(1))
    internals = TraceOptions(TraceDetail.INTERNALS)
    ids = run(harness, "seen", prompt, greedy(4, ignore_eos=True), internals)
    assert count_cached(harness, "seen") == 48
    expected = shares(architecture, eager_model(tiny_model(architecture)), [*prompt, *ids])
    for index, step in enumerate(harness.steps["seen", 0]):
        length = len(prompt) + index
        seen = step.decision.internals
        assert seen is not None
        assert seen.self_share == pytest.approx(float(expected[length - 1, length - 1]), abs=2e-5)
        listed = expected[length - 1, seen.source_positions].tolist()
        assert seen.source_shares == pytest.approx(listed, abs=2e-5)
        assert len(seen.layer_shares) == 3


def test_sequences_that_continue_after_an_engine_s_death_share_their_prompt(
    models: Models, gpt2: LoadedModel
) -> None:
    prompt, decoding = prompt_of(40, seed=7), sampled(12, ignore_eos=True, num_return_sequences=2)
    whole = Harness(models("gpt2"))
    run(whole, "whole", prompt, decoding)
    replays = [Replay(index, whole.ids("whole", index)[:5]) for index in range(2)]
    harness = Harness(gpt2, chunk=45)
    for index in range(2):
        harness.steps["whole", index] = whole.steps["whole", index][:5]
    harness.loop.handle(Admit("whole", prompt, decoding, TraceOptions(), replays))
    harness.run()
    for index in range(2):
        assert harness.ids("whole", index) == whole.ids("whole", index)
    cached = [p.num_cached_tokens for turn in harness.turns for p in turn.prefilled]
    assert cached == [0, 32]


def test_a_cancelled_generation_is_kept(gpt2: LoadedModel) -> None:
    harness, prompt = Harness(gpt2), prompt_of(20, seed=8)
    harness.admit("cancelled", prompt, greedy(100, ignore_eos=True))
    for _ in range(30):
        harness.loop.run_turn()
    ids = harness.ids("cancelled")
    harness.loop.handle(StopGeneration("cancelled"))
    run(harness, "next", [*prompt, *ids, 5], greedy(1))
    assert count_cached(harness, "next") == (20 + len(ids) - 1) // 16 * 16 > 32


def test_generated_tokens_of_a_failed_generation_are_not_kept(tmp_path: Path) -> None:
    harness = Harness(with_prefixes(loaded_model(save_model_that_breaks(tmp_path))))
    prompt = prompt_of(30, seed=9)
    harness.admit("fails", prompt, greedy(100, ignore_eos=True))
    harness.run()
    assert harness.failed.pop("fails").reason == "NON_FINITE_LOGITS"
    token_ids = [*prompt, *harness.ids("fails")][:59]
    run(harness, "next", token_ids, greedy(1))
    assert count_cached(harness, "next") == 16, "the prompt alone"
    harness.admit("too long", [*token_ids, *range(1, 40)], greedy(1))
    harness.run()
    assert harness.failed.pop("too long").reason == "NON_FINITE_LOGITS"
    run(harness, "short", token_ids, greedy(1))
    assert count_cached(harness, "short") == 48, "not of the prompt that failed"
