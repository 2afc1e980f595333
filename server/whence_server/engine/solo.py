"""Forward passes over one sequence at a time, for models whose sequences cannot share a batch.

Each row holds what transformers' `generate` would hold for it, in whatever form the model keeps
it: keys and values, a recurrent state, both. The model's own hooks carry it from pass to pass, so
that a row sees the calls it would see alone, in the same order and with the same arguments. What
a rotary module keeps of a sequence's length is the row's as well.
"""

import copy
import inspect
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from transformers import GenerationConfig

from whence_server.engine import frequencies
from whence_server.engine.frequencies import Frequencies, SequenceState
from whence_server.engine.internals.probe import NO_PROBE, Probe, probing, translate_probe_errors
from whence_server.engine.internals.probed_rows import ProbeReadout
from whence_server.engine.internals.probed_sequence import ProbedSequence


@dataclass(slots=True)
class SoloPrompt:
    """A prompt on its way to rows of its own.

    Attributes:
        token_ids: the whole prompt.
        state: what has been read of it; None before.
        num_whole: how many of them `generate` would have read in one pass.
        num_done: how many tokens that is: none, or `num_whole` and more.
        probed: whether the rows that go on from it are probed.
        readout: then, once it has been read, what is seen of its last token, as row 0.
    """

    token_ids: list[int]
    num_whole: int
    state: "_State | None" = None
    num_done: int = 0
    probed: bool = False
    readout: ProbeReadout | None = None

    @property
    def num_left(self) -> int:
        """Tokens still to be read."""
        return len(self.token_ids) - self.num_done


@dataclass(slots=True)
class _State:
    """One sequence as `generate` carries it from pass to pass.

    Attributes:
        input_ids: [1, tokens], all that has been read; replaced, never written to.
        arguments: for the next pass, the cache or recurrent state among them.
        rotary: what its passes have made of the rotary modules.
        probed: what is kept of it, if its passes are watched.
    """

    input_ids: torch.Tensor
    arguments: dict[str, Any]
    rotary: SequenceState
    probed: ProbedSequence | None

    def copy(self) -> "_State":
        """One that shares no memory that a forward pass writes to."""
        probed = self.probed and self.probed.copy()
        return replace(
            self,
            arguments=copy.deepcopy(self.arguments),
            rotary=self.rotary.copy(),
            probed=probed,
        )


