"""Probe of a forward pass: layers' outputs and attention.

A failure in the probe does not disturb the pass, whose output is the same as without a probe. The
error is kept, and raised when the activations are read.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import NamedTuple

import torch

from whence_server.engines.transformers.internals.attention import LayerAttention, probe_attention
from whence_server.engines.transformers.internals.layers import probe_layers
from whence_server.engines.transformers.internals.lens import Lens
from whence_server.engines.transformers.internals.sources import OutputNorms


class Probe:
    """A model's probe.

    Args:
        norms: computes sources; None if the model gives none.
        lens: reads layers; None if the model's layers cannot be read.
    """

    def __init__(self, norms: OutputNorms | None, lens: Lens | None) -> None:
        self._norms = norms
        self._lens = lens

    @property
    def norms(self) -> OutputNorms | None:
        """Computation of sources; None if the model gives none."""
        return self._norms

    @property
    def lens(self) -> Lens | None:
        """Reader of layers; None if the model's layers cannot be read."""
        return self._lens


class DeferredProbe(Probe):
    """A probe that is built when it is first needed: at the first generation with internals.

    Args:
        build: builds the probe.
    """

    def __init__(self, build: Callable[[], Probe]) -> None:
        super().__init__(None, None)
        self._build = build
        self._built: Probe | None = None

    def complete(self) -> Probe:
        """Build the probe, unless it is built already."""
        if self._built is None:
            self._built = self._build()
        return self._built

    @property
    def norms(self) -> OutputNorms | None:
        """Computation of sources; None if the model gives none."""
        return self.complete().norms

    @property
    def lens(self) -> Lens | None:
        """Reader of layers; None if the model's layers cannot be read."""
        return self.complete().lens


NO_PROBE = Probe(None, None)


class Activations(NamedTuple):
    """Activations of a forward pass, of all its rows.

    Attributes:
        hidden: the layers' outputs, [B, layers, width]; None without a lens.
        weights: attention weights of each layer that attends, [B, heads, columns]; empty without
            sources.
        values: values of each layer that attends, [B, value heads, tokens, head size], of the
            tokens read in the pass; empty if not requested.
    """

    hidden: torch.Tensor | None
    weights: list[torch.Tensor]
    values: list[torch.Tensor]


class ProbeError(Exception):
    """Failure to read the activations of a forward pass.

    Args:
        cause: the original error.
    """

    def __init__(self, cause: Exception) -> None:
        super().__init__(str(cause))
        self.cause = cause


@contextmanager
def translate_probe_errors() -> Iterator[None]:
    """Translate any error within the context into a ProbeError.

    Raises:
        ProbeError: the code within failed.
    """
    try:
        yield
    except Exception as error:
        raise ProbeError(error) from error


@contextmanager
def collect_activations(probe: Probe, *, values: bool = False) -> Iterator["ActivationBuffer"]:
    """Collect the activations of the forward pass within the context.

    Args:
        probe: the model's probe.
        values: whether to keep the attention values of the tokens read, for models whose cache
            has a layout of its own.
    """
    buffer = ActivationBuffer(values=values)
    with probe_layers(probe.lens.layers if probe.lens else (), buffer.add_output):
        if probe.norms is None:
            yield buffer
        else:
            with probe_attention(buffer.add_attention):
                yield buffer


class ActivationBuffer:
    """Buffer that collects activations during a forward pass, and is complete after it.

    Attributes:
        outputs: each layer's output for the newest token, [B, width].
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
        """The collected activations.

        Raises:
            Exception: the first error during collection.
        """
        if self._error is not None:
            raise self._error
        hidden = torch.stack(self.outputs, 1) if self.outputs else None
        return Activations(hidden, self.weights, self.values)

    def add_output(self, read: Callable[[], torch.Tensor]) -> None:
        """Add a layer's output."""
        self._collect(lambda: self.outputs.append(read()))

    def add_attention(self, read: Callable[[], LayerAttention]) -> None:
        """Add a layer's attention weights and values, and keep no other tensor alive."""
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
            except Exception as error:  # noqa: BLE001 - the pass must go on
                self._error = error
