"""Comparison of a recorded step with the decision of its replay."""

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from functools import partial

import torch

from whence.v1 import verification_pb2 as pb
from whence_server.analysis.replay.choices import Choices
from whence_server.analysis.replay.draws import compute_noise
from whence_server.analysis.replay.given import Deciding
from whence_server.analysis.replay.margins import Margins, Tally
from whence_server.analysis.replay.numbers import (
    Difference,
    Promise,
    compare_candidates,
    compare_effects,
    compare_lists,
    compare_number,
    compare_rank,
    measure,
)
from whence_server.analysis.replay.perturbing import chooses, find_least_change, keeps, passes
from whence_server.domain.decoding import Decoding, Strategy, TraceDetail, TraceOptions
from whence_server.domain.processors import list_processor_names
from whence_server.domain.steps import Decision, Step
from whence_server.engines.transformers.decoding.choose import Chooser
from whence_server.engines.transformers.decoding.decisions import NoChoice
from whence_server.engines.transformers.decoding.pipeline import Pipeline
from whence_server.engines.transformers.decoding.rows import Row

MOST_MEASURED = 16
"""Divergent steps whose least change is looked for; the others tell their margin alone."""
_LEAN = TraceOptions(TraceDetail.TOKENS, 0)
_FLOAT32_ROUNDING = 1e-6
_LONGEST_TABLE = 128
"""Candidates of a step that are listed with its choice; more are looked for alone."""


