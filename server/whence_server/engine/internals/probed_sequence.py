"""What is kept of one sequence that decodes by itself and is probed: its positions' norms.

How its cache is laid out is the model's own business: values are taken as attention is given them,
with each pass, and weights by where they stand from the newest position backwards.
"""

import torch

from whence_server.engine.internals.probe import ActivationBuffer, Probe
from whence_server.engine.internals.sources import Sources, list_sources, sum_contributions


class ProbedSequence:
    """One sequence, from its prompt on. Every pass over it has to be watched, and then seen.

    Args:
        probe: the model's.

    Attributes:
        watch: of its last pass, until it has been seen; None before the first.
    """

    def __init__(self, probe: Probe) -> None:
        self._probe = probe
        self.buffer: ActivationBuffer | None = None
        self._norms: torch.Tensor | None = None
        """[1, K, positions], see `OutputNorms`; replaced, never written to."""

    def copy(self) -> "ProbedSequence":
        """One that goes its own way from here on."""
        other = ProbedSequence(self._probe)
        other.buffer = self.buffer
        other._norms = self._norms
        return other

    def restart(self) -> None:
        """Forget its positions: its next pass reads all of them once more."""
        self._norms = None

    def read_probe(self) -> tuple[list[Sources], torch.Tensor | None]:
        """Take in what its last pass read, and says what the newest position drew on.

        Returns:
            Its sources, none where the model gives none; its layers' outputs, [1, layers, width],
            None where the model gives no layers.

        Raises:
            Exception: whatever went wrong while it was watched.
        """
        if self.buffer is None:
            raise RuntimeError("no pass over it has been watched")
        activations, self.buffer = self.buffer.activations, None
        if self._probe.norms is None:
            return [], activations.hidden
        newest = self._probe.norms.compute([layer[0] for layer in activations.values]).unsqueeze(0)
        norms = newest if self._norms is None else torch.cat([self._norms, newest], -1)
        self._norms = norms
        return list_sources(
            sum_contributions(activations.weights, norms, None), [norms.shape[-1]]
        ), activations.hidden