class SoloRunner:
    """Runs one model over prompts and over rows, a forward pass for each.

    Rows are numbered from 0; `join` appends, `leave` moves the last row into the gap. A prompt is
    read whole: a recurrent layer that starts a second chunk as if it were a first loses what
    came before, and says nothing.

    Args:
        model: in eval mode.
        probe: looks at the activations of rows that are probed.
        rotary: its modules that depend on length; found here if None.
    """

    def __init__(
        self, model: Any, probe: Probe = NO_PROBE, rotary: Frequencies | None = None
    ) -> None:
        self._rotary = frequencies.find(model) if rotary is None else rotary
        self._model = model
        self._probe = probe
        self._device = model.device
        self._parameters = inspect.signature(model.forward).parameters
        self._rows: list[_State] = []

    @property
    def num_rows(self) -> int:
        """Sequences that decode."""
        return len(self._rows)

    def count_whole(self, num_tokens: int, num_generated: int) -> int:
        """Return how many of a prompt's tokens have to be read in one pass, from its beginning.

        All of them, as a rule, also where the last ones were generated before. But where
        positions depend on length, those have to be read as they were: one after the other.
        """
        return num_tokens - num_generated if self._rotary else num_tokens

    def start(
        self, token_ids: list[int], num_generated: int = 0, *, probed: bool = False
    ) -> SoloPrompt:
        """Make ready to read a prompt.

        Args:
            token_ids: the prompt.
            num_generated: how many of them, at their end, were generated before.
            probed: whether its rows are.
        """
        num_whole = self.count_whole(len(token_ids), num_generated)
        return SoloPrompt(token_ids, num_whole, probed=probed and self._probe != NO_PROBE)

    @torch.inference_mode()
    def prefill(self, prompt: SoloPrompt, num_tokens: int, *, all_logits: bool) -> torch.Tensor:
        """Read the prompt: first what has to be read whole, then the rest token by token.

        Args:
            prompt: changed in place.
            num_tokens: of the first call, `num_whole`; of later ones, as many as are left or less.
            all_logits: whether every position's logits are wanted, or the last one's alone.

        Returns:
            [num_tokens, V] or [1, V]: what follows each token read.

        Raises:
            ValueError: it cannot be read in pieces of that size.
            ProbeError: what it showed cannot be recorded.
        """
        whole = not prompt.num_done and num_tokens == prompt.num_whole
        if not whole and not (prompt.num_done and num_tokens <= prompt.num_left):
            raise ValueError(
                f"{num_tokens} tokens of a prompt of {len(prompt.token_ids)}, after "
                f"{prompt.num_done}: {prompt.num_whole} of it have to be read whole"
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

    @torch.inference_mode()
    def join(self, prompt: SoloPrompt, num_rows: int = 1) -> None:
        """Append rows that continue the prompt, all of whose tokens have been read."""
        if prompt.state is None:
            raise ValueError("the prompt has not been read")
        self._rows += [prompt.state.copy() for _ in range(num_rows)]

    def leave(self, row: int) -> None:
        """Drop a row; the last row takes its number."""
        self._rows[row] = self._rows[-1]
        self._rows.pop()

    @torch.inference_mode()
    def copy_rows(self, sources: Sequence[int], destinations: Sequence[int]) -> None:
        """Make each destination a copy of what its source was before the call; for beams."""
        before = list(self._rows)
        wanted = list(range(len(before)))
        for source, destination in zip(sources, destinations, strict=True):
            wanted[destination] = source
        num_left = Counter(wanted)
        for row, source in enumerate(wanted):
            # The last to want a state takes it as it is.
            num_left[source] -= 1
            self._rows[row] = before[source].copy() if num_left[source] else before[source]

    def synchronize(self) -> None:
        """Wait until what was asked for has been computed, so that times mean something."""
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)

    def clear(self) -> None:
        """Drop all rows, also after a forward pass that failed half-way."""
        self._rows.clear()

    @torch.inference_mode()
    def decode(self, token_ids: list[int]) -> torch.Tensor:
        """Read one more token for every row, row after row.

        Args:
            token_ids: one for each row.

        Returns:
            [rows, V]: what follows each.
        """
        logits = []
        for state, token_id in zip(self._rows, token_ids, strict=True):
            newest = torch.tensor([[token_id]], device=self._device)
            state.input_ids = torch.cat([state.input_ids, newest], dim=-1)
            logits.append(self._forward(state, 1, is_first=False, all_logits=False)[-1:])
        return torch.cat(logits)

    @torch.inference_mode()
    def read_probe(self) -> ProbeReadout | None:
        """Return the last step's readout of the probed rows; None where none is probed.

        Raises:
            Exception: whatever went wrong while they were watched.
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
        """Probe none of the rows any more."""
        for state in self._rows:
            state.probed = None

    def _make_first_arguments(self, input_ids: torch.Tensor) -> dict[str, Any]:
        """What `generate` begins with, for a prompt without padding and a neutral config."""
        arguments: dict[str, Any] = {"use_cache": True}
        if "attention_mask" in self._parameters:
            arguments["attention_mask"] = torch.ones_like(input_ids)
        if "position_ids" in self._parameters:
            arguments["position_ids"] = self._model._prepare_position_ids_for_generation(  # noqa: SLF001 - the hook that generate calls
                input_ids, arguments
            )
        if "attention_mask" in arguments:
            arguments["attention_mask"] = None  # hides nothing: generate leaves it out too
        self._model._prepare_cache_for_generation(  # noqa: SLF001 - the hook that generate calls
            GenerationConfig(), arguments, None, 1, input_ids.shape[1]
        )
        return arguments

    def _forward(
        self, state: _State, num_new: int, *, is_first: bool, all_logits: bool
    ) -> torch.Tensor:
        """Read the state's newest tokens; [num_new, V], or fewer rows from the end."""
        inputs = self._model.prepare_inputs_for_generation(
            state.input_ids,
            next_sequence_length=num_new,
            is_first_iteration=is_first,
            **state.arguments,
        )
        if "logits_to_keep" in self._parameters:
            # After the hook, which in some models (Bamba) puts its own choice here.
            inputs["logits_to_keep"] = 0 if all_logits else 1
        if state.probed is not None and inputs["input_ids"].shape[1] > num_new:
            # All that came before is read once more (Phi-3, where it changes its frequencies).
            state.probed.restart()
        with self._rotary.use_state(state.rotary):
            output = self._run_model(state, inputs)
        state.arguments = self._model._update_model_kwargs_for_generation(  # noqa: SLF001 - the hook that generate calls
            output, state.arguments
        )
        return output.logits[0]

    def _run_model(self, state: _State, inputs: dict[str, Any]) -> Any:
        """Run the model; its activations are kept where the sequence is probed."""
        if state.probed is None:
            return self._model(**inputs, return_dict=True)
        with probing(self._probe, values=True) as buffer:
            output = self._model(**inputs, return_dict=True)
        state.probed.buffer = buffer
        return output
