"""One decoding step of a model as a TorchScript graph: the same operations without Python.

For a small model, Python's overhead in transformers' modules takes about as long as the
computation. The graph is captured once from the modules, and runs the same operations in the same
order, so that its logits are bit-identical, which `step_capture` checks. If a step cannot be
captured, the modules run instead.
"""

import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch.jit import optimized_execution  # type: ignore[attr-defined]
from torch.jit._trace import TracerWarning
from transformers.cache_utils import Cache, CacheLayerMixin

from whence_server.engines.transformers.internals.probe import (
    NO_PROBE,
    Activations,
    Probe,
    collect_activations,
)
from whence_server.engines.transformers.packed_linears import (
    PackedWeights,
    pack,
    use_packed_weights,
)
from whence_server.engines.transformers.style import ForwardStyle
from whence_server.engines.transformers.torchscript import trace

KNOWN_BRANCHES = "sdpa_attention.py"
"""The only file that may branch on a tensor's shape during capture: it reads the number of tokens,
which is always 1 in a step. A later step might go another way at any other branch."""


class NotCapturableError(Exception):
    """The model's forward pass branches on its inputs, or cannot be captured."""


class StepInputs(NamedTuple):
    """Inputs of a step.

    Attributes:
        input_ids: int64 [rows, 1].
        positions: int64 [rows, 1]; unused by models that number positions themselves.
        masks: additive, [rows, 1, 1, width] for each kind of layer, in the style's order.
        columns: keys and values of each layer in turn, [rows, heads, width, head size]; the step
            writes the last column.
    """

    input_ids: torch.Tensor
    positions: torch.Tensor
    masks: list[torch.Tensor]
    columns: list[torch.Tensor]


class StepGraph:
    """A captured step, with and without a probe; made by `capture`.

    Args:
        graph: returns the logits.
        capture_probed: captures the step that returns logits and activations, when it is first
            needed; None if the model has no probe.
        probe: the probe of that step.
        packed: whether its linear layers multiply with packed weights.

    Attributes:
        packed: as given.
    """

    def __init__(
        self, graph: Any, capture_probed: Callable[[], Any] | None, probe: Probe, *, packed: bool
    ) -> None:
        self.packed = packed
        self._graph = graph
        self._capture_probed = capture_probed
        self._probed_graph: Any | None = None
        self._probe = probe

    @classmethod
    def capture(
        cls, model: Any, style: ForwardStyle, inputs: StepInputs, probe: Probe, *, packed: bool
    ) -> "StepGraph":
        """Capture the step of a model in eval mode on these inputs.

        The step with the probe is captured by `complete`, or when it is first run.

        Args:
            model: the model.
            style: its call style.
            inputs: inputs of a step.
            probe: its probe.
            packed: whether linear layers multiply with packed weights.

        Raises:
            NotCapturableError: capturing failed, or the graph might not be valid for all steps.
        """
        weights = pack(model) if packed else None
        more = () if weights is None else (weights.packed,)

        def trace_step(probe: Probe | None) -> Any:
            graph = _trace(_Step(model, style, probe, weights), (*inputs, *more))
            return graph if weights is None else lambda *given: graph(*given, weights.packed)

        graph = trace_step(None)
        if probe == NO_PROBE:
            return cls(graph, None, probe, packed=packed)
        return cls(graph, lambda: trace_step(probe), probe, packed=packed)

    @property
    def has_probe(self) -> bool:
        """True if the graph can be run with a probe."""
        return self._capture_probed is not None

    def complete(self) -> None:
        """Capture the step with the probe, if there is one and it is not captured yet.

        Raises:
            NotCapturableError: as for `capture`.
        """
        if self._probed_graph is None and self._capture_probed is not None:
            with torch.inference_mode():
                self._probed_graph = self._capture_probed()

    def agrees(self, model: Any, style: ForwardStyle, inputs: StepInputs, bound: float) -> bool:
        """Return whether a step without the probe has the modules' logits; see `are_alike`."""
        return are_alike(self.run(inputs), _Step(model, style, None)(*inputs), bound)

    def drop_probe(self) -> "StepGraph":
        """Return the graph without its probe."""
        return StepGraph(self._graph, None, self._probe, packed=self.packed)

    def run(self, inputs: StepInputs) -> torch.Tensor:
        """Read one token for every row; return logits [rows, V]."""
        # With optimisation a product and its bias would be two operations, which round
        # differently. Without it the graph is not slower.
        with optimized_execution(False):
            logits: torch.Tensor = self._graph(*inputs)
        return logits

    def run_probed(self, inputs: StepInputs) -> tuple[torch.Tensor, Activations]:
        """Run a step with the probe; return bit-identical logits, and the activations.

        Raises:
            RuntimeError: the graph has no probe.
        """
        self.complete()
        if self._probed_graph is None:
            raise RuntimeError("run_probed() needs a graph that was captured with a probe")
        with optimized_execution(False):
            logits, *activations = self._probed_graph(*inputs)
        hidden = activations.pop(0) if self._probe.lens is not None else None
        return logits, Activations(hidden, activations, [])


