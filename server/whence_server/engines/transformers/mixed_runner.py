"""Runner whose rows have different adapters and decode in one forward pass.

A step whose rows all have the same adapter runs the modules of that adapter, as if it were served
alone. Only a step with several adapters runs the modules in which each row chooses. The rows have
one key-value cache in both cases.
"""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch

from whence_server.engines.transformers.internals.joined_readout import JoinedReadout
from whence_server.engines.transformers.internals.probe import Activations, Probe
from whence_server.engines.transformers.internals.probed_rows import (
    ProbedPrompt,
    ProbedRows,
    Readout,
)
from whence_server.engines.transformers.prefix_cache import PrefixCache
from whence_server.engines.transformers.row_lora import RowIndex
from whence_server.engines.transformers.runner import BatchedPrompt, Runner
from whence_server.engines.transformers.step_graph import StepGraph
from whence_server.engines.transformers.style import ForwardStyle


class Way(NamedTuple):
    """A way to run a pass.

    Attributes:
        model: the modules.
        graph: their captured decoding step; None if it cannot be captured.
        probe: reads their activations.
    """

    model: Any
    graph: StepGraph | None
    probe: Probe


class MixedRunner(Runner):
    """Runner over rows that have different adapters; see `Runner`.

    Args:
        style: call style of the model, with any adapter.
        ways: way to run a pass with each adapter alone, by its name; that of "" has none.
        mixed: way to run a pass over rows with different adapters.
        index: adapters of the rows of a mixed pass, by their places in `ways`.
        prefixes: keeps prefixes for later prompts; None keeps none.
    """

    def __init__(
        self,
        style: ForwardStyle,
        ways: Mapping[str, Way],
        mixed: Way,
        index: RowIndex,
        prefixes: PrefixCache | None = None,
    ) -> None:
        own = ways[""]
        super().__init__(own.model, style, own.graph, own.probe, prefixes=prefixes)
        self._ways = dict(ways)
        self._mixed = mixed
        self._index = index
        self._numbers = {name: number for number, name in enumerate(ways)}
        self._adapters: list[str] = []
        """The adapter of each row."""
        self._probed: _ProbedByAdapter = _ProbedByAdapter(self._ways)

    def start(
        self,
        token_ids: list[int],
        num_generated: int = 0,
        *,
        probed: bool = False,
        adapter: str = "",
    ) -> BatchedPrompt:
        """Return a prompt, ready to be read; see `ModelRunner.start`."""
        self._use(self._ways[adapter])
        return super().start(token_ids, num_generated, probed=probed, adapter=adapter)

    def prefill(self, prompt: BatchedPrompt, num_tokens: int, *, all_logits: bool) -> torch.Tensor:
        """Read the prompt's next tokens with its adapter; see `ModelRunner.prefill`."""
        self._use(self._ways[prompt.adapter])
        return super().prefill(prompt, num_tokens, all_logits=all_logits)

    def join(self, prompt: BatchedPrompt, num_rows: int = 1) -> None:
        """Append rows that continue a completely read prompt."""
        self._probed.joining = prompt.adapter
        super().join(prompt, num_rows)
        self._adapters += [prompt.adapter] * num_rows

    def leave(self, row: int) -> None:
        """Drop a row; the last row takes its number."""
        super().leave(row)
        self._adapters[row] = self._adapters[-1]
        self._adapters.pop()

    def clear(self) -> None:
        """Drop all rows, also after a failed forward pass."""
        super().clear()
        self._adapters.clear()

    def decode(self, token_ids: list[int]) -> torch.Tensor:
        """Read one more token for every row; see `Runner.decode`."""
        chosen = set(self._adapters)
        if len(chosen) == 1:
            self._use(self._ways[chosen.pop()])
        else:
            self._index.set([self._numbers[adapter] for adapter in self._adapters])
            self._use(self._mixed)
        return super().decode(token_ids)

    def _use(self, way: Way) -> None:
        self._model, self._graph, self._probe = way


class _ProbedByAdapter(ProbedRows):
    """The probed rows of a batch, each with the probe of its adapter; see `ProbedRows`.

    Args:
        ways: ways to run a pass, by the names of adapters.

    Attributes:
        joining: the adapter of the rows that join next.
    """

    def __init__(self, ways: Mapping[str, Way]) -> None:
        super().__init__(ways[""].probe)
        self._parts = {name: ProbedRows(way.probe) for name, way in ways.items()}
        self.joining = ""

    @property
    def rows(self) -> list[int]:
        """Numbers of the probed rows."""
        return [row for part in self._parts.values() for row in part.rows]

    def join(self, rows: Sequence[int], prompt: ProbedPrompt) -> None:
        """Add rows that continue one prompt."""
        self._parts[self.joining].join(rows, prompt)

    def leave(self, row: int, last: int) -> None:
        """Drop a row, if it is probed; the batch's last row gets its number."""
        for part in self._parts.values():
            part.leave(row, last)

    def copy_rows(self, sources: Sequence[int], destinations: Sequence[int]) -> None:
        """Copy sources to destinations, as they were before the call; all are probed, or none."""
        for part in self._parts.values():
            part.copy_rows(sources, destinations)

    def clear(self) -> None:
        """Drop all rows."""
        for part in self._parts.values():
            part.clear()

    def read_probe(
        self, activations: Activations, newest_values: Sequence[torch.Tensor]
    ) -> Readout:
        """Add a step's new column, and return the readout of the probed rows.

        Args:
            activations: activations of all rows.
            newest_values: each layer's values in the step's column: [B, value heads, head size].
        """
        probed = [part for part in self._parts.values() if part.rows]
        readouts = [part.read_probe(activations, newest_values) for part in probed]
        if len(readouts) == 1:
            return readouts[0]
        return JoinedReadout([(row, readout, row) for readout in readouts for row in readout.rows])
