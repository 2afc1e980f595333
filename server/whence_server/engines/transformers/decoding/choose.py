"""Choice of the next token in each row of a batch, with the decisions that explain it."""

import math
from collections.abc import Sequence

import torch

from whence_server.domain.decoding import Strategy, TraceOptions
from whence_server.domain.steps import Decision
from whence_server.engines.transformers.decoding.beam import BeamSearch, Round
from whence_server.engines.transformers.decoding.decisions import (
    Choice,
    DecisionBuilder,
    NoChoice,
    NonFiniteLogits,
    NothingLeft,
)
from whence_server.engines.transformers.decoding.devices import choose_kernels
from whence_server.engines.transformers.decoding.kernels import DrawKey
from whence_server.engines.transformers.decoding.pipeline import Distributions, Pipeline
from whence_server.engines.transformers.decoding.prompt import score_prompt
from whence_server.engines.transformers.decoding.rows import Row
from whence_server.engines.transformers.decoding.scratch import Scratch


class Chooser:
    """Chooser of the tokens of one model's batches.

    A row's result depends on its own logits and settings only, and not on other rows. Its token
    and logprobs do not depend on the trace detail.

    Args:
        vocabulary_size: V, the number of logits of each position.
        device: device of the logits. On a device without float64 the CPU chooses.
    """

    def __init__(self, vocabulary_size: int, device: torch.device) -> None:
        self._device = device if device.type in {"cpu", "cuda"} else torch.device("cpu")
        self._kernels = choose_kernels(self._device)
        self._pipeline = Pipeline(vocabulary_size, self._device, self._kernels)
        self._probabilities = Scratch(vocabulary_size, self._device)
        self._decision_builder = DecisionBuilder(self._kernels)

    @torch.inference_mode()
    def choose(self, logits: torch.Tensor, rows: Sequence[Row]) -> list[Decision | NoChoice]:
        """Choose the next token of every row; the rows are not changed.

        Args:
            logits: [B, V], of the rows' newest positions, in any floating-point type.
            rows: B greedy, sampled or forced rows.

        Returns:
            For each row its decision, or the reason for having none: `NonFiniteLogits` or
            `NothingLeft`.
        """
        if not rows:
            return []
        scores = logits.to(device=self._device, dtype=torch.float32)
        distributions = self._pipeline.run(scores, rows)
        choice = self._choose(distributions, rows)
        return self._decision_builder.build_decisions(distributions, rows, choice)

    @torch.inference_mode()
    def extend_beams(
        self, logits: torch.Tensor, rows: Sequence[Row], search: BeamSearch
    ) -> Round | NoChoice:
        """Run one round of a beam search; the rows are not changed.

        Args:
            logits: [beams, V], of the beams' newest positions, in any floating-point type.
            rows: the beams, in the search's order.
            search: the search, advanced in place; the round's survivors get their decisions.
        """
        logits = logits.to(device=self._device, dtype=torch.float32)
        # As in `generate`, processors act on the beams' logprobs and not on their logits.
        scores = torch.log_softmax(logits, -1)
        if bool(scores[:, 0].isnan().any()):
            return NonFiniteLogits()
        made = search.advance(self._pipeline.process(scores, rows))
        alive = [survivor for survivor in made.survivors if math.isfinite(survivor.score)]
        num_wanted = rows[0].decoding.num_return_sequences
        if len(search.winners) < num_wanted if made.is_last else not alive:
            return NothingLeft()
        if not alive:
            return made
        parents = torch.tensor([survivor.parent for survivor in alive], device=self._device)
        token_ids = torch.tensor([survivor.token_id for survivor in alive], device=self._device)
        alive_rows = [rows[survivor.parent] for survivor in alive]
        distributions = self._pipeline.run(scores.index_select(0, parents), alive_rows)
        choice = Choice(token_ids, race=None, sampled=[])
        decisions = self._decision_builder.build_decisions(distributions, alive_rows, choice)
        for survivor, decision in zip(alive, decisions, strict=True):
            if isinstance(decision, NoChoice):
                return decision
            survivor.decision = decision
        return made

    @torch.inference_mode()
    def score_prompt(
        self, logits: torch.Tensor, next_token_ids: torch.Tensor, trace: TraceOptions
    ) -> list[Decision]:
        """Return decisions for given tokens, under the model's own distribution.

        Args:
            logits: [T, V], in any floating-point type.
            next_token_ids: int64 [T], the token that follows each position.
            trace: trace settings.

        Raises:
            GenerationFailedError: NON_FINITE_LOGITS, if the logits hold a NaN or an infinity.
        """
        return score_prompt(
            logits.to(self._device), next_token_ids.to(self._device), trace, self._kernels
        )

    def _choose(self, distributions: Distributions, rows: Sequence[Row]) -> Choice:
        by_strategy: dict[Strategy, list[int]] = {}
        for i, row in enumerate(rows):
            strategy = Strategy.FORCED if row.is_forced else row.decoding.strategy
            by_strategy.setdefault(strategy, []).append(i)
        sampled = by_strategy.get(Strategy.SAMPLE, [])
        race = None
        token_ids = torch.zeros(len(rows), dtype=torch.int64, device=self._device)
        for strategy, members in by_strategy.items():
            index = torch.tensor(members, device=self._device)
            if strategy is Strategy.SAMPLE:
                logprobs = _select_rows(distributions.final_logprobs, index, rows)
                # Not exp, which takes fifteen times as long over tokens that were removed.
                probabilities = torch.softmax(
                    logprobs, -1, out=self._probabilities.take(len(logprobs))
                )
                keys = [_make_draw_key(rows[i]) for i in members]
                race = self._kernels.run_race(logprobs, probabilities, keys)
                chosen = race.token_ids
            elif strategy is Strategy.GREEDY:
                processed = _select_rows(distributions.processed, index, rows)
                chosen = self._kernels.find_top_candidates(processed, 1)[:, 0]
            elif strategy is Strategy.FORCED:
                forced = [rows[i].forced_token_id for i in members]
                chosen = torch.tensor(forced, device=self._device)
            else:
                raise ValueError(f"{strategy} does not choose row by row")
            token_ids.index_copy_(0, index, chosen)
        return Choice(token_ids, race, sampled)


def _select_rows(values: torch.Tensor, index: torch.Tensor, rows: Sequence[Row]) -> torch.Tensor:
    """Return some rows of values [B, V]; without a copy if all rows are selected."""
    return values if len(index) == len(rows) else values.index_select(0, index)


def _make_draw_key(row: Row) -> DrawKey:
    # A branch has the draws of the sequence that it repeats.
    sequence = row.decoding.first_draw_sequence + row.sequence_index
    return DrawKey(*row.seed_words, row.index, sequence)
