"""State and readouts of the probed rows of a batch.

Rows that are not probed have no state here. For each probed row the norms of its positions are
kept beside the key-value cache, and moved like it: 4 bytes for each head, layer and position.
"""

from collections.abc import Sequence
from typing import NamedTuple, Protocol

import torch

from whence_server.domain.steps import Decision, Internals
from whence_server.engines.transformers.columns import Columns
from whence_server.engines.transformers.internals.lens import Lens, LensReadout
from whence_server.engines.transformers.internals.probe import Activations, Probe
from whence_server.engines.transformers.internals.sources import Sources, list_sources, read_context


class Readout(Protocol):
    """Readout of some rows' newest tokens, before their next tokens are chosen."""

    @property
    def rows(self) -> list[int]:
        """Row numbers in the batch, of the rows that are probed."""

    def select(self, rows: Sequence[int]) -> "Readout":
        """Return the entries of the given rows that are probed; a row may be given several times.

        The `rows` of the result are indices of the given ones.
        """

    def build_internals(self, decisions: Sequence[Decision]) -> list[Internals]:
        """Return the internals to record for the chosen tokens, one for each row."""


class ProbeReadout(NamedTuple):
    """Readout of rows of one model.

    Attributes:
        lens: reads `hidden`; None if the model's layers cannot be read.
        rows: row numbers in the batch, one for each entry of the other fields.
        sources: empty if the model gives none.
        hidden: [rows, layers, width]; None if the model's layers cannot be read.
    """

    lens: Lens | None
    rows: list[int]
    sources: list[Sources]
    hidden: torch.Tensor | None

    def select(self, rows: Sequence[int]) -> "ProbeReadout":
        """Return the entries of the given rows that are probed; a row may be given several times.

        The `rows` of the result are indices of the given ones.
        """
        entries = {row: entry for entry, row in enumerate(self.rows)}
        places = [place for place, row in enumerate(rows) if row in entries]
        index = [entries[rows[place]] for place in places]
        hidden = self.hidden
        if hidden is not None and index != list(range(len(self.rows))):
            hidden = hidden[index]
        sources = [self.sources[entry] for entry in index] if self.sources else []
        return ProbeReadout(self.lens, places, sources, hidden)

    def build_internals(self, decisions: Sequence[Decision]) -> list[Internals]:
        """Return the internals to record for the chosen tokens, one for each row."""
        if not decisions:
            return []
        lens_readouts: Sequence[LensReadout | None] = [None] * len(decisions)
        if self.lens is not None and self.hidden is not None:
            lens_readouts = self.lens.read(self.hidden, decisions)
        sources: Sequence[Sources | None] = self.sources or [None] * len(decisions)
        return [_make_internals(*both) for both in zip(sources, lens_readouts, strict=True)]