def _trace(step: "_Step", inputs: tuple[Any, ...]) -> Any:
    with warnings.catch_warnings(record=True) as caught, _ignore_padding_ids(step):
        warnings.simplefilter("always")
        try:
            graph = trace(step, inputs)
        except Exception as error:
            raise NotCapturableError(f"{type(error).__name__}: {error}") from error
    for warning in caught:
        decides = issubclass(warning.category, TracerWarning)
        if decides and not warning.filename.endswith(KNOWN_BRANCHES):
            raise NotCapturableError(f"{warning.filename}:{warning.lineno}: {warning.message}")
    return graph


@contextmanager
def _ignore_padding_ids(module: torch.nn.Module) -> Iterator[None]:
    """Take the padding ids from the embeddings within the context.

    They concern gradients only, but torch compares them with the shape of the embedding, which
    would be a branch.
    """
    embeddings = [part for part in module.modules() if isinstance(part, torch.nn.Embedding)]
    padding_ids = [embedding.padding_idx for embedding in embeddings]
    try:
        for embedding in embeddings:
            embedding.padding_idx = None
        yield
    finally:
        for embedding, padding_id in zip(embeddings, padding_ids, strict=True):
            embedding.padding_idx = padding_id


class _Step(torch.nn.Module):
    """A step as a module that can be captured: everything that changes is an argument.

    Its output is the logits, followed by the layers' outputs and the attention weights if there is
    a probe.
    """

    def __init__(
        self,
        model: Any,
        style: ForwardStyle,
        probe: Probe | None,
        weights: PackedWeights | None = None,
    ) -> None:
        super().__init__()
        self._weights = weights
        self._model = model
        self._style = style
        self._probe = probe

    def forward(
        self,
        input_ids: torch.Tensor,
        positions: torch.Tensor,
        masks: list[torch.Tensor],
        columns: list[torch.Tensor],
        packed: Sequence[torch.Tensor] = (),
    ) -> torch.Tensor | tuple[torch.Tensor, ...]:
        if self._weights is None:
            return self._run(input_ids, positions, masks, columns)
        with use_packed_weights(self._weights.layers, packed):
            return self._run(input_ids, positions, masks, columns)

    def _run(
        self,
        input_ids: torch.Tensor,
        positions: torch.Tensor,
        masks: list[torch.Tensor],
        columns: list[torch.Tensor],
    ) -> torch.Tensor | tuple[torch.Tensor, ...]:
        if self._probe is None:
            return self._run_model(input_ids, positions, masks, columns)
        with collect_activations(self._probe) as buffer:
            logits = self._run_model(input_ids, positions, masks, columns)
        activations = buffer.activations
        hidden = () if activations.hidden is None else (activations.hidden,)
        return (logits, *hidden, *activations.weights)

    def _run_model(
        self,
        input_ids: torch.Tensor,
        positions: torch.Tensor,
        masks: list[torch.Tensor],
        columns: list[torch.Tensor],
    ) -> torch.Tensor:
        pairs = zip(columns[::2], columns[1::2], strict=True)
        arguments: dict[str, Any] = {"attention_mask": make_mask_argument(self._style, masks)}
        if self._style.position_ids:
            arguments["position_ids"] = positions
        output = self._model(
            input_ids=input_ids,
            past_key_values=Cache(layers=[_Columns(keys, values) for keys, values in pairs]),
            use_cache=True,
            **arguments,
        )
        logits: torch.Tensor = output.logits[:, -1]
        return logits


class _Columns(CacheLayerMixin):
    """One layer's keys and values, whose last column is for the step's token."""

    is_sliding = False

    def __init__(self, keys: torch.Tensor, values: torch.Tensor) -> None:
        super().__init__()
        self.keys, self.values = keys, values
        self.is_initialized = True

    def lazy_initialization(self, key_states: torch.Tensor, value_states: torch.Tensor) -> None:
        """Do nothing, as the buffers are given."""

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *_args: Any, **_kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        self.keys.select(2, -1).copy_(key_states.select(2, 0))
        self.values.select(2, -1).copy_(value_states.select(2, 0))
        return self.keys, self.values

    def get_seq_length(self) -> int:
        return self.keys.shape[2] - 1

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        return self.keys.shape[2] - 1 + query_length, 0

    def get_max_length(self) -> int:
        return -1


def are_alike(one: torch.Tensor, other: torch.Tensor, bound: float) -> bool:
    """Return whether tensors differ at most by the bound, relative to the largest; NaN equals NaN.

    With a bound of 0 they are the same to the bit.
    """
    largest = float(other.nan_to_num().abs().max()) if bound else 0.0
    return torch.allclose(one, other, rtol=0, atol=bound * largest, equal_nan=True)


def make_mask_argument(
    style: ForwardStyle, masks: Sequence[torch.Tensor]
) -> torch.Tensor | dict[str, torch.Tensor]:
    """Return the masks as an argument of a forward pass: a tensor, or a dict by kind of layer."""
    if len(masks) == 1:
        return masks[0]
    return {kind: mask for (kind, _), mask in zip(style.windows, masks, strict=True)}
