"""Beam search, as in transformers' `generate`.

Scores are kept in float32 tensors, with the operations of `generate` in the same order, so that
equal logits give bit-identical scores. (Method: Graves, "Sequence
Transduction with Recurrent Neural Networks", 2012; length normalisation by a power of the
length: Wu et al., "Google's Neural Machine Translation System", 2016, section 7.)
"""

import math
from dataclasses import dataclass
from typing import NamedTuple

import torch

from whence_server.domain.decoding import Decoding, EarlyStopping, FinishReason
from whence_server.domain.steps import BeamContinuation, Decision

OUT_OF_THE_RACE = -1.0e9
"""Amount that `generate` adds to the score of a hypothesis that must not be chosen."""


@dataclass(slots=True, eq=False)
class Hypothesis:
    """A continuation of the prompt: its newest token, linked to the hypothesis before it.

    Attributes:
        before: the hypothesis that this one extends; None for a first token.
        token_id: the newest token.
        parent: index of the extended hypothesis among the beams of the round.
        score: sum of logprobs; with the length penalty applied once the hypothesis has finished.
        finish: reason for the end; None while the hypothesis goes on.
        decision: the decision that is recorded for the token.
    """

    before: "Hypothesis | None"
    token_id: int
    parent: int
    score: float
    finish: FinishReason | None = None
    decision: Decision | None = None

    def list_path(self) -> list["Hypothesis"]:
        """Return the hypotheses from the first token to this one."""
        steps = []
        step: Hypothesis | None = self
        while step is not None:
            steps.append(step)
            step = step.before
        return steps[::-1]


class Round(NamedTuple):
    """The result of one round.

    Attributes:
        index: step index of the tokens that the round added.
        continuations: all continuations considered, best first; those with a probability of 0 only
            where nothing else was left to be kept.
        survivors: the new hypotheses that are kept: those that go on, and finished ones that are
            among the best so far.
        is_last: True if the search ends with this round.
    """

    index: int  # type: ignore[assignment]  # the contract's name; nobody calls tuple.index
    continuations: list[BeamContinuation]
    survivors: list[Hypothesis]
    is_last: bool


