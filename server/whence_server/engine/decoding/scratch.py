"""Memory that is kept from step to step."""

import torch


class Scratch:
    """Room for float32 [rows, V], written anew in each step.

    Fresh memory of this size costs more than what is written to it: the allocator gives it back
    to the system when a step ends, and every page is faulted in again in the next.
    """

    def __init__(self, vocabulary_size: int, device: torch.device) -> None:
        self._room = torch.empty(0, vocabulary_size, device=device)

    def take(self, num_rows: int) -> torch.Tensor:
        """Some rows, contiguous, with anything in them; the same memory at every call."""
        if len(self._room) < num_rows:
            self._room = self._room.new_empty(num_rows, self._room.shape[1])
        return self._room[:num_rows]
