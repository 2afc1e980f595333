"""State of one probed sequence that decodes by itself: the norms of its positions.

The model's cache may have any layout. Values are therefore read from the arguments of attention
in each pass, and weights are aligned at the newest position.
"""

import torch

from whence_server.engines.transformers.internals.probe import ActivationBuffer, Probe
from whence_server.engines.transformers.internals.sources import Sources, list_sources, read_context


class ProbedSequence:
    """One probed sequence. Every forward pass over it is probed, and then read.

    Args:
        probe: the model's probe.

    Attributes:
        buffer: activations of the last pass, until they are read; else None.
    """

    def __init__(self, probe: Probe) -> None:
        self._probe = probe
        self.buffer: ActivationBuffer | None = None
        self._norms: torch.Tensor | None = None
        """[1, K, positions], see `OutputNorms`; replaced and never changed in place."""

    def copy(self) -> "ProbedSequence":
        """Return an independent copy."""
        other = ProbedSequence(self._probe)
        other.buffer = self.buffer
        other._norms = self._norms
        return other

    def restart(self) -> None:
        """Drop the norms, as the next pass reads all positions again."""
        self._norms = None

    def read_probe(self) -> tuple[list[Sources], torch.Tensor | None]:
        """Add the norms of the last pass, and return the readout of the newest position.

        Returns:
            The sources, empty if the model gives none; and the layers' outputs,
            [1, layers, width], None if the model's layers cannot be read.

        Raises:
            Exception: the first error while the pass was probed.
        """
        if self.buffer is None:
            raise RuntimeError("read_probe() needs a probed pass over the sequence before it")
        activations, self.buffer = self.buffer.activations, None
        if self._probe.norms is None:
            return [], activations.hidden
        newest = self._probe.norms.compute([layer[0] for layer in activations.values]).unsqueeze(0)
        norms = newest if self._norms is None else torch.cat([self._norms, newest], -1)
        self._norms = norms
        return list_sources(
            read_context(activations.weights, norms, None), [norms.shape[-1]]
        ), activations.hidden
