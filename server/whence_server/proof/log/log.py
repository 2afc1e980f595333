"""The transparency log of a server: it grows, is published, and proves its entries."""

import logging
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple, Protocol, Self

from whence.proof.notes import NoteSigner, VerifierKey
from whence_server.domain.entries import Entry
from whence_server.domain.errors import (
    CheckpointPendingError,
    ConfigurationError,
    FieldViolation,
    InvalidRequestError,
    StatementNotLoggedError,
    TransparencyLogDamagedError,
)
from whence_server.proof.log import tables
from whence_server.proof.log.files import LogDirectory
from whence_server.proof.log.keys import load_key, make_key
from whence_server.proof.log.publisher import Publisher, PublisherStats, read_tile_content
from whence_server.proof.log.sequencer import SequencedJournal, Sequencer, SequencerOptions
from whence_server.proof.log.statements import find_digest
from whence_server.proof.log.tables import TreeState
from whence_server.proof.log.tiles import CHECKPOINT, parse_path
from whence_server.proof.log.witnesses import Witness

_log = logging.getLogger(__name__)

_KEY_FLAG = "--log-key"


class IdentifiedJournal(SequencedJournal, Protocol):
    """One log of the journal, with its id."""

    @property
    def id(self) -> bytes:
        """The log's UUID, 16 bytes."""


@dataclass(frozen=True, slots=True)
class LogOptions:
    """Settings of the transparency log.

    Attributes:
        key: PEM file of the key that signs checkpoints; made at the log's first start.
        origin: name of the log; "" for one that is made from the journal's id.
        directory: directory in which the log is published as files; None for none.
        witnesses: witnesses that are asked for cosignatures.
        quorum: number of them that must have cosigned a checkpoint before it is published.
        pace: pace of the checkpoints.
    """

    key: Path
    origin: str = ""
    directory: Path | None = None
    witnesses: tuple[Witness, ...] = ()
    quorum: int = 0
    pace: SequencerOptions = field(default_factory=SequencerOptions)


class Inclusion(NamedTuple):
    """Proof that an entry is in the log."""

    leaf_index: int
    size: int
    path: list[bytes]
    checkpoint: bytes
    """The published checkpoint of this size, signed and cosigned."""
    consistency: list[bytes]
    """Proof that this log continues the one that the caller knows."""


class Consistency(NamedTuple):
    """Proof that the log only grew."""

    old_size: int
    size: int
    path: list[bytes]
    checkpoint: bytes
    """The published checkpoint of the new size."""


