"""Maker of the statement about one generation, from its entries as they are stored."""

import logging
import secrets
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import orjson
from google.protobuf.message import DecodeError

from whence.proof.envelope import STATEMENT_TYPE as PAYLOAD_TYPE
from whence.proof.leaves import (
    SECRET_BYTES,
    IdsCommitment,
    derive_prompt_key,
    derive_salt,
    hash_entry,
)
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

_LONG_BYTES, _IDS_AN_ENTRY = 16 << 10, 1_024
"""Size from which a start's prompt is committed to in pieces; ids of one piece."""
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


class _LongStart(NamedTuple):
    """A start with a long prompt, and the commitment to its ids, as far as it is computed.

    131,072 ids take 6 ms, for which all streams would wait at the end: each entry takes some.
    """

    started: generation_pb2.GenerationStarted
    ids: IdsCommitment


class Leaves:
    """Merkle tree over the entries of one generation, until it is signed.

    The secret is new for each process that writes the generation, and is stored with its end
    alone: no copy of the journal from before the end has it.
    """

    __slots__ = (
        "_choose_signer",
        "_clock",
        "_closer",
        "_frontier",
        "_id",
        "_long",
        "_secret",
        "_started",
    )

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
        self._long: _LongStart | None = None

    def add(self, kind: EntryKind, payload: bytes) -> None:
        """Add the next entry, as it is on record (before encryption)."""
        if kind is EntryKind.STARTED:
            self._keep_start(payload)
        elif self._long is not None:
            self._long.ids.advance(_IDS_AN_ENTRY)
        frontier = self._frontier
        salt = derive_salt(self._secret, frontier.size)
        frontier.add(hash_entry(salt, kind, payload))

    def _keep_start(self, payload: bytes) -> None:
        self._started = payload
        if len(payload) < _LONG_BYTES:
            return
        try:
            started = generation_pb2.GenerationStarted.FromString(payload)
        except DecodeError:
            return  # `sign` says it
        key = derive_prompt_key(self._secret)
        self._long = _LongStart(started, IdsCommitment(key, started.prompt_token_ids))

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
        if self._long is not None:
            started, ids_commitment = self._long.started, self._long.ids.finish()
        else:
            started = generation_pb2.GenerationStarted.FromString(self._started)
            ids_commitment = ""
        finished = generation_pb2.GenerationFinished.FromString(payload)
        root, num_leaves = self._frontier.root.hex(), self._frontier.size
        predicate: dict[str, Any] = {
            **describe_start(started, derive_prompt_key(self._secret), ids_commitment),
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
