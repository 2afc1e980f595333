"""Transfer of a step's table from the model's device to the host, without a wait."""

from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
import torch

Table: TypeAlias = npt.NDArray[np.float32]
"""[rows, columns], on the host."""


class HostTable:
    """A table on its way to the host.

    Args:
        table: the table on the model's device.
    """

    def __init__(self, table: torch.Tensor) -> None:
        self._table = table
        self._arrived: Any = None
        if table.is_cuda:
            host = torch.empty(table.shape, dtype=table.dtype, device="cpu", pin_memory=True)
            self._table = host.copy_(table, non_blocking=True)
            self._arrived = torch.cuda.Event()
            self._arrived.record()

    @property
    def num_bytes(self) -> int:
        """Size in bytes."""
        return self._table.numel() * self._table.element_size()

    def read(self) -> Table:
        """Return the table; wait for the transfer, if there is one."""
        if self._arrived is not None:
            self._arrived.synchronize()
        table: Table = self._table.cpu().numpy()
        return table
