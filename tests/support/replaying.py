"""Generations made by an engine loop in this process, as questions to a verifier; manipulations."""

import copy
import dataclasses
import shutil
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import torch
from engine_harness import BeamHarness

from whence.v1 import verification_pb2 as pb
from whence_server.analysis.question import Question, RecordedIdentity
from whence_server.analysis.replay.noise import Noise, measure_noise
from whence_server.analysis.replay.passes import Reader
from whence_server.analysis.replay.verifier import Verifier
from whence_server.domain.decoding import Decoding, FinishReason, Strategy, TraceOptions
from whence_server.domain.generation import SequenceResult
from whence_server.domain.model import ModelInfo
from whence_server.domain.processors import list_processor_names
from whence_server.domain.steps import BeamRound, Decision, Step, Timing
from whence_server.engines.transformers.decoding import Chooser
from whence_server.engines.transformers.loading import LoadedModel
from whence_server.text.tokenizer import TextTokenizer

TRACE = TraceOptions()
_TIMING = Timing(0, 0, 0, 0, 0)


def make_verifier(loaded: LoadedModel, noise: Noise | None = None) -> tuple[Verifier, Noise]:
    """Return a verifier with a model in this process, and its noise, measured unless given."""
    info, runner = loaded.info, loaded.make_runner()
    tokenizer = TextTokenizer(info.text, info.vocabulary_size)
    if noise is None:
        reader = Reader(runner, info.vocabulary_size, info.batched)
        chooser = Chooser(info.vocabulary_size, loaded.model.device)
        noise = measure_noise(reader, chooser, tokenizer, info.max_context_length)
    return Verifier(info, runner, tokenizer, noise, "this process"), noise


def make_question(
    info: ModelInfo,
    prompt: Sequence[int],
    decoding: Decoding,
    steps: Sequence[Step],
    rounds: Sequence[BeamRound] = (),
    finish_reason: FinishReason | None = None,
) -> Question:
    """Return the question about steps that are claimed to be of a model.

    Steps without numbers stand for those of a forger who has computed them all again.
    """
    bare = bool(steps) and steps[0].decision.logprob is None
    sequences: dict[int, list[int]] = {}
    for step in steps:
        sequences.setdefault(step.sequence_index, []).append(step.decision.token_id)
    ends = set() if decoding.ignore_eos else set(info.defaults.eos_token_ids)
    results = tuple(
        SequenceResult(
            index,
            "",
            tuple(ids),
            finish_reason
            or (FinishReason.END_OF_SEQUENCE if ids[-1] in ends else FinishReason.LENGTH),
        )
        for index, ids in sequences.items()
    )
    return Question(
        generation_id="00000000-0000-4000-8000-000000000000",
        identity=RecordedIdentity(
            info.model_digest, info.tokenizer_digest, info.weights_digest, list_environment(info)
        ),
        decoding=decoding,
        logprobs_only=False,
        prompt=None,
        chat=None,
        is_token_input=True,
        prompt_token_ids=list(prompt),
        processor_names=list_processor_names(decoding),
        keeps_text=False,
        prompt_decisions=[],
        steps=list(steps),
        rounds=list(rounds),
        results=results,
        finish_reason=results[0].finish_reason if results else FinishReason.CANCELLED,
        num_candidates=TRACE.num_candidates,
        detail=None if bare else TRACE.detail,
    )


def list_environment(info: ModelInfo) -> dict[str, str]:
    """Return a model's environment as a record names it."""
    names = ("torch_version", "transformers_version", "dtype", "device", "attention_implementation")
    found = {name: str(getattr(info.environment, name)) for name in names}
    return {name: value for name, value in found.items() if value}


def generate(
    loaded: LoadedModel,
    requests: Sequence[tuple[Sequence[int], Decoding]],
    *,
    chunk: int = 512,
    batch: int = 64,
    trace: TraceOptions = TRACE,
) -> list[tuple[list[Step], list[BeamRound]]]:
    """Run generations together; return the steps and rounds of each."""
    harness = BeamHarness(loaded, chunk=chunk, batch=batch)
    for number, (prompt, decoding) in enumerate(requests):
        harness.admit(str(number), list(prompt), decoding, trace)
    harness.run(100_000)
    assert not harness.failed, harness.failed
    return [
        collect(harness, str(number), decoding) for number, (_, decoding) in enumerate(requests)
    ]


