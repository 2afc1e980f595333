"""Verifier of a model that is a table of logits: for tests of what a record claims."""

from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import torch

from whence.v1 import verification_pb2 as pb
from whence_server.analysis.question import Question, RecordedIdentity
from whence_server.analysis.replay.noise import Noise
from whence_server.analysis.replay.verifier import Verifier
from whence_server.domain.decoding import (
    Configured,
    Decoding,
    FinishReason,
    TraceDetail,
    TraceOptions,
)
from whence_server.domain.generation import SequenceResult
from whence_server.domain.processors import list_processor_names
from whence_server.domain.steps import Step
from whence_server.engines.transformers.decoding.beam import BeamSearch
from whence_server.engines.transformers.decoding.choose import Chooser
from whence_server.engines.transformers.decoding.rows import Row
from whence_server.text.sequence import SequenceText

SIZE = 50
END = 49
PROMPT = [1, 2, 3]
REQUESTED = (4, 11)
TRACE = TraceOptions(TraceDetail.DECISIONS, 8, logprob_token_ids=REQUESTED)
LOGITS = torch.randn(SIZE, SIZE, generator=torch.Generator().manual_seed(1)) * 2
ENVIRONMENT = {"torch_version": "2", "dtype": "float32", "device": "cpu"}


class _Prompt:
    def __init__(self, ids: Sequence[int]) -> None:
        self.ids, self.num_done = list(ids), 0

    @property
    def num_left(self) -> int:
        return len(self.ids) - self.num_done


class _Runner:
    """Runner of a model whose logits depend on the newest token alone."""

    def start(self, ids: Sequence[int], num_generated: int = 0, adapter: str = "") -> _Prompt:
        del num_generated, adapter
        return _Prompt(ids)

    def prefill(self, prompt: _Prompt, size: int, *, all_logits: bool = True) -> torch.Tensor:
        del all_logits
        ids = prompt.ids[prompt.num_done : prompt.num_done + size]
        prompt.num_done += size
        return LOGITS[torch.tensor(ids)]

    def decode(self, ids: Sequence[int]) -> torch.Tensor:
        return LOGITS[torch.tensor(list(ids))]

    def join(self, prompt: _Prompt, num_rows: int = 1) -> None: ...

    def copy_rows(self, sources: Sequence[int], targets: Sequence[int]) -> None: ...

    def clear(self) -> None: ...


class _Words:
    """Detokenizer of one word for each token."""

    num_held_bytes = 0
    held_text = ""

    def push(self, token_id: int) -> str:
        return f"{token_id} "

    def flush(self) -> str:
        return ""


class Tokenizer:
    """Tokenizer whose tokens below 3 are special: they add no text."""

    def encode(self, text: str, *, add_special_tokens: bool = True) -> list[int]:
        del add_special_tokens
        return [int(word) for word in text.split()]

    def decode(self, ids: Sequence[int]) -> str:
        return "".join(f"{token_id} " for token_id in ids if not self.is_special(token_id))

    def is_special(self, token_id: int) -> bool:
        return token_id < 3

    def get_token_text(self, token_id: int) -> str:
        return f"{token_id} "

    def make_sequence_text(self, stop: Sequence[str] = ()) -> SequenceText:
        return SequenceText(_Words(), stop)


def make_verifier(largest: float = 1e-5, root_mean_square: float = 1e-6) -> Verifier:
    """Return the verifier of the stub model, with a noise."""
    info: Any = SimpleNamespace(
        vocabulary_size=SIZE,
        batched=True,
        defaults=SimpleNamespace(eos_token_ids=(END,), configured=Configured(), bad_word_ids=()),
        weights_digest="w",
        model_digest="m",
        tokenizer_digest="t",
        adapters=(),
        max_context_length=1000,
        environment=SimpleNamespace(
            transformers_version="", attention_implementation="", step_kernels="", **ENVIRONMENT
        ),
    )
    tokenizer: Any = Tokenizer()
    noise = Noise(largest, root_mean_square, 4000, 1)
    return Verifier(info, _Runner(), tokenizer, noise, "a stub")


