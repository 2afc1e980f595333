"""Signing of the ends of a log's generations."""

from whence_server.domain.entries import EntryKind
from whence_server.journal.attestor import Attestor
from whence_server.journal.log import Log
from whence_server.journal.lookup import Lookup

_PAGE = 1_000
_LEAVES = (EntryKind.STARTED, EntryKind.PROMPT_STEP, EntryKind.STEP, EntryKind.BEAM_ROUND)


class Signing:
    """Signing of a log's generations: none until it is given an attestor.

    Args:
        log: the log.
        lookup: reads its entries.
    """

    def __init__(self, log: Log, lookup: Lookup) -> None:
        self._log = log
        self._lookup = lookup

    def use(self, attestor: Attestor | None) -> None:
        """Sign the ends of generations from now on; None to sign none."""
        self._log.attestor = attestor

    def sign_for(self, taken: "Signing") -> None:
        """Sign in the log of another server, which this one takes over."""
        attestor = self._log.attestor
        taken.use(None if attestor is None else attestor.for_takeover())

    async def load(self, generation_id: str) -> None:
        """Read the entries of a generation that an earlier run left unfinished, to sign its end.

        Raises:
            GenerationNotFoundError: the generation is not running.
            RecordDamagedError: its rows are damaged.
        """
        leaves = self._log.begin_leaves(generation_id)
        offset = 0
        while leaves is not None and (
            entries := await self._lookup.read(
                generation_id, after_offset=offset, limit=_PAGE, kinds=_LEAVES
            )
        ):
            for entry in entries:
                leaves.add(entry.kind, entry.payload)
            offset = entries[-1].offset

    def find_statement(self, generation_id: str) -> bytes:
        """Return what was added to FINISHED of a generation that has just ended; b"" if nothing."""
        live = self._log.get_live(generation_id)
        return b"" if live is None else live.statement
