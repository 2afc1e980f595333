"""What the engine's loop works on: prompts being read, and the sequences that go on from them."""

from dataclasses import dataclass
from typing import Generic

import torch

from whence_server.domain.decoding import Decoding, FinishReason, Strategy
from whence_server.domain.engine import Admit, GenerationFailed, StepMade
from whence_server.domain.errors import GenerationFailedError
from whence_server.domain.steps import Decision
from whence_server.engine.decoding import Row
from whence_server.engine.internals.probe import ProbeError
from whence_server.engine.model_runner import PromptT


@dataclass(slots=True)
class PrefillJob(Generic[PromptT]):
    """A prompt that is being read, or waits for it, with what will go on from it.

    A generation that begins is one: its sequences share the prompt. Of one that goes on after
    an engine's death every sequence is one, with its recorded tokens as part of the prompt.
    """

    admit: Admit
    token_ids: list[int]
    sequence_indices: list[int]
    """Of the rows that go on from it: sequences, or the beams of a search."""
    num_replayed: int = 0
    """How many of `token_ids`, at their end, were generated before."""
    prompt: PromptT | None = None
    """The runner's, once reading has begun."""
    started_ns: int = 0
    num_chunks: int = 0

    def make_rows(self, job_id: str, max_context_length: int) -> list["BatchRow"]:
        """The rows that go on from it, before their first step."""
        admit = self.admit
        num_tokens = len(self.token_ids)
        room = max(max_context_length - num_tokens, 1)
        last_step = min(count_new_tokens(admit.decoding), self.num_replayed + room)
        return [
            BatchRow(
                job_id,
                admit.generation_id,
                Row(admit.decoding, admit.trace, index, self.token_ids, self.num_replayed),
                token_id=-1,
                context_length=num_tokens,
                num_steps=last_step,
            )
            for index in self.sequence_indices
        ]


@dataclass(slots=True, eq=False)
class BatchRow:
    """A row of the batch."""

    job_id: str
    generation_id: str
    row: Row
    token_id: int
    """Chosen last, to be read next."""
    context_length: int
    """Tokens so far, the prompt's among them."""
    num_steps: int
    """With which it ends at the latest, being long enough or its context full."""

    @property
    def is_beam(self) -> bool:
        """Whether it is one of a search's, and no sequence yet."""
        return self.row.decoding.strategy is Strategy.BEAM_SEARCH

    def append(self, token_id: int) -> None:
        """Add the token that was chosen."""
        self.row.append(token_id)
        self.token_id = token_id
        self.context_length += 1

    def take(self, decision: Decision) -> StepMade:
        """Add the token that was decided on."""
        # The record says what the step has read; the token itself is not part of it.
        index, context_length = self.row.index, self.context_length
        self.append(decision.token_id)
        return StepMade(
            self.generation_id,
            self.row.sequence_index,
            index,
            decision,
            context_length,
            self._find_finish_reason(),
        )

    def _find_finish_reason(self) -> FinishReason | None:
        """Why the sequence ends with its newest token, if it does."""
        decoding = self.row.decoding
        if decoding.strategy is not Strategy.FORCED:
            if self.token_id in decoding.eos_token_ids and not decoding.ignore_eos:
                return FinishReason.END_OF_SEQUENCE
            if self.token_id in decoding.stop_token_ids:
                return FinishReason.STOP
        return FinishReason.LENGTH if self.row.index >= self.num_steps else None


def make_prefill_jobs(admit: Admit) -> dict[str, PrefillJob[PromptT]]:
    """What has to be read for a generation, by the names that the scheduler knows it under."""
    prompt = admit.prompt_token_ids
    if not admit.replays:
        rows = list(range(admit.decoding.num_rows))
        return {admit.generation_id: PrefillJob(admit, prompt, rows)}
    return {
        f"{admit.generation_id}/{replay.sequence_index}": PrefillJob(
            admit,
            [*prompt, *replay.token_ids],
            [replay.sequence_index],
            len(replay.token_ids),
        )
        for replay in admit.replays
    }


def count_new_tokens(decoding: Decoding) -> int:
    """How many tokens a sequence may have at the most, besides its prompt."""
    if decoding.strategy is Strategy.FORCED:
        return len(decoding.forced_token_ids)
    return decoding.max_new_tokens


def is_out_of_memory(error: Exception) -> bool:
    """Whether that is what it says, be it the device's or the host's."""
    return isinstance(error, torch.OutOfMemoryError | MemoryError)


def describe_probe_failure(error: Exception) -> tuple[str, str]:
    """Return reason and message of the failure of a generation that is probed."""
    cause = error.cause if isinstance(error, ProbeError) else error
    reason = "OUT_OF_MEMORY" if is_out_of_memory(cause) else "OBSERVING_FAILED"
    return reason, f"what it showed of the model cannot be recorded: {type(cause).__name__}"


def describe_failure(generation_id: str, error: Exception) -> GenerationFailed:
    """What the front is told of a generation that cannot go on."""
    if isinstance(error, GenerationFailedError):
        return GenerationFailed(generation_id, error.reason, error.message)
    if isinstance(error, ProbeError):
        return GenerationFailed(generation_id, *describe_probe_failure(error))
    if is_out_of_memory(error):
        return GenerationFailed(
            generation_id, "OUT_OF_MEMORY", "the engine ran out of memory; lower --max-cache-tokens"
        )
    return GenerationFailed(
        generation_id, "FORWARD_FAILED", f"the forward pass failed: {type(error).__name__}"
    )