def generate(decoding: Decoding, trace: TraceOptions = TRACE, sequence: int = 0) -> list[Step]:
    """Generate one sequence of `max_new_tokens`, as the engine does."""
    chooser = Chooser(SIZE, torch.device("cpu"))
    row, last, steps, begin = Row(decoding, trace, sequence, PROMPT), PROMPT[-1], [], 0
    for index in range(decoding.max_new_tokens):
        [decision] = chooser.choose(LOGITS[last][None], [row])
        last = decision.token_id  # type: ignore[union-attr]
        text = f"{last} "
        steps.append(Step(sequence, index, decision, text, begin, begin + len(text), None))  # type: ignore[arg-type]
        begin += len(text)
        row.append(last)
    return steps


def search(decoding: Decoding, trace: TraceOptions = TRACE) -> tuple[list[Step], list[Any], Any]:
    """Run a beam search; return the winners' steps, the rounds, and the scores."""
    chooser = Chooser(SIZE, torch.device("cpu"))
    found = BeamSearch(decoding, decoding.max_new_tokens)
    rows = [Row(decoding, trace, index, PROMPT) for index in range(decoding.num_beams)]
    last, rounds = [PROMPT[-1]] * decoding.num_beams, []
    while True:
        made: Any = chooser.extend_beams(LOGITS[torch.tensor(last)], rows, found)
        rounds.append(made)
        if made.is_last:
            break
        before = [row.token_ids.copy() for row in rows]
        for row, beam in zip(rows, found.beams, strict=True):
            row.rewrite(before[beam.parent])
        for row, beam in zip(rows, found.beams, strict=True):
            row.append(beam.token_id)
        last = [beam.token_id for beam in found.beams]
    steps = [
        Step(number, index, each.decision, f"{each.token_id} ", 0, 0, None)  # type: ignore[arg-type]
        for number, winner in enumerate(found.winners)
        for index, each in enumerate(winner.list_path())
    ]
    return steps, rounds, [winner.score for winner in found.winners]


def make_results(
    steps: Sequence[Step], reason: FinishReason = FinishReason.LENGTH
) -> tuple[SequenceResult, ...]:
    """Return the results that steps give."""
    by_index: dict[int, list[Step]] = {}
    for step in steps:
        by_index.setdefault(step.sequence_index, []).append(step)
    return tuple(
        SequenceResult(
            index,
            "".join(step.text for step in own),
            tuple(step.decision.token_id for step in own),
            reason,
        )
        for index, own in by_index.items()
    )


def ask(
    decoding: Decoding,
    steps: Sequence[Step],
    results: Sequence[SequenceResult] | None = None,
    reason: FinishReason = FinishReason.LENGTH,
    **changes: Any,
) -> Question:
    """Return the question about steps."""
    question = Question(
        generation_id="id",
        identity=RecordedIdentity("m", "t", "w", ENVIRONMENT),
        decoding=decoding,
        logprobs_only=False,
        prompt="1 2 3 ",
        chat=None,
        is_token_input=False,
        prompt_token_ids=PROMPT,
        processor_names=tuple(list_processor_names(decoding)),
        keeps_text=True,
        prompt_decisions=[],
        steps=list(steps),
        rounds=[],
        results=tuple(make_results(steps, reason) if results is None else results),
        finish_reason=reason,
        num_candidates=TRACE.num_candidates,
        detail=TRACE.detail,
        logprob_token_ids=REQUESTED,
    )
    return question._replace(**changes)


def judge(question: Question, verifier: Verifier | None = None) -> pb.VerificationResult:
    """Return the verdict on a question."""
    *_, result = (verifier or make_verifier()).verify(question)
    assert isinstance(result, pb.VerificationResult)
    return result
