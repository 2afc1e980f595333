"""What is kept of one sequence that decodes by itself and is observed: its positions' norms.

How its cache is laid out is the model's own business: values are taken as attention is given them,
with each pass, and weights by where they stand from the newest position backwards.
"""

import torch

from whence_server.engine.internals.probe import Inside, Watch
from whence_server.engine.internals.sources import Sources, drawn, listed


class ObservedSequence:
    """One sequence, from its prompt on. Every pass over it has to be watched, and then seen.

    Args:
        inside: the model's.

    Attributes:
        watch: of its last pass, until it has been seen; None before the first.
    """

    def __init__(self, inside: Inside) -> None:
        self._inside = inside
        self.watch: Watch | None = None
        self._norms: torch.Tensor | None = None
        """[1, K, positions], see `OutputNorms`; replaced, never written to."""

    def copy(self) -> "ObservedSequence":
        """One that goes its own way from here on."""
        other = ObservedSequence(self._inside)
        other.watch = self.watch
        other._norms = self._norms
        return other

    def restart(self) -> None:
        """Forgets its positions: its next pass reads all of them once more."""
        self._norms = None

    def see(self) -> tuple[list[Sources], torch.Tensor | None]:
        """Takes in what its last pass read, and says what the newest position drew on.

        Returns:
            Its sources, none where the model gives none; its layers' outputs, [1, layers, width],
            None where the model gives no layers.

        Raises:
            Exception: whatever went wrong while it was watched.
        """
        if self.watch is None:
            raise RuntimeError("no pass over it has been watched")
        seen, self.watch = self.watch.seen, None
        if self._inside.norms is None:
            return [], seen.hidden
        newest = self._inside.norms.of([layer[0] for layer in seen.values]).unsqueeze(0)
        norms = newest if self._norms is None else torch.cat([self._norms, newest], -1)
        self._norms = norms
        return listed(drawn(seen.weights, norms, None), [norms.shape[-1]]), seen.hidden
