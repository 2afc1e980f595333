"""Readouts of several models' rows as one, for a batch whose rows have different adapters."""

from collections.abc import Sequence

from whence_server.domain.steps import Decision, Internals
from whence_server.engines.transformers.internals.probed_rows import Readout


class JoinedReadout:
    """Readouts of rows that different probes have read.

    Args:
        entries: for each probed row its number in the batch, the readout that it is part of, and
            its number there.
    """

    def __init__(self, entries: Sequence[tuple[int, Readout, int]]) -> None:
        self._entries = list(entries)

    @property
    def rows(self) -> list[int]:
        """Row numbers in the batch."""
        return [row for row, _, _ in self._entries]

    def select(self, rows: Sequence[int]) -> "JoinedReadout":
        """Return the entries of the given rows; see `ProbeReadout.select`."""
        places = {row: (readout, number) for row, readout, number in self._entries}
        return JoinedReadout(
            [(place, *places[row]) for place, row in enumerate(rows) if row in places]
        )

    def build_internals(self, decisions: Sequence[Decision]) -> list[Internals]:
        """Return the internals to record for the chosen tokens, one for each row."""
        built: dict[int, Internals] = {}
        for readout in {id(readout): readout for _, readout, _ in self._entries}.values():
            own = [
                (place, number)
                for place, (_, other, number) in enumerate(self._entries)
                if other is readout
            ]
            part = readout.select([number for _, number in own])
            internals = part.build_internals([decisions[place] for place, _ in own])
            built.update(zip((place for place, _ in own), internals, strict=True))
        return [built[place] for place in range(len(decisions))]
