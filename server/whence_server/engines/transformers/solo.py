"""Runner of forward passes over one sequence at a time, for models that cannot be batched.

Each row holds the state that transformers' `generate` would hold for it, in the model's own form:
keys and values, a recurrent state, or both. The model's own hooks carry the state from pass to
pass, so that a row sees the same calls with the same arguments as in `generate`. Each row also has
its own state of rotary modules that depend on length.
"""

import copy
import inspect
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from transformers import GenerationConfig

from whence_server.engines.transformers import frequencies
from whence_server.engines.transformers.frequencies import Frequencies, SequenceState
from whence_server.engines.transformers.internals.probe import (
    NO_PROBE,
    Probe,
    collect_activations,
    translate_probe_errors,
)
from whence_server.engines.transformers.internals.probed_rows import ProbeReadout
from whence_server.engines.transformers.internals.probed_sequence import ProbedSequence
from whence_server.engines.transformers.pass_dependence import find_pass_dependence


@dataclass(slots=True)
class SoloPrompt:
    """A prompt in prefill.

    Attributes:
        token_ids: the whole prompt.
        num_whole: number of its first tokens that are read in one pass.
        state: state after the tokens read; None before the first pass.
        num_done: number of tokens read: 0, or at least `num_whole`.
        num_cached: 0, as there is no prefix cache.
        probed: True if the rows that continue the prompt are probed.
        readout: readout of the last token, as row 0; None before the end, or if not probed.
    """

    token_ids: list[int]
    num_whole: int
    state: "_State | None" = None
    num_done: int = 0
    num_cached: int = 0
    probed: bool = False
    readout: ProbeReadout | None = None

    @property
    def num_left(self) -> int:
        """Number of tokens still to read."""
        return len(self.token_ids) - self.num_done


@dataclass(slots=True)
class _State:
    """State of one sequence that `generate` carries from pass to pass.

    Attributes:
        input_ids: [1, tokens], all tokens read; replaced and never changed in place.
        arguments: arguments of the next pass, including the cache or recurrent state.
        rotary: the sequence's state of the rotary modules.
        probed: state of the probe; None if the sequence is not probed.
    """

    input_ids: torch.Tensor
    arguments: dict[str, Any]
    rotary: SequenceState
    probed: ProbedSequence | None

    def copy(self) -> "_State":
        """Return a copy that shares no memory to which forward passes write."""
        probed = self.probed and self.probed.copy()
        return replace(
            self,
            arguments=copy.deepcopy(self.arguments),
            rotary=self.rotary.copy(),
            probed=probed,
        )