class TransparencyLog:
    """The transparency log of the journal's database.

    Attributes:
        origin: name of the log.
        verifier_key: the log's public key, as text.
    """

    def __init__(
        self,
        journal: IdentifiedJournal,
        options: LogOptions,
        state: TreeState,
        signer: NoteSigner | None,
        find: Callable[[Entry], bytes | None] = find_digest,
    ) -> None:
        self.origin = state.origin
        self.verifier_key = state.verifier_key
        self._tree = journal.tree
        self._options = options
        self._size = state.size
        self._signer = signer
        self._find = find
        self._directory = None if options.directory is None else LogDirectory(options.directory)
        self._publisher = Publisher(
            journal.tree, options.witnesses, options.quorum, self._directory
        )
        self._sequencer = self.make_follower(journal)

    @classmethod
    async def open(
        cls,
        journal: IdentifiedJournal,
        options: LogOptions,
        find: Callable[[Entry], bytes | None] = find_digest,
    ) -> Self:
        """Open the log of a journal's database; the first server begins it.

        Raises:
            ConfigurationError: the key cannot be used, the origin is another, or the log's
                identity is lost.
        """
        state = await journal.tree.read(tables.read_state)
        if state is None:
            key = load_key(_KEY_FLAG, options.key) if options.key.exists() else None
            key = key or make_key(_KEY_FLAG, options.key)
            first = NoteSigner(options.origin or f"whence/{journal.id.hex()}", key).key
            try:
                state = await journal.tree.change(
                    lambda it: tables.begin_tree(it, first.name, str(first))
                )
            except TransparencyLogDamagedError as error:
                raise ConfigurationError(str(error)) from error
        if options.origin and options.origin != state.origin:
            raise ConfigurationError(
                f"--log-origin {options.origin}: the log of this journal is {state.origin!r}, and "
                "a log keeps its name; leave the setting out"
            )
        return cls(journal, options, state, _find_signer(options.key, state), find)

    @property
    def stats(self) -> PublisherStats:
        """Figures for the metrics."""
        return self._publisher.stats

    async def start(self) -> None:
        """Start to grow and to publish.

        Raises:
            ConfigurationError: the directory cannot be used, or shows a log that this one does not
                continue.
        """
        shown = await self._check_directory()
        _log.info("transparency log %s has %d entries", self.verifier_key, self._size)
        self._publisher.start(shown)
        self._sequencer.start()

    async def _check_directory(self) -> int:
        """Return the size of the log that the directory shows, which this log must continue."""
        if self._directory is None:
            return 0
        shown = self._directory.prepare(VerifierKey.parse(self.verifier_key))
        if shown is None:
            return 0
        what = f"--log-dir {self._options.directory} shows {shown.size} entries"
        why = "Restore the newest one: a log that goes on would contradict what was published"
        if shown.size > self._size:
            raise ConfigurationError(
                f"{what}, and the journal's transparency log has {self._size}: the journal is an "
                f"old copy, or was cut off. {why}"
            )
        try:
            root = await self._tree.read(
                lambda it: tables.make_reader(it, shown.size).compute_root()
            )
        except TransparencyLogDamagedError as error:
            raise ConfigurationError(str(error)) from error
        if root != shown.root:
            raise ConfigurationError(
                f"{what}, and the journal's transparency log begins with others: the journal is an "
                f"old copy that went on, or was changed. {why}"
            )
        return shown.size

    async def flush(self, timeout_s: float) -> bool:
        """Append what is committed by now; return False if the time ran out."""
        return await self._sequencer.flush(timeout_s)

    async def close(self) -> None:
        """Stop; what is not in the log yet follows after the next start."""
        await self._sequencer.close()
        await self._publisher.close()

    def make_follower(self, journal: SequencedJournal) -> Sequencer:
        """Return the task that appends the statements of another log of the journal."""
        return Sequencer(
            journal,
            self._signer,
            self._options.pace,
            publishes_at_once=not self._options.quorum,
            on_checkpoint=self._publisher.wake,
            find=self._find,
        )

    # ---- reading ----

    async def read_checkpoint(self) -> bytes:
        """Return the newest published checkpoint, signed and cosigned.

        Raises:
            CheckpointPendingError: there is none yet.
        """
        found = await self._tree.read(lambda it: tables.find_newest_checkpoint(it, published=True))
        if found is None or found.published is None:
            raise CheckpointPendingError("any entry", self._options.pace.interval_s)
        return found.published

    async def prove_inclusion(self, digest: bytes, known_size: int = 0) -> Inclusion:
        """Prove that a statement's digest is in the log of the published checkpoint.

        Args:
            digest: SHA-256 of the statement's envelope.
            known_size: number of entries of an earlier log, which this one is proven to continue.

        Raises:
            StatementNotLoggedError: it is not in the log.
            CheckpointPendingError: it is, and no published checkpoint covers it yet.
            InvalidRequestError: the published log was never of the known size.
        """
        interval_s = self._options.pace.interval_s

        def read(connection: Any) -> Inclusion:
            index = tables.find_leaf(connection, digest)
            checkpoint = tables.find_newest_checkpoint(connection, published=True)
            size = 0 if checkpoint is None else checkpoint.size
            if index is None:
                raise StatementNotLoggedError(f"the digest {digest.hex()}", size)
            if checkpoint is None or checkpoint.published is None or index >= size:
                raise CheckpointPendingError(f"entry {index}", interval_s)
            _check_size("known_log_size", known_size, size)
            reader = tables.make_reader(connection, size)
            path = reader.prove_inclusion(index)
            grown = reader.prove_consistency(known_size) if known_size else []
            return Inclusion(index, size, path, checkpoint.published, grown)

        return await self._tree.read(read)

    async def prove_consistency(self, old_size: int) -> Consistency:
        """Prove that the log of the published checkpoint continues that of an old size.

        Raises:
            InvalidRequestError: the published log was never of that size.
            CheckpointPendingError: nothing is published yet.
        """
        interval_s = self._options.pace.interval_s

        def read(connection: Any) -> Consistency:
            checkpoint = tables.find_newest_checkpoint(connection, published=True)
            if checkpoint is None or checkpoint.published is None:
                raise CheckpointPendingError("any entry", interval_s)
            size = checkpoint.size
            _check_size("old_size", old_size, size)
            path = tables.make_reader(connection, size).prove_consistency(old_size)
            return Consistency(old_size, size, path, checkpoint.published)

        return await self._tree.read(read)

    async def read_resource(self, path: str) -> bytes | None:
        """Return what is published at a path below that of the log; None if nothing is.

        Raises:
            TransparencyLogDamagedError: rows of the log are missing.
        """
        if path == CHECKPOINT:
            try:
                return await self.read_checkpoint()
            except CheckpointPendingError:
                return None
        tile = parse_path(path)
        state = None if tile is None else await self._tree.read(tables.read_state)
        if tile is None or state is None or tile.end > state.size:
            return None
        return await read_tile_content(self._tree, tile)


def _check_size(field: str, old_size: int, size: int) -> None:
    """Refuse the size of an earlier log that the published one cannot have had."""
    if not 0 <= old_size <= size:
        why = f"must be at most {size}, the size of the published log"
        raise InvalidRequestError(FieldViolation(field, why))


def _find_signer(path: Path, state: TreeState) -> NoteSigner | None:
    """Return what signs the log's checkpoints; None without the log's key, which is reported."""
    if not path.exists():
        _log.error(
            "%s %s, the key of transparency log %s, is missing: the log grows, and no checkpoint "
            "is signed here; restore the key",
            *(_KEY_FLAG, path, state.origin),
        )
        return None
    signer = NoteSigner(state.origin, load_key(_KEY_FLAG, path))
    if str(signer.key) != state.verifier_key:
        _log.error(
            "%s %s is not the key of transparency log %s, %s: the log grows, and no checkpoint is "
            "signed here; give every server the same key",
            *(_KEY_FLAG, path, state.origin, state.verifier_key),
        )
        return None
    return signer
