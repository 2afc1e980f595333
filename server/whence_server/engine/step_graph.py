"""One decoding step of a model as a TorchScript graph: the same operations without the Python.

transformers' modules take about as long to say what is to be computed as a small model takes to
compute it. The graph is captured once from the modules themselves, and runs the same operations
in the same order: its logits are the modules' to the bit, which `probe` checks before it is
used. Where it cannot be captured, the modules do the work.
"""

import warnings
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch.jit import optimized_execution  # type: ignore[attr-defined]
from torch.jit._trace import TracerWarning
from transformers.cache_utils import Cache, CacheLayerMixin

from whence_server.engine.internals.probe import NO_PROBE, Activations, Probe, probing
from whence_server.engine.style import ForwardStyle
from whence_server.engine.torchscript import trace

KNOWN_BRANCHES = "sdpa_attention.py"
"""The only place that may decide by a tensor's shape: it asks how many tokens are read, and a
step always reads one. Whatever else decides while it is captured might decide otherwise later."""


class NotCapturableError(Exception):
    """The model's forward pass takes decisions of its own, or resists being captured."""


class StepInputs(NamedTuple):
    """What a step reads.

    Attributes:
        input_ids: int64 [rows, 1].
        positions: int64 [rows, 1]; a model that numbers its tokens itself ignores them.
        masks: additive, [rows, 1, 1, width] for each kind of layer, in the style's order.
        columns: each layer's keys and then values, [rows, heads, width, head size], whose last
            column is written to.
    """

    input_ids: torch.Tensor
    positions: torch.Tensor
    masks: list[torch.Tensor]
    columns: list[torch.Tensor]


class StepGraph:
    """A captured step, and the same with what it shows of itself. Make one with `capture`.

    Args:
        graph: gives the logits.
        probed: gives what is seen as well; None where there is none.
        probe: what that is.
    """

    def __init__(self, graph: Any, probed: Any | None, probe: Probe) -> None:
        self._graph = graph
        self._probed_graph = probed
        self._probe = probe

    @classmethod
    def capture(
        cls, model: Any, style: ForwardStyle, inputs: StepInputs, probe: Probe
    ) -> "StepGraph":
        """Record the step that a model in eval mode takes on these inputs.

        It is captured a second time where the model shows something.

        Raises:
            NotCapturableError: it cannot be, or what was captured might not hold for all steps.
        """
        graph = _trace(_Step(model, style, None), inputs)
        shows = probe != NO_PROBE
        return cls(graph, _trace(_Step(model, style, probe), inputs) if shows else None, probe)

    @property
    def has_probe(self) -> bool:
        """Whether it can show what it does."""
        return self._probed_graph is not None

    def drop_probe(self) -> "StepGraph":
        """The same without what it shows of itself."""
        return StepGraph(self._graph, None, self._probe)

    def run(self, inputs: StepInputs) -> torch.Tensor:
        """Read one token for every row; gives [rows, V]."""
        # Optimised, the graph would round otherwise: a product and the bias that is added to it
        # would be two operations. Nothing is slower for it.
        with optimized_execution(False):
            logits: torch.Tensor = self._graph(*inputs)
        return logits

    def run_probed(self, inputs: StepInputs) -> tuple[torch.Tensor, Activations]:
        """The same, and what the step shows: the logits are the same to the bit.

        Raises:
            RuntimeError: it was captured without a probe.
        """
        if self._probed_graph is None:
            raise RuntimeError("it has not been captured with a probe")
        with optimized_execution(False):
            logits, *activations = self._probed_graph(*inputs)
        hidden = activations.pop(0) if self._probe.lens is not None else None
        return logits, Activations(hidden, activations, [])


def _trace(step: "_Step", inputs: StepInputs) -> Any:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            graph = trace(step, tuple(inputs))
        except Exception as error:
            raise NotCapturableError(f"{type(error).__name__}: {error}") from error
    for warning in caught:
        decides = issubclass(warning.category, TracerWarning)
        if decides and not warning.filename.endswith(KNOWN_BRANCHES):
            raise NotCapturableError(f"{warning.filename}:{warning.lineno}: {warning.message}")
    return graph


class _Step(torch.nn.Module):
    """The step in a form that can be captured: everything that changes is an argument.

    Gives the logits, and where `probe` says what can be seen the layers' outputs and their
    attention weights after them.
    """

    def __init__(self, model: Any, style: ForwardStyle, probe: Probe | None) -> None:
        super().__init__()
        self._model = model
        self._style = style
        self._probe = probe

    def forward(
        self,
        input_ids: torch.Tensor,
        positions: torch.Tensor,
        masks: list[torch.Tensor],
        columns: list[torch.Tensor],
    ) -> torch.Tensor | tuple[torch.Tensor, ...]:
        if self._probe is None:
            return self._run_model(input_ids, positions, masks, columns)
        with probing(self._probe) as buffer:
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
    """One layer's keys and values with room for the step's own column, the last."""

    is_sliding = False

    def __init__(self, keys: torch.Tensor, values: torch.Tensor) -> None:
        super().__init__()
        self.keys, self.values = keys, values
        self.is_initialized = True

    def lazy_initialization(self, key_states: torch.Tensor, value_states: torch.Tensor) -> None:
        """Nothing to do: the columns are given."""

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


def make_mask_argument(
    style: ForwardStyle, masks: Sequence[torch.Tensor]
) -> torch.Tensor | dict[str, torch.Tensor]:
    """The masks as a forward pass takes them: one by itself, several by the kind of layer."""
    if len(masks) == 1:
        return masks[0]
    return {kind: mask for (kind, _), mask in zip(style.windows, masks, strict=True)}
