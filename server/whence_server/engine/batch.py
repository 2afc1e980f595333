"""The rows that decode together: a step for all of them, and what each takes from it."""

import logging
import time
from collections.abc import Callable, Collection, Iterable, Sequence
from typing import Any, NamedTuple

import torch

from whence_server.domain.engine import (
    BeamRoundMade,
    BeamSearchDone,
    Cost,
    GenerationFailed,
    StepMade,
    Turn,
)
from whence_server.domain.errors import GenerationFailedError
from whence_server.domain.steps import Decision
from whence_server.engine.beams import Beams
from whence_server.engine.choosing import Choosing, FailingAlone, not_chosen
from whence_server.engine.decoding import NoChoice, Round
from whence_server.engine.internals.attaching import explain_round, explained
from whence_server.engine.internals.probe import recordable
from whence_server.engine.internals.probed_rows import Observation
from whence_server.engine.jobs import Running, not_observed
from whence_server.engine.runner import Runner
from whence_server.engine.solo import SoloRunner

logger = logging.getLogger(__name__)


class BatchLostError(Exception):
    """The rows are in a state that nobody knows.

    Args:
        reason: why.
    """

    def __init__(self, reason: Exception) -> None:
        super().__init__(str(reason))
        self.reason = reason


class Batch:
    """Sequences and beams that decode together; the runner's rows, in the same order.

    Args:
        runner: runs the forward passes.
        choosing: chooses the tokens.
        left: told the job of every row that leaves.
    """

    def __init__(
        self, runner: Runner | SoloRunner, choosing: Choosing, left: Callable[[str], None]
    ) -> None:
        self._runner = runner
        self._choosing = FailingAlone(choosing, runner.synchronize)
        self._left = left
        self._running: list[Running] = []
        self._beams: dict[str, Beams] = {}
        """Searches under way, by their generations' ids."""

    @property
    def num_rows(self) -> int:
        """Rows that decode."""
        return len(self._running)

    @property
    def generation_ids(self) -> set[str]:
        """Whose rows they are."""
        return {running.generation_id for running in self._running}

    def step(self) -> Turn:
        """Reads each row's newest token and chooses the next.

        Whatever it raises leaves the rows in a state that nobody knows: `clear` them. What fails
        while the model's inside is read ends the generations that asked for it, and no other.
        """
        started_ns = time.monotonic_ns()
        logits = self._runner.decode([running.token_id for running in self._running])
        self._runner.synchronize()
        forward_end_ns = time.monotonic_ns()
        num_rows = len(self._running)
        chosen = self._choose(logits, self._running, self._beams.values())
        try:
            chosen = chosen.explained(self._running, self._runner.observe())
        except Exception as error:
            self._runner.synchronize()  # raises if the device is lost
            logger.exception("what a step showed of the model cannot be recorded")
            self._runner.stop_observing()
            chosen = chosen.without_observed(error)
        forward_ns = forward_end_ns - started_ns
        return self._take(chosen, cost_since(forward_end_ns, forward_ns, num_rows))

    def start(
        self, rows: list[Running], prompt: Any, logits: torch.Tensor, forward_ns: int
    ) -> Turn:
        """Lets rows in that go on from one prompt, with their first tokens.

        Args:
            rows: those of one generation.
            prompt: the runner's, read to its end.
            logits: [1, V], after the prompt's last token.
            forward_ns: what they cost.

        Raises:
            GenerationFailedError: there was nothing to choose; the batch is as it was.
            ObservingError: the model's inside cannot be recorded; the batch is as it was.
            BatchLostError: all rows are in a state that nobody knows: `clear` them.
        """
        forward_end_ns = time.monotonic_ns()
        beams = [Beams(rows)] if rows[0].is_beam else []
        observation = prompt.observation
        chosen = self._choose(logits.repeat(len(rows), 1), rows, beams)
        with recordable():
            if observation is not None:
                observation = observation.of([0] * len(rows))
            chosen = chosen.explained(rows, observation)
        for failed in chosen.failed():
            raise GenerationFailedError(failed.reason, failed.message)
        try:
            self._runner.join(prompt, len(rows))
        except Exception as error:
            # Half of the layers may have the new rows.
            raise BatchLostError(error) from error
        self._running += rows
        self._beams.update({search.generation_id: search for search in beams})
        return self._take(chosen, cost_since(forward_end_ns, forward_ns, len(rows)))

    def leave_sequence(self, generation_id: str, sequence_index: int) -> None:
        """Takes out a sequence, if it is there."""
        self._leave(
            running
            for running in self._running
            if running.generation_id == generation_id
            and running.row.sequence_index == sequence_index
            and not running.is_beam
        )

    def leave_generation(self, generation_id: str) -> None:
        """Takes out all rows of a generation."""
        self._leave(r for r in self._running if r.generation_id == generation_id)

    def clear(self) -> None:
        """Drops all rows, whatever state they are in."""
        for running in self._running:
            self._left(running.job_id)
        self._running.clear()
        self._beams.clear()
        self._runner.clear()

    def _choose(
        self,
        logits: torch.Tensor,
        rows: Sequence[Running],
        searches: Collection[Beams],
    ) -> "_Chosen":
        """Chooses for every row of [rows, V]: for each by itself, or for a search's together."""
        single = [i for i, running in enumerate(rows) if not running.is_beam]
        decisions: Sequence[Decision | NoChoice] = ()
        if single:
            own = logits if len(single) == len(rows) else logits[single]
            decisions = self._choosing.choose(own, [rows[i].row for i in single])
        rounds = []
        places = {id(running): i for i, running in enumerate(rows)} if searches else {}
        for beams in searches:
            members = [places[id(running)] for running in beams.rows]
            beam_rows = [running.row for running in beams.rows]
            made = self._choosing.extend_beams(logits[members], beam_rows, beams.search)
            rounds.append((beams, made))
        return _Chosen([rows[i] for i in single], decisions, rounds)

    def _take(self, chosen: "_Chosen", cost: Cost) -> Turn:
        """Appends the chosen tokens; whatever ends with them leaves."""
        steps: list[StepMade] = []
        rounds: list[BeamRoundMade] = []
        searches: list[BeamSearchDone] = []
        leaving: list[Running] = []
        broken: list[tuple[Beams, NoChoice]] = []
        for running, decision in zip(chosen.sequences, chosen.decisions, strict=True):
            if isinstance(decision, NoChoice):
                continue
            step = running.take(decision)
            steps.append(step)
            if step.finish is not None:
                leaving.append(running)
        for beams, made in chosen.rounds:
            if isinstance(made, NoChoice):
                continue
            try:
                taken = beams.take(made, cost)
                done = beams.done() if made.is_last else None
                copies = [] if made.is_last else beams.arrange()
            except Exception as error:
                logger.exception("a round of a beam search cannot be taken")
                broken.append((beams, not_chosen(error)))
                continue
            rounds.append(taken)
            if done is not None:
                searches.append(done)
                leaving += beams.rows
            else:
                self._copy(copies)
        self._leave(leaving)
        failed = chosen.failed(broken)
        lost = {failed_one.generation_id for failed_one in failed}
        for generation_id in lost:
            self.leave_generation(generation_id)
        return Turn(
            cost,
            steps=[step for step in steps if step.generation_id not in lost] if lost else steps,
            failed=failed,
            beam_rounds=rounds,
            beam_searches=searches,
        )

    def _copy(self, pairs: Sequence[tuple[Running, Running]]) -> None:
        """Copies rows of the cache onto others."""
        if pairs:
            places = {id(running): i for i, running in enumerate(self._running)}
            self._runner.copy_rows(
                [places[id(source)] for source, _ in pairs],
                [places[id(destination)] for _, destination in pairs],
            )

    def _leave(self, leaving: Iterable[Running]) -> None:
        """Takes rows out of the batch; from the back, since the last row fills each gap."""
        gone = {id(running) for running in leaving}
        if not gone:
            return
        for row in reversed([i for i, r in enumerate(self._running) if id(r) in gone]):
            running = self._running[row]
            self._runner.leave(row)
            self._left(running.job_id)
            self._beams.pop(running.generation_id, None)
            self._running[row] = self._running[-1]
            self._running.pop()


