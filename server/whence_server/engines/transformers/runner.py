"""Runner of forward passes over one prompt, in chunks, and over all running rows at once."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch

from whence_server.engines.transformers.cache import BatchedCache
from whence_server.engines.transformers.internals.probe import (
    NO_PROBE,
    Activations,
    Probe,
    collect_activations,
    translate_probe_errors,
)
from whence_server.engines.transformers.internals.probed_rows import (
    ProbedPrompt,
    ProbedRows,
    Readout,
)
from whence_server.engines.transformers.masks import SPARE_COLUMNS, StepLayout, StepMasks
from whence_server.engines.transformers.prefix_cache import PrefixCache
from whence_server.engines.transformers.step_graph import (
    NotCapturableError,
    StepGraph,
    StepInputs,
    make_mask_argument,
)
from whence_server.engines.transformers.style import ForwardStyle

NORMS_TOGETHER = 512
"""Cached positions whose norms are computed at once for probed rows; bounds the memory."""


@dataclass(slots=True)
class BatchedPrompt:
    """A prompt in prefill.

    Attributes:
        token_ids: the whole prompt.
        cache: keys and values of the tokens read.
        num_done: number of tokens read.
        num_cached: number of tokens among them that were found in the prefix cache.
        probed: state for probed rows; None if the rows will not be probed.
        readout: readout of the last token, as row 0; None before the end, or if not probed.
        adapter: name of the adapter with which it is read; "" for none.
    """

    token_ids: list[int]
    cache: BatchedCache
    num_done: int = 0
    num_cached: int = 0
    probed: ProbedPrompt | None = None
    readout: Readout | None = None
    adapter: str = ""

    @property
    def num_left(self) -> int:
        """Number of tokens still to read."""
        return len(self.token_ids) - self.num_done


class Runner:
    """Runner of one model over prompts and over a batch of rows.

    Rows are numbered from 0; `join` appends, `leave` moves the last row into the gap.

    Args:
        model: in eval mode.
        style: call style of the model.
        graph: the captured decoding step; None runs the model's modules instead.
        probe: reads the activations of probed rows.
        prefixes: keeps prefixes for later prompts; None keeps none. Runners may share it.
    """

    def __init__(
        self,
        model: Any,
        style: ForwardStyle,
        graph: StepGraph | None = None,
        probe: Probe = NO_PROBE,
        *,
        prefixes: PrefixCache | None = None,
    ) -> None:
        self._model = model
        self._style = style
        self._graph = graph
        self._probe = probe
        self._probed = ProbedRows(self._probe)
        self._prefixes = prefixes
        self._activations: Activations | None = None
        self._probe_error: Exception | None = None
        self._device = model.device
        self._cache = BatchedCache(style.num_layers)
        self._layout: StepLayout | None = None

    @property
    def num_rows(self) -> int:
        """Number of rows in the batch."""
        return len(self._cache.padding)

    @property
    def num_prefix_tokens(self) -> int:
        """Number of positions in the prefix cache."""
        return 0 if self._prefixes is None else self._prefixes.num_tokens

    def count_whole(self, num_tokens: int, num_generated: int) -> int:  # noqa: ARG002 - generated tokens make no difference here
        """Return the number of tokens to read in one pass if prompts are read whole: all."""
        return num_tokens

    def start(
        self,
        token_ids: list[int],
        num_generated: int = 0,  # noqa: ARG002 - see `count_whole`
        *,
        probed: bool = False,
        adapter: str = "",
    ) -> BatchedPrompt:
        """Return a prompt, ready to be read; see `ModelRunner.start`."""
        cache = BatchedCache(self._style.num_layers, len(token_ids))
        shown = probed and self._probe != NO_PROBE
        kept = ProbedPrompt(self._probe, len(token_ids)) if shown else None
        return BatchedPrompt(token_ids, cache, probed=kept, adapter=adapter)

    @torch.inference_mode()
    def prefill(self, prompt: BatchedPrompt, num_tokens: int, *, all_logits: bool) -> torch.Tensor:
        """Read the prompt's next tokens.

        Args:
            prompt: changed in place.
            num_tokens: number of tokens to read.
            all_logits: whether to return the logits of every position, or of the last one only.

        Returns:
            [num_tokens, V] or [1, V]: the logits after each token read.
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
    def reuse_prefix(self, prompt: BatchedPrompt, namespace: str) -> None:
        """Take over the longest cached prefix of a prompt; see `ModelRunner.reuse_prefix`."""
        if self._prefixes is None:
            return
        num_tokens = self._prefixes.read(namespace, prompt.token_ids, prompt.cache)
        if num_tokens and prompt.probed is not None:
            values = prompt.cache.values
            with translate_probe_errors():
                for begin in range(prompt.num_done, prompt.num_done + num_tokens, NORMS_TOGETHER):
                    end = min(begin + NORMS_TOGETHER, prompt.num_done + num_tokens)
                    prompt.probed.read(begin, [layer[:, :, begin:end] for layer in values])
        prompt.num_done += num_tokens
        prompt.num_cached += num_tokens

    @torch.inference_mode()
    def keep_prefix(self, prompt: BatchedPrompt, namespace: str) -> None:
        """Keep the tokens that are read of a prompt for later prompts."""
        if self._prefixes is not None:
            token_ids = prompt.token_ids[: prompt.num_done]
            self._prefixes.write(namespace, token_ids, prompt.cache.list_columns())

    @torch.inference_mode()
    def keep_row(self, row: int, token_ids: Sequence[int], namespace: str) -> None:
        """Keep a row for later prompts; see `ModelRunner.keep_row`."""
        if self._prefixes is not None:
            length = self._cache.lengths[row]
            self._prefixes.write(namespace, token_ids[:length], self._cache.list_columns(row))

    @torch.inference_mode()
    def join(self, prompt: BatchedPrompt, num_rows: int = 1) -> None:
        """Append rows that continue a completely read prompt."""
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
            self._probe_error = None  # no probed row is left

    @torch.inference_mode()
    def copy_rows(self, sources: Sequence[int], destinations: Sequence[int]) -> None:
        """Copy rows to others of the same length, from their state before the call."""
        self._cache.copy_rows(sources, destinations)
        with self._isolate_probe():
            self._probed.copy_rows(sources, destinations)

    @property
    def is_on_cpu(self) -> bool:
        """True if the model computes on the CPU."""
        return bool(self._device.type == "cpu")

    def synchronize(self) -> None:
        """Wait until the device has finished all work, so that times can be measured."""
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)

    def release(self) -> None:
        """Free the buffers of a runner without rows."""
        self._cache = BatchedCache(self._style.num_layers)

    def clear(self) -> None:
        """Drop all rows, also after a failed forward pass."""
        self._cache.clear()
        self.stop_probing()
        self._layout = None

    @torch.inference_mode()
    def decode(self, token_ids: list[int]) -> torch.Tensor:
        """Read one more token for every row; `read_probe` then returns the readout.

        Args:
            token_ids: one for each row.

        Returns:
            [rows, V]: the logits after each token.
        """
        if self._activations is not None:
            raise RuntimeError("decode() needs read_probe() after the last step of probed rows")
        layout = self._update_layout()
        probed = bool(self._probed.rows)
        graph = self._graph
        if graph is not None and layout.masks is not None and (graph.has_probe or not probed):
            logits = self._run_graph(graph, self.take_step_inputs(token_ids), probed=probed)
        else:
            input_ids = torch.tensor(token_ids, device=self._device).unsqueeze(1)
            arguments = self._make_step_arguments(layout)
            if probed:
                with collect_activations(self._probe) as buffer:
                    logits = self._forward(input_ids, self._cache, arguments)[:, -1]
                with self._isolate_probe():
                    self._activations = buffer.activations
            else:
                logits = self._forward(input_ids, self._cache, arguments)[:, -1]
        layout.positions.add_(1)
        return logits

    @torch.inference_mode()
    def read_probe(self) -> Readout | None:
        """Return the last step's readout of the probed rows; None if no row is probed.

        Raises:
            Exception: the first failure since the last call in code for probed rows.
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
        """Stop probing all rows, also after a failed `read_probe`."""
        self._probed.clear()
        self._activations = self._probe_error = None

    def take_step_inputs(self, token_ids: list[int]) -> StepInputs:
        """Return the inputs of the next step, for a graph; the step counts as taken.

        Raises:
            NotCapturableError: the model builds its masks in its forward pass.
        """
        layout = self._update_layout()
        if layout.masks is None:
            raise NotCapturableError("it builds its masks in the forward pass")
        columns = self._cache.add_columns()
        return StepInputs(
            torch.tensor(token_ids, device=self._device).unsqueeze(1),
            layout.positions,
            layout.masks.select(self._cache.width),
            columns,
        )

    @contextmanager
    def _isolate_probe(self) -> Iterator[None]:
        """Isolate code for probed rows, so that its failure does not affect other rows.

        After a failure no row is probed any more, and `read_probe` raises the error.
        """
        try:
            yield
        except Exception as error:  # noqa: BLE001 - raised by `read_probe`
            self.stop_probing()
            self._probe_error = error

    def _run_graph(self, graph: StepGraph, inputs: StepInputs, *, probed: bool) -> torch.Tensor:
        """Run a captured step; if it fails with the probe, run it without."""
        if probed:
            with self._isolate_probe():
                logits, self._activations = graph.run_probed(inputs)
                return logits
        # A failed run has changed only its own columns, which are written again.
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
        """Read the prompt's next tokens; only the pass over its last token is probed."""
        num_tokens = input_ids.shape[1]
        buffer = None
        if num_tokens < prompt.num_left:
            logits = self._forward(input_ids, prompt.cache, arguments)
        else:
            with collect_activations(self._probe) as buffer:
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
            # Attention kernels are faster without a mask.
            return StepLayout(positions)
        columns = torch.arange(width + SPARE_COLUMNS, device=self._device)
        visible = columns >= torch.tensor(padding, device=self._device).unsqueeze(1)  # (B, columns)
        return StepLayout(positions, visible=visible.long())
