"""An engine loop in this process with a real model, which tests run turn by turn."""

import random
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from computing import DEVICE

from whence_server.domain.decoding import (
    Decoding,
    EarlyStopping,
    FinishReason,
    Strategy,
    TraceOptions,
)
from whence_server.domain.engine import (
    Admit,
    BeamRoundMade,
    BeamSearchDone,
    BeamSequence,
    GenerationFailed,
    StepMade,
    Turn,
)
from whence_server.domain.steps import Decision
from whence_server.engines.transformers.decoding import Chooser
from whence_server.engines.transformers.handshake import EngineOptions
from whence_server.engines.transformers.internals import attention
from whence_server.engines.transformers.loading import LoadedModel, load
from whence_server.engines.transformers.loop import EngineLoop
from whence_server.engines.transformers.scheduler import Scheduler

FINDINGS = Path(__file__).parents[2] / "build" / "findings"


def engine_options(directory: Path | str, **changes: object) -> EngineOptions:
    return EngineOptions(
        model=str(directory),
        model_name="tiny",
        dtype="float32",
        device=DEVICE,
        num_threads=1,
        max_batch_size=16,
        max_cache_tokens=8192,
        prefill_chunk_tokens=512,
        trust_remote_code=False,
        log_level="info",
        digest_cache="",
    )._replace(**changes)  # type: ignore[arg-type]


class Harness:
    """Engine loop, and the messages that it sent, by generation."""

    def __init__(
        self,
        loaded: LoadedModel,
        *,
        chunk: int = 512,
        batch: int = 16,
        chooser: type[Chooser] = Chooser,
    ) -> None:
        info = loaded.info
        self.model = loaded.model
        self.runner = loaded.make_runner()
        self.loop = EngineLoop(
            self.runner,
            chooser(info.vocabulary_size, loaded.model.device),
            Scheduler(batch, 8192, chunk, whole_prompts=not info.batched),
            info.max_context_length,
            self._take,
        )
        self.turns: list[Turn] = []
        self.steps: dict[tuple[str, int], list[StepMade]] = defaultdict(list)
        self.prompts: dict[str, list[Decision]] = {}
        self.failed: dict[str, GenerationFailed] = {}

    def _take(self, turn: Turn) -> None:
        self.turns.append(turn)
        for scored in turn.prompt_scored:
            decisions = self.prompts.setdefault(scored.generation_id, [])
            assert scored.first_index == len(decisions)
            decisions += scored.decisions
        for prefilled in turn.prefilled:
            self.prompts.setdefault(prefilled.generation_id, [])
        for step in turn.steps:
            made = self.steps[step.generation_id, step.sequence_index]
            assert step.index == len(made)
            assert not made or made[-1].finish is None, "nothing after the end"
            made.append(step)
        for failure in turn.failed:
            assert failure.generation_id not in self.failed
            self.failed[failure.generation_id] = failure

    def admit(
        self,
        generation_id: str,
        prompt_token_ids: list[int],
        decoding: Decoding,
        trace: TraceOptions | None = None,
        adapter: str = "",
    ) -> None:
        trace = trace or TraceOptions()
        self.loop.handle(Admit(generation_id, prompt_token_ids, decoding, trace, adapter=adapter))

    def run(self, max_turns: int = 2000) -> None:
        while not self.loop.is_idle:
            max_turns -= 1
            assert max_turns, "the engine does not come to an end"
            self.loop.run_turn()
        assert self.runner.num_rows == 0

    def ids(self, generation_id: str, sequence_index: int = 0) -> list[int]:
        return [step.decision.token_id for step in self.steps[generation_id, sequence_index]]

    def finish(self, generation_id: str, sequence_index: int = 0) -> FinishReason | None:
        return self.steps[generation_id, sequence_index][-1].finish


