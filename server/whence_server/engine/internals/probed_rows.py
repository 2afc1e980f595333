"""What is seen of the rows that asked: their newest tokens' sources and layers.

Rows that did not ask carry nothing. Those that did have, beside the key-value cache and moved
like it, the norms of their positions: 4 bytes for each head of each layer and position.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch

from whence_server.domain.steps import Decision, Internals
from whence_server.engine.columns import Columns
from whence_server.engine.internals.lens import Lens, LensReadout
from whence_server.engine.internals.probe import Activations, Probe
from whence_server.engine.internals.sources import Sources, list_sources, sum_contributions


class ProbeReadout(NamedTuple):
    """What is seen of some rows' newest tokens, before what follows them is chosen.

    Attributes:
        lens: reads `hidden`; None where the model gives no layers.
        rows: of the batch, one for each entry of the others.
        sources: empty where the model gives none.
        hidden: [rows, layers, width]; None where the model gives no layers.
    """

    lens: Lens | None
    rows: list[int]
    sources: list[Sources]
    hidden: torch.Tensor | None

    def select(self, rows: Sequence[int]) -> "ProbeReadout":
        """The entries of these rows of the batch, of each that was probed, as often as named.

        Its own `rows` are places in the given ones.
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
        """What is recorded of the tokens that were chosen, one for each row."""
        if not decisions:
            return []
        lens_readouts: Sequence[LensReadout | None] = [None] * len(decisions)
        if self.lens is not None and self.hidden is not None:
            lens_readouts = self.lens.read(self.hidden, decisions)
        sources: Sequence[Sources | None] = self.sources or [None] * len(decisions)
        return [_make_internals(*both) for both in zip(sources, lens_readouts, strict=True)]


class ProbedRows:
    """The rows of a batch that asked, with their positions' norms.

    Rows go by their numbers in the batch, as in `Runner`.
    """

    def __init__(self, probe: Probe) -> None:
        self._probe = probe
        self._rows: list[int] = []
        """Of the batch, in the order of the norms' own rows."""
        self._lengths: list[int] = []
        self._norms = _Norms()

    @property
    def rows(self) -> list[int]:
        """Those that are probed."""
        return self._rows

    def join(self, rows: Sequence[int], prompt: "ProbedPrompt") -> None:
        """Take in rows that continue one prompt."""
        self._rows += rows
        self._lengths += [prompt.length] * len(rows)
        if prompt.norms is not None:
            self._norms.insert_columns([prompt.norms], len(rows))

    def leave(self, row: int, last: int) -> None:
        """Drop a row, if it is probed; the batch's last row takes its number."""
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
        """Make each destination a copy of what its source was before: all ask, or none."""
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
    ) -> ProbeReadout:
        """Take in a step's new column, and says what the rows drew on.

        Args:
            activations: of all rows.
            newest_values: each layer's, of the step's own column: [B, value heads, head size].
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
            sources = list_sources(
                sum_contributions(activations.weights, visible, rows), self._lengths
            )
        return ProbeReadout(self._probe.lens, list(self._rows), sources, hidden)


class ProbedPrompt:
    """A prompt that is read for rows that ask, with the norms of what has been read of it.

    Args:
        probe: the model's.
        length: the whole prompt's.

    Attributes:
        length: the same.
        norms: [1, K, length], see `OutputNorms`; None before anything was read, and where the
            model gives no sources.
    """

    def __init__(self, probe: Probe, length: int) -> None:
        self._probe = probe
        self.length = length
        self.norms: torch.Tensor | None = None

    def read(self, start: int, values: Sequence[torch.Tensor]) -> None:
        """Take in a piece of it, which is never looked at again.

        Args:
            start: the position that it begins at.
            values: each layer's, of the piece: [1, value heads, tokens, head size].
        """
        if self._probe.norms is None:
            return
        norms = self._probe.norms.compute([layer[0] for layer in values])  # (K, tokens)
        if self.norms is None:
            self.norms = norms.new_empty(1, len(norms), self.length)
        self.norms[0, :, start : start + norms.shape[1]] = norms

    def read_probe(self, activations: Activations) -> ProbeReadout:
        """What its newest token drew on, as row 0, once all of it has been read.

        Args:
            activations: of the pass that read its end.
        """
        sources: list[Sources] = []
        if self.norms is not None:
            sources = list_sources(
                sum_contributions(activations.weights, self.norms, None), [self.length]
            )
        return ProbeReadout(self._probe.lens, [0], sources, activations.hidden)


class _Norms(Columns):
    """[rows, K, columns]; see `OutputNorms`."""

    def __init__(self) -> None:
        super().__init__("norms")
        self.norms: torch.Tensor

    def append(self, column: torch.Tensor) -> torch.Tensor:
        """Write a column [rows, K] for all rows; returns all visible ones."""
        self.make_room(1)
        self.norms[: self.num_rows, :, self.end] = column
        self.end += 1
        return self.norms[: self.num_rows, :, self.start : self.end]

    def trim(self, longest: int) -> None:
        """Hide the columns in which no row has anything any more."""
        if self.is_initialized:
            self.start = self.end - longest


def _make_internals(sources: Sources | None, lens_readout: LensReadout | None) -> Internals:
    positions, shares, self_share = sources or ([], [], None)
    layer_shares, leaders = lens_readout or ([], [])
    return Internals(positions, shares, self_share, layer_shares, leaders)
