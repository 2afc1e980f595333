"""Composition of the server's transparency log and of the keys that it tells."""

from collections.abc import Mapping
from contextlib import suppress

from whence_server.config import ServeConfig
from whence_server.domain.errors import JournalError
from whence_server.http.log_tiles import ROUTE, make_log_answer
from whence_server.http.server import Answer
from whence_server.journal.journal import Journal
from whence_server.observability import Observability
from whence_server.proof.key_board import KeyBoard
from whence_server.proof.log.log import LogOptions, TransparencyLog
from whence_server.proof.log.publisher import PublisherStats
from whence_server.proof.log.sequencer import CURSOR, SequencerOptions
from whence_server.proof.log.witnesses import Witness
from whence_server.proof.opening import Proof
from whence_server.takeover import Follower

_FLUSH_S = 5.0
_KEY_NAME = "log-key.pem"


class Transparency:
    """The transparency log, or nothing for a server that keeps none.

    Args:
        journal: the journal.
        log: its log; None for none.
        board: signing keys of the servers of its database; None if this one does not sign.

    Attributes:
        log: the log; None for none.
        board: the signing keys; None for none.
    """

    def __init__(
        self, journal: Journal, log: TransparencyLog | None, board: KeyBoard | None = None
    ) -> None:
        self._journal = journal
        self.log = log
        self.board = board

    @classmethod
    async def open(
        cls, settings: ServeConfig, journal: Journal, proof: Proof | None
    ) -> "Transparency":
        """Open the log of a journal's database.

        Raises:
            ConfigurationError: its key or its directory cannot be used.
        """
        board = None if proof is None else KeyBoard(journal.tree, proof.keys)
        if settings.no_transparency_log:
            return cls(journal, None, board)
        options = LogOptions(
            key=settings.log_key or settings.data_dir / _KEY_NAME,
            origin=settings.log_origin,
            directory=settings.log_dir,
            witnesses=tuple(Witness(url, key) for url, key in settings.witnesses),
            quorum=settings.witness_quorum,
            pace=SequencerOptions(
                settings.log_checkpoint_interval, settings.log_checkpoint_entries
            ),
        )
        return cls(journal, await TransparencyLog.open(journal, options), board)

    @property
    def stats(self) -> PublisherStats | None:
        """Figures for the metrics; None without a log."""
        return None if self.log is None else self.log.stats

    @property
    def cursors(self) -> tuple[str, ...]:
        """Names of the journal's cursors that must have read a generation before it is deleted."""
        return () if self.log is None else (CURSOR,)

    def list_routes(self) -> Mapping[tuple[str, str], Answer]:
        """Return the public routes of the log over HTTP."""
        return {} if self.log is None else {("GET", ROUTE): make_log_answer(self.log)}

    async def start(self) -> None:
        """Start to grow and to publish.

        Raises:
            ConfigurationError: the directory shows more than the log has.
        """
        if self.board is not None:
            await self.board.start()
        if self.log is not None:
            await self.log.start()

    def make_followers(self, observability: Observability, journal: Journal) -> dict[str, Follower]:
        """Make the followers of the log of another server, by the names of their cursors."""
        followers: dict[str, Follower] = dict(observability.make_followers(journal))
        if self.log is not None:
            followers[CURSOR] = self.log.make_follower(journal)
        return followers

    async def close(self) -> None:
        """Append what is committed, as far as time allows, and stop."""
        if self.board is not None:
            await self.board.close()
        if self.log is None:
            return
        with suppress(JournalError):
            await self._journal.flush()
        await self.log.flush(_FLUSH_S)
        await self.log.close()