class BeamHarness(Harness):
    """Harness that also collects the rounds and results of beam search."""

    def __init__(self, loaded: LoadedModel, **options: Any) -> None:
        super().__init__(loaded, **options)
        self.rounds: dict[str, list[BeamRoundMade]] = defaultdict(list)
        self.done: dict[str, BeamSearchDone] = {}
        self.told: dict[str, dict[int, BeamSequence]] = defaultdict(dict)

    def _take(self, turn: Turn) -> None:
        super()._take(turn)
        for made in turn.beam_rounds:
            rounds = self.rounds[made.generation_id]
            assert made.index == len(rounds)
            assert made.generation_id not in self.done
            rounds.append(made)
        for won in turn.beam_steps:
            told = self.told[won.generation_id]
            before = told[won.sequence_index].steps if won.first_index else []
            assert won.first_index == len(before)
            finish = won.finish or FinishReason.FAILED
            told[won.sequence_index] = BeamSequence(won.score, finish, before + won.steps)
        for done in turn.beam_searches:
            told = self.told[done.generation_id]
            sequences = [told[index] for index in range(len(told))]
            self.done[done.generation_id] = BeamSearchDone(done.generation_id, sequences)

    def winners(self, generation_id: str) -> list[list[int]]:
        sequences = self.done[generation_id].sequences
        return [[step.decision.token_id for step in sequence.steps] for sequence in sequences]

    def scores(self, generation_id: str) -> list[float]:
        return [sequence.score for sequence in self.done[generation_id].sequences]


def prompt_of(length: int, seed: int) -> list[int]:
    choose = random.Random(seed)
    return [choose.randrange(1, 400) for _ in range(length)]


def loaded_model(directory: Path, **changes: object) -> LoadedModel:
    """Load a model as a later start of the engine does: the first test that loads it tries it out.

    The trials take three quarters of the time. What they found counts only under the same weights,
    code, settings and versions. A test that changes what the trials see gives `findings_cache=""`.
    """
    # A file for each kind of model, because one holds the findings of a few.
    kept = FINDINGS / f"{directory.name.rstrip('0123456789')}.json"
    return load(engine_options(directory, **{"findings_cache": str(kept), **changes}))


def greedy(max_new_tokens: int, **changes: object) -> Decoding:
    return Decoding(Strategy.GREEDY, max_new_tokens, **changes)  # type: ignore[arg-type]


def sampled(max_new_tokens: int, **changes: object) -> Decoding:
    settings: dict[str, object] = {"temperature": 0.9, "top_p": 0.95, "seed": 42, **changes}
    return Decoding(Strategy.SAMPLE, max_new_tokens, **settings)  # type: ignore[arg-type]


def beams(max_new_tokens: int, num_beams: int, **changes: object) -> Decoding:
    settings: dict[str, object] = {"early_stopping": EarlyStopping.HEURISTIC, **changes}
    return Decoding(Strategy.BEAM_SEARCH, max_new_tokens, num_beams=num_beams, **settings)  # type: ignore[arg-type]


@contextmanager
def as_in_transformers(model: Any) -> Iterator[None]:
    """Give the model transformers' original attention, for comparisons with the engine."""
    ours = attention.get_implementation(model)
    attention.restore(model)
    try:
        yield
    finally:
        if attention.get_implementation(model) != ours:
            model.set_attn_implementation(ours)


def reference_greedy(model: torch.nn.Module, prompt: list[int], **settings: object) -> list[int]:
    """Return the tokens of transformers' `generate`, including the end of sequence."""
    with as_in_transformers(model):
        output = model.generate(  # type: ignore[operator]
            torch.tensor([prompt], device=model.device),
            attention_mask=torch.ones(1, len(prompt), dtype=torch.long, device=model.device),
            do_sample=False,
            pad_token_id=0,
            **settings,
        )
    return list(output[0, len(prompt) :].tolist())


def plain_logprobs(model: torch.nn.Module, token_ids: list[int]) -> torch.Tensor:
    """Return the [tokens, V] log probabilities of one plain forward pass, on the CPU."""
    with torch.inference_mode(), as_in_transformers(model):
        input_ids = torch.tensor([token_ids], device=model.device)
        logits = model(input_ids=input_ids, use_cache=False).logits[0]
    return torch.log_softmax(logits.float(), -1).cpu()
