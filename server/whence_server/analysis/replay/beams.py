"""Replay of a beam search: the search is run again along the record, and compared each round.

Logprobs of the recorded continuations, if they are within the noise, take the place of the
replay's own, so that the search goes on as recorded where noise alone decides the order.
"""

import math
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch

from whence.v1 import verification_pb2 as pb
from whence_server.analysis.replay.margins import Margins, Tally
from whence_server.analysis.replay.numbers import measure
from whence_server.analysis.replay.passes import Reader
from whence_server.domain.decoding import Decoding, TraceDetail, TraceOptions
from whence_server.domain.steps import BeamRound
from whence_server.engines.transformers.decoding.beam import BeamSearch, Hypothesis
from whence_server.engines.transformers.decoding.constraints import RowConstraint
from whence_server.engines.transformers.decoding.pipeline import Pipeline
from whence_server.engines.transformers.decoding.rows import Row

_TRACE = TraceOptions(TraceDetail.TOKENS, 0)


class BeamSettings(NamedTuple):
    """Search to replay, and the means.

    Attributes:
        reader: of the model.
        pipeline: of the model.
        decoding: settings of the generation.
        prompt_ids: the prompt.
        adapter: name of the adapter; "" for none.
        constraint: state before the first token; None without one.
        max_new_tokens: number of tokens at which every hypothesis ends.
        margins: allowed differences.
    """

    reader: Reader
    pipeline: Pipeline
    decoding: Decoding
    prompt_ids: list[int]
    adapter: str
    constraint: RowConstraint | None
    max_new_tokens: int
    margins: Margins


