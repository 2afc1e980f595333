"""What the engine's loop works on: prompts being read, and the sequences that go on from them."""

from dataclasses import dataclass, field

import torch

from whence_server.domain.decoding import Decoding, Strategy
from whence_server.domain.errors import GenerationFailedError
from whence_server.domain.steps import Decision
from whence_server.engine.decoding import Row
from whence_server.engine.messages import Admit, GenerationFailed
from whence_server.engine.runner import Prompt


@dataclass(slots=True)
class Reading:
    """A prompt that is being read, or waits for it, with what will go on from it.

    A generation that begins is one: its sequences share the prompt. Of one that goes on after
    an engine's death every sequence is one, with its recorded tokens as part of the prompt.
    """

    admit: Admit
    token_ids: list[int]
    sequence_indices: list[int]
    num_recorded: int = 0
    """How many of `token_ids`, at their end, were generated before."""
    prompt: Prompt | None = None
    started_ns: int = 0
    prompt_decisions: list[Decision] = field(default_factory=list)


@dataclass(slots=True)
class Running:
    """A row of the batch."""

    job_id: str
    generation_id: str
    row: Row
    token_id: int
    """Chosen last, to be read next."""
    context_length: int
    """Tokens so far, the prompt's among them."""


def readings(admit: Admit) -> dict[str, Reading]:
    """What has to be read for a generation, by the names that the scheduler knows it under."""
    prompt = admit.prompt_token_ids
    if not admit.recorded:
        indices = list(range(admit.decoding.num_return_sequences))
        return {admit.generation_id: Reading(admit, prompt, indices)}
    return {
        f"{admit.generation_id}/{recorded.sequence_index}": Reading(
            admit,
            [*prompt, *recorded.token_ids],
            [recorded.sequence_index],
            len(recorded.token_ids),
        )
        for recorded in admit.recorded
    }


def num_new_tokens(decoding: Decoding) -> int:
    """How many tokens a sequence may have at the most, besides its prompt."""
    if decoding.strategy is Strategy.FORCED:
        return len(decoding.forced_token_ids)
    return decoding.max_new_tokens


def failure(generation_id: str, error: Exception) -> GenerationFailed:
    """What the front is told of a generation that cannot go on."""
    if isinstance(error, GenerationFailedError):
        return GenerationFailed(generation_id, error.reason, error.message)
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return GenerationFailed(
            generation_id, "OUT_OF_MEMORY", "the engine ran out of memory; lower --max-cache-tokens"
        )
    return GenerationFailed(
        generation_id, "FORWARD_FAILED", f"the forward pass failed: {type(error).__name__}"
    )
