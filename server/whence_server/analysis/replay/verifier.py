"""Verification of one generation with a loaded model: findings in order, then the verdict."""

import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import torch

from whence.v1 import verification_pb2 as pb
from whence_server.analysis.question import Question, Unverifiable
from whence_server.analysis.replay.beams import BeamReplay, BeamSettings, is_same_score
from whence_server.analysis.replay.checks import make_check
from whence_server.analysis.replay.choices import Choices
from whence_server.analysis.replay.comparison import StepComparison
from whence_server.analysis.replay.ends import check_ends
from whence_server.analysis.replay.given import GivenTokens
from whence_server.analysis.replay.identity import check_identity
from whence_server.analysis.replay.margins import Margins, Tally, compute_scale
from whence_server.analysis.replay.noise import Noise
from whence_server.analysis.replay.numbers import make_promise, measure
from whence_server.analysis.replay.passes import Reader
from whence_server.analysis.replay.rows import SequenceReplay
from whence_server.analysis.replay.settings import check_configured
from whence_server.analysis.replay.texts import (
    check_processors,
    check_prompt,
    check_steps,
    check_texts,
)
from whence_server.analysis.replay.verdicts import Findings
from whence_server.constraints.errors import ConstraintError
from whence_server.domain.decoding import Decoding, FinishReason, Strategy
from whence_server.domain.model import ModelInfo
from whence_server.domain.steps import Decision
from whence_server.engines.transformers.compiled_constraints import load_compiler
from whence_server.engines.transformers.decoding.choose import Chooser
from whence_server.engines.transformers.decoding.constraints import (
    RowConstraint,
    start_constraint,
)
from whence_server.engines.transformers.decoding.devices import choose_kernels
from whence_server.engines.transformers.decoding.pipeline import Pipeline
from whence_server.text.tokenizer import TextTokenizer

Event = (
    pb.VerificationCheck
    | pb.ArithmeticNoise
    | pb.StepVerification
    | pb.BeamRoundVerification
    | pb.VerificationResult
)
_CPU = torch.device("cpu")
MOST_EXPLAINABLE = 2.0
"""Difference of a logit that another environment's arithmetic may explain, in nats."""
_COMPLETE = frozenset({FinishReason.END_OF_SEQUENCE, FinishReason.STOP, FinishReason.LENGTH})


class Verifier:
    """Verifier of generations of one loaded model.

    Args:
        info: description of the model.
        runner: runner of the model, without rows.
        noise: measured noise of the model's arithmetic.
        conditions: description of what the noise was measured with.
    """

    def __init__(
        self, info: ModelInfo, runner: Any, tokenizer: TextTokenizer, noise: Noise, conditions: str
    ) -> None:
        self._info = info
        self._reader = Reader(runner, info.vocabulary_size, info.batched)
        self._tokenizer = tokenizer
        self._noise = noise
        self._conditions = conditions
        self._chooser = Chooser(info.vocabulary_size, _CPU)
        self._pipeline = Pipeline(info.vocabulary_size, _CPU, choose_kernels(_CPU))

    @torch.inference_mode()
    def verify(self, question: Question) -> Iterator[Event]:
        """Yield the findings, and the verdict at the end."""
        started = time.monotonic()
        verification = _Verification(
            question,
            self._complete_decoding(question),
            self._info,
            self._reader,
            self._tokenizer,
            self._noise,
            self._chooser,
            self._pipeline,
        )
        yield from verification.check_before()
        if not verification.reason:
            yield make_noise_message(self._noise, self._conditions)
            yield from verification.replay()
        yield verification.conclude(time.monotonic() - started)

    def _complete_decoding(self, question: Question) -> Decoding:
        """Add what the model and its tokenizer know to the settings on record."""
        decoding = question.decoding
        words = tuple(
            tuple(self._tokenizer.encode(word, add_special_tokens=False))
            for word in decoding.bad_words
        )
        return replace(
            decoding,
            eos_token_ids=self._info.defaults.eos_token_ids,
            bad_word_ids=tuple(word for word in words if word) or decoding.bad_word_ids,
        )


