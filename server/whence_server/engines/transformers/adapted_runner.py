"""Runner of several models over one batch: the served model, and it with adapters.

Rows decode by the runner that their adapter has; several adapters may have the same one. A step
runs a forward pass for each runner that has rows, so that rows of other runners never change a
row's numbers.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from whence_server.engines.transformers.internals.joined_readout import JoinedReadout
from whence_server.engines.transformers.internals.probed_rows import Readout
from whence_server.engines.transformers.model_runner import ModelRunner


@dataclass(slots=True)
class AdaptedPrompt:
    """A prompt in prefill, and the runner that reads it."""

    runner: ModelRunner[Any]
    prompt: Any

    @property
    def num_done(self) -> int:
        """Number of tokens read."""
        return int(self.prompt.num_done)

    @property
    def num_left(self) -> int:
        """Number of tokens still to read."""
        return int(self.prompt.num_left)

    @property
    def num_cached(self) -> int:
        """Number of tokens among them that were found in the prefix cache."""
        return int(self.prompt.num_cached)

    @property
    def readout(self) -> Readout | None:
        """Readout of the last token, as row 0; None before the end, or if not probed."""
        readout: Readout | None = self.prompt.readout
        return readout


@dataclass(slots=True)
class _Row:
    """A row of the batch: its runner, and its number there."""

    runner: ModelRunner[Any]
    number: int


class AdaptedRunner:
    """Runner over rows that have different adapters.

    Args:
        runners: a runner without rows for each adapter, by its name; that of "" has none.
    """

    def __init__(self, runners: Mapping[str, ModelRunner[Any]]) -> None:
        self._by_adapter = dict(runners)
        self._runners = list({id(runner): runner for runner in runners.values()}.values())
        self._rows: list[_Row] = []

    @property
    def num_rows(self) -> int:
        """Number of rows that decode."""
        return len(self._rows)

    @property
    def num_prefix_tokens(self) -> int:
        """Number of positions in the prefix cache, which all runners share."""
        return self._by_adapter[""].num_prefix_tokens

    def count_whole(self, num_tokens: int, num_generated: int) -> int:
        """Return the number of a prompt's first tokens that have to be read in one pass."""
        # It depends on the base's rotary modules alone, which no adapter changes.
        return self._by_adapter[""].count_whole(num_tokens, num_generated)

    def start(
        self,
        token_ids: list[int],
        num_generated: int = 0,
        *,
        probed: bool = False,
        adapter: str = "",
    ) -> AdaptedPrompt:
        """Return a prompt, ready to be read; see `ModelRunner.start`."""
        runner = self._by_adapter[adapter]
        prompt = runner.start(token_ids, num_generated, probed=probed, adapter=adapter)
        return AdaptedPrompt(runner, prompt)

    def prefill(self, prompt: AdaptedPrompt, num_tokens: int, *, all_logits: bool) -> torch.Tensor:
        """Read the prompt's next tokens; see `ModelRunner.prefill`."""
        return prompt.runner.prefill(prompt.prompt, num_tokens, all_logits=all_logits)

    def reuse_prefix(self, prompt: AdaptedPrompt, namespace: str) -> None:
        """Take over the longest cached prefix of a prompt; see `ModelRunner.reuse_prefix`."""
        prompt.runner.reuse_prefix(prompt.prompt, namespace)

    def keep_prefix(self, prompt: AdaptedPrompt, namespace: str) -> None:
        """Keep the tokens that are read of a prompt for later prompts."""
        prompt.runner.keep_prefix(prompt.prompt, namespace)

    def keep_row(self, row: int, token_ids: Sequence[int], namespace: str) -> None:
        """Keep a row for later prompts; see `ModelRunner.keep_row`."""
        kept = self._rows[row]
        kept.runner.keep_row(kept.number, token_ids, namespace)

    def join(self, prompt: AdaptedPrompt, num_rows: int = 1) -> None:
        """Append rows that continue a completely read prompt."""
        first = prompt.runner.num_rows
        prompt.runner.join(prompt.prompt, num_rows)
        self._rows += [_Row(prompt.runner, first + i) for i in range(num_rows)]

    def leave(self, row: int) -> None:
        """Drop a row; the last row takes its number."""
        left = self._rows[row]
        left.runner.leave(left.number)
        for other in self._rows:
            # The runner's last row has taken the number of the one that left.
            if other.runner is left.runner and other.number == left.runner.num_rows:
                other.number = left.number
        self._rows[row] = self._rows[-1]
        self._rows.pop()
        if not left.runner.num_rows:
            # Otherwise the buffers of every runner would grow to the size of the whole cache.
            left.runner.release()

    def copy_rows(self, sources: Sequence[int], destinations: Sequence[int]) -> None:
        """Copy rows to others, from their state before the call; for beams, which share an adapter.

        Raises:
            ValueError: a row would be copied to one of another runner.
        """
        pairs: dict[int, list[tuple[int, int]]] = {}
        for source, destination in zip(sources, destinations, strict=True):
            read, written = self._rows[source], self._rows[destination]
            if read.runner is not written.runner:
                raise ValueError("copy_rows() needs rows of one adapter for each pair")
            pairs.setdefault(id(read.runner), []).append((read.number, written.number))
        for runner in self._runners:
            if id(runner) in pairs:
                runner.copy_rows(*map(list, zip(*pairs[id(runner)], strict=True)))

    @torch.inference_mode()
    def decode(self, token_ids: list[int]) -> torch.Tensor:
        """Read one more token for every row, with a forward pass for each runner that has rows.

        Args:
            token_ids: one for each row.

        Returns:
            [rows, V]: the logits after each token.
        """
        order: list[int] = []
        logits: list[torch.Tensor] = []
        for runner in self._runners:
            rows = self._list_rows(runner)
            if rows:
                logits.append(runner.decode([token_ids[row] for row in rows]))
                order += rows
        together = logits[0] if len(logits) == 1 else torch.cat(logits)
        if order == list(range(len(order))):
            return together
        place_of = {row: place for place, row in enumerate(order)}
        return together[[place_of[row] for row in range(len(order))]]

    def read_probe(self) -> Readout | None:
        """Return the last step's readout of the probed rows; None if no row is probed.

        Raises:
            Exception: the first failure since the last call in code for probed rows.
        """
        entries = []
        errors = []
        for runner in self._runners:
            try:
                readout = runner.read_probe()
            except Exception as error:  # noqa: BLE001 - the others have to be read too
                errors.append(error)
                continue
            if readout is not None:
                rows = self._list_rows(runner)
                entries += [(rows[number], readout, number) for number in readout.rows]
        if errors:
            raise errors[0]
        return JoinedReadout(entries) if entries else None

    def stop_probing(self) -> None:
        """Stop probing all rows, also after a failed `read_probe`."""
        for runner in self._runners:
            runner.stop_probing()

    def synchronize(self) -> None:
        """Wait until the device has finished all work, so that times can be measured."""
        self._by_adapter[""].synchronize()

    def release(self) -> None:
        """Free the memory of rows that have left."""
        for runner in self._runners:
            if not runner.num_rows:
                runner.release()

    def clear(self) -> None:
        """Drop all rows, also after a failed forward pass."""
        self._rows.clear()
        for runner in self._runners:
            runner.clear()
            runner.release()

    def _list_rows(self, runner: ModelRunner[Any]) -> list[int]:
        """Return the numbers in the batch of a runner's rows, by their numbers there."""
        found = [(of.number, row) for row, of in enumerate(self._rows) if of.runner is runner]
        return [row for _, row in sorted(found)]