class ProbedRows:
    """The probed rows of a batch, with the norms of their positions.

    Rows have the numbers that they have in the batch, as in `Runner`.
    """

    def __init__(self, probe: Probe) -> None:
        self._probe = probe
        self._rows: list[int] = []
        """Row numbers in the batch, in the order of the rows of `_norms`."""
        self._lengths: list[int] = []
        self._norms = _Norms()

    @property
    def rows(self) -> list[int]:
        """Numbers of the probed rows."""
        return self._rows

    def join(self, rows: Sequence[int], prompt: "ProbedPrompt") -> None:
        """Add rows that continue one prompt."""
        self._rows += rows
        self._lengths += [prompt.length] * len(rows)
        if prompt.norms is not None:
            self._norms.insert_columns([prompt.norms], len(rows))

    def leave(self, row: int, last: int) -> None:
        """Drop a row, if it is probed; the batch's last row gets its number."""
        if row in self._rows:
            place = self._rows.index(row)
            if self._probe.norms is not None:
                self._norms.remove(place)
            for numbers in (self._rows, self._lengths):
                numbers[place] = numbers[-1]
                numbers.pop()
            self._norms.trim(max(self._lengths, default=0))
        if last in self._rows:
            self._rows[self._rows.index(last)] = row

    def copy_rows(self, sources: Sequence[int], destinations: Sequence[int]) -> None:
        """Copy sources to destinations, as they were before the call; all are probed, or none."""
        places = {row: place for place, row in enumerate(self._rows)}
        pairs = [
            (places[source], places[destination])
            for source, destination in zip(sources, destinations, strict=True)
            if source in places
        ]
        if pairs and self._probe.norms is not None:
            self._norms.copy_rows(*zip(*pairs, strict=True))

    def clear(self) -> None:
        """Drop all rows."""
        self._rows.clear()
        self._lengths.clear()
        self._norms.clear()

    def read_probe(
        self, activations: Activations, newest_values: Sequence[torch.Tensor]
    ) -> Readout:
        """Add a step's new column, and return the readout of the probed rows.

        Args:
            activations: activations of all rows.
            newest_values: each layer's values in the step's column: [B, value heads, head size].
        """
        everyone = self._rows == list(range(len(newest_values[0]) if newest_values else 0))
        index = None if everyone else torch.tensor(self._rows, device=newest_values[0].device)
        hidden = activations.hidden
        if hidden is not None and index is not None:
            hidden = hidden.index_select(0, index)
        self._lengths = [length + 1 for length in self._lengths]
        sources: list[Sources] = []
        if self._probe.norms is not None:
            if index is not None:
                newest_values = [layer.index_select(0, index) for layer in newest_values]
            norms = self._probe.norms.compute([layer.transpose(0, 1) for layer in newest_values])
            visible = self._norms.append(norms.mT)
            rows = None if everyone else self._rows
            sources = list_sources(read_context(activations.weights, visible, rows), self._lengths)
        return ProbeReadout(self._probe.lens, list(self._rows), sources, hidden)


class ProbedPrompt:
    """Norms of the positions of a prompt whose rows will be probed.

    Args:
        probe: the model's probe.
        length: number of tokens of the prompt.

    Attributes:
        length: number of tokens of the prompt.
        norms: [1, K, length], see `OutputNorms`; None before the first chunk, and if the model
            gives no sources.
    """

    def __init__(self, probe: Probe, length: int) -> None:
        self._probe = probe
        self.length = length
        self.norms: torch.Tensor | None = None

    def read(self, start: int, values: Sequence[torch.Tensor]) -> None:
        """Add the norms of one chunk.

        Args:
            start: position of the chunk's first token.
            values: each layer's values in the chunk: [1, value heads, tokens, head size].
        """
        if self._probe.norms is None:
            return
        norms = self._probe.norms.compute([layer[0] for layer in values])  # (K, tokens)
        if self.norms is None:
            self.norms = norms.new_empty(1, len(norms), self.length)
        self.norms[0, :, start : start + norms.shape[1]] = norms

    def read_probe(self, activations: Activations) -> ProbeReadout:
        """Return the readout of the prompt's last token, as row 0; called after the last chunk.

        Args:
            activations: activations of the pass over the last chunk.
        """
        sources: list[Sources] = []
        if self.norms is not None:
            sources = list_sources(
                read_context(activations.weights, self.norms, None), [self.length]
            )
        return ProbeReadout(self._probe.lens, [0], sources, activations.hidden)


class _Norms(Columns):
    """Buffer of norms, [rows, K, columns]; see `OutputNorms`."""

    def __init__(self) -> None:
        super().__init__("norms")
        self.norms: torch.Tensor

    def append(self, column: torch.Tensor) -> torch.Tensor:
        """Append a column [rows, K]; return all visible columns, [rows, K, columns]."""
        self.make_room(1)
        self.norms[: self.num_rows, :, self.end] = column
        self.end += 1
        return self.norms[: self.num_rows, :, self.start : self.end]

    def trim(self, longest: int) -> None:
        """Hide the columns that no row uses any more."""
        if self.is_initialized:
            self.start = self.end - longest


def _make_internals(sources: Sources | None, lens_readout: LensReadout | None) -> Internals:
    positions, shares, self_share, sink_share = sources or Sources([], [], None)
    layer_shares, leaders = lens_readout or ([], [])
    return Internals(positions, shares, self_share, layer_shares, leaders, sink_share)
