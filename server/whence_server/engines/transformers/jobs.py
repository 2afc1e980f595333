"""Work items of the engine's loop: prompts in prefill, and rows of the batch."""

from dataclasses import dataclass
from typing import Generic

import torch

from whence_server.constraints.compiler import Matcher
from whence_server.constraints.errors import ConstraintError
from whence_server.domain.decoding import Decoding, FinishReason, Strategy
from whence_server.domain.engine import Admit, GenerationFailed, StepMade
from whence_server.domain.errors import GenerationFailedError
from whence_server.domain.steps import Decision
from whence_server.engines.transformers.decoding import Row
from whence_server.engines.transformers.decoding.constraints import RowConstraint, start_constraint
from whence_server.engines.transformers.internals.probe import ProbeError
from whence_server.engines.transformers.model_runner import PromptT


@dataclass(slots=True)
class PrefillJob(Generic[PromptT]):
    """A prompt in prefill or waiting for it, and the rows that will continue it.

    A new generation is one job, as its sequences share the prompt. For a generation that
    continues after an engine's death, each sequence is a job, with its recorded tokens as part of
    the prompt.
    """

    admit: Admit
    token_ids: list[int]
    sequence_indices: list[int]
    """Indices of the rows that continue the prompt: sequences, or the beams of a search."""
    num_replayed: int = 0
    """Number of tokens at the end of `token_ids` that were generated before."""
    prompt: PromptT | None = None
    """The runner's prompt; None before prefill."""
    started_ns: int = 0
    num_chunks: int = 0
    compiled: Matcher | None = None
    """Constraint of the generation, before its first token; None without one."""

    @property
    def namespace(self) -> str:
        """Name of the weights that read the tokens, for the prefix cache: the adapter's."""
        return self.admit.adapter

    @property
    def traces_prompt(self) -> bool:
        """True if the prompt's own tokens are traced, and have not been before."""
        return self.admit.trace.prompt and not self.num_replayed

    def make_rows(self, job_id: str, max_context_length: int) -> list["BatchRow"]:
        """Return the rows that continue the prompt, before their first step."""
        admit = self.admit
        num_tokens = len(self.token_ids)
        room = max(max_context_length - num_tokens, 1)
        last_step = min(count_new_tokens(admit.decoding), self.num_replayed + room)
        return [
            BatchRow(
                job_id,
                admit.generation_id,
                Row(
                    admit.decoding,
                    admit.trace,
                    index,
                    self.token_ids,
                    self.num_replayed,
                    constraint=self._start_constraint(),
                ),
                token_id=-1,
                context_length=num_tokens,
                num_steps=last_step,
                namespace=self.namespace,
            )
            for index in self.sequence_indices
        ]

    def _start_constraint(self) -> RowConstraint | None:
        """Return the constraint's state after the tokens that were generated before."""
        if self.compiled is None:
            return None
        replayed = self.token_ids[len(self.token_ids) - self.num_replayed :]
        return start_constraint(self.compiled, self.admit.decoding, replayed)


@dataclass(slots=True, eq=False)
class BatchRow:
    """A row of the batch."""

    job_id: str
    generation_id: str
    row: Row
    token_id: int
    """Newest token, which the next step reads."""
    context_length: int
    """Number of tokens so far, including the prompt's."""
    num_steps: int
    """Largest number of steps, by the request's length or the model's context."""
    namespace: str = ""
    """See `PrefillJob.namespace`."""

    @property
    def is_beam(self) -> bool:
        """True if the row is a beam of a search."""
        return self.row.decoding.strategy is Strategy.BEAM_SEARCH

    def append(self, token_id: int) -> None:
        """Append a chosen token."""
        self.row.append(token_id)
        self.token_id = token_id
        self.context_length += 1

    def take(self, decision: Decision) -> StepMade:
        """Append the token of a decision; return the message that reports the step."""
        # The context length of a step does not include its own token.
        index, context_length = self.row.index, self.context_length
        self.append(decision.token_id)
        return StepMade(
            self.generation_id,
            self.row.sequence_index,
            index,
            decision,
            context_length,
            self._find_finish_reason(),
            None if self.row.constraint is None else self.row.constraint.is_complete,
        )

    def _find_finish_reason(self) -> FinishReason | None:
        """Return the reason if the sequence ends with its newest token, else None."""
        decoding = self.row.decoding
        if decoding.strategy is not Strategy.FORCED:
            if self.token_id in decoding.eos_token_ids and not decoding.ignore_eos:
                return FinishReason.END_OF_SEQUENCE
            if self.token_id in decoding.stop_token_ids:
                return FinishReason.STOP
        return FinishReason.LENGTH if self.row.index >= self.num_steps else None


def make_prefill_jobs(
    admit: Admit, compiled: Matcher | None = None
) -> dict[str, PrefillJob[PromptT]]:
    """Return the prefill jobs of a generation, by their ids in the scheduler.

    Args:
        admit: request of the front.
        compiled: the generation's constraint; None without one.
    """
    prompt = admit.prompt_token_ids
    if not admit.replays:
        rows = list(range(admit.decoding.num_rows))
        return {admit.generation_id: PrefillJob(admit, prompt, rows, compiled=compiled)}
    return {
        f"{admit.generation_id}/{replay.sequence_index}": PrefillJob(
            admit,
            [*prompt, *replay.token_ids],
            [replay.sequence_index],
            len(replay.token_ids),
            compiled=compiled,
        )
        for replay in admit.replays
    }


def count_new_tokens(decoding: Decoding) -> int:
    """Return the largest number of tokens that a sequence may have besides its prompt."""
    if decoding.strategy is Strategy.FORCED:
        return len(decoding.forced_token_ids)
    return decoding.max_new_tokens


def is_out_of_memory(error: Exception) -> bool:
    """Return whether an error means that the device or the host ran out of memory."""
    return isinstance(error, torch.OutOfMemoryError | MemoryError)


def describe_probe_failure(error: Exception) -> tuple[str, str]:
    """Return reason and message for a probed generation whose activations cannot be read."""
    cause = error.cause if isinstance(error, ProbeError) else error
    reason = "OUT_OF_MEMORY" if is_out_of_memory(cause) else "OBSERVING_FAILED"
    return reason, f"the model's activations cannot be recorded: {type(cause).__name__}"


def describe_failure(generation_id: str, error: Exception) -> GenerationFailed:
    """Return the message to the front about the failure of a generation."""
    if isinstance(error, GenerationFailedError):
        return GenerationFailed(generation_id, error.reason, error.message)
    if isinstance(error, ProbeError):
        return GenerationFailed(generation_id, *describe_probe_failure(error))
    if isinstance(error, ConstraintError):
        return GenerationFailed(
            generation_id, "CONSTRAINT_FAILED", f"the constraint {error.message}"
        )
    if is_out_of_memory(error):
        return GenerationFailed(
            generation_id,
            "OUT_OF_MEMORY",
            "the engine ran out of memory; lower --max-cache-tokens or --prefix-cache-tokens",
        )
    return GenerationFailed(
        generation_id, "FORWARD_FAILED", f"the forward pass failed: {type(error).__name__}"
    )
