"""The batch: the rows that decode together, one step at a time."""

import logging
import time
from collections.abc import Callable, Collection, Iterable, Sequence
from typing import Generic, NamedTuple

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
from whence_server.engines.transformers.beams import Beams
from whence_server.engines.transformers.choosing import IsolatingChooser, explain_no_choice
from whence_server.engines.transformers.decoding import Chooser, NoChoice, Round
from whence_server.engines.transformers.internals.attaching import (
    attach_internals,
    attach_internals_to_round,
)
from whence_server.engines.transformers.internals.probe import translate_probe_errors
from whence_server.engines.transformers.internals.probed_rows import Readout
from whence_server.engines.transformers.jobs import BatchRow, describe_probe_failure
from whence_server.engines.transformers.model_runner import ModelRunner, PromptT

logger = logging.getLogger(__name__)


class BatchLostError(Exception):
    """A failure has left the rows in an undefined state.

    Args:
        reason: the original error.
    """

    def __init__(self, reason: Exception) -> None:
        super().__init__(str(reason))
        self.reason = reason


class Batch(Generic[PromptT]):
    """Sequences and beams that decode together, in the order of the runner's rows.

    Args:
        runner: runs the forward passes.
        chooser: chooses the tokens.
        on_leave: called with the job id of every row that leaves.
    """

    def __init__(
        self, runner: ModelRunner[PromptT], chooser: Chooser, on_leave: Callable[[str], None]
    ) -> None:
        self._runner = runner
        self._chooser = IsolatingChooser(chooser, runner.synchronize)
        self._on_leave = on_leave
        self._rows: list[BatchRow] = []
        self._beams: dict[str, Beams] = {}
        """Running beam searches, by their generations' ids."""

    @property
    def num_rows(self) -> int:
        """Number of rows that decode."""
        return len(self._rows)

    @property
    def generation_ids(self) -> set[str]:
        """Ids of the generations that have rows."""
        return {batch_row.generation_id for batch_row in self._rows}

    def step(self) -> Turn:
        """Read each row's newest token and choose the next one.

        A failure to read activations ends the probed generations, and no others.

        Raises:
            Exception: the step failed, and the rows are in an undefined state; call `clear`.
        """
        started_ns = time.monotonic_ns()
        logits = self._runner.decode([batch_row.token_id for batch_row in self._rows])
        self._runner.synchronize()
        forward_end_ns = time.monotonic_ns()
        num_rows = len(self._rows)
        chosen = self._choose(logits, self._rows, self._beams.values())
        try:
            chosen = chosen.attach_internals(self._rows, self._runner.read_probe())
        except Exception as error:
            self._runner.synchronize()  # raises if the device is lost
            logger.exception("the activations of a step cannot be read; probed generations fail")
            self._runner.stop_probing()
            chosen = chosen.drop_probed(error)
        forward_ns = forward_end_ns - started_ns
        return self._take(chosen, measure_cost(forward_end_ns, forward_ns, num_rows))

    def start(
        self, rows: list[BatchRow], prompt: PromptT, logits: torch.Tensor, forward_ns: int
    ) -> Turn:
        """Add the rows that continue one prompt, with their first tokens.

        Args:
            rows: rows of one generation.
            prompt: the runner's prompt, completely read.
            logits: [1, V], after the prompt's last token.
            forward_ns: wall time of the forward pass.

        Raises:
            GenerationFailedError: no token can be chosen; the batch is unchanged.
            ProbeError: the activations cannot be read; the batch is unchanged.
            BatchLostError: all rows are in an undefined state; call `clear`.
        """
        forward_end_ns = time.monotonic_ns()
        beams = [Beams(rows)] if rows[0].is_beam else []
        readout = prompt.readout
        chosen = self._choose(logits.repeat(len(rows), 1), rows, beams)
        with translate_probe_errors():
            if readout is not None:
                readout = readout.select([0] * len(rows))
            chosen = chosen.attach_internals(rows, readout)
        for failed in chosen.list_failed():
            raise GenerationFailedError(failed.reason, failed.message)
        try:
            self._runner.join(prompt, len(rows))
        except Exception as error:
            # Only some of the layers may have the new rows.
            raise BatchLostError(error) from error
        self._rows += rows
        self._beams.update({search.generation_id: search for search in beams})
        return self._take(chosen, measure_cost(forward_end_ns, forward_ns, len(rows)))

    def leave_sequence(self, generation_id: str, sequence_index: int) -> None:
        """Remove a sequence, if it is in the batch."""
        self._leave(
            batch_row
            for batch_row in self._rows
            if batch_row.generation_id == generation_id
            and batch_row.row.sequence_index == sequence_index
            and not batch_row.is_beam
        )

    def leave_generation(self, generation_id: str, *, keep: bool = True) -> None:
        """Remove all rows of a generation.

        Args:
            generation_id: id of the generation.
            keep: whether its sequences are kept for prompts that begin with them.
        """
        self._leave((r for r in self._rows if r.generation_id == generation_id), keep=keep)

    def clear(self) -> None:
        """Remove all rows, in any state."""
        for batch_row in self._rows:
            self._on_leave(batch_row.job_id)
        self._rows.clear()
        self._beams.clear()
        self._runner.clear()

    def _choose(
        self,
        logits: torch.Tensor,
        rows: Sequence[BatchRow],
        searches: Collection[Beams],
    ) -> "_Chosen":
        """Choose tokens from logits [rows, V]: for each sequence, and for each search's beams."""
        single = [i for i, batch_row in enumerate(rows) if not batch_row.is_beam]
        decisions: Sequence[Decision | NoChoice] = ()
        if single:
            own = logits if len(single) == len(rows) else logits[single]
            decisions = self._chooser.choose(own, [rows[i].row for i in single])
        rounds = []
        places = {id(batch_row): i for i, batch_row in enumerate(rows)} if searches else {}
        for beams in searches:
            members = [places[id(batch_row)] for batch_row in beams.rows]
            beam_rows = [batch_row.row for batch_row in beams.rows]
            made = self._chooser.extend_beams(logits[members], beam_rows, beams.search)
            rounds.append((beams, made))
        return _Chosen([rows[i] for i in single], decisions, rounds)

    def _take(self, chosen: "_Chosen", cost: Cost) -> Turn:
        """Append the chosen tokens, and remove the rows that end with them."""
        steps: list[StepMade] = []
        rounds: list[BeamRoundMade] = []
        searches: list[BeamSearchDone] = []
        leaving: list[BatchRow] = []
        broken: list[tuple[Beams, NoChoice]] = []
        for batch_row, decision in zip(chosen.sequences, chosen.decisions, strict=True):
            if isinstance(decision, NoChoice):
                continue
            step = batch_row.take(decision)
            steps.append(step)
            if step.finish is not None:
                leaving.append(batch_row)
        for beams, made in chosen.rounds:
            if isinstance(made, NoChoice):
                continue
            try:
                taken = beams.take(made, cost)
                done = beams.finish() if made.is_last else None
                copies = [] if made.is_last else beams.arrange()
            except Exception as error:
                logger.exception("a beam search fails, as its round cannot be applied")
                broken.append((beams, explain_no_choice(error)))
                continue
            rounds.append(taken)
            if done is not None:
                searches.append(done)
                leaving += beams.rows
            else:
                self._copy(copies)
        self._leave(leaving)
        failed = chosen.list_failed(broken)
        lost = {failed_one.generation_id for failed_one in failed}
        for generation_id in lost:
            self.leave_generation(generation_id, keep=False)
        return Turn(
            cost,
            steps=[step for step in steps if step.generation_id not in lost] if lost else steps,
            failed=failed,
            beam_rounds=rounds,
            beam_searches=searches,
        )

    def _copy(self, pairs: Sequence[tuple[BatchRow, BatchRow]]) -> None:
        """Copy rows of the cache to others."""
        if pairs:
            places = {id(batch_row): i for i, batch_row in enumerate(self._rows)}
            self._runner.copy_rows(
                [places[id(source)] for source, _ in pairs],
                [places[id(destination)] for _, destination in pairs],
            )

    def _leave(self, leaving: Iterable[BatchRow], *, keep: bool = True) -> None:
        """Remove rows from the batch, last ones first, as the last row fills each gap."""
        gone = {id(batch_row) for batch_row in leaving}
        if not gone:
            return
        for row in reversed([i for i, r in enumerate(self._rows) if id(r) in gone]):
            batch_row = self._rows[row]
            if keep and not batch_row.is_beam:
                # A beam may have tokens of another hypothesis than its row of the cache.
                token_ids = batch_row.row.token_ids.tolist()
                self._runner.keep_row(row, token_ids, batch_row.namespace)
            self._runner.leave(row)
            self._on_leave(batch_row.job_id)
            self._beams.pop(batch_row.generation_id, None)
            self._rows[row] = self._rows[-1]
            self._rows.pop()