class SoloRunner:
    """Runner of one model over prompts and rows, with a forward pass for each.

    Rows are numbered from 0; `join` appends, `leave` moves the last row into the gap. A prompt is
    read whole, because some recurrent layers silently drop their state at a second chunk.

    Args:
        model: in eval mode.
        probe: reads the activations of probed rows.
        rotary: the model's rotary modules that depend on length; found here if None.
        dependence: reason why results depend on the division into passes, "" if they do not; found
            here if None.
    """

    def __init__(
        self,
        model: Any,
        probe: Probe = NO_PROBE,
        rotary: Frequencies | None = None,
        dependence: str | None = None,
    ) -> None:
        self._rotary = frequencies.find(model) if rotary is None else rotary
        dependence = find_pass_dependence(model) if dependence is None else dependence
        self._passes_matter = bool(self._rotary or dependence)
        self._model = model
        self._probe = probe
        self._device = model.device
        self._parameters = inspect.signature(model.forward).parameters
        self._rows: list[_State] = []

    @property
    def num_rows(self) -> int:
        """Number of sequences that decode."""
        return len(self._rows)

    @property
    def num_prefix_tokens(self) -> int:
        """Number of positions in the prefix cache, which these models do not have."""
        return 0

    def count_whole(self, num_tokens: int, num_generated: int) -> int:
        """Return the number of a prompt's first tokens that have to be read in one pass.

        This is all of them, even if the last ones were generated before. But if rotary modules
        depend on length, or quantized layers on the tokens of a pass, generated tokens have to be
        read as before: one after the other.
        """
        return num_tokens - num_generated if self._passes_matter else num_tokens

    def start(
        self,
        token_ids: list[int],
        num_generated: int = 0,
        *,
        probed: bool = False,
        adapter: str = "",  # noqa: ARG002 - one model has no others; see `AdaptedRunner`
    ) -> SoloPrompt:
        """Return a prompt, ready to be read.

        Args:
            token_ids: tokens of the prompt.
            num_generated: number of tokens at its end that were generated before.
            probed: whether the rows that continue it are probed.
            adapter: not used.
        """
        num_whole = self.count_whole(len(token_ids), num_generated)
        return SoloPrompt(token_ids, num_whole, probed=probed and self._probe != NO_PROBE)

    @torch.inference_mode()
    def prefill(self, prompt: SoloPrompt, num_tokens: int, *, all_logits: bool) -> torch.Tensor:
        """Read the prompt: first `num_whole` tokens at once, then the rest token by token.

        Args:
            prompt: changed in place.
            num_tokens: in the first call `num_whole`; in later ones at most the number left.
            all_logits: whether to return the logits of every position, or of the last one only.

        Returns:
            [num_tokens, V] or [1, V]: the logits after each token read.

        Raises:
            ValueError: `num_tokens` is wrong.
            ProbeError: the activations cannot be read.
        """
        whole = not prompt.num_done and num_tokens == prompt.num_whole
        if not whole and not (prompt.num_done and num_tokens <= prompt.num_left):
            raise ValueError(
                f"cannot read {num_tokens} tokens of a prompt of {len(prompt.token_ids)} after "
                f"{prompt.num_done}: the first {prompt.num_whole} have to be read at once"
            )
        sizes = [num_tokens] if whole else [1] * num_tokens
        logits = [self._read(prompt, size, all_logits=all_logits) for size in sizes]
        return torch.cat(logits) if all_logits else logits[-1]

    def _read(self, prompt: SoloPrompt, num_tokens: int, *, all_logits: bool) -> torch.Tensor:
        """Read the prompt's next tokens in one pass."""
        state, begin = prompt.state, prompt.num_done
        chunk = prompt.token_ids[begin : begin + num_tokens]
        input_ids = torch.tensor([chunk], device=self._device)
        if state is None:
            probed = ProbedSequence(self._probe) if prompt.probed else None
            arguments = self._make_first_arguments(input_ids)
            state = _State(input_ids, arguments, self._rotary.make_state(), probed)
        else:
            state.input_ids = torch.cat([state.input_ids, input_ids], 1)
        logits = self._forward(state, num_tokens, is_first=not begin, all_logits=all_logits)
        prompt.state = state
        if state.probed is not None:
            with translate_probe_errors():
                sources, hidden = state.probed.read_probe()
            prompt.readout = ProbeReadout(self._probe.lens, [0], sources, hidden)
        prompt.num_done += num_tokens
        return logits if all_logits else logits[-1:]

    def reuse_prefix(self, prompt: SoloPrompt, namespace: str) -> None:
        """Do nothing: a state that was carried on cannot be cut at a prefix."""

    def keep_prefix(self, prompt: SoloPrompt, namespace: str) -> None:
        """Do nothing; see `reuse_prefix`."""

    def keep_row(self, row: int, token_ids: Sequence[int], namespace: str) -> None:
        """Do nothing; see `reuse_prefix`."""

    @torch.inference_mode()
    def join(self, prompt: SoloPrompt, num_rows: int = 1) -> None:
        """Append rows that continue a completely read prompt."""
        if prompt.state is None:
            raise ValueError("join() needs a prompt that has been read; call prefill() first")
        self._rows += [prompt.state.copy() for _ in range(num_rows)]

    def leave(self, row: int) -> None:
        """Drop a row; the last row takes its number."""
        self._rows[row] = self._rows[-1]
        self._rows.pop()

    @torch.inference_mode()
    def copy_rows(self, sources: Sequence[int], destinations: Sequence[int]) -> None:
        """Copy rows to others, from their state before the call; for beams."""
        before = list(self._rows)
        wanted = list(range(len(before)))
        for source, destination in zip(sources, destinations, strict=True):
            wanted[destination] = source
        num_left = Counter(wanted)
        for row, source in enumerate(wanted):
            # The last use of a state needs no copy.
            num_left[source] -= 1
            self._rows[row] = before[source].copy() if num_left[source] else before[source]

    def synchronize(self) -> None:
        """Wait until the device has finished all work, so that times can be measured."""
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)

    def release(self) -> None:
        """Do nothing, as each row's memory is freed when it leaves."""

    def clear(self) -> None:
        """Drop all rows, also after a failed forward pass."""
        self._rows.clear()

    @torch.inference_mode()
    def decode(self, token_ids: list[int]) -> torch.Tensor:
        """Read one more token for every row, row after row.

        Args:
            token_ids: one for each row.

        Returns:
            [rows, V]: the logits after each token.
        """
        logits = []
        for state, token_id in zip(self._rows, token_ids, strict=True):
            newest = torch.tensor([[token_id]], device=self._device)
            state.input_ids = torch.cat([state.input_ids, newest], dim=-1)
            logits.append(self._forward(state, 1, is_first=False, all_logits=False)[-1:])
        return torch.cat(logits)

    @torch.inference_mode()
    def read_probe(self) -> ProbeReadout | None:
        """Return the last step's readout of the probed rows; None if no row is probed.

        Raises:
            Exception: the first failure of the probe in the last step.
        """
        probed = {row: state.probed for row, state in enumerate(self._rows) if state.probed}
        if not probed:
            return None
        seen = [sequence.read_probe() for sequence in probed.values()]
        sources = [each for of_row, _ in seen for each in of_row]
        hidden = [of_row for _, of_row in seen if of_row is not None]
        return ProbeReadout(
            self._probe.lens, list(probed), sources, torch.cat(hidden) if hidden else None
        )

    def stop_probing(self) -> None:
        """Stop probing all rows."""
        for state in self._rows:
            state.probed = None

    def _make_first_arguments(self, input_ids: torch.Tensor) -> dict[str, Any]:
        """Return `generate`'s first arguments, for a prompt without padding."""
        arguments: dict[str, Any] = {"use_cache": True}
        if "attention_mask" in self._parameters:
            arguments["attention_mask"] = torch.ones_like(input_ids)
        if "position_ids" in self._parameters:
            arguments["position_ids"] = self._model._prepare_position_ids_for_generation(  # noqa: SLF001 - the hook that generate calls
                input_ids, arguments
            )
        if "attention_mask" in arguments:
            arguments["attention_mask"] = None  # as in generate, as it hides nothing
        self._model._prepare_cache_for_generation(  # noqa: SLF001 - the hook that generate calls
            GenerationConfig(), arguments, None, 1, input_ids.shape[1]
        )
        return arguments

    def _forward(
        self, state: _State, num_new: int, *, is_first: bool, all_logits: bool
    ) -> torch.Tensor:
        """Read the newest tokens; return logits [num_new, V], or fewer rows from the end."""
        inputs = self._model.prepare_inputs_for_generation(
            state.input_ids,
            next_sequence_length=num_new,
            is_first_iteration=is_first,
            **state.arguments,
        )
        if "logits_to_keep" in self._parameters:
            # Set after the hook, which in some models (Bamba) sets its own value.
            inputs["logits_to_keep"] = 0 if all_logits else 1
        if state.probed is not None and inputs["input_ids"].shape[1] > num_new:
            # The hook makes all tokens be read again (Phi-3, when its frequencies change).
            state.probed.restart()
        with self._rotary.use_state(state.rotary):
            output = self._run_model(state, inputs)
        state.arguments = self._model._update_model_kwargs_for_generation(  # noqa: SLF001 - the hook that generate calls
            output, state.arguments
        )
        return output.logits[0]

    def _run_model(self, state: _State, inputs: dict[str, Any]) -> Any:
        """Run the model, and keep its activations if the sequence is probed."""
        if state.probed is None:
            return self._model(**inputs, return_dict=True)
        with collect_activations(self._probe, values=True) as buffer:
            output = self._model(**inputs, return_dict=True)
        state.probed.buffer = buffer
        return output
