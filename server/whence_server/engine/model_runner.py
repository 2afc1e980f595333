"""The interface that runs a model's forward passes, for all that decode through it.

`Runner` runs a batch in one pass, `SoloRunner` each sequence by itself: whoever schedules and
chooses need not know which it is.
"""

from collections.abc import Sequence
from typing import Protocol, TypeVar

import torch

from whence_server.engine.internals.probed_rows import ProbeReadout


class Prompt(Protocol):
    """A prompt on its way into the batch, made by `ModelRunner.start`."""

    @property
    def num_done(self) -> int:
        """Tokens that have been read."""

    @property
    def num_left(self) -> int:
        """Tokens still to be read."""

    @property
    def readout(self) -> ProbeReadout | None:
        """Readout of its last token, as row 0; None before that, and where it is not probed."""


PromptT = TypeVar("PromptT", bound=Prompt)


class ModelRunner(Protocol[PromptT]):
    """Runs one model over prompts and over the rows that decode.

    Rows are numbered from 0; `join` appends, `leave` moves the last row into the gap.
    """

    @property
    def num_rows(self) -> int:
        """Rows that decode."""

    def count_whole(self, num_tokens: int, num_generated: int) -> int:
        """Return how many of a prompt's tokens have to be read in one pass, from its beginning.

        Counts where prompts are read whole (`Scheduler`).
        """

    def start(
        self, token_ids: list[int], num_generated: int = 0, *, probed: bool = False
    ) -> PromptT:
        """Make ready to read a prompt.

        Args:
            token_ids: the prompt.
            num_generated: how many of them, at their end, were generated before.
            probed: whether the rows that go on from it are probed.
        """

    def prefill(self, prompt: PromptT, num_tokens: int, *, all_logits: bool) -> torch.Tensor:
        """Read the prompt's next tokens.

        Args:
            prompt: changed in place.
            num_tokens: how many tokens to read.
            all_logits: whether every position's logits are wanted, or the last one's alone.

        Returns:
            [num_tokens, V] or [1, V]: the logits after each token read.

        Raises:
            ProbeError: the activations cannot be read.
        """

    def join(self, prompt: PromptT, num_rows: int = 1) -> None:
        """Append rows that continue the prompt, all of whose tokens have been read."""

    def leave(self, row: int) -> None:
        """Drop a row; the last row takes its number."""

    def copy_rows(self, sources: Sequence[int], destinations: Sequence[int]) -> None:
        """Make each destination a copy of its source as it was before the call; for beams."""

    def decode(self, token_ids: list[int]) -> torch.Tensor:
        """Read one more token for every row.

        Args:
            token_ids: one for each row.

        Returns:
            [rows, V]: the logits after each.
        """

    def read_probe(self) -> ProbeReadout | None:
        """Return the last step's readout of the probed rows; None where no row is probed.

        Raises:
            Exception: any failure since the last call in what only probed rows need.
        """

    def stop_probing(self) -> None:
        """Probe none of the rows any more, also after `read_probe` failed half-way."""

    def synchronize(self) -> None:
        """Wait until everything asked for has been computed, so that times mean something.

        Raises:
            Exception: the device is lost.
        """

    def clear(self) -> None:
        """Drop all rows, also after a forward pass that failed half-way."""