class BeamReplay:
    """Replay of one search.

    Args:
        settings: search to replay.
        rounds: the recorded rounds.
        tally: sum of the differences, which grows.

    Attributes:
        winners: tokens of the returned sequences, once the search has ended.
        scores: their scores.
        is_over: True once the search has ended.
        num_rounds: number of replayed rounds.
    """

    def __init__(self, settings: BeamSettings, rounds: Sequence[BeamRound], tally: Tally) -> None:
        self._settings = settings
        self._rounds = rounds
        self._tally = tally
        self._search = BeamSearch(settings.decoding, settings.max_new_tokens)
        self._rows = [
            Row(
                settings.decoding,
                _TRACE,
                index,
                settings.prompt_ids,
                constraint=None if settings.constraint is None else settings.constraint.copy(),
            )
            for index in range(settings.decoding.num_beams)
        ]
        self.winners: list[list[int]] = []
        self.scores: list[float] = []
        self.is_over = False
        self.num_rounds = 0

    def run(self) -> Iterator[pb.BeamRoundVerification]:
        """Yield the comparison of each round, up to the first divergent one."""
        runner = self._settings.reader.runner
        try:
            logits = self._read_prompt()
            for recorded in self._rounds:
                result, self.is_over = self._replay_round(recorded, logits)
                self.num_rounds += 1
                yield result
                if result.verdict == pb.STEP_VERDICT_DIVERGENT:
                    return
                if self.is_over:
                    break
                logits = self._advance()
        finally:
            runner.clear()
        self.winners = [
            [step.token_id for step in winner.list_path()] for winner in self._search.winners
        ]
        self.scores = [winner.score for winner in self._search.winners]

    def _read_prompt(self) -> torch.Tensor:
        """Read the prompt once for all beams; return [beams, V]."""
        settings = self._settings
        reader, num_beams = settings.reader, len(self._rows)
        ids = settings.prompt_ids
        prompt = reader.runner.start(ids, adapter=settings.adapter)
        while prompt.num_left:
            size = min(512, prompt.num_left) if reader.batched else len(ids)
            logits = reader.runner.prefill(prompt, size, all_logits=False)
        reader.runner.join(prompt, num_beams)
        return logits[-1:].expand(num_beams, -1)

    def _replay_round(
        self, recorded: BeamRound, logits: torch.Tensor
    ) -> tuple[pb.BeamRoundVerification, bool]:
        scores = torch.log_softmax(logits.float().cpu(), -1)
        processed = self._settings.pipeline.process(scores, self._rows).clone()
        result = pb.BeamRoundVerification(index=recorded.index, verdict=pb.STEP_VERDICT_EXACT)
        self._follow_record(processed, recorded, result)
        made = self._search.advance(processed)
        if made.index != recorded.index:
            _add(result, pb.STEP_PART_TOKEN, f"round {recorded.index} stands for {made.index}")
        ours = {(c.parent, c.token_id): c for c in made.continuations}
        for theirs in recorded.continuations:
            found = ours.pop((theirs.parent, theirs.token_id), None)
            if found is None:
                _add(result, pb.STEP_PART_TOKEN, f"{_name(theirs)} is not considered here")
            elif (found.kept, found.finished) != (theirs.kept, theirs.finished):
                what = f"{_name(theirs)} is kept or finished otherwise here"
                _add(result, pb.STEP_PART_KEPT_SET, what)
            elif not is_same_score(theirs.score, found.score):
                what = f"score of {_name(theirs)}: {theirs.score:.6f} on record, "
                nats = measure(theirs.score, found.score)
                _add(result, pb.STEP_PART_LOGPROB, what + f"{found.score:.6f} here", nats)
        if ours:
            missing = next(iter(ours.values()))
            _add(result, pb.STEP_PART_TOKEN, f"{_name(missing)} is not on record")
        return result, made.is_last

    def _follow_record(
        self, processed: torch.Tensor, recorded: BeamRound, result: pb.BeamRoundVerification
    ) -> None:
        """Put recorded logprobs within the noise in the place of the replay's, in place."""
        parents = self._search.places
        beams = {place: beam for beam, place in enumerate(parents)}
        margin = self._settings.margins.sampling_logprob
        considered = torch.zeros_like(processed, dtype=torch.bool)
        lowest = math.inf
        for theirs in recorded.continuations:
            beam = beams.get(theirs.parent, 0) if self._search.beams else 0
            own = float(processed[beam, theirs.token_id])
            difference = abs(own - theirs.logprob)
            if own == theirs.logprob:
                difference = 0.0
            self._tally.add(difference if math.isfinite(difference) else margin * 2)
            considered[beam, theirs.token_id] = True
            lowest = min(lowest, theirs.score)
            if not difference <= margin:
                what = f"logprob of {_name(theirs)}: {theirs.logprob:.6f} on record, "
                _add(result, pb.STEP_PART_LOGPROB, what + f"{own:.6f} here", difference)
                continue
            processed[beam, theirs.token_id] = theirs.logprob
        if not math.isfinite(lowest):
            return
        # A continuation that is not on record may exceed the last one that is, by the noise.
        totals = processed + self._search.scores[:, None]
        above = ~considered & (totals > lowest) & (totals <= lowest + 2 * margin)
        if bool(above.any()):
            processed[above] -= 4 * margin
            result.verdict = max(result.verdict, pb.STEP_VERDICT_WITHIN_MARGIN)

    def _advance(self) -> torch.Tensor:
        """Assign the new beams to rows, and read their tokens; return [beams, V]."""
        beams: list[Hypothesis] = self._search.beams
        runner = self._settings.reader.runner
        sources = [beam.parent for beam in beams]
        if self._search.num_rounds > 1:
            runner.copy_rows(sources, list(range(len(beams))))
        before = [(row.token_ids.copy(), row.constraint) for row in self._rows]
        for row, beam in zip(self._rows, beams, strict=True):
            token_ids, constraint = before[beam.parent]
            row.rewrite(token_ids)
            row.constraint = None if constraint is None else constraint.copy()
        for row, beam in zip(self._rows, beams, strict=True):
            row.append(beam.token_id)
        return runner.decode([beam.token_id for beam in beams])


def is_same_score(recorded: float, found: float) -> bool:
    """Return whether two scores are equal but for the rounding of their sums."""
    return measure(recorded, found) <= 1e-4 * max(1.0, abs(found))


def _name(continuation: object) -> str:
    parent, token_id = continuation.parent, continuation.token_id  # type: ignore[attr-defined]
    return f"token {token_id} after beam {parent}"


def _add(
    result: pb.BeamRoundVerification,
    part: pb.StepPart.ValueType,
    message: str,
    nats: float = math.inf,
) -> None:
    result.differences.add(part=part, nats=nats, message=message)
    result.verdict = pb.STEP_VERDICT_DIVERGENT