class _Chosen(NamedTuple):
    """What was chosen for some rows, before any of it is taken.

    Attributes:
        sequences: those that choose by themselves.
        decisions: one for each of them.
        rounds: one for each search.
    """

    sequences: list[Running]
    decisions: Sequence[Decision | NoChoice]
    rounds: list[tuple[Beams, Round | NoChoice]]

    def explained(self, rows: Sequence[Running], observation: Observation | None) -> "_Chosen":
        """The same with what was seen of the rows, which are those that it was chosen for."""
        if observation is None:
            return self
        places = {id(running): i for i, running in enumerate(rows)}
        single = observation.of([places[id(running)] for running in self.sequences])
        for beams, made in self.rounds:
            if not isinstance(made, NoChoice):
                members = [places[id(running)] for running in beams.rows]
                explain_round(made, observation.of(members))
        return self._replace(decisions=explained(self.decisions, single))

    def without_observed(self, error: Exception) -> "_Chosen":
        """The same with no choice for those whose inside should have been recorded.

        Their record would lack what it promises; the others' lacks nothing.
        """
        why = NoChoice(*not_observed(error))
        decisions = [
            why if running.row.observed else decision
            for running, decision in zip(self.sequences, self.decisions, strict=True)
        ]
        rounds = [
            (beams, why if beams.rows[0].row.observed else made) for beams, made in self.rounds
        ]
        return self._replace(decisions=decisions, rounds=rounds)

    def failed(self, broken: Iterable[tuple[Beams, NoChoice]] = ()) -> list[GenerationFailed]:
        """Generations for which there was nothing to choose, each once.

        Args:
            broken: searches whose round could not be taken.
        """
        failed: dict[str, GenerationFailed] = {}
        for running, decision in zip(self.sequences, self.decisions, strict=True):
            if isinstance(decision, NoChoice):
                row = running.row
                where = f"step {row.index} of sequence {row.sequence_index}"
                failed[running.generation_id] = _failed(running.generation_id, where, decision)
        for beams, made in [*self.rounds, *broken]:
            if isinstance(made, NoChoice):
                where = f"round {beams.num_rounds} of the beam search"
                failed[beams.generation_id] = _failed(beams.generation_id, where, made)
        return list(failed.values())


def cost_since(forward_end_ns: int, forward_ns: int, batch_size: int) -> Cost:
    """Of a forward pass that ended then, and of all that was done since."""
    ready_ns = time.monotonic_ns()
    return Cost(ready_ns, forward_ns, ready_ns - forward_end_ns, batch_size)


def _failed(generation_id: str, where: str, why: NoChoice) -> GenerationFailed:
    return GenerationFailed(generation_id, why.reason, f"{where}: {why.message}")
