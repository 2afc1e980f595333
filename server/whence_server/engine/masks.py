"""What each row of a batch may see of the columns, step by step, for every kind of layer."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch

SPARE_COLUMNS = 256


class StepMasks:
    """Additive masks [rows, 1, 1, columns] that grow by a column at every step.

    They hide a row's padding everywhere, and in layers with a sliding window what lies before
    it. Made when rows come or go; from then on a step costs one column, not a mask.

    Args:
        padding: for each row, how many columns come before its first.
        width: columns that the next step sees, its own among them.
        windows: for each kind of layer, how many columns it sees, the newest; None for all.
        dtype: of the model's arithmetic.
        device: where it computes.
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
        """Columns from the left that a window has left behind."""

    @property
    def num_columns(self) -> int:
        """Columns that there is room for."""
        return self._masks[0].shape[-1]

    def select(self, width: int) -> list[torch.Tensor]:
        """The masks of a step that sees so many columns, never fewer than the step before.

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
    """What a step needs to know of the batch; holds until a row comes or goes.

    Attributes:
        positions: [rows, 1], of the tokens to be read next.
        masks: of a model that takes them ready.
        visible: of one that does not: [rows, columns], 0 for padding and else 1, with columns
            to spare on the right; None without padding.
    """

    positions: torch.Tensor
    masks: StepMasks | None = None
    visible: torch.Tensor | None = None

    def reaches(self, width: int) -> bool:
        """Whether it holds for a step that sees so many columns."""
        if self.masks is not None:
            return width <= self.masks.num_columns
        return self.visible is None or width <= self.visible.shape[-1]
