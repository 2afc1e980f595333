"""Comparison of a recorded step with the decision of its replay."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch

from whence.v1 import verification_pb2 as pb
from whence_server.analysis.replay.draws import compute_noise
from whence_server.analysis.replay.margins import Margins, Tally
from whence_server.analysis.replay.perturbing import chooses, find_least_change, keeps
from whence_server.domain.decoding import Decoding, Strategy, TraceDetail, TraceOptions
from whence_server.domain.steps import Decision, Step
from whence_server.engines.transformers.decoding.choose import Chooser
from whence_server.engines.transformers.decoding.decisions import NoChoice
from whence_server.engines.transformers.decoding.pipeline import Pipeline
from whence_server.engines.transformers.decoding.rows import Row

MOST_MEASURED = 16
"""Divergent steps whose least change is looked for; the others tell their margin alone."""
_LEAN = TraceOptions(TraceDetail.TOKENS, 0)
_FLOAT32_ROUNDING = 1e-6


@dataclass(slots=True)
class StepComparison:
    """Comparison of a generation's steps.

    Args:
        chooser: of the model.
        pipeline: of the model, for kept sets.
        decoding: settings of the generation.
        margins: allowed differences.
        tally: sum of the differences, which grows.
        logprobs_only: True if another program chose the tokens.
    """

    chooser: Chooser
    pipeline: Pipeline
    decoding: Decoding
    margins: Margins
    tally: Tally
    logprobs_only: bool
    num_measured: int = 0

    def compare(
        self, step: Step, row: Row, logits: torch.Tensor, found: Decision | NoChoice
    ) -> pb.StepVerification:
        """Compare a step.

        Args:
            step: the recorded step.
            row: state before the step.
            logits: float32 [V], from which its token was chosen.
            found: decision of the replay.
        """
        recorded = step.decision
        result = pb.StepVerification(
            sequence_index=step.sequence_index,
            index=step.index,
            verdict=pb.STEP_VERDICT_EXACT,
            token_id=recorded.token_id,
        )
        if isinstance(found, NoChoice):
            _add(result, pb.STEP_PART_KEPT_SET, math.inf, found.message, within=False)
            return result
        result.replayed_token_id = found.token_id
        self._compare_logprobs(result, recorded, found)
        if self.logprobs_only:
            return result
        if self.decoding.strategy is Strategy.FORCED:
            if found.token_id != recorded.token_id:
                what = f"token {recorded.token_id} on record, {found.token_id} in the settings"
                _add(result, pb.STEP_PART_TOKEN, math.inf, what, within=False)
            return result
        same_sets = self._compare_kept(result, recorded, found, row, logits)
        if recorded.token_id != found.token_id:
            self._explain_token(result, recorded, found, row, logits)
        else:
            self._compare_rank(result, recorded, found, logits)
            if same_sets:
                self._compare_sampling(result, recorded, found)
        self._compare_draw(result, step)
        return result

    def _compare_logprobs(
        self, result: pb.StepVerification, recorded: Decision, found: Decision
    ) -> None:
        """Compare logprobs of the model's own distribution, entropy and rank."""
        margin = self.margins.logprob
        pairs = []
        own = found.requested_logprobs.logprobs if found.requested_logprobs else []
        if recorded.logprob is not None:
            pairs.append(("the token", recorded.logprob, own[0]))
        if recorded.candidates is not None:
            pairs += [
                (f"candidate {token_id}", logprob, replayed)
                for token_id, logprob, replayed in zip(
                    recorded.candidates.token_ids,
                    recorded.candidates.logprobs,
                    own[1:],
                    strict=False,
                )
            ]
        for name, logprob, replayed in pairs:
            difference = abs(logprob - replayed) if math.isfinite(logprob - replayed) else math.inf
            if logprob == replayed:
                difference = 0.0  # both are infinite
            self.tally.add(difference)
            result.logprob_difference = max(result.logprob_difference, difference)
            if not difference <= margin:
                what = f"logprob of {name}: {logprob:.6f} on record, {replayed:.6f} here"
                _add(result, pb.STEP_PART_LOGPROB, difference, what, within=False)
                break
        if recorded.entropy is not None and found.entropy is not None:
            difference = abs(recorded.entropy - found.entropy)
            if not difference <= self.margins.get_entropy_margin(found.entropy):
                what = f"entropy: {recorded.entropy:.6f} on record, {found.entropy:.6f} here"
                _add(result, pb.STEP_PART_LOGPROB, difference, what, within=False)

    def _compare_kept(
        self,
        result: pb.StepVerification,
        recorded: Decision,
        found: Decision,
        row: Row,
        logits: torch.Tensor,
    ) -> bool:
        """Compare the numbers of tokens that processors keep; return whether they are equal."""
        if recorded.effects is None:
            return recorded.token_id == found.token_id
        kept = found.effects.num_kept if found.effects else []
        if recorded.effects.num_kept == kept:
            return True
        if len(recorded.effects.num_kept) != len(kept):
            what = f"{len(recorded.effects.num_kept)} processors on record, {len(kept)} here"
            _add(result, pb.STEP_PART_KEPT_SET, math.inf, what, within=False)
            return False
        for stage, (wanted, num_kept) in enumerate(
            zip(recorded.effects.num_kept, kept, strict=True)
        ):
            if wanted == num_kept:
                continue
            nats = self._measure(
                partial(keeps, self.pipeline, logits, row, stage=stage, wanted=wanted)
            )
            name = row.settings[stage].name
            what = f"{name} keeps {wanted} tokens on record, {num_kept} here"
            within = nats <= self.margins.logprob
            _add(result, pb.STEP_PART_KEPT_SET, nats, what, within=within)
            break
        return False

    def _explain_token(
        self,
        result: pb.StepVerification,
        recorded: Decision,
        found: Decision,
        row: Row,
        logits: torch.Tensor,
    ) -> None:
        nats = self._measure(
            partial(
                chooses,
                self.chooser,
                logits,
                make_lean(row),
                wanted=recorded.token_id,
                winner=found.token_id,
            )
        )
        what = f"token {recorded.token_id} on record, {found.token_id} here"
        within = nats <= self.margins.logprob
        _add(result, pb.STEP_PART_TOKEN, nats, what, within=within)

    def _compare_rank(
        self, result: pb.StepVerification, recorded: Decision, found: Decision, logits: torch.Tensor
    ) -> None:
        """Compare ranks: tokens as likely as this one, within the noise, may have its place."""
        if recorded.rank is None or recorded.rank == found.rank or found.rank is None:
            return
        distances = (logits - logits[recorded.token_id]).abs()
        num_close = int((distances <= 2 * self.margins.logprob).sum())
        if abs(recorded.rank - found.rank) >= num_close:
            what = f"rank: {recorded.rank} on record, {found.rank} here"
            _add(result, pb.STEP_PART_LOGPROB, math.inf, what, within=False)

    def _compare_sampling(
        self, result: pb.StepVerification, recorded: Decision, found: Decision
    ) -> None:
        """Compare the logprob after all processors, and the draw's margin."""
        margin = self.margins.sampling_logprob
        if recorded.sampling_logprob is not None and found.sampling_logprob is not None:
            difference = abs(recorded.sampling_logprob - found.sampling_logprob)
            if not difference <= margin:
                what = (
                    f"logprob after the processors: {recorded.sampling_logprob:.6f} on record, "
                    f"{found.sampling_logprob:.6f} here"
                )
                _add(result, pb.STEP_PART_LOGPROB, difference, what, within=False)
        ours, theirs = found.draw, recorded.draw
        if ours is None or theirs is None or theirs.margin is None or ours.margin is None:
            return
        if ours.runner_up_token_id != theirs.runner_up_token_id:
            return
        difference = abs(theirs.margin - ours.margin)
        if not difference <= 2 * margin:
            what = f"margin of the draw: {theirs.margin:.6f} on record, {ours.margin:.6f} here"
            _add(result, pb.STEP_PART_LOGPROB, difference, what, within=False)

    def _compare_draw(self, result: pb.StepVerification, step: Step) -> None:
        draw = step.decision.draw
        if draw is None or self.decoding.strategy is not Strategy.SAMPLE:
            return
        noise = compute_noise(self.decoding.seed, step)
        if abs(draw.noise - noise) > _FLOAT32_ROUNDING * noise:
            what = f"noise of the draw: {draw.noise:.6g} on record, {noise:.6g} here"
            _add(result, pb.STEP_PART_DRAW, 0.0, what, within=False)

    def _measure(self, gives: Callable[..., bool]) -> float:
        """Return the least change that gives the record; beyond the margin only for some steps."""
        if self.num_measured >= MOST_MEASURED:
            margin = self.margins.logprob
            return margin if gives(nats=margin) else math.inf
        nats = find_least_change(gives, self.margins.logprob)
        if nats > self.margins.logprob:
            self.num_measured += 1
        return nats


def make_lean(row: Row) -> Row:
    """Return a row of the same state whose decisions are the token alone."""
    return Row(
        row.decoding,
        _LEAN,
        row.sequence_index,
        row.token_ids.tolist(),
        row.index,
        constraint=row.constraint,
    )


def _add(
    result: pb.StepVerification,
    part: pb.StepPart.ValueType,
    nats: float,
    message: str,
    *,
    within: bool,
) -> None:
    result.differences.add(part=part, nats=nats, message=message)
    if not within:
        result.verdict = pb.STEP_VERDICT_DIVERGENT
    elif result.verdict == pb.STEP_VERDICT_EXACT:
        result.verdict = pb.STEP_VERDICT_WITHIN_MARGIN
