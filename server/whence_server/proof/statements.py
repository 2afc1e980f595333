"""Maker of the statement about one generation, from its entries as they are stored."""

import logging
import secrets
import time
from collections.abc import Callable
from typing import Any

import orjson

from whence.proof.envelope import STATEMENT_TYPE as PAYLOAD_TYPE
from whence.proof.leaves import SECRET_BYTES, derive_prompt_key, derive_salt, hash_entry
from whence.proof.merkle_tree import Frontier
from whence.proof.predicate import (
    PREDICATE_TYPE,
    STATEMENT_TYPE,
    TREE,
    describe_finish,
    describe_start,
)
from whence.proof.times import spell_time
from whence.v1 import generation_pb2, proof_pb2
from whence_server import logs
from whence_server.domain.entries import EntryKind
from whence_server.proof.signer import Signer, seal

_log = logging.getLogger(__name__)

OWN, RESTART, TAKEOVER = "server", "server after a restart", "another server"
"""Closers of a generation, as a statement names them."""


class Statements:
    """Maker of statements about the generations of one log.

    Args:
        choose_signer: returns the signer to use now.
        closer: who closes generations that were left unfinished: RESTART or TAKEOVER.
        clock: Unix time in nanoseconds.
    """

    def __init__(
        self,
        choose_signer: Callable[[], Signer],
        closer: str = RESTART,
        clock: Callable[[], int] = time.time_ns,
    ) -> None:
        self._choose_signer = choose_signer
        self._closer = closer
        self._clock = clock

    def for_takeover(self) -> "Statements":
        """Return the maker for the log of another server, which this one closes."""
        return Statements(self._choose_signer, TAKEOVER, self._clock)

    def begin(self, generation_id: str, *, recovered: bool = False) -> "Leaves":
        """Begin the tree of a generation, whose entries follow from STARTED on.

        Args:
            generation_id: id of the generation.
            recovered: True if an earlier run left it unfinished.
        """
        closer = self._closer if recovered else OWN
        return Leaves(generation_id, self._choose_signer, closer, self._clock)


class Leaves:
    """Merkle tree over the entries of one generation, until it is signed.

    The secret is new for each process that writes the generation, and is stored with its end
    alone: no copy of the journal from before the end has it.
    """

    __slots__ = ("_choose_signer", "_clock", "_closer", "_frontier", "_id", "_secret", "_started")

    def __init__(
        self,
        generation_id: str,
        choose_signer: Callable[[], Signer],
        closer: str,
        clock: Callable[[], int],
    ) -> None:
        """Begin without a leaf; `Statements.begin` makes it."""
        self._id = generation_id
        self._choose_signer = choose_signer
        self._closer = closer
        self._clock = clock
        self._secret = secrets.token_bytes(SECRET_BYTES)
        self._frontier = Frontier()
        self._started = b""

    def add(self, kind: EntryKind, payload: bytes) -> None:
        """Add the next entry, as it is on record (before encryption)."""
        if kind is EntryKind.STARTED:
            self._started = payload
        frontier = self._frontier
        salt = derive_salt(self._secret, frontier.size)
        frontier.add(hash_entry(salt, kind, payload))

    def sign(self, payload: bytes) -> bytes:
        """Return what is added to FINISHED: its statement, serialised; b"" if it cannot be signed.

        Args:
            payload: FINISHED without the statement.
        """
        try:
            envelope = self._make_envelope(payload)
        except Exception:  # noqa: BLE001 - whatever it is, the generation has to end
            extra = {logs.GENERATION_ID: self._id}
            _log.exception("a generation ends without a signed statement", extra=extra)
            return b""
        statement = proof_pb2.SignedStatement(envelope=envelope, leaf_secret=self._secret)
        # Concatenated messages are merged: FINISHED keeps its other bytes.
        return generation_pb2.GenerationFinished(statement=statement).SerializeToString()

    def _make_envelope(self, payload: bytes) -> bytes:
        started = generation_pb2.GenerationStarted.FromString(self._started)
        finished = generation_pb2.GenerationFinished.FromString(payload)
        root, num_leaves = self._frontier.root.hex(), self._frontier.size
        predicate: dict[str, Any] = {
            **describe_start(started, derive_prompt_key(self._secret)),
            **describe_finish(finished),
            "record": {"tree": TREE, "root": root, "numLeaves": num_leaves},
            "closedBy": self._closer,
            "signedAt": spell_time(self._clock()),
        }
        statement = {
            "_type": STATEMENT_TYPE,
            "subject": [{"name": f"generation:{self._id}", "digest": {"sha256": root}}],
            "predicateType": PREDICATE_TYPE,
            "predicate": predicate,
        }
        return seal(PAYLOAD_TYPE, orjson.dumps(statement), self._choose_signer())