@dataclass(slots=True)
class StepComparison:
    """Comparison of a generation's steps.

    Args:
        chooser: of the model; one of given tokens for a search.
        racer: chooser of the model.
        pipeline: of the model, for kept sets.
        decoding: settings of the generation.
        margins: allowed differences.
        tally: sum of the differences, which grows.
        choices: count of other tokens, which grows.
        promise: numbers that each step has.
        logprobs_only: True if another program chose the tokens.
        logprob_token_ids: tokens whose logprobs were requested.
    """

    chooser: Deciding
    racer: Chooser
    pipeline: Pipeline
    decoding: Decoding
    margins: Margins
    tally: Tally
    choices: Choices
    promise: Promise
    logprobs_only: bool
    logprob_token_ids: tuple[int, ...] = ()
    num_measured: int = 0
    names: tuple[str, ...] = field(init=False)

    def __post_init__(self) -> None:
        self.names = tuple(list_processor_names(self.decoding))

    def count_candidates(self, recorded: Decision) -> int:
        """Return the number of candidates that the replay of a step lists."""
        # A greedy choice is measured against the second most likely token.
        least = 2 if self.decoding.strategy is Strategy.GREEDY else 0
        wanted = self.promise.count_candidates(recorded)
        # The kernel is for short tables: a record may claim any length.
        return max(wanted, least) if wanted <= _LONGEST_TABLE else least

    @property
    def takes_logprobs(self) -> bool:
        """True if processors act on logprobs, as in a beam search, and not on logits."""
        return self.decoding.strategy is Strategy.BEAM_SEARCH

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
        self._compare_own(result, recorded, found, logits)
        if self.logprobs_only:
            return result
        is_given = self.decoding.strategy is Strategy.FORCED or row.is_forced
        if missing := self.promise.find_missing(recorded, is_given=is_given):
            what = f"not on record, although its trace has it: {missing}"
            _add(result, pb.STEP_PART_LOGPROB, math.inf, what, within=False)
        if is_given:
            self._compare_forced(result, recorded, found)
            return result
        self.choices.add_step(self._measure_distance(row, logits, found))
        same_sets = self._compare_kept(result, recorded, found, row, logits)
        if same_sets:
            self._compare_drawn_from(result, recorded, found, row, logits)
        if recorded.token_id != found.token_id:
            self._explain_token(result, recorded, found, row, logits)
        else:
            self._compare_chosen(result, step, found, row, logits, same_sets=same_sets)
        self._compare_draw(result, step, found)
        return result

    def _note(self, result: pb.StepVerification, differences: Iterable[Difference]) -> None:
        for nats, message in differences:
            _add(result, pb.STEP_PART_LOGPROB, nats, message, within=False)

    def _compare_own(
        self, result: pb.StepVerification, recorded: Decision, found: Decision, logits: torch.Tensor
    ) -> None:
        """Compare the numbers of the model's own distribution."""
        margin = self.margins.logprob
        own = found.requested_logprobs.logprobs if found.requested_logprobs else []
        listed, requested = recorded.candidates, recorded.requested_logprobs
        num_listed = len(listed.token_ids) if listed else 0
        pairs = []
        if recorded.logprob is not None:
            pairs.append(("the token", recorded.logprob, own[0]))
        if listed is not None:
            names = [f"candidate {token_id}" for token_id in listed.token_ids]
            pairs += zip(names, listed.logprobs, own[1 : 1 + num_listed], strict=True)
        if requested is not None:
            theirs, ours = requested.logprobs, own[1 + num_listed :]
            if len(theirs) != len(ours):
                self._note(result, compare_lists("requested logprobs", theirs, ours, margin))
            else:
                names = [f"requested token {token_id}" for token_id in self.logprob_token_ids]
                pairs += zip(names, theirs, ours, strict=True)
        for name, logprob, replayed in pairs:
            difference = measure(logprob, replayed)
            self.tally.add(difference)
            result.logprob_difference = max(result.logprob_difference, difference)
            if not difference <= margin:
                what = f"logprob of {name}: {logprob:.6f} on record, {replayed:.6f} here"
                _add(result, pb.STEP_PART_LOGPROB, difference, what, within=False)
                break
        if listed is not None and not self.logprobs_only:
            places = self._list_most_likely(recorded, found, logits)
            of_table = own[1 : 1 + num_listed]
            self._note(
                result, compare_candidates(listed, of_table, places, self.promise, self.margins)
            )
        entropy_margin = self.margins.get_entropy_margin(found.entropy or 0.0)
        self._note(
            result, compare_number("entropy", recorded.entropy, found.entropy, entropy_margin)
        )

    def _list_most_likely(
        self, recorded: Decision, found: Decision, logits: torch.Tensor
    ) -> Sequence[float]:
        """Return the largest logprobs, as many as the table on record has or should have."""
        wanted = min(self.promise.count_candidates(recorded), len(logits))
        listed = found.candidates.logprobs if found.candidates else []
        if len(listed) >= wanted:
            return listed[:wanted]
        return torch.topk(torch.log_softmax(logits, -1), wanted).values.tolist()

    def _compare_forced(
        self, result: pb.StepVerification, recorded: Decision, found: Decision
    ) -> None:
        """Compare a given token; nothing is drawn, so that it has no numbers of a draw."""
        if found.token_id != recorded.token_id:
            what = f"token {recorded.token_id} on record, {found.token_id} in the settings"
            _add(result, pb.STEP_PART_TOKEN, math.inf, what, within=False)
        names = ("sampling_logprob", "sampling_entropy", "effects", "draw")
        stray = [name for name in names if getattr(recorded, name) is not None]
        lists = (recorded.candidates, recorded.requested_logprobs)
        if any(each is not None and each.sampling_logprobs for each in lists):
            stray.append("sampling_logprobs")
        if stray:
            what = f"on record, although nothing is drawn: {', '.join(stray)}"
            _add(result, pb.STEP_PART_LOGPROB, math.inf, what, within=False)

    def _measure_distance(self, row: Row, logits: torch.Tensor, found: Decision) -> float | None:
        """Return the nats of a logit between the chosen token and the next one; None if alone."""
        if self.decoding.strategy is Strategy.SAMPLE:
            margin = found.draw.margin if found.draw else None
            return None if margin is None else margin / self.margins.scale
        if self.decoding.strategy is not Strategy.GREEDY:
            return None
        listed = found.candidates.logprobs if found.candidates else []
        if not row.settings and len(listed) > 1:
            first, second = listed[:2]
        elif len(logits) > 1:
            scores = self.pipeline.process(logits[None], [row])[0] if row.settings else logits
            first, second = torch.topk(scores, 2).values.tolist()
        else:
            return None
        return first - second if math.isfinite(second) else None

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
            return not self.names or recorded.token_id == found.token_id
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
                self.racer,
                logits,
                make_lean(row),
                wanted=recorded.token_id,
                winner=found.token_id,
            )
        )
        what = f"token {recorded.token_id} on record, {found.token_id} here"
        within = nats <= self.margins.logprob
        if within:
            self.choices.add_other(nats)
        _add(result, pb.STEP_PART_TOKEN, nats, what, within=within)

    def _compare_drawn_from(
        self,
        result: pb.StepVerification,
        recorded: Decision,
        found: Decision,
        row: Row,
        logits: torch.Tensor,
    ) -> None:
        """Compare logprobs after all processors, of the token, candidates and requested tokens."""
        margin = self.margins.sampling_logprob
        replayed = found.requested_logprobs.sampling_logprobs if found.requested_logprobs else []
        listed, requested = recorded.candidates, recorded.requested_logprobs
        num_listed = len(listed.token_ids) if listed else 0
        pairs = []
        if recorded.sampling_logprob is not None:
            pairs.append((recorded.token_id, recorded.sampling_logprob, replayed[0]))
        lists = []
        if listed is not None:
            lists.append((listed.token_ids, listed.sampling_logprobs, replayed[1 : 1 + num_listed]))
        if requested is not None:
            ours = replayed[1 + num_listed :]
            lists.append((list(self.logprob_token_ids), requested.sampling_logprobs, ours))
        for ids, theirs, ours in lists:
            if not theirs and self.promise.detail is None:
                continue
            if not len(ids) == len(theirs) == len(ours):
                what = f"{len(theirs)} logprobs after the processors for {len(ids)} tokens"
                _add(result, pb.STEP_PART_LOGPROB, math.inf, what, within=False)
                continue
            pairs += zip(ids, theirs, ours, strict=True)
        for token_id, logprob, own in pairs:
            difference = measure(logprob, own)
            if difference <= margin:
                continue
            name = f"logprob of token {token_id} after the processors"
            what = f"{name}: {logprob:.6f} on record, {own:.6f} here"
            # At a processor's boundary, two tokens may have changed places.
            kept = math.isfinite(logprob)
            within = kept != math.isfinite(own) and passes(
                self.pipeline, logits, row, token_id=token_id, kept=kept, nats=self.margins.logprob
            )
            part = pb.STEP_PART_KEPT_SET if within else pb.STEP_PART_LOGPROB
            _add(result, part, 0.0 if within else difference, what, within=within)
            break

    def _compare_chosen(
        self,
        result: pb.StepVerification,
        step: Step,
        found: Decision,
        row: Row,
        logits: torch.Tensor,
        *,
        same_sets: bool,
    ) -> None:
        """Compare what depends on the chosen token, which is the same."""
        recorded = step.decision
        ranks = compare_rank(recorded.rank, found.rank, found.token_id, logits, self.margins)
        self._note(result, ranks)
        if not same_sets or result.verdict != pb.STEP_VERDICT_EXACT:
            return
        margin = self.margins.get_entropy_margin(found.sampling_entropy or 0.0)
        entropies = recorded.sampling_entropy, found.sampling_entropy
        self._note(result, compare_number("entropy of the draw", *entropies, 2 * margin))
        self._note(result, compare_effects(recorded, found, self.names, self.margins))
        self._compare_runner_up(result, step, found, row, logits)

    def _compare_runner_up(
        self,
        result: pb.StepVerification,
        step: Step,
        found: Decision,
        row: Row,
        logits: torch.Tensor,
    ) -> None:
        """Compare the margin of a draw; a runner-up may be another one that is as close."""
        theirs, ours = step.decision.draw, found.draw
        if theirs is None or ours is None:
            return
        margin = 2 * self.margins.sampling_logprob
        same = theirs.runner_up_token_id == ours.runner_up_token_id
        self._note(result, compare_number("margin of the draw", theirs.margin, ours.margin, margin))
        if theirs.margin is None and ours.margin is not None and self.promise.detail is not None:
            what = "the draw has no margin on record, although its trace has it"
            _add(result, pb.STEP_PART_LOGPROB, math.inf, what, within=False)
        elif not same and not self._is_as_close(step, found, row, logits):
            what = (
                f"runner-up {theirs.runner_up_token_id} on record, {ours.runner_up_token_id} here"
            )
            _add(result, pb.STEP_PART_LOGPROB, math.inf, what, within=False)

    def _is_as_close(self, step: Step, found: Decision, row: Row, logits: torch.Tensor) -> bool:
        """Return whether the runner-up on record would lose the race by as little, to the noise."""
        theirs, ours = step.decision.draw, found.draw
        runner_up = None if theirs is None else theirs.runner_up_token_id
        if ours is None or ours.margin is None or runner_up is None or runner_up >= len(logits):
            return False
        logprobs = self.pipeline.run(logits[None], [row]).final_logprobs[0]
        keys = [
            math.log(self._compute_noise(step._replace(decision=of))) - float(logprobs[of.token_id])
            for of in (Decision(runner_up, None), found)
        ]
        margin = 2 * self.margins.sampling_logprob
        return measure(keys[0] - keys[1], ours.margin) <= margin and runner_up != found.token_id

    def _compare_draw(self, result: pb.StepVerification, step: Step, found: Decision) -> None:
        draw = step.decision.draw
        if draw is None:
            return
        if self.decoding.strategy is not Strategy.SAMPLE:
            _add(result, pb.STEP_PART_DRAW, 0.0, "a draw, although none is made", within=False)
            return
        if found.draw is not None and found.token_id == step.decision.token_id:
            noise = found.draw.noise  # The race has computed it.
        else:
            noise = self._compute_noise(step)
        if not abs(draw.noise - noise) <= _FLOAT32_ROUNDING * noise:
            what = f"noise of the draw: {draw.noise:.6g} on record, {noise:.6g} here"
            _add(result, pb.STEP_PART_DRAW, 0.0, what, within=False)

    def _compute_noise(self, step: Step) -> float:
        return compute_noise(self.decoding.seed, step, self.decoding.first_draw_sequence)

    def _measure(self, gives: Callable[..., bool]) -> float:
        """Return the least change that gives the record; beyond the margin only for some steps."""
        if self.num_measured >= MOST_MEASURED:
            tried = (self.margins.logprob, self.margins.explainable)
            return next((nats for nats in tried if nats and gives(nats=nats)), math.inf)
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
