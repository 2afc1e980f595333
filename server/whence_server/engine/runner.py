"""Forward passes: over one prompt, chunk by chunk, and over all running rows at once."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch

from whence_server.engine.cache import BatchedCache
from whence_server.engine.internals.probe import (
    NO_PROBE,
    Activations,
    Probe,
    probing,
    translate_probe_errors,
)
from whence_server.engine.internals.probed_rows import ProbedPrompt, ProbedRows, ProbeReadout
from whence_server.engine.masks import SPARE_COLUMNS, StepLayout, StepMasks
from whence_server.engine.step_graph import (
    NotCapturableError,
    StepGraph,
    StepInputs,
    make_mask_argument,
)
from whence_server.engine.style import ForwardStyle


@dataclass(slots=True)
class BatchedPrompt:
    """A prompt on its way into the batch.

    Attributes:
        token_ids: the whole prompt.
        cache: what has been read of it.
        num_done: how many tokens that is.
        probed: what is kept of it for rows that are probed; None where they are not.
        readout: then, once it has been read, what its last token drew on, as row 0.
    """

    token_ids: list[int]
    cache: BatchedCache
    num_done: int = 0
    probed: ProbedPrompt | None = None
    readout: ProbeReadout | None = None

    @property
    def num_left(self) -> int:
        """Tokens still to be read."""
        return len(self.token_ids) - self.num_done


class Runner:
    """Runs one model over prompts and over a batch of rows.

    Rows are numbered from 0; `join` appends, `leave` moves the last row into the gap.

    Args:
        model: in eval mode.
        style: how it is called.
        graph: its decoding step, captured; None leaves that to the model's modules.
        probe: looks at the activations of rows that are probed.
    """

    def __init__(
        self,
        model: Any,
        style: ForwardStyle,
        graph: StepGraph | None = None,
        probe: Probe = NO_PROBE,
    ) -> None:
        self._model = model
        self._style = style
        self._graph = graph
        self._probe = probe
        self._probed = ProbedRows(self._probe)
        self._activations: Activations | None = None
        self._probe_error: Exception | None = None
        self._device = model.device
        self._cache = BatchedCache(style.num_layers)
        self._layout: StepLayout | None = None

    @property
    def num_rows(self) -> int:
        """Rows in the batch."""
        return len(self._cache.padding)

    def count_whole(self, num_tokens: int, num_generated: int) -> int:  # noqa: ARG002 - one pass or several, generated before or not, make no difference here
        """Return how many tokens have to be read in one pass where prompts are read whole: all."""
        return num_tokens

    def start(
        self,
        token_ids: list[int],
        num_generated: int = 0,  # noqa: ARG002 - see `count_whole`
        *,
        probed: bool = False,
    ) -> BatchedPrompt:
        """Make ready to read a prompt; see `ModelRunner.start`."""
        cache = BatchedCache(self._style.num_layers, len(token_ids))
        shown = probed and self._probe != NO_PROBE
        kept = ProbedPrompt(self._probe, len(token_ids)) if shown else None
        return BatchedPrompt(token_ids, cache, probed=kept)

    @torch.inference_mode()
    def prefill(self, prompt: BatchedPrompt, num_tokens: int, *, all_logits: bool) -> torch.Tensor:
        """Read the prompt's next tokens.

        Args:
            prompt: changed in place.
            num_tokens: how many tokens to read.
            all_logits: whether every position's logits are wanted, or the last one's alone.

        Returns:
            [num_tokens, V] or [1, V]: what follows each token read.
        """
        chunk = prompt.token_ids[prompt.num_done : prompt.num_done + num_tokens]
        arguments: dict[str, Any] = {}
        if self._style.position_ids:
            stop = prompt.num_done + len(chunk)
            positions = torch.arange(prompt.num_done, stop, device=self._device)
            arguments["position_ids"] = positions.unsqueeze(0)
        if self._style.logits_to_keep and not all_logits:
            arguments["logits_to_keep"] = 1
        input_ids = torch.tensor([chunk], device=self._device)
        if prompt.probed is None:
            logits = self._forward(input_ids, prompt.cache, arguments)  # (1, T or 1, V)
        else:
            logits = self._prefill_probed(prompt, prompt.probed, input_ids, arguments)
        prompt.num_done += len(chunk)
        return logits[0] if all_logits else logits[0, -1:]

    @torch.inference_mode()
    def join(self, prompt: BatchedPrompt, num_rows: int = 1) -> None:
        """Append rows that continue the prompt, all of whose tokens have been read."""
        if prompt.probed is not None:
            rows = range(self.num_rows, self.num_rows + num_rows)
            with self._isolate_probe():
                self._probed.join(rows, prompt.probed)
        self._cache.insert(prompt.cache, num_rows)
        self._layout = None

    @torch.inference_mode()
    def leave(self, row: int) -> None:
        """Drop a row; the last row takes its number."""
        with self._isolate_probe():
            self._probed.leave(row, self.num_rows - 1)
        self._cache.remove(row)
        self._layout = None
        if not self.num_rows:
            self._probe_error = None  # nobody is left to be told

    @torch.inference_mode()
    def copy_rows(self, sources: Sequence[int], destinations: Sequence[int]) -> None:
        """Make each destination a copy of what its source was before; all are equally long."""
        self._cache.copy_rows(sources, destinations)
        with self._isolate_probe():
            self._probed.copy_rows(sources, destinations)

    def synchronize(self) -> None:
        """Wait until what was asked for has been computed, so that times mean something."""
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)

    def clear(self) -> None:
        """Drop all rows, also after a forward pass that failed half-way."""
        self._cache.clear()
        self.stop_probing()
        self._layout = None

    @torch.inference_mode()
    def decode(self, token_ids: list[int]) -> torch.Tensor:
        """Read one more token for every row; `read_probe` then gives the activations' readout.

        Args:
            token_ids: one for each row.

        Returns:
            [rows, V]: what follows each.
        """
        if self._activations is not None:
            raise RuntimeError("the last step's activations have not been read")
        layout = self._update_layout()
        probed = bool(self._probed.rows)
        graph = self._graph
        if graph is not None and layout.masks is not None and (graph.has_probe or not probed):
            logits = self._run_graph(graph, self.take_step_inputs(token_ids), probed=probed)
        else:
            input_ids = torch.tensor(token_ids, device=self._device).unsqueeze(1)
            arguments = self._make_step_arguments(layout)
            if probed:
                with probing(self._probe) as buffer:
                    logits = self._forward(input_ids, self._cache, arguments)[:, -1]
                with self._isolate_probe():
                    self._activations = buffer.activations
            else:
                logits = self._forward(input_ids, self._cache, arguments)[:, -1]
        layout.positions.add_(1)
        return logits

    @torch.inference_mode()
    def read_probe(self) -> ProbeReadout | None:
        """Return the last step's readout of the probed rows; None where none is probed.

        Raises:
            Exception: whatever went wrong since the last call with what only they need.
        """
        activations, self._activations = self._activations, None
        error, self._probe_error = self._probe_error, None
        if error is not None:
            raise error
        if activations is None:
            return None
        newest = [layer.select(2, -1) for layer in self._cache.values]
        return self._probed.read_probe(activations, newest)

    def stop_probing(self) -> None:
        """Probe none of the rows any more, also after `read_probe` failed half-way."""
        self._probed.clear()
        self._activations = self._probe_error = None

    def take_step_inputs(self, token_ids: list[int]) -> StepInputs:
        """Return what the next step reads, to capture it; the step counts as taken.

        Raises:
            NotCapturableError: the model makes its masks within its forward pass.
        """
        layout = self._update_layout()
        if layout.masks is None:
            raise NotCapturableError("its masks are made within the forward pass")
        columns = self._cache.add_columns()
        return StepInputs(
            torch.tensor(token_ids, device=self._device).unsqueeze(1),
            layout.positions,
            layout.masks.select(self._cache.width),
            columns,
        )

    @contextmanager
    def _isolate_probe(self) -> Iterator[None]:
        """Isolate what only probed rows need: the others go on whether or not it can be done.

        No row is probed any more if it cannot, and `read_probe` says why.
        """
        try:
            yield
        except Exception as error:  # noqa: BLE001 - raised by `read_probe`
            self.stop_probing()
            self._probe_error = error

    def _run_graph(self, graph: StepGraph, inputs: StepInputs, *, probed: bool) -> torch.Tensor:
        """Run a captured step; if it fails only with what it shows, it is taken again without."""
        if probed:
            with self._isolate_probe():
                logits, self._activations = graph.run_probed(inputs)
                return logits
        # All that a failed one has changed are its own columns, which are written once more.
        return graph.run(inputs)

    def _make_step_arguments(self, layout: StepLayout) -> dict[str, Any]:
        arguments: dict[str, Any] = {}
        width = self._cache.width + 1
        if self._style.position_ids:
            arguments["position_ids"] = layout.positions
        if layout.masks is not None:
            masks = layout.masks.select(width)
            arguments["attention_mask"] = make_mask_argument(self._style, masks)
        elif layout.visible is not None:
            arguments["attention_mask"] = layout.visible.narrow(-1, 0, width)
        return arguments

    def _prefill_probed(
        self,
        prompt: BatchedPrompt,
        probed: ProbedPrompt,
        input_ids: torch.Tensor,
        arguments: dict[str, Any],
    ) -> torch.Tensor:
        """Read the prompt's next tokens; only the pass over its last one is probed."""
        num_tokens = input_ids.shape[1]
        buffer = None
        if num_tokens < prompt.num_left:
            logits = self._forward(input_ids, prompt.cache, arguments)
        else:
            with probing(self._probe) as buffer:
                logits = self._forward(input_ids, prompt.cache, arguments)
        values = [layer[:, :, -num_tokens:] for layer in prompt.cache.values]
        with translate_probe_errors():
            probed.read(prompt.num_done, values)
            if buffer is not None:
                prompt.readout = probed.read_probe(buffer.activations)
        return logits

    def _forward(
        self, input_ids: torch.Tensor, cache: BatchedCache, arguments: dict[str, Any]
    ) -> torch.Tensor:
        output = self._model(
            input_ids=input_ids, past_key_values=cache, use_cache=True, **arguments
        )
        return output.logits

    def _update_layout(self) -> StepLayout:
        width = self._cache.width + 1
        layout = self._layout
        if layout is None or not layout.reaches(width):
            self._layout = layout = self._make_layout(width)
        return layout

    def _make_layout(self, width: int) -> StepLayout:
        padding = self._cache.padding
        positions = torch.tensor(self._cache.lengths, device=self._device).unsqueeze(1)
        if self._style.ready_mask:
            windows = [window for _, window in self._style.windows]
            masks = StepMasks(padding, width, windows, self._model.dtype, self._device)
            return StepLayout(positions, masks=masks)
        if not any(padding):
            # Kernels are faster without.
            return StepLayout(positions)
        columns = torch.arange(width + SPARE_COLUMNS, device=self._device)
        visible = columns >= torch.tensor(padding, device=self._device).unsqueeze(1)  # (B, columns)
        return StepLayout(positions, visible=visible.long())