class _Verification:
    """State of one verification."""

    def __init__(  # noqa: PLR0917 - the parts of a verification
        self,
        question: Question,
        decoding: Decoding,
        info: ModelInfo,
        reader: Reader,
        tokenizer: TextTokenizer,
        noise: Noise,
        chooser: Chooser,
        pipeline: Pipeline,
    ) -> None:
        self._question = question
        self._decoding = decoding
        self._info = info
        self._reader = reader
        self._tokenizer = tokenizer
        self._chooser = chooser
        self._pipeline = pipeline
        self._margins = Margins(
            noise.margin,
            noise.root_mean_square_limit,
            compute_scale(decoding),
            MOST_EXPLAINABLE,
        )
        self._tally = Tally()
        self._choices = Choices(self._margins.root_mean_square * self._margins.scale)
        self._sequences = question.list_sequences()
        self._findings = Findings(question, self._margins, self._tally, self._choices)
        self._is_readable = True
        """False if the steps cannot be replayed: some are missing, or are no tokens."""

    @property
    def reason(self) -> str:
        """Cause for which nothing can be said; "" if there is none."""
        return self._findings.reason

    def check_before(self) -> Iterator[pb.VerificationCheck]:
        """Yield the checks that need no pass."""
        question, findings = self._question, self._findings
        for check, cause in check_identity(question, self._info):
            yield findings.note(check)
            if cause:
                findings.give_up(cause, check.message)
        if not findings.reason and not self._sequences and not question.rounds:
            findings.give_up(Unverifiable.NO_TOKENS, "the generation ended before its first token")
        if findings.reason:
            return
        yield from map(findings.note, check_prompt(question, self._tokenizer))
        yield findings.note(check_processors(question, self._decoding))
        if not question.logprobs_only:
            yield from map(findings.note, check_configured(question, self._info))
        complete = check_steps(question, self._sequences, self._info)
        yield findings.note(complete)
        if complete.outcome == pb.VERIFICATION_OUTCOME_DIFFERENT:
            self._is_readable = False
            return
        tokenizer, room = self._tokenizer, self._count_room()
        texts = check_texts(question, self._decoding, self._sequences, tokenizer)
        yield from map(findings.note, texts)
        ends = check_ends(question, self._decoding, self._sequences, tokenizer, room)
        yield from map(findings.note, ends)
        for what in question.unread:
            yield findings.note(
                make_check(
                    pb.VERIFICATION_SUBJECT_STEPS, same=None, message=f"{what}: not compared"
                )
            )

    def replay(self) -> Iterator[Event]:
        """Yield the comparisons of steps, and of rounds of a beam search."""
        question = self._question
        if not self._is_readable:
            return
        if question.prompt_decisions:
            yield self._findings.note(self._check_prompt_logprobs())
        try:
            constraint = self._start_constraint()
        except ConstraintError as error:
            self._findings.faults.append(f"the constraint {error.message}")
            return
        if question.strategy is Strategy.BEAM_SEARCH and not question.logprobs_only:
            yield from self._replay_beams(constraint)
            if self._findings.is_divergent:
                return
        elif question.rounds:
            self._findings.faults.append("rounds of a beam search are on record, and none was made")
        yield from self._replay_steps(constraint)

    def _replay_steps(self, constraint: RowConstraint | None) -> Iterator[Event]:
        """Yield the comparisons of the sequences' steps."""
        question = self._question
        requested = question.logprob_token_ids
        searches = question.strategy is Strategy.BEAM_SEARCH
        comparison = StepComparison(
            GivenTokens(self._pipeline) if searches else self._chooser,
            self._chooser,
            self._pipeline,
            self._decoding,
            self._margins,
            self._tally,
            self._choices,
            make_promise(self._decoding, question.detail, question.num_candidates, len(requested)),
            question.logprobs_only,
            requested,
        )
        for steps in self._sequences:
            own = None if constraint is None else constraint.copy()
            replayed = SequenceReplay(comparison, question.prompt_token_ids, steps, own)
            ids = [step.decision.token_id for step in steps]
            adapter = question.identity.adapter
            for first, logits in self._reader.read_logits(question.prompt_token_ids, ids, adapter):
                for found in replayed.compare(first, logits):
                    self._findings.count_step(found)
                    if question.every_step or found.verdict != pb.STEP_VERDICT_EXACT:
                        yield found

    def conclude(self, elapsed_s: float) -> pb.VerificationResult:
        """Return the verdict."""
        return self._findings.conclude(elapsed_s)

    def _count_room(self) -> int:
        """Return the number of tokens that the model's context has after the prompt."""
        return self._info.max_context_length - len(self._question.prompt_token_ids)

    def _start_constraint(self) -> RowConstraint | None:
        if self._decoding.constraint is None or self._question.logprobs_only:
            return None
        compiled = load_compiler(self._info).compile(self._decoding.constraint)
        return start_constraint(compiled, self._decoding, [])

    def _replay_beams(self, constraint: RowConstraint | None) -> Iterator[Event]:
        question, faults = self._question, self._findings.faults
        settings = BeamSettings(
            self._reader,
            self._pipeline,
            self._decoding,
            question.prompt_token_ids,
            question.identity.adapter,
            None if constraint is None else constraint.copy(),
            min(self._decoding.max_new_tokens, max(self._count_room(), 1)),
            self._margins,
        )
        replayed = BeamReplay(settings, question.rounds, self._tally)
        for found in replayed.run():
            self._findings.count_round(found)
            if question.every_step or found.verdict != pb.STEP_VERDICT_EXACT:
                yield found
        if self._findings.is_divergent:
            return
        if replayed.num_rounds < len(question.rounds):
            faults.append(
                f"the search ends after {replayed.num_rounds} rounds, and the record has "
                f"{len(question.rounds)}"
            )
        if not replayed.is_over:
            if question.finish_reason in _COMPLETE:
                faults.append(
                    f"the search goes on after the {len(question.rounds)} recorded rounds"
                )
            if self._sequences:
                faults.append("an unfinished search has no sequences, and the record has some")
            return
        ids = [[step.decision.token_id for step in steps] for steps in self._sequences]
        if replayed.winners != ids:
            faults.append("the search returns other sequences than those on record")
            return
        for result, own in zip(question.results, replayed.scores, strict=True):
            if result.score is not None and not is_same_score(result.score, own):
                faults.append(
                    f"sequence {result.sequence_index} has a score of {result.score:.6f} on "
                    f"record, and {own:.6f} here"
                )

    def _check_prompt_logprobs(self) -> pb.VerificationCheck:
        """Return the check of the logprobs of the prompt's own tokens."""
        question = self._question
        ids, largest = question.prompt_token_ids, 0.0
        subject = pb.VERIFICATION_SUBJECT_PROMPT_LOGPROBS
        traced: Sequence[Decision] = question.prompt_decisions
        if [decision.token_id for decision in traced] != ids:
            return make_check(subject, same=False, message="other tokens than the prompt's")
        if len(ids) < 2:
            return make_check(subject, same=True)
        for first, logits in self._reader.read_prompt_logits(ids, question.identity.adapter):
            logprobs = torch.log_softmax(logits.float().cpu(), -1)
            for row, decision in zip(logprobs, traced[first + 1 :], strict=False):
                if decision.logprob is None:
                    continue
                largest = max(largest, measure(decision.logprob, float(row[decision.token_id])))
        same = largest <= self._margins.logprob
        what = f"the largest difference is {largest:.3g} nats"
        return make_check(subject, same=same, message="" if same else what)


def make_noise_message(noise: Noise, conditions: str) -> pb.ArithmeticNoise:
    """Return the noise as the contract's message."""
    message = pb.ArithmeticNoise(
        largest=noise.largest,
        root_mean_square=noise.root_mean_square,
        num_logprobs=noise.num_logprobs,
        margin=noise.margin,
        root_mean_square_limit=noise.root_mean_square_limit,
        conditions=conditions,
    )
    message.measured_at.FromNanoseconds(noise.measured_at_ns)
    return message


def wrap(event: Event) -> pb.VerifyGenerationResponse:
    """Return an event as a response of the stream."""
    match event:
        case pb.VerificationCheck():
            return pb.VerifyGenerationResponse(check=event)
        case pb.ArithmeticNoise():
            return pb.VerifyGenerationResponse(noise=event)
        case pb.StepVerification():
            return pb.VerifyGenerationResponse(step=event)
        case pb.BeamRoundVerification():
            return pb.VerifyGenerationResponse(beam_round=event)
        case pb.VerificationResult():
            return pb.VerifyGenerationResponse(result=event)
    raise TypeError(f"{type(event).__name__} is no event of a verification")
