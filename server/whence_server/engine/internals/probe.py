"""Probes a forward pass: its layers' outputs and their attention, without being in its way.

Whatever goes wrong in looking is kept until somebody asks for what was seen: the pass goes on, and
gives what it gives unwatched.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import NamedTuple

import torch

from whence_server.engine.internals.attention import LayerAttention, probe_attention
from whence_server.engine.internals.layers import probe_layers
from whence_server.engine.internals.lens import Lens
from whence_server.engine.internals.sources import OutputNorms


class Probe(NamedTuple):
    """What a model's probe looks at.

    Attributes:
        norms: None where it gives no sources.
        lens: None where it gives no layers.
    """

    norms: OutputNorms | None
    lens: Lens | None


NO_PROBE = Probe(None, None)


class Activations(NamedTuple):
    """What a forward pass showed of all its rows.

    Attributes:
        hidden: the layers' outputs, [B, layers, width]; None without a lens.
        weights: of each layer that attends, [B, heads, columns]; empty without sources.
        values: of the same, [B, value heads, tokens, head size] of the tokens that were read; empty
            where they were not asked for.
    """

    hidden: torch.Tensor | None
    weights: list[torch.Tensor]
    values: list[torch.Tensor]


class ProbeError(Exception):
    """Failure to read the activations of a pass.

    Args:
        cause: why.
    """

    def __init__(self, cause: Exception) -> None:
        super().__init__(str(cause))
        self.cause = cause


@contextmanager
def translate_probe_errors() -> Iterator[None]:
    """What goes wrong within is no fault of the model's.

    Raises:
        ProbeError: it did.
    """
    try:
        yield
    except Exception as error:
        raise ProbeError(error) from error


@contextmanager
def probing(probe: Probe, *, values: bool = False) -> Iterator["ActivationBuffer"]:
    """See what the pass within shows.

    Args:
        probe: the model's.
        values: whether to keep those of the tokens that are read, where their cache is the model's
            own business.
    """
    buffer = ActivationBuffer(values=values)
    with probe_layers(probe.lens.layers if probe.lens else (), buffer.add_output):
        if probe.norms is None:
            yield buffer
        else:
            with probe_attention(buffer.add_attention):
                yield buffer


class ActivationBuffer:
    """What is collected during a pass; complete after it.

    Attributes:
        outputs: each layer's for the newest token, [B, width].
        weights: as in `Activations`.
        values: as in `Activations`.
    """

    def __init__(self, *, values: bool) -> None:
        self._keeps_values = values
        self.outputs: list[torch.Tensor] = []
        self.weights: list[torch.Tensor] = []
        self.values: list[torch.Tensor] = []
        self._error: Exception | None = None

    @property
    def activations(self) -> Activations:
        """All of it.

        Raises:
            Exception: whatever went wrong while it was collected.
        """
        if self._error is not None:
            raise self._error
        hidden = torch.stack(self.outputs, 1) if self.outputs else None
        return Activations(hidden, self.weights, self.values)

    def add_output(self, read: Callable[[], torch.Tensor]) -> None:
        """Take a layer's output."""
        self._collect(lambda: self.outputs.append(read()))

    def add_attention(self, read: Callable[[], LayerAttention]) -> None:
        """Take what a layer's attention did, and keeps nothing else of it alive."""
        self._collect(lambda: self._keep(read()))

    def _keep(self, attended: LayerAttention) -> None:
        self.weights.append(attended.weights)
        if self._keeps_values:
            num_tokens = attended.output.shape[1]
            self.values.append(attended.values[:, :, -num_tokens:])

    def _collect(self, take: Callable[[], None]) -> None:
        if self._error is None:
            try:
                take()
            except Exception as error:  # noqa: BLE001 - the pass is not ours alone
                self._error = error