class BeamSearch:
    """State of one beam search.

    Args:
        decoding: settings of a request for beam search.
        max_new_tokens: length at which every hypothesis ends: the request's, or less.

    Attributes:
        beams: the hypotheses that go on, best first; empty before the first round.
    """

    def __init__(self, decoding: Decoding, max_new_tokens: int) -> None:
        num_beams = self._num_beams = decoding.num_beams
        self._length_penalty = decoding.length_penalty
        self._early_stopping = decoding.early_stopping
        self._num_winners = decoding.num_return_sequences
        self._max_new_tokens = max_new_tokens
        self._eos_token_ids = frozenset(() if decoding.ignore_eos else decoding.eos_token_ids)
        self._stop_token_ids = frozenset(decoding.stop_token_ids)
        # Enough candidates for num_beams to go on, even if all ending ones are among the best.
        num_ends = len(self._eos_token_ids | self._stop_token_ids)
        self._num_considered = max(2, 1 + num_ends) * num_beams
        self._num_rounds = 0
        self.beams: list[Hypothesis] = []
        self._places = [0] * num_beams
        """Index of each beam among the kept continuations of the last round."""
        # In the first round all beams are the bare prompt: only the first one counts.
        self._scores = torch.full((num_beams,), OUT_OF_THE_RACE)
        self._scores[0] = 0.0
        self._finished: list[Hypothesis | None] = [None] * num_beams
        self._finished_scores = torch.full((num_beams,), OUT_OF_THE_RACE)
        self._is_finished = torch.zeros(num_beams, dtype=torch.bool)
        self._can_improve = True

    @property
    def num_rounds(self) -> int:
        """Number of rounds made."""
        return self._num_rounds

    @property
    def scores(self) -> torch.Tensor:
        """Sums of the beams' logprobs: float32 [beams]; not to be changed."""
        return self._scores

    @property
    def places(self) -> list[int]:
        """Index of each beam among the kept continuations of the last round."""
        return self._places

    @property
    def winners(self) -> list[Hypothesis]:
        """The best finished hypotheses, best first; at most the number that the request returns."""
        finished = self._finished[: self._num_winners]
        return [hypothesis for hypothesis in finished if hypothesis is not None]

    def advance(self, logprobs: torch.Tensor) -> Round:
        """Extend the beams by a token.

        Args:
            logprobs: float32 [beams, V], of each beam's next token, after all processors.
        """
        vocabulary_size = logprobs.shape[1]
        totals = (logprobs + self._scores.to(logprobs.device)[:, None]).reshape(1, -1)
        best = torch.topk(totals, min(self._num_considered, totals.shape[1]))
        scores = best.values[0].cpu()
        added = logprobs.reshape(-1)[best.indices[0]].tolist()
        candidates = [
            self._extend(index // vocabulary_size, index % vocabulary_size, score)
            for index, score in zip(best.indices[0].tolist(), scores.tolist(), strict=True)
        ]
        ends = torch.tensor([candidate.finish is not None for candidate in candidates])
        # Only the best num_beams candidates can finish; the others only replace them as beams.
        competes = ends & (torch.arange(len(candidates)) < self._num_beams)
        running = scores + ends.to(torch.float32) * OUT_OF_THE_RACE
        kept = torch.topk(running, self._num_beams).indices
        entered = self._finish(candidates, scores, competes)
        self._scores = running[kept]
        self._num_rounds += 1
        is_last = self._is_over(all_end=bool(ends.all()))

        kept_places = [] if is_last else kept.tolist()
        listed = {place: i for i, place in enumerate(sorted(kept_places))}
        continuations = [
            BeamContinuation(
                self._places[candidate.parent],
                candidate.token_id,
                logprob,
                score,
                place in listed,
                finished,
            )
            for place, (candidate, logprob, score, finished) in enumerate(
                zip(candidates, added, scores.tolist(), competes.tolist(), strict=True)
            )
            # Where processors leave few tokens, removed ones fill up the candidates.
            if score > -math.inf or place in listed
        ]
        self.beams = [candidates[place] for place in kept_places]
        self._places = [listed[place] for place in kept_places]
        return Round(self._num_rounds - 1, continuations, [*self.beams, *entered], is_last)

    def _extend(self, beam: int, token_id: int, score: float) -> Hypothesis:
        before = self.beams[beam] if self.beams else None
        return Hypothesis(before, token_id, beam, score, self._find_finish_reason(token_id))

    def _find_finish_reason(self, token_id: int) -> FinishReason | None:
        if token_id in self._eos_token_ids:
            return FinishReason.END_OF_SEQUENCE
        if token_id in self._stop_token_ids:
            return FinishReason.STOP
        return FinishReason.LENGTH if self._num_rounds + 1 >= self._max_new_tokens else None

    def _finish(
        self, candidates: list[Hypothesis], scores: torch.Tensor, competes: torch.Tensor
    ) -> list[Hypothesis]:
        """Merge hypotheses that end in this round into the finished ones; return those kept."""
        scores = scores / (self._num_rounds + 1) ** self._length_penalty
        if self._is_enough():
            scores = scores + OUT_OF_THE_RACE
        if not self._can_improve:
            scores = scores + OUT_OF_THE_RACE
        scores = scores + (~competes) * OUT_OF_THE_RACE
        all_scores = torch.cat((self._finished_scores, scores))
        best = torch.topk(all_scores, self._num_beams).indices
        self._finished_scores = all_scores[best]
        self._is_finished = torch.cat((self._is_finished, competes))[best]
        contenders = [*self._finished, *candidates]
        self._finished = [
            contenders[place] if is_finished else None
            for place, is_finished in zip(best.tolist(), self._is_finished.tolist(), strict=True)
        ]
        entered = []
        for place, score in zip(best.tolist(), self._finished_scores.tolist(), strict=True):
            candidate = contenders[place]
            if (
                place >= self._num_beams
                and candidate is not None
                and competes[place - self._num_beams]
            ):
                candidate.score = score
                entered.append(candidate)
        return entered

    def _is_enough(self) -> bool:
        """Return whether num_beams hypotheses have finished and the request stops there."""
        return self._early_stopping is EarlyStopping.WHEN_ENOUGH and bool(self._is_finished.all())

    def _is_over(self, *, all_end: bool) -> bool:
        """Return whether the search ends; called after the round's tokens have been counted."""
        length = self._num_rounds
        if self._early_stopping is EarlyStopping.NEVER and self._length_penalty > 0:
            length = self._max_new_tokens
        best_possible = self._scores[:1] / length**self._length_penalty
        worst = torch.where(self._is_finished, self._finished_scores.min(), OUT_OF_THE_RACE)
        self._can_improve = self._can_improve and bool((best_possible > worst).any())
        return not self._can_improve or self._is_enough() or all_end
