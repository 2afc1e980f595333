"""Maker of the statement about one generation, from its entries as they are stored."""

import logging
import secrets
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import orjson

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

_IDS_AN_ENTRY = 1_024
"""Ids of a prompt that one entry commits to."""
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


class _Start(NamedTuple):
    """Parts of the predicate that a generation's start implies, made when it begins.

    A generation's end holds up its stream: what is known before is computed before.

    Attributes:
        parts: the parts.
        ids: commitment to the ids of a long prompt, as far as it is computed; None for a short one.
            131,072 ids take 6 ms, for which all streams would wait: each entry takes some.
    """

    parts: dict[str, Any]
    ids: IdsCommitment | None


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
        "_secret",
        "_start",
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
        self._start: _Start | Exception | None = None
        """The start; None before it, and what went wrong if it cannot be described."""

    def add(self, kind: EntryKind, payload: bytes) -> None:
        """Add the next entry, as it is on record (before encryption)."""
        if kind is EntryKind.STARTED:
            self._keep_start(payload)
        elif isinstance(self._start, _Start) and self._start.ids is not None:
            self._start.ids.advance(_IDS_AN_ENTRY)
        frontier = self._frontier
        salt = derive_salt(self._secret, frontier.size)
        frontier.add(hash_entry(salt, kind, payload))

    def _keep_start(self, payload: bytes) -> None:
        try:
            self._start = self._describe(generation_pb2.GenerationStarted.FromString(payload))
        except Exception as error:  # noqa: BLE001 - the generation has to begin; `sign` says it
            self._start = error

    def _describe(self, started: generation_pb2.GenerationStarted) -> _Start:
        key = derive_prompt_key(self._secret)
        if len(started.prompt_token_ids) <= _IDS_AN_ENTRY:
            return _Start(describe_start(started, key), None)
        ids = IdsCommitment(key, started.prompt_token_ids)
        return _Start(describe_start(started, key, ids_commitment="later"), ids)

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
        start = self._start or self._describe(generation_pb2.GenerationStarted())
        if isinstance(start, Exception):
            raise start
        if start.ids is not None:
            start.parts["prompt"]["idsCommitment"] = start.ids.finish()
        finished = generation_pb2.GenerationFinished.FromString(payload)
        root, num_leaves = self._frontier.root.hex(), self._frontier.size
        predicate: dict[str, Any] = {
            **start.parts,
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
