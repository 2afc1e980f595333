"""Attention masks of decoding steps, for every kind of layer."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch

SPARE_COLUMNS = 256


class StepMasks:
    """Additive masks [rows, 1, 1, columns] that grow by a column at every step.

    They hide a row's padding, and, in layers with a sliding window, the columns before the window.
    New masks are built when rows come or go; between that, a step costs one column.

    Args:
        padding: for each row, the number of columns before its first.
        width: number of columns that the next step sees, including its own.
        windows: for each kind of layer, the number of newest columns it sees; None for all.
        dtype: dtype of the model.
        device: device of the model.
    """

    def __init__(
        self,
        padding: Sequence[int],
        width: int,
        windows: Sequence[int | None],
        dtype: torch.dtype,
        device: torch.device,
    ) -> None:
        self._hidden = torch.finfo(dtype).min
        self._windows = list(windows)
        columns = torch.arange(width + SPARE_COLUMNS, device=device)
        padded = columns < torch.tensor(padding, device=device).unsqueeze(1)  # (B, columns)
        mask = torch.zeros(padded.shape, dtype=dtype, device=device)
        mask = mask.masked_fill_(padded, self._hidden)[:, None, None]
        self._masks = [mask if window is None else mask.clone() for window in self._windows]
        self._num_passed = [0] * len(self._windows)
        """Columns on the left that are already hidden by each window."""

    @property
    def num_columns(self) -> int:
        """Capacity in columns."""
        return self._masks[0].shape[-1]

    def select(self, width: int) -> list[torch.Tensor]:
        """Return the masks of a step that sees `width` columns, at least as many as the last one.

        Returns:
            One [rows, 1, 1, width] for each kind of layer: views, valid until the next call.
        """
        for i, window in enumerate(self._windows):
            already = self._num_passed[i]
            if window is not None and width - window > already:
                self._masks[i].narrow(-1, already, width - window - already).fill_(self._hidden)
                self._num_passed[i] = width - window
        return [mask.narrow(-1, 0, width) for mask in self._masks]


@dataclass(slots=True)
class StepLayout:
    """Positions and masks of the batch's steps, valid until a row comes or goes.

    Attributes:
        positions: [rows, 1], positions of the next tokens to read.
        masks: masks for a model that accepts additive masks; else None.
        visible: mask for other models, [rows, columns], 0 for padding and else 1, with spare
            columns on the right; None without padding.
    """

    positions: torch.Tensor
    masks: StepMasks | None = None
    visible: torch.Tensor | None = None

    def reaches(self, width: int) -> bool:
        """Return whether the layout has room for a step that sees `width` columns."""
        if self.masks is not None:
            return width <= self.masks.num_columns
        return self.visible is None or width <= self.visible.shape[-1]