class _Chosen(NamedTuple):
    """The choices for some rows, before they are applied.

    Attributes:
        sequences: rows that are not beams.
        decisions: one for each of `sequences`.
        rounds: one for each beam search.
    """

    sequences: list[BatchRow]
    decisions: Sequence[Decision | NoChoice]
    rounds: list[tuple[Beams, Round | NoChoice]]

    def attach_internals(self, rows: Sequence[BatchRow], readout: Readout | None) -> "_Chosen":
        """Return a copy whose decisions have internals from the readout of `rows`."""
        if readout is None:
            return self
        places = {id(batch_row): i for i, batch_row in enumerate(rows)}
        single = readout.select([places[id(batch_row)] for batch_row in self.sequences])
        for beams, made in self.rounds:
            if not isinstance(made, NoChoice):
                members = [places[id(batch_row)] for batch_row in beams.rows]
                attach_internals_to_round(made, readout.select(members))
        return self._replace(decisions=attach_internals(self.decisions, single))

    def drop_probed(self, error: Exception) -> "_Chosen":
        """Return a copy with no choice for the probed rows, as their internals are missing."""
        why = NoChoice(*describe_probe_failure(error))
        decisions = [
            why if batch_row.row.probed else decision
            for batch_row, decision in zip(self.sequences, self.decisions, strict=True)
        ]
        rounds = [(beams, why if beams.rows[0].row.probed else made) for beams, made in self.rounds]
        return self._replace(decisions=decisions, rounds=rounds)

    def list_failed(self, broken: Iterable[tuple[Beams, NoChoice]] = ()) -> list[GenerationFailed]:
        """Return the generations for which no token can be chosen, each once.

        Args:
            broken: searches whose round could not be applied.
        """
        failed: dict[str, GenerationFailed] = {}
        for batch_row, decision in zip(self.sequences, self.decisions, strict=True):
            if isinstance(decision, NoChoice):
                row = batch_row.row
                where = f"step {row.index} of sequence {row.sequence_index}"
                failed[batch_row.generation_id] = _describe_no_choice(
                    batch_row.generation_id, where, decision
                )
        for beams, made in [*self.rounds, *broken]:
            if isinstance(made, NoChoice):
                where = f"round {beams.num_rounds} of the beam search"
                failed[beams.generation_id] = _describe_no_choice(beams.generation_id, where, made)
        return list(failed.values())


def measure_cost(forward_end_ns: int, forward_ns: int, batch_size: int) -> Cost:
    """Return the cost of a forward pass that ended at `forward_end_ns`, and of the time since."""
    ready_ns = time.monotonic_ns()
    return Cost(ready_ns, forward_ns, ready_ns - forward_end_ns, batch_size)


def _describe_no_choice(generation_id: str, where: str, why: NoChoice) -> GenerationFailed:
    return GenerationFailed(generation_id, why.reason, f"{where}: {why.message}")
