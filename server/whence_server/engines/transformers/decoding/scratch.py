"""Memory that is reused from step to step."""

import torch


class Scratch:
    """Buffer for float32 [rows, V], overwritten in each step.

    Allocating this size in each step would cost more than writing to it: the allocator returns
    the memory to the system at the end of a step, and each page faults again in the next one.
    """

    def __init__(self, vocabulary_size: int, device: torch.device) -> None:
        self._room = torch.empty(0, vocabulary_size, device=device)

    def take(self, num_rows: int) -> torch.Tensor:
        """Return contiguous rows with undefined content; each call returns the same memory."""
        if len(self._room) < num_rows:
            self._room = self._room.new_empty(num_rows, self._room.shape[1])
        return self._room[:num_rows]
