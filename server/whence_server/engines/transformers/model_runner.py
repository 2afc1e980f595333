"""Interface of the runners of a model's forward passes.

`Runner` runs a batch in one pass, `SoloRunner` each sequence by itself, and `AdaptedRunner` the
rows of each adapter by a runner of their own.
"""

from collections.abc import Sequence
from typing import Protocol, TypeVar

import torch

from whence_server.engines.transformers.internals.probed_rows import Readout


class Prompt(Protocol):
    """A prompt in prefill, made by `ModelRunner.start`."""

    @property
    def num_done(self) -> int:
        """Number of tokens read."""

    @property
    def num_left(self) -> int:
        """Number of tokens still to read."""

    @property
    def num_cached(self) -> int:
        """Number of tokens among them that were found in the prefix cache."""

    @property
    def readout(self) -> Readout | None:
        """Readout of the last token, as row 0; None before the end, or if not probed."""


PromptT = TypeVar("PromptT", bound=Prompt)


class ModelRunner(Protocol[PromptT]):
    """Runner of one model over prompts and over the rows that decode.

    Rows are numbered from 0; `join` appends, `leave` moves the last row into the gap.
    """

    @property
    def num_rows(self) -> int:
        """Number of rows that decode."""

    @property
    def num_prefix_tokens(self) -> int:
        """Number of positions in the prefix cache."""

    def count_whole(self, num_tokens: int, num_generated: int) -> int:
        """Return the number of a prompt's first tokens that have to be read in one pass.

        Used if prompts are read whole (see `Scheduler`).
        """

    def start(
        self,
        token_ids: list[int],
        num_generated: int = 0,
        *,
        probed: bool = False,
        adapter: str = "",
    ) -> PromptT:
        """Return a prompt, ready to be read.

        Args:
            token_ids: tokens of the prompt.
            num_generated: number of tokens at its end that were generated before.
            probed: whether the rows that continue it are probed.
            adapter: name of the adapter with which the tokens are read; "" for none.
        """

    def prefill(self, prompt: PromptT, num_tokens: int, *, all_logits: bool) -> torch.Tensor:
        """Read the prompt's next tokens.

        Args:
            prompt: changed in place.
            num_tokens: number of tokens to read.
            all_logits: whether to return the logits of every position, or of the last one only.

        Returns:
            [num_tokens, V] or [1, V]: the logits after each token read.

        Raises:
            ProbeError: the activations cannot be read.
        """

    def reuse_prefix(self, prompt: PromptT, namespace: str) -> None:
        """Take over the longest cached prefix of a prompt that goes beyond the tokens read.

        At least the last token is left to read.

        Args:
            prompt: changed in place.
            namespace: name of the weights that read it; see `PrefixCache.read`.

        Raises:
            ProbeError: the activations cannot be read.
        """

    def keep_prefix(self, prompt: PromptT, namespace: str) -> None:
        """Keep the tokens that are read of a prompt for later prompts, within the cache's size."""

    def keep_row(self, row: int, token_ids: Sequence[int], namespace: str) -> None:
        """Keep a row for later prompts, within the cache's size.

        Args:
            row: number of the row.
            token_ids: its prompt and its generated tokens. The newest may not have been read.
            namespace: see `reuse_prefix`.
        """

    def join(self, prompt: PromptT, num_rows: int = 1) -> None:
        """Append rows that continue a completely read prompt."""

    def leave(self, row: int) -> None:
        """Drop a row; the last row takes its number."""

    def copy_rows(self, sources: Sequence[int], destinations: Sequence[int]) -> None:
        """Copy rows to others, from their state before the call; for beams."""

    def decode(self, token_ids: list[int]) -> torch.Tensor:
        """Read one more token for every row.

        Args:
            token_ids: one for each row.

        Returns:
            [rows, V]: the logits after each token.
        """

    def read_probe(self) -> Readout | None:
        """Return the last step's readout of the probed rows; None if no row is probed.

        Raises:
            Exception: the first failure since the last call in code for probed rows.
        """

    def stop_probing(self) -> None:
        """Stop probing all rows, also after a failed `read_probe`."""

    def synchronize(self) -> None:
        """Wait until the device has finished all work, so that times can be measured.

        Raises:
            Exception: the device is lost.
        """

    def release(self) -> None:
        """Free the memory of rows that have left; called without rows."""

    def clear(self) -> None:
        """Drop all rows, also after a failed forward pass."""
