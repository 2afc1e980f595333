"""Progress of a generation: its phase, its place in the queue, tokens read and generated."""

from collections import Counter
from collections.abc import Iterable
from enum import Enum
from typing import NamedTuple

from whence_server.generation.running import RunningGeneration


class Phase(Enum):
    """Phases of a generation, with the numbers of the contract's GenerationPhase."""

    PREPARING = 1
    QUEUED = 2
    READING_PROMPT = 3
    GENERATING = 4
    ENGINE_RESTARTING = 5
    RECORDING = 6


class Progress(NamedTuple):
    """State of a generation that is waiting or slow; numbers that do not apply are 0."""

    phase: Phase
    num_generations_ahead: int = 0
    """Number of generations whose prompts are read before this one's."""
    num_prompt_tokens: int = 0
    num_prompt_tokens_read: int = 0
    num_generated_tokens: int = 0


def describe_progress(
    generation: RunningGeneration, in_order: Iterable[RunningGeneration], *, engine_is_down: bool
) -> Progress:
    """Return the progress of a running generation.

    Args:
        generation: the generation.
        in_order: all running generations in the order of their start.
        engine_is_down: True while the engine is started again.
    """
    phase, num_ahead = Phase.GENERATING, 0
    num_prompt_tokens = len(generation.started.prompt_token_ids)
    num_read = generation.num_prompt_tokens_read
    if engine_is_down:
        phase = Phase.ENGINE_RESTARTING
    elif num_read is None:
        phase, num_ahead = Phase.QUEUED, _count_queued_before(generation, in_order)
    elif num_read < num_prompt_tokens:
        phase = Phase.READING_PROMPT
    return Progress(
        phase, num_ahead, num_prompt_tokens, num_read or 0, generation.num_generated_tokens
    )


def _count_queued_before(
    generation: RunningGeneration, in_order: Iterable[RunningGeneration]
) -> int:
    """Return the number of generations before this one in a queue where callers take turns."""
    owner, num_own, of_others = generation.started.owner, 0, Counter[str]()
    has_passed = False
    for other in in_order:
        if other is generation:
            has_passed = True
        elif other.num_prompt_tokens_read is None:
            if other.started.owner != owner:
                of_others[other.started.owner] += 1
            elif not has_passed:
                num_own += 1
    # Each other caller has as many turns before it as its own caller needs.
    return num_own + sum(min(number, num_own + 1) for number in of_others.values())
