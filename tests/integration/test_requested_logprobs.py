"""Log probabilities of the tokens that a request names, against those of `generate`."""

import json
import math
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
    sampled,
)
from server_process import ServerProcess
from whence_command import run_whence_well

from whence import Client
from whence_server.domain.decoding import Decoding, Strategy, TraceDetail, TraceOptions
from whence_server.domain.steps import Decision
from whence_server.engines.transformers.loading import LoadedModel

ARCHITECTURES = ["gpt2", "mamba"]
"""One whose sequences decode together, and one that decodes them singly."""
IDS = (415, 0, 7, 138, 300)
PENALTIES = {"repetition_penalty": 1.7, "logit_bias": ((7, 3.0),), "bad_word_ids": ((138,),)}


@pytest.fixture(scope="module", params=ARCHITECTURES)
def loaded(request: pytest.FixtureRequest, tiny_model: Callable[..., Path]) -> LoadedModel:
    return loaded_model(tiny_model(request.param))


def generated(model: Any, prompt: list[int], **settings: object) -> Any:
    """Return transformers' output with its logits, before and after its processors."""
    with torch.inference_mode(), as_in_transformers(model):
        return model.generate(
            torch.tensor([prompt], device=model.device),
            attention_mask=torch.ones(1, len(prompt), dtype=torch.long, device=model.device),
            do_sample=False,
            repetition_penalty=1.7,
            sequence_bias=[[[7], 3.0]],
            bad_words_ids=[[138]],
            eos_token_id=None,
            pad_token_id=0,
            return_dict_in_generate=True,
            output_scores=True,
            output_logits=True,
            **settings,
        )


def check(decision: Decision, own: torch.Tensor, drawn: torch.Tensor | None) -> None:
    """Hold a decision to scores [V] of transformers, normalised or not."""
    requested = decision.requested_logprobs
    assert requested is not None
    for found, scores in ((requested.logprobs, own), (requested.sampling_logprobs, drawn)):
        if scores is None:
            assert found == []
        else:
            logprobs = torch.log_softmax(scores.float().cpu(), -1)[list(IDS)]
            assert found == pytest.approx(logprobs.tolist(), abs=1e-3)


def test_greedy_steps_have_the_logits_and_scores_of_generate(loaded: LoadedModel) -> None:
    harness = Harness(loaded)
    prompts = [prompt_of(length, seed) for seed, length in enumerate((5, 21, 12))]
    for number, prompt in enumerate(prompts):
        trace = TraceOptions(num_candidates=2, logprob_token_ids=IDS)
        harness.admit(str(number), prompt, greedy(8, ignore_eos=True, **PENALTIES), trace)
    harness.admit("no request", prompts[0], greedy(8, ignore_eos=True, **PENALTIES))
    harness.run()
    for number, prompt in enumerate(prompts):
        output = generated(loaded.model, prompt, max_new_tokens=8)
        assert harness.ids(str(number)) == output.sequences[0, len(prompt) :].tolist()
        steps = harness.steps[str(number), 0]
        for step, logits, scores in zip(steps, output.logits, output.scores, strict=True):
            check(step.decision, logits[0], scores[0])
            assert step.decision.requested_logprobs.sampling_logprobs[3] == -math.inf
    assert harness.ids("no request") == harness.ids("0")
    for step in harness.steps["no request", 0]:
        assert step.decision.requested_logprobs is None


def test_beams_have_the_logits_and_scores_of_generate(loaded: LoadedModel) -> None:
    harness, prompt = BeamHarness(loaded), prompt_of(9, 4)
    decoding = beams(10, 3, num_return_sequences=2, ignore_eos=True, **PENALTIES)
    harness.admit("it", prompt, decoding, TraceOptions(logprob_token_ids=IDS))
    harness.run()
    output = generated(loaded.model, prompt, max_new_tokens=10, num_beams=3, num_return_sequences=2)
    assert harness.winners("it") == output.sequences[:, len(prompt) :].tolist()
    for sequence, rows in zip(
        harness.done["it"].sequences, output.beam_indices.tolist(), strict=True
    ):
        for place, step in enumerate(sequence.steps):
            row = rows[place]
            check(step.decision, output.logits[place][row], output.scores[place][row])


def test_samples_forced_tokens_and_prompts_have_those_of_a_plain_pass(loaded: LoadedModel) -> None:
    harness, prompt = Harness(loaded, chunk=5), prompt_of(14, 6)
    trace = TraceOptions(TraceDetail.DECISIONS, 0, True, IDS)
    harness.admit("sampled", prompt, sampled(8, temperature=0.5, top_p=1.0, ignore_eos=True), trace)
    forced = (1, 138, 9, 7)
    harness.admit(
        "forced", prompt, Decoding(Strategy.FORCED, len(forced), forced_token_ids=forced), trace
    )
    harness.run()
    for name in ("sampled", "forced"):
        plain = plain_logprobs(loaded.model, prompt + harness.ids(name))
        first, *others = harness.prompts[name]
        assert first.requested_logprobs is None
        for i, decision in enumerate(others):
            check(decision, plain[i], None)
        for i, step in enumerate(harness.steps[name, 0], len(prompt) - 1):
            check(step.decision, plain[i], plain[i] / 0.5 if name == "sampled" else None)


def test_the_client_and_the_command_show_them(server: ServerProcess) -> None:
    settings = {"seed": 3, "top_k": 4, "max_new_tokens": 5, "ignore_eos": True}
    with Client(server.target) as client:
        generation = client.generate(
            "The quick", logprob_token_ids=IDS, trace_prompt=True, num_candidates=128, **settings
        )
        tokens = list(generation)
        recorded = list(client.generations.steps(generation.id))
        prompted = generation.prompt_tokens
        texts = [[(one.token_id, one.text) for one in t.requested_logprobs] for t in tokens]
    assert list(generation.started.effective_trace.logprob_token_ids) == list(IDS)
    assert [token.requested_logprobs for token in recorded] == [
        token.requested_logprobs for token in tokens
    ]
    for token in tokens:
        assert tuple(one.token_id for one in token.requested_logprobs) == IDS
        known = {one.token_id: one for one in token.candidates}
        for one in token.requested_logprobs:
            assert one == known.get(one.token_id, one)
        assert any(one.sampling_logprob == -math.inf for one in token.requested_logprobs)
    assert prompted[0].requested_logprobs == ()
    assert [one.sampling_logprob for one in prompted[1].requested_logprobs] == [None] * len(IDS)

    flags = ["--seed", "3", "--top-k", "4", "--max-new-tokens", "5", "--ignore-eos"]
    flags += ["--logprob-token-ids", ",".join(map(str, IDS))]
    printed = run_command(server, [*flags, "--json"])
    objects = [json.loads(line) for line in printed.splitlines()]
    shown = [one["requested_logprobs"] for one in objects if one["event"] == "token"]
    assert [[(one["token_id"], one["text"]) for one in step] for step in shown] == texts
    for step, token in zip(shown, tokens, strict=True):
        for one, expected in zip(step, token.requested_logprobs, strict=True):
            assert one["logprob"] == pytest.approx(expected.logprob, abs=1e-6)
            removed = expected.sampling_logprob == -math.inf
            assert (one["sampling_logprob"] is None) == removed
    table = run_command(server, [*flags, "--candidates"]).splitlines()
    assert all("| requested  " in line for line in table[1:])


def run_command(server: ServerProcess, flags: list[str]) -> str:
    return run_whence_well("generate", "The quick", "--target", server.target, *flags)
