"""Forward passes: over one prompt, chunk by chunk, and over all running rows at once."""

from dataclasses import dataclass, field
from typing import Any

import torch

from whence_server.engine.cache import BatchedCache

MASK_SPARE_COLUMNS = 256


@dataclass(frozen=True, slots=True)
class ForwardStyle:
    """What a model's forward pass accepts; see `probe.examine`.

    Attributes:
        num_layers: how many layers its cache has.
        position_ids: whether positions are given; otherwise the model has its own way.
        logits_to_keep: whether it can leave out the logits that nobody looks at.
        ready_mask: whether it takes an additive mask [rows, 1, 1, columns] as it is, which saves
            building one in every step. Not so where layers differ in what they may see.
    """

    num_layers: int
    position_ids: bool = True
    logits_to_keep: bool = True
    ready_mask: bool = True


@dataclass(slots=True)
class Prompt:
    """A prompt on its way into the batch.

    Attributes:
        token_ids: the whole prompt.
        cache: what has been read of it.
        num_done: how many tokens that is.
    """

    token_ids: list[int]
    cache: BatchedCache
    num_done: int = 0

    @property
    def num_left(self) -> int:
        """Tokens still to be read."""
        return len(self.token_ids) - self.num_done


@dataclass(slots=True)
class _Layout:
    """What a step needs to know of the batch; holds until a row comes or goes.

    Attributes:
        positions: [rows, 1], of the tokens to be read next.
        mask: the mask's buffer, with columns to spare on the right; None without padding.
    """

    positions: torch.Tensor
    mask: torch.Tensor | None = field(default=None)


class Runner:
    """Runs one model over prompts and over a batch of rows.

    Rows are numbered from 0; `join` appends, `leave` moves the last row into the gap.
    """

    def __init__(self, model: Any, style: ForwardStyle) -> None:
        self._model = model
        self._style = style
        self._device = model.device
        self._cache = BatchedCache(style.num_layers)
        self._layout: _Layout | None = None

    @property
    def num_rows(self) -> int:
        """Rows in the batch."""
        return len(self._cache.padding)

    def start(self, token_ids: list[int]) -> Prompt:
        """Makes ready to read a prompt."""
        return Prompt(token_ids, BatchedCache(self._style.num_layers, len(token_ids)))

    @torch.inference_mode()
    def prefill(self, prompt: Prompt, num_tokens: int, *, all_logits: bool) -> torch.Tensor:
        """Reads the prompt's next tokens.

        Args:
            prompt: changed in place.
            num_tokens: how many tokens to read.
            all_logits: whether every position's logits are wanted, or the last one's alone.

        Returns:
            [num_tokens, V] or [1, V]: what follows each token read.
        """
        chunk = prompt.token_ids[prompt.num_done : prompt.num_done + num_tokens]
        arguments: dict[str, Any] = {}
        if self._style.position_ids:
            stop = prompt.num_done + len(chunk)
            positions = torch.arange(prompt.num_done, stop, device=self._device)
            arguments["position_ids"] = positions.unsqueeze(0)
        if self._style.logits_to_keep and not all_logits:
            arguments["logits_to_keep"] = 1
        logits = self._forward(
            torch.tensor([chunk], device=self._device), prompt.cache, arguments
        )  # (1, T, V) or (1, 1, V)
        prompt.num_done += len(chunk)
        return logits[0] if all_logits else logits[0, -1:]

    @torch.inference_mode()
    def join(self, prompt: Prompt, num_rows: int = 1) -> None:
        """Appends rows that continue the prompt, all of whose tokens have been read."""
        self._cache.insert(prompt.cache, num_rows)
        self._layout = None

    @torch.inference_mode()
    def leave(self, row: int) -> None:
        """Drops a row; the last row takes its number."""
        self._cache.remove(row)
        self._layout = None

    def synchronize(self) -> None:
        """Waits until what was asked for has been computed, so that times mean something."""
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)

    def clear(self) -> None:
        """Drops all rows, also after a forward pass that failed half-way."""
        self._cache.clear()
        self._layout = None

    @torch.inference_mode()
    def decode(self, token_ids: list[int]) -> torch.Tensor:
        """Reads one more token for every row.

        Args:
            token_ids: one for each row.

        Returns:
            [rows, V]: what follows each.
        """
        layout = self._current_layout()
        arguments: dict[str, Any] = {}
        if self._style.position_ids:
            arguments["position_ids"] = layout.positions
        if layout.mask is not None:
            width = self._cache.width + 1
            columns = layout.mask.narrow(-1, 0, width)
            arguments["attention_mask"] = columns
        input_ids = torch.tensor(token_ids, device=self._device).unsqueeze(1)
        logits = self._forward(input_ids, self._cache, arguments)  # (B, 1, V)
        layout.positions.add_(1)
        return logits[:, -1]

    def _forward(
        self, input_ids: torch.Tensor, cache: BatchedCache, arguments: dict[str, Any]
    ) -> torch.Tensor:
        output = self._model(
            input_ids=input_ids, past_key_values=cache, use_cache=True, **arguments
        )
        return output.logits

    def _current_layout(self) -> _Layout:
        layout = self._layout
        if layout is None or self._outgrown(layout.mask):
            lengths = self._cache.lengths
            positions = torch.tensor(lengths, device=self._device).unsqueeze(1)
            self._layout = layout = _Layout(positions, self._mask())
        return layout

    def _outgrown(self, mask: torch.Tensor | None) -> bool:
        return mask is not None and self._cache.width + 1 > mask.shape[-1]

    def _mask(self) -> torch.Tensor | None:
        """Hides each row's padding: additive [rows, 1, 1, columns], or 0 and 1 [rows, columns].

        None where no row has any: kernels are faster without.
        """
        padding = self._cache.padding
        if not any(padding):
            return None
        columns = torch.arange(self._cache.width + MASK_SPARE_COLUMNS, device=self._device)
        visible = columns >= torch.tensor(padding, device=self._device).unsqueeze(1)  # (B, columns)
        if not self._style.ready_mask:
            return visible.long()
        hidden = torch.finfo(self._model.dtype).min
        mask = torch.zeros(visible.shape, dtype=self._model.dtype, device=self._device)
        return mask.masked_fill_(~visible, hidden)[:, None, None]
