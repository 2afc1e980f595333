"""Sum of the findings of one verification, and the verdict that they give."""

import math

from whence.v1 import verification_pb2 as pb
from whence_server.analysis.question import Question, Unverifiable
from whence_server.analysis.replay.choices import Choices
from whence_server.analysis.replay.margins import Margins, Tally
from whence_server.analysis.replay.noise import MEASURED_STEPS
from whence_server.domain.decoding import Strategy

_NOTES = frozenset({pb.VERIFICATION_SUBJECT_ENVIRONMENT})
"""Subjects whose difference is a note, and no fault."""
_LEAST_STEPS = 16
"""Steps from which the mean of the differences has a limit; below, one step may be most of it."""
_ARITHMETIC = frozenset({pb.STEP_PART_LOGPROB, pb.STEP_PART_KEPT_SET, pb.STEP_PART_TOKEN})


class Findings:
    """Sum of the findings of one verification.

    Args:
        question: the record.
        margins: allowed differences.
        tally: sum of the differences of logprobs.
        choices: count of other tokens.

    Attributes:
        faults: what no arithmetic explains, in words.
        reason: cause for which nothing can be said; "" if there is none.
    """

    def __init__(
        self, question: Question, margins: Margins, tally: Tally, choices: Choices
    ) -> None:
        self._question = question
        self._margins = margins
        self._tally = tally
        self._choices = choices
        self._is_foreign = False
        self._num_hard = 0
        self._unchecked: list[str] = []
        self._result = pb.VerificationResult(
            basis=pb.VERIFICATION_BASIS_LOGPROBS
            if question.logprobs_only or question.gives_text
            else pb.VERIFICATION_BASIS_CHOICES
        )
        if question.strategy is not Strategy.FORCED:
            self._result.num_given_steps = question.num_given_steps
        self.faults: list[str] = list(question.contradictions)
        self.reason = ""

    @property
    def is_divergent(self) -> bool:
        """True if something is not as recorded."""
        return bool(self.faults or self._result.num_divergent)

    def give_up(self, reason: Unverifiable, message: str) -> None:
        """Take the cause for which nothing can be said; the first one counts."""
        if not self.reason:
            self.reason, self._result.message = reason.value, message

    def note(self, check: pb.VerificationCheck) -> pb.VerificationCheck:
        """Take a check; return it."""
        name = pb.VerificationSubject.Name(check.subject)
        name = name.removeprefix("VERIFICATION_SUBJECT_").lower().replace("_", " ")
        if check.outcome == pb.VERIFICATION_OUTCOME_NOT_CHECKED:
            self._unchecked.append(f"{name} ({check.message})")
        elif check.outcome == pb.VERIFICATION_OUTCOME_DIFFERENT:
            if check.subject in _NOTES:
                self._is_foreign = True
            else:
                self.faults.append(check.message or f"{name}: not as recorded")
        if check.subject in _NOTES and check.outcome == pb.VERIFICATION_OUTCOME_NOT_CHECKED:
            # Another program's arithmetic is not that of this machine.
            self._is_foreign = self._question.logprobs_only
        return check

    def count_step(self, found: pb.StepVerification) -> None:
        """Count a step."""
        result = self._result
        result.num_steps += 1
        if found.verdict == pb.STEP_VERDICT_WITHIN_MARGIN:
            result.num_within_margin += 1
        elif found.verdict == pb.STEP_VERDICT_DIVERGENT:
            result.num_divergent += 1
            self._num_hard += not all(map(self._is_explainable, found.differences))
            if not result.HasField("first_divergent"):
                result.first_divergent.CopyFrom(found)

    def count_round(self, found: pb.BeamRoundVerification) -> None:
        """Count a round of a beam search."""
        result = self._result
        result.num_steps += 1
        if found.verdict == pb.STEP_VERDICT_WITHIN_MARGIN:
            result.num_within_margin += 1
        elif found.verdict == pb.STEP_VERDICT_DIVERGENT:
            result.num_divergent += 1
            # Other arithmetic ranks continuations in another order.
            logprobs = [it for it in found.differences if it.part == pb.STEP_PART_LOGPROB]
            self._num_hard += not all(map(self._is_explainable, logprobs))
            result.first_divergent_round.CopyFrom(found)

    def _is_explainable(self, difference: pb.StepDifference) -> bool:
        """Return whether another environment's arithmetic may give a difference."""
        return difference.part in _ARITHMETIC and difference.nats <= self._margins.explainable

    def conclude(self, elapsed_s: float) -> pb.VerificationResult:
        """Return the verdict."""
        result, tally = self._result, self._tally
        result.elapsed.FromNanoseconds(int(elapsed_s * 1e9))
        result.largest_logprob_difference = tally.largest
        result.root_mean_square_difference = tally.root_mean_square
        result.num_logprobs = tally.num_logprobs
        arithmetic = self._list_sums()
        if not self.reason and not self.is_divergent:
            self._require_numbers()
        is_soft = not self.faults and not self._num_hard
        if self._is_foreign and is_soft and (result.num_divergent or arithmetic):
            self.give_up(
                Unverifiable.OTHER_ENVIRONMENT,
                f"{result.num_divergent} of {result.num_steps} steps differ by more than the noise "
                f"here, by {tally.largest:.3g} nats at most, and the record is of another "
                "environment, whose arithmetic may be the cause: verify it there",
            )
        if self.reason:
            result.verdict = pb.VERDICT_NOT_VERIFIABLE
            result.reason = self.reason
            result.basis = pb.VERIFICATION_BASIS_UNSPECIFIED
            return result
        self.faults += arithmetic
        if self.is_divergent:
            result.verdict = pb.VERDICT_DIVERGENT
            result.message = "; ".join(self.faults)
            return result
        result.verdict = (
            pb.VERDICT_VERIFIED_WITHIN_MARGIN if result.num_within_margin else pb.VERDICT_VERIFIED
        )
        result.message = self._describe_limits()
        return result

    def _list_sums(self) -> list[str]:
        """Return the faults of the generation as a whole, which arithmetic of its own may give."""
        faults, num_steps = [], self._result.num_steps
        # The limit is that of a text of some length: of shorter ones, the mean varies more.
        scale = math.sqrt(1 + MEASURED_STEPS / max(num_steps, 1))
        limit = self._margins.root_mean_square * scale
        found = self._tally.root_mean_square
        if num_steps >= _LEAST_STEPS and not found <= limit:
            faults.append(
                f"the logprobs differ by {found:.3g} nats on the whole (root of the mean square); "
                f"the arithmetic's noise gives at most {limit:.3g}"
            )
        if fault := self._choices.find_fault():
            faults.append(fault)
        return faults

    def _require_numbers(self) -> None:
        """Give up if nothing was compared, or of another program's steps not every logprob."""
        if not self._result.num_steps:
            self.give_up(Unverifiable.NO_TOKENS, "no step was compared")
        if self._question.logprobs_only:
            steps = self._question.steps
            lacking = sum(step.decision.logprob is None for step in steps)
            if lacking:
                self.give_up(
                    Unverifiable.NO_LOGPROBS,
                    f"{len(steps) - lacking} of {len(steps)} steps have a logprob, and of another "
                    "program's steps nothing else can be computed here",
                )

    def _is_grounded(self) -> bool:
        """Return whether given tokens and draws are more than the record's own word."""
        return self._question.is_parent_compared or self._question.strategy is Strategy.FORCED

    def _describe_limits(self) -> str:
        """Return what a verdict does not rest on, in words."""
        parts = []
        if self._question.strategy is Strategy.FORCED:
            parts.append("the text was given")
        elif num_given := self._question.num_given_steps:
            parts.append(f"the first {num_given} tokens of each sequence were given")
        number = self._question.decoding.first_draw_sequence
        if number:
            parts.append(f"its draws are those of sequence {number} of its parent")
        if (number or self._question.num_given_steps) and not self._is_grounded():
            parts.append("its parent was not looked at")
        if self._question.detail is None:
            parts.append("numbers that steps lack were not asked for")
        if self._unchecked:
            parts.append(f"not compared: {'; '.join(self._unchecked)}")
        return "; ".join(parts)