def collect(
    harness: BeamHarness, generation_id: str, decoding: Decoding
) -> tuple[list[Step], list[BeamRound]]:
    """Return the steps and the rounds of one generation."""
    if decoding.strategy is Strategy.BEAM_SEARCH:
        sequences = harness.done[generation_id].sequences
        steps = [
            _make_step(number, index, step.decision)
            for number, sequence in enumerate(sequences)
            for index, step in enumerate(sequence.steps)
        ]
        rounds = [
            BeamRound(made.index, made.continuations, _TIMING)
            for made in harness.rounds[generation_id]
        ]
        return steps, rounds
    steps = [
        _make_step(number, made.index, made.decision)
        for number in range(decoding.num_return_sequences)
        for made in harness.steps[generation_id, number]
    ]
    return steps, []


def _make_step(sequence_index: int, index: int, decision: Decision) -> Step:
    return Step(sequence_index, index, decision, "", 0, 0, None)


def strip_numbers(steps: Iterable[Step]) -> list[Step]:
    """Return steps with tokens alone: a forger has made all numbers fit the claimed weights."""
    return [step._replace(decision=Decision(step.decision.token_id, None)) for step in steps]


def judge(verifier: Verifier, question: Question) -> tuple[pb.VerificationResult, list[Any]]:
    """Return the verdict on a question, and the findings before it."""
    *events, result = verifier.verify(question)
    assert isinstance(result, pb.VerificationResult)
    return result, events


# ---- manipulations of weights ----


def round_to_bfloat16(weight: torch.Tensor) -> torch.Tensor:
    return weight.bfloat16().to(weight.dtype)


def round_to_int8(weight: torch.Tensor) -> torch.Tensor:
    """Round each row to 255 levels."""
    scale = weight.abs().amax(-1, keepdim=True).clamp_min(1e-12) / 127
    return (weight / scale).round() * scale


def round_to_four_bits(weight: torch.Tensor) -> torch.Tensor:
    """Round each group of 32 to 15 levels."""
    size = 32 if weight.shape[-1] % 32 == 0 else weight.shape[-1]
    groups = weight.reshape(*weight.shape[:-1], -1, size)
    scale = groups.abs().amax(-1, keepdim=True).clamp_min(1e-12) / 7
    return ((groups / scale).round() * scale).reshape(weight.shape)


ROUNDINGS: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "bfloat16": round_to_bfloat16,
    "int8": round_to_int8,
    "4 bits": round_to_four_bits,
}


@torch.no_grad()
def save_rounded(directory: Path, target: Path, how: str) -> Path:
    """Save a model whose matrices are rounded, in its own data type."""
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(directory, dtype="auto")
    for parameter in model.parameters():
        if parameter.ndim >= 2:
            parameter.copy_(ROUNDINGS[how](parameter.float()).to(parameter.dtype))
    return _save(model, directory, target)


def save_tuned(directory: Path, target: Path, texts: Sequence[Sequence[int]]) -> Path:
    """Save a model after ten steps of fine-tuning."""
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(directory, dtype="auto")
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-5)
    model.train()
    for number in range(10):
        ids = torch.tensor([list(texts[number % len(texts)])])
        loss = model(input_ids=ids, labels=ids).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    return _save(model.eval(), directory, target)


def _save(model: Any, directory: Path, target: Path) -> Path:
    shutil.copytree(
        directory, target, ignore=shutil.ignore_patterns("*.safetensors*"), dirs_exist_ok=True
    )
    config = (
        (target / "generation_config.json").read_bytes()
        if (target / "generation_config.json").exists()
        else None
    )
    model.save_pretrained(target)
    if config is not None:
        (target / "generation_config.json").write_bytes(config)
    return target


# ---- manipulations of records ----


def swap_token(steps: Sequence[Step], place: int, vocabulary_size: int) -> list[Step]:
    """Return steps in which one token is another one."""
    changed = copy.copy(list(steps))
    step = changed[place]
    other = (step.decision.token_id + 1) % vocabulary_size
    changed[place] = step._replace(decision=step.decision._replace(token_id=other))
    return changed


def claim(decoding: Decoding, **changes: Any) -> Decoding:
    """Return settings that were not those of the generation."""
    return dataclasses.replace(decoding, **changes)
